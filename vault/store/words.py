"""Statements as the driver takes them and rows as it gives them, past SQLAlchemy's execution of them.

SQLAlchemy writes each statement once. What it does each time one is carried out costs as much as a small statement
does, and a call that is alone makes ten. Its rows take ten times as long to say a value by its name as a named tuple.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Dialect


class Words:
    """A statement in the words of one database, and how its parameters are handed over."""

    __slots__ = ("_fixed", "_make_row", "_order", "_readers", "_writers", "text")

    def __init__(self, statement: Any, compiled: Any, dialect: Dialect) -> None:
        self.text = str(compiled)
        self._order: tuple[str, ...] | None = tuple(compiled.positiontup) if compiled.positional else None
        self._fixed: dict[str, Any] = {}
        self._writers: dict[str, Callable[[Any], Any]] = {}
        for parameter, name in compiled.bind_names.items():
            if not parameter.required:
                self._fixed[name] = compiled.params[name]
            write = parameter.type.dialect_impl(dialect).bind_processor(dialect)
            if write is not None:
                self._writers[name] = write
        columns = list(statement.exported_columns)
        self._make_row = row_maker(tuple(column.key for column in columns))
        processors = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        self._readers = [(place, read) for place, read in enumerate(processors) if read is not None]

    def values(self, parameters: Mapping[str, Any]) -> Any:
        """The parameters in their order or by their names, as this database takes them.

        Raises `KeyError` for one that is missing on SQLite; psycopg refuses the statement.
        """
        values = {**self._fixed, **parameters}
        for name, write in self._writers.items():
            values[name] = write(values[name])
        return values if self._order is None else [values[name] for name in self._order]

    def rows(self, found: Iterable[Sequence[Any]]) -> Sequence[Any]:
        """The driver's rows as named tuples of what their columns mean."""
        readers = self._readers
        if not readers:
            return list(map(self._make_row, found))
        rows: list[Any] = []
        for row in found:
            values = list(row)
            for place, read in readers:
                values[place] = read(values[place])
            rows.append(self._make_row(values))
        return rows


@lru_cache(maxsize=512)
def row_maker(names: tuple[str, ...]) -> Callable[[Iterable[Any]], Any]:
    """Makes named tuples; what has no name is only to be had by its place."""
    kind: Any = namedtuple
    made: Callable[[Iterable[Any]], Any] = kind("Row", names, rename=True)._make
    return made


@lru_cache(maxsize=512)
def words_of(statement: Any, dialect: Dialect) -> Words | None:
    """None where the text depends on the parameters, or their names on the text, or nobody knows the columns."""
    if not hasattr(statement, "exported_columns"):
        return None
    compiled: Any = statement.compile(dialect=dialect)
    is_open = compiled.literal_execute_params or compiled.post_compile_params or compiled.escaped_bind_names
    return None if is_open else Words(statement, compiled, dialect)


def carry_out(driver: Any, text: str, values: Any = ()) -> Any:
    """Have a connection of the driver carry it out; its cursor."""
    return driver.execute(text, values)
