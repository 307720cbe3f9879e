"""Every method against a real vault, and every error that a caller can meet."""

from __future__ import annotations

import doctest
import importlib
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import vault.testing.cards
from tests.integration.client.conftest import Driven, Way, new_order
from vault import client
from vault.client import (
    CallError,
    CardInput,
    CardState,
    CardUse,
    Conflict,
    Consent,
    ConsentRequired,
    Expiry,
    ImportItem,
    InvalidArgument,
    Money,
    NotAvailable,
    NotStored,
    OneTimeToken,
    Overloaded,
    PaymentOutcome,
    PreconditionFailed,
    Refused,
    StoredCard,
    Unavailable,
)
from vault.embedded.pki import DevelopmentCa
from vault.testing import CardVault, Shop, fresh_card, fresh_number, watch
from vault.testing.numbers import REGISTRY
from vault.testing.scan import Scanner

ADA = "ada"
AMOUNT = Money(minor_units=4900, currency="EUR")
CONSENT = Consent.to("Keep my card.", version="2026-01", uses=[CardUse.CUSTOMER_INITIATED], locale="en")
EXPIRY = Expiry(year=datetime.now(UTC).year + 4, month=3)


def stored(checkout: Driven, customer: str = ADA) -> Any:
    return checkout.tokenize(fresh_card(), customer=customer, consent=CONSENT).card


def granted(checkout: Driven, order: str, subject: Any = None, **more: Any) -> Any:
    subject = subject or StoredCard(ADA, stored(checkout).token)
    return checkout.issue_grant(subject, order=order, amount=AMOUNT, processor=Shop.processor_name, **more)


# --- checkout -------------------------------------------------------------------------------------------------------


