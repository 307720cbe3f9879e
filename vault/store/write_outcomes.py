"""Outcomes of payments: the first one stands, and a pending card becomes active with the first approval.

Cards are locked before grants, as everywhere; see `write_grants`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import and_, bindparam, func, select, update

from vault.domain.card import CardState
from vault.domain.grant import GrantState
from vault.domain.ids import CustomerId, TenantId, Token
from vault.ports import Approval, CardRef, OutcomeReport
from vault.store.columns import Engine, UtcTime
from vault.store.given import Given
from vault.store.link import Batch, Link
from vault.store.tables import cards, grants, once_keys

_GRANT = (grants.c.tenant_id, grants.c.grant_sha256)
_NOW = bindparam("now", type_=UtcTime())


@cache
def _cards_of_grants(engine: Engine) -> Batch:
    """The stored card that each grant is about; for a one-time token the one that was stored in the same call."""
    given = Given(engine, _GRANT)
    found = (
        given.rows.join(grants, and_(*(c == given.c[c.name] for c in _GRANT)))
        .outerjoin(
            once_keys, and_(once_keys.c.tenant_id == grants.c.tenant_id, once_keys.c.once_id == grants.c.once_id)
        )
        .join(
            cards,
            and_(
                cards.c.tenant_id == grants.c.tenant_id,
                cards.c.token == func.coalesce(grants.c.token, once_keys.c.token),
            ),
        )
    )
    statement = (
        select(grants.c.grant_sha256, cards.c.tenant_id, cards.c.customer_id, cards.c.token)
        .select_from(found)
        .order_by(cards.c.tenant_id, cards.c.token)
        .with_for_update(of=cards)
    )
    return Batch(statement, given)


@cache
def _record(engine: Engine) -> Batch:
    given = Given(engine, [*_GRANT, grants.c.order_id, grants.c.processor, grants.c.outcome])
    statement = (
        update(grants)
        .values(outcome=given.c.outcome, outcome_at=_NOW)
        .where(
            *(c == given.c[c.name] for c in _GRANT),
            grants.c.order_id == given.c.order_id,
            grants.c.processor == given.c.processor,
            grants.c.state == GrantState.USED.value,
            grants.c.outcome.is_(None),
        )
        .returning(grants.c.grant_sha256)
    )
    return Batch(statement, given)


_CARD = (cards.c.tenant_id, cards.c.token)


@cache
def _activate(engine: Engine) -> Batch:
    given = Given(engine, _CARD)
    statement = (
        update(cards)
        .values(state=int(CardState.ACTIVE))
        .where(*(c == given.c[c.name] for c in _CARD), cards.c.state == int(CardState.PENDING))
        .returning(cards.c.token)
    )
    return Batch(statement, given)


@cache
def _keep_id(engine: Engine) -> Batch:
    given = Given(engine, [*_CARD, cards.c.network_transaction_id])
    statement = (
        update(cards)
        .values(network_transaction_id=given.c.network_transaction_id)
        .where(*(c == given.c[c.name] for c in _CARD), cards.c.network_transaction_id.is_(None))
        .returning(cards.c.token)
    )
    return Batch(statement, given)


def record(link: Link, reports: Sequence[OutcomeReport], now: datetime) -> Mapping[bytes, CardRef | None]:
    """First outcomes, with the card that each is about if it is still stored."""
    ordered = sorted(
        ((tenant, each) for each in reports for tenant in each.grant.tenants),
        key=lambda pair: (pair[0], pair[1].grant.grant_sha256),
    )
    named = [(tenant, each.grant.grant_sha256) for tenant, each in ordered]
    found = {
        row.grant_sha256: CardRef(TenantId(row.tenant_id), CustomerId(row.customer_id), Token(row.token))
        for row in link.batch_rows(_cards_of_grants(link.engine), named)
    }
    rows: list[tuple[Any, ...]] = [
        (tenant, each.grant.grant_sha256, each.order, each.processor, int(each.outcome)) for tenant, each in ordered
    ]
    recorded = link.batch_rows(_record(link.engine), rows, now=now)
    return {row.grant_sha256: found.get(row.grant_sha256) for row in recorded}


def approve(link: Link, approvals: Sequence[Approval]) -> tuple[frozenset[Token], frozenset[Token]]:
    """Cards that became active, and cards that keep this network transaction id because they had none yet."""
    first: dict[tuple[TenantId, Token], str] = {}
    for each in approvals:
        if each.network_transaction_id is not None:
            first.setdefault((each.card.tenant, each.card.token), each.network_transaction_id)
    named = sorted({(each.card.tenant, each.card.token) for each in approvals})
    activated = link.batch_rows(_activate(link.engine), named)
    kept = link.batch_rows(_keep_id(link.engine), [(*card, first[card]) for card in sorted(first)])
    return frozenset(Token(row.token) for row in activated), frozenset(Token(row.token) for row in kept)
