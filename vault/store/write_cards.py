"""Storing cards and sealing them anew. The unique fingerprint decides who is first, in the database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import Column, ColumnElement, and_, bindparam, case, func, or_, select, true, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from vault.domain.card import CardState, Expiry
from vault.domain.ids import Token
from vault.ports import CardRef, KeyName, NewCard
from vault.store.columns import Engine, UtcTime
from vault.store.given import Given, inserting, row_of
from vault.store.link import Batch, Inserting, Link, telling
from vault.store.oldest import OLDEST, REFUSAL, fence, heed, refuse_retired
from vault.store.rows import card_values, consent_values, secret_values
from vault.store.tables import card_secrets, cards, consents

_FINGERPRINT = [card_secrets.c.tenant_id, card_secrets.c.fingerprint]

USE_PRECISION = timedelta(hours=1)

NO_FORMER_WRAP = {"previous_wrapped_key": None, "previous_kek_version": None}
"""For a card that gets another data key: the wrap of the one before would open nothing any more."""


@cache
def insert_consents(engine: Engine) -> Batch:
    """INSERT into the ledger."""
    statement, given = inserting(engine, consents)
    return Batch(statement, given)


@cache
def _insert_cards(engine: Engine) -> Batch:
    statement, given = inserting(engine, cards)
    return Batch(statement, given)


@cache
def _insert_secrets(engine: Engine) -> Inserting:
    statement, given = inserting(engine, card_secrets)
    return telling((statement.on_conflict_do_nothing(index_elements=_FINGERPRINT), given), card_secrets.c.token)


_STORED = (card_secrets, consents, cards)


@cache
def _insert_all() -> Batch:
    """INSERT of secrets whose fingerprint is free, and of the consents and cards that belong to them.

    On PostgreSQL, in one statement where four would be as many trips: foreign keys are looked at when it is done. It
    gives the tokens of the cards that are stored now, and what `REFUSAL` found if it found any.
    """
    given = Given(Engine.POSTGRESQL, [Column(f"{table.name}_{c.name}", c.type) for table in _STORED for c in table.c])
    rows = select(*given.rows.c).cte("handed_over")
    mine = {table: [rows.c[f"{table.name}_{c.name}"] for c in table.c] for table in _STORED}
    inserted = (
        insert(card_secrets)
        .from_select([c.name for c in card_secrets.c], select(*mine[card_secrets]), include_defaults=False)
        .on_conflict_do_nothing(index_elements=_FINGERPRINT)
        .returning(card_secrets.c.tenant_id, card_secrets.c.token)
        .cte("inserted")
    )
    # The wrapping has PostgreSQL put the tokens into a table by hash, not compare each with every other.
    is_inserted = tuple_(*mine[card_secrets][:2]).in_(select(inserted.c.tenant_id, inserted.c.token)).is_(true())
    belonging = [
        insert(table)
        .from_select([c.name for c in table.c], select(*mine[table]).where(is_inserted), include_defaults=False)
        .cte(f"inserted_{table.name}")
        for table in (consents, cards)
    ]
    told = select(inserted.c.token).union_all(select(REFUSAL.cte("refusal").c.name))
    return Batch(told.add_cte(*belonging), given)


@cache
def lock_cards(engine: Engine, *, share: bool) -> Batch:
    """SELECT … FOR UPDATE or FOR KEY SHARE by token, in the order that every other lock on cards is taken in.

    The shared one keeps a card from being erased or sealed anew, and lets it be used and changed in its display.
    """
    return _locking(engine, read=share, key_share=share)


@cache
def lock_cards_for_use(engine: Engine) -> Batch:
    """The same FOR NO KEY UPDATE, after which the use can be noted: two that shared a row would wait in a circle."""
    return _locking(engine, key_share=True)


def _locking(engine: Engine, **how: bool) -> Batch:
    given = Given(engine, [cards.c.tenant_id, cards.c.token])
    statement = (
        select(cards.c.tenant_id, cards.c.token, cards.c.last_used_at)
        .join(given.rows, and_(cards.c.tenant_id == given.c.tenant_id, cards.c.token == given.c.token))
        .order_by(cards.c.tenant_id, cards.c.token)
        .with_for_update(of=cards, **how)
    )
    return Batch(statement, given)


_STALE = or_(cards.c.last_used_at.is_(None), cards.c.last_used_at < bindparam("before", type_=UtcTime()))


@cache
def _note_use(engine: Engine) -> Batch:
    given = Given(engine, [cards.c.tenant_id, cards.c.token])
    statement = (
        update(cards)
        .values(last_used_at=bindparam("now", type_=UtcTime()))
        .where(cards.c.tenant_id == given.c.tenant_id, cards.c.token == given.c.token, _STALE)
    )
    return Batch(statement, given)


@cache
def _reseal_secrets(engine: Engine) -> Batch:
    given = Given(engine, [*card_secrets.columns, cards.c.customer_id, cards.c.last4])
    replaced = ("wrapped_key", "kek_version", "data_key_version", "ciphertext", "record_version")
    statement = (
        update(card_secrets)
        .values({name: given.c[name] for name in replaced} | NO_FORMER_WRAP)
        .where(
            card_secrets.c.tenant_id == given.c.tenant_id,
            card_secrets.c.token == given.c.token,
            card_secrets.c.record_version == given.c.record_version - 1,
            card_secrets.c.fingerprint == given.c.fingerprint,
            cards.c.tenant_id == given.c.tenant_id,
            cards.c.token == given.c.token,
            cards.c.customer_id == given.c.customer_id,
            # A fingerprint is not part of what a row is bound to: one exchanged with another card's must not lead
            # this card's number under that card's display.
            cards.c.last4 == given.c.last4,
        )
        .returning(card_secrets.c.token)
    )
    return Batch(statement, given)


_RESEALED: tuple[Column[Any], ...] = (
    cards.c.expiry_year,
    cards.c.expiry_month,
    cards.c.state,
    cards.c.consent_id,
    cards.c.last_used_at,
)


def _never_back(given: Given) -> ColumnElement[int]:
    """A card that is active stays so."""
    return case((cards.c.state == int(CardState.ACTIVE), cards.c.state), else_=given.c.state)


@cache
def _reseal_display(engine: Engine) -> Batch:
    given = Given(engine, [cards.c.tenant_id, cards.c.token, *_RESEALED])
    statement = (
        update(cards)
        .values({c.name: given.c[c.name] for c in _RESEALED} | {"state": _never_back(given)})
        .where(cards.c.tenant_id == given.c.tenant_id, cards.c.token == given.c.token)
    )
    return Batch(statement, given)


_THIS_CARD = (
    cards.c.tenant_id == bindparam("tenant"),
    cards.c.customer_id == bindparam("customer"),
    cards.c.token == bindparam("wanted"),
)
_UPDATE_EXPIRY = update(cards).values(expiry_year=bindparam("year"), expiry_month=bindparam("month")).where(*_THIS_CARD)

_LOCK_CUSTOMER = (
    select(cards.c.token)
    .where(cards.c.tenant_id == bindparam("tenant"), cards.c.customer_id == bindparam("customer"))
    .order_by(cards.c.tenant_id, cards.c.token)
    .with_for_update()
)


def _set_default() -> Any:
    others = cards.alias("others")
    highest = (
        select(func.max(others.c.default_rank) + 1)
        .where(others.c.tenant_id == bindparam("tenant"), others.c.customer_id == bindparam("customer"))
        .scalar_subquery()
    )
    return update(cards).values(default_rank=highest).where(*_THIS_CARD)


_SET_DEFAULT = _set_default()


def insert_new(link: Link, new: Sequence[NewCard]) -> frozenset[Token]:
    """Those whose fingerprint is free, with their consents."""
    if not new:
        return frozenset()
    keys = [card.sealed.key for card in new]
    # Everyone inserts in this order, so that two batches that share cards wait for each other but never in a circle.
    ordered = sorted(new, key=lambda card: (card.tenant, card.fingerprint.value, card.token))
    secrets = [row_of(card_secrets, secret_values(card)) for card in ordered]
    if link.engine is Engine.POSTGRESQL:
        rows = [
            [*secret, *row_of(consents, consent_values(card.consent)), *row_of(cards, card_values(card))]
            for secret, card in zip(secrets, ordered, strict=True)
        ]
        told = [name for (name,) in link.batch_plain(_insert_all(), rows, **fence(KeyName.CARDS, keys))]
        heed(link, [name for name in told if name.startswith(OLDEST)])
        return frozenset(map(Token, told))
    refuse_retired(link, KeyName.CARDS, keys)
    inserted = frozenset(Token(token) for (token,) in link.batch_inserted(_insert_secrets(link.engine), secrets))
    stored = [card for card in ordered if card.token in inserted]
    add_consents(link, stored)
    link.batch_count(_insert_cards(link.engine), [row_of(cards, card_values(card)) for card in stored])
    return inserted


def reseal(link: Link, new: Sequence[NewCard]) -> frozenset[Token]:
    """Replace what is stored, where it is still what the new sealing was made from."""
    refuse_retired(link, KeyName.CARDS, [card.sealed.key for card in new])
    ordered = sorted(new, key=lambda card: (card.tenant, card.token))
    if link.locks_rows:
        link.batch_rows(lock_cards(link.engine, share=False), [(card.tenant, card.token) for card in ordered])
    secrets = [[*row_of(card_secrets, secret_values(card)), card.customer, card.last4] for card in ordered]
    changed = frozenset(Token(row.token) for row in link.batch_rows(_reseal_secrets(link.engine), secrets))
    resealed = [card for card in ordered if card.token in changed]
    add_consents(link, resealed)
    display = [
        (
            card.tenant,
            card.token,
            card.expiry.year,
            card.expiry.month,
            int(card.state),
            card.consent.consent_id,
            card.stored_at,
        )
        for card in resealed
    ]
    link.batch_count(_reseal_display(link.engine), display)
    return changed


def note_use(link: Link, used: Sequence[tuple[str, str]], now: datetime) -> None:
    """Remember that cards were released, unless that is known to the hour: most releases then write nothing here."""
    link.batch_count(_note_use(link.engine), sorted(used), now=now, before=now - USE_PRECISION)


def add_consents(link: Link, new: Sequence[NewCard]) -> None:
    """Add the cards' consents to the ledger."""
    link.batch_count(insert_consents(link.engine), [row_of(consents, consent_values(card.consent)) for card in new])


def update_expiry(link: Link, ref: CardRef, expiry: Expiry) -> bool:
    """Change the display column."""
    parameters = {**_named(ref), "year": expiry.year, "month": expiry.month}
    return link.count(_UPDATE_EXPIRY, parameters) == 1


def set_default(link: Link, ref: CardRef) -> bool:
    """Give the card the customer's highest rank."""
    if link.locks_rows:
        # Of two at once the later one shall win, so the second must see the first's rank.
        link.rows(_LOCK_CUSTOMER, {"tenant": ref.tenant, "customer": ref.customer})
    return link.count(_SET_DEFAULT, _named(ref)) == 1


def _named(ref: CardRef) -> dict[str, Any]:
    return {"tenant": ref.tenant, "customer": ref.customer, "wanted": ref.token}
