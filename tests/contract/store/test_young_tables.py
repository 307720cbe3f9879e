"""PostgreSQL plans by what it knows of tables, which is little where they are new and wrong where they have changed.

Whatever it knows, a request must read its own rows and not those of all others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from tests.contract.store.make import (
    card,
    claim_of,
    grant_for,
    once_key,
    outcome_of,
    record,
    ref,
    sealed_again,
    writing,
)
from tests.support.world import CUSTOMER, NOW, TENANT
from vault.domain.grant import Grant
from vault.domain.ids import CustomerId, OrderId
from vault.ports import CardsOf, GrantKey, IdempotencyRecord, NewCard, OnceKey, Writer
from vault.store import SqlStore, postgresql
from vault.store.engine import Limits

MANY, SOME = 4_000, 500
"""Rows of others in each table."""
FEW = 100
"""More than any request here should look at."""
PREPARED_AFTER = 8
"""Times that a statement is carried out until the driver has surely prepared it."""
AT_ONCE = 500


@pytest.fixture
def one_connection(postgresql_url: str) -> Iterator[SqlStore]:
    """A store that carries out everything on one connection."""
    store = SqlStore(postgresql_url, limits=Limits(pool_size=1))
    yield store
    store.close()


@dataclass
class Shop:
    """One card with all that belongs to it; the same of many others is in the database, too."""

    card: NewCard = field(default_factory=card)
    once: OnceKey = field(default_factory=once_key)
    record: IdempotencyRecord = field(default_factory=record)
    grants: list[Grant] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.grants = [grant_for(self.card.token, order=OrderId(f"o-{number}")) for number in range(4)]

    def keys(self, number: int) -> list[GrantKey]:
        """One of the grants, by name."""
        return [GrantKey((TENANT,), self.grants[number].grant_sha256)]


WORKS: dict[str, Callable[[Writer, Shop], object]] = {
    "list_cards": lambda tx, shop: tx.list_cards([CardsOf(TENANT, CUSTOMER, None, 20)]),
    "cards": lambda tx, shop: tx.cards([ref(shop.card)]),
    "default_cards": lambda tx, shop: tx.default_cards([(TENANT, CUSTOMER)]),
    "known_cards": lambda tx, shop: tx.known_cards([(TENANT, shop.card.fingerprint)]),
    "once_keys": lambda tx, shop: tx.once_keys([(TENANT, shop.once.once_id)]),
    "grants": lambda tx, shop: tx.grants(shop.keys(0)),
    "redeemables": lambda tx, shop: tx.redeemables(shop.keys(0)),
    "idempotency": lambda tx, shop: tx.idempotency([shop.record.id]),
    "claim_idempotency": lambda tx, shop: tx.claim_idempotency([shop.record], now=NOW),
    "replace_answers": lambda tx, shop: tx.replace_answers({shop.record.id: {"a": 1}}),
    "release_idempotency": lambda tx, shop: tx.release_idempotency([shop.record.id]),
    "insert_new_cards": lambda tx, shop: tx.insert_new_cards([shop.card]),
    "insert_grants": lambda tx, shop: tx.insert_grants(shop.grants[:1]),
    "revoke_open_grants": lambda tx, shop: tx.revoke_open_grants([(TENANT, shop.card.token, OrderId("o-1"))], now=NOW),
    "revoke_grants": lambda tx, shop: tx.revoke_grants([(TENANT, shop.grants[2].grant_sha256)], now=NOW),
    "claim_grants": lambda tx, shop: tx.claim_grants([claim_of(shop.grants[3])], now=NOW),
    "record_outcomes": lambda tx, shop: tx.record_outcomes([outcome_of(shop.grants[3])], now=NOW),
    "void_once_keys": lambda tx, shop: tx.void_once_keys([(TENANT, shop.once.once_id)]),
    "update_expiry": lambda tx, shop: tx.update_expiry(ref(shop.card), shop.card.expiry),
    "set_default": lambda tx, shop: tx.set_default(ref(shop.card)),
    "reseal_cards": lambda tx, shop: tx.reseal_cards([sealed_again(shop.card)]),
}
"""What requests ask of the store for one card, in an order in which each finds something."""


def rows_read(tx: Any) -> int:
    """Rows that this transaction has looked at through indexes so far."""
    asked = "SELECT coalesce(sum(idx_tup_fetch), 0) FROM pg_stat_xact_user_tables"
    return int(tx._link._connection.exec_driver_sql(asked).scalar())


def rows_of(store: SqlStore, shop: Shop) -> dict[str, int]:
    """Rows that each work looked at."""
    counted = {}
    for name, work in WORKS.items():
        with writing(store) as tx:
            before = rows_read(tx)
            work(tx, shop)
            counted[name] = rows_read(tx) - before
    return counted


def greedy(store: SqlStore, shop: Shop) -> dict[str, int]:
    """The works that looked at more rows than they should, with how many."""
    return {name: rows for name, rows in rows_of(store, shop).items() if rows >= FEW}


def add(store: SqlStore, shop: Shop) -> None:
    """The shop's own rows."""
    with writing(store) as tx:
        tx.insert_new_cards([shop.card])
        tx.insert_once_keys([shop.once])
        tx.claim_idempotency([shop.record], now=NOW)
        tx.insert_grants(shop.grants)


