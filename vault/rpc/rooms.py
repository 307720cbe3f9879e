"""How many calls may be in flight: in all, for each client, and for those whom nobody knows."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field

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
        self._calls = _Places(limits.calls)
        self._watchers = _Places(limits.watchers)

    @property
    def in_flight(self) -> int:
        """Calls that have a place now."""
        return self._calls.taken

    def call(self, caller: Caller) -> AbstractContextManager[None]:
        """A place for one call. Raises `Exhausted`."""
        if caller.identity is None:
            return _Place(self._calls, STRANGERS, self._limits.calls_of_strangers)
        return _Place(self._calls, caller.presented_uri, self._limits.calls_of_one_client)

    def watcher(self, certificate: str) -> AbstractContextManager[None]:
        """A place for one stream. Raises `Exhausted`."""
        return _Place(self._watchers, certificate, self._limits.watchers_of_one_client)


@dataclass(slots=True)
class _Places:
    total: int
    taken: int = 0
    by_whom: dict[str, int] = field(default_factory=dict)


class _Place:
    """One place, from when it is entered until it is left."""

    __slots__ = ("_cap", "_places", "_who")

    def __init__(self, places: _Places, who: str, cap: int) -> None:
        self._places = places
        self._who = who
        self._cap = cap

    def __enter__(self) -> None:
        places = self._places
        if places.taken >= places.total:
            raise Exhausted("calls_in_flight")
        mine = places.by_whom.get(self._who, 0)
        if mine >= self._cap:
            raise Exhausted("calls_in_flight_of_client")
        places.taken += 1
        places.by_whom[self._who] = mine + 1

    def __exit__(self, *_: object) -> None:
        places = self._places
        places.taken -= 1
        places.by_whom[self._who] -= 1
        if not places.by_whom[self._who]:
            del places.by_whom[self._who]
