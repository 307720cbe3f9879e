"""How fast keys rotate, how much memory that takes, and what customers notice of it: `python -m benchmarks.rotation`.

Every figure that has a goal is a ratio of two things measured in the same run on the same Vault and database. The real
OpenBao, a real database, real servers; work is done in processes of their own, so that memory is theirs alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from benchmarks.harness import Figure, facts, memory, say, table
from tests.faults.bench import ENVIRONMENT, Place, Tools
from tests.support.cards import TypedCard, made_up_digits
from tests.support.installation import Client, installed
from tests.support.requests import (
    TIMEOUT,
    grant_request,
    new_customer,
    new_order,
    redeem_request,
    store_request,
)
from vault.cleanroom import DataKey
from vault.domain.binding import stored_card_binding
from vault.domain.card import CardDetails, CardState, Expiry, HolderName, SecurityCode
from vault.domain.grant import SealedKey
from vault.domain.ids import RANDOM_BYTES, SHARED_BYTES, ConsentId, CustomerId, TenantId, Token
from vault.domain.pan import Pan
from vault.embedded.openbao import OpenBao
from vault.ports import KeyName, KeyToUnwrap, KeyToWrap
from vault.ports_operator import CardKey, Selection
from vault.store import upgrade
from vault.store.engine import Limits, open_engines
from vault.store.tables import card_secrets, cards, consents
from vault.system import SystemEntropy, settle_memory
from vault.usecases.operating import PAGE
from vault.usecases.rekey import RekeyCards
from vault.usecases.rewrap import GENTLE_BATCH, Proof, Rewrap, binding_of
from vault.usecases.rotate import RotateKey

SMALL = 10_000
RAW_CALLS = 25
"""Batch calls in each measurement of raw rewrapping."""
PHASE = 5.0
"""Seconds of each foreground phase."""
BULK_TENANT = TenantId("bulk")


# --- cards in bulk --------------------------------------------------------------------------------------------------


def add_cards(tools: Tools, url: str, count: int) -> None:
    """Insert real cards past the servers, their data keys wrapped in full batches."""
    entropy, now = SystemEntropy(), datetime.now(UTC)
    engines = open_engines(url, Limits(pool_size=2))
    try:
        for start in range(0, count, 2000):
            made = [_made(n, entropy) for n in range(start, min(start + 2000, count))]
            answers = tools.intake.protect(cards=[each.to_wrap for each in made], once=[], fingerprints=[])
            with engines.writer.begin() as connection:
                connection.execute(insert(consents), [each.consent_row(now) for each in made])
                connection.execute(insert(cards), [each.card_row(now) for each in made])
                connection.execute(
                    insert(card_secrets),
                    [each.secret_row(key) for each, key in zip(made, answers.cards, strict=True)],
                )
    finally:
        engines.dispose()


@dataclass(frozen=True, slots=True)
class _Made:
    token: Token
    consent: ConsentId
    customer: CustomerId
    last4: str
    brand: int
    to_wrap: KeyToWrap
    ciphertext: bytes

    def consent_row(self, now: datetime) -> dict[str, Any]:
        return {
            "tenant_id": BULK_TENANT,
            "consent_id": self.consent,
            "kind": "given",
            "customer_id": self.customer,
            "token": self.token,
            "terms_version": "2026-01",
            "terms_sha256": bytes(32),
            "uses": "1",
            "channel": 1,
            "locale": "en",
            "recorded_at": now,
            "recorded_by": "spiffe://test.localhost/bulk",
        }

    def card_row(self, now: datetime) -> dict[str, Any]:
        return {
            "tenant_id": BULK_TENANT,
            "token": self.token,
            "customer_id": self.customer,
            "brand": self.brand,
            "last4": self.last4,
            "expiry_year": now.year + 3,
            "expiry_month": 12,
            "state": int(CardState.ACTIVE),
            "default_rank": 0,
            "consent_id": self.consent,
            "created_at": now,
        }

    def secret_row(self, key: SealedKey) -> dict[str, Any]:
        return {
            "tenant_id": BULK_TENANT,
            "token": self.token,
            "wrapped_key": key.wrapped,
            "kek_version": key.kek_version,
            "ciphertext": self.ciphertext,
            "record_version": 1,
            "fingerprint": os.urandom(32),
            "fingerprint_version": 1,
            "data_key_version": key.kek_version,
        }


def _made(number: int, entropy: SystemEntropy) -> _Made:
    pan = Pan.parse(made_up_digits(length=16))
    card = CardDetails(
        pan=pan,
        expiry=Expiry(year=datetime.now(UTC).year + 3, month=12),
        holder_name=HolderName.parse("Bulk Customer"),
        security_code=SecurityCode.parse("", brand=pan.brand),
    )
    token = Token.drawn(os.urandom(SHARED_BYTES), os.urandom(RANDOM_BYTES))
    consent = ConsentId.from_random(os.urandom(RANDOM_BYTES))
    customer = CustomerId(f"bulk-{number}")
    binding = stored_card_binding(
        environment=ENVIRONMENT, tenant=BULK_TENANT, customer=customer, token=token, consent=consent, record_version=1
    )
    key = DataKey(entropy)
    return _Made(
        token=token,
        consent=consent,
        customer=customer,
        last4=pan.last4(),
        brand=int(pan.brand),
        to_wrap=KeyToWrap(key.for_wrapping(), binding.wrap_context()),
        ciphertext=key.seal_stored(card, binding, entropy),
    )


# --- what runs in a process of its own ------------------------------------------------------------------------------


def rotate(tools: Tools) -> None:
    RotateKey(world=tools.world, keys=tools.operator)(KeyName.CARDS, tools.operator_now("benchmark"), again=True)


def raw_rewrap_rate(tools: Tools) -> float:
    """Cards a second of nothing but full batch calls, one after the other, as the use case makes them."""
    batches: list[list[KeyToUnwrap]] = []
    after: CardKey | None = None
    while len(batches) < RAW_CALLS:
        with tools.store.reading() as tx:
            page = tx.secrets(Selection(), after=after, limit=PAGE)
        if len(page) < PAGE:
            break
        after = page[-1].wrap.card
        contexts = [binding_of(secret.wrap, environment=ENVIRONMENT).wrap_context() for secret in page]
        batches.append(
            [KeyToUnwrap(KeyName.CARDS, s.wrap.key, context) for s, context in zip(page, contexts, strict=True)]
        )
    began = time.perf_counter()
    for batch in batches:
        tools.operator.rewrap(batch)
    return len(batches) * PAGE / (time.perf_counter() - began)


def measure_rewrap(place: Place, proof: Proof) -> dict[str, float]:
    """Rotate, then raw calls before and after a whole run."""
    with place.open() as tools:
        rotate(tools)
        before = memory("VmRSS")
        raw = raw_rewrap_rate(tools)
        began = time.perf_counter()
        report = Rewrap(world=tools.world, keys=tools.operator, release=tools.release)(
            tools.operator_now("benchmark"), proof=proof
        )
        elapsed = time.perf_counter() - began
        peak = memory("VmHWM")
        raw = (raw + raw_rewrap_rate(tools)) / 2
        assert report.failures == []
        return {"cards": report.rewrapped, "rate": report.rewrapped / elapsed, "raw": raw, "rss": before, "peak": peak}


def measure_rekey(place: Place) -> dict[str, float]:
    """Rotate, then a whole run."""
    with place.open() as tools:
        rotate(tools)
        use_case = RekeyCards(world=tools.world, keys=tools.operator, intake=tools.intake, release=tools.release)
        raw = raw_unwrap_rate(tools)
        began = time.perf_counter()
        report = use_case(tools.operator_now("benchmark"), Selection())
        elapsed = time.perf_counter() - began
        assert report.failures == []
        return {"cards": report.rekeyed, "rate": report.rekeyed / elapsed, "raw": raw, "peak": memory("VmHWM")}


def raw_unwrap_rate(tools: Tools) -> float:
    """Cards a second of nothing but unwrapping, which is one call each."""
    after: CardKey | None = None
    done, spent = 0, 0.0
    for _ in range(5):
        with tools.store.reading() as tx:
            page = tx.secrets(Selection(), after=after, limit=PAGE)
        if not page:
            break
        after = page[-1].wrap.card
        items = [
            KeyToUnwrap(KeyName.CARDS, s.wrap.key, binding_of(s.wrap, environment=ENVIRONMENT).wrap_context())
            for s in page
        ]
        began = time.perf_counter()
        tools.release.unwrap(items)
        spent += time.perf_counter() - began
        done += len(items)
    return done / spent


def throttled_rewraps(place: Place, rate: float) -> None:
    """Rotate and rewrap at a pace until one is ended."""
    with place.open() as tools:
        while True:
            rotate(tools)
            began = time.monotonic()

            def pace(done: int, _total: int, began: float = began) -> None:
                time.sleep(max(0.0, done / rate - (time.monotonic() - began)))

            Rewrap(world=tools.world, keys=tools.operator, release=tools.release)(
                tools.operator_now("benchmark"), proof=Proof.SAMPLE, batch=GENTLE_BATCH, progress=pace
            )


def _child(work: Callable[..., dict[str, float]], arguments: Sequence[Any], pipe: Any) -> None:
    settle_memory()  # as every operator command does
    pipe.send(work(*arguments))


def in_a_process(work: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """A fresh interpreter, so that its peak of memory is of this work alone."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, arguments, there))
    process.start()
    there.close()
    try:
        result: dict[str, float] = here.recv()
    finally:
        process.join()
    return result


