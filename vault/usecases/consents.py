"""The evidence for a dispute: a customer's ledger of consents as it stands. Looking at it is an audit event itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from vault.domain.consent import LedgerEntry, Standing, standings
from vault.domain.ids import CustomerId, TenantId
from vault.usecases.operating import Operator, OperatorWorld

SHOWN = "consent.shown"


@dataclass(frozen=True, slots=True)
class Evidence:
    """A customer's whole ledger, oldest entry first, and how each entry stood when it was shown."""

    tenant: TenantId
    customer: CustomerId
    shown_at: datetime
    entries: Sequence[tuple[LedgerEntry, Standing]]


class ShowConsents:
    """The use case. Needs no key."""

    def __init__(self, *, world: OperatorWorld) -> None:
        self._world = world

    def __call__(self, operator: Operator, tenant: TenantId, customer: CustomerId) -> Evidence:
        """The evidence; empty for an unknown customer. Raises `StoreUnavailable`."""
        with self._world.store.reading() as tx:
            ledger = tx.consent_ledger(tenant, customer)
        event = self._world.event(operator, SHOWN, tenant=tenant, customer=customer, entries=len(ledger))
        # Shown only once it is on record who looked.
        with self._world.store.writing() as tx:
            tx.append_events([event])
        now = event.occurred_at
        return Evidence(tenant, customer, now, tuple(zip(ledger, standings(ledger, now=now), strict=True)))
