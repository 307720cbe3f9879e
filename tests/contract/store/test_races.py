"""Many at once: the database decides, and exactly one wins."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import pytest

from tests.contract.store.make import (
    card,
    claim_of,
    claimed,
    event,
    grant_for,
    granted,
    kept,
    listed,
    once_key,
    record,
    ref,
    released,
    sealed_again,
    stored,
    writing,
)
from tests.support.world import CUSTOMER, NOW, TENANT
from vault.domain.errors import StoreUnavailable
from vault.domain.ids import OrderId
from vault.ports import CardsOf, NewCard
from vault.store import SqlStore

T = TypeVar("T")


def at_once(jobs: Iterable[Callable[[], T]]) -> list[T]:
    """Run all, each on a thread of its own, let go together."""
    waiting = list(jobs)
    gate = threading.Barrier(len(waiting))

    def run(job: Callable[[], T]) -> T:
        gate.wait()
        return job()

    with ThreadPoolExecutor(len(waiting)) as pool:
        return list(pool.map(run, waiting))


def test_fifty_inserts_of_one_fingerprint_give_one_token(store: SqlStore) -> None:
    fingerprint = b"f" * 32

    def insert() -> int:
        with writing(store) as tx:
            return len(tx.insert_new_cards([card(fingerprint=fingerprint)]))

    won = at_once([insert] * 50)

    assert sum(won) == 1
    assert len(listed(store)) == 1


def test_forty_claims_of_one_grant_have_one_winner(store: SqlStore) -> None:
    new = card()
    grant = grant_for(new.token)
    stored(store, new)
    granted(store, grant)

    won = at_once([lambda: len(claimed(store, grant))] * 40)

    assert sum(won) == 1


def test_forty_claims_of_one_one_time_token_through_forty_grants_have_one_winner(store: SqlStore) -> None:
    once = once_key()
    grants = [grant_for(once.once_id, order=OrderId(f"order-{i}")) for i in range(40)]
    kept(store, once)
    granted(store, *grants)

    won = at_once([lambda each=each: len(claimed(store, each)) for each in grants])  # type: ignore[misc]

    assert sum(won) == 1


def test_twenty_releases_of_one_grant_leave_one_event(store: SqlStore) -> None:
    def release() -> int:
        try:
            with store.writing() as tx:
                tx.append_events([released(b"g" * 32)])
        except StoreUnavailable:
            return 0
        return 1

    assert sum(at_once([release] * 20)) == 1


def test_twenty_claims_of_one_idempotency_key_have_one_winner(store: SqlStore) -> None:
    new = record()

    def claim() -> int:
        with writing(store) as tx:
            return len(tx.claim_idempotency([new], now=NOW))

    assert sum(at_once([claim] * 20)) == 1


def test_twenty_grants_for_one_order_leave_one_open(store: SqlStore) -> None:
    new = card()
    stored(store, new)

    def issue() -> int:
        with writing(store) as tx:
            return len(tx.insert_grants([grant_for(new.token)]))

    assert sum(at_once([issue] * 20)) == 1


def test_of_twenty_new_sealings_of_one_card_one_is_kept(store: SqlStore) -> None:
    new = card()
    stored(store, new)

    def reseal() -> int:
        with writing(store) as tx:
            return len(tx.reseal_cards([sealed_again(new)]))

    assert sum(at_once([reseal] * 20)) == 1


def test_twenty_changes_of_the_default_card_leave_one_default(store: SqlStore) -> None:
    cards = [card() for _ in range(4)]
    stored(store, *cards)

    def choose(chosen: NewCard) -> None:
        with writing(store) as tx:
            tx.set_default(ref(chosen))

    at_once([lambda i=i: choose(cards[i % 4]) for i in range(20)])  # type: ignore[misc]

    with store.reading() as tx:
        assert sum(each.is_default for each in tx.list_cards([CardsOf(TENANT, CUSTOMER, None, 10)])[0]) == 1


@pytest.mark.parametrize("round_", range(10))
def test_after_an_erasure_was_answered_no_claim_wins(store: SqlStore, round_: int) -> None:
    new = card()
    grant = grant_for(new.token)
    stored(store, new)
    granted(store, grant)
    answered = threading.Event()

    def erase() -> int:
        with writing(store) as tx:
            revoked = tx.erase_cards(TENANT, CUSTOMER, new.token, event_id=event().event_id, now=NOW).grants_revoked
        answered.set()
        return revoked

    def claim() -> int:
        began_after_answer = answered.is_set()
        won = len(claimed(store, grant))
        assert not (began_after_answer and won)
        return won

    revoked, *won = at_once([erase, *([claim] * 3)])

    # Whoever was first, the grant ended once: used or revoked.
    assert revoked + sum(won) == 1
    assert claimed(store, grant) == frozenset()


def test_a_claim_waits_for_an_erasure_under_way_and_then_wins_nothing(postgresql_url: str) -> None:
    store = SqlStore(postgresql_url)
    new = card()
    grant = grant_for(new.token)
    stored(store, new)

    with ThreadPoolExecutor(1) as pool:
        with writing(store) as tx:
            tx.erase_cards(TENANT, CUSTOMER, new.token, event_id=event().event_id, now=NOW)
            # Issued after the erasure looked for grants, and so not revoked by it.
            granted(store, grant)
            claim = pool.submit(claimed, store, grant)
            with pytest.raises(TimeoutError):
                claim.result(timeout=0.2)

        assert claim.result(timeout=10) == frozenset()
    store.close()


def test_batches_that_share_cards_in_any_order_never_block_each_other_for_good(store: SqlStore) -> None:
    cards = [card() for _ in range(20)]
    grants = [grant_for(each.token) for each in cards]
    records = [record() for _ in range(20)]

    def store_all(*, backwards: bool) -> int:
        mine = [replace(each, token=card().token) for each in (reversed(cards) if backwards else cards)]
        mine = [replace(each, consent=card(token=each.token).consent) for each in mine]
        with writing(store) as tx:
            tx.claim_idempotency(records[::-1] if backwards else records, now=NOW)
            return len(tx.insert_new_cards(mine))

    assert sum(at_once([lambda i=i: store_all(backwards=bool(i % 2)) for i in range(8)])) == 20  # type: ignore[misc]

    with store.reading() as tx:
        tokens = [each.token for each in tx.list_cards([CardsOf(TENANT, CUSTOMER, None, 50)])[0]]
    grants = [grant_for(token) for token in tokens]
    granted(store, *grants)

    def use_or_revoke(number: int) -> int:
        mine = grants[::-1] if number % 2 else grants
        with writing(store) as tx:
            if number % 4 < 2:
                return len(tx.claim_grants([claim_of(each) for each in mine], now=NOW))
            return tx.revoke_open_grants([(TENANT, each.subject, each.order) for each in mine], now=NOW)

    assert sum(at_once([lambda i=i: use_or_revoke(i) for i in range(8)])) == 20  # type: ignore[misc]
