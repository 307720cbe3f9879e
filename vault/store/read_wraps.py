"""What operator commands count and walk over: wraps, former wraps, secrets. Every walk goes by key, page by page.

A page is cut from one index before anything is joined to it, so it costs the same wherever in the walk it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Integer,
    LargeBinary,
    Table,
    Text,
    and_,
    bindparam,
    func,
    select,
    true,
    tuple_,
)

from vault.domain.brand import Brand
from vault.domain.grant import SealedKey
from vault.domain.ids import ConsentId, CustomerId, TenantId, Token
from vault.ports import Fingerprint
from vault.ports_operator import CardKey, Selection, StoredSecret, StoredWrap
from vault.store.columns import Engine, UtcTime, identifier
from vault.store.given import Given
from vault.store.link import Batch, Link
from vault.store.rows import OPEN
from vault.store.tables import card_secrets, cards, once_keys, settings

HAS_FORMER_WRAP = card_secrets.c.previous_kek_version.is_not(None)

_BELOW = bindparam("below", type_=BigInteger())
# Written into the text: PostgreSQL plans for any number of rows where it does not know the limit.
LIMIT = bindparam("most", type_=Integer(), literal_execute=True)

_MANY = func.count().label("many")
_COUNT_WRAPS = select(card_secrets.c.kek_version.label("version"), _MANY).group_by(card_secrets.c.kek_version)
# Grouped as the index is ordered; the sums over the first column are made in Python.
_COUNT_FORMER = (
    select(card_secrets.c.previous_kek_version.label("version"), _MANY)
    .where(HAS_FORMER_WRAP)
    .group_by(card_secrets.c.kek_version, card_secrets.c.previous_kek_version)
)
_COUNT_ONCE = (
    select(once_keys.c.kek_version.label("version"), _MANY)
    .where(once_keys.c.state == OPEN, once_keys.c.expires_at > bindparam("now", type_=UtcTime()))
    .group_by(once_keys.c.kek_version)
)
_COUNT_FINGERPRINTS = select(card_secrets.c.fingerprint_version.label("version"), _MANY).group_by(
    card_secrets.c.fingerprint_version
)


def _versions_below() -> Any:
    """The versions in use, each found by one look into the index, however many cards there are."""
    version = card_secrets.c.kek_version
    found = select(func.min(version).label("version")).where(version < _BELOW).cte("found", recursive=True)
    following = select(func.min(version)).where(version > found.c.version, version < _BELOW).scalar_subquery()
    found = found.union_all(select(following).where(found.c.version.is_not(None)))
    return select(found.c.version).where(found.c.version.is_not(None))


_VERSIONS_BELOW = _versions_below()


def _after(table: Table) -> ColumnElement[bool]:
    position = (bindparam("after_tenant", type_=identifier()), bindparam("after_token", type_=identifier()))
    return tuple_(table.c.tenant_id, table.c.token) > tuple_(*position)


@cache
def _wraps(*, with_cursor: bool) -> Any:
    page = select(
        card_secrets.c.tenant_id, card_secrets.c.token, card_secrets.c.wrapped_key, card_secrets.c.record_version
    ).where(card_secrets.c.kek_version == bindparam("version", type_=BigInteger()))
    if with_cursor:
        page = page.where(_after(card_secrets))
    cut = page.order_by(card_secrets.c.tenant_id, card_secrets.c.token).limit(LIMIT).subquery("page")
    return select(*cut.c, cards.c.customer_id, cards.c.consent_id).join(
        cut, and_(cards.c.tenant_id == cut.c.tenant_id, cards.c.token == cut.c.token)
    )


_SHOWN: tuple[Column[Any], ...] = (
    cards.c.tenant_id,
    cards.c.token,
    cards.c.customer_id,
    cards.c.consent_id,
    cards.c.brand,
    cards.c.last4,
    cards.c.created_at,
)
_SECRET: tuple[Column[Any], ...] = (
    card_secrets.c.wrapped_key,
    card_secrets.c.record_version,
    card_secrets.c.ciphertext,
    card_secrets.c.fingerprint,
    card_secrets.c.fingerprint_version,
    card_secrets.c.data_key_version,
)


def _stored_between(*, since: bool, until: bool) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if since:
        conditions.append(cards.c.created_at >= bindparam("since", type_=UtcTime()))
    if until:
        conditions.append(cards.c.created_at < bindparam("until", type_=UtcTime()))
    return conditions


@cache
def _secrets(*, of_tenant: bool, since: bool, until: bool, with_cursor: bool) -> Any:
    # The wrapping keeps the dates out of the choice of an index: only the walk's own order may decide that.
    page = select(*_SHOWN).where(*(each.is_(true()) for each in _stored_between(since=since, until=until)))
    if of_tenant:
        page = page.where(cards.c.tenant_id == bindparam("tenant", type_=identifier()))
        if with_cursor:
            page = page.where(cards.c.token > bindparam("after_token", type_=identifier()))
    elif with_cursor:
        page = page.where(_after(cards))
    cut = page.order_by(cards.c.tenant_id, cards.c.token).limit(LIMIT).subquery("page")
    return (
        select(*cut.c, *_SECRET)
        .select_from(cut)
        .outerjoin(card_secrets, and_(card_secrets.c.tenant_id == cut.c.tenant_id, card_secrets.c.token == cut.c.token))
        .order_by(cut.c.tenant_id, cut.c.token)
    )


def _secrets_by_fingerprint() -> Any:
    cut = (
        select(card_secrets.c.tenant_id, card_secrets.c.token, card_secrets.c.fingerprint)
        .where(
            card_secrets.c.tenant_id == bindparam("tenant", type_=identifier()),
            card_secrets.c.fingerprint >= bindparam("least", type_=LargeBinary()),
        )
        .order_by(card_secrets.c.fingerprint)
        .limit(LIMIT)
        .subquery("page")
    )
    return (
        select(*_SHOWN, *_SECRET)
        .select_from(cut)
        .join(card_secrets, and_(card_secrets.c.tenant_id == cut.c.tenant_id, card_secrets.c.token == cut.c.token))
        .join(cards, and_(cards.c.tenant_id == cut.c.tenant_id, cards.c.token == cut.c.token))
        .order_by(cut.c.fingerprint)
    )


_SECRETS_BY_FINGERPRINT = _secrets_by_fingerprint()


@cache
def _secrets_of(engine: Engine) -> Batch:
    given = Given(engine, [cards.c.tenant_id, cards.c.token])
    statement = (
        select(*_SHOWN, *_SECRET)
        .select_from(given.rows)
        .join(cards, and_(cards.c.tenant_id == given.c.tenant_id, cards.c.token == given.c.token))
        .join(card_secrets, and_(card_secrets.c.tenant_id == cards.c.tenant_id, card_secrets.c.token == cards.c.token))
    )
    return Batch(statement, given)


@cache
def _count_secrets(*, of_tenant: bool, since: bool, until: bool, below: bool) -> Any:
    # Of cards alone where that is enough: an index answers that without the rows.
    statement = select(_MANY).select_from(cards).where(*_stored_between(since=since, until=until))
    if below:
        same_card = and_(card_secrets.c.tenant_id == cards.c.tenant_id, card_secrets.c.token == cards.c.token)
        statement = statement.join(card_secrets, same_card).where(card_secrets.c.data_key_version < _BELOW)
    return statement.where(cards.c.tenant_id == bindparam("tenant", type_=identifier())) if of_tenant else statement


_BRANDS = frozenset(Brand)

_SETTINGS = select(settings.c.name, settings.c.value).where(
    func.substr(settings.c.name, 1, bindparam("length", type_=Integer())) == bindparam("prefix", type_=Text())
)


def count_wraps(link: Link) -> Mapping[int, int]:
    """Cards by version of their wrap."""
    return _summed(link, _COUNT_WRAPS)


def count_former_wraps(link: Link) -> Mapping[int, int]:
    """Former wraps by version."""
    return _summed(link, _COUNT_FORMER)


def count_once_wraps(link: Link, now: datetime) -> Mapping[int, int]:
    """Keys of one-time tokens that still work, by version of their wrap."""
    return _summed(link, _COUNT_ONCE, {"now": now})


def count_fingerprints(link: Link) -> Mapping[int, int]:
    """Cards by version of their fingerprint."""
    return _summed(link, _COUNT_FINGERPRINTS)


def _summed(link: Link, statement: Any, parameters: Mapping[str, Any] | None = None) -> dict[int, int]:
    counts: dict[int, int] = {}
    for row in link.rows(statement, parameters):
        counts[row.version] = counts.get(row.version, 0) + row.many
    return dict(sorted(counts.items()))


def wraps_below(link: Link, version: int, after: CardKey | None, limit: int) -> Sequence[StoredWrap]:
    """A page of wraps under older versions: the first of each version's page, in order."""
    parameters: dict[str, Any] = {"most": limit} | _position(after)
    statement = _wraps(with_cursor=after is not None)
    found: dict[tuple[str, str], StoredWrap] = {}
    for older in link.rows(_VERSIONS_BELOW, {"below": version}):
        for row in link.rows(statement, {**parameters, "version": older.version}):
            found[row.tenant_id, row.token] = _wrap(row)
    return tuple(found[key] for key in sorted(found)[:limit])


