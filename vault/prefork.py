"""Several worker processes behind one port: forks them, replaces those that die, ends them together.

The parent serves nothing: it has one thread, holds no login, and never imports gRPC, whose threads no fork survives.
Linux alone spreads connections over the sockets of one port, so it runs there only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from vault.telemetry import where

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_REFUSED = 2
"""A worker that must not run like this: the others must not either."""

_PR_SET_PDEATHSIG = 1
_ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
_WAITED_FOR = _ENDING | {signal.SIGCHLD}
_NO_SUCH_ADDRESS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_LOOK_EVERY = 0.05
_REPORT_BYTES = 4

_log = structlog.get_logger()


def die_with(parent: int, number: signal.Signals) -> bool:
    """Have the kernel send this process a signal when its parent dies; False if that is dead already. Linux alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    return os.getppid() == parent


def expect_children() -> None:
    """Undo an ignored SIGCHLD, which survives an exec: the system would bury children before their end is read."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def flush_output() -> None:
    """Before a fork, lest both write what is there; and before `os._exit`."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:  # as where a shell closed it
                stream.flush()


class SharedPort:
    """A port that workers bind once more each. Nobody else gets it meanwhile, not even while no worker listens."""

    def __init__(self, listen: str) -> None:
        """Take `host:port`; port 0 takes a free one. Raises `OSError`."""
        host, _, number = listen.rpartition(":")
        self._sockets: list[socket.socket] = []
        self.port = int(number) if number.isdigit() else -1
        if not host or self.port < 0:
            raise OSError("not an address of the form host:port")
        try:
            bare = host.removeprefix("[").removesuffix("]")
            for family, _, _, _, place in socket.getaddrinfo(bare, None, type=socket.SOCK_STREAM):
                try:
                    taken = _exclusive(family, (place[0], self.port, *place[2:]))
                except OSError as e:
                    if e.errno not in _NO_SUCH_ADDRESS:
                        raise
                    continue  # a name may stand for addresses of a family that this host does not speak
                self._sockets.append(taken)
                self.port = taken.getsockname()[1]
            if not self._sockets:
                raise OSError("no such address")
        except OSError:
            self.close()
            raise
        self.address = f"{host}:{self.port}"
        """What workers listen on."""

    def close(self) -> None:
        """Give it back."""
        for each in self._sockets:
            each.close()


