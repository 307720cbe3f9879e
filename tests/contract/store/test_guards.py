"""What the promises rest on is looked at before a server starts: keys, foreign keys, checks, triggers, NOT NULL."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, make_url

from tests.fixtures_db import execute_as_admin
from vault.store import SqlStore, guards, sqlite
from vault.store.columns import Engine
from vault.store.engine import Limits, open_engines
from vault.store.tables import metadata

KEYS = sorted((table.name, str(each.name)) for table in metadata.sorted_tables for each in table.constraints)
INDEXES = [(table.name, str(each.name)) for table in metadata.sorted_tables for each in table.indexes if each.unique]
NOT_NULL = [
    (table.name, f"NOT NULL of {column.name}")
    for table in metadata.sorted_tables
    for column in table.columns
    if not column.nullable
]
TRIGGERS = [
    ("audit_events", "audit_events_queued"),
    ("audit_checkpoints", "audit_checkpoints_append_only"),
    ("audit_events", "audit_events_append_only"),
    ("audit_leaves", "audit_leaves_append_only"),
    ("audit_nodes", "audit_nodes_append_only"),
    ("consents", "consents_append_only"),
]
TRIGGERS_OF_SQLITE = [
    (table, name.replace("append_only", verb))
    for table, name in TRIGGERS
    for verb in ("no_update", "no_delete")
    if verb == "no_update" or name.endswith("append_only")
]


def test_every_guard_that_was_ever_made_is_looked_for() -> None:
    assert guards.expected(Engine.POSTGRESQL) == {*KEYS, *INDEXES, *NOT_NULL, *TRIGGERS}
    assert guards.expected(Engine.SQLITE) == {*KEYS, *INDEXES, *NOT_NULL, *TRIGGERS_OF_SQLITE}


def test_a_database_as_it_was_made_has_them_all(store: SqlStore) -> None:
    assert store.weaknesses() == []


def lost(connection: Connection, engine: Engine) -> list[tuple[str, str]]:
    """Of what is said the table and the guard."""
    words = [each.partition(": ")[2].partition(" is missing")[0] for each in guards.missing(connection, engine)]
    return [(table, name) for name, _, table in (each.rpartition(" of ") for each in words)]


def found_after(url: str, statements: Callable[[str, str], list[str]], wanted: list[tuple[str, str]]) -> None:
    """Each of them is named once it is gone."""
    engines = open_engines(url, Limits())
    for table, name in wanted:
        with engines.writer.connect() as connection, connection.begin() as transaction:
            for statement in statements(table, name):
                connection.exec_driver_sql(statement)
            assert (table, name) in lost(connection, engines.kind), f"{name} of {table}"
            transaction.rollback()
    engines.dispose()


def test_whatever_is_dropped_on_postgresql_is_named(postgresql_url: str) -> None:
    found_after(postgresql_url, lambda table, name: [f"ALTER TABLE {table} DROP CONSTRAINT {name} CASCADE"], KEYS)
    found_after(postgresql_url, lambda _, name: [f"DROP INDEX {name}"], INDEXES)
    found_after(postgresql_url, lambda table, name: [f"DROP TRIGGER {name} ON {table}"], TRIGGERS)
    in_no_key = [
        (table, name)
        for table, name in NOT_NULL
        if name.removeprefix("NOT NULL of ") not in metadata.tables[table].primary_key.columns
    ]
    found_after(
        postgresql_url,
        lambda table, name: [f"ALTER TABLE {table} ALTER {name.removeprefix('NOT NULL of ')} DROP NOT NULL"],
        in_no_key,
    )


def test_what_is_switched_off_on_postgresql_is_named(postgresql_url: str) -> None:
    found_after(postgresql_url, lambda table, name: [f"ALTER TABLE {table} DISABLE TRIGGER {name}"], TRIGGERS)
    found_after(postgresql_url, lambda table, name: [f"ALTER TABLE {table} ENABLE REPLICA TRIGGER {name}"], TRIGGERS)
    foreign = [("cards", "fk_cards_consents"), ("card_secrets", "fk_card_secrets_cards")]
    found_after(postgresql_url, lambda table, _: [f"ALTER TABLE {table} DISABLE TRIGGER ALL"], foreign)
    found_after(
        postgresql_url,
        lambda table, name: [
            f"ALTER TABLE {table} DROP CONSTRAINT {name}",
            f"ALTER TABLE {table} ADD CONSTRAINT {name} CHECK (true) NOT VALID",
        ],
        [("cards", "ck_cards_last4"), ("grants", "ck_grants_state")],
    )
    # Of one that is not enforced PostgreSQL says that it was not validated.
    found_after(
        postgresql_url, lambda table, name: [f"ALTER TABLE {table} ALTER CONSTRAINT {name} NOT ENFORCED"], foreign
    )
    found_after(
        postgresql_url,
        lambda _, name: [
            "SET LOCAL allow_system_table_mods = on",
            f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{name}'::regclass",
        ],
        [*INDEXES, ("card_secrets", "uq_card_secrets_tenant_id_fingerprint")],
    )


def test_a_server_that_takes_itself_for_a_replica_is_named(postgresql_url: str, postgresql_server: str) -> None:
    name = make_url(postgresql_url).database
    execute_as_admin(postgresql_server, f"ALTER DATABASE {name} SET session_replication_role = replica")
    store = SqlStore(postgresql_url)

    problems = store.weaknesses()

    store.close()
    assert problems == ["PostgreSQL: session_replication_role is replica: triggers and foreign keys do nothing"]


def test_whatever_is_dropped_on_sqlite_is_named(sqlite_url: str) -> None:
    found_after(sqlite_url, lambda _, name: [f"DROP INDEX {name}"], INDEXES)
    found_after(sqlite_url, lambda _, name: [f"DROP TRIGGER {name}"], TRIGGERS_OF_SQLITE)


@pytest.mark.parametrize(
    ("words", "guard"),
    [
        *((f"CONSTRAINT {name} ", (table, name)) for table, name in KEYS),
        ("consent_id TEXT NOT NULL", ("cards", "NOT NULL of consent_id")),
        ("request_sha256 BLOB NOT NULL", ("idempotency", "NOT NULL of request_sha256")),
    ],
)
def test_a_table_that_was_made_anew_without_one_is_named(sqlite_url: str, words: str, guard: tuple[str, str]) -> None:
    raw = sqlite.driver().connect(str(sqlite.path_from(sqlite_url)))
    raw.execute("PRAGMA writable_schema = ON")
    without = words.removesuffix(" NOT NULL") if words.endswith("NOT NULL") else ""
    changed = raw.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, ?, ?) WHERE name = ? AND instr(sql, ?)",
        (words, without, guard[0], words),
    ).rowcount
    raw.commit()
    raw.close()
    store = SqlStore(sqlite_url)

    problems = store.weaknesses()

    store.close()
    assert changed == 1
    table, name = guard
    assert problems == [
        f"SQLite: {name} of {table} is missing or switched off, and what cardvault promises rests on it"
    ]


def test_of_a_database_of_another_release_only_that_is_said(store: SqlStore) -> None:
    with store._engines.writer.connect() as connection, connection.begin():
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
        connection.exec_driver_sql("DROP INDEX uq_grants_open")

    problems = store.weaknesses()

    assert len(problems) == 1
    assert "revision 0001" in problems[0]