def secrets(link: Link, selection: Selection, after: CardKey | None, limit: int) -> Sequence[StoredSecret]:
    """A page of cards. One whose secret is missing does not cut it short."""
    found: list[StoredSecret] = []
    while len(found) < limit:
        if selection.tenant is not None and after is not None and after.tenant != selection.tenant:
            if after.tenant > selection.tenant:
                break
            after = None
        statement = _secrets(**_asked(selection), with_cursor=after is not None)
        rows = link.rows(statement, {"most": limit} | _chosen(selection) | _position(after))
        # Not in the query: the page must stay one cut from one index, however few of its cards are wanted.
        found += (_secret(row) for row in rows if row.wrapped_key is not None and _is_due(row, selection))
        if len(rows) < limit:
            break
        after = _key(rows[-1])
    return tuple(found[:limit])


def secrets_by_fingerprint(link: Link, tenant: TenantId, least: bytes, limit: int) -> Sequence[StoredSecret]:
    """A page of a shop's cards that have nothing in common."""
    rows = link.rows(_SECRETS_BY_FINGERPRINT, {"tenant": tenant, "least": least, "most": limit})
    return tuple(map(_secret, rows))


def secrets_of(link: Link, wanted: Sequence[CardKey]) -> Mapping[CardKey, StoredSecret]:
    """Cards by name."""
    rows = link.batch_rows(_secrets_of(link.engine), [(card.tenant, card.token) for card in dict.fromkeys(wanted)])
    return {_key(row): _secret(row) for row in rows}


