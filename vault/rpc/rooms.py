"""How many calls may be in flight: in all, for each client, and for those whom nobody knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vault.domain.caller import Caller
from vault.domain.errors import Exhausted

STRANGERS = "strangers"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomLimits:
    """Bounds of one server process."""

    calls: int = 2048
    calls_of_one_client: int = 1024
    calls_of_strangers: int = 16
    """Of all certificates together that are mapped to nobody: each costs a line in the audit log."""
    watchers_of_one_client: int = 16
    watchers: int = 512
    """Streams of health; apart from the calls, so that waiting for news takes no place from work."""


class Rooms:
    """Counts calls in and out."""

    def __init__(self, limits: RoomLimits) -> None:
        self._limits = limits
        self._calls: Counter[str] = Counter()
        self._watchers: Counter[str] = Counter()

    @property
    def in_flight(self) -> int:
        """Calls that have a place now."""
        return self._calls.total()

    @contextmanager
    def call(self, caller: Caller) -> Iterator[None]:
        """A place for one call. Raises `Exhausted`."""
        limits = self._limits
        known = caller.identity is not None
        who = caller.presented_uri if known else STRANGERS
        cap = limits.calls_of_one_client if known else limits.calls_of_strangers
        with _place(self._calls, who, cap=cap, total=limits.calls):
            yield

    @contextmanager
    def watcher(self, certificate: str) -> Iterator[None]:
        """A place for one stream. Raises `Exhausted`."""
        limits = self._limits
        with _place(self._watchers, certificate, cap=limits.watchers_of_one_client, total=limits.watchers):
            yield


@contextmanager
def _place(counter: Counter[str], who: str, *, cap: int, total: int) -> Iterator[None]:
    if counter.total() >= total:
        raise Exhausted("calls_in_flight")
    if counter[who] >= cap:
        raise Exhausted("calls_in_flight_of_client")
    counter[who] += 1
    try:
        yield
    finally:
        counter[who] -= 1
        if not counter[who]:
            del counter[who]