def add_others(store: SqlStore, count: int = MANY) -> None:
    """Those of many others of the same tenant."""
    for _ in range(count // AT_ONCE):
        cards = [card(customer=CustomerId(f"c-{os.urandom(8).hex()}")) for _ in range(AT_ONCE)]
        with writing(store) as tx:
            tx.insert_new_cards(cards)
            tx.insert_once_keys([once_key() for _ in range(AT_ONCE)])
            tx.claim_idempotency([record() for _ in range(AT_ONCE)], now=NOW)
            tx.insert_grants([grant_for(each.token) for each in cards])


@pytest.fixture
def operator(postgresql_url: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody with the database's own tools, who lets nothing be counted but when they say so."""
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        for table in ("cards", "card_secrets", "consents", "grants", "once_keys", "idempotency"):
            connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
        yield connection


@pytest.mark.usefixtures("operator")
def test_what_was_planned_in_an_empty_database_does_not_read_all_of_a_large_one(one_connection: SqlStore) -> None:
    store, shop = one_connection, Shop()
    for _ in range(PREPARED_AFTER):
        rows_of(store, Shop())
    add_others(store)
    add(store, shop)
    time.sleep(postgresql.PLANS_LAST)

    assert greedy(store, shop) == {}


def test_no_request_reads_all_that_is_open_where_nothing_was_when_rows_were_counted(
    one_connection: SqlStore, operator: psycopg.Connection[Any]
) -> None:
    store, shop = one_connection, Shop()
    add_others(store)
    add(store, shop)
    operator.execute("UPDATE grants SET state = 'used'")
    operator.execute("UPDATE once_keys SET state = 'spent', wrapped_key = NULL")
    operator.execute("ANALYZE")
    operator.execute("UPDATE grants SET state = 'open'")
    operator.execute("UPDATE once_keys SET state = 'open', wrapped_key = 'vault:v1:none'")
    time.sleep(postgresql.PLANS_LAST)

    assert greedy(store, shop) == {}


@pytest.mark.parametrize("count", [SOME, MANY])
@pytest.mark.parametrize("counted", [False, True], ids=["not counted", "counted"])
def test_no_request_reads_all_of_a_tenant(
    one_connection: SqlStore, operator: psycopg.Connection[Any], count: int, counted: bool
) -> None:
    store, shop = one_connection, Shop()
    add_others(store, count)
    add(store, shop)
    if counted:
        operator.execute("ANALYZE")
    time.sleep(postgresql.PLANS_LAST)

    assert greedy(store, shop) == {}


def test_what_a_read_prepared_is_still_there_for_the_next_one(one_connection: SqlStore) -> None:
    for _ in range(PREPARED_AFTER):
        with one_connection.reading() as tx:
            tx.list_cards([CardsOf(TENANT, CUSTOMER, None, 20)])

    with one_connection.reading() as tx:
        asked = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%%jsonb_array_elements%%'"
        found: Any = tx
        assert found._link._connection.exec_driver_sql(asked).scalar() == 1
