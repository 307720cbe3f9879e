"""What status and metrics ask of the database; each question is one that an index answers, or a count."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from tests.contract.store.make import MINUTE, card, claimed, event, grant_for, granted, kept, once_key, stored, writing
from tests.support.raw import execute
from tests.support.world import CUSTOMER, NOW, OTHER_TENANT
from vault.domain.ids import CustomerId, OrderId
from vault.store import SqlStore


def test_an_empty_database_has_nothing(store: SqlStore) -> None:
    with store.reading() as tx:
        state = tx.log_state()
        found = (tx.count_customers(), tx.count_open_grants(), tx.oldest_open_once_key())

    assert found == (0, 0, None)
    assert (state.queued, state.oldest_queued, state.latest_queued) == (0, None, None)


def test_customers_are_counted_once_and_each_shop_s_apart(store: SqlStore) -> None:
    other = CustomerId("customer-2")
    cards = [card(), card(), card(customer=other), card(tenant=OTHER_TENANT, customer=CUSTOMER)]
    stored(store, *cards)

    with store.reading() as tx:
        assert tx.count_customers() == 3
        assert sum(tx.count_wraps().values()) == 4


def test_grants_that_are_open_are_counted(store: SqlStore) -> None:
    new = card()
    stored(store, new)
    grants = [grant_for(new.token, order=OrderId(f"order-{number}")) for number in range(3)]
    granted(store, *grants)
    claimed(store, grants[0])

    with store.reading() as tx:
        assert tx.count_open_grants() == 2


def test_the_open_one_time_key_that_expires_first_is_found(store: SqlStore) -> None:
    kept(store, once_key(order=OrderId("a")), once_key(order=OrderId("b"), expires_at=NOW + 5 * MINUTE))
    column = "1000000 * 7" if str(store.kind) == "sqlite" else "'1970-01-01T00:00:07Z'"

    with store.reading() as tx:
        assert tx.oldest_open_once_key() == NOW
    execute(store._url, f"UPDATE once_keys SET created_at = {column} WHERE order_id = 'b'")
    with store.reading() as tx:
        oldest = tx.oldest_open_once_key()

    assert oldest is not None
    assert oldest.timestamp() == 7


def test_of_waiting_events_the_earliest_and_the_latest_time_are_told(store: SqlStore) -> None:
    # Not in the order of their arrival: nobody but a forger, or a wrong clock, is behind these.
    moments = [NOW, NOW + timedelta(days=2), NOW - timedelta(days=1)]
    with writing(store) as tx:
        tx.append_events([replace(event(), occurred_at=moment) for moment in moments])

    with store.reading() as reader:
        state = reader.log_state()

    assert (state.oldest_queued, state.latest_queued) == (NOW - timedelta(days=1), NOW + timedelta(days=2))
