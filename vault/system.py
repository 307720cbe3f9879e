"""The real clock and the operating system's random source."""

from __future__ import annotations

import gc
import os
import threading
from datetime import UTC, datetime


class SystemClock:
    """The wall clock."""

    def now(self) -> datetime:
        """Now, UTC."""
        return datetime.now(UTC)


READ_AHEAD = 4096
"""Bytes of randomness that a thread asks for at once."""


class SystemEntropy:
    """The operating system's random source, read ahead by each thread.

    A question to the system lets every other thread of the process go first, and a batch of cards asks a hundred times.
    What was handed out is wiped here, and a forked process never draws from what was read before.
    """

    def __init__(self) -> None:
        self._ahead = threading.local()

    def bytes(self, count: int) -> bytes:
        """`count` unpredictable bytes."""
        if count > READ_AHEAD:
            return os.urandom(count)
        ahead = self._ahead
        if getattr(ahead, "pid", 0) != os.getpid() or ahead.used + count > READ_AHEAD:
            ahead.block, ahead.used, ahead.pid = bytearray(os.urandom(READ_AHEAD)), 0, os.getpid()
        begin, end = ahead.used, ahead.used + count
        drawn = bytes(ahead.block[begin:end])
        ahead.block[begin:end] = bytes(count)
        ahead.used = end
        return drawn


ALLOCATIONS_BEFORE_COLLECTION = 20_000
"""Python's own threshold of 700 collects several times in one batch, where nothing is garbage yet."""


def settle_memory() -> None:
    """Once everything is imported: leave what will live as long as the process out of every garbage collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS_BEFORE_COLLECTION, 20, 20)
