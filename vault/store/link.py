"""One transaction's connection: runs statements and lets no exception of SQLAlchemy or a driver through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Column, Connection
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from vault.domain.errors import StoreUnavailable
from vault.store.columns import Engine
from vault.store.faults import ERROR, UNREADABLE, reason_from_driver, unavailable
from vault.store.given import Given
from vault.store.one_row import OneRow
from vault.store.words import carry_out, row_maker, words_of

T = TypeVar("T")

WORTH_A_TRY = 4
"""Rows from which on SQLite is first asked how many it took, and which only if that is not all."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A statement over rows that are handed to it."""

    statement: Any
    given: Given
    from_json: OneRow | None = None
    """How its rows are read where all come as one."""


def selecting(engine: Engine, statement: Any, given: Given) -> Batch:
    """A SELECT whose rows may come in any order.

    SQLite hands over one row at a time, and at each of them this thread lets others go before it; so there they come as
    a single row that holds them all.
    """
    if engine is Engine.POSTGRESQL:
        return Batch(statement, given)
    one_row = OneRow(statement)
    return Batch(one_row.statement, given, one_row)


@cache
def _one_row(statement: Any) -> OneRow:
    return OneRow(statement)


@dataclass(frozen=True, slots=True)
class Inserting:
    """An INSERT that may pass rows over: `told` returns the `names` of those that it took, `untold` does not."""

    told: Any
    untold: Any
    given: Given
    names: tuple[str, ...]


def telling(insert: tuple[Any, Given], *columns: Column[Any]) -> Inserting:
    """An INSERT by what it tells of the rows that it took; each of these columns must be as it was given."""
    statement, given = insert
    names = tuple(column.name for column in columns)
    return Inserting(statement.returning(*columns), statement.execution_options(preserve_rowcount=True), given, names)


