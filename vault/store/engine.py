"""Makes the engines that a store works with, from a URL; the rules of each database are in a module of their own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, event
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import QueuePool

from vault.store import postgresql, sqlite
from vault.store.columns import Engine
from vault.store.refusal import DatabaseRefused

_BEGIN = "cardvault_begin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long anything may wait and how many connections there may be."""

    pool_size: int = 8
    """Connections: on PostgreSQL in all, on SQLite readers beside the one writer."""
    pool_timeout: timedelta = timedelta(seconds=5)
    """Wait for a free connection; on SQLite also for the one writer."""
    connect_timeout: timedelta = timedelta(seconds=5)
    statement_timeout: timedelta = timedelta(seconds=10)
    lock_timeout: timedelta = timedelta(seconds=5)
    idle_in_transaction_timeout: timedelta = timedelta(seconds=15)
    application_name: str = "cardvault"


@dataclass(frozen=True, slots=True)
class Engines:
    """Two ways into one database. They share a pool on PostgreSQL."""

    kind: Engine
    writer: sqlalchemy.Engine
    reader: sqlalchemy.Engine

    def dispose(self) -> None:
        """Close every idle connection."""
        self.writer.dispose()
        self.reader.dispose()


def kind_of(url: str) -> Engine:
    """Which database a URL is for. Raises `DatabaseRefused`, without the URL, which may hold a password."""
    try:
        name = postgresql.parse(url).get_backend_name()
    except (ArgumentError, ValueError):
        name = ""
    if name not in set(Engine):
        raise DatabaseRefused("the database URL must begin with sqlite:/// or postgresql://")
    return Engine(name)


def open_engines(url: str, limits: Limits, *, create: bool = False) -> Engines:
    """Engines for a URL; nothing is connected yet. A missing SQLite file is created only where `create` says so."""
    kind = kind_of(url)
    if kind is Engine.SQLITE:
        path = sqlite.path_from(url)
        lock_timeout = limits.lock_timeout
        writer = _engine(
            "sqlite+pysqlite://",
            limits,
            # The one writer of this process. Another process has one too: who begins second waits in BEGIN IMMEDIATE,
            # for as long as a lock may be waited for.
            pool_size=1,
            module=sqlite.driver(),
            creator=lambda: sqlite.connect(path, lock_timeout=lock_timeout, read_only=False, create=create),
        )
        reader = _engine(
            "sqlite+pysqlite://",
            limits,
            pool_size=limits.pool_size,
            module=sqlite.driver(),
            creator=lambda: sqlite.connect(path, lock_timeout=lock_timeout, read_only=True, create=False),
        )
        return Engines(kind, _beginning(writer, sqlite.BEGIN_WRITING), _beginning(reader, sqlite.BEGIN_READING))
    engine = _engine(
        postgresql.parse(url).set(drivername="postgresql+psycopg"),
        limits,
        pool_size=limits.pool_size,
        connect_args=postgresql.connect_args(
            url,
            connect_timeout=limits.connect_timeout,
            statement_timeout=limits.statement_timeout,
            lock_timeout=limits.lock_timeout,
            idle_in_transaction_timeout=limits.idle_in_transaction_timeout,
            application_name=limits.application_name,
        ),
    )
    postgresql.refuse_poolers(engine)
    postgresql.remember_warnings(engine)
    return Engines(kind, _beginning(engine, postgresql.BEGIN_WRITING), _beginning(engine, postgresql.BEGIN_READING))


def _engine(url: str | sqlalchemy.URL, limits: Limits, *, pool_size: int, **more: Any) -> sqlalchemy.Engine:
    engine = sqlalchemy.create_engine(
        url,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=limits.pool_timeout.total_seconds(),
        hide_parameters=True,
        echo=False,
        **more,
    )
    event.listen(engine, "begin", _begin)
    return engine


def _beginning(engine: sqlalchemy.Engine, statement: str) -> sqlalchemy.Engine:
    return engine.execution_options(**{_BEGIN: statement})


def _begin(connection: Connection) -> None:
    # Both drivers are in autocommit mode: the transaction begins with our words, and this first statement shows
    # whether a pooled connection is still alive, at no extra trip.
    if connection.dialect.name == Engine.POSTGRESQL:
        postgresql.forget_old_plans(connection)
    connection.exec_driver_sql(connection.get_execution_options()[_BEGIN])
