"""The real clock and the operating system's random source."""

from __future__ import annotations

import gc
import os
from datetime import UTC, datetime


class SystemClock:
    """The wall clock."""

    def now(self) -> datetime:
        """Now, UTC."""
        return datetime.now(UTC)


class SystemEntropy:
    """The operating system's random source."""

    def bytes(self, count: int) -> bytes:
        """`count` unpredictable bytes."""
        return os.urandom(count)


ALLOCATIONS_BEFORE_COLLECTION = 20_000
"""Python's own threshold of 700 collects several times in one batch, where nothing is garbage yet."""


def settle_memory() -> None:
    """Once everything is imported: leave what will live as long as the process out of every garbage collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS_BEFORE_COLLECTION, 20, 20)
