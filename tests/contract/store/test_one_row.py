"""A SELECT whose rows come as one row of JSON gives what it gives row by row."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    create_engine,
    insert,
    select,
    text,
)

from vault.store import sqlite
from vault.store.columns import CanonicalJson, UtcTime
from vault.store.one_row import OneRow

THINGS = Table(
    "things",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("name", Text),
    Column("raw", LargeBinary),
    Column("at", UtcTime),
    Column("facts", CanonicalJson),
    Column("flag", Boolean),
    Column("big", BigInteger),
)
MOMENT = datetime(2026, 6, 15, 12, 0, 0, 123_457, UTC)
ROWS: list[dict[str, Any]] = [
    {"name": 'a "quoted" \\ name\nand \x01 more', "raw": bytes(range(256)), "at": MOMENT, "facts": {"a": 1, "b": "ü"}},
    {"name": "•••• 🂡", "raw": b"", "at": datetime(1, 1, 1, tzinfo=UTC), "facts": {}, "flag": True, "big": 2**63 - 1},
    {"name": "", "flag": False, "big": -(2**63)},
    {},
]


@pytest.fixture
def things() -> Iterator[Connection]:
    engine = create_engine("sqlite://", module=sqlite.driver())
    with engine.connect() as connection:
        THINGS.create(connection)
        for number, row in enumerate(ROWS):
            connection.execute(insert(THINGS), {"id": number, **row})
        yield connection
    engine.dispose()


def _both_ways(connection: Connection, statement: Any) -> tuple[list[Any], list[Any]]:
    one_row = OneRow(statement)
    by_row = sorted(map(tuple, connection.execute(statement)))
    return by_row, sorted(map(tuple, one_row.rows(connection.execute(one_row.statement).scalar_one())))


def test_every_kind_of_value_comes_through(things: Connection) -> None:
    by_row, at_once = _both_ways(things, select(THINGS))

    assert at_once == by_row
    assert [list(map(type, row)) for row in at_once] == [list(map(type, row)) for row in by_row]
    assert len(at_once) == len(ROWS)


def test_columns_are_known_by_their_labels(things: Connection) -> None:
    one_row = OneRow(select(THINGS.c.id.label("number"), (THINGS.c.name == "").label("is_empty")))

    found = one_row.rows(things.execute(one_row.statement).scalar_one())

    assert {row.number: row.is_empty for row in found} == {0: False, 1: False, 2: True, 3: None}


def test_no_rows_are_no_rows(things: Connection) -> None:
    assert _both_ways(things, select(THINGS).where(THINGS.c.id < 0)) == ([], [])


FORGED = b'6","00"],[99,"forged",1,"ff"],[2,"b","'
ODD = {
    "no text": b"\xff\x00",
    "JSON as SQLite packs it: null": b"\x00",
    "JSON as SQLite packs it: a quotation mark": b'\x17"',
    "JSON as SQLite packs it: more rows": bytes([0xC7, len(FORGED)]) + FORGED,
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("column", ["name", "at", "facts", "flag", "big"])
def test_what_somebody_else_wrote_does_not_spoil_the_rows_beside_it(
    column: str, odd: bytes, things: Connection
) -> None:
    expected = {row.id: row for row in _found(things)}
    things.execute(text(f"UPDATE things SET {column} = :odd WHERE id = 0"), {"odd": odd})

    found = {row.id: row for row in _found(things)}

    assert getattr(found[0], column) is None
    assert {number: row for number, row in found.items() if number} == {n: row for n, row in expected.items() if n}


def test_a_value_of_another_kind_is_none(things: Connection) -> None:
    things.execute(text("UPDATE things SET at = 'yesterday', raw = 5, facts = '[1]' WHERE id = 0"))

    assert {row.at for row in _found(things) if row.id == 0} == {None}


def _found(connection: Connection) -> list[Any]:
    one_row = OneRow(select(THINGS))
    return list(one_row.rows(connection.execute(one_row.statement).scalar_one()))