def _exclusive(family: int, place: tuple[str | int, ...]) -> socket.socket:
    """Bound alone, and only then opened to our own workers: two servers never share a port unknowingly."""
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        # For connections of a former run that linger in TIME_WAIT; off again, lest a stranger binds beside us.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(place)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        taken.close()
        raise
    return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long workers may take to end, and how often they may die."""

    grace: timedelta
    """From SIGTERM to SIGKILL."""
    settled_after: timedelta = timedelta(seconds=10)
    """A worker that lived so long did not die at once."""
    first_pause: timedelta = timedelta(seconds=0.5)
    """Before a worker that died at once is replaced; doubles from death to death."""
    deaths: int = 6
    """So many deaths at once, one after the other, end everything."""


@dataclass(slots=True)
class _Worker:
    number: int
    pid: int = 0
    """0 while there is none."""
    since: float = 0.0
    has_started: bool = False
    due: float = field(default=float("inf"))
    """When to fork it."""


Work = Callable[[int, Callable[[], None]], int]
"""Given its number (0 is the first) and what to call once it serves, works until SIGTERM; returns its exit code."""


class Workers:
    """`count` processes that do the same work."""

    def __init__(self, work: Work, *, count: int, patience: Patience) -> None:
        self._work = work
        self._patience = patience
        self._workers = [_Worker(number) for number in range(count)]
        self._deaths = 0

    def run(self, announce: Callable[[], None]) -> int:
        """Return the exit code once all have ended. `announce` is called once, when all have started.

        0: SIGTERM or SIGINT came, and all drained. 1: workers died again and again, or had to be killed. 2: a worker
        refused. The first starts alone, so that what is wrong is said once.
        """
        expect_children()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
        self._reports, self._reporting = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return self._end(self._until_over(announce))
        finally:
            self._kill()
            os.close(self._reports)
            os.close(self._reporting)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _until_over(self, announce: Callable[[], None]) -> int:
        self._workers[0].due = 0.0
        is_announced = False
        while True:
            self._fork_due()
            came = signal.sigtimedwait(_WAITED_FOR, self._until_due())
            if came is not None and came.si_signo in _ENDING:
                return EXIT_OK
            self._read_reports()
            for worker, code in self._reaped():
                verdict = self._verdict(worker, code, is_first_start=not is_announced)
                if verdict is not None:
                    return verdict
            if self._workers[0].has_started:
                for worker in self._workers:
                    if not worker.since:
                        worker.due = 0.0
            if not is_announced and all(worker.has_started for worker in self._workers):
                is_announced = True
                announce()

    def _verdict(self, worker: _Worker, code: int, *, is_first_start: bool) -> int | None:
        """What a death means for all. Not asked for: how somebody else ends a worker does not matter."""
        if code == EXIT_REFUSED and (worker.has_started or is_first_start):
            return EXIT_REFUSED
        lived = time.monotonic() - worker.since
        self._deaths = self._deaths + 1 if lived < self._patience.settled_after.total_seconds() else 0
        if self._deaths >= self._patience.deaths:
            _log.error("workers.given_up", count=self._deaths)
            return EXIT_FAILED
        pause = self._patience.first_pause.total_seconds() * 2 ** (self._deaths - 1) if self._deaths else 0.0
        worker.has_started, worker.due = False, time.monotonic() + pause
        return None

    # --- processes --------------------------------------------------------------------------------------------------

    def _fork_due(self) -> None:
        for worker in self._workers:
            if not worker.pid and worker.due <= time.monotonic():
                worker.since, worker.due = time.monotonic(), float("inf")
                worker.pid = self._fork(worker.number)

    def _fork(self, number: int) -> int:
        flush_output()
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        code = EXIT_FAILED
        try:
            code = self._be(number, parent)
        except BaseException as e:  # noqa: BLE001 - a worker never returns into its parent's code
            _log.critical("worker.uncaught", where=where(e))
        finally:
            flush_output()
            os._exit(code)

    def _be(self, number: int, parent: int) -> int:
        if not die_with(parent, signal.SIGTERM):
            return EXIT_FAILED
        # SIGINT stays blocked: Ctrl-C reaches the whole group, and the parent speaks for it.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGCHLD})
        os.close(self._reports)
        return self._work(number, lambda: self._report(number))

    def _report(self, number: int) -> None:
        os.write(self._reporting, number.to_bytes(_REPORT_BYTES, "big"))

    def _read_reports(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while report := os.read(self._reports, _REPORT_BYTES):
                worker = self._workers[int.from_bytes(report, "big")]
                worker.has_started = True
                _log.info("worker.started", pid=worker.pid)

    def _until_due(self) -> float:
        if any(worker.pid and not worker.has_started for worker in self._workers):
            return _LOOK_EVERY
        next_due = min(worker.due for worker in self._workers)
        return max(0.0, min(next_due - time.monotonic(), 3600.0))

    def _reaped(self) -> Iterator[tuple[_Worker, int]]:
        # Whoever ended: as process 1 of a container this one inherits what its workers leave behind.
        while self._running():
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            for worker in self._running():
                if worker.pid == pid:
                    worker.pid, code = 0, os.waitstatus_to_exitcode(status)
                    _log.info("worker.ended", pid=pid, code=code)
                    yield worker, code

    # --- the end ----------------------------------------------------------------------------------------------------

    def _end(self, code: int) -> int:
        """Ask all to end, wait for them, kill what does not."""
        running = self._running()
        for worker in running:
            os.kill(worker.pid, signal.SIGTERM)
        deadline = time.monotonic() + self._patience.grace.total_seconds()
        while self._running() and (left := deadline - time.monotonic()) > 0:
            signal.sigtimedwait({signal.SIGCHLD}, left)
            for _ in self._reaped():
                pass
        stuck = self._kill()
        return EXIT_FAILED if stuck and code == EXIT_OK else code

    def _kill(self) -> int:
        """How many had to be killed."""
        stuck = self._running()
        for worker in stuck:
            _log.error("worker.stuck", pid=worker.pid)
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
            worker.pid = 0
        return len(stuck)

    def _running(self) -> Sequence[_Worker]:
        return [worker for worker in self._workers if worker.pid]
