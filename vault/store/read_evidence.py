"""Counts for the periodic audit: what must be zero, and how old the oldest thing is."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import and_, bindparam, func, or_, select

from vault.domain.audit import RELEASED
from vault.domain.card import CardState
from vault.ports_operator import EvidenceCounts
from vault.store.columns import UtcTime, is_readable_time
from vault.store.link import Link
from vault.store.rows import OPEN, WITHDRAWN
from vault.store.tables import audit_events, cards, consents, erasures, once_keys

_MANY = func.count().label("many")
_CARDS = select(_MANY).select_from(cards)
_CUSTOMERS = select(_MANY).select_from(select(cards.c.tenant_id, cards.c.customer_id).distinct().subquery("customers"))
_ERASED = select(_MANY).select_from(erasures)
_SINCE = bindparam("since", type_=UtcTime())


def _without_consent() -> Any:
    """Cards whose consent is not in the ledger, or was withdrawn: the database itself refuses the first."""
    withdrawn = consents.alias("withdrawn")
    joined = cards.outerjoin(
        consents, and_(consents.c.tenant_id == cards.c.tenant_id, consents.c.consent_id == cards.c.consent_id)
    ).outerjoin(
        withdrawn,
        and_(
            withdrawn.c.tenant_id == cards.c.tenant_id,
            withdrawn.c.withdraws_consent_id == cards.c.consent_id,
            withdrawn.c.kind == WITHDRAWN,
        ),
    )
    return (
        select(_MANY)
        .select_from(joined)
        .where(or_(consents.c.consent_id.is_(None), withdrawn.c.consent_id.is_not(None)))
    )


def _without_grant() -> Any:
    """Releases of which no event says that a grant was issued."""
    released = (
        select(audit_events.c.tenant_id, audit_events.c.grant_sha256)
        .where(audit_events.c.event == RELEASED, audit_events.c.outcome == "ok")
        .subquery("released")
    )
    issued = (
        select(audit_events.c.tenant_id, audit_events.c.grant_sha256)
        .where(audit_events.c.event == "grant.issued", audit_events.c.outcome == "ok")
        .distinct()
        .subquery("issued")
    )
    same = and_(issued.c.tenant_id == released.c.tenant_id, issued.c.grant_sha256 == released.c.grant_sha256)
    return select(_MANY).select_from(released.outerjoin(issued, same)).where(issued.c.grant_sha256.is_(None))


_WITHOUT_CONSENT, _WITHOUT_GRANT = _without_consent(), _without_grant()
_PENDING = _CARDS.where(cards.c.state == int(CardState.PENDING))
_RELEASERS = (
    select(audit_events.c.actor, _MANY)
    .where(audit_events.c.event == RELEASED, audit_events.c.outcome == "ok", audit_events.c.occurred_at >= _SINCE)
    .group_by(audit_events.c.actor)
    .order_by(audit_events.c.actor)
)
_OLDEST_ONCE = select(func.min(once_keys.c.created_at).label("oldest")).where(once_keys.c.state == OPEN)
_REVIEWED = select(func.max(audit_events.c.occurred_at).label("newest")).where(
    is_readable_time(audit_events.c.occurred_at),
    audit_events.c.event == "audit.read",
    audit_events.c.target == "report",
)


def counts(link: Link, since: datetime) -> EvidenceCounts:
    """Everything at one moment; releases since a time."""
    return EvidenceCounts(
        cards=_count(link, _CARDS),
        cards_pending=_count(link, _PENDING),
        cards_without_consent=_count(link, _WITHOUT_CONSENT),
        releases_without_grant=_count(link, _WITHOUT_GRANT),
        releases={row.actor: row.many for row in link.rows(_RELEASERS, {"since": since})},
        oldest_once_key=link.rows(_OLDEST_ONCE)[0].oldest,
        last_review=link.rows(_REVIEWED)[0].newest,
    )


def count_customers(link: Link) -> int:
    """How many customers have a card, each shop's counted apart."""
    return _count(link, _CUSTOMERS)


def count_erased(link: Link) -> int:
    """How many tombstones there are."""
    return _count(link, _ERASED)


def _count(link: Link, statement: Any) -> int:
    many: int = link.rows(statement)[0].many
    return many
