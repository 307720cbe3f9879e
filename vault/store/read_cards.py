"""Pages of cards, of many customers in one statement: what the account page shows.

SQLite hands over one row at a time, and at each of them this thread lets others go before it; so its answer is a single
row that holds all pages, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from itertools import repeat
from typing import Any

from sqlalchemy import BigInteger, Column, ColumnElement, Integer, and_, bindparam, func, select, true, tuple_

from vault.domain.brand import Brand
from vault.domain.card import CardState, Expiry, StoredCard
from vault.domain.consent import Consent, ConsentChannel, ConsentEntry
from vault.domain.ids import ConsentId, CustomerId, TenantId, Token
from vault.ports import CardsOf
from vault.store.columns import Engine, from_micros
from vault.store.given import Given
from vault.store.link import Batch, Link
from vault.store.one_row import as_json
from vault.store.rows import CARD_COLUMNS, uses_of
from vault.store.tables import cards, consents

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_MOST = bindparam("most", type_=Integer())

# Whose they are is asked, not answered.
_COLUMNS = CARD_COLUMNS[2:]
_CREATED_AT, _TERMS_SHA256, _AGREED_UNTIL, _AGREED_AT = (
    [column.key for column in _COLUMNS].index(name)
    for name in ("created_at", "terms_sha256", "agreed_until", "agreed_at")
)


def _page(given: Given) -> Any:
    """One customer's cards after a place, oldest first."""
    return (
        select(*_COLUMNS)
        .select_from(
            cards.join(
                consents, and_(consents.c.tenant_id == cards.c.tenant_id, consents.c.consent_id == cards.c.consent_id)
            )
        )
        .where(
            cards.c.tenant_id == given.c.tenant_id,
            cards.c.customer_id == given.c.customer_id,
            tuple_(cards.c.created_at, cards.c.token) > tuple_(given.c.created_at, given.c.token),
        )
        .order_by(cards.c.created_at, cards.c.token)
        .limit(_MOST)
        .correlate(given.rows)
    )


def default_token(engine: Engine, tenant: ColumnElement[Any], customer: ColumnElement[Any]) -> Any:
    """The rule for a customer's default card: the highest rank, then the oldest, then the first by token."""
    others = cards.alias("others")
    token = as_json(others.c.token) if engine is Engine.SQLITE else others.c.token
    return (
        select(token.label("token"))
        .where(others.c.tenant_id == tenant, others.c.customer_id == customer)
        .order_by(others.c.default_rank.desc(), others.c.created_at, others.c.token)
        .limit(1)
    )


@cache
def _statement(engine: Engine) -> Batch:
    number = Column("number", BigInteger())
    given = Given(engine, [number, cards.c.tenant_id, cards.c.customer_id, cards.c.created_at, cards.c.token])
    first = default_token(engine, given.c.tenant_id, given.c.customer_id).correlate(given.rows)
    if engine is Engine.POSTGRESQL:
        page, default = _page(given).lateral("page"), first.lateral("first")
        found = given.rows.join(page, true()).join(default, true())
        return Batch(select(given.c.number, default.c.token.label("default_token"), *page.c).select_from(found), given)
    page = _page(given).subquery("page")
    listed = select(func.json_group_array(func.json_array(*map(as_json, page.c)))).scalar_subquery()
    # json(): else it might be taken for a text that is to be quoted.
    every = func.json_array(given.c.number, first.scalar_subquery(), func.json(listed))
    return Batch(select(func.json_group_array(every).label("pages")).select_from(given.rows), given)


def pages(link: Link, wanted: Sequence[CardsOf]) -> Sequence[Sequence[StoredCard]]:
    """The cards of each, oldest first (created_at, then token)."""
    if not wanted:
        return ()
    rows = [
        (
            n,
            each.tenant,
            each.customer,
            *((each.after.created_at, each.after.token) if each.after else (_BEGINNING, "")),
        )
        for n, each in enumerate(wanted)
    ]
    found = link.batch_rows(_statement(link.engine), rows, most=max(each.limit for each in wanted))
    cards_of: list[list[StoredCard]] = [[] for _ in wanted]
    if link.engine is Engine.POSTGRESQL:
        for row in found:
            cards_of[row.number].append(_card(wanted[row.number], row.default_token, row[2:]))
    else:
        for number, default, page in json.loads(found[0].pages):
            cards_of[number] += map(_card_from_json, repeat(wanted[number]), repeat(default), page)
    return [tuple(sorted(page, key=_place)[: each.limit]) for each, page in zip(wanted, cards_of, strict=True)]


@cache
def _defaults(engine: Engine) -> Batch:
    number = Column("number", BigInteger())
    given = Given(engine, [number, cards.c.tenant_id, cards.c.customer_id])
    first = default_token(engine, given.c.tenant_id, given.c.customer_id).correlate(given.rows).scalar_subquery()
    if engine is Engine.POSTGRESQL:
        return Batch(select(given.c.number, first.label("token")).select_from(given.rows), given)
    every = func.json_group_array(func.json_array(given.c.number, first))
    return Batch(select(every.label("tokens")).select_from(given.rows), given)


def defaults(
    link: Link, customers: Sequence[tuple[TenantId, CustomerId]]
) -> Mapping[tuple[TenantId, CustomerId], Token]:
    """The default card of each who has cards."""
    if not customers:
        return {}
    found = link.batch_rows(_defaults(link.engine), [(n, *each) for n, each in enumerate(customers)])
    pairs: Any = found if link.engine is Engine.POSTGRESQL else json.loads(found[0].tokens)
    return {customers[number]: Token(token) for number, token in pairs if token is not None}


def _place(card: StoredCard) -> tuple[datetime, str]:
    return card.created_at, card.token


def _card_from_json(of: CardsOf, default: str, values: list[Any]) -> StoredCard:
    values[_CREATED_AT] = from_micros(values[_CREATED_AT])
    values[_AGREED_AT] = from_micros(values[_AGREED_AT])
    values[_TERMS_SHA256] = bytes.fromhex(values[_TERMS_SHA256])
    if values[_AGREED_UNTIL] is not None:
        values[_AGREED_UNTIL] = from_micros(values[_AGREED_UNTIL])
    return _card(of, default, values)


def _card(of: CardsOf, default: str, values: Sequence[Any]) -> StoredCard:
    """From `_COLUMNS`."""
    token, brand, last4, year, month, state, created_at, consent_id, agreed_by, agreed_for, *consent, agreed_at, by = (
        values
    )
    return StoredCard(
        tenant=of.tenant,
        customer=of.customer,
        token=Token(token),
        brand=Brand(brand),
        last4=last4,
        expiry=_expiry(year, month),
        state=CardState(state),
        is_default=token == default,
        created_at=created_at,
        consent=ConsentEntry(
            tenant=of.tenant,
            consent_id=ConsentId(consent_id),
            customer=CustomerId(agreed_by),
            token=Token(agreed_for),
            consent=_consent(*consent),
            agreed_at=agreed_at,
            recorded_by=by,
        ),
    )


@lru_cache(maxsize=512)
def _expiry(year: int, month: int) -> Expiry:
    return Expiry(year, month)


@lru_cache(maxsize=512)  # most customers agree to the same text
def _consent(
    terms_version: str, terms_sha256: bytes, uses: str, channel: int, locale: str, agreed_until: datetime | None
) -> Consent:
    return Consent(
        terms_version=terms_version,
        terms_sha256=terms_sha256,
        uses=uses_of(uses),
        channel=ConsentChannel(channel),
        locale=locale,
        agreed_until=agreed_until,
    )
