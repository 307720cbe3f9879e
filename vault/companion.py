"""A process beside a server: forked before the server has threads, replaced when it dies, ended with the server.

    server ── nurse ── companion

The nurse does nothing but wait, so that there is always a process without threads that may fork. Both end when the
server closes its end of a pipe, or dies, however that happens; signals that are meant for the server they leave to it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import structlog

from vault.prefork import EXIT_FAILED, EXIT_OK, EXIT_REFUSED, die_with, expect_children, flush_output
from vault.telemetry import where

FIRST_PAUSE = timedelta(seconds=0.5)
"""Before a companion that died at once is replaced; doubles from death to death."""
LONGEST_PAUSE = timedelta(seconds=30)
SETTLED_AFTER = timedelta(seconds=10)
"""A companion that lived so long did not die at once."""

_BEGIN = b"!"
_NEWS_BYTES = 4096
_LOOK = 0.02
_STANDARD_ERROR = 2

_log = structlog.get_logger()


class Side:
    """What the companion holds of the server."""

    def __init__(self, lifeline: int, news: int) -> None:
        self._lifeline = lifeline
        self._news = news

    def is_over(self, within: timedelta) -> bool:
        """Wait; True as soon as the server wants no companion any more, or is gone."""
        ending = select.poll()
        ending.register(self._lifeline, select.POLLIN)
        return bool(ending.poll(within // timedelta(milliseconds=1)))

    def tell(self, line: str) -> bool:
        """A line for the server; False if the server is gone, or hears nothing of what it was told before."""
        try:
            os.write(self._news, line.encode() + b"\n")
        except (BlockingIOError, BrokenPipeError):
            return False
        return True


Work = Callable[[Side], int]
"""Works until `Side.is_over`; returns the exit code. `EXIT_REFUSED`: not to be tried again."""


class Companion:
    """The companion as the server sees it."""

    def __init__(self, nurse: int, lifeline: int, news: int) -> None:
        self._nurse = nurse
        self._lifeline = lifeline
        self.news = news
        """Readable when there are news, and when nobody is left to tell any. Closed by `end`."""
        self._rest = b""
        self._let_go_at: float | None = None
        self._code: int | None = None

    @classmethod
    def fork(cls, work: Work) -> Companion:
        """To be called by a process of one thread. Nothing is begun yet. Raises `OSError`."""
        if threading.active_count() != 1:
            raise RuntimeError("a process with threads must not fork")
        expect_children()
        lifeline, ours = os.pipe()
        news, theirs = os.pipe()
        os.set_blocking(news, False)
        os.set_blocking(theirs, False)
        server = os.getpid()
        # So that no garbage collection of one writes to pages that all could share.
        gc.freeze()

        def nurse() -> int:
            _close_all_but(lifeline, theirs)
            return _nurse(work, Side(lifeline, theirs), lifeline, server)

        try:
            pid = _fork(nurse)
        except OSError:
            os.close(ours)
            os.close(news)
            raise
        finally:
            os.close(lifeline)
            os.close(theirs)
        return cls(pid, ours, news)

    def begin(self) -> None:
        """Let it work."""
        # A nurse that is gone already is told of by `news`.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._lifeline, _BEGIN)

    def hear(self) -> Sequence[str] | None:
        """What it told since the last time; None if nobody is left."""
        try:
            piece = os.read(self.news, _NEWS_BYTES)
        except BlockingIOError:
            return ()
        if not piece:
            return None
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return [line.decode() for line in lines]

    def let_go(self) -> None:
        """Let it finish what it is at."""
        if self._let_go_at is None:
            self._let_go_at = time.monotonic()
            os.close(self._lifeline)

    def end(self, within: timedelta) -> int:
        """Wait until it has ended, so long after `let_go`; what takes longer is killed.

        Returns its exit code, also when asked again; `EXIT_FAILED` if somebody else took that.
        """
        self.let_go()
        if self._code is None:
            try:
                self._code = self._reaped(within)
            except ChildProcessError:
                self._code = EXIT_FAILED
            os.close(self.news)
        return self._code

    def _reaped(self, within: timedelta) -> int:
        assert self._let_go_at is not None, "it was let go"
        deadline = self._let_go_at + within.total_seconds()
        while True:
            pid, status = os.waitpid(self._nurse, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= deadline:
                break
            time.sleep(_LOOK)
        # Its child dies with it.
        os.kill(self._nurse, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self._nurse, 0)[1])


def _nurse(work: Work, side: Side, lifeline: int, server: int) -> int:
    if not die_with(server, signal.SIGKILL):
        return EXIT_FAILED
    # Ctrl-C and a supervisor's SIGTERM reach the whole group; the server speaks for it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if os.read(lifeline, len(_BEGIN)) != _BEGIN:
        return EXIT_OK
    deaths = 0
    while True:
        code, lived = _one_life(work, side)
        if code == EXIT_REFUSED or side.is_over(timedelta()):
            return code
        deaths = deaths + 1 if lived < SETTLED_AFTER.total_seconds() else 0
        _log.error("companion.died", code=code, count=deaths)
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(deaths - 1, 16)) if deaths else timedelta()
        if side.is_over(pause):
            return code


def _one_life(work: Work, side: Side) -> tuple[int, float]:
    """Exit code and seconds."""
    nurse, began = os.getpid(), time.monotonic()

    def be() -> int:
        return work(side) if die_with(nurse, signal.SIGKILL) else EXIT_FAILED

    try:
        _, status = os.waitpid(_fork(be), 0)
    except OSError:  # no memory for another process now: as if it had died at once
        return EXIT_FAILED, 0.0
    return os.waitstatus_to_exitcode(status), time.monotonic() - began


def _close_all_but(*kept: int) -> None:
    """Nothing of the server's is held on to: no port, no connection, no pipe of somebody else's."""
    for each in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        if each > _STANDARD_ERROR and each not in kept:
            with contextlib.suppress(OSError):
                os.close(each)


def _fork(be: Callable[[], int]) -> int:
    flush_output()
    pid = os.fork()
    if pid:
        return pid
    code = EXIT_FAILED
    try:
        code = be()
    except BaseException as e:  # noqa: BLE001 - a child never returns into its parent's code
        _log.critical("companion.uncaught", where=where(e))
    finally:
        flush_output()
        os._exit(code)
