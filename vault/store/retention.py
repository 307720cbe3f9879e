"""What is due under the retention rules: cards found on a walk by key, and erased only if they still are when locked.

The walk needs no index of its own, which every release of a card would have to keep up.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    or_,
    select,
    tuple_,
)

from vault.domain.card import CardState
from vault.domain.grant import GrantState
from vault.domain.ids import CustomerId, EventId, TenantId, Token
from vault.domain.retention import CardRule, Deadlines, RowRule
from vault.ports_operator import CardKey, DueCard, DuePage, ErasedDue
from vault.store.columns import Engine, UtcTime, identifier
from vault.store.given import Given
from vault.store.link import Batch, Link
from vault.store.rows import OPEN, SPENT
from vault.store.tables import cards, consents, grants, idempotency, once_keys
from vault.store.write_cards import lock_cards
from vault.store.write_erasure import Doomed, erase_found

_LIMIT = bindparam("most", type_=Integer(), literal_execute=True)
_KEY = (cards.c.tenant_id, cards.c.token)
_AFTER = tuple_(*_KEY) > tuple_(
    bindparam("after_tenant", type_=identifier()), bindparam("after_token", type_=identifier())
)
_UNTIL = tuple_(*_KEY) <= tuple_(
    bindparam("until_tenant", type_=identifier()), bindparam("until_token", type_=identifier())
)


def _moment(name: str) -> Any:
    return bindparam(name, type_=UtcTime())


def _rule() -> Any:
    """The first rule under which a card is due, or null. An end of consent is looked up in the ledger itself."""
    year: Any = bindparam("valid_year", type_=Integer())
    waits_since = func.coalesce(consents.c.recorded_at, cards.c.created_at, type_=UtcTime())
    used_at = func.coalesce(cards.c.last_used_at, cards.c.created_at, type_=UtcTime())
    expired = or_(
        cards.c.expiry_year < year,
        and_(cards.c.expiry_year == year, cards.c.expiry_month < bindparam("valid_month", type_=Integer())),
    )
    conditions: dict[CardRule, ColumnElement[bool]] = {
        CardRule.CONSENT_ENDED: consents.c.agreed_until <= _moment("now"),
        CardRule.PENDING: and_(cards.c.state == int(CardState.PENDING), waits_since <= _moment("pending_since")),
        CardRule.EXPIRED: expired,
        CardRule.UNUSED: used_at <= _moment("unused_since"),
    }
    return case(*((conditions[rule], literal_column(f"'{rule}'", Text())) for rule in CardRule), else_=None)


_RULE = _rule()
_DUE: Select[Any] = select(*_KEY, cards.c.customer_id, cards.c.consent_id, _RULE.label("rule")).where(
    _RULE.is_not(None)
)
_CONSENT = and_(consents.c.tenant_id == cards.c.tenant_id, consents.c.consent_id == cards.c.consent_id)


@cache
def _boundary(*, with_cursor: bool) -> Any:
    """The last card of a page of so many."""
    page = select(*_KEY)
    if with_cursor:
        page = page.where(_AFTER)
    page = page.order_by(*_KEY).limit(_LIMIT)
    cut = page.subquery("page")
    return select(*cut.c).order_by(*(c.desc() for c in cut.c)).limit(literal_column("1"))


@cache
def _due(*, with_cursor: bool) -> Any:
    statement = _DUE.select_from(cards.outerjoin(consents, _CONSENT)).where(_UNTIL).order_by(*_KEY)
    return statement.where(_AFTER) if with_cursor else statement


@cache
def _still_due(engine: Engine) -> Batch:
    given = Given(engine, _KEY)
    this_card = and_(cards.c.tenant_id == given.c.tenant_id, cards.c.token == given.c.token)
    found = given.rows.join(cards, this_card).outerjoin(consents, _CONSENT)
    return Batch(_DUE.select_from(found).order_by(*_KEY), given)


def _deadlines(at: Deadlines) -> dict[str, Any]:
    return {
        "now": at.now,
        "valid_year": at.valid_from.year,
        "valid_month": at.valid_from.month,
        "unused_since": at.unused_since,
        "pending_since": at.pending_since,
    }


def due_cards(link: Link, at: Deadlines, after: CardKey | None, limit: int) -> DuePage:
    """A page of the walk over all cards: which of them are due."""
    cursor = {} if after is None else {"after_tenant": after.tenant, "after_token": after.token}
    ends = link.rows(_boundary(with_cursor=after is not None), {**cursor, "most": limit})
    if not ends:
        return DuePage((), None)
    last = CardKey(TenantId(ends[0].tenant_id), Token(ends[0].token))
    until = {"until_tenant": last.tenant, "until_token": last.token}
    found = link.rows(_due(with_cursor=after is not None), {**cursor, **until, **_deadlines(at)})
    return DuePage(tuple(map(_due_card, found)), last)


def erase_due(link: Link, events: Mapping[CardKey, EventId], at: Deadlines) -> ErasedDue:
    """Erase those of the cards that are still due once nobody else can change them."""
    wanted = sorted((card.tenant, card.token) for card in events)
    if link.locks_rows:
        # Locked before they are looked at: one that was stored again or used meanwhile is then seen as it is.
        link.batch_rows(lock_cards(link.engine, share=False), wanted)
    found = link.batch_rows(_still_due(link.engine), wanted, **_deadlines(at))
    due = tuple(map(_due_card, found))
    doomed = [
        Doomed(each.card.tenant, each.card.token, each.customer, row.consent_id, events[each.card])
        for each, row in zip(due, found, strict=True)
    ]
    return ErasedDue(due, erase_found(link, doomed, at.now).grants_revoked)


def _due_card(row: Any) -> DueCard:
    card = CardKey(TenantId(row.tenant_id), Token(row.token))
    return DueCard(card, CustomerId(row.customer_id), CardRule(row.rule))


# --- what is left of one-time tokens, grants and answers ------------------------------------------------------------


def _count(table: Table, state: str | None = None) -> Any:
    statement = select(func.count().label("many")).where(table.c.expires_at <= _moment("expired_by"))
    # Written out, so that the index whose first column it is serves every plan.
    return statement if state is None else statement.where(table.c.state == literal_column(f"'{state}'", Text()))


_COUNT_OPEN_ONCE = _count(once_keys, OPEN)
_COUNT_SPENT_ONCE = _count(once_keys, SPENT)
_COUNT_OPEN_GRANTS = _count(grants, GrantState.OPEN)
_COUNT_GRANTS = tuple(_count(grants, state) for state in GrantState)
_COUNT_ANSWERS = _count(idempotency)


# The literal is that of the index over open grants alone.
_OPEN_GRANTS = (
    select(func.count().label("many")).select_from(grants).where(grants.c.state == literal_column("'open'", Text()))
)
_OLDEST_OPEN_ONCE = (
    select(once_keys.c.created_at)
    .where(once_keys.c.state == literal_column("'open'", Text()))
    .order_by(once_keys.c.expires_at)
    .limit(1)
)


def count_open_grants(link: Link) -> int:
    """How many grants are open, expired or not."""
    many: int = link.rows(_OPEN_GRANTS)[0].many
    return many


def oldest_open_once_key(link: Link) -> datetime | None:
    """When the one was issued that expires first."""
    found = link.rows(_OLDEST_OPEN_ONCE)
    return found[0].created_at if found else None


def count_due_rows(link: Link, at: Deadlines) -> Mapping[RowRule, int]:
    """How many rows of each kind are due."""

    def counted(expired_by: datetime, *statements: Any) -> int:
        return sum(int(link.rows(each, {"expired_by": expired_by})[0].many) for each in statements)

    once = counted(at.now, _COUNT_OPEN_ONCE) + counted(at.once_forgotten_before, _COUNT_SPENT_ONCE)
    forgotten = counted(at.grants_forgotten_before, *_COUNT_GRANTS)
    # One that is old enough to be removed is counted there, though it is closed before.
    closed = counted(at.grants_expired_before, _COUNT_OPEN_GRANTS) - counted(
        at.grants_forgotten_before, _COUNT_OPEN_GRANTS
    )
    return {
        RowRule.ONCE_KEYS: once,
        RowRule.OPEN_GRANTS: max(0, closed),
        RowRule.CLOSED_GRANTS: forgotten,
        RowRule.IDEMPOTENCY: counted(at.now, _COUNT_ANSWERS),
    }
