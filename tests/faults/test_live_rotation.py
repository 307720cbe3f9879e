"""Rotation beside live traffic, and rotation while the world around it stumbles.

Real servers, real clients, the real OpenBao and both databases. Whatever happens meanwhile: every card that was
acknowledged and not deleted opens to its own number, what was deleted stays away, and no good grant is refused.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import grpc
import psycopg
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.faults.bench import ENVIRONMENT, SHOPS, Place, Tools, new_place
from tests.support.cards import TypedCard, fresh_card, fresh_typed_card
from tests.support.installation import SHOP, Client, Installation, eventually, installed
from tests.support.raw import execute, rows, scalar
from tests.support.requests import (
    TIMEOUT,
    grant_request,
    new_customer,
    new_order,
    once_request,
    redeem_request,
    store_request,
)
from vault.cli.certificate import check_certificate
from vault.domain.binding import one_time_binding
from vault.domain.caller import Caller, Identity, Role
from vault.domain.errors import KeyRefused, KeyRingUnavailable, StoreUnavailable, Unavailable
from vault.domain.grant import OneTimeToken, SealedKey
from vault.domain.ids import OrderId
from vault.embedded.openbao import OpenBao
from vault.keyring.operator import CheckpointerTransit
from vault.keyring.session import VaultSession
from vault.keyring.setup import LoginName
from vault.ports import IntakeKeys, KeyName, KeyToUnwrap
from vault.ports_operator import KeyVersions, OperatorKeys, OperatorReader, OperatorStore, OperatorWriter, Selection
from vault.system import SystemEntropy
from vault.usecases.batch import World
from vault.usecases.certificate import IssueCertificate
from vault.usecases.maintain import Due, MaintainOnceKey
from vault.usecases.operating import PAGE, OperatorWorld
from vault.usecases.rekey import RekeyCards, RekeyReport
from vault.usecases.rewrap import Proof, Rewrap, RewrapReport
from vault.usecases.rotate import RetireKey, RotateKey
from vault.usecases.tokenize import Tokenize, TokenizeCommand, Tokenized
from vault.usecases.verify import VerifyCards
from vault.v1 import account_pb2

T = TypeVar("T")
CARDS = KeyName.CARDS
ORDER = OrderId("order-1")
GIVE_UP = timedelta(seconds=30)
POOL = 410
"""Cards that are there before the traffic begins, so that a walk has several pages."""


# --- traffic --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Doors:
    """Stubs of every role on one server."""

    checkout: Client
    account: Client
    processor: Client


@dataclass
class Kept:
    """One stored card as its customer knows it."""

    customer: str
    token: str
    card: TypedCard = field(repr=False)


class Customer(threading.Thread):
    """Buys without a pause: stores, stores again, pays with cards and one-time tokens, deletes; writes down all."""

    def __init__(self, doors: Sequence[Doors], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._doors = itertools.cycle(doors)
        self._stop_now = stop
        self.alive: list[Kept] = []
        self.deleted: list[Kept] = []
        self.trouble: list[str] = []
        self.calls = Counter[str]()
        self._held: list[tuple[str, str, Kept]] = []

    def run(self) -> None:
        for number in itertools.count():
            if self._stop_now.is_set():
                return
            try:
                self._round(number)
            except grpc.RpcError as e:
                error: Any = e
                self.trouble.append(f"round {number}: {error.code().name} {error.details()}")
            except BaseException as e:
                self.trouble.append(f"round {number}: {type(e).__name__}")
                raise

    def _round(self, number: int) -> None:
        kept = Kept(new_customer(), "", fresh_typed_card())
        kept.token = self._store(kept)
        self.alive.append(kept)
        self._expect(self._store(kept) == kept.token, "another token for the same card")
        self._pay(kept)
        # A grant that waits while keys change beneath it.
        self._held.append((*self._grant(kept), kept))
        if len(self._held) > 3:
            self._redeem(*self._held.pop(0))
        if number % 2:
            self._pay_once()
        if number % 3 == 2:
            self._remove(self.alive[number % len(self.alive)])
        older = self.alive[number * 7 % len(self.alive)]
        self._expect(self._store(older) == older.token, "another token for the same card")
        self._pay(older)

    def _store(self, kept: Kept) -> str:
        self.calls["store"] += 1
        answer = next(self._doors).checkout.checkout.Tokenize(store_request(kept.card, kept.customer), timeout=TIMEOUT)
        return str(answer.card.token)

    def _grant(self, kept: Kept) -> tuple[str, str]:
        order = new_order()
        request = grant_request(order=order, customer=kept.customer, token=kept.token)
        return next(self._doors).checkout.checkout.IssueGrant(request, timeout=TIMEOUT).grant, order

    def _pay(self, kept: Kept) -> None:
        self._redeem(*self._grant(kept), kept)

    def _redeem(self, grant: str, order: str, kept: Kept) -> None:
        self.calls["redeem"] += 1
        processor = next(self._doors).processor.processor
        released = processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
        self._expect(released.pan == kept.card.pan, "a card opened to another number")

    def _pay_once(self) -> None:
        self.calls["once"] += 1
        card, order = fresh_typed_card(with_security_code=True), new_order()
        checkout, processor = next(self._doors).checkout.checkout, next(self._doors).processor.processor
        token = checkout.Tokenize(once_request(card, order), timeout=TIMEOUT).one_time_token
        grant = checkout.IssueGrant(grant_request(order=order, one_time_token=token), timeout=TIMEOUT).grant
        released = processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
        self._expect(released.pan == card.pan, "a one-time token opened to another number")

    def _remove(self, kept: Kept) -> None:
        self.calls["delete"] += 1
        for waiting in [each for each in self._held if each[2] is kept]:
            self._held.remove(waiting)
            self._redeem(*waiting)
        request = account_pb2.DeleteCardRequest(customer_id=kept.customer, token=kept.token)
        next(self._doors).account.account.DeleteCard(request, timeout=TIMEOUT)
        self.alive.remove(kept)
        self.deleted.append(kept)

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.trouble.append(otherwise)


class Traffic:
    """Several customers at once."""

    def __init__(self, doors: Sequence[Doors], customers: int = 3) -> None:
        self._stop = threading.Event()
        self.customers = [Customer(doors, self._stop) for _ in range(customers)]

    def __enter__(self) -> Traffic:
        for customer in self.customers:
            customer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for customer in self.customers:
            customer.join(TIMEOUT)
            assert not customer.is_alive()

    def calls(self) -> Counter[str]:
        return sum((customer.calls for customer in self.customers), Counter[str]())

    @property
    def trouble(self) -> list[str]:
        return [text for customer in self.customers for text in customer.trouble]

    @property
    def alive(self) -> list[Kept]:
        return [kept for customer in self.customers for kept in customer.alive]

    @property
    def deleted(self) -> list[Kept]:
        return [kept for customer in self.customers for kept in customer.deleted]


@pytest.fixture
def own_openbao(tmp_path: Path) -> Iterator[OpenBao]:
    """Its keys are rotated and retired, which others would notice."""
    server = OpenBao(tmp_path / "openbao", storage="inmem", keep_root_token=True, log_raw=True)
    server.start()
    yield server
    server.stop()


@dataclass(frozen=True)
class Live:
    """A running installation and an operator's tools beside its servers."""

    installation: Installation
    doors: Sequence[Doors]
    place: Place