# --- customers meanwhile --------------------------------------------------------------------------------------------


class Shoppers:
    """Clients that buy with stored cards at a steady pace, well below what the server can do; times every call."""

    def __init__(self, clients: Sequence[tuple[Client, Client]], pace: float) -> None:
        self._clients = clients
        self._pace = pace
        self._known: list[tuple[str, str]] = []
        year, (checkout, _) = datetime.now(UTC).year + 3, clients[0]
        for _ in range(20):
            card = TypedCard(made_up_digits(length=16), 12, year, "Some Shopper", "")
            customer = new_customer()
            answer = checkout.checkout.Tokenize(store_request(card, customer), timeout=TIMEOUT)
            self._known.append((customer, answer.card.token))

    def p99(self, seconds: float) -> float:
        """Milliseconds of grant and redemption together, at the 99th percentile."""
        taken: list[float] = []
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=self._shop, args=(pair, end, taken)) for pair in self._clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return statistics.quantiles(taken, n=100)[98] * 1000

    def _shop(self, pair: tuple[Client, Client], end: float, taken: list[float]) -> None:
        checkout, processor = pair
        for customer, token in cycle(self._known):
            began = time.monotonic()
            if began > end:
                return
            order = new_order()
            request = grant_request(order=order, customer=customer, token=token)
            grant = checkout.checkout.IssueGrant(request, timeout=TIMEOUT).grant
            processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
            took = time.monotonic() - began
            taken.append(took)
            time.sleep(max(0.0, self._pace - took))


