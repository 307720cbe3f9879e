"""What work tells about itself while it is done, for metrics and traces: names out of fixed lists, and durations.

Nothing that a caller sent goes through here, except a `traceparent` header, which whoever uses it checks by its form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

OK = "ok"
CALL_OK, CALL_CANCELLED = "OK", "CANCELLED"
READ, WRITE = "read", "write"
ROLLED_BACK, FAILED, REFUSED = "rolled_back", "failed", "refused"


class Watched(Protocol):
    """One piece of work under way."""

    def ended(self, outcome: str = OK, reason: str = "", error_id: str = "") -> None:
        """It is over, in this thread or task. `reason` is one of `domain.reasons`; `error_id` is what callers get."""


class Telemetry(Protocol):
    """Is told when work begins. Called for every call, so it must cost microseconds; it never raises."""

    def call(self, rpc: str, traceparent: Callable[[], str]) -> Watched:
        """An RPC by its name; `traceparent` asks for that header. Its outcome is the name of a gRPC status code."""

    def batch(self, queue: str, size: int, origins: Sequence[object]) -> Watched:
        """A batch of `size` items; `origins` are what `origin` gave when its members came."""

    def trip(self, operation: str) -> Watched:
        """A call to Vault: `encrypt`, `hmac`, `decrypt` and so on. Outcomes: `ok`, `refused`, `failed`.

        Of these alone several may be under way in one thread.
        """

    def transaction(self, kind: str) -> Watched:
        """`read` or `write`. Outcomes: `ok`, `rolled_back` for reasons of ours, `failed`."""

    def origin(self) -> object:
        """What this thread or task is doing now, to be handed to `batch`."""


class _Nothing:
    """Work that nobody watches."""

    __slots__ = ()

    def ended(self, outcome: str = OK, reason: str = "", error_id: str = "") -> None:
        """Nobody asked."""


NOTHING = _Nothing()


class Unwatched:
    """Implements `Telemetry`: nobody watches."""

    __slots__ = ()

    def call(self, rpc: str, traceparent: Callable[[], str]) -> Watched:  # noqa: ARG002 - nobody asks
        """Nobody watches."""
        return NOTHING

    def batch(self, queue: str, size: int, origins: Sequence[object]) -> Watched:  # noqa: ARG002 - nobody asks
        """Nobody watches."""
        return NOTHING

    def trip(self, operation: str) -> Watched:  # noqa: ARG002 - nobody asks
        """Nobody watches."""
        return NOTHING

    def transaction(self, kind: str) -> Watched:  # noqa: ARG002 - nobody asks
        """Nobody watches."""
        return NOTHING

    def origin(self) -> object:
        """Nobody watches."""
        return None


UNWATCHED = Unwatched()


class _Several:
    __slots__ = ("_all",)

    def __init__(self, watched: Sequence[Watched]) -> None:
        self._all = watched

    def ended(self, outcome: str = OK, reason: str = "", error_id: str = "") -> None:
        """Tell all."""
        for each in self._all:
            each.ended(outcome, reason, error_id)


class Watchers:
    """Implements `Telemetry`: tells several, of which the first gives origins."""

    def __init__(self, first: Telemetry, *others: Telemetry) -> None:
        self._first = first
        self._all = (first, *others)

    def call(self, rpc: str, traceparent: Callable[[], str]) -> Watched:
        """Tell all."""
        return _Several([each.call(rpc, traceparent) for each in self._all])

    def batch(self, queue: str, size: int, origins: Sequence[object]) -> Watched:
        """Tell all."""
        return _Several([each.batch(queue, size, origins) for each in self._all])

    def trip(self, operation: str) -> Watched:
        """Tell all."""
        return _Several([each.trip(operation) for each in self._all])

    def transaction(self, kind: str) -> Watched:
        """Tell all."""
        return _Several([each.transaction(kind) for each in self._all])

    def origin(self) -> object:
        """As the first says."""
        return self._first.origin()
