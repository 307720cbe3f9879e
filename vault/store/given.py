"""Rows handed to one statement as a table: one array a column on PostgreSQL, one JSON document on SQLite.

So the text of a statement is the same for one row and for two hundred: it is compiled and prepared once, no limit on
parameters applies, and a whole batch is one statement.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    FromClause,
    LargeBinary,
    Table,
    Text,
    bindparam,
    column,
    func,
    select,
    true,
    type_coerce,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import TypeEngine

from vault.store.columns import CanonicalJson, Engine, UtcTime, to_canonical_json, to_micros


def _array_item(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    # The column's own collation decides comparisons; an array of plain text leaves it to do so.
    return Text() if isinstance(kind, Text) else kind


def _json_item(kind: TypeEngine[Any]) -> Callable[[Any], Any] | None:
    if isinstance(kind, UtcTime):
        return to_micros
    if isinstance(kind, LargeBinary):
        return bytes.hex
    if isinstance(kind, CanonicalJson):
        return to_canonical_json
    return None


class Given:
    """A table made of parameters, with the names and types of the given columns."""

    def __init__(self, engine: Engine, columns: Sequence[Column[Any]]) -> None:
        self._engine = engine
        self._names = [c.name for c in columns]
        if engine is Engine.POSTGRESQL:
            arrays = [bindparam(f"given_{c.name}", type_=ARRAY(_array_item(c.type))) for c in columns]
            typed = [column(c.name, _array_item(c.type)) for c in columns]
            self.rows: FromClause = func.unnest(*arrays).table_valued(*typed, name="given").render_derived()
        else:
            self._writers = [_json_item(c.type) for c in columns]
            items = func.json_each(bindparam("given", type_=Text())).table_valued("value", name="item")
            self.rows = select(*(self._from_json(items.c.value, i, c) for i, c in enumerate(columns))).subquery("given")

    @staticmethod
    def _from_json(value: ColumnElement[Any], index: int, target: Column[Any]) -> ColumnElement[Any]:
        extracted: ColumnElement[Any] = func.json_extract(value, f"$[{index}]")
        if isinstance(target.type, LargeBinary):
            extracted = func.unhex(extracted)
        return type_coerce(extracted, target.type).label(target.name)

    @property
    def c(self) -> Any:
        """The columns."""
        return self.rows.c

    def params(self, rows: Iterable[Sequence[Any]]) -> dict[str, Any]:
        """The parameters that carry these rows; each row has its values in the order of the columns."""
        if self._engine is Engine.POSTGRESQL:
            listed = list(zip(*rows, strict=True)) or [()] * len(self._names)
            return {f"given_{name}": list(values) for name, values in zip(self._names, listed, strict=True)}
        written = [
            [write(v) if write and v is not None else v for write, v in zip(self._writers, row, strict=True)]
            for row in rows
        ]
        return {"given": json.dumps(written, separators=(",", ":"))}


def inserting(engine: Engine, table: Table) -> tuple[Any, Given]:
    """An INSERT of many rows with values for every column, to be refined with ON CONFLICT or RETURNING."""
    columns = list(table.columns)
    given = Given(engine, columns)
    insert: Callable[..., Any] = postgresql.insert if engine is Engine.POSTGRESQL else sqlite.insert
    # Without a WHERE SQLite takes the ON of ON CONFLICT for a join's.
    source = select(*(given.c[c.name] for c in columns)).where(true())
    return insert(table).from_select([c.name for c in columns], source, include_defaults=False), given


def row_of(table: Table, values: Mapping[str, Any]) -> list[Any]:
    """The values in the order of the table's columns; columns that are not named are null."""
    return [values.get(c.name) for c in table.columns]
