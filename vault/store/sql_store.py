"""The store: transactions over a database, and what must be true of that database before it is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from time import monotonic
from typing import Any

import sqlalchemy
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from vault.domain.errors import StoreUnavailable
from vault.ports_operator import Compacted
from vault.ports_telemetry import FAILED, READ, ROLLED_BACK, UNWATCHED, WRITE, Telemetry
from vault.store import compaction, exclusive, guards, postgresql, schema, sqlite
from vault.store.columns import Engine
from vault.store.engine import Engines, Limits, open_engines
from vault.store.faults import COMMIT_UNKNOWN, ERROR, POOLED, UNREACHABLE, reason_for_commit, unavailable
from vault.store.link import Link
from vault.store.operators import SqlOperatorReader, SqlOperatorWriter

_PROBE = "cardvault.probe"
COMPACTED_UP_TO = 64 << 20
"""Bytes of an SQLite file up to which a server writes it anew by itself."""
COMPACTED_EVERY = 3600.0
"""Seconds."""


class _NoTrace(Exception):
    """Rolls the probe's transaction back."""


class SqlStore:
    """Implements `ports.Store` and `ports_operator.OperatorStore` on SQLite and PostgreSQL.

    It never asks the database for the time.
    """

    def __init__(self, url: str, *, limits: Limits | None = None, telemetry: Telemetry = UNWATCHED) -> None:
        """Connects on first use. Raises `vault.store.DatabaseRefused` for a URL or driver that cannot work."""
        self._url = url
        self._limits = limits or Limits()
        self._telemetry = telemetry
        self._engines: Engines = open_engines(url, self._limits)
        self._wal_holds_erased = False
        self._erased_when_compacted = 0
        self._compact_after = 0.0

    @property
    def kind(self) -> Engine:
        """Which database it is."""
        return self._engines.kind

    @contextmanager
    def reading(self) -> Iterator[SqlOperatorReader]:
        """A snapshot to read from. The database itself refuses to write in it."""
        with _watched(self._telemetry, READ):
            connection = self._begin(self._engines.reader)
            try:
                yield SqlOperatorReader(Link(connection, self.kind))
                # There is nothing to keep, but at ROLLBACK psycopg forgets every statement that it had prepared.
                with suppress(SQLAlchemyError):
                    connection.commit()
            finally:
                _end(connection)

    @contextmanager
    def writing(self) -> Iterator[SqlOperatorWriter]:
        """One transaction: commits when the block ends, rolls back when it raises."""
        with _watched(self._telemetry, WRITE), self._writing() as tx:
            yield tx

    @contextmanager
    def _writing(self) -> Iterator[SqlOperatorWriter]:
        connection = self._begin(self._engines.writer)
        link = Link(connection, self.kind)
        tx = SqlOperatorWriter(link)
        try:
            yield tx
            tx.require_evidence()
            if link.failed:
                # The block swallowed a failure. What is left of the transaction is not what was meant.
                raise StoreUnavailable(ERROR)
        except BaseException:
            _end(connection)
            raise
        self._commit(connection)
        if tx.erased:
            self._wal_holds_erased = True
        if self._wal_holds_erased:
            self._clear_wal()

    def exclusively(self, what: str) -> AbstractContextManager[None]:
        """Hold a lock of this name across processes and hosts while the block runs; gone when the process dies.

        Raises `Busy` at once if another holds it, and `StoreUnavailable('lock_lost')` at the end if it was lost.
        """
        return exclusive.held(self._url, self._limits, what)

    def check(self) -> None:
        """Prove that a write would work, without leaving a trace."""
        with suppress(_NoTrace), self.writing() as tx:
            tx.put_setting(_PROBE, "")
            raise _NoTrace

    def weaknesses(self) -> list[str]:
        """Every setting that makes this database unsafe, and a schema that does not fit; empty if all is well.

        Raises `StoreUnavailable` if it cannot be reached.
        """
        try:
            connection = self._begin(self._engines.writer)
        except StoreUnavailable as e:
            if e.reason == POOLED:
                return [postgresql.POOLER]
            raise
        try:
            if self.kind is Engine.SQLITE:
                found = sqlite.weaknesses(connection, sqlite.path_from(self._url))
            else:
                found = postgresql.weaknesses(connection)
            mismatch = schema.mismatch(connection)
            found += [mismatch] if mismatch else guards.missing(connection, self.kind)
        except SQLAlchemyError as error:
            failure = unavailable(error)
        else:
            return found
        finally:
            _end(connection)
        raise failure

    def tidy(self) -> None:
        """Let what was overwritten since the last time leave SQLite's files; nothing to do on PostgreSQL.

        A small database is also compacted, an hour after the last time at the earliest, if cards were erased since.
        """
        self._clear_wal()
        if self.kind is not Engine.SQLITE or monotonic() < self._compact_after:
            return
        try:
            with self.reading() as tx:
                erased = tx.count_erased()
        except StoreUnavailable:
            return
        is_small = self.compacts_by_itself(sqlite.path_from(self._url).stat().st_size)
        if erased != self._erased_when_compacted and is_small and self.compact():
            self._erased_when_compacted = erased
            self._compact_after = monotonic() + COMPACTED_EVERY
            # For those who look whether the file of a database that has grown since is due.
            with suppress(StoreUnavailable), self.writing() as tx:
                tx.note_compacted(erased)

    def compact(self) -> bool:
        """Write SQLite's file anew (`VACUUM`), so that no copy is left of what was moved before it was erased.

        SQLite overwrites what it deletes, but not the place that a row left when its page was split. Nobody else writes
        meanwhile: about 0.2 s for 50 MB. A reader that began before keeps what was there in the write-ahead log until
        it ends and `tidy` clears that. False where somebody else was writing, and on PostgreSQL.
        """
        if self.kind is not Engine.SQLITE:
            return False
        with suppress(SQLAlchemyError, sqlite.driver().Error):
            raw: Any = self._engines.writer.raw_connection()
            try:
                raw.driver_connection.execute("VACUUM").close()
            finally:
                raw.close()
            self._wal_holds_erased = True
            self._clear_wal()
            return True
        return False

    def file_size(self) -> int | None:
        """Bytes of SQLite's file without its log; None on PostgreSQL."""
        if self.kind is not Engine.SQLITE:
            return None
        try:
            return sqlite.path_from(self._url).stat().st_size
        except OSError:
            pass
        raise StoreUnavailable(UNREACHABLE)

    def compacts_by_itself(self, size: int) -> bool:
        """Whether `tidy` writes a file of so many bytes anew."""
        return size <= COMPACTED_UP_TO

    def write_anew(self) -> Compacted:
        """Write SQLite's file anew, whatever its size. Raises as `ports_operator.OperatorStore` says."""
        return compaction.compact(sqlite.path_from(self._url), lock_timeout=self._limits.lock_timeout)

    def close(self) -> None:
        """Close idle connections."""
        self._engines.dispose()

    def _begin(self, engine: sqlalchemy.Engine) -> Connection:
        """A connection in a transaction. A dead one from the pool is replaced once: nothing was sent on it yet."""
        failure = StoreUnavailable(ERROR)
        for _ in range(2):
            connection = None
            try:
                connection = engine.connect()
                connection.begin()
            except SQLAlchemyError as error:
                failure = unavailable(error)
                was_dead = isinstance(error, DBAPIError) and error.connection_invalidated
            else:
                return connection
            if connection is None:
                break
            _end(connection)
            if not was_dead:
                break
        raise failure

    def _commit(self, connection: Connection) -> None:
        failure: StoreUnavailable | None = None
        try:
            if self.kind is Engine.POSTGRESQL:
                postgresql.forget_warning(connection)
            connection.commit()
        except SQLAlchemyError as error:
            failure = StoreUnavailable(reason_for_commit(error))
            with suppress(SQLAlchemyError):
                # Whatever state it is in, it is not used again.
                connection.invalidate()
        else:
            if self.kind is Engine.POSTGRESQL and postgresql.committed_with_warning(connection):
                failure = StoreUnavailable(COMMIT_UNKNOWN)
        _end(connection)
        if failure is not None:
            raise failure

    def _clear_wal(self) -> None:
        """Let erased bytes leave SQLite's write-ahead log; if a reader is in the way, the next write tries again."""
        if self.kind is not Engine.SQLITE:
            self._wal_holds_erased = False
            return
        with suppress(SQLAlchemyError, sqlite.driver().Error):
            raw: Any = self._engines.writer.raw_connection()
            try:
                done = sqlite.truncate_wal(raw.driver_connection, lock_timeout=self._limits.lock_timeout)
            finally:
                raw.close()
            if done:
                self._wal_holds_erased = False


@contextmanager
def _watched(telemetry: Telemetry, kind: str) -> Iterator[None]:
    """Tell of a transaction and of how it ended."""
    watched = telemetry.transaction(kind)
    try:
        yield
    except StoreUnavailable as e:
        watched.ended(FAILED, e.reason)
        raise
    except BaseException:
        watched.ended(ROLLED_BACK)
        raise
    watched.ended()


def _end(connection: Connection) -> None:
    """Give a connection back; what it had open is rolled back."""
    with suppress(SQLAlchemyError):
        connection.rollback()
    with suppress(SQLAlchemyError):
        connection.close()
