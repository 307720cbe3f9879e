"""PostgreSQL plans a statement once for each connection; what it planned while tables were empty must not stay."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from tests.contract.store.make import card, claimed, grant_for, granted, listed, stored, writing
from tests.support.world import NOW, TENANT
from vault.domain.grant import Grant
from vault.domain.ids import CustomerId, OrderId
from vault.ports import NewCard
from vault.store import SqlStore, postgresql
from vault.store.engine import Limits

MANY = 5_000
FEW = 100
PREPARED_AFTER = 8
"""Times that a statement is carried out until the driver has surely prepared it."""


@pytest.fixture
def one_connection(postgresql_url: str) -> Iterator[SqlStore]:
    """A store that carries out everything on one connection."""
    store = SqlStore(postgresql_url, limits=Limits(pool_size=1))
    yield store
    store.close()


def rows_read_by(store: SqlStore, work: Callable[[], object]) -> int:
    """Rows of all tables that were looked at through indexes meanwhile."""
    counted: list[int] = []

    def before_commit(connection: Any) -> None:
        found = connection.exec_driver_sql("SELECT coalesce(sum(idx_tup_fetch), 0) FROM pg_stat_xact_user_tables")
        counted.append(int(found.scalar()))

    engine = store._engines.writer
    event.listen(engine, "commit", before_commit)
    try:
        work()
    finally:
        event.remove(engine, "commit", before_commit)
    return sum(counted)


def grants_of(store: SqlStore, some: NewCard) -> list[Grant]:
    grants = [grant_for(some.token, order=OrderId(f"o-{number}")) for number in range(MANY)]
    granted(store, *grants)
    return grants


def test_what_was_first_asked_for_in_an_empty_database_reads_its_own_rows_later(
    one_connection: SqlStore, postgresql_url: str
) -> None:
    store = one_connection
    some = card()

    def revoked(count: int) -> None:
        with writing(store) as tx:
            assert tx.revoke_open_grants([(TENANT, some.token, OrderId("o-7"))], now=NOW) == count

    with psycopg.connect(postgresql_url, autocommit=True) as operator:
        operator.execute("ALTER TABLE grants SET (autovacuum_enabled = false)")
    for _ in range(PREPARED_AFTER):
        listed(store)
        revoked(0)
    stored(store, some, *(card() for _ in range(4)))
    for _ in range(MANY // 500):
        stored(store, *(card(customer=CustomerId(f"c-{os.urandom(8).hex()}")) for _ in range(500)))
    grants_of(store, some)
    time.sleep(postgresql.PLANS_LAST)

    assert rows_read_by(store, lambda: listed(store)) < FEW
    assert rows_read_by(store, lambda: revoked(1)) < FEW


def test_a_grant_is_found_by_its_name_even_where_the_statistics_know_of_no_open_one(
    one_connection: SqlStore, postgresql_url: str
) -> None:
    store = one_connection
    some = card()
    with psycopg.connect(postgresql_url, autocommit=True) as operator:
        operator.execute("ALTER TABLE grants SET (autovacuum_enabled = false)")
        stored(store, some)
        grants = grants_of(store, some)
        operator.execute("UPDATE grants SET state = 'used'")
        operator.execute("ANALYZE grants")
        operator.execute("UPDATE grants SET state = 'open'")

    def used() -> None:
        assert claimed(store, grants[0]) == {grants[0].grant_sha256}

    assert rows_read_by(store, used) < FEW
