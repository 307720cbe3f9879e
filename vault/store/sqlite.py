"""SQLite as cardvault uses it: WAL, every commit flushed, deleted bytes overwritten, one writer for each process.

Several processes may work on one file: operator commands run beside a server.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, make_url

from vault.store.refusal import DatabaseRefused

OLDEST_VERSION = (3, 51, 3)
"""Earlier ones can corrupt a WAL database that two connections write or checkpoint (SQLite's WAL-reset bug)."""

BEGIN_WRITING = "BEGIN IMMEDIATE"
BEGIN_READING = "BEGIN"

_BUSY = 5
_PAUSE = 0.02

_PRAGMAS = (
    "PRAGMA synchronous=FULL",
    "PRAGMA fullfsync=ON",
    "PRAGMA secure_delete=ON",
    "PRAGMA foreign_keys=ON",
    "PRAGMA recursive_triggers=ON",  # so that REPLACE meets the triggers that refuse deletion
    "PRAGMA temp_store=MEMORY",
    "PRAGMA trusted_schema=OFF",
    # The log is moved into the file at 32 MiB instead of 4: a large batch of cards changes 10 MiB of pages here and
    # there, and the next one many of the same again. After an erasure `truncate_wal` clears it at once.
    "PRAGMA wal_autocheckpoint=8192",
    "PRAGMA journal_size_limit=33554432",
)
_WRITER_PRAGMAS = (
    # KiB. With SQLite's own 2 MiB a large batch spills its pages into the log and reads them back, several times over.
    "PRAGMA cache_size=-32768",
)
_EXPECTED = {
    "journal_mode": ("wal", "journal_mode is not WAL"),
    "synchronous": (2, "synchronous is not FULL: a power cut can lose acknowledged writes"),
    "secure_delete": (1, "secure_delete is off: erased cards stay in free pages"),
    "foreign_keys": (1, "foreign_keys is off: a card without consent could be stored"),
}


def driver() -> Any:
    """The SQLite driver: from the wheel, or Python's own where that is new enough. Raises `DatabaseRefused`."""
    for name in ("pysqlite3.dbapi2", "sqlite3.dbapi2"):
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            if module.sqlite_version_info >= OLDEST_VERSION:
                return module
    wanted = ".".join(map(str, OLDEST_VERSION))
    raise DatabaseRefused(f"SQLite is older than {wanted}, which can corrupt its WAL: install the package pysqlite3")


def path_from(url: str) -> Path:
    """The file that a URL names. Raises `DatabaseRefused` for a database in memory."""
    database = make_url(url).database
    if not database or database == ":memory:" or database.startswith("file:"):
        raise DatabaseRefused("the SQLite URL must name a file, as in sqlite:////var/lib/cardvault/vault.db")
    return Path(database).absolute()


def connect(path: Path, *, lock_timeout: timedelta, read_only: bool, create: bool) -> Any:
    """A connection of the driver, in autocommit mode. It never makes a new database in place of a missing one."""
    if create:
        with contextlib.suppress(FileExistsError):
            path.touch(mode=0o600, exist_ok=False)
    connection = driver().connect(
        f"file:{quote(str(path))}?mode=rw",
        uri=True,
        isolation_level=None,
        timeout=lock_timeout.total_seconds(),
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        _enter_wal(connection, lock_timeout)
        for pragma in (*_PRAGMAS, *(("PRAGMA query_only=ON",) if read_only else _WRITER_PRAGMAS)):
            connection.execute(pragma).close()
    except BaseException:
        connection.close()
        raise
    return connection


def _enter_wal(connection: Any, lock_timeout: timedelta) -> None:
    """Make it a WAL database, for good. The busy timeout does not cover this, so two starters at once try again."""
    give_up = time.monotonic() + lock_timeout.total_seconds()
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
        except driver().OperationalError as error:
            if error.sqlite_errorcode & 0xFF != _BUSY or time.monotonic() > give_up:
                raise
            time.sleep(_PAUSE)
        else:
            return


def weaknesses(connection: Connection, path: Path) -> list[str]:
    """What makes this database unsafe, in words; empty if nothing does."""
    found = []
    for name, (wanted, problem) in _EXPECTED.items():
        if connection.exec_driver_sql(f"PRAGMA {name}").scalar() != wanted:
            found.append(f"SQLite: {problem}")
    if path.stat().st_mode & 0o077:
        found.append("SQLite: the database file is open to other users of this machine: chmod 600")
    return found


def truncate_wal(raw: Any, *, lock_timeout: timedelta) -> bool:
    """Move the WAL into the database file and cut it to nothing; False if a reader was in the way.

    `raw` is the writer's driver connection, outside a transaction. It waits for readers only briefly, because the
    next writer waits for this.
    """
    cursor = raw.cursor()
    try:
        cursor.execute("PRAGMA busy_timeout=50")
        row = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return bool(row is not None and row[0] == 0)
    finally:
        cursor.execute(f"PRAGMA busy_timeout={round(lock_timeout.total_seconds() * 1000)}")
        cursor.close()