class Link:
    """A connection within a transaction."""

    __slots__ = ("_connection", "engine", "failed")

    def __init__(self, connection: Connection, engine: Engine) -> None:
        self._connection = connection
        self.engine = engine
        self.failed = False
        """True once a statement failed. PostgreSQL would answer COMMIT by rolling back, without an error."""

    def rows(self, statement: Any, parameters: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """The rows that a statement returns, as named tuples."""
        return self._run(lambda: self._read_rows(statement, parameters or {}))

    def plain(self, statement: Any, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """The same as the driver gives them, sooner: for numbers, texts and bytes."""
        return self._run(lambda: self._hand_over(statement, parameters).fetchall())

    def page(self, statement: Any, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """The rows of a SELECT that has many, in any order: see `selecting`."""
        if self.engine is Engine.POSTGRESQL:
            return self.rows(statement, parameters)
        one_row = _one_row(statement)
        return one_row.rows(self.plain(one_row.statement, parameters)[0][0])

    def count(self, statement: Any, parameters: Mapping[str, Any] | None = None) -> int:
        """How many rows an UPDATE or DELETE changed."""
        count: int = self._run(lambda: self._hand_over(statement, parameters or {}).rowcount)
        return count

    def batch_rows(self, batch: Batch, rows: Sequence[Sequence[Any]], **more: Any) -> Sequence[Any]:
        """The rows that a statement returns for the rows given."""
        if not rows:
            return ()
        params = {**batch.given.params(rows), **more}
        if batch.from_json is None:
            return self.rows(batch.statement, params)
        return batch.from_json.rows(self.plain(batch.statement, params)[0][0])

    def batch_plain(self, batch: Batch, rows: Sequence[Sequence[Any]], **more: Any) -> Sequence[Sequence[Any]]:
        """The same as the driver gives them, sooner: for numbers, texts and bytes."""
        return self.plain(batch.statement, {**batch.given.params(rows), **more}) if rows else ()

    def batch_inserted(self, batch: Inserting, rows: Sequence[Sequence[Any]], **more: Any) -> Sequence[Sequence[Any]]:
        """The `names` of each row that an INSERT took."""
        if not rows:
            return ()
        params = {**batch.given.params(rows), **more}
        if (
            self.engine is Engine.SQLITE
            and len(rows) >= WORTH_A_TRY
            and self._took_all(batch.untold, params, len(rows))
        ):
            return [batch.given.named(row, batch.names) for row in rows]
        return self.plain(batch.told, params)

    def batch_count(self, batch: Batch, rows: Sequence[Sequence[Any]], **more: Any) -> int:
        """How many rows an UPDATE or DELETE changed for the rows given; of an INSERT it says nothing."""
        if not rows:
            return 0
        params = {**batch.given.params(rows), **more}
        count: int = self._run(lambda: self._hand_over(batch.statement, params).rowcount)
        return count

    def batch_rows_unless_conflict(self, batch: Batch, rows: Sequence[Sequence[Any]]) -> Sequence[Any] | None:
        """As `batch_rows`; None where a key refused a row: then the statement has no effect, and work goes on."""
        if not rows:
            return ()

        def attempt() -> Sequence[Any] | None:
            try:
                with self._connection.begin_nested():
                    return self._connection.execute(batch.statement, batch.given.params(rows)).all()
            except IntegrityError:
                return None

        return self._run(attempt)

    def _took_all(self, statement: Any, params: Mapping[str, Any], count: int) -> bool:
        """Whether the INSERT took as many rows; if not, it has no effect."""

        def attempt() -> bool:
            driver = self._driver
            carry_out(driver, "SAVEPOINT attempt")
            took_all = bool(self._hand_over(statement, params).rowcount == count)
            if not took_all:
                carry_out(driver, "ROLLBACK TO attempt")
            carry_out(driver, "RELEASE attempt")
            return took_all

        return self._run(attempt)

    @property
    def _driver(self) -> Any:
        return self._connection.connection.driver_connection

    def _hand_over(self, statement: Any, params: Mapping[str, Any]) -> Any:
        """Carry a statement out; a cursor, whose rows are as the driver gives them."""
        words = words_of(statement, self._connection.dialect)
        if words is None:
            return self._connection.execute(statement, params)
        return carry_out(self._driver, words.text, words.values(params))

    def _read_rows(self, statement: Any, params: Mapping[str, Any]) -> Sequence[Any]:
        words = words_of(statement, self._connection.dialect)
        if words is not None:
            return words.rows(carry_out(self._driver, words.text, words.values(params)).fetchall())
        found = self._connection.execute(statement, params)
        return list(map(row_maker(tuple(found.keys())), found.all()))

    def read(self, convert: Callable[[Any], T], rows: Iterable[Any]) -> list[T]:
        """Rows as what they stand for. Raises `StoreUnavailable` where one is nothing that this release knows."""
        with suppress(ValueError, TypeError, AttributeError, OverflowError):
            return [convert(row) for row in rows]
        self.failed = True
        raise StoreUnavailable(UNREADABLE)

    @property
    def locks_rows(self) -> bool:
        """Whether rows have locks of their own; SQLite has one writer instead."""
        return self.engine is Engine.POSTGRESQL

    def _run(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except SQLAlchemyError as error:
            failure = unavailable(error)
        except self._connection.dialect.loaded_dbapi.Error as error:
            failure = StoreUnavailable(reason_from_driver(error, is_gone=self._is_gone(error)))
        except Exception:  # noqa: BLE001 - such as a text or a time that cannot be handed over, which it may hold
            failure = StoreUnavailable(ERROR)
        except BaseException:
            # Ctrl-C: who knows what the connection was about.
            self.failed = True
            self._connection.invalidate()
            raise
        # Raised out here, so that the driver's exception, whose text shows key values, is not its context.
        self.failed = True
        raise failure

    def _is_gone(self, error: Any) -> bool:
        """Whether the connection was lost; then it is not used again."""
        is_gone = self._connection.dialect.is_disconnect(error, self._driver, None)
        if is_gone:
            with suppress(SQLAlchemyError):
                # So that SQLAlchemy notices, too: what is in its pool was most likely lost with this one.
                self._connection.exec_driver_sql("SELECT 1")
            self._connection.invalidate(error)
        return is_gone
