"""Retention: each rule ends what it should at its moment, and nothing that was stored again or used meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.contract.store.make import (
    DAY,
    MINUTE,
    card,
    claim_of,
    claimed,
    event,
    grant_for,
    granted,
    kept,
    key_of,
    listed,
    once_key,
    operating,
    record,
    ref,
    sealed_again,
    stored,
    writing,
)
from tests.support.raw import execute, rows, scalar
from tests.support.world import NOW, OTHER_TENANT, TENANT, SystemEntropy, consent
from vault.domain.card import CardState, Expiry
from vault.domain.errors import StoreUnavailable
from vault.domain.ids import CustomerId, OrderId, RequestId
from vault.domain.retention import CardRule, RetentionLimits, RowRule
from vault.ports import NewCard
from vault.ports_operator import Busy, OperatorWriter
from vault.store import SqlStore
from vault.usecases.operating import Operator, OperatorWorld
from vault.usecases.retention import Retain

LIMITS = RetentionLimits()
OPERATOR = Operator(name="operator:me@here", reason="retention", command_id=RequestId.from_random(os.urandom(16)))
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
LASTING = consent(agreed_until=None)


@dataclass
class At:
    """A clock that stands."""

    moment: datetime = NOW

    def now(self) -> datetime:
        return self.moment


def retain(store: SqlStore, at: datetime = NOW, limits: RetentionLimits = LIMITS) -> Retain:
    world = OperatorWorld(environment="test", store=store, clock=At(at), entropy=SystemEntropy())
    return Retain(world=world, limits=limits)


def lasting(*, stored_at: datetime = NOW, expiry: Expiry | None = None, state: CardState = CardState.ACTIVE) -> NewCard:
    """A card whose consent has no end."""
    made = card(agreed=LASTING, stored_at=stored_at, state=state)
    return replace(made, expiry=expiry or Expiry(2031, 7))


def ending(at: datetime) -> NewCard:
    """A card whose consent ends."""
    return card(agreed=consent(agreed_until=at))


def due_now(store: SqlStore, at: datetime = NOW) -> dict[str, CardRule]:
    with store.reading() as tx:
        page = tx.due_cards(LIMITS.at(at), after=None, limit=1000)
    return {each.card.token: each.rule for each in page.due}


# --- what is due, and when ---


@pytest.mark.parametrize(
    ("made", "due_at", "rule"),
    [
        (ending(NOW + DAY), NOW + DAY, CardRule.CONSENT_ENDED),
        (lasting(state=CardState.PENDING), NOW + DAY, CardRule.PENDING),
        (lasting(expiry=Expiry(2026, 12)), datetime.fromisoformat("2027-01-31T00:00:00+00:00"), CardRule.EXPIRED),
        (lasting(), NOW + 395 * DAY, CardRule.UNUSED),
    ],
    ids=lambda value: value.value if isinstance(value, CardRule) else "",
)
def test_each_rule_ends_a_card_at_its_moment_and_not_before(
    store: SqlStore, made: NewCard, due_at: datetime, rule: CardRule
) -> None:
    stored(store, made)

    before = due_now(store, due_at - timedelta(microseconds=1))

    assert before == {}
    assert due_now(store, due_at) == {made.token: rule}


def test_a_card_that_several_rules_end_is_named_after_the_first(store: SqlStore) -> None:
    made = replace(card(agreed=consent(agreed_until=NOW + DAY), state=CardState.PENDING), expiry=Expiry(2026, 7))
    stored(store, made)

    assert due_now(store, NOW + 400 * DAY) == {made.token: CardRule.CONSENT_ENDED}


def test_a_card_of_the_release_before_counts_from_its_first_storing(store: SqlStore, database_url: str) -> None:
    stored(store, made := lasting())
    execute(database_url, "UPDATE cards SET last_used_at = NULL")

    assert due_now(store, NOW + 395 * DAY - SECOND) == {}
    assert due_now(store, NOW + 395 * DAY) == {made.token: CardRule.UNUSED}


def test_storing_a_card_again_counts_as_use_and_begins_its_waiting_anew(store: SqlStore) -> None:
    stored(store, made := lasting(state=CardState.PENDING))
    again = _stored_again(made, at=NOW + 20 * HOUR, state=CardState.PENDING)
    with writing(store) as tx:
        assert tx.reseal_cards([again])

    assert due_now(store, NOW + 30 * HOUR) == {}
    assert due_now(store, NOW + 44 * HOUR) == {made.token: CardRule.PENDING}
    assert due_now(store, NOW + 395 * DAY + 20 * HOUR)[made.token] is CardRule.PENDING


def _stored_again(made: NewCard, *, at: datetime, state: CardState = CardState.ACTIVE) -> NewCard:
    again = sealed_again(made)
    entry = replace(again.consent, consent=LASTING, agreed_at=at)
    return replace(again, stored_at=at, state=state, consent=entry)


def test_a_release_counts_as_use(store: SqlStore) -> None:
    stored(store, made := lasting(), other := lasting())
    later = NOW + 300 * DAY
    granted(store, grant := grant_for(made.token, expires_at=later + MINUTE))
    claimed(store, grant, now=later)

    assert due_now(store, NOW + 400 * DAY) == {other.token: CardRule.UNUSED}
    assert set(due_now(store, later + 395 * DAY)) == {made.token, other.token}


def test_a_redemption_that_was_refused_is_no_use(store: SqlStore) -> None:
    stored(store, made := lasting())
    later = NOW + 300 * DAY
    granted(store, grant := grant_for(made.token, expires_at=later))
    assert claimed(store, grant, now=later) == frozenset()

    assert due_now(store, NOW + 395 * DAY) == {made.token: CardRule.UNUSED}


def test_a_use_is_noted_to_the_hour_so_that_most_releases_write_nothing_to_the_card(
    store: SqlStore, database_url: str
) -> None:
    stored(store, made := lasting())
    noted = []
    for number, later in enumerate((NOW + MINUTE, NOW + HOUR + SECOND, NOW + HOUR + MINUTE)):
        grant = grant_for(made.token, order=OrderId(f"order-{number}"), expires_at=NOW + DAY)
        granted(store, grant)
        claimed(store, grant, now=later)
        noted.append(scalar(database_url, "SELECT last_used_at FROM cards"))

    assert noted[0] == noted[0]
    assert noted[1] != noted[0]
    assert noted[2] == noted[1]


def test_the_walk_sees_every_card_once_whatever_the_size_of_its_pages(store: SqlStore) -> None:
    cards = [ending(NOW + DAY) for _ in range(23)]
    cards += [card(tenant=OTHER_TENANT, agreed=consent(agreed_until=NOW + DAY)) for _ in range(4)]
    stored(store, *cards, *(lasting() for _ in range(8)))
    seen, after = [], None
    with store.reading() as tx:
        while True:
            page = tx.due_cards(LIMITS.at(NOW + DAY), after=after, limit=5)
            if page.last is None:
                break
            seen += [each.card for each in page.due]
            after = page.last

    assert seen == sorted((key_of(each) for each in cards), key=lambda key: (key.tenant, key.token))


# --- a run ---


def test_a_run_erases_what_is_due_with_an_event_and_a_tombstone_for_each_card(
    store: SqlStore, database_url: str
) -> None:
    gone, stays = ending(NOW + DAY), lasting()
    stored(store, gone, stays)
    granted(store, grant_for(gone.token, expires_at=NOW + 2 * DAY))
    with writing(store) as tx:
        tx.claim_idempotency([about := record(token=gone.token, created_at=NOW + HOUR)], now=NOW)

    report = retain(store, NOW + DAY)(OPERATOR)

    events = rows(
        database_url,
        "SELECT event_id, event, reason, actor, tenant_id, customer_id, target FROM audit_events "
        "WHERE event = 'card.erased'",
    )
    tombstones = rows(database_url, "SELECT token, event_id FROM erasures")
    with store.reading() as tx:
        answer = tx.idempotency([about.id])[about.id]
    assert listed(store) == [stays.token]
    assert [tuple(each)[1:] for each in events] == [
        ("card.erased", "consent_ended", OPERATOR.name, TENANT, gone.customer, gone.token)
    ]
    assert [tuple(each) for each in tombstones] == [(gone.token, events[0][0])]
    assert scalar(database_url, "SELECT count(*) FROM card_secrets") == 1
    assert scalar(database_url, "SELECT count(*) FROM consents WHERE kind = 'withdrawn'") == 1
    assert (report.cards, report.grants_revoked, report.removed[CardRule.CONSENT_ENDED]) == (1, 1, 1)
    assert answer.erased


def test_a_run_of_many_pages_and_tenants_leaves_nothing_and_a_second_one_has_nothing_to_do(store: SqlStore) -> None:
    due = [card(customer=CustomerId(f"c-{i}"), agreed=consent(agreed_until=NOW + DAY)) for i in range(450)]
    due += [card(tenant=OTHER_TENANT, agreed=consent(agreed_until=NOW + DAY)) for _ in range(3)]
    stored(store, *due)
    seen: list[int] = []

    first = retain(store, NOW + DAY)(OPERATOR, progress=lambda done, total: seen.append(done))
    second = retain(store, NOW + DAY)(OPERATOR)

    assert (first.cards, second.cards) == (453, 0)
    assert due_now(store, NOW + DAY) == {}
    assert max(b - a for a, b in zip([0, *seen], seen, strict=False)) <= 200


def test_a_run_that_is_cut_off_goes_on_where_it_was(store: SqlStore) -> None:
    stored(store, *(ending(NOW + DAY) for _ in range(420)))

    def cut(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retain(store, NOW + DAY)(OPERATOR, progress=cut)
    left = len(due_now(store, NOW + DAY))
    report = retain(store, NOW + DAY)(OPERATOR)

    assert left == 220
    assert report.cards == 220


def test_only_one_run_at_a_time(store: SqlStore) -> None:
    with store.exclusively("retention"), pytest.raises(Busy):
        retain(store)(OPERATOR)


def test_a_card_that_the_database_refuses_to_erase_keeps_no_other(store: SqlStore, database_url: str) -> None:
    due = [ending(NOW + DAY) for _ in range(5)]
    stored(store, *due)
    bad = due[2].token
    if database_url.startswith("sqlite"):
        execute(
            database_url,
            f"CREATE TRIGGER poison BEFORE DELETE ON cards WHEN OLD.token = '{bad}' "
            "BEGIN SELECT RAISE(ABORT, 'poison'); END",
        )
    else:
        execute(
            database_url,
            "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN IF OLD.token = '{bad}' THEN RAISE 'poison'; END IF; RETURN OLD; END $$",
            "CREATE TRIGGER poison BEFORE DELETE ON cards FOR EACH ROW EXECUTE FUNCTION poison()",
        )

    report = retain(store, NOW + DAY)(OPERATOR)

    assert listed(store) == [bad]
    assert [failure.card.token for failure in report.failures] == [bad]
    assert report.cards == 4
    assert retain(store).last_completed() is None


# --- races ---


def test_a_card_stored_again_between_selection_and_erasure_stays(store: SqlStore) -> None:
    stored(store, made := ending(NOW + DAY), other := ending(NOW + DAY))
    at = LIMITS.at(NOW + DAY)
    assert set(due_now(store, NOW + DAY)) == {made.token, other.token}
    with writing(store) as tx:
        assert tx.reseal_cards([_stored_again(made, at=NOW + DAY)])

    with operating(store) as tx:
        erased = tx.erase_due_cards({key_of(each): event().event_id for each in (made, other)}, at)

    assert [each.card.token for each in erased.cards] == [other.token]
    assert listed(store) == [made.token]


@pytest.mark.parametrize("how", ["stored", "used", "renewed"])
def test_a_card_that_comes_alive_while_the_erasure_waits_for_it_stays(postgresql_url: str, how: str) -> None:
    store = SqlStore(postgresql_url)
    made = replace(lasting(), expiry=Expiry(2026, 7)) if how == "renewed" else lasting()
    stored(store, made)
    moment = NOW + 400 * DAY if how != "renewed" else NOW + 80 * DAY
    granted(store, grant := grant_for(made.token, expires_at=moment + MINUTE))
    assert set(due_now(store, moment)) == {made.token}

    with ThreadPoolExecutor(1) as pool:
        with writing(store) as tx:
            if how == "stored":
                assert tx.reseal_cards([_stored_again(made, at=moment)])
            elif how == "used":
                assert tx.claim_grants([claim_of(grant)], now=moment)
            else:
                assert tx.update_expiry(ref(made), Expiry(2033, 1))
            run = pool.submit(retain(store, moment), OPERATOR)
            with pytest.raises(TimeoutError):
                run.result(timeout=0.4)

        report = run.result(timeout=10)

    assert (report.cards, report.stayed) == (0, 1)
    assert listed(store) == [made.token]
    store.close()


@pytest.mark.parametrize("round_", range(6))
def test_a_run_against_twenty_cards_that_come_alive_erases_each_or_sees_it_alive(store: SqlStore, round_: int) -> None:
    cards = [lasting() for _ in range(20)]
    stored(store, *cards)
    moment = NOW + 400 * DAY
    gate = threading.Barrier(3)
    again = [_stored_again(each, at=moment) for each in cards[:10]]
    grants = [grant_for(each.token, expires_at=moment + MINUTE) for each in cards[10:]]
    granted(store, *grants)

    def store_again() -> set[str]:
        gate.wait()
        alive: set[str] = set()
        for each in again:
            with writing(store) as tx:
                alive |= tx.reseal_cards([each])
        return alive

    def use() -> set[str]:
        gate.wait()
        return {str(each.token) for each in grants if claimed(store, each, now=moment)}

    def sweep() -> int:
        gate.wait()
        return retain(store, moment)(OPERATOR).cards

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(job) for job in (store_again, use)]
        erased = pool.submit(sweep)
        alive = set().union(*(job.result(timeout=30) for job in jobs))
        count = erased.result(timeout=30)

    assert set(listed(store)) == alive
    assert count == 20 - len(alive)


def test_forty_releases_of_one_idle_card_at_once_all_succeed(store: SqlStore) -> None:
    stored(store, made := lasting())
    later = NOW + 300 * DAY
    grants = [grant_for(made.token, order=OrderId(f"o-{i}"), expires_at=later + MINUTE) for i in range(40)]
    granted(store, *grants)
    gate = threading.Barrier(40)

    def use(number: int) -> int:
        gate.wait()
        return len(claimed(store, grants[number], now=later))

    with ThreadPoolExecutor(40) as pool:
        won = list(pool.map(use, range(40)))

    assert sum(won) == 40


# --- grants, one-time keys, answers ---


def test_open_grants_are_closed_a_day_after_their_end_and_all_are_forgotten_after_thirty(
    store: SqlStore, database_url: str
) -> None:
    stored(store, made := lasting())
    used, unused = (grant_for(made.token, order=OrderId(order)) for order in ("a", "b"))
    granted(store, used, unused)
    claimed(store, used)

    def states(at: datetime) -> list[tuple[object, ...]]:
        retain(store, at)(OPERATOR)
        return rows(database_url, "SELECT order_id, state FROM grants ORDER BY order_id")

    end = NOW + 2 * MINUTE
    assert states(end + DAY - SECOND) == [("a", "used"), ("b", "open")]
    assert states(end + DAY) == [("a", "used"), ("b", "revoked")]
    assert states(end + 30 * DAY - SECOND) == [("a", "used"), ("b", "revoked")]
    assert states(end + 30 * DAY) == []
    events = rows(database_url, "SELECT event, details FROM audit_events WHERE event LIKE 'grant.%' ORDER BY event")
    assert [tuple(each) for each in events] == [("grant.closed", '{"rows":1}'), ("grant.forgotten", '{"rows":2}')]


def test_one_time_keys_are_destroyed_and_a_day_later_their_rows_go(store: SqlStore, database_url: str) -> None:
    kept(store, once := once_key())

    first = retain(store, once.expires_at)(OPERATOR)
    state = scalar(database_url, "SELECT state FROM once_keys")
    second = retain(store, once.expires_at + DAY)(OPERATOR)

    assert (first.removed[RowRule.ONCE_KEYS], state, second.removed[RowRule.ONCE_KEYS]) == (1, "spent", 1)
    assert scalar(database_url, "SELECT count(*) FROM once_keys") == 0


def test_answers_are_forgotten_once_their_key_is_free_again(store: SqlStore, database_url: str) -> None:
    with writing(store) as tx:
        tx.claim_idempotency([record(), record(created_at=NOW + HOUR)], now=NOW)

    report = retain(store, NOW + DAY)(OPERATOR)

    assert report.removed[RowRule.IDEMPOTENCY] == 1
    assert scalar(database_url, "SELECT count(*) FROM idempotency") == 1


def test_an_answer_whose_key_is_being_claimed_anew_stays(postgresql_url: str) -> None:
    store = SqlStore(postgresql_url)
    old = record()
    with writing(store) as tx:
        tx.claim_idempotency([old], now=NOW)
    fresh = replace(old, created_at=NOW + DAY, expires_at=NOW + 2 * DAY)

    with writing(store) as tx:
        assert tx.claim_idempotency([fresh], now=NOW + DAY)
        report = retain(store, NOW + DAY)(OPERATOR)

    with store.reading() as tx:
        assert tx.idempotency([old.id])[old.id].expires_at == NOW + 2 * DAY
    assert report.removed[RowRule.IDEMPOTENCY] == 0
    store.close()


def test_more_rows_than_one_batch_are_all_removed(store: SqlStore, database_url: str) -> None:
    with writing(store) as tx:
        tx.claim_idempotency([record() for _ in range(1100)], now=NOW)

    report = retain(store, NOW + DAY)(OPERATOR)

    assert report.removed[RowRule.IDEMPOTENCY] == 1100


# --- plan and verify ---


def test_a_plan_counts_by_rule_and_changes_nothing(store: SqlStore, database_url: str) -> None:
    stored(store, ending(NOW + DAY), lasting(expiry=Expiry(2026, 6)), soon := lasting())
    granted(store, grant_for(soon.token))
    kept(store, once_key())
    with writing(store) as tx:
        tx.claim_idempotency([record()], now=NOW)
    before = scalar(database_url, "SELECT count(*) FROM audit_events")

    plan = retain(store, NOW + DAY).plan()

    assert {rule: count for rule, count in plan.now.items() if count} == {
        CardRule.CONSENT_ENDED: 1,
        RowRule.ONCE_KEYS: 1,
        RowRule.IDEMPOTENCY: 1,
    }
    assert {rule: count for rule, count in plan.soon.items() if count} == {RowRule.CLOSED_GRANTS: 1}
    assert retain(store, NOW + 20 * DAY).plan().soon[CardRule.EXPIRED] == 1
    assert len(listed(store)) == 3
    assert scalar(database_url, "SELECT count(*) FROM audit_events") == before


def test_what_a_run_leaves_is_never_due(store: SqlStore) -> None:
    stored(store, *(ending(NOW + DAY) for _ in range(3)), lasting(expiry=Expiry(2026, 6)), made := lasting())
    granted(store, grant_for(made.token))
    kept(store, once_key())
    with writing(store) as tx:
        tx.claim_idempotency([record()], now=NOW)
    moment = NOW + 200 * DAY
    planned = retain(store, moment).plan()

    report = retain(store, moment)(OPERATOR)

    assert {rule for rule, count in planned.now.items() if count} >= {rule for rule, n in report.removed.items() if n}
    assert not any(retain(store, moment).plan().now.values()), "a spent one-time key's row is old enough, too"
    assert retain(store).last_completed() == moment


def test_verify_allows_a_day_and_records_what_it_found(store: SqlStore, database_url: str) -> None:
    stored(store, ending(NOW + DAY))

    well = retain(store, NOW + 2 * DAY - SECOND).verify(OPERATOR)
    late = retain(store, NOW + 2 * DAY).verify(OPERATOR)

    events = rows(
        database_url,
        "SELECT outcome, details FROM audit_events WHERE event = 'retention.verified' ORDER BY outcome DESC",
    )
    assert not any(well.values())
    assert {rule: count for rule, count in late.items() if count} == {CardRule.CONSENT_ENDED: 1}
    assert [tuple(each) for each in events] == [("ok", "{}"), ("error", '{"consent_ended":1}')]


def test_shorter_limits_end_things_earlier(store: SqlStore) -> None:
    stored(store, made := lasting())

    report = retain(store, NOW + 10 * DAY, RetentionLimits(unused=10 * DAY))(OPERATOR)

    assert report.removed[CardRule.UNUSED] == 1
    assert made.token not in listed(store)


def test_a_run_leaves_no_byte_of_a_card_in_any_file_of_sqlite(sqlite_url: str, tmp_path: Path) -> None:
    store = SqlStore(sqlite_url)
    due, stays = [ending(NOW + DAY) for _ in range(30)], [lasting() for _ in range(10)]
    stored(store, *due, *stays)
    secrets = [secret for each in due for secret in bytes_of(each)]
    assert all(left_in_files(tmp_path, secret) for secret in secrets), "the search finds what is there"

    retain(store, NOW + DAY)(OPERATOR)

    left = [secret for secret in secrets if left_in_files(tmp_path, secret)]
    store.close()
    assert left == []


def bytes_of(new: NewCard) -> list[bytes]:
    """Of a card: ciphertext, wrapped key, fingerprint, and its display row, recognised by columns side by side."""
    shown = f"{new.token}{new.customer}{new.last4}".encode()
    return [new.sealed.ciphertext, new.sealed.key.wrapped.encode(), new.fingerprint.value, shown]


def left_in_files(directory: Path, secret: bytes) -> list[str]:
    """Names of the files that hold these bytes."""
    return [path.name for path in directory.iterdir() if path.is_file() and secret in path.read_bytes()]


def test_the_time_is_the_clocks_and_never_the_databases(store: SqlStore) -> None:
    stored(store, lasting())

    # The database's own clock is years away from this.
    assert retain(store, NOW + 394 * DAY)(OPERATOR).cards == 0
    assert retain(store, NOW + 395 * DAY)(OPERATOR).cards == 1


LATE = LIMITS.at(NOW + 60 * DAY)
CHANGES: dict[str, Callable[[OperatorWriter, NewCard], object]] = {
    "erase_due_cards": lambda tx, new: tx.erase_due_cards({key_of(new): event().event_id}, LATE).cards,
    "forget_once_keys": lambda tx, _: tx.forget_once_keys(LATE, limit=1),
    "close_expired_grants": lambda tx, _: tx.close_expired_grants(LATE, limit=1),
    "forget_grants": lambda tx, _: tx.forget_grants(LATE, limit=1),
    "forget_answers": lambda tx, _: tx.forget_answers(LATE, limit=1),
}
"""What the sweep removes, method by method, of a card that is due."""


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_nothing_is_removed_without_an_event(store: SqlStore, database_url: str, name: str) -> None:
    stored(store, made := ending(NOW + DAY))
    granted(store, grant_for(made.token))
    kept(store, once := once_key())
    with writing(store) as tx:
        tx.void_once_keys([(once.tenant, once.once_id)])
        tx.claim_idempotency([record()], now=NOW)
    before = _rows_of(database_url)

    with pytest.raises(AssertionError, match="audit event"), store.writing() as tx:
        assert CHANGES[name](tx, made)

    assert _rows_of(database_url) == before


def _rows_of(url: str) -> list[list[tuple[object, ...]]]:
    return [rows(url, f"SELECT * FROM {table}") for table in ("cards", "once_keys", "grants", "idempotency")]


def test_a_lost_database_ends_a_run_with_its_reason(sqlite_url: str, tmp_path: Path) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 'none.db'}")

    with pytest.raises(StoreUnavailable):
        retain(store)(OPERATOR)
    store.close()
