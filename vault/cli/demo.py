"""`cardvault demo`: the main job on a scratch stack, through real clients, each step checked."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vault.domain.brand import Brand
from vault.domain.caller import Role
from vault.embedded.pki import CertificateFiles
from vault.embedded.stack import PROCESSOR, Stack, prepare
from vault.hardening import harden
from vault.rpc.server import READY
from vault.v1 import (
    account_pb2,
    account_pb2_grpc,
    cards_pb2,
    checkout_pb2,
    checkout_pb2_grpc,
    processor_pb2,
    processor_pb2_grpc,
)

# Published test numbers; they belong to nobody.
VISA = "4242424242424242"
MASTERCARD = "5555555555554444"
AMEX = "378282246310005"

TIMEOUT = 10.0
_TERMS = b"Keep my card for my next purchase. You can remove it at any time on your account page."
_PORT = re.compile(r"port (\d+)")


class StepFailed(Exception):
    """A step did not do what it should."""


@dataclass(slots=True)
class Story:
    """Tells the steps and keeps count."""

    told: int = 0

    def step(self, title: str) -> None:
        """Begin a step."""
        self.told += 1
        typer.echo(f"\n{self.told:>2}. {title}")

    def show(self, fact: str) -> None:
        """Say what came of it."""
        typer.echo(f"      {fact}")

    def must(self, holds: bool, what: str) -> None:
        """Say what holds; stop if it does not."""
        if not holds:
            typer.echo(f"    ✗ {what}")
            raise StepFailed(what)
        typer.echo(f"    ✓ {what}")

    def refused(self, call: Callable[[], Any], code: grpc.StatusCode, what: str) -> None:
        """Something must be refused with this code."""
        try:
            call()
        except grpc.RpcError as e:
            self.must(e.code() is code, f"{what}: {e.code().name} “{e.details()}”")
        else:
            self.must(False, f"{what}: was allowed")


@dataclass(frozen=True, slots=True)
class Clients:
    """One stub for each role."""

    checkout: checkout_pb2_grpc.CheckoutServiceStub
    account: account_pb2_grpc.AccountServiceStub
    processor: processor_pb2_grpc.ProcessorServiceStub
    account_at_processor: processor_pb2_grpc.ProcessorServiceStub
    """The processor's service, called with the account page's certificate."""


def run() -> int:
    """Tell the story; 0 only if every step did what it should."""
    harden()
    story = Story()
    typer.echo("cardvault demo: one card's life, on a real OpenBao, SQLite and mutual TLS. Nothing is kept.")
    with tempfile.TemporaryDirectory(prefix="cardvault-demo-") as scratch:
        try:
            story.step("Starting OpenBao, a database, a CA and the server")
            with _stack(Path(scratch)) as stack, _server(stack) as port, _clients(stack, port) as clients:
                story.must(True, f"ready on port {port}")
                _tell(story, clients, stack)
        except (StepFailed, subprocess.SubprocessError, OSError) as e:
            typer.echo(f"\nThe demo stopped: {e}", err=True)
            return 1
        except grpc.RpcError as e:
            typer.echo(f"\nThe demo stopped: {e.code().name} “{e.details()}”", err=True)
            return 1
    typer.echo("\nEvery step did what it should.")
    return 0


def _tell(story: Story, clients: Clients, stack: Stack) -> None:
    token = _opt_in(story, clients)
    _without_opt_in(story, clients)
    _account_page(story, clients, token)
    _pay(story, clients, token)
    _pay_once(story, clients)
    _merchant_alone(story, clients, token)
    _rotate(story, clients, stack, token)
    _remove(story, clients, token)
    _audit(story, stack)
    _search(story, stack)


def _opt_in(story: Story, clients: Clients) -> str:
    story.step("Ada buys, ticks “keep my card”: checkout stores it and gets a token")
    request = checkout_pb2.TokenizeRequest(customer_id="ada", card=_card(VISA), consent=_consent())
    stored = clients.checkout.Tokenize(request, timeout=TIMEOUT).card
    story.show(f"token {stored.token}")
    story.must(stored.token.startswith("tok_") and not any(c.isdigit() for c in stored.token), "a token without digits")
    story.must(stored.last4 == VISA[-4:], f"all that comes back of the number is •••• {stored.last4}")
    again = clients.checkout.Tokenize(request, timeout=TIMEOUT).card
    story.must(again.token == stored.token, "the same card again keeps its token")
    return stored.token


def _without_opt_in(story: Story, clients: Clients) -> None:
    story.step("Ben buys and ticks nothing: his card is not stored")
    once = clients.checkout.Tokenize(
        checkout_pb2.TokenizeRequest(card=_card(MASTERCARD), order_id="order-ben"), timeout=TIMEOUT
    )
    story.must(not once.card.token, "no stored-card token")
    story.must(once.one_time_token.startswith("once_"), "a one-time token for this order instead, held by the shop")
    cards = clients.account.ListCards(account_pb2.ListCardsRequest(customer_id="ben"), timeout=TIMEOUT).cards
    story.must(len(cards) == 0, "Ben's account page lists no card")
    story.refused(
        lambda: clients.checkout.Tokenize(checkout_pb2.TokenizeRequest(card=_card(MASTERCARD)), timeout=TIMEOUT),
        grpc.StatusCode.INVALID_ARGUMENT,
        "a card with neither consent nor order is turned away",
    )


def _account_page(story: Story, clients: Clients, token: str) -> None:
    story.step("Ada opens her account page")
    cards = clients.account.ListCards(account_pb2.ListCardsRequest(customer_id="ada"), timeout=TIMEOUT).cards
    story.must(len(cards) == 1, "one card")
    card = cards[0]
    story.show(f"{Brand(card.brand).label} •••• {card.last4}, valid to {card.expiry.month}/{card.expiry.year}")
    story.refused(
        lambda: clients.account_at_processor.Detokenize(
            processor_pb2.DetokenizeRequest(grant=token, order_id="order-ada", amount=_euros(49)), timeout=TIMEOUT
        ),
        grpc.StatusCode.PERMISSION_DENIED,
        "the account page asks for the number",
    )
    story.refused(
        lambda: clients.account.GetCard(
            account_pb2.GetCardRequest(customer_id="mallory", token=token), timeout=TIMEOUT
        ),
        grpc.StatusCode.NOT_FOUND,
        "another customer asks for Ada's card",
    )


def _pay(story: Story, clients: Clients, token: str) -> None:
    story.step("Ada pays again with the stored card: a grant for one order, one amount, one use")
    grant = clients.checkout.IssueGrant(_grant_for(token, "order-ada", 49), timeout=TIMEOUT).grant
    story.show(f"grant {grant[:14]}… for order-ada, EUR 49.00, processor {PROCESSOR}")
    story.refused(
        lambda: clients.processor.Detokenize(_redeem(grant, "order-ada", 4900), timeout=TIMEOUT),
        grpc.StatusCode.PERMISSION_DENIED,
        "the processor names another amount",
    )
    released = clients.processor.Detokenize(_redeem(grant, "order-ada", 49), timeout=TIMEOUT)
    story.must(released.pan == VISA, f"the processor gets the number, ending in {released.pan[-4:]}")
    story.must(not released.security_code, "no security code: a stored card has none")
    story.refused(
        lambda: clients.processor.Detokenize(_redeem(grant, "order-ada", 49), timeout=TIMEOUT),
        grpc.StatusCode.PERMISSION_DENIED,
        "the same grant again",
    )


def _pay_once(story: Story, clients: Clients) -> None:
    story.step("Cleo pays without storing: card and security code travel sealed, and open once")
    once = clients.checkout.Tokenize(
        checkout_pb2.TokenizeRequest(card=_card(AMEX, security_code="1234"), order_id="order-cleo"), timeout=TIMEOUT
    ).one_time_token
    request = checkout_pb2.IssueGrantRequest(
        one_time_token=once,
        order_id="order-cleo",
        amount=_euros(12),
        purpose=cards_pb2.CARD_USE_CUSTOMER_INITIATED,
        processor=PROCESSOR,
    )
    grant = clients.checkout.IssueGrant(request, timeout=TIMEOUT).grant
    released = clients.processor.Detokenize(_redeem(grant, "order-cleo", 12), timeout=TIMEOUT)
    story.must(released.pan == AMEX and len(released.security_code) == 4, "number and security code, this once")
    story.refused(
        lambda: clients.checkout.IssueGrant(request, timeout=TIMEOUT),
        grpc.StatusCode.NOT_FOUND,
        "another grant for the same one-time token: its key is destroyed",
    )


def _merchant_alone(story: Story, clients: Clients, token: str) -> None:
    story.step("The shop tries to charge Ada's card by itself, which she never agreed to")
    story.refused(
        lambda: clients.checkout.IssueGrant(
            _grant_for(token, "order-auto", 9, purpose=cards_pb2.CARD_USE_RECURRING), timeout=TIMEOUT
        ),
        grpc.StatusCode.FAILED_PRECONDITION,
        "a grant for a recurring payment",
    )


def _rotate(story: Story, clients: Clients, stack: Stack, token: str) -> None:
    story.step("An operator rotates the key while the shop is open, and nothing is lost")
    for command in (["rotate"], ["rewrap", "--verify", "all"], ["retire", "--settle", "0"]):
        done = _type("keys", *command, "--config", str(stack.config), "--reason", "demo")
        said = next((line for line in done.stdout.splitlines() if "version" in line), done.stderr.strip())
        story.must(done.returncode == 0, f"cardvault keys {command[0]}: {said}")
    grant = clients.checkout.IssueGrant(_grant_for(token, "order-rotated", 7), timeout=TIMEOUT).grant
    released = clients.processor.Detokenize(_redeem(grant, "order-rotated", 7), timeout=TIMEOUT)
    story.must(released.pan == VISA, "Ada's card opens under the new version, and under it alone")


def _type(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own interpreter and file
        [sys.executable, "-m", "vault", *words], capture_output=True, text=True, timeout=60, check=False
    )


def _audit(story: Story, stack: Stack) -> None:
    story.step("An auditor verifies every one of these events with a public key alone, and finds a forgery")
    config, scratch = str(stack.config), stack.directory / "auditor"
    scratch.mkdir()
    (scratch / "keys").write_text(_type("audit", "keys", "--config", config).stdout, encoding="utf-8")
    signed = _type("audit", "checkpoint", "--config", config, "--out", str(scratch / "checkpoint"))
    exported = _type("audit", "export", "--config", config, "--out", str(scratch / "log"))
    story.must(
        signed.returncode == exported.returncode == 0,
        f"cardvault audit export: {exported.stdout.split(': ')[-1].strip()}",
    )
    offline = (
        "--export",
        str(scratch / "log"),
        "--key",
        str(scratch / "keys"),
        "--checkpoint",
        str(scratch / "checkpoint"),
    )
    verified = _type("audit", "verify", *offline)
    story.must(verified.returncode == 0, f"cardvault audit verify: {verified.stdout.strip().splitlines()[-1]}")
    segment = scratch / "log" / "segments" / "000000000000.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b"order-ada", b"order-eve", 1))
    forged = _type("audit", "verify", *offline)
    story.must(forged.returncode == 1, f"one order of one event renamed: {forged.stdout.strip().splitlines()[0]}")


def _remove(story: Story, clients: Clients, token: str) -> None:
    story.step("Ada removes the card; a grant issued a moment ago dies with it")
    grant = clients.checkout.IssueGrant(_grant_for(token, "order-late", 5), timeout=TIMEOUT).grant
    receipt = clients.account.DeleteCard(
        account_pb2.DeleteCardRequest(customer_id="ada", token=token), timeout=TIMEOUT
    ).receipt
    story.show(f"receipt {receipt.event_id}: {receipt.cards} card, {receipt.grants_revoked} open grant revoked")
    story.must(receipt.cards == 1 and receipt.grants_revoked == 1, "wrapped key, ciphertext and grant are gone")
    story.refused(
        lambda: clients.processor.Detokenize(_redeem(grant, "order-late", 5), timeout=TIMEOUT),
        grpc.StatusCode.PERMISSION_DENIED,
        "the processor comes too late",
    )
    cards = clients.account.ListCards(account_pb2.ListCardsRequest(customer_id="ada"), timeout=TIMEOUT).cards
    story.must(len(cards) == 0, "her account page lists no card")


def _search(story: Story, stack: Stack) -> None:
    story.step("Searching every file of the stack for the numbers: database, logs, OpenBao's storage and audit log")
    files = [path for path in stack.directory.rglob("*") if path.is_file()]
    found = [path.name for path in files for number in (VISA, MASTERCARD, AMEX) if number.encode() in path.read_bytes()]
    story.must(not found, f"not found in any of {len(files)} files")


# --- pieces ---------------------------------------------------------------------------------------------------------


def _card(pan: str, *, security_code: str = "") -> cards_pb2.CardInput:
    expiry = cards_pb2.Expiry(month=12, year=datetime.now(UTC).year + 2)
    return cards_pb2.CardInput(pan=pan, expiry=expiry, holder_name="Test Customer", security_code=security_code)


def _consent() -> cards_pb2.Consent:
    return cards_pb2.Consent(
        terms_version="2026-01",
        terms_sha256=hashlib.sha256(_TERMS).digest(),
        uses=[cards_pb2.CARD_USE_CUSTOMER_INITIATED],
        channel=cards_pb2.CONSENT_CHANNEL_WEB,
        locale="en",
    )


def _euros(amount: int) -> cards_pb2.Money:
    return cards_pb2.Money(minor_units=amount * 100, currency="EUR")


def _grant_for(
    token: str, order: str, euros: int, *, purpose: cards_pb2.CardUse.ValueType = cards_pb2.CARD_USE_CUSTOMER_INITIATED
) -> checkout_pb2.IssueGrantRequest:
    return checkout_pb2.IssueGrantRequest(
        stored_card=checkout_pb2.StoredCardSubject(customer_id="ada", token=token),
        order_id=order,
        amount=_euros(euros),
        purpose=purpose,
        processor=PROCESSOR,
    )


def _redeem(grant: str, order: str, euros: int) -> processor_pb2.DetokenizeRequest:
    return processor_pb2.DetokenizeRequest(grant=grant, order_id=order, amount=_euros(euros))


@contextmanager
def _stack(directory: Path) -> Iterator[Stack]:
    stack = prepare(directory / "stack", port=0, log_level="WARNING")
    try:
        yield stack
    finally:
        stack.close()


@contextmanager
def _server(stack: Stack) -> Iterator[int]:
    """A server process of its own, as it would run for real."""
    log = stack.directory / "server.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and file
            [sys.executable, "-m", "vault", "serve", "--config", str(stack.config)],
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    try:
        assert process.stdout is not None, "asked for"
        found = _PORT.search(process.stdout.readline().decode())
        if found is None:
            raise StepFailed(f"the server did not start: {log.read_text(encoding='utf-8')}")
        yield int(found.group(1))
    finally:
        process.terminate()
        process.wait(timeout=30)
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def _clients(stack: Stack, port: int) -> Iterator[Clients]:
    channels = {role: _channel(files, port) for role, files in stack.clients.items()}
    try:
        _wait_until_ready(channels[Role.CHECKOUT])
        yield Clients(
            checkout=checkout_pb2_grpc.CheckoutServiceStub(channels[Role.CHECKOUT]),
            account=account_pb2_grpc.AccountServiceStub(channels[Role.ACCOUNT]),
            processor=processor_pb2_grpc.ProcessorServiceStub(channels[Role.PROCESSOR]),
            account_at_processor=processor_pb2_grpc.ProcessorServiceStub(channels[Role.ACCOUNT]),
        )
    finally:
        for channel in channels.values():
            channel.close()


def _channel(files: CertificateFiles, port: int) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        root_certificates=files.ca_file.read_bytes(),
        private_key=files.key_file.read_bytes(),
        certificate_chain=files.cert_file.read_bytes(),
    )
    return grpc.secure_channel(f"localhost:{port}", credentials)


def _wait_until_ready(channel: grpc.Channel) -> None:
    """Watch the server's health until it says that every service can do its work."""
    request = health_pb2.HealthCheckRequest(service=READY)
    watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=20, wait_for_ready=True)
    states: Sequence[int] | Iterator[int] = (answer.status for answer in watch)
    if health_pb2.HealthCheckResponse.SERVING not in states:
        raise StepFailed("the server did not become ready")
    watch.cancel()
