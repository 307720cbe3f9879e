"""Keeps the threads of a server that run Python on one CPU, and moves them where others want that one.

The interpreter's lock lets one of them work at a time anyway. On CPUs of their own, each change of the lock wakes
another one up, which in a virtual machine takes longer than most of what is then done. The threads of gRPC, which
encrypt and send, stay free, and so do the processes beside this one.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

IS_LINUX = sys.platform == "linux"
LOOK_EVERY = 1.0
"""Seconds."""
WORTH_A_MOVE = 0.2
"""Of a CPU: by how much others must use ours more than all use the idlest one."""

_STAT = Path("/proc/stat")
_TASKS = Path("/proc/self/task")


@dataclass(frozen=True, slots=True)
class _Moment:
    at: float
    """Monotonic seconds."""
    busy: dict[int, float]
    """Seconds of work that each CPU has done, by whomever."""
    ours: float
    """Seconds of it that were our threads'."""


class OneCpu:
    """The CPU that this process's Python threads share."""

    def __init__(self, worker: int = 0, *, workers: int = 1) -> None:
        """Where it begins is drawn; of several workers of one parent, by their numbers, each begins on another."""
        self._workers = workers
        self._allowed = sorted(os.sched_getaffinity(0)) if IS_LINUX else []
        place = secrets.randbelow(1 << 16) if workers == 1 else os.getppid() + worker
        self._cpu = self._allowed[place % len(self._allowed)] if self._allowed else 0
        self._before: _Moment | None = None

    @property
    def is_of_use(self) -> bool:
        """Whether every worker has a second CPU beside it for all else, and a system that lets us choose.

        Where workers fill the CPUs already, the scheduler knows better.
        """
        return len(self._allowed) >= 2 * self._workers and _STAT.exists()

    @property
    def cpu(self) -> int:
        """Which one it is now."""
        return self._cpu

    def look(self) -> None:
        """Gather the threads, new ones too, on the CPU that suits best; to be called every `LOOK_EVERY`."""
        threads = {thread.native_id for thread in threading.enumerate()} - {None}
        now = _Moment(monotonic(), _busy(), sum(_ran(thread) for thread in threads if thread is not None))
        if self._before is not None and now.at > self._before.at:
            self._cpu = self._better(self._before, now)
        self._before = now
        for task in _TASKS.iterdir():
            _put(int(task.name), {self._cpu} if int(task.name) in threads else set(self._allowed))

    def let_go(self) -> None:
        """Let all threads go where they like again, and what this process starts from now on."""
        for task in _TASKS.iterdir():
            _put(int(task.name), set(self._allowed))

    def _better(self, before: _Moment, now: _Moment) -> int:
        passed = now.at - before.at
        used = {cpu: (busy - before.busy.get(cpu, busy)) / passed for cpu, busy in now.busy.items()}
        by_others = used.get(self._cpu, 0.0) - max(0.0, now.ours - before.ours) / passed
        best = min((cpu for cpu in self._allowed if cpu != self._cpu), key=lambda cpu: used.get(cpu, 1.0))
        # By chance, so that two servers on one CPU do not move to the next one together, again and again.
        moves = by_others > used.get(best, 1.0) + WORTH_A_MOVE and secrets.randbelow(2) == 0
        return best if moves else self._cpu


def _put(thread: int, wanted: set[int]) -> None:
    # It may have ended meanwhile; and where a sandbox forbids it, threads stay where they are.
    with suppress(OSError):
        if os.sched_getaffinity(thread) != wanted:
            os.sched_setaffinity(thread, wanted)


def stand_behind() -> None:
    """Do not interrupt who works when this thread is woken: what arrives meanwhile then shares its next piece of work.

    SCHED_BATCH of sched(7), which takes nothing of a thread's share of a CPU. For the calling thread alone; in vain
    where the system does not let us.
    """
    if IS_LINUX:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _busy() -> dict[int, float]:
    """proc(5): user, nice, system, idle, iowait, irq, softirq, steal, in ticks."""
    ticks = os.sysconf("SC_CLK_TCK")
    found: dict[int, float] = {}
    for line in _STAT.read_text(encoding="ascii").splitlines():
        name, *times = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _, _, *interrupts = map(int, times[:8])
            found[int(name[3:])] = (user + nice + system + sum(interrupts)) / ticks
    return found


def _ran(thread: int) -> float:
    """Seconds that a thread has worked."""
    with suppress(OSError, ValueError, IndexError):
        return int((_TASKS / str(thread) / "schedstat").read_text(encoding="ascii").split()[0]) / 1e9
    return 0.0
