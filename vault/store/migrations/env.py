"""Runs the revisions over the connection that `vault.store.schema` opened, in its one transaction."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from vault.store.tables import metadata

_ADVISORY_LOCK = 0x6361726476  # "cardv"
_WAIT_FOR_OTHER_MIGRATION = "SET LOCAL lock_timeout = '60s'; SET LOCAL statement_timeout = '120s'"
_WAIT_FOR_TABLES = "SET LOCAL lock_timeout = '5s'"
"""A change that waits for a busy table makes everyone behind it wait: better to give up and try again."""


def _run(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_WAIT_FOR_OTHER_MIGRATION)
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
        connection.exec_driver_sql(_WAIT_FOR_TABLES)
    # SQLite's BEGIN IMMEDIATE is lock enough, and its schema changes roll back like any other.
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    context.run_migrations()


_run(context.config.attributes["connection"])