@pytest.fixture
def live(own_openbao: OpenBao, database_url: str, tmp_path: Path) -> Iterator[Live]:
    """One server on SQLite, two on PostgreSQL."""
    with serving(own_openbao, database_url, tmp_path) as running:
        yield running


@pytest.fixture
def sqlite_live(own_openbao: OpenBao, sqlite_url: str, tmp_path: Path) -> Iterator[Live]:
    """One server on SQLite."""
    with serving(own_openbao, sqlite_url, tmp_path) as running:
        yield running


@contextmanager
def serving(own_openbao: OpenBao, database_url: str, tmp_path: Path) -> Iterator[Live]:
    place = Place(
        database_url=database_url,
        vault_address=own_openbao.address.address,
        vault_ca=own_openbao.address.ca_file,
        token_file=own_openbao.files.root_token,
        mount=own_openbao.address.mount,
    )
    with installed(tmp_path / "installation", own_openbao, database_url, environment=ENVIRONMENT) as installation:
        for _ in range(1 if database_url.startswith("sqlite") else 2):
            installation.serve()
        doors = [
            Doors(*(installation.client(role, server) for role in ("checkout", "account", "processor")))
            for server in installation.servers
        ]
        yield Live(installation, doors, place)


def slowly(_done: int, _total: int) -> None:
    """A pause after each page, so that traffic meets every stage of a walk."""
    time.sleep(0.1)


def patiently(pauses: list[str]) -> Any:
    """A `Persist` that waits shortly and writes down why."""

    def persist(work: Callable[[], T]) -> T:
        deadline = time.monotonic() + GIVE_UP.total_seconds()
        while True:
            try:
                return work()
            except Unavailable as e:
                pauses.append(e.reason)
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    return persist


