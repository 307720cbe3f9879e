"""The schema's version: brings a database to this release's, and says when the two do not fit."""

from __future__ import annotations

import threading
from importlib import resources

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from vault.domain.errors import StoreUnavailable
from vault.store.engine import Limits, open_engines
from vault.store.faults import unavailable

_one_at_a_time = threading.Lock()
"""Alembic keeps what it works on in module globals, so threads of one process take turns."""


def _config() -> Config:
    config = Config()
    # A percent sign in the path would start an interpolation.
    location = str(resources.files("vault.store") / "migrations").replace("%", "%%")
    config.set_main_option("script_location", location)
    return config


def head() -> str:
    """The revision that this release works with."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None, "the migrations directory has one head"
    return revision


def upgrade(url: str, *, limits: Limits | None = None) -> None:
    """Bring a database to `head()`, all or nothing; several at once wait for each other. Makes a missing SQLite file.

    Raises `StoreUnavailable`.
    """
    engines = open_engines(url, limits or Limits(), create=True)
    config = _config()
    try:
        with _one_at_a_time, engines.writer.connect() as connection, connection.begin():
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except SQLAlchemyError as error:
        failure = unavailable(error)
    else:
        return
    finally:
        engines.dispose()
    raise failure


def current(url: str) -> str | None:
    """The revision of a database; None if it was never migrated. Raises `StoreUnavailable`."""
    engines = open_engines(url, Limits())
    try:
        with engines.reader.connect() as connection:
            return revision_of(connection)
    except SQLAlchemyError as error:
        failure: StoreUnavailable = unavailable(error)
    finally:
        engines.dispose()
    raise failure


def revision_of(connection: Connection) -> str | None:
    """The revision, asked over a connection."""
    return MigrationContext.configure(connection).get_current_revision()


def mismatch(connection: Connection) -> str | None:
    """Why this release cannot work with the schema, in words; None if it can."""
    found, wanted = revision_of(connection), head()
    if found == wanted:
        return None
    if found is None:
        return f"the database has no cardvault schema; this release needs revision {wanted}: migrate it first"
    return f"the database's schema has revision {found}; this release needs {wanted}"
