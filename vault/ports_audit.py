"""What the audit log asks of the database: committed events in, their places in the log, hashes, checkpoints.

The same rules as in `ports`. The log is one for all tenants; only commands and chores of the vault itself read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from vault.domain.audit import AuditEvent
from vault.domain.ids import EventId, TenantId, Token
from vault.ports import Reader, Writer


@dataclass(frozen=True, slots=True)
class QueuedEvent:
    """A committed event that waits for its place in the log."""

    number: int
    event: AuditEvent


@dataclass(frozen=True, slots=True)
class LogHead:
    """Where the log ends."""

    size: int
    frontier: bytes
    """Hashes of the complete subtrees at its right edge, 32 bytes each, largest first."""


@dataclass(frozen=True, slots=True)
class NewLeaf:
    """An event's place in the log."""

    index: int
    tenant: str
    event_id: EventId
    leaf_hash: bytes


@dataclass(frozen=True, slots=True)
class NewNode:
    """A hash over a complete part of the log."""

    level: int
    index: int
    value: bytes


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """What stands at a place in the log."""

    index: int
    tenant: str
    event_id: EventId
    leaf_hash: bytes
    event: AuditEvent | None
    """None if someone removed it, or made of it what is no event."""


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A signed checkpoint."""

    size: int
    root: bytes
    note: str
    signed_at: datetime


@dataclass(frozen=True, slots=True)
class LogState:
    """How far the log is, in numbers."""

    size: int
    queued: int
    """Committed and not yet in the log."""
    oldest_queued: datetime | None
    """The earliest time of the first thousand that wait: one may lie far back because somebody wrote it so."""
    latest_queued: datetime | None
    """The latest time of the same. In the future: a clock is wrong, or somebody wrote it so."""
    newest_checkpoint: StoredCheckpoint | None


@dataclass(frozen=True, slots=True)
class QueueHealth:
    """What waits, and what nobody but a forger leaves behind; all as of one moment."""

    waiting: int
    orphaned: int
    """Waiting without an event: someone removed it."""
    repeated: int
    """Waiting more than once, or although they have a place."""
    unlogged: Sequence[EventId]
    """Events that are neither in the log nor in the queue: someone slipped them in, or took them out of it."""
    beyond: int | None
    """The first place that is taken outside of the log."""


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some of the events of a time."""

    events: Sequence[AuditEvent]
    unreadable: int
    """Rows among them that are no events: no program of ours wrote them."""
    next: tuple[datetime, str] | None
    """Where the rest begins; None if that was all."""


class LogReader(Reader, Protocol):
    """Queries on the log."""

    def log_head(self) -> LogHead:
        """Where the log ends."""

    def log_state(self) -> LogState:
        """The same in numbers, with what waits."""

    def queued_events(self, limit: int) -> Sequence[QueuedEvent]:
        """Events that wait, in the order of their arrival; without rows that are no events."""

    def queue_health(self, limit: int) -> QueueHealth:
        """What waits, with at most so many unlogged events."""

    def logged_events(self, start: int, limit: int) -> Sequence[LoggedEvent]:
        """Places of the log in order, from `start` on."""

    def place_of(self, event_id: EventId, tenant: TenantId | None) -> tuple[int, AuditEvent] | None:
        """Where an event stands in the log, if it does."""

    def log_nodes(self, level: int, start: int, count: int) -> Sequence[bytes]:
        """Stored hashes of a level (0: leaves, 8, 16, …) in order."""

    def checkpoints(self, *, after: int, limit: int) -> Sequence[StoredCheckpoint]:
        """Checkpoints of more than `after` events, in order of size."""

    def newest_checkpoint(self) -> StoredCheckpoint | None:
        """The one of the greatest size."""

    def events_between(
        self, since: datetime, until: datetime, *, after: tuple[datetime, str] | None, limit: int
    ) -> EventPage:
        """Events of that time in order (time, then id), in the log or not."""

    def count_out_of_time(self) -> int:
        """Rows whose time is none that an event could have."""

    def is_stored_or_erased(self, tenant: TenantId, token: Token) -> bool:
        """Whether a card of this token is there, or a tombstone of it."""

    def actors_before(self, moment: datetime) -> frozenset[str]:
        """Everybody who stands in an event before that time."""


class LogWriter(LogReader, Writer, Protocol):
    """Changes of the log. They are its own evidence: no event is asked for."""

    def append_to_log(
        self,
        before: LogHead,
        after: LogHead,
        *,
        leaves: Sequence[NewLeaf],
        nodes: Sequence[NewNode],
        numbers: Sequence[int],
    ) -> bool:
        """Add leaves and nodes and take these numbers out of the queue; False, and nothing done, if the log moved."""

    def put_back_in_log(
        self,
        before: LogHead,
        after: LogHead,
        *,
        events: Sequence[AuditEvent],
        leaves: Sequence[NewLeaf],
        nodes: Sequence[NewNode],
    ) -> bool:
        """As `append_to_log` for events that a restored database may lack; those that it lacks are added."""

    def revoke_every_grant(self, *, now: datetime) -> int:
        """Revoke all open grants of all tenants; returns how many."""

    def destroy_every_once_key(self) -> int:
        """Destroy the wrapped keys of all one-time tokens; returns how many."""

    def add_checkpoint(self, checkpoint: StoredCheckpoint) -> bool:
        """Keep a checkpoint; False if there is one of this size."""


class LogStore(Protocol):
    """The database, as the log sees it."""

    def reading(self) -> AbstractContextManager[LogReader]:
        """As in `Store`."""

    def writing(self) -> AbstractContextManager[LogWriter]:
        """As in `Store`."""

    def exclusively(self, what: str) -> AbstractContextManager[None]:
        """As in `OperatorStore`."""
