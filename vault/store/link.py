"""One transaction's connection: runs statements and lets no exception of SQLAlchemy or a driver through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Row
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from vault.domain.errors import StoreUnavailable
from vault.store.columns import Engine
from vault.store.faults import unavailable
from vault.store.given import Given

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch:
    """A statement over rows that are handed to it."""

    statement: Any
    given: Given


class Link:
    """A connection within a transaction."""

    __slots__ = ("_connection", "engine", "failed")

    def __init__(self, connection: Connection, engine: Engine) -> None:
        self._connection = connection
        self.engine = engine
        self.failed = False
        """True once a statement failed. PostgreSQL would answer COMMIT by rolling back, without an error."""

    def rows(self, statement: Any, parameters: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        """The rows that a statement returns."""
        return self._run(lambda: self._connection.execute(statement, parameters or {}).all())

    def count(self, statement: Any, parameters: Mapping[str, Any] | None = None) -> int:
        """How many rows an UPDATE or DELETE changed."""
        return self._run(lambda: self._connection.execute(statement, parameters or {}).rowcount)

    def batch_rows(self, batch: Batch, rows: Sequence[Sequence[Any]], **more: Any) -> Sequence[Row[Any]]:
        """The rows that a statement returns for the rows given."""
        return self.rows(batch.statement, {**batch.given.params(rows), **more}) if rows else ()

    def batch_count(self, batch: Batch, rows: Sequence[Sequence[Any]], **more: Any) -> int:
        """How many rows an UPDATE or DELETE changed for the rows given; of an INSERT it says nothing."""
        return self.count(batch.statement, {**batch.given.params(rows), **more}) if rows else 0

    def batch_rows_unless_conflict(self, batch: Batch, rows: Sequence[Sequence[Any]]) -> Sequence[Row[Any]] | None:
        """As `batch_rows`; None where a key refused a row: then the statement has no effect, and work goes on."""
        if not rows:
            return ()

        def attempt() -> Sequence[Row[Any]] | None:
            try:
                with self._connection.begin_nested():
                    return self._connection.execute(batch.statement, batch.given.params(rows)).all()
            except IntegrityError:
                return None

        return self._run(attempt)

    @property
    def locks_rows(self) -> bool:
        """Whether rows have locks of their own; SQLite has one writer instead."""
        return self.engine is Engine.POSTGRESQL

    def _run(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except SQLAlchemyError as error:
            failure: StoreUnavailable = unavailable(error)
        # Raised out here, so that the driver's exception, whose text shows key values, is not its context.
        self.failed = True
        raise failure