def test_a_card_with_consent_is_stored(checkout: Driven) -> None:
    card = fresh_card(expiry=EXPIRY)

    done = checkout.tokenize(card, customer=ADA, consent=CONSENT)

    assert done.one_time_token is None
    assert (done.card.token[:4], done.card.last4, done.card.expiry) == ("tok_", card.number.last4(), EXPIRY)
    assert (done.card.brand, done.card.state) == (client.Brand.VISA, CardState.ACTIVE)
    assert (done.card.is_default, done.card.expired) == (True, False)
    assert abs(done.card.created_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert done.card.consent.uses == (CardUse.CUSTOMER_INITIATED,)


def test_a_card_without_consent_is_not_stored_and_pays_once(
    checkout: Driven, account: Driven, processor: Driven
) -> None:
    card, order = fresh_card(security_code=True), new_order()

    done = checkout.tokenize(card, order=order)
    again = OneTimeToken(done.one_time_token.reveal_text())
    released = processor.detokenize(granted(checkout, order, again), order=order, amount=AMOUNT)

    assert done.card is None
    assert done.one_time_token.expires_at > datetime.now(UTC)
    assert list(account.list_cards(ADA)) == []
    assert released.number == card.number
    assert released.security_code == card.security_code


def test_of_a_batch_one_bad_item_fails_alone(checkout: Driven) -> None:
    good, bad = fresh_card(), CardInput("1" * 16, expiry=EXPIRY)

    first, second = checkout.batch_tokenize(
        [
            ImportItem(customer=ADA, card=good, consent=CONSENT),
            ImportItem(customer=ADA, card=bad, consent=CONSENT, idempotency_key="line-2"),
        ]
    )

    assert first.last4 == good.number.last4()
    assert isinstance(second, NotStored)
    assert isinstance(second.error, InvalidArgument)
    assert (second.error.violations[0].field, second.idempotency_key) == ("card.pan", "line-2")
    assert second.error.error_id.startswith("req_")


def test_a_revoked_grant_releases_nothing(checkout: Driven, processor: Driven) -> None:
    order = new_order()
    grant = granted(checkout, order, lifetime=timedelta(minutes=5))
    assert timedelta(minutes=4) < grant.expires_at - datetime.now(UTC) < timedelta(minutes=6)

    assert checkout.revoke_grant(grant) is None
    assert checkout.revoke_grant(grant.reveal_text()) is None

    with pytest.raises(Refused):
        processor.detokenize(grant, order=order, amount=AMOUNT)


# --- account --------------------------------------------------------------------------------------------------------


def test_a_list_goes_over_all_pages(checkout: Driven, account: Driven) -> None:
    tokens = [stored(checkout).token for _ in range(5)]

    assert [card.token for card in account.list_cards(ADA, page_size=2)] == tokens
    assert [card.token for card in account.list_cards(ADA)] == tokens
    assert list(account.list_cards("nobody")) == []


def test_a_card_is_shown_changed_and_made_the_default(checkout: Driven, account: Driven) -> None:
    first, second = stored(checkout), stored(checkout)

    changed = account.update_card(ADA, second.token, expiry=EXPIRY)
    default = account.set_default_card(ADA, second.token)

    assert (first.is_default, default.is_default) == (True, True)
    assert changed.expiry == EXPIRY
    assert account.get_card(ADA, second.token) == default
    assert not account.get_card(ADA, first.token).is_default


def test_a_deleted_card_is_gone_and_the_receipt_comes_again_for_its_key(checkout: Driven, account: Driven) -> None:
    card = stored(checkout)
    granted(checkout, new_order(), StoredCard(ADA, card.token))

    receipt = account.delete_card(ADA, card.token)
    again = account.delete_card(ADA, card.token, idempotency_key=receipt.idempotency_key)

    assert (receipt.cards, receipt.grants_revoked, receipt.event_id[:4]) == (1, 1, "evt_")
    assert again.event_id == receipt.event_id
    with pytest.raises(NotAvailable):
        account.get_card(ADA, card.token)


def test_a_customer_is_exported_over_all_pages_and_erased(checkout: Driven, account: Driven, processor: Driven) -> None:
    order = new_order()
    processor.detokenize(granted(checkout, order), order=order, amount=AMOUNT)
    items = [ImportItem(customer=ADA, card=fresh_card(), consent=CONSENT) for _ in range(100)]
    assert len({card.token for card in checkout.batch_tokenize(items)}) == 100

    export = account.export_customer(ADA)
    receipt = account.erase_customer(ADA)

    assert (len(export.cards), len(export.consents), len(export.releases)) == (101, 101, 1)
    assert (export.releases[0].order, export.releases[0].processor) == (order, Shop.processor_name)
    assert receipt.cards == 101
    assert account.export_customer(ADA).cards == ()


# --- processor ------------------------------------------------------------------------------------------------------


def test_a_grant_releases_the_number_once(checkout: Driven, processor: Driven) -> None:
    card, order = fresh_card(), new_order()
    token = checkout.tokenize(card, customer=ADA, consent=CONSENT).card.token
    grant = granted(checkout, order, StoredCard(ADA, token))

    released = processor.detokenize(grant.reveal_text(), order=order, amount=AMOUNT)

    assert (released.number, released.holder_name) == (card.number, card.holder_name)
    assert (released.expiry, released.brand) == (card.expiry, client.Brand.VISA)
    assert (released.security_code.reveal_text(), released.purpose) == ("", CardUse.CUSTOMER_INITIATED)
    with pytest.raises(Refused) as refused:
        processor.detokenize(grant, order=order, amount=AMOUNT)
    assert refused.value.error_id.startswith("req_")


def test_the_first_outcome_stands(checkout: Driven, processor: Driven) -> None:
    order = new_order()
    grant = granted(checkout, order)
    processor.detokenize(grant, order=order, amount=AMOUNT)

    for _ in range(2):
        assert processor.report_outcome(grant, order=order, outcome=PaymentOutcome.APPROVED) is None

    with pytest.raises(Refused):
        processor.report_outcome(grant, order=order, outcome=PaymentOutcome.DECLINED)


# --- errors ---------------------------------------------------------------------------------------------------------


def _used(checkout: Driven, processor: Driven) -> Any:
    order = new_order()
    grant = granted(checkout, order)
    processor.detokenize(grant, order=order, amount=AMOUNT)
    return grant


def _reuse(checkout: Driven, processor: Driven) -> Any:
    checkout.tokenize(fresh_card(), order=new_order(), idempotency_key="same-key")
    return checkout.tokenize(fresh_card(), order=new_order(), idempotency_key="same-key")


def _recurring(checkout: Driven, processor: Driven) -> Any:
    return granted(checkout, new_order(), purpose=CardUse.RECURRING)


def _too_large(checkout: Driven, processor: Driven) -> Any:
    long = "c" * 128
    return checkout.batch_tokenize([ImportItem(customer=long, card=fresh_card(), consent=CONSENT)] * 300)


ERRORS: dict[str, tuple[type[CallError], str, Callable[[Driven, Driven], Any]]] = {
    "malformed": (InvalidArgument, "", lambda c, p: c.tokenize(CardInput("1" * 16, expiry=EXPIRY), order="o")),
    "neither": (InvalidArgument, "", lambda c, p: c.tokenize(fresh_card())),
    "no empty batch": (InvalidArgument, "", lambda c, p: c.batch_tokenize([])),
    "unknown token": (NotAvailable, "", lambda c, p: granted(c, "o", StoredCard(ADA, "tok_none"))),
    "consent": (ConsentRequired, "CONSENT_NOT_COVERING", _recurring),
    "used": (PreconditionFailed, "GRANT_USED", lambda c, p: c.revoke_grant(_used(c, p))),
    "key": (Conflict, "IDEMPOTENCY_KEY_REUSED", _reuse),
    "refused": (Refused, "", lambda c, p: p.detokenize("grant_none", order="o", amount=AMOUNT)),
    "too large": (Overloaded, "", _too_large),
}


@pytest.mark.parametrize("what", ERRORS)
def test_each_error_has_its_class(checkout: Driven, processor: Driven, what: str) -> None:
    kind, reason, act = ERRORS[what]

    with pytest.raises(kind) as raised:
        act(checkout, processor)

    assert (type(raised.value), raised.value.reason) == (kind, reason)
    assert raised.value.__context__ is raised.value.__cause__ is None, "it drags no frames of gRPC along"
    assert raised.value.error_id.startswith("req_") is (what != "too large")


def test_a_certificate_of_another_role_is_refused(way: Way, cardvault: Shop) -> None:
    account = way.client(cardvault, "checkout", tls=cardvault.tls("account"))

    with pytest.raises(Refused):
        account.tokenize(fresh_card(), order="o")


def test_a_certificate_of_a_foreign_authority_gets_nowhere(way: Way, cardvault: Shop, tmp_path: Any) -> None:
    foreign = DevelopmentCa.load_or_create(tmp_path / "pki").issue_client("spiffe://cardvault.localhost/checkout")
    tls = client.TlsFiles(ca=cardvault.tls("checkout").ca, certificate=foreign.cert_file, private_key=foreign.key_file)
    stranger = way.client(cardvault, "checkout", tls=tls)

    with pytest.raises(Unavailable) as raised:
        stranger.tokenize(fresh_card(), order="o", deadline=timedelta(seconds=1))

    assert raised.value.error_id == ""


def test_the_name_in_the_servers_certificate_counts(way: Way, cardvault: Shop) -> None:
    localhost = client.Options(server_name="localhost")
    by_number = cardvault.address.replace("localhost", "127.0.0.1")
    right = way.client(cardvault, "checkout", address=by_number, options=localhost)
    wrong = way.client(cardvault, "checkout", options=client.Options(server_name="example.test"))

    assert right.tokenize(fresh_card(), order="o").one_time_token
    with pytest.raises(Unavailable):
        wrong.tokenize(fresh_card(), order="o", deadline=timedelta(seconds=1))


@pytest.mark.parametrize("what", ERRORS)
def test_no_error_shows_a_number_even_with_all_local_variables(checkout: Driven, processor: Driven, what: str) -> None:
    known = len(REGISTRY.canaries())
    wrong = CardInput(_with_wrong_check_digit(), expiry=EXPIRY)
    act = ERRORS[what][2] if what != "malformed" else lambda c, p: c.tokenize(wrong, order="o")
    said = ""

    try:
        act(checkout, processor)
    except CallError:
        said = "".join(traceback.TracebackException(*sys.exc_info(), capture_locals=True).format())

    assert "described = Call(" in said
    assert list(Scanner(REGISTRY.canaries()[known:]).scan_bytes(said.encode())) == []


def _with_wrong_check_digit() -> str:
    digits = fresh_number().reveal()
    wrong = digits[:-1] + str((int(digits[-1]) + 1) % 10)
    watch(wrong)
    return wrong


# --- readiness and examples -----------------------------------------------------------------------------------------


def test_a_client_waits_until_its_service_is_ready(checkout: Driven, cardvault_server: CardVault) -> None:
    checkout.wait_ready()

    with cardvault_server.server_away(), pytest.raises(Unavailable):
        checkout.wait_ready(timedelta(milliseconds=300))
    checkout.wait_ready()


@pytest.mark.parametrize("module", ["__init__", "account", "values", "cards"])
def test_the_examples_in_the_documentation_work(cardvault: Shop, module: str) -> None:
    name = {"__init__": "vault.client", "cards": "vault.testing.cards"}.get(module, f"vault.client.{module}")
    tls = {role: cardvault.tls(role) for role in ("checkout", "processor")}
    globs: dict[str, Any] = {
        **vars(client),
        **vars(vault.testing.cards),
        "address": cardvault.address,
        "ca": tls["checkout"].ca,
        "typed": "4242424242424242",
        "account": cardvault.account,
        **{
            f"{role}_{part}": getattr(files, attribute)
            for role, files in tls.items()
            for part, attribute in (("pem", "certificate"), ("key", "private_key"))
        },
    }
    card = CardInput("4242424242424242", expiry=EXPIRY)
    cardvault.checkout.tokenize(card, customer=ADA, consent=CONSENT)
    loaded = importlib.import_module(name)
    examples = [each for each in doctest.DocTestFinder().find(loaded, globs=globs) if each.examples]
    if module == "account":
        found = doctest.DocTestParser().get_doctest(client.Account.list_cards.__doc__ or "", globs, "list", None, 0)
        examples.append(found)

    results = [doctest.DocTestRunner().run(example) for example in examples]

    assert sum(result.attempted for result in results) > 0
    assert sum(result.failed for result in results) == 0
