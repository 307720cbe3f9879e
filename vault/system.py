"""The real clock and the operating system's random source."""

from __future__ import annotations

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