def rotate(tools: Tools, name: KeyName = CARDS) -> int:
    return RotateKey(world=tools.world, keys=tools.operator)(name, tools.operator_now(), again=True).after


def rewrap(tools: Tools, *, keys: OperatorKeys | None = None, **more: Any) -> RewrapReport:
    use_case = Rewrap(world=more.pop("world", tools.world), keys=keys or tools.operator, release=tools.release)
    return use_case(tools.operator_now(), **{"proof": Proof.SAMPLE, **more})


def rekey(tools: Tools, **more: Any) -> RekeyReport:
    use_case = RekeyCards(
        world=more.pop("world", tools.world), keys=tools.operator, intake=tools.intake, release=tools.release
    )
    return use_case(tools.operator_now(), Selection(), **more)


def wraps(tools: Tools) -> dict[int, int]:
    with tools.store.reading() as tx:
        return dict(tx.count_wraps())


@pytest.mark.timeout(180)
def test_traffic_goes_on_while_keys_rotate_and_nothing_is_lost_or_comes_back(live: Live) -> None:
    with live.place.open() as tools, live.place.open() as other, ThreadPoolExecutor(2) as two:
        pool = tools.store_cards(POOL)
        with Traffic(live.doors) as traffic:
            for _ in range(2):
                before = traffic.calls()
                version = rotate(tools)
                runs = [two.submit(rewrap, t, progress=slowly, proof=Proof.SAMPLE) for t in (tools, other)]
                reports = [run.result() for run in runs]
                again = rewrap(tools)
                rotate(tools, KeyName.FINGERPRINT)
                rotate(tools, KeyName.ONCE)
                rekeyed = rekey(tools, progress=slowly)
                RetireKey(world=tools.world, keys=tools.operator)(
                    CARDS, tools.operator_now(), settle=lambda: time.sleep(0.3)
                )
                during = traffic.calls() - before

                assert [report.failures for report in (*reports, again)] == [[], [], []]
                assert rekeyed.failures == []
                assert set(wraps(tools)) == {version}
                # Each kind of call went on.
                assert all(during[kind] > 0 for kind in ("store", "redeem", "once", "delete")), during

        assert traffic.trouble == []
        verified = VerifyCards(world=tools.world, release=tools.release, intake=tools.intake)(
            tools.operator_now(), Selection()
        )
        alive = {kept.token for kept in traffic.alive}
        assert (verified.failures, verified.gone) == ([], 0)
        assert verified.opened == len(pool) + len(alive)
        opened = tools.opened()
        assert {card: pan for card, pan in opened.items() if card in pool} == pool
        assert {str(card.token) for card in opened if card.tenant == SHOP} == alive
        numbers = {str(card.token): pan for card, pan in opened.items() if card.tenant == SHOP}
        # Only compared here, and never shown.
        wrong = [kept.token for kept in traffic.alive if _digits(numbers[kept.token]) != kept.card.pan]
        assert wrong == []
    for table in ("cards", "card_secrets"):
        stored = {token for (token,) in rows(live.place.database_url, f"SELECT token FROM {table}")}
        assert not stored & {kept.token for kept in traffic.deleted}
        assert alive <= stored


def _digits(pan: Any) -> str:
    return pan if isinstance(pan, str) else str(pan.reveal())


def test_two_operators_at_once_treat_every_card_once_and_lose_none(openbao: OpenBao, database_url: str) -> None:
    place = new_place(openbao, database_url)
    with place.open() as first, place.open() as second, ThreadPoolExecutor(2) as two:
        numbers = first.store_cards(POOL)
        rotate(first)
        reports = [run.result() for run in [two.submit(rewrap, tools) for tools in (first, second)]]

        assert [report.failures for report in reports] == [[], []]
        assert sum(report.rewrapped for report in reports) == POOL
        assert wraps(first) == {2: POOL}

        rotate(first)
        again = [run.result() for run in [two.submit(rekey, tools) for tools in (first, second)]]

        assert [report.failures for report in again] == [[], []]
        assert sum(report.rekeyed for report in again) == POOL
        assert first.opened() == numbers


# --- a database that goes away --------------------------------------------------------------------------------------


