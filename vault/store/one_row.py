"""All rows of a SELECT as one row of JSON, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Boolean, ColumnElement, LargeBinary, case, cast, func, literal_column, null, select
from sqlalchemy.types import TypeEngine

from vault.store.columns import CanonicalJson, UtcTime, from_canonical_json, from_json, from_micros
from vault.store.words import row_maker

_READERS: tuple[tuple[type[TypeEngine[Any]], Callable[[Any], Any]], ...] = (
    (UtcTime, from_micros),
    (LargeBinary, bytes.fromhex),
    (CanonicalJson, from_canonical_json),
    (Boolean, bool),
)


class OneRow:
    """A SELECT of SQLite in another form; `rows` are as the SELECT itself would give them, in any order."""

    def __init__(self, statement: Any) -> None:
        found = statement.subquery("found")
        columns = list(found.c)
        document = func.json_group_array(func.json_array(*map(as_json, columns)))
        # As bytes: text that is no UTF-8 would keep the driver from reading any of it.
        self.statement = select(cast(document, LargeBinary))
        self._make_row = row_maker(tuple(column.key for column in columns))
        self._readers = [
            (place, read)
            for place, column in enumerate(columns)
            for kind, read in _READERS
            if isinstance(column.type, kind)
        ]

    def rows(self, document: bytes) -> Sequence[Any]:
        """The rows that the statement's one row holds; None for a value that is not of its column's kind.

        Text that is no UTF-8 comes with a surrogate for each of its odd bytes.
        """
        rows = from_json(document)
        for row in rows:
            for place, read in self._readers:
                if row[place] is not None:
                    row[place] = _read(read, row[place])
        return list(map(self._make_row, rows))


def _read(read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except (TypeError, ValueError, OverflowError):
        return None  # somebody else wrote it; the rows beside it are as good as ever


def as_json(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """A column as JSON may hold it: bytes in hexadecimal, and null for bytes that somebody put where none belong.

    SQLite would refuse most of those for all rows, and take some for JSON that it has no need to quote.
    """
    if isinstance(column.type, LargeBinary):
        return case((column.is_(None), null()), else_=func.hex(column))
    return case((func.typeof(column) == literal_column("'blob'"), null()), else_=column)
