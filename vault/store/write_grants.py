"""Grants and the keys of one-time tokens: issued, revoked, and used up once.

Rows are locked in one order everywhere, so that transactions wait for each other but never in a circle: cards, then
grants, then keys of one-time tokens, each by primary key. On SQLite the one writer makes this moot.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Table,
    Text,
    and_,
    bindparam,
    delete,
    literal_column,
    or_,
    select,
    text,
    true,
    tuple_,
    update,
)

from vault.domain.card import CardState
from vault.domain.consent import CardUse
from vault.domain.grant import Grant, GrantState
from vault.domain.ids import OnceId, OrderId, TenantId
from vault.ports import Claim, KeyName, OnceKey
from vault.store.columns import Engine, UtcTime, found_once, unindexed
from vault.store.given import Given, inserting, row_of
from vault.store.link import Batch, Inserting, Link, telling
from vault.store.oldest import refuse_retired
from vault.store.read_cards import is_consent_of_card
from vault.store.reader import not_withdrawn
from vault.store.rows import OPEN, SPENT
from vault.store.tables import card_secrets, cards, consents, grants, once_keys
from vault.store.write_cards import USE_PRECISION, lock_cards_for_use, note_use

FORGET_AFTER = timedelta(days=1)
"""How long the row of a spent or expired one-time token is kept after its expiry."""

_NOW = bindparam("now", type_=UtcTime())
# Written out, not a parameter: only so can a prepared plan use the indexes whose condition it is.
_OPEN: ColumnElement[str] = literal_column("'open'", Text())
_DESTROYED = {"state": SPENT, "wrapped_key": None}
_SUBJECT = (grants.c.tenant_id, grants.c.subject, grants.c.order_id)
_GRANT = (grants.c.tenant_id, grants.c.grant_sha256)
_ONCE = (once_keys.c.tenant_id, once_keys.c.once_id)
_ANY_ORDER = (grants.c.tenant_id, grants.c.subject)


def _same(columns: Sequence[Column[Any]], given: Given) -> Any:
    return and_(*(c == given.c[c.name] for c in columns))


def _is_open(engine: Engine, columns: Sequence[Column[Any]]) -> ColumnElement[bool]:
    """Whether a grant is open: by name it is found through its key, by what it is for among those that are open."""
    return (unindexed(engine, grants.c.state) if columns is _GRANT else grants.c.state) == _OPEN


@cache
def _insert_grants(engine: Engine) -> Inserting:
    statement, given = inserting(engine, grants)
    free = statement.on_conflict_do_nothing(index_elements=list(_SUBJECT), index_where=text("state = 'open'"))
    return telling((free, given), grants.c.grant_sha256)


@cache
def _lock_grants(engine: Engine, columns: tuple[Column[Any], ...]) -> Batch:
    given = Given(engine, columns)
    statement = (
        select(grants.c.grant_sha256)
        .join(given.rows, _same(columns, given))
        .where(_is_open(engine, columns))
        .order_by(grants.c.tenant_id, grants.c.grant_sha256)
        .with_for_update(of=grants)
    )
    return Batch(statement, given)


@cache
def _revoke(engine: Engine, columns: tuple[Column[Any], ...]) -> Batch:
    given = Given(engine, columns)
    statement = (
        update(grants)
        .values(state=GrantState.REVOKED.value, closed_at=_NOW)
        .where(_same(columns, given), _is_open(engine, columns))
        .returning(grants.c.grant_sha256)
    )
    return Batch(statement, given)


@cache
def _lock_once(engine: Engine) -> Batch:
    given = Given(engine, _ONCE)
    statement = (
        select(once_keys.c.once_id).join(given.rows, _same(_ONCE, given)).order_by(*_ONCE).with_for_update(of=once_keys)
    )
    return Batch(statement, given)


@cache
def _destroy_once(engine: Engine) -> Batch:
    given = Given(engine, _ONCE)
    statement = (
        update(once_keys)
        .values(_DESTROYED)
        .where(_same(_ONCE, given), unindexed(engine, once_keys.c.state) == _OPEN)
        .returning(once_keys.c.once_id)
    )
    return Batch(statement, given)


@cache
def _claim(engine: Engine) -> Batch:
    given = Given(engine, [*_GRANT, grants.c.token, grants.c.once_id, card_secrets.c.record_version])
    card_as_unwrapped = (
        select(true())
        .select_from(
            cards.join(
                card_secrets,
                and_(card_secrets.c.tenant_id == cards.c.tenant_id, card_secrets.c.token == cards.c.token),
            ).join(consents, is_consent_of_card(engine))
        )
        .where(
            cards.c.tenant_id == grants.c.tenant_id,
            cards.c.token == grants.c.token,
            cards.c.token == given.c.token,
            or_(
                cards.c.state == int(CardState.ACTIVE),
                and_(cards.c.state == int(CardState.PENDING), grants.c.purpose == int(CardUse.CUSTOMER_INITIATED)),
            ),
            card_secrets.c.record_version == given.c.record_version,
            or_(consents.c.agreed_until.is_(None), consents.c.agreed_until > _NOW),
            not_withdrawn(),
        )
        .correlate(grants, given.rows)
        .exists()
    )
    once_unspent = (
        select(true())
        .where(
            once_keys.c.tenant_id == grants.c.tenant_id,
            once_keys.c.once_id == grants.c.once_id,
            once_keys.c.once_id == given.c.once_id,
            unindexed(engine, once_keys.c.state) == _OPEN,
            once_keys.c.expires_at > _NOW,
        )
        .correlate(grants, given.rows)
        .exists()
    )
    statement = (
        update(grants)
        .values(state=GrantState.USED.value, closed_at=_NOW)
        .where(
            _same(_GRANT, given),
            unindexed(engine, grants.c.state) == _OPEN,
            unindexed(engine, grants.c.expires_at) > _NOW,
            or_(card_as_unwrapped, once_unspent),
        )
        .returning(grants.c.tenant_id, grants.c.grant_sha256, grants.c.once_id)
    )
    return Batch(statement, given)


@cache
def _insert_once(engine: Engine) -> Batch:
    statement, given = inserting(engine, once_keys)
    return Batch(statement, given)


def _overdue(state: str, table: Table = once_keys) -> Any:
    return found_once(
        select(*table.primary_key.columns)
        .where(table.c.state == literal_column(f"'{state}'", Text()), table.c.expires_at <= _NOW)
        .order_by(table.c.expires_at)
        .limit(bindparam("most"))
        # One that is being claimed right now is left for the next round.
        .with_for_update(skip_locked=True)
    )


_EXPIRE = update(once_keys).values(_DESTROYED).where(tuple_(*_ONCE).in_(_overdue(OPEN)), once_keys.c.state == _OPEN)
_FORGET = delete(once_keys).where(tuple_(*_ONCE).in_(_overdue(SPENT)))
_CLOSE = (
    update(grants)
    .values(state=GrantState.REVOKED.value, closed_at=bindparam("closed", type_=UtcTime()))
    .where(tuple_(*_GRANT).in_(_overdue(OPEN, grants)), grants.c.state == _OPEN)
)
_FORGET_GRANTS = tuple(delete(grants).where(tuple_(*_GRANT).in_(_overdue(state, grants))) for state in GrantState)


_REVOKE_EVERY = update(grants).values(state=GrantState.REVOKED.value, closed_at=_NOW).where(grants.c.state == _OPEN)
_DESTROY_EVERY = update(once_keys).values(_DESTROYED).where(once_keys.c.state == _OPEN)


def revoke_every(link: Link, now: datetime) -> int:
    """Revoke all open grants: of a restored database nobody knows which were used since."""
    return link.count(_REVOKE_EVERY, {"now": now})


def destroy_every_once(link: Link) -> int:
    """Destroy all wrapped keys of one-time tokens, for the same reason."""
    return link.count(_DESTROY_EVERY)


def insert(link: Link, new: Sequence[Grant]) -> frozenset[bytes]:
    """Grants whose tenant, subject and order have no open one yet."""
    ordered = sorted(new, key=lambda grant: (grant.tenant, grant.subject, grant.order))
    values = [
        row_of(
            grants,
            {
                "tenant_id": grant.tenant,
                "grant_sha256": grant.grant_sha256,
                "customer_id": grant.customer,
                "token": grant.token,
                "once_id": grant.once_id,
                "subject": grant.subject,
                "order_id": grant.order,
                "amount_minor": grant.amount.minor_units,
                "currency": grant.amount.currency,
                "purpose": int(grant.purpose),
                "processor": grant.processor,
                "state": grant.state.value,
                "issued_at": grant.issued_at,
                "expires_at": grant.expires_at,
                "issued_by": grant.issued_by,
            },
        )
        for grant in ordered
    ]
    return frozenset(grant_sha256 for (grant_sha256,) in link.batch_inserted(_insert_grants(link.engine), values))


def revoke_for_subjects(link: Link, subjects: Sequence[tuple[TenantId, str, OrderId]], now: datetime) -> int:
    """Revoke open grants by what they are for."""
    return len(_revoked(link, _SUBJECT, subjects, now))


def revoke(link: Link, wanted: Sequence[tuple[TenantId, bytes]], now: datetime) -> frozenset[bytes]:
    """Revoke open grants by name."""
    return _revoked(link, _GRANT, wanted, now)


def revoke_for_tokens(link: Link, wanted: Sequence[tuple[TenantId, str]], now: datetime) -> int:
    """Revoke all open grants for stored cards."""
    return len(_revoked(link, _ANY_ORDER, wanted, now))


def _revoked(
    link: Link, columns: tuple[Column[Any], ...], wanted: Sequence[tuple[Any, ...]], now: datetime | None
) -> frozenset[bytes]:
    distinct = list(dict.fromkeys(wanted))
    if link.locks_rows and len(distinct) > 1:
        link.batch_rows(_lock_grants(link.engine, columns), distinct)
    return frozenset(row.grant_sha256 for row in link.batch_rows(_revoke(link.engine, columns), distinct, now=now))


def claim(link: Link, claims: Sequence[Claim], now: datetime) -> frozenset[bytes]:
    """Use up grants whose target is still what was unwrapped; the database decides, row by row."""
    # Two grants for one one-time token in one call: its key can be spent once, so only the first may win.
    by_target: dict[Any, Claim] = {}
    for each in sorted(claims, key=lambda claim: (claim.tenant, claim.grant_sha256)):
        by_target.setdefault((each.tenant, each.once_id or each.grant_sha256), each)
    ordered = list(by_target.values())
    once = sorted({(each.tenant, each.once_id) for each in ordered if each.once_id is not None})
    stored = {each.grant_sha256: (each.tenant, each.token) for each in ordered if each.token is not None}
    noted: set[tuple[str, str]] = set()
    if link.locks_rows:
        # Locked before they are looked at: an erasure that was answered before this commits has then been seen.
        locked = link.batch_rows(lock_cards_for_use(link.engine), sorted(set(stored.values())))
        recent = now - USE_PRECISION
        noted = {(row.tenant_id, row.token) for row in locked if row.last_used_at and row.last_used_at >= recent}
        link.batch_rows(_lock_grants(link.engine, _GRANT), [(each.tenant, each.grant_sha256) for each in ordered])
        link.batch_rows(_lock_once(link.engine), once)
    rows = [(each.tenant, each.grant_sha256, each.token, each.once_id, each.record_version) for each in ordered]
    won = link.batch_rows(_claim(link.engine), rows, now=now)
    spent = [(row.tenant_id, row.once_id) for row in won if row.once_id is not None]
    if len(link.batch_rows(_destroy_once(link.engine), sorted(spent))) != len(spent):
        raise AssertionError("a claimed one-time token had no key to destroy")
    used = {stored[row.grant_sha256] for row in won if row.grant_sha256 in stored}
    note_use(link, sorted(used - noted), now)
    return frozenset(row.grant_sha256 for row in won)


def insert_once(link: Link, keys: Sequence[OnceKey]) -> None:
    """Keep wrapped keys of one-time tokens."""
    refuse_retired(link, KeyName.ONCE, [key.key for key in keys])
    values = [
        row_of(
            once_keys,
            {
                "tenant_id": key.tenant,
                "once_id": key.once_id,
                "order_id": key.order,
                "state": OPEN,
                "wrapped_key": key.key.wrapped,
                "kek_version": key.key.kek_version,
                "created_at": key.created_at,
                "expires_at": key.expires_at,
                "token": key.token,
                "customer_id": key.customer,
            },
        )
        for key in sorted(keys, key=lambda key: (key.tenant, key.once_id))
    ]
    link.batch_count(_insert_once(link.engine), values)


def void_once(link: Link, ids: Sequence[tuple[TenantId, OnceId]]) -> frozenset[OnceId]:
    """Destroy keys and revoke the open grants that lead to them."""
    ordered = sorted(set(ids))
    # Grants first, as a claim does. A grant for a key that is gone already could not be redeemed anyway.
    _revoked(link, _ANY_ORDER, ordered, None)
    if link.locks_rows:
        link.batch_rows(_lock_once(link.engine), ordered)
    return frozenset(OnceId(row.once_id) for row in link.batch_rows(_destroy_once(link.engine), ordered))


def expire_once(link: Link, *, now: datetime, limit: int) -> tuple[int, int]:
    """Destroy overdue keys and forget old rows; how many of each."""
    destroyed = link.count(_EXPIRE, {"now": now, "most": limit})
    return destroyed, forget_once(link, expired_by=now - FORGET_AFTER, limit=limit)


def forget_once(link: Link, *, expired_by: datetime, limit: int) -> int:
    """Remove rows of spent one-time tokens; how many."""
    return link.count(_FORGET, {"now": expired_by, "most": limit})


def close_expired(link: Link, *, expired_by: datetime, now: datetime, limit: int) -> int:
    """Close grants that nobody used or revoked; how many."""
    return link.count(_CLOSE, {"now": expired_by, "closed": now, "most": limit})


def forget(link: Link, *, expired_by: datetime, limit: int) -> int:
    """Remove rows of grants whatever their state; how many."""
    forgotten = 0
    for statement in _FORGET_GRANTS:
        if forgotten < limit:
            forgotten += link.count(statement, {"now": expired_by, "most": limit - forgotten})
    return forgotten
