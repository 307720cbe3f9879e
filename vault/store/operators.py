"""Transactions as operator commands and the audit log see them, beside what serving needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from vault.domain.audit import AuditEvent
from vault.domain.ids import EventId, TenantId, Token
from vault.ports_audit import (
    LoggedEvent,
    LogHead,
    LogState,
    NewLeaf,
    NewNode,
    QueuedEvent,
    StoredCheckpoint,
)
from vault.ports_operator import (
    CardKey,
    RekeyedCard,
    Selection,
    StoredSecret,
    StoredWrap,
    WrapReplacement,
)
from vault.store import log, read_wraps, write_grants, write_wraps
from vault.store.reader import SqlReader
from vault.store.writer import SqlWriter


class SqlOperatorReader(SqlReader):
    """Implements `ports_operator.OperatorReader`; the docstrings there are the contract."""

    __slots__ = ()

    def count_wraps(self) -> Mapping[int, int]:
        """Stored cards by version of their wrap."""
        return read_wraps.count_wraps(self._link)

    def count_previous_wraps(self) -> Mapping[int, int]:
        """Former wraps by version."""
        return read_wraps.count_former_wraps(self._link)

    def count_once_wraps(self, *, now: datetime) -> Mapping[int, int]:
        """Unspent, unexpired one-time tokens by version of their wrap."""
        return read_wraps.count_once_wraps(self._link, now)

    def count_fingerprints(self) -> Mapping[int, int]:
        """Stored cards by version of their fingerprint."""
        return read_wraps.count_fingerprints(self._link)

    def wraps_below(self, version: int, *, after: CardKey | None, limit: int) -> Sequence[StoredWrap]:
        """Wraps under older versions, in order, after a card. A page shorter than `limit` is the last."""
        return read_wraps.wraps_below(self._link, version, after, limit)

    def secrets(self, selection: Selection, *, after: CardKey | None, limit: int) -> Sequence[StoredSecret]:
        """Stored cards in order, after a card. A page shorter than `limit` is the last."""
        return read_wraps.secrets(self._link, selection, after, limit)

    def secrets_of(self, cards: Sequence[CardKey]) -> Mapping[CardKey, StoredSecret]:
        """These stored cards, as far as they exist."""
        return read_wraps.secrets_of(self._link, cards)

    def count_secrets(self, selection: Selection) -> int:
        """How many `secrets` would walk over, and cards whose secret was removed behind the vault's back."""
        return read_wraps.count_secrets(self._link, selection)

    def settings(self, prefix: str) -> Mapping[str, str]:
        """Facts whose name begins with `prefix`."""
        return read_wraps.settings_of(self._link, prefix)

    # --- `ports_audit.LogReader` ---

    def log_head(self) -> LogHead:
        """Where the log ends."""
        return log.head(self._link)

    def log_state(self) -> LogState:
        """The log in numbers."""
        return log.state(self._link)

    def queued_events(self, limit: int) -> Sequence[QueuedEvent]:
        """Events that wait, in the order of their arrival."""
        return log.queued(self._link, limit)

    def queued_only(self) -> int:
        """How many wait."""
        return log.count_queued(self._link)

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

    def unlogged_events(self, limit: int) -> Sequence[EventId]:
        """Events that are neither in the log nor in the queue."""
        return log.unlogged(self._link, limit)

    def events_between(
        self, since: datetime, until: datetime, *, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[AuditEvent]:
        """Events of a time, in order."""
        return log.between(self._link, since, until, after, limit)

    def is_stored_or_erased(self, tenant: TenantId, token: Token) -> bool:
        """Whether a card of this token is there, or a tombstone of it."""
        return log.is_stored_or_erased(self._link, tenant, token)

    def actors_before(self, moment: datetime) -> frozenset[str]:
        """Everybody who stands in an event before that time."""
        return log.actors_before(self._link, moment)


class SqlOperatorWriter(SqlOperatorReader, SqlWriter):
    """Implements `ports_operator.OperatorWriter`; the docstrings there are the contract."""

    __slots__ = ()

    def replace_wraps(self, replacements: Sequence[WrapReplacement]) -> frozenset[CardKey]:
        """Exchange wraps where the stored one is still `old`, and keep that as the former wrap.

        There is room for one former wrap: forget those of the rotation before only once they are not needed, and
        before this one begins.
        """
        return self._noted(write_wraps.replace(self._link, replacements))

    def forget_previous_wraps(self, *, below: int, limit: int) -> int:
        """Remove former wraps under versions below this one for good."""
        return self._destroyed(write_wraps.forget_former(self._link, below, limit))

    def restore_previous_wraps(self, *, above: int, below: int = 0, limit: int) -> int:
        """Exchange current and former wrap where the current version is greater than `above` or less than `below`.

        Where the former one is too, it would help no more than the current one: both stay as they are.
        """
        return self._noted(write_wraps.restore_former(self._link, above, below, limit))

    def rekey_cards(self, cards: Sequence[RekeyedCard]) -> frozenset[CardKey]:
        """Replace wrap, ciphertext and fingerprint where the record version is still the expected one.

        Where another card of the tenant has the new fingerprint already, the former one stays; the rest is replaced.
        """
        return self._destroyed(write_wraps.rekey(self._link, cards))

    def delete_setting(self, name: str) -> None:
        """Forget a fact."""
        write_wraps.delete_setting(self._link, name)

    # --- `ports_audit.LogWriter` ---

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