def measure_foreground(place: Place, openbao: OpenBao, directory: Path, *, rounds: int, rate: float) -> list[Figure]:
    """p99 with and without a throttled rewrap, in turns."""
    context = multiprocessing.get_context("spawn")
    ratios, quiet, busy = [], [], []
    with installed(directory, openbao, place.database_url, environment=ENVIRONMENT) as installation:
        installation.serve()
        clients = [(installation.client("checkout"), installation.client("processor")) for _ in range(2)]
        shoppers = Shoppers(clients, pace=0.02)
        shoppers.p99(2.0)
        for number in range(rounds):
            found: dict[bool, float] = {}
            for rewrapping in (False, True) if number % 2 else (True, False):
                worker = context.Process(target=throttled_rewraps, args=(place, rate), daemon=True)
                if rewrapping:
                    worker.start()
                    time.sleep(2.5)  # its start is not what is measured
                found[rewrapping] = shoppers.p99(PHASE)
                if rewrapping:
                    assert worker.is_alive()
                    worker.kill()
                    worker.join()
            quiet.append(found[False])
            busy.append(found[True])
            ratios.append(found[True] / found[False])
    return [
        Figure("foreground p99 alone, ms", quiet),
        Figure(f"foreground p99 beside a rewrap of {rate:g}/s, ms", busy),
        Figure("foreground p99 with / without", ratios, "<= 1.5", lambda value: value <= 1.5),
    ]


