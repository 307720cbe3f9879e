"""Erasing cards: what opens them goes, and the ledger and a tombstone say so."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Table, bindparam, delete, select, tuple_

from vault.domain.card import CardState
from vault.domain.ids import RANDOM_BYTES, ConsentId, CustomerId, EventId, TenantId, Token
from vault.ports import Erased
from vault.store import write_grants, write_idempotency
from vault.store.columns import Engine
from vault.store.given import Given, inserting, row_of
from vault.store.link import Batch, Link
from vault.store.rows import WITHDRAWN
from vault.store.tables import card_secrets, cards, consents, erasures


@cache
def _find(engine: Engine, *, one: bool, only_pending: bool) -> Any:
    statement = select(cards.c.token, cards.c.consent_id).where(
        cards.c.tenant_id == bindparam("tenant"), cards.c.customer_id == bindparam("customer")
    )
    if engine is Engine.POSTGRESQL:
        # SQLite, which has no locks to take in an order, would find all cards of the tenant in this one.
        statement = statement.order_by(cards.c.tenant_id, cards.c.token).with_for_update()
    if only_pending:
        statement = statement.where(cards.c.state == int(CardState.PENDING))
    return statement.where(cards.c.token == bindparam("wanted")) if one else statement


@cache
def _delete(engine: Engine, table: Table) -> Batch:
    given = Given(engine, [table.c.tenant_id, table.c.token])
    wanted = select(given.c.tenant_id, given.c.token)
    return Batch(delete(table).where(tuple_(table.c.tenant_id, table.c.token).in_(wanted)), given)


@cache
def _record(engine: Engine, table: Table) -> Batch:
    statement, given = inserting(engine, table)
    # A card that a restored backup brought back is erased again; what was recorded the first time stays.
    return Batch(statement.on_conflict_do_nothing(index_elements=list(table.primary_key.columns)), given)


def withdrawal_of(consent: ConsentId) -> ConsentId:
    """Name of the ledger entry that ends a consent: always the same, so that there is one."""
    return ConsentId.from_random(hashlib.sha256(b"cardvault.withdrawal.v1" + consent.raw()).digest()[:RANDOM_BYTES])


@dataclass(frozen=True, slots=True)
class Doomed:
    """A card to be erased, its row locked; and the audit event that says who asked for it."""

    tenant: TenantId
    token: str
    customer: str
    consent: str
    event_id: EventId


def erase(
    link: Link,
    tenant: TenantId,
    customer: CustomerId,
    token: Token | None,
    *,
    event_id: EventId,
    now: datetime,
    only_pending: bool,
) -> Erased:
    """Erase one card of the customer, or all; perhaps only if pending."""
    parameters: dict[str, Any] = {"tenant": tenant, "customer": customer}
    if token is not None:
        parameters["wanted"] = token
    found = link.rows(_find(link.engine, one=token is not None, only_pending=only_pending), parameters)
    return erase_found(link, [Doomed(tenant, row.token, customer, row.consent_id, event_id) for row in found], now)


def erase_found(link: Link, doomed: Sequence[Doomed], now: datetime) -> Erased:
    """Erase cards whose rows this transaction has locked, in their order."""
    if not doomed:
        return Erased(0, 0)
    erased = [(card.tenant, card.token) for card in doomed]
    link.batch_count(_delete(link.engine, card_secrets), erased)
    link.batch_count(_delete(link.engine, cards), erased)
    revoked = write_grants.revoke_for_tokens(link, erased, now)
    write_idempotency.empty_for_cards(link, erased)
    withdrawals = [
        row_of(
            consents,
            {
                "tenant_id": card.tenant,
                "consent_id": withdrawal_of(ConsentId(card.consent)),
                "kind": WITHDRAWN,
                "withdraws_consent_id": card.consent,
                "customer_id": card.customer,
                "token": card.token,
                "recorded_at": now,
                "event_id": card.event_id,
            },
        )
        for card in doomed
    ]
    link.batch_count(_record(link.engine, consents), withdrawals)
    tombstones = [
        row_of(
            erasures,
            {
                "tenant_id": card.tenant,
                "token": card.token,
                "customer_id": card.customer,
                "erased_at": now,
                "event_id": card.event_id,
            },
        )
        for card in doomed
    ]
    link.batch_count(_record(link.engine, erasures), tombstones)
    return Erased(cards=len(doomed), grants_revoked=revoked)