class CutStore:
    """A real store whose connection breaks around a commit: now before it, now after it, now not."""

    def __init__(self, inner: OperatorStore) -> None:
        self._inner = inner
        self._turn = itertools.count()
        self.cuts = Counter[str]()

    def reading(self) -> contextlib.AbstractContextManager[OperatorReader]:
        return self._inner.reading()

    @contextmanager
    def writing(self) -> Iterator[OperatorWriter]:
        turn = next(self._turn) % 3
        with self._inner.writing() as tx:
            yield tx
            if turn == 0:
                self.cuts["before"] += 1
                raise StoreUnavailable("database_unreachable")
        if turn == 1:
            self.cuts["after"] += 1
            raise StoreUnavailable("commit_unknown")

    def exclusively(self, what: str) -> contextlib.AbstractContextManager[None]:
        return self._inner.exclusively(what)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def cut_world(tools: Tools) -> tuple[OperatorWorld, CutStore]:
    store = CutStore(tools.store)
    return replace(tools.world, store=store), store


def test_a_database_cut_around_each_commit_pauses_rewrap_and_rekey_and_loses_nothing(
    openbao: OpenBao, database_url: str
) -> None:
    with new_place(openbao, database_url).open() as tools:
        numbers = tools.store_cards(POOL)
        rotate(tools)
        pauses: list[str] = []
        world, cut = cut_world(tools)

        report = rewrap(tools, world=world, persist=patiently(pauses))
        moved, opened = wraps(tools), tools.opened()
        rotate(tools)
        rekeyed = rekey(tools, world=world, persist=patiently(pauses))

        assert cut.cuts["before"] >= 2
        assert cut.cuts["after"] >= 2
        assert set(pauses) == {"database_unreachable", "commit_unknown"}
        assert (report.failures, rekeyed.failures) == ([], [])
        # A page whose commit came through unheard is found done when it is repeated.
        assert report.rewrapped + report.superseded == POOL
        assert rekeyed.rekeyed + rekeyed.superseded == POOL
        assert moved == {2: POOL}
        assert opened == numbers
        assert wraps(tools) == {3: POOL}
        assert tools.opened() == numbers


def test_connections_terminated_in_the_middle_pause_the_run_and_it_goes_on(
    openbao: OpenBao, postgresql_url: str
) -> None:
    with new_place(openbao, postgresql_url).open() as tools:
        numbers = tools.store_cards(POOL)
        rotate(tools)
        pauses: list[str] = []
        stop = threading.Event()
        killer = threading.Thread(target=_terminate_again_and_again, args=(postgresql_url, stop))
        killer.start()
        try:
            report = rewrap(tools, batch=PAGE, persist=patiently(pauses))
            rekeyed = (rotate_patiently(tools), rekey(tools, persist=patiently(pauses)))[1]
        finally:
            stop.set()
            killer.join(TIMEOUT)

        assert pauses
        assert (report.failures, rekeyed.failures) == ([], [])
        assert wraps(tools) == {3: POOL}
        assert tools.opened() == numbers


def rotate_patiently(tools: Tools) -> int:
    """As an operator types it again and again: cut off at any point, it makes one version."""
    deadline = time.monotonic() + GIVE_UP.total_seconds()
    while True:
        try:
            if tools.operator.versions(CARDS).latest < 3:
                rotate(tools)
            return RotateKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now()).after
        except Unavailable:
            assert time.monotonic() < deadline


def _terminate_again_and_again(url: str, stop: threading.Event) -> None:
    # One connection for all: on a busy machine a new one takes longer than what it is to disturb.
    with psycopg.connect(url, autocommit=True) as connection:
        while not stop.wait(0.02):
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )


# --- a Vault that stumbles ------------------------------------------------------------------------------------------


class StumblingVault:
    """The operator's keys of a real Vault: slow, refusing some items, or with a clock of its own."""

    def __init__(self, inner: OperatorKeys) -> None:
        self.inner = inner
        self.delay = 0.0
        self.refused: frozenset[str] = frozenset()
        self.lost_answers = 0
        self.after_rewrap: Callable[[], None] = lambda: None

    def versions(self, name: KeyName) -> KeyVersions:
        return self.inner.versions(name)

    def rotate(self, name: KeyName) -> None:
        self.inner.rotate(name)

    def rewrap(self, items: Sequence[KeyToUnwrap]) -> Sequence[SealedKey | KeyRefused]:
        time.sleep(self.delay)
        answers = self.inner.rewrap(items)
        if self.lost_answers:
            self.lost_answers -= 1
            raise KeyRingUnavailable("vault_timeout")
        self.after_rewrap()
        return [
            KeyRefused() if item.key.wrapped in self.refused else answer
            for item, answer in zip(items, answers, strict=True)
        ]

    def set_minimums(self, name: KeyName, *, decryption: int, encryption: int) -> None:
        self.inner.set_minimums(name, decryption=decryption, encryption=encryption)

    def trim(self, name: KeyName, *, below: int) -> None:
        self.inner.trim(name, below=below)


