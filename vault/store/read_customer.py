"""What is kept about one customer: the ledger of consents as it stands, and who got which card when."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Column, ColumnElement, Text, and_, bindparam, func, literal_column, select, tuple_

from vault.domain.audit import RELEASED, Outcome
from vault.domain.consent import GivenConsent, LedgerEntry, Withdrawal
from vault.domain.ids import ConsentId, CustomerId, EventId, OnceId, OrderId, ProcessorName, TenantId, Token
from vault.ports import ConsentCursor, Release, ReleaseCursor
from vault.store import rows as as_domain
from vault.store.columns import is_readable_time
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


_withdrawals = consents.alias("withdrawals")
_WITHDRAWN_AT = (
    select(func.min(_withdrawals.c.recorded_at))
    .where(
        _withdrawals.c.tenant_id == consents.c.tenant_id, _withdrawals.c.withdraws_consent_id == consents.c.consent_id
    )
    .correlate(consents)
    .scalar_subquery()
    .label("withdrawn_at")
)


@cache
def _given(*, with_cursor: bool) -> Any:
    statement = (
        select(*CONSENT_COLUMNS, _WITHDRAWN_AT)
        .where(_MINE, consents.c.kind == GIVEN)
        .order_by(consents.c.recorded_at, consents.c.consent_id)
        .limit(bindparam("limit"))
    )
    return statement.where(_after(consents.c.recorded_at, consents.c.consent_id)) if with_cursor else statement


# Written out, not parameters: only so can a prepared plan use the index whose condition they are.
_RELEASED_OK = and_(
    audit_events.c.event == literal_column(f"'{RELEASED}'", Text()),
    audit_events.c.outcome == literal_column(f"'{Outcome.OK.value}'", Text()),
)

# A forged time does not keep a customer from what is known.
_IN_TIME = is_readable_time(audit_events.c.occurred_at)


@cache
def _releases(*, with_cursor: bool) -> Any:
    statement = (
        select(
            audit_events.c.event_id,
            audit_events.c.target,
            audit_events.c.order_id,
            audit_events.c.processor,
            audit_events.c.occurred_at,
            audit_events.c.details,
        )
        .where(audit_events.c.tenant_id == _TENANT, audit_events.c.customer_id == _CUSTOMER, _RELEASED_OK, _IN_TIME)
        .order_by(audit_events.c.occurred_at, audit_events.c.event_id)
        .limit(bindparam("limit"))
    )
    return statement.where(_after(audit_events.c.occurred_at, audit_events.c.event_id)) if with_cursor else statement


def _after(moment: Column[Any], name: Column[Any]) -> ColumnElement[bool]:
    where = tuple_(bindparam("after_moment", type_=moment.type), bindparam("after_name", type_=name.type))
    return tuple_(moment, name) > where


def given(
    link: Link, tenant: TenantId, customer: CustomerId, after: ConsentCursor | None, limit: int
) -> Sequence[GivenConsent]:
    """Consents given, oldest first."""
    parameters: dict[str, Any] = {"tenant": tenant, "customer": customer, "limit": limit}
    if after is not None:
        parameters |= {"after_moment": after.agreed_at, "after_name": after.consent}
    found = link.rows(_given(with_cursor=after is not None), parameters)
    return link.read(lambda row: GivenConsent(as_domain.consent_entry(row, tenant), row.withdrawn_at), found)


def releases(
    link: Link, tenant: TenantId, customer: CustomerId, after: ReleaseCursor | None, limit: int
) -> Sequence[Release]:
    """Releases that name the customer, oldest first."""
    parameters: dict[str, Any] = {"tenant": tenant, "customer": customer, "limit": limit}
    if after is not None:
        parameters |= {"after_moment": after.released_at, "after_name": after.event}
    found = link.rows(_releases(with_cursor=after is not None), parameters)
    return link.read(_release, found)


def _release(row: Any) -> Release:
    by_one_time_token = row.target.startswith(OnceId.prefix)
    token = (row.details or {}).get("token") if by_one_time_token else row.target
    return Release(
        event=EventId(row.event_id),
        token=Token(str(token)) if token else None,
        order=OrderId(row.order_id),
        processor=ProcessorName(row.processor),
        released_at=row.occurred_at,
        by_one_time_token=by_one_time_token,
    )


def ledger(link: Link, tenant: TenantId, customer: CustomerId) -> Sequence[LedgerEntry]:
    """Every entry, oldest first."""
    found = link.rows(_LEDGER, {"tenant": tenant, "customer": customer})

    def entry(row: Any) -> LedgerEntry:
        return LedgerEntry(
            consent_id=ConsentId(row.consent_id),
            customer=customer,
            token=Token(row.consent_token),
            what=as_domain.consent_entry(row, tenant)
            if row.kind == GIVEN
            else Withdrawal(ConsentId(row.withdraws_consent_id), EventId(row.event_id), row.actor or ""),
            recorded_at=row.agreed_at,
            is_of_card=row.card_token is not None,
        )

    return link.read(entry, found)