def count_secrets(link: Link, selection: Selection) -> int:
    """How many cards are selected; also one whose secret someone removed, so that a walk can tell."""
    below = selection.data_key_below
    parameters = _chosen(selection) | ({} if below is None else {"below": below})
    count: int = link.rows(_count_secrets(**_asked(selection), below=below is not None), parameters)[0].many
    return count


def settings_of(link: Link, prefix: str) -> Mapping[str, str]:
    """Facts by the beginning of their name."""
    found = link.rows(_SETTINGS, {"prefix": prefix, "length": len(prefix)})
    return dict(sorted((row.name, row.value) for row in found))


def _is_due(row: Any, selection: Selection) -> bool:
    return selection.data_key_below is None or row.data_key_version < selection.data_key_below


def _asked(selection: Selection) -> dict[str, bool]:
    return {
        "of_tenant": selection.tenant is not None,
        "since": selection.since is not None,
        "until": selection.until is not None,
    }


def _chosen(selection: Selection) -> dict[str, Any]:
    values = {"tenant": selection.tenant, "since": selection.since, "until": selection.until}
    return {name: value for name, value in values.items() if value is not None}


def _position(after: CardKey | None) -> dict[str, Any]:
    return {} if after is None else {"after_tenant": after.tenant, "after_token": after.token}


def _key(row: Any) -> CardKey:
    return CardKey(TenantId(row.tenant_id), Token(row.token))


def _wrap(row: Any) -> StoredWrap:
    return StoredWrap(
        card=_key(row),
        customer=CustomerId(row.customer_id),
        consent=ConsentId(row.consent_id),
        record_version=row.record_version,
        key=SealedKey(row.wrapped_key),
    )


def _secret(row: Any) -> StoredSecret:
    return StoredSecret(
        wrap=_wrap(row),
        ciphertext=row.ciphertext,
        fingerprint=Fingerprint(row.fingerprint_version, row.fingerprint),
        brand=Brand(row.brand) if row.brand in _BRANDS else None,
        last4=row.last4,
        stored_at=row.created_at,
    )
