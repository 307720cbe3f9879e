"""Transactions as the audit log sees them: the methods of `ports_audit`, beside those that serving needs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from vault.domain.audit import AuditEvent
from vault.domain.ids import EventId, TenantId, Token
from vault.ports_audit import (
    EventPage,
    LoggedEvent,
    LogHead,
    LogState,
    NewLeaf,
    NewNode,
    QueuedEvent,
    QueueHealth,
    StoredCheckpoint,
)
from vault.store import log, write_grants
from vault.store.reader import SqlReader
from vault.store.writer import SqlWriter


class SqlLogReader(SqlReader):
    """Implements `ports_audit.LogReader`; the docstrings there are the contract."""

    __slots__ = ()

    def log_head(self) -> LogHead:
        """Where the log ends."""
        return log.head(self._link)

    def log_state(self) -> LogState:
        """The log in numbers."""
        return log.state(self._link)

    def queued_events(self, limit: int) -> Sequence[QueuedEvent]:
        """Events that wait, in the order of their arrival."""
        return log.queued(self._link, limit)

    def queue_health(self, limit: int) -> QueueHealth:
        """What waits, with at most so many unlogged events."""
        return log.queue_health(self._link, limit)

    def logged_events(self, start: int, limit: int) -> Sequence[LoggedEvent]:
        """Places of the log in order."""
        return log.logged(self._link, start, limit)

    def place_of(self, event_id: EventId, tenant: TenantId | None) -> tuple[int, AuditEvent] | None:
        """Where an event stands in the log."""
        return log.place_of(self._link, event_id, tenant)

    def log_nodes(self, level: int, start: int, count: int) -> Sequence[bytes]:
        """Stored hashes of a level."""
        return log.nodes(self._link, level, start, count)

    def checkpoints(self, *, after: int, limit: int) -> Sequence[StoredCheckpoint]:
        """Checkpoints in order of size."""
        return log.checkpoints(self._link, after, limit)

    def newest_checkpoint(self) -> StoredCheckpoint | None:
        """The one of the greatest size."""
        return log.newest_checkpoint(self._link)

    def events_between(
        self, since: datetime, until: datetime, *, after: tuple[datetime, str] | None, limit: int
    ) -> EventPage:
        """Events of a time, in order."""
        return log.between(self._link, since, until, after, limit)

    def count_out_of_time(self) -> int:
        """Rows whose time is none."""
        return log.count_out_of_time(self._link)

    def is_stored_or_erased(self, tenant: TenantId, token: Token) -> bool:
        """Whether a card of this token is there, or a tombstone of it."""
        return log.is_stored_or_erased(self._link, tenant, token)

    def actors_before(self, moment: datetime) -> frozenset[str]:
        """Everybody who stands in an event before that time."""
        return log.actors_before(self._link, moment)


class SqlLogWriter(SqlLogReader, SqlWriter):
    """Implements `ports_audit.LogWriter`; the docstrings there are the contract."""

    __slots__ = ()

    def append_to_log(
        self,
        before: LogHead,
        after: LogHead,
        *,
        leaves: Sequence[NewLeaf],
        nodes: Sequence[NewNode],
        numbers: Sequence[int],
    ) -> bool:
        """Add leaves and nodes; False, and nothing done, if the log moved."""
        return log.append(self._link, before, after, leaves, nodes, numbers)

    def put_back_in_log(
        self,
        before: LogHead,
        after: LogHead,
        *,
        events: Sequence[AuditEvent],
        leaves: Sequence[NewLeaf],
        nodes: Sequence[NewNode],
    ) -> bool:
        """Add leaves and nodes, and the events that are not there."""
        if not log.append(self._link, before, after, leaves, nodes, ()):
            return False
        self._put_back_events(events)
        log.dequeue_events(self._link, events)
        return True

    def revoke_every_grant(self, *, now: datetime) -> int:
        """Revoke all open grants."""
        return self._noted(write_grants.revoke_every(self._link, now))

    def destroy_every_once_key(self) -> int:
        """Destroy all wrapped keys of one-time tokens."""
        return self._destroyed(write_grants.destroy_every_once(self._link))

    def add_checkpoint(self, checkpoint: StoredCheckpoint) -> bool:
        """Keep a checkpoint; False if there is one of this size."""
        return log.add_checkpoint(self._link, checkpoint)
