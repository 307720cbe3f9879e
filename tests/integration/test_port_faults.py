"""Trouble between the steps of a use case, on the real OpenBao and real databases: before and after each trip.

The key rings and the store are the real ones; a thin wrapper makes one of their calls fail before it happened or lose
its answer after it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest

from tests.support.cards import fresh_card
from tests.support.raw import execute, fail_events_about, rows, scalar
from tests.support.world import consent
from vault.domain.audit import RELEASED
from vault.domain.caller import Caller, Identity, Role
from vault.domain.card import CardDetails
from vault.domain.consent import CardUse
from vault.domain.errors import (
    CardVaultError,
    ConsentRequired,
    Contention,
    KeyRefused,
    KeyRingUnavailable,
    Refused,
    StoreUnavailable,
    Unavailable,
)
from vault.domain.grant import DEFAULT_LIFETIME, Money
from vault.domain.ids import RANDOM_BYTES, CustomerId, IdempotencyKey, OrderId, ProcessorName, RequestId, TenantId
from vault.embedded.openbao import OpenBao
from vault.keyring.session import VaultSession
from vault.keyring.setup import LoginName
from vault.keyring.transit import IntakeTransit, ReleaseTransit
from vault.ports import KeyToUnwrap, KeyToWrap, Protected, Writer
from vault.store import SqlStore
from vault.system import SystemClock, SystemEntropy
from vault.usecases.batch import World
from vault.usecases.detokenize import Detokenize, DetokenizeCommand, ReleasedCard
from vault.usecases.grants import IssuedGrant, IssueGrant, IssueGrantCommand, StoredCardSubject
from vault.usecases.tokenize import Tokenize, TokenizeCommand, Tokenized

SHOP = TenantId("shop")
ACQUIRER = ProcessorName("acquirer")
ORDER = OrderId("order-1")
AMOUNT = Money(4900, "EUR")
CHECKOUT = Identity("spiffe://test.localhost/checkout", Role.CHECKOUT, (SHOP,), None)
PROCESSOR = Identity("spiffe://test.localhost/processor", Role.PROCESSOR, (SHOP,), ACQUIRER)


@dataclass
class Faults:
    """Which calls are to fail: each entry is used up once."""

    vault_down: int = 0
    commits_cut_before: int = 0
    commits_with_lost_answer: int = 0


@dataclass
class FaultyStore:
    """The real store, whose commits may be cut off before they happen or lose their answer afterwards."""

    inner: SqlStore
    faults: Faults

    def reading(self) -> object:
        return self.inner.reading()

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        with self.inner.writing() as tx:
            yield tx
            if self.faults.commits_cut_before:
                self.faults.commits_cut_before -= 1
                raise StoreUnavailable("database_unreachable")
        if self.faults.commits_with_lost_answer:
            self.faults.commits_with_lost_answer -= 1
            raise StoreUnavailable("commit_unknown")

    def check(self) -> None:
        self.inner.check()


@dataclass
class FaultyIntake:
    """The real intake keys, which may be away."""

    inner: IntakeTransit
    faults: Faults

    def protect(
        self, *, cards: Sequence[KeyToWrap], once: Sequence[KeyToWrap], fingerprints: Sequence[bytes]
    ) -> Protected:
        if self.faults.vault_down:
            self.faults.vault_down -= 1
            raise KeyRingUnavailable("vault_sealed")
        return self.inner.protect(cards=cards, once=once, fingerprints=fingerprints)

    def check(self) -> None:
        self.inner.check()


@dataclass
class FaultyRelease:
    """The real release keys, which may be away."""

    inner: ReleaseTransit
    faults: Faults
    before_answer: Callable[[], None] = lambda: None
    """What happens while Vault is unwrapping."""

    def unwrap(self, items: Sequence[KeyToUnwrap]) -> Sequence[bytes | KeyRefused | KeyRingUnavailable]:
        if self.faults.vault_down:
            self.faults.vault_down -= 1
            return [KeyRingUnavailable("vault_sealed") for _ in items]
        answers = self.inner.unwrap(items)
        self.before_answer()
        return answers

    def check(self, canary: KeyToUnwrap | None) -> None:
        self.inner.check(canary)


@dataclass(frozen=True)
class Bench:
    """Use cases whose ports may be made to fail."""

    faults: Faults
    world: World
    url: str
    tokenize: Tokenize
    issue_grant: IssueGrant
    detokenize: Detokenize
    release: FaultyRelease

    def caller(self, identity: Identity) -> Caller:
        request_id = RequestId.from_random(self.world.entropy.bytes(RANDOM_BYTES))
        return Caller(identity, identity.uri, "", "ipv4:127.0.0.1:1", request_id)

    def command(self, card: CardDetails, *, key: str = "key-1", customer: str = "ada") -> TokenizeCommand:
        return TokenizeCommand(
            caller=self.caller(CHECKOUT),
            idempotency_key=IdempotencyKey(key),
            customer=CustomerId(customer),
            card=card,
            consent=consent(),
            order=None,
        )

    def store_card(self, card: CardDetails) -> Tokenized:
        (done,) = self.tokenize([self.command(card)])
        assert isinstance(done, Tokenized)
        return done

    def grant_for(self, stored: Tokenized) -> IssuedGrant:
        assert stored.stored is not None
        (issued,) = self.issue_grant(
            [
                IssueGrantCommand(
                    caller=self.caller(CHECKOUT),
                    idempotency_key=None,
                    subject=StoredCardSubject(stored.stored.customer, stored.stored.token),
                    order=ORDER,
                    amount=AMOUNT,
                    purpose=CardUse.CUSTOMER_INITIATED,
                    processor=ACQUIRER,
                    lifetime=DEFAULT_LIFETIME,
                )
            ]
        )
        assert isinstance(issued, IssuedGrant)
        return issued

    def redeem(self, issued: IssuedGrant) -> ReleasedCard | CardVaultError:
        command = DetokenizeCommand(caller=self.caller(PROCESSOR), grant=issued.grant, order=ORDER, amount=AMOUNT)
        return self.detokenize([command])[0]

    def count(self, sql: str) -> int:
        """A number straight from the database."""
        return int(scalar(self.url, sql))


@pytest.fixture
def bench(store: SqlStore, database_url: str, openbao: OpenBao) -> Iterator[Bench]:
    faults = Faults()
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(closing(VaultSession(address=openbao.address, login=openbao.login(name))))
            for name in (LoginName.INTAKE, LoginName.RELEASE)
        ]
        intake = IntakeTransit(sessions[0])
        release = FaultyRelease(stack.enter_context(closing(ReleaseTransit(sessions[1]))), faults)
        world = World(
            environment="test",
            store=FaultyStore(store, faults),  # type: ignore[arg-type]
            clock=SystemClock(),
            entropy=SystemEntropy(),
        )
        yield Bench(
            faults=faults,
            world=world,
            url=database_url,
            tokenize=Tokenize(world=world, keys=FaultyIntake(intake, faults)),
            issue_grant=IssueGrant(world=world, processors={ACQUIRER: frozenset({SHOP})}),
            detokenize=Detokenize(world=world, keys=release),
            release=release,
        )


def _empty(bench: Bench) -> bool:
    return all(
        bench.count(f"SELECT count(*) FROM {table}") == 0
        for table in ("cards", "card_secrets", "consents", "once_keys", "idempotency", "audit_events")
    )


def _released_events(bench: Bench) -> int:
    return bench.count(f"SELECT count(*) FROM audit_events WHERE event = '{RELEASED}' AND outcome = 'ok'")


@pytest.mark.parametrize("fault", ["vault_down", "commits_cut_before"])
def test_a_store_that_failed_left_nothing_and_works_when_repeated(bench: Bench, fault: str) -> None:
    card = fresh_card()
    setattr(bench.faults, fault, 1)

    (failed,) = bench.tokenize([bench.command(card)])
    left_nothing = _empty(bench)
    (repeated,) = bench.tokenize([bench.command(card)])

    assert isinstance(failed, KeyRingUnavailable | StoreUnavailable)
    assert left_nothing
    assert isinstance(repeated, Tokenized)


def test_a_store_whose_answer_was_lost_gives_the_same_token_when_repeated(bench: Bench) -> None:
    card = fresh_card()
    bench.faults.commits_with_lost_answer = 1

    (lost,) = bench.tokenize([bench.command(card)])
    (repeated,) = bench.tokenize([bench.command(card)])

    assert isinstance(lost, StoreUnavailable)
    assert isinstance(repeated, Tokenized)
    assert repeated.stored is not None
    assert bench.count("SELECT count(*) FROM cards") == 1
    assert bench.count("SELECT count(*) FROM consents") == 1


@pytest.mark.parametrize("fault", ["vault_down", "commits_cut_before"])
def test_a_redemption_that_failed_before_its_claim_was_durable_leaves_the_grant_good(bench: Bench, fault: str) -> None:
    card = fresh_card()
    issued = bench.grant_for(bench.store_card(card))
    setattr(bench.faults, fault, 1)

    failed = bench.redeem(issued)
    events_then = _released_events(bench)
    repeated = bench.redeem(issued)

    assert isinstance(failed, KeyRingUnavailable | StoreUnavailable)
    assert events_then == 0
    assert isinstance(repeated, ReleasedCard)
    assert repeated.card.pan == card.pan
    assert _released_events(bench) == 1


def test_a_redemption_whose_claim_is_unknown_releases_nothing_then_and_never_again(bench: Bench) -> None:
    issued = bench.grant_for(bench.store_card(fresh_card()))
    bench.faults.commits_with_lost_answer = 1

    lost = bench.redeem(issued)
    repeated = bench.redeem(issued)

    assert isinstance(lost, StoreUnavailable)
    assert isinstance(repeated, Refused)
    assert _released_events(bench) == 1


def test_a_card_is_opened_only_after_its_release_is_durable(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    issued = bench.grant_for(bench.store_card(fresh_card()))
    seen: list[int] = []
    open_sealed: Callable[..., object] = __import__("vault.usecases.detokenize", fromlist=["open_sealed"]).open_sealed

    def watched(*args: object, **kwargs: object) -> object:
        seen.append(_released_events(bench))
        return open_sealed(*args, **kwargs)

    monkeypatch.setattr("vault.usecases.detokenize.open_sealed", watched)

    released = bench.redeem(issued)

    assert isinstance(released, ReleasedCard)
    assert seen == [1]


def test_one_bad_item_never_fails_its_neighbours(bench: Bench, database_url: str) -> None:
    fail_events_about(database_url, "poison")
    commands = [bench.command(fresh_card(), key=f"k-{name}", customer=name) for name in ("ada", "poison", "ben")]

    ada, poison, ben = bench.tokenize(commands)

    assert isinstance(ada, Tokenized)
    assert isinstance(ben, Tokenized)
    assert isinstance(poison, StoreUnavailable)
    assert bench.count("SELECT count(*) FROM cards WHERE customer_id = 'poison'") == 0
    assert bench.count("SELECT count(*) FROM idempotency WHERE idempotency_key = 'k-poison'") == 0


def test_a_card_sealed_anew_during_its_redemption_is_still_released(bench: Bench) -> None:
    card = fresh_card()
    issued = bench.grant_for(bench.store_card(card))
    release = bench.release
    once_more = iter([True])

    def seal_anew() -> None:
        if next(once_more, False):
            (again,) = bench.tokenize([bench.command(card, key="key-2")])
            assert isinstance(again, Tokenized)

    release.before_answer = seal_anew

    released = bench.redeem(issued)

    assert isinstance(released, ReleasedCard)
    assert released.card.pan == card.pan
    assert _released_events(bench) == 1


def test_one_grant_redeemed_twice_in_one_batch_is_released_once(bench: Bench) -> None:
    issued = bench.grant_for(bench.store_card(fresh_card()))
    commands = [
        DetokenizeCommand(caller=bench.caller(PROCESSOR), grant=issued.grant, order=ORDER, amount=AMOUNT)
        for _ in range(3)
    ]

    outcomes = bench.detokenize(commands)

    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Refused", "Refused", "ReleasedCard"]
    assert _released_events(bench) == 1


def test_vault_answering_after_the_caller_left_does_not_burn_the_grant(bench: Bench) -> None:
    issued = bench.grant_for(bench.store_card(fresh_card()))
    late = DetokenizeCommand(
        caller=bench.caller(PROCESSOR),
        grant=issued.grant,
        order=ORDER,
        amount=AMOUNT,
        deadline=bench.world.clock.now(),
    )

    (outcome,) = bench.detokenize([late])
    released = bench.redeem(issued)

    assert isinstance(outcome, Unavailable)
    assert isinstance(released, ReleasedCard)
    assert _released_events(bench) == 1


def test_a_card_whose_consent_was_removed_from_the_ledger_is_not_released(bench: Bench, database_url: str) -> None:
    issued = bench.grant_for(bench.store_card(fresh_card()))
    if database_url.startswith("sqlite"):
        execute(database_url, "DROP TRIGGER consents_no_delete", "DELETE FROM consents")
    else:
        execute(
            database_url,
            "ALTER TABLE consents DISABLE TRIGGER ALL",
            "ALTER TABLE cards DISABLE TRIGGER ALL",
            "DELETE FROM consents",
        )

    assert isinstance(bench.redeem(issued), Refused)
    assert _released_events(bench) == 0


@dataclass
class LateClock:
    """Says `early` so many times, and from then on `late`."""

    early: datetime
    late: datetime
    times: int

    def now(self) -> datetime:
        self.times -= 1
        return self.early if self.times >= 0 else self.late


def test_a_consent_that_ends_while_vault_answers_stores_nothing_and_leaves_its_neighbour_alone(bench: Bench) -> None:
    now = bench.world.clock.now()
    ending, lasting = (
        replace(
            bench.command(fresh_card(), key=key, customer=key),
            consent=consent(agreed_until=now + timedelta(minutes=minutes)),
        )
        for key, minutes in (("ending", 1), ("lasting", 9))
    )
    clock = LateClock(now, now + timedelta(minutes=1), times=1)
    intake = bench.tokenize._keys

    refused, stored = Tokenize(world=replace(bench.world, clock=clock), keys=intake)([ending, lasting])

    assert isinstance(refused, ConsentRequired)
    assert (refused.reason, refused.audited) == ("consent_ended", True)
    assert isinstance(stored, Tokenized)
    assert rows(bench.url, "SELECT customer_id FROM cards") == [("lasting",)]
    assert rows(bench.url, "SELECT customer_id FROM consents") == [("lasting",)]
    assert rows(bench.url, "SELECT idempotency_key FROM idempotency") == [("lasting",)]


def test_a_fingerprint_exchanged_with_another_cards_leads_no_number_under_that_cards_display(
    bench: Bench, database_url: str
) -> None:
    first, second = fresh_card(), fresh_card()
    while first.pan.last4() == second.pan.last4():
        second = fresh_card()
    mine = bench.store_card(first).stored
    (other,) = bench.tokenize([bench.command(second, key="key-2")])
    assert mine is not None
    assert isinstance(other, Tokenized)
    assert other.stored is not None
    value = rows(database_url, f"SELECT fingerprint FROM card_secrets WHERE token = '{other.stored.token}'")[0][0]
    literal = f"X'{bytes(value).hex()}'" if database_url.startswith("sqlite") else f"'\\x{bytes(value).hex()}'"
    execute(
        database_url,
        f"UPDATE card_secrets SET fingerprint = (SELECT ciphertext FROM card_secrets WHERE token = '{mine.token}') "
        f"WHERE token = '{other.stored.token}'",
        f"UPDATE card_secrets SET fingerprint = {literal} WHERE token = '{mine.token}'",
    )

    (again,) = bench.tokenize([bench.command(second, key="key-3")])

    assert isinstance(again, Contention)
    assert scalar(database_url, f"SELECT record_version FROM card_secrets WHERE token = '{mine.token}'") == 1
