"""Rows handed to one statement as a table: one JSON document, which the database takes apart.

So the text of a statement is the same for one row and for two hundred: it is compiled and prepared once, no limit on
parameters applies, and a whole batch is one statement.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import orjson
from sqlalchemy import (
    Column,
    ColumnElement,
    FromClause,
    LargeBinary,
    Table,
    Text,
    bindparam,
    cast,
    func,
    literal_column,
    select,
    true,
    type_coerce,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeEngine

from vault.store.columns import CanonicalJson, Engine, UtcTime, to_canonical_json, to_iso, to_micros

_any_text = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


GIVEN = "given"
"""Name of the parameter that carries rows."""


def _dumps(rows: list[list[Any]]) -> str:
    try:
        return orjson.dumps(rows).decode()
    except TypeError:
        # Text that is no valid Unicode: somebody wrote it past us, and it is to be named as it is.
        return _any_text(rows)


def _hex(value: bytes) -> str:
    return "\\x" + value.hex()  # as PostgreSQL reads a bytea


_WRITERS: dict[Engine, tuple[tuple[type[TypeEngine[Any]], Callable[[Any], Any]], ...]] = {
    Engine.POSTGRESQL: ((UtcTime, to_iso), (LargeBinary, _hex), (CanonicalJson, to_canonical_json)),
    Engine.SQLITE: ((UtcTime, to_micros), (LargeBinary, bytes.hex), (CanonicalJson, to_canonical_json)),
}


def _from_json(value: ColumnElement[Any], index: int, target: Column[Any]) -> ColumnElement[Any]:
    extracted: ColumnElement[Any] = func.json_extract(value, literal_column(f"'$[{index}]'"))
    if isinstance(target.type, LargeBinary):
        extracted = func.unhex(extracted)
    return type_coerce(extracted, target.type)


def _from_jsonb(value: ColumnElement[Any], index: int, target: Column[Any]) -> ColumnElement[Any]:
    text = value.op("->>", return_type=Text())(literal_column(str(index)))
    # Plain text has no collation of its own to argue with that of the column it is compared with.
    if isinstance(target.type, Text | CanonicalJson):
        return type_coerce(text, Text() if isinstance(target.type, Text) else target.type)
    return cast(text, target.type)


class Given:
    """A table made of one parameter, with the names and types of the given columns."""

    def __init__(self, engine: Engine, columns: Sequence[Column[Any]]) -> None:
        self._names = tuple(c.name for c in columns)
        self._writers = tuple(
            (index, write)
            for index, c in enumerate(columns)
            for kind, write in _WRITERS[engine]
            if isinstance(c.type, kind)
        )
        document = bindparam(GIVEN, type_=Text())
        # Both in binary form, taken apart once: as text, a row would be read again for each of its columns.
        if engine is Engine.POSTGRESQL:
            items = func.jsonb_array_elements(cast(document, postgresql.JSONB)).table_valued("value", name="item")
            value_of = _from_jsonb
        else:
            items = func.jsonb_each(document).table_valued("value", name="item")
            value_of = _from_json
        rows = select(*(value_of(items.c.value, i, c).label(c.name) for i, c in enumerate(columns)))
        if engine is Engine.POSTGRESQL:
            # True of every row. PostgreSQL takes any document for a hundred rows, and would rather read a whole table
            # once than look up a hundred; that a condition like this leaves but one of them is its guess, too.
            rows = rows.where(func.jsonb_typeof(items.c.value) == literal_column("'array'"))
        self.rows: FromClause = rows.subquery("given")

    @property
    def c(self) -> Any:
        """The columns."""
        return self.rows.c

    def named(self, row: Sequence[Any], names: Sequence[str]) -> Sequence[Any]:
        """The values of a row under these names."""
        return [row[self._names.index(name)] for name in names]

    def params(self, rows: Iterable[Sequence[Any]]) -> dict[str, str]:
        """The parameter that carries these rows; each row has its values in the order of the columns."""
        written: list[Any] = []
        for row in rows:
            values = list(row)
            for index, write in self._writers:
                if values[index] is not None:
                    values[index] = write(values[index])
            written.append(values)
        return {GIVEN: _dumps(written)}


def inserting(engine: Engine, table: Table) -> tuple[Any, Given]:
    """An INSERT of many rows with values for every column, to be refined with ON CONFLICT or RETURNING."""
    columns = list(table.columns)
    given = Given(engine, columns)
    insert: Callable[..., Any] = postgresql.insert if engine is Engine.POSTGRESQL else sqlite.insert
    # Without a WHERE SQLite takes the ON of ON CONFLICT for a join's.
    source = select(*(given.c[c.name] for c in columns)).where(true())
    return insert(table).from_select([c.name for c in columns], source, include_defaults=False), given


@cache
def _empty_row(table: Table) -> dict[str, Any]:
    return dict.fromkeys(c.name for c in table.columns)


def row_of(table: Table, values: Mapping[str, Any]) -> list[Any]:
    """The values in the order of the table's columns; columns that are not named are null."""
    return list({**_empty_row(table), **values}.values())
