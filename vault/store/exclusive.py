"""A lock by name that one process on one host holds, and that goes when it dies.

PostgreSQL keeps it with the session of a connection of its own; on SQLite it is a file beside the database.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vault.domain.errors import StoreUnavailable
from vault.ports_operator import Busy
from vault.store import postgresql, sqlite
from vault.store.columns import Engine
from vault.store.engine import Limits, kind_of
from vault.store.faults import POOLED, UNREACHABLE

LOST = "lock_lost"
BUSY = "busy"

_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")


@contextmanager
def held(url: str, limits: Limits, what: str) -> Iterator[None]:
    """Hold the lock while the block runs.

    Raises `Busy` at once if another holds it, and `StoreUnavailable('lock_lost')` at the end if it was lost meanwhile;
    an error of the block itself goes first.
    """
    if _NAME.fullmatch(what) is None:
        raise ValueError("a lock's name is lower-case letters, digits and dashes")
    lock: _Session | _File = _Session(url, limits, what) if kind_of(url) is Engine.POSTGRESQL else _File(url, what)
    lock.take()
    try:
        yield
    except BaseException:
        lock.give_back()
        raise
    if not lock.give_back():
        raise StoreUnavailable(LOST)


class _Session:
    """An advisory lock of PostgreSQL, on a connection that is never in a transaction."""

    def __init__(self, url: str, limits: Limits, what: str) -> None:
        self._url = url
        self._limits = limits
        digest = hashlib.sha256(b"cardvault.lock.v1." + what.encode()).digest()
        self._key = int.from_bytes(digest[:8], "big", signed=True)
        self._connection: Any = None

    def take(self) -> None:
        connection, taken = None, False
        try:
            connection = postgresql.connect_for_long(self._url, self._limits.connect_timeout)
            taken = postgresql.answer(connection, "SELECT pg_try_advisory_lock(%s)", self._key)
        except postgresql.DriverError as error:
            _close(connection)
            reason = POOLED if postgresql.tells_of_pooler(error) else UNREACHABLE
        else:
            if taken:
                self._connection = connection
                return
            _close(connection)
            raise Busy(BUSY)
        raise StoreUnavailable(reason)

    def give_back(self) -> bool:
        """False if the lock was not ours any more."""
        try:
            return postgresql.answer(self._connection, "SELECT pg_advisory_unlock(%s)", self._key)
        except postgresql.DriverError:
            return False
        finally:
            _close(self._connection)


def _close(connection: Any) -> None:
    if connection is not None:
        with suppress(postgresql.DriverError):
            connection.close()


class _File:
    """A file that stays; what counts is the lock that the kernel keeps on it."""

    def __init__(self, url: str, what: str) -> None:
        database = sqlite.path_from(url)
        self._path = Path(f"{database}.{what}.lock")
        self._descriptor = -1

    def take(self) -> None:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            descriptor = -1
        if descriptor < 0:
            raise StoreUnavailable(UNREACHABLE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = True
        except OSError:
            taken = False
        if not taken:
            os.close(descriptor)
            raise Busy(BUSY)
        self._descriptor = descriptor

    def give_back(self) -> bool:
        """False if the file was removed or replaced, so that another could have locked its successor."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except OSError:
            return False
        finally:
            # Also for a copy of the descriptor that a child process may have inherited.
            with suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
