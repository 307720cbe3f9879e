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
_NOTHING_LEFT = (bytearray(), READ_AHEAD)

_ahead = threading.local()
"""What each thread read and did not hand out yet."""


def _forget() -> None:
    _ahead.__dict__.clear()


# A forked process must not draw what its parent draws. To ask at each draw who we are would be to ask the system again.
os.register_at_fork(after_in_child=_forget)


class SystemEntropy:
    """The operating system's random source, read ahead by each thread.

    A question to the system lets every other thread of the process go first, and a batch of cards asks a hundred times.
    What was handed out is wiped here, and a forked process never draws from what was read before.
    """

    def bytes(self, count: int) -> bytes:
        """`count` unpredictable bytes."""
        if count > READ_AHEAD:
            return os.urandom(count)
        mine = _ahead.__dict__
        # Taken out in one step: a signal handler that draws meanwhile, on this very thread, reads a block of its own.
        block, used = mine.pop("left", _NOTHING_LEFT)
        if used + count > READ_AHEAD:
            block, used = bytearray(os.urandom(READ_AHEAD)), 0
        end = used + count
        drawn = bytes(block[used:end])
        block[used:end] = bytes(count)
        mine["left"] = block, end
        return drawn


ALLOCATIONS_BEFORE_COLLECTION = 20_000
"""Python's own threshold of 700 collects several times in one batch, where nothing is garbage yet."""


def settle_memory() -> None:
    """Once everything is imported: leave what will live as long as the process out of every garbage collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS_BEFORE_COLLECTION, 20, 20)
