"""What is kept about one customer: the ledger of consents as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, select

from vault.domain.consent import LedgerEntry, Withdrawal
from vault.domain.ids import ConsentId, CustomerId, EventId, TenantId, Token
from vault.store import rows as as_domain
from vault.store.link import Link
from vault.store.rows import CONSENT_COLUMNS, GIVEN
from vault.store.tables import audit_events, cards, consents

_TENANT: Any = bindparam("tenant")
_CUSTOMER: Any = bindparam("customer")
_MINE = and_(consents.c.tenant_id == _TENANT, consents.c.customer_id == _CUSTOMER)

_LEDGER_COLUMNS: tuple[ColumnElement[Any], ...] = (
    *CONSENT_COLUMNS,
    consents.c.kind,
    consents.c.withdraws_consent_id,
    consents.c.event_id,
    audit_events.c.actor,
    cards.c.token.label("card_token"),
)

_LEDGER = (
    select(*_LEDGER_COLUMNS)
    .select_from(
        consents.outerjoin(
            audit_events,
            and_(audit_events.c.tenant_id == consents.c.tenant_id, audit_events.c.event_id == consents.c.event_id),
        ).outerjoin(
            cards,
            and_(
                cards.c.tenant_id == consents.c.tenant_id,
                cards.c.token == consents.c.token,
                cards.c.consent_id == consents.c.consent_id,
            ),
        )
    )
    .where(_MINE)
    .order_by(consents.c.recorded_at, consents.c.kind, consents.c.consent_id)
)


def ledger(link: Link, tenant: TenantId, customer: CustomerId) -> Sequence[LedgerEntry]:
    """Every entry, oldest first."""
    found = link.rows(_LEDGER, {"tenant": tenant, "customer": customer})
    return tuple(
        LedgerEntry(
            consent_id=ConsentId(row.consent_id),
            customer=customer,
            token=Token(row.consent_token),
            what=as_domain.consent_entry(row, tenant)
            if row.kind == GIVEN
            else Withdrawal(ConsentId(row.withdraws_consent_id), EventId(row.event_id), row.actor or ""),
            recorded_at=row.agreed_at,
            is_of_card=row.card_token is not None,
        )
        for row in found
    )
