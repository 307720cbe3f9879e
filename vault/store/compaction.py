"""Writes an SQLite file anew at an operator's word, whatever its size, or leaves it as it was and says why.

Nobody else can write meanwhile; readers can. SQLite does it in one transaction: after a crash or for want of room the
file is what it was before.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from vault.domain.errors import PreconditionFailed, StoreUnavailable
from vault.ports_operator import Compacted
from vault.store import sqlite
from vault.store.faults import ERROR

ROOM = 1.1
"""Times the bytes in use that must be free beside the file, for the log that carries the copy over, and in memory."""
MEMORY = Path("/proc/meminfo")

_PAUSE = 0.1
_LOCKED, _NO_ROOM = frozenset({5, 6}), frozenset({10, 13})
"""SQLite's primary codes: busy and locked; input or output failed, and full."""


def compact(path: Path, *, lock_timeout: timedelta) -> Compacted:
    """Raises `PreconditionFailed` where somebody is in the way or room is lacking: nothing was changed then."""
    try:
        raw = sqlite.connect(path, lock_timeout=lock_timeout, read_only=False, create=False)
    except sqlite.driver().Error:
        raw = None
    if raw is None:
        raise StoreUnavailable("database_unreachable")
    try:
        return _compact(raw, path, lock_timeout)
    finally:
        raw.close()


def _compact(raw: Any, path: Path, lock_timeout: timedelta) -> Compacted:
    # First without changing anything: what stays in the log for a reader's sake would stay in the file, too.
    if not _clear_wal(raw, lock_timeout):
        raise PreconditionFailed(
            "database_in_use",
            message="somebody reads or writes the database for longer than a request does (a backup, a report, another "
            "command): try again when that is done; nothing was changed",
        )
    before = path.stat().st_size
    _require_room(raw, path)
    started = time.monotonic()
    code = _vacuum(raw)
    if code is not None:
        _clear_wal(raw, lock_timeout)
        raise _failure(code)
    seconds = time.monotonic() - started
    is_clear = _clear_wal(raw, lock_timeout)
    return Compacted(bytes_before=before, bytes_after=path.stat().st_size, seconds=seconds, is_clear=is_clear)


def _vacuum(raw: Any) -> int | None:
    """SQLite's primary code if it failed."""
    try:
        raw.execute("VACUUM").close()
    except sqlite.driver().Error as error:
        return getattr(error, "sqlite_errorcode", 1) & 0xFF
    return None


def _failure(code: int) -> PreconditionFailed | StoreUnavailable:
    if code in _LOCKED:
        return PreconditionFailed(
            "database_in_use", message="somebody else writes to the database: try again; nothing was changed"
        )
    if code in _NO_ROOM:
        return PreconditionFailed(
            "database_no_room", message="the disk or a limit has no room for the new file; nothing was changed"
        )
    return StoreUnavailable(ERROR)


def _require_room(raw: Any, path: Path) -> None:
    pages, unused, size = (
        int(raw.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size")
    )
    needed = round((pages - unused) * size * ROOM)
    # SQLite makes the copy in memory: no card is to lie in another file than the database's.
    rooms = {"free space beside the database": shutil.disk_usage(path.parent).free, "memory": _free_memory()}
    for what, free in rooms.items():
        if free is not None and free < needed:
            raise PreconditionFailed(
                "database_no_room",
                message=f"needs {needed >> 20} MiB of {what}, {free >> 20} MiB are there; nothing was changed",
            )


def _free_memory() -> int | None:
    """Bytes that the machine can give; None where it does not say."""
    try:
        lines = MEMORY.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _clear_wal(raw: Any, patience: timedelta) -> bool:
    """Move the log into the file; waits for requests, not for a reader that goes on and on."""
    give_up = time.monotonic() + patience.total_seconds()
    while True:
        with suppress(sqlite.driver().Error):
            if sqlite.truncate_wal(raw, lock_timeout=patience):
                return True
        if time.monotonic() >= give_up:
            return False
        time.sleep(_PAUSE)
