"""What the database itself enforces: keys, foreign keys, checks, and triggers that keep the ledger and the log.

Single use, idempotency, "no card without a consent" and "no effect without an event" rest on these alone. A restore
without them, a trigger that somebody switched off and forgot, an index that was left invalid: nothing would fail, and
the promises would be gone. So a server looks before it starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sqlalchemy import Connection, Table

from vault.store.columns import Engine
from vault.store.tables import metadata

_APPEND_ONLY = ("audit_checkpoints", "audit_events", "audit_leaves", "audit_nodes", "consents")
"""Tables that take new rows and nothing else."""

Guard = tuple[str, str]
"""Table and name; of a column that must not be null, the name of `_not_null`."""

_NAMED = re.compile(r"\bCONSTRAINT (\w+) ")

_IN_FORCE_ON_POSTGRESQL = """
WITH ours AS (SELECT oid, relname FROM pg_class WHERE relkind IN ('r', 'p') AND pg_table_is_visible(oid))
SELECT ours.relname, c.conname FROM pg_constraint c JOIN ours ON ours.oid = c.conrelid
WHERE c.contype IN ('c', 'f') AND c.convalidated
AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgconstraint = c.oid AND t.tgenabled NOT IN ('O', 'A'))
UNION ALL
SELECT ours.relname, i.relname FROM pg_index x JOIN ours ON ours.oid = x.indrelid
JOIN pg_class i ON i.oid = x.indexrelid
WHERE x.indisunique AND x.indisvalid
UNION ALL
SELECT ours.relname, t.tgname FROM pg_trigger t JOIN ours ON ours.oid = t.tgrelid
WHERE NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
UNION ALL
SELECT ours.relname, 'NOT NULL of ' || a.attname FROM pg_attribute a JOIN ours ON ours.oid = a.attrelid
WHERE a.attnum > 0 AND a.attnotnull
"""

_TABLES_OF_SQLITE = "SELECT name, sql FROM sqlite_schema WHERE type = 'table'"
_IN_FORCE_ON_SQLITE = """
SELECT tbl_name, name FROM sqlite_schema WHERE type = 'trigger' OR (type = 'index' AND sql LIKE 'CREATE UNIQUE %')
UNION ALL
SELECT s.name, 'NOT NULL of ' || c.name FROM sqlite_schema s JOIN pragma_table_info(s.name) c
WHERE s.type = 'table' AND c."notnull"
"""


def expected(engine: Engine) -> frozenset[Guard]:
    """All that the migrations make."""
    return frozenset(guard for table in metadata.sorted_tables for guard in _of(table, engine))


def missing(connection: Connection, engine: Engine) -> list[str]:
    """Each guard that is not there or not in force, in words."""
    lost = expected(engine) - _in_force(connection, engine)
    name = "SQLite" if engine is Engine.SQLITE else "PostgreSQL"
    return [
        f"{name}: {guard} of {table} is missing or switched off, and what cardvault promises rests on it"
        for table, guard in sorted(lost)
    ]


def _of(table: Table, engine: Engine) -> Iterator[Guard]:
    yield from ((table.name, _not_null(column.name)) for column in table.columns if not column.nullable)
    yield from ((table.name, str(constraint.name)) for constraint in table.constraints)
    yield from ((table.name, str(index.name)) for index in table.indexes if index.unique)
    if table.name in _APPEND_ONLY:
        verbs = ("no_update", "no_delete") if engine is Engine.SQLITE else ("append_only",)
        yield from ((table.name, f"{table.name}_{verb}") for verb in verbs)
    if table.name == "audit_events":
        yield table.name, "audit_events_queued"


def _not_null(column: str) -> str:
    return f"NOT NULL of {column}"


def _in_force(connection: Connection, engine: Engine) -> frozenset[Guard]:
    if engine is Engine.POSTGRESQL:
        return frozenset((table, name) for table, name in connection.exec_driver_sql(_IN_FORCE_ON_POSTGRESQL))
    found = {(table, name) for table, name in connection.exec_driver_sql(_IN_FORCE_ON_SQLITE)}
    for table, sql in connection.exec_driver_sql(_TABLES_OF_SQLITE):
        found |= {(table, name) for name in _NAMED.findall(sql)}
    return frozenset(found)