def test_a_slow_vault_that_loses_answers_and_refuses_three_of_a_hundred_moves_the_good_ones(
    openbao: OpenBao, database_url: str
) -> None:
    with new_place(openbao, database_url).open() as tools:
        numbers = tools.store_cards(100)
        rotate(tools)
        bad = rows(database_url, "SELECT token, wrapped_key FROM card_secrets ORDER BY token")[10:13]
        vault, pauses = StumblingVault(tools.operator), list[str]()
        vault.delay, vault.lost_answers, vault.refused = 0.3, 2, frozenset(wrapped for _, wrapped in bad)

        report = rewrap(tools, keys=vault, persist=patiently(pauses))

        unchanged = rows(database_url, "SELECT token, wrapped_key FROM card_secrets WHERE kek_version = 1")
        assert pauses == ["vault_timeout", "vault_timeout"]
        assert (report.rewrapped, report.superseded) == (97, 0)
        assert sorted((str(f.card.token), f.reason) for f in report.failures) == [
            (token, "vault_refused") for token, _ in bad
        ]
        assert sorted(unchanged) == bad
        assert tools.opened() == numbers
        refusals = "SELECT target FROM audit_events WHERE event = 'card.rewrap_refused' AND outcome = 'error'"
        assert sorted(token for (token,) in rows(database_url, refusals)) == [token for token, _ in bad]


# --- an old runner that wakes up ------------------------------------------------------------------------------------


def run_and_stop_midway(place: Place, command: str, done: Path) -> None:
    """In a child: work, and stop oneself with results of Vault in hand that are not in the database yet."""
    with place.open() as tools:
        turn = itertools.count(1)

        def stop_at_the_second() -> None:
            if next(turn) == 2:
                # Vault is asked ahead of the database: the first page must be in there.
                eventually(lambda: wraps(tools).get(1, 0) <= POOL - PAGE or command != "rewrap")
                os.kill(os.getpid(), signal.SIGSTOP)
                # The process is stopped as soon as its main thread takes the signal; until then this one waits here.
                time.sleep(0.5)

        try:
            if command == "rewrap":
                vault = StumblingVault(tools.operator)
                vault.after_rewrap = stop_at_the_second
                moved = rewrap(tools, keys=vault, batch=PAGE)
                said = f"{moved.rewrapped} done, {moved.superseded} superseded, {len(moved.failures)} failed"
            else:
                intake = _StoppingIntake(tools.intake, stop_at_the_second)
                use_case = RekeyCards(world=tools.world, keys=tools.operator, intake=intake, release=tools.release)
                sealed = use_case(tools.operator_now(), Selection())
                said = f"{sealed.rekeyed} done, {sealed.superseded} superseded, {len(sealed.failures)} failed"
        except KeyRingUnavailable as e:
            said = e.reason
        done.write_text(said, encoding="ascii")
    os._exit(0)


class _StoppingIntake:
    def __init__(self, inner: IntakeKeys, after: Callable[[], None]) -> None:
        self._inner = inner
        self._after = after

    def protect(self, **items: Any) -> Any:
        answers = self._inner.protect(**items)
        self._after()
        return answers

    def check(self) -> None:
        self._inner.check()


@pytest.mark.parametrize(
    ("command", "retired", "says"),
    [
        # The first page was its own; of the second, which it held, all had been done by others.
        pytest.param("rewrap", False, "200 done, 200 superseded, 0 failed", id="rewrap"),
        pytest.param("rekey", False, "200 done, 200 superseded, 0 failed", id="rekey"),
        # It proves a new wrap before it uses it, under a version that is not usable any more.
        pytest.param("rewrap", True, "vault_key_version_retired", id="rewrap-retired"),
    ],
)
def test_an_old_runner_that_slept_through_everything_undoes_nothing(
    openbao: OpenBao, database_url: str, tmp_path: Path, command: str, retired: bool, says: str
) -> None:
    place, done = new_place(openbao, database_url), tmp_path / "done"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.sweep"])
    with place.open() as tools:
        numbers = tools.store_cards(POOL)
        rotate(tools)
        sleeper = context.Process(target=run_and_stop_midway, args=(place, command, done))
        sleeper.start()
        assert sleeper.pid is not None
        pid = sleeper.pid
        try:
            eventually(lambda: _is_stopped(pid))
            rewrap(tools)
            rotate(tools)
            rewrap(tools)
            rekeyed = rekey(tools)
            deleted = next(iter(numbers))
            execute_deletion(tools, database_url, str(deleted.token))
            before = _secrets(database_url)
            if retired:
                RetireKey(world=tools.world, keys=tools.operator)(CARDS, tools.operator_now())
        finally:
            os.kill(pid, signal.SIGCONT)
        sleeper.join(TIMEOUT)

        assert sleeper.exitcode == 0
        assert done.read_text(encoding="ascii") == says
        assert rekeyed.rekeyed == POOL
        assert _secrets(database_url) == before
        assert tools.opened() == {card: pan for card, pan in numbers.items() if card != deleted}


