"""Erases every card of one tenant, customer by customer; the rows that are left are what is still to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from vault.domain.ids import CustomerId, TenantId
from vault.ports_operator import Selection
from vault.usecases.operating import PAGE, Operator, OperatorWorld, Persist, Progress, at_once, unwatched


@dataclass(slots=True)
class DecommissionReport:
    """What a run did."""

    total: int
    cards: int = 0
    customers: int = 0
    grants_revoked: int = 0


class DecommissionTenant:
    """The use case. Needs no key; run it again to resume."""

    def __init__(self, *, world: OperatorWorld) -> None:
        self._world = world

    def count(self, tenant: TenantId) -> int:
        """How many cards the tenant has."""
        with self._world.store.reading() as tx:
            return tx.count_secrets(Selection(tenant=tenant))

    def __call__(
        self, operator: Operator, tenant: TenantId, *, persist: Persist = at_once, progress: Progress = unwatched
    ) -> DecommissionReport:
        """Erase until nothing is left. Raises `StoreUnavailable` at last."""
        report = DecommissionReport(persist(partial(self.count, tenant)))
        while customers := persist(partial(self._some_customers, tenant)):
            for customer in customers:
                persist(partial(self._erase, operator, tenant, customer, report))
                progress(report.cards, report.total)
        return report

    def _some_customers(self, tenant: TenantId) -> Sequence[CustomerId]:
        with self._world.store.reading() as tx:
            page = tx.secrets(Selection(tenant=tenant), after=None, limit=PAGE)
        return list(dict.fromkeys(secret.wrap.customer for secret in page))

    def _erase(self, operator: Operator, tenant: TenantId, customer: CustomerId, report: DecommissionReport) -> None:
        event = self._world.event(operator, "customer.erased", tenant=tenant, customer=customer)
        with self._world.store.writing() as tx:
            erased = tx.erase_cards(tenant, customer, None, event_id=event.event_id, now=event.occurred_at)
            tx.append_events([event])
        report.cards += erased.cards
        report.customers += 1
        report.grants_revoked += erased.grants_revoked
