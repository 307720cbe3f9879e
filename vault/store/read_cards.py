"""Pages of cards, of many customers in one statement: what the account page shows.

The answer is a single row that holds all pages, as JSON. SQLite hands over one row at a time, and at each of them this
thread would let others go before it; and a value costs less to read from one document than by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from itertools import repeat
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Integer,
    LargeBinary,
    Text,
    and_,
    bindparam,
    cast,
    func,
    literal_column,
    select,
    tuple_,
)

from vault.domain.brand import Brand
from vault.domain.card import CardState, Expiry, StoredCard
from vault.domain.consent import Consent, ConsentChannel, ConsentEntry
from vault.domain.ids import ConsentId, CustomerId, TenantId, Token
from vault.ports import CardsOf
from vault.store.columns import Engine, from_iso, from_json, from_micros, unindexed
from vault.store.given import Given
from vault.store.link import Batch, Link
from vault.store.one_row import as_json
from vault.store.rows import CARD_COLUMNS, uses_of
from vault.store.tables import cards, consents

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_MOST = bindparam("most", type_=Integer())
_NO_CARDS: ColumnElement[Any] = literal_column("'[]'::json")

# Whose they are is asked, not answered.
_COLUMNS = CARD_COLUMNS[2:]
_CREATED_AT, _TERMS_SHA256, _AGREED_UNTIL, _AGREED_AT = (
    [column.key for column in _COLUMNS].index(name)
    for name in ("created_at", "terms_sha256", "agreed_until", "agreed_at")
)


def is_consent_of_card(engine: Engine) -> ColumnElement[bool]:
    """Whether this consent is the one under which the card is kept."""
    # Where a tenant has few PostgreSQL would read them all for each card, did it know that the tenant is the same.
    tenant = unindexed(engine, cards.c.tenant_id) if engine is Engine.POSTGRESQL else cards.c.tenant_id
    return and_(consents.c.tenant_id == tenant, consents.c.consent_id == cards.c.consent_id)


def _page(engine: Engine, given: Given) -> Any:
    """One customer's cards after a place, oldest first."""
    return (
        select(*_COLUMNS)
        .select_from(cards.join(consents, is_consent_of_card(engine)))
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


def _plain(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Bytes in hexadecimal, however PostgreSQL is set to write them (`bytea_output`)."""
    return func.encode(column, literal_column("'hex'")) if isinstance(column.type, LargeBinary) else column


@cache
def _statement(engine: Engine) -> Batch:
    number = Column("number", BigInteger())
    given = Given(engine, [number, cards.c.tenant_id, cards.c.customer_id, cards.c.created_at, cards.c.token])
    first = default_token(engine, given.c.tenant_id, given.c.customer_id).correlate(given.rows)
    page = _page(engine, given).subquery("page")
    document: ColumnElement[Any]
    if engine is Engine.POSTGRESQL:
        listed = select(func.json_agg(func.json_build_array(*map(_plain, page.c)))).scalar_subquery()
        every = func.json_build_array(given.c.number, first.scalar_subquery(), func.coalesce(listed, _NO_CARDS))
        # As text: of JSON the driver would make values, more slowly.
        document = cast(func.json_agg(every), Text())
    else:
        listed = select(func.json_group_array(func.json_array(*map(as_json, page.c)))).scalar_subquery()
        # json(): else it might be taken for a text that is to be quoted.
        document = func.json_group_array(func.json_array(given.c.number, first.scalar_subquery(), func.json(listed)))
    return Batch(select(document.label("pages")).select_from(given.rows), given)


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
    found = link.batch_plain(_statement(link.engine), rows, most=max(each.limit for each in wanted))
    cards_of: list[list[StoredCard]] = [[] for _ in wanted]
    to_card = partial(_card_from_json, from_iso if link.engine is Engine.POSTGRESQL else from_micros)

    def add(entry: Sequence[Any]) -> None:
        number, default, page = entry
        cards_of[number] += map(to_card, repeat(wanted[number]), repeat(default), page)

    link.read(add, from_json(found[0][0]))
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
    found = link.batch_plain(_defaults(link.engine), [(n, *each) for n, each in enumerate(customers)])
    pairs: Any = found if link.engine is Engine.POSTGRESQL else from_json(found[0][0])
    return {customers[number]: Token(token) for number, token in pairs if token is not None}


def _place(card: StoredCard) -> tuple[datetime, str]:
    return card.created_at, card.token


def _card_from_json(read_time: Callable[[Any], datetime], of: CardsOf, default: str, values: list[Any]) -> StoredCard:
    values[_CREATED_AT] = read_time(values[_CREATED_AT])
    values[_AGREED_AT] = read_time(values[_AGREED_AT])
    values[_TERMS_SHA256] = bytes.fromhex(values[_TERMS_SHA256])
    if values[_AGREED_UNTIL] is not None:
        values[_AGREED_UNTIL] = read_time(values[_AGREED_UNTIL])
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
