"""One writing transaction: delegates to the modules of each subject and remembers whether it left evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

from vault.domain.audit import AuditEvent
from vault.domain.card import Expiry
from vault.domain.grant import Grant
from vault.domain.ids import CustomerId, EventId, OnceId, OrderId, TenantId, Token
from vault.ports import (
    Approval,
    CardRef,
    Claim,
    Erased,
    IdempotencyId,
    IdempotencyRecord,
    NewCard,
    OnceKey,
    OutcomeReport,
)
from vault.store import write_cards, write_erasure, write_grants, write_idempotency, write_outcomes
from vault.store.columns import Engine
from vault.store.given import inserting, row_of
from vault.store.link import Batch, Link
from vault.store.oldest import wait_for_writers
from vault.store.reader import SqlReader
from vault.store.tables import audit_events, settings

T = TypeVar("T")


@cache
def _append_events(engine: Engine) -> Batch:
    statement, given = inserting(engine, audit_events)
    return Batch(statement, given)


@cache
def _put_setting(engine: Engine) -> Batch:
    statement, given = inserting(engine, settings)
    statement = statement.on_conflict_do_update(
        index_elements=[settings.c.name], set_={"value": statement.excluded.value}
    )
    return Batch(statement, given)


@cache
def _put_back_events(engine: Engine) -> Batch:
    statement, given = inserting(engine, audit_events)
    return Batch(statement.on_conflict_do_nothing(index_elements=list(audit_events.primary_key.columns)), given)


def _event_rows(events: Sequence[AuditEvent]) -> list[list[Any]]:
    return [
        row_of(
            audit_events,
            {
                "tenant_id": event.tenant,
                "event_id": event.event_id,
                "occurred_at": event.occurred_at,
                "event": event.event,
                "outcome": event.outcome.value,
                "reason": event.reason,
                "actor": event.actor,
                "actor_certificate": event.actor_certificate,
                "role": event.role,
                "peer": event.peer,
                "request_id": event.request_id,
                "customer_id": event.customer,
                "target": event.target,
                "order_id": event.order,
                "processor": event.processor,
                "grant_sha256": event.grant_sha256,
                "details": event.details,
            },
        )
        for event in sorted(events, key=lambda event: (event.tenant, event.grant_sha256 or b"", event.event_id))
    ]


class SqlWriter(SqlReader):
    """Implements `ports.Writer`; the docstrings there are the contract."""

    __slots__ = ("_changed", "_event_recorded", "erased")

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._changed = False
        self._event_recorded = False
        self.erased = False
        """Whether secrets were destroyed, so that their bytes must leave the write-ahead log."""

    def require_evidence(self) -> None:
        """Called before COMMIT. Raises `AssertionError` if something changed and no event says so."""
        if self._changed and not self._event_recorded:
            raise AssertionError("a transaction that changed something must append an audit event")

    def append_events(self, events: Sequence[AuditEvent]) -> None:
        """Add to the audit log."""
        values = _event_rows(events)
        self._link.batch_count(_append_events(self._link.engine), values)
        self._event_recorded |= bool(values)

    def _put_back_events(self, events: Sequence[AuditEvent]) -> None:
        """Add those that are not there, as after a restore."""
        self._link.batch_count(_put_back_events(self._link.engine), _event_rows(events))
        self._event_recorded |= bool(events)

    def claim_idempotency(self, records: Sequence[IdempotencyRecord], *, now: datetime) -> frozenset[IdempotencyId]:
        """Insert those whose key is free (absent, or expired by `now`)."""
        return self._noted(write_idempotency.claim(self._link, records, now))

    def replace_answers(self, answers: Mapping[IdempotencyId, Mapping[str, str | int]]) -> None:
        """Exchange the answers of existing records."""
        self._noted(write_idempotency.replace_answers(self._link, answers))

    def release_idempotency(self, ids: Sequence[IdempotencyId]) -> None:
        """Take claims back that this same transaction made."""
        self._noted(write_idempotency.release(self._link, ids))

    def insert_new_cards(self, cards: Sequence[NewCard]) -> frozenset[Token]:
        """Store those whose fingerprint is not stored yet."""
        return self._noted(write_cards.insert_new(self._link, cards))

    def reseal_cards(self, cards: Sequence[NewCard]) -> frozenset[Token]:
        """Replace expiry, consent, state and secret where the stored record version is one less."""
        return self._noted(write_cards.reseal(self._link, cards))

    def insert_once_keys(self, keys: Sequence[OnceKey]) -> None:
        """Keep the wrapped keys of one-time tokens."""
        write_grants.insert_once(self._link, keys)
        self._noted(keys)

    def void_once_keys(self, ids: Sequence[tuple[TenantId, OnceId]]) -> frozenset[OnceId]:
        """Destroy wrapped keys that still exist and revoke open grants for them."""
        return self._noted(write_grants.void_once(self._link, ids))

    def expire_once_keys(self, *, now: datetime, limit: int) -> int:
        """Destroy wrapped keys expired by `now` and forget rows expired for a day."""
        destroyed, forgotten = write_grants.expire_once(self._link, now=now, limit=limit)
        self._noted(destroyed + forgotten)
        return destroyed

    def insert_grants(self, grants: Sequence[Grant]) -> frozenset[bytes]:
        """Insert open grants where no other is open for the same tenant, subject and order."""
        return self._noted(write_grants.insert(self._link, grants))

    def revoke_open_grants(self, subjects: Sequence[tuple[TenantId, str, OrderId]], *, now: datetime) -> int:
        """Revoke whatever open grants exist for these subjects and orders."""
        return self._noted(write_grants.revoke_for_subjects(self._link, subjects, now))

    def revoke_grants(self, grants: Sequence[tuple[TenantId, bytes]], *, now: datetime) -> frozenset[bytes]:
        """Revoke these grants where open."""
        return self._noted(write_grants.revoke(self._link, grants, now))

    def claim_grants(self, claims: Sequence[Claim], *, now: datetime) -> frozenset[bytes]:
        """Use up grants, each at most once ever."""
        return self._noted(write_grants.claim(self._link, claims, now))

    def record_outcomes(self, reports: Sequence[OutcomeReport], *, now: datetime) -> Mapping[bytes, CardRef | None]:
        """Record the first outcome of used grants, where processor and order are the grant's."""
        return self._noted(write_outcomes.record(self._link, reports, now))

    def approve_cards(self, approvals: Sequence[Approval]) -> frozenset[Token]:
        """Make pending cards active; returns those that became so."""
        activated, kept = write_outcomes.approve(self._link, approvals)
        self._noted(kept)
        return self._noted(activated)

    def update_expiry(self, ref: CardRef, expiry: Expiry) -> bool:
        """Change the display column."""
        return self._noted(write_cards.update_expiry(self._link, ref, expiry))

    def set_default(self, ref: CardRef) -> bool:
        """Make it the customer's default card."""
        return self._noted(write_cards.set_default(self._link, ref))

    def erase_cards(
        self,
        tenant: TenantId,
        customer: CustomerId,
        token: Token | None,
        *,
        event_id: EventId,
        now: datetime,
        only_pending: bool = False,
    ) -> Erased:
        """Erase one card, or all cards of the customer; with `only_pending` none that is active."""
        erased = write_erasure.erase(
            self._link, tenant, customer, token, event_id=event_id, now=now, only_pending=only_pending
        )
        self._destroyed(erased.cards)
        return erased

    def put_setting(self, name: str, value: str) -> None:
        """Record a fact about this database."""
        wait_for_writers(self._link, name)
        self._link.batch_count(_put_setting(self._link.engine), [(name, value)])

    def _noted(self, outcome: T) -> T:
        """`outcome`, remembered as a change unless it is empty, zero or false."""
        self._changed |= bool(outcome)
        return outcome

    def _destroyed(self, outcome: T) -> T:
        """The same for what must not be found in old pages either."""
        self.erased |= bool(outcome)
        return self._noted(outcome)