def _is_stopped(pid: int) -> bool:
    return "\nState:\tT" in Path(f"/proc/{pid}/status").read_text(encoding="ascii")


def _secrets(url: str) -> list[tuple[Any, ...]]:
    return rows(
        url,
        "SELECT token, wrapped_key, kek_version, data_key_version, record_version, fingerprint, "
        "previous_wrapped_key FROM card_secrets ORDER BY token",
    )


def execute_deletion(tools: Tools, url: str, token: str) -> None:
    """Take a card away as erasure leaves it: no row of it anywhere but in the ledger."""
    execute(url, f"DELETE FROM card_secrets WHERE token = '{token}'", f"DELETE FROM cards WHERE token = '{token}'")


# --- the one-time key -----------------------------------------------------------------------------------------------


class Wound:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class VaultOn(StumblingVault):
    """A Vault whose host keeps the same clock as ours."""

    def __init__(self, inner: OperatorKeys, clock: Wound) -> None:
        super().__init__(inner)
        self._clock = clock
        self._made: dict[tuple[KeyName, int], datetime] = {}

    def rotate(self, name: KeyName) -> None:
        super().rotate(name)
        self._made[name, self.inner.versions(name).latest] = self._clock.now()

    def versions(self, name: KeyName) -> KeyVersions:
        known = self.inner.versions(name)
        made = {v: self._made.get((name, v), moment) for v, moment in known.created.items()}
        return replace(known, created=made)


@dataclass(frozen=True)
class Stolen:
    """Everything of a one-time token that can be copied: what the customer holds, and the row."""

    token: OneTimeToken
    expires_at: datetime
    wrapped: str


class OnceBench:
    """One-time tokens, and care for their key, on a clock set by hand."""

    due: Due
    """What the last run was planned to do."""

    def __init__(self, tools: Tools, url: str) -> None:
        self.tools, self.url, self.clock = tools, url, Wound()
        self._world = World(environment=ENVIRONMENT, store=tools.store, clock=self.clock, entropy=SystemEntropy())
        self._maintain = MaintainOnceKey(
            world=replace(tools.world, clock=self.clock), keys=VaultOn(tools.operator, self.clock)
        )

    def maintain(self) -> tuple[int, bool, int]:
        """Each time the plan is looked at first: it says what is then done, and changes nothing itself."""
        before = self._everything()
        self.due = self._maintain.plan()
        assert self._everything() == before
        done = self._maintain(self.tools.operator_now())
        assert (self.due.would_make, self.due.would_trim_below) == (
            done.version if done.rotated else 0,
            done.trimmed_below,
        )
        return done.version, done.rotated, done.trimmed_below

    def minutes_to_trim(self) -> int | None:
        """Whole minutes until the plan would destroy something; None if it does not tell."""
        then = self.due.next_trim
        return (then - self.clock.now()) // timedelta(minutes=1) if then is not None else None

    def _everything(self) -> tuple[object, ...]:
        versions = self.tools.operator.versions(KeyName.ONCE)
        return (
            versions,
            rows(self.url, "SELECT name, value FROM settings ORDER BY name"),
            rows(self.url, "SELECT count(*) FROM audit_events"),
        )

    def issue(self) -> Stolen:
        identity = Identity(f"spiffe://test.localhost/{SHOPS[0]}", Role.CHECKOUT, (SHOPS[0],), None)
        (done,) = Tokenize(world=self._world, keys=self.tools.intake)(
            [
                TokenizeCommand(
                    caller=Caller(identity, identity.uri, "", "", self.tools.operator_now().command_id),
                    idempotency_key=None,
                    customer=None,
                    card=fresh_card(with_security_code=True),
                    consent=None,
                    order=ORDER,
                )
            ]
        )
        assert isinstance(done, Tokenized)
        assert done.one_time_token is not None
        assert done.one_time_expires_at is not None
        once_id = done.one_time_token.once_id
        wrapped = str(scalar(self.url, f"SELECT wrapped_key FROM once_keys WHERE once_id = '{once_id}'"))
        return Stolen(done.one_time_token, done.one_time_expires_at, wrapped)

    def unwrap(self, stolen: Stolen) -> object:
        """What Vault answers to whoever has everything but its keys."""
        binding = one_time_binding(
            environment=ENVIRONMENT,
            tenant=SHOPS[0],
            once_id=stolen.token.once_id,
            order=ORDER,
            expires_at=stolen.expires_at,
        )
        item = KeyToUnwrap(KeyName.ONCE, SealedKey(stolen.wrapped), binding.wrap_context())
        (answer,) = self.tools.release.unwrap([item])
        return answer