# --- the whole ------------------------------------------------------------------------------------------------------


@contextmanager
def bulk(openbao: OpenBao, url: str, count: int) -> Iterator[Place]:
    """A database with that many cards."""
    place = Place(url, openbao.address.address, openbao.address.ca_file, openbao.files.root_token, "transit")
    with place.open() as tools:
        began = time.monotonic()
        add_cards(tools, url, count)
        say(f"{count} cards inserted in {time.monotonic() - began:.0f} s")
    yield place


def measure(directory: Path, *, many: int, rounds: int, rate: float, foreground: bool) -> list[Figure]:
    """Everything."""
    openbao = OpenBao(directory / "openbao", storage="inmem", keep_root_token=True)
    openbao.start()
    figures: list[Figure] = []
    peaks: dict[int, list[float]] = {}
    try:
        for count in sorted({SMALL, many}):
            url = f"sqlite:///{directory / f'{count}.db'}"
            upgrade(url)
            with bulk(openbao, url, count) as place:
                turns = rounds if count <= 100_000 else 1
                runs = [in_a_process(measure_rewrap, place, Proof.SAMPLE) for _ in range(turns)]
                figures += [
                    Figure(f"rewrap, {count} cards: cards/s", [run["rate"] for run in runs]),
                    Figure(f"raw batch rewrap, {count} cards: cards/s", [run["raw"] for run in runs]),
                    Figure(
                        f"rewrap / raw, {count} cards",
                        [run["rate"] / run["raw"] for run in runs],
                        ">= 0.6",
                        lambda value: value >= 0.6,
                    ),
                    Figure(f"peak memory of a rewrap, {count} cards: MiB", [run["peak"] for run in runs]),
                ]
                peaks[count] = [run["peak"] for run in runs]
                if count == SMALL:
                    keyed = [in_a_process(measure_rekey, place) for _ in range(rounds)]
                    figures += [
                        Figure(f"rekey, {count} cards: cards/s", [run["rate"] for run in keyed]),
                        Figure("rekey / raw unwrap", [run["rate"] / run["raw"] for run in keyed]),
                    ]
                    if foreground:
                        figures += measure_foreground(place, openbao, directory / "shop", rounds=rounds + 2, rate=rate)
    finally:
        openbao.stop()
    if many != SMALL:
        growth = statistics.median(peaks[many]) - statistics.median(peaks[SMALL])
        figures.append(Figure(f"peak memory, {many} against {SMALL} cards: MiB more", [growth], "<= 50", _is_flat))
    return figures


def _is_flat(mebibytes: float) -> bool:
    return mebibytes <= 50


def main() -> int:
    """Exit 0 if every goal is met, 1 if one is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rotation", description=__doc__)
    parser.add_argument("--cards", type=int, default=100_000, help="of the large run (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement (default %(default)s)")
    parser.add_argument("--rate", type=float, default=1000, help="cards/s of the throttled rewrap (%(default)s)")
    parser.add_argument("--no-foreground", action="store_true", help="leave out what customers notice")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="cardvault-benchmark-"))
    try:
        figures = measure(
            directory,
            many=arguments.cards,
            rounds=arguments.rounds,
            rate=arguments.rate,
            foreground=not arguments.no_foreground,
        )
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(facts(figures, vars(arguments)), indent=2) + "\n", encoding="utf-8")
    return 0 if all(figure.holds(figure.median) for figure in figures) else 1


if __name__ == "__main__":
    raise SystemExit(main())
