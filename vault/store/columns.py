"""Column types that mean the same on both engines, and the engines themselves by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any

import orjson
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    Select,
    Text,
    literal,
    literal_column,
    select,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False).encode


class Engine(StrEnum):
    """The databases that cardvault runs on; the values are SQLAlchemy's dialect names."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


@lru_cache(maxsize=64)  # all rows of a batch have the same few times
def to_micros(moment: datetime) -> int:
    """Microseconds since 1970, exactly. Refuses a time without a zone."""
    if moment.tzinfo is None:
        raise ValueError("a stored time needs its zone")
    return (moment - _EPOCH) // _MICROSECOND


@lru_cache(maxsize=64)
def to_iso(moment: datetime) -> str:
    """As PostgreSQL reads it. Refuses a time without a zone."""
    if moment.tzinfo is None:
        raise ValueError("a stored time needs its zone")
    return moment.isoformat()


def from_micros(micros: int) -> datetime:
    """What `to_micros` wrote."""
    return _EPOCH + timedelta(microseconds=micros)


def from_iso(text: str) -> datetime:
    """How PostgreSQL writes a time into JSON. Raises `ValueError` for one that no Python has, such as infinity."""
    return datetime.fromisoformat(text).astimezone(UTC)


def from_json(document: str | bytes) -> Any:
    """What a database made. Text that is no UTF-8 comes with a surrogate for each of its odd bytes."""
    try:
        return orjson.loads(document)
    except ValueError:
        # Somebody wrote it past us: the rows beside it are as good as ever.
        text = document if isinstance(document, str) else document.decode("utf-8", "surrogateescape")
        return json.loads(text)


def to_canonical_json(facts: Mapping[str, str | int]) -> str:
    """One text for one mapping: sorted keys, no spaces, ASCII."""
    try:
        text = orjson.dumps(facts, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError:
        return _encode(dict(facts))
    # Of printable ASCII alone both write the same; the rest only this one escapes.
    return text if text.isascii() and text.isprintable() else _encode(dict(facts))


def from_canonical_json(text: Any) -> Mapping[str, str | int] | None:
    """What `to_canonical_json` wrote; None for anything else."""
    try:
        facts: Any = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None  # somebody else wrote it; who reads it must not stumble over one row
    return facts if isinstance(facts, dict) else None


class UtcTime(TypeDecorator[datetime]):
    """An instant: `timestamptz` on PostgreSQL, microseconds since 1970 on SQLite; always aware UTC in Python."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The column's type on this engine."""
        chosen: TypeEngine[Any] = BigInteger() if dialect.name == Engine.SQLITE else DateTime(timezone=True)
        return dialect.type_descriptor(chosen)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """From Python to the database."""
        if value is None:
            return None
        micros = to_micros(value)
        return micros if dialect.name == Engine.SQLITE else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """From the database to Python."""
        if value is None:
            return None
        if dialect.name == Engine.SQLITE:
            return from_micros(value)
        moment: datetime = value
        return moment.astimezone(UTC)


class CanonicalJson(TypeDecorator[Mapping[str, str | int]]):
    """A flat mapping as canonical JSON text: the same bytes on both engines, so that it can be hashed."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Mapping[str, str | int] | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """From Python to the database."""
        return None if value is None else to_canonical_json(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Mapping[str, str | int] | None:  # noqa: ARG002
        """From the database to Python."""
        return None if value is None else from_canonical_json(value)


def identifier() -> TypeEngine[str]:
    """Text that is compared and ordered by its bytes, as Python does, whatever the database's locale."""
    return Text().with_variant(Text(collation="C"), "postgresql")


FIRST_TIME = datetime(1, 1, 2, tzinfo=UTC)
LAST_TIME = datetime(9999, 12, 30, tzinfo=UTC)
"""What Python can read, whatever the database's time zone; a database knows times before and after, and none at all."""


def is_readable_time(column: Column[Any]) -> ColumnElement[bool]:
    """Whether reading this time cannot fail, and with it the reading of every row beside it."""
    return column.between(literal(FIRST_TIME, UtcTime()), literal(LAST_TIME, UtcTime()))


def found_once(statement: Select[Any]) -> Select[Any]:
    """A query that PostgreSQL carries out once, and its limit holds.

    Inside `IN (…)` it may be repeated for every row; each time it would skip what is locked by now, and find others.
    """
    return select(*statement.cte("found_once").c)


def unindexed(engine: Engine, column: Column[Any]) -> ColumnElement[Any]:
    """A column that no index is chosen by, where its name alone might lead to reading all that is open.

    SQLite cannot know how few rows it is given. PostgreSQL thinks that nothing is open where nothing was when it last
    counted, and of few rows that it may as well look at all; there it is texts and times that are hidden.
    """
    name = f"{column.table.name}.{column.name}"
    if engine is Engine.SQLITE:
        return literal_column(f"+{name}", column.type)
    return literal_column(
        f"({name} + interval '0')" if isinstance(column.type, UtcTime) else f"({name} || '')", column.type
    )