@pytest.fixture
def once(openbao: OpenBao, database_url: str) -> Iterator[OnceBench]:
    with new_place(openbao, database_url).open() as tools:
        yield OnceBench(tools, database_url)


def test_the_one_time_key_is_rotated_after_a_day_and_old_versions_go_once_nobody_needs_them(once: OnceBench) -> None:
    assert once.maintain() == (1, False, 0)
    once.clock.ahead = timedelta(hours=23)
    assert once.maintain() == (1, False, 0)
    assert timedelta(minutes=58) < once.due.next_rotation - once.clock.now() < timedelta(minutes=61)
    assert once.minutes_to_trim() is None

    once.clock.ahead = timedelta(days=1, seconds=1)
    old = once.issue()
    assert once.maintain() == (2, True, 0)
    assert once.maintain() == (2, False, 0)
    once.clock.ahead += timedelta(minutes=14)
    assert once.maintain() == (2, False, 0)
    assert once.minutes_to_trim() == 5
    # Still alive, and still opens.
    assert isinstance(once.unwrap(old), bytes)
    once.clock.ahead += timedelta(minutes=7)
    assert once.maintain() == (2, False, 2)
    assert once.maintain() == (2, False, 0)

    versions = once.tools.operator.versions(KeyName.ONCE)
    assert (versions.latest, versions.min_decryption, versions.min_available) == (2, 2, 2)
    assert isinstance(once.unwrap(once.issue()), bytes)


def test_a_version_is_kept_as_long_as_one_living_token_needs_it(once: OnceBench) -> None:
    once.clock.ahead = timedelta(days=1, seconds=1)
    old = once.issue()
    assert once.maintain() == (2, True, 0)
    once.clock.ahead += timedelta(minutes=20)
    # Written by a server whose clock is late.
    late = once.issue()
    ids = (late.token.once_id, old.token.once_id)
    execute(once.url, f"UPDATE once_keys SET kek_version = 1 WHERE once_id = '{ids[0]}'")
    once.clock.ahead += timedelta(minutes=14)

    assert once.maintain() == (2, False, 0)
    assert (once.due.waits_for, once.minutes_to_trim()) == (1, None)
    assert isinstance(once.unwrap(old), bytes)
    once.clock.ahead += timedelta(minutes=2)
    assert once.maintain() == (2, False, 2)
    assert isinstance(once.unwrap(old), KeyRefused | KeyRingUnavailable)


def test_a_vault_whose_clock_is_behind_does_not_make_a_version_look_older_than_it_is(once: OnceBench) -> None:
    # Vault's own time of creation is a day before ours.
    behind = MaintainOnceKey(world=replace(once.tools.world, clock=once.clock), keys=once.tools.operator)
    once.clock.ahead = timedelta(days=1, seconds=1)

    first = behind(once.tools.operator_now())
    second = behind(once.tools.operator_now())

    assert (first.version, first.rotated, first.trimmed_below) == (2, True, 0)
    assert (second.version, second.rotated, second.trimmed_below) == (2, False, 0)


def test_a_copied_row_and_its_token_open_nowhere_once_the_version_is_destroyed(once: OnceBench) -> None:
    stolen = once.issue()
    assert isinstance(once.unwrap(stolen), bytes)
    once.clock.ahead = timedelta(days=1, seconds=1)
    once.maintain()
    once.clock.ahead += timedelta(minutes=30)
    assert once.maintain() == (2, False, 2)

    assert isinstance(once.unwrap(stolen), KeyRefused | KeyRingUnavailable)


def test_a_server_refuses_a_restored_one_time_token_whose_version_is_destroyed(sqlite_live: Live) -> None:
    url, card, order = sqlite_live.place.database_url, fresh_typed_card(with_security_code=True), new_order()
    checkout, processor = sqlite_live.doors[0].checkout.checkout, sqlite_live.doors[-1].processor.processor
    token = checkout.Tokenize(once_request(card, order), timeout=TIMEOUT).one_time_token
    grant = checkout.IssueGrant(grant_request(order=order, one_time_token=token), timeout=TIMEOUT).grant
    wrapped = scalar(url, "SELECT wrapped_key FROM once_keys")
    restore = (
        f"UPDATE once_keys SET state = 'open', wrapped_key = '{wrapped}'",
        "UPDATE grants SET state = 'open', closed_at = NULL",
    )
    assert processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT).pan == card.pan

    with sqlite_live.place.open() as tools:
        clock = Wound()
        maintain = MaintainOnceKey(world=replace(tools.world, clock=clock), keys=VaultOn(tools.operator, clock))
        clock.ahead = timedelta(days=1, seconds=1)
        maintain(tools.operator_now())
        clock.ahead += timedelta(minutes=30)
        assert maintain(tools.operator_now()).trimmed_below == 2
    execute(url, *restore)
    with pytest.raises(grpc.RpcError) as refused:
        processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)

    error: Any = refused.value
    assert error.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE)
    assert card.pan not in error.details()


# --- the certificate ------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(own_openbao: OpenBao, sqlite_url: str) -> Iterator[tuple[Tools, Callable[[], str], bytes]]:
    """Tools, the certificate's maker, and the public key as Vault shows it."""
    place = Place(
        database_url=sqlite_url,
        vault_address=own_openbao.address.address,
        vault_ca=own_openbao.address.ca_file,
        token_file=own_openbao.files.root_token,
        mount=own_openbao.address.mount,
    )
    login = own_openbao.login(LoginName.CHECKPOINTER)
    with place.open() as tools, contextlib.closing(VaultSession(address=own_openbao.address, login=login)) as session:
        signer = CheckpointerTransit(session)
        (key,) = signer.public_keys().values()
        issue = IssueCertificate(world=tools.world, keys=tools.operator, signer=signer)
        yield tools, lambda: issue().text, key


def test_a_certificate_tells_what_the_database_holds_and_shows_any_changed_byte(
    certificate: tuple[Tools, Callable[[], str], bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tools, issue, public_key = certificate
    tools.store_cards(30)
    rotate(tools)
    report = rewrap(tools, proof=Proof.ALL)
    tools.store_cards(5)

    text = issue()
    facts = json.loads(json.loads(text)["statement"])
    file, key = tmp_path / "certificate.json", base64.b64encode(public_key).decode("ascii")
    file.write_text(text, encoding="utf-8")

    assert check_certificate(file, public_key=key) == 0
    assert (facts["version"], facts["cards"]) == (2, 35)
    assert facts["cards_by_version_before"] == {"1": 30}
    assert facts["cards_by_version_after"] == {str(v): n for v, n in wraps(tools).items()}
    assert facts["former_wraps_kept"] == {"1": 30}
    (run,) = facts["rewrap_runs"].values()
    assert (run["rewrapped"], run["proven"], run["failures"]) == (report.rewrapped, 30, 0)
    assert facts["rotation"]["by"] == "operator:test"
    assert _changes_that_pass(text, public_key) == []
    assert check_certificate(file, public_key=base64.b64encode(bytes(32)).decode("ascii")) != 0
    capsys.readouterr()


def _changes_that_pass(text: str, public_key: bytes) -> list[int]:
    """Every byte of statement and signature, changed one at a time; those places where nobody would notice."""
    document: Mapping[str, str] = json.loads(text)
    statement, signature = document["statement"].encode(), base64.b64decode(document["signature"])
    key = Ed25519PublicKey.from_public_bytes(public_key)
    key.verify(signature, statement)
    unnoticed = []
    for place in range(len(statement) + len(signature)):
        changed = bytearray(statement + signature)
        changed[place] ^= 1
        try:
            key.verify(bytes(changed[len(statement) :]), bytes(changed[: len(statement)]))
        except InvalidSignature:
            continue
        unnoticed.append(place)
    return unnoticed


def test_a_certificate_with_any_byte_changed_in_the_file_is_never_taken_for_the_same_statement(
    certificate: tuple[Tools, Callable[[], str], bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tools, issue, public_key = certificate
    tools.store_cards(2)
    text, file = issue(), tmp_path / "certificate.json"
    file.write_text(text, encoding="utf-8")
    key = base64.b64encode(public_key).decode("ascii")
    assert check_certificate(file, public_key=key) == 0
    said = capsys.readouterr().out

    for place in range(0, len(text), 7):
        other = "x" if text[place] != "x" else "y"
        file.write_text(text[:place] + other + text[place + 1 :], encoding="utf-8")
        if check_certificate(file, public_key=key) == 0:
            # Only what is not signed, such as the name of the key, may change; the statement stays what it was.
            assert capsys.readouterr().out == said
    capsys.readouterr()
