"""Exchanging wraps and data keys of stored cards. What was changed by others meanwhile is left as they made it.

Cards are locked before their secrets, in the order that every other change of cards takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Column, and_, bindparam, case, delete, exists, or_, select, update

from vault.domain.ids import TenantId, Token
from vault.ports import KeyName
from vault.ports_operator import CardKey, RekeyedCard, WrapReplacement
from vault.store.columns import Engine
from vault.store.given import Given
from vault.store.link import Batch, Link
from vault.store.oldest import refuse_retired
from vault.store.read_wraps import HAS_FORMER_WRAP, LIMIT
from vault.store.tables import card_secrets, settings
from vault.store.write_cards import NO_FORMER_WRAP, lock_cards

_KEY: tuple[Column[Any], ...] = (card_secrets.c.tenant_id, card_secrets.c.token)
_ABOVE = bindparam("above", type_=BigInteger())
_BELOW = bindparam("below", type_=BigInteger())
_UNNEEDED = card_secrets.c.previous_kek_version < _BELOW
_RESTORABLE = and_(
    or_(card_secrets.c.kek_version > _ABOVE, card_secrets.c.kek_version < _BELOW),
    card_secrets.c.previous_kek_version.between(_BELOW, _ABOVE),
)
_TRIES = 4


def _same_card(given: Given) -> Any:
    return and_(*(c == given.c[c.name] for c in _KEY))


@cache
def _replace(engine: Engine) -> Batch:
    given = Given(
        engine,
        [*_KEY, card_secrets.c.wrapped_key, card_secrets.c.kek_version, card_secrets.c.previous_wrapped_key],
    )
    statement = (
        update(card_secrets)
        .values(
            wrapped_key=given.c.wrapped_key,
            kek_version=given.c.kek_version,
            previous_wrapped_key=card_secrets.c.wrapped_key,
            previous_kek_version=card_secrets.c.kek_version,
        )
        .where(_same_card(given), card_secrets.c.wrapped_key == given.c.previous_wrapped_key)
        .returning(*_KEY)
    )
    return Batch(statement, given)


_FIND_UNNEEDED = select(*_KEY).where(HAS_FORMER_WRAP, _UNNEEDED).limit(LIMIT)
_FIND_RESTORABLE = select(*_KEY).where(HAS_FORMER_WRAP, _RESTORABLE).limit(LIMIT)


@cache
def _forget(engine: Engine) -> Batch:
    given = Given(engine, _KEY)
    return Batch(
        update(card_secrets).values(NO_FORMER_WRAP).where(_same_card(given), HAS_FORMER_WRAP, _UNNEEDED), given
    )


@cache
def _restore(engine: Engine) -> Batch:
    given = Given(engine, _KEY)
    statement = (
        update(card_secrets)
        .values(
            {
                "wrapped_key": card_secrets.c.previous_wrapped_key,
                "kek_version": card_secrets.c.previous_kek_version,
                "previous_wrapped_key": card_secrets.c.wrapped_key,
                "previous_kek_version": card_secrets.c.kek_version,
            }
        )
        .where(_same_card(given), HAS_FORMER_WRAP, _RESTORABLE)
    )
    return Batch(statement, given)


@cache
def _rekey(engine: Engine) -> Batch:
    replaced = (
        card_secrets.c.wrapped_key,
        card_secrets.c.kek_version,
        card_secrets.c.data_key_version,
        card_secrets.c.ciphertext,
        card_secrets.c.record_version,
    )
    mark = (card_secrets.c.fingerprint, card_secrets.c.fingerprint_version)
    given = Given(engine, [*_KEY, *replaced, *mark])
    other = card_secrets.alias("other")
    taken = exists().where(
        other.c.tenant_id == given.c.tenant_id,
        other.c.fingerprint == given.c.fingerprint,
        other.c.token != given.c.token,
    )
    keeps_mark = given.c.fingerprint.is_(None) | taken
    statement = (
        update(card_secrets)
        .values(
            {c.name: given.c[c.name] for c in replaced}
            | {c.name: case((keeps_mark, c), else_=given.c[c.name]) for c in mark}
            | NO_FORMER_WRAP
        )
        .where(_same_card(given), card_secrets.c.record_version == given.c.record_version - 1)
        .returning(*_KEY)
    )
    return Batch(statement, given)


_DELETE_SETTING = delete(settings).where(settings.c.name == bindparam("wanted"))


def replace(link: Link, replacements: Sequence[WrapReplacement]) -> frozenset[CardKey]:
    """Exchange wraps that are still the expected ones."""
    refuse_retired(link, KeyName.CARDS, [each.new for each in replacements])
    ordered = _by_key({each.card: each for each in replacements})
    # Shared: a redemption need not wait for us, as the data key stays.
    _lock(link, [_pair(each.card) for each in ordered], share=True)
    rows = [(*_pair(each.card), each.new.wrapped, each.new.kek_version, each.old.wrapped) for each in ordered]
    return _keys(link.batch_rows(_replace(link.engine), rows))


def forget_former(link: Link, below: int, limit: int) -> int:
    """Remove former wraps under older versions."""
    return _change_former(link, _FIND_UNNEEDED, _forget(link.engine), {"below": below}, limit)


def restore_former(link: Link, above: int, below: int, limit: int) -> int:
    """Exchange former and current wraps where only the former one is under a version in between."""
    return _change_former(link, _FIND_RESTORABLE, _restore(link.engine), {"above": above, "below": below}, limit)


def _change_former(link: Link, find: Any, change: Batch, condition: dict[str, Any], limit: int) -> int:
    while True:
        found = link.rows(find, {"most": limit, **condition})
        pairs = sorted((row.tenant_id, row.token) for row in found)
        _lock(link, pairs, share=True)
        changed = link.batch_count(change, pairs, **condition)
        # Where others were faster with every one of them there may be more: zero would say that all is done.
        if changed or not pairs:
            return changed


def rekey(link: Link, new: Sequence[RekeyedCard]) -> frozenset[CardKey]:
    """Replace data keys of cards that are still the expected ones.

    A fingerprint that another card of the tenant has already is not taken over: that card keeps finding its number,
    and this one keeps its former fingerprint, whose version `count_fingerprints` goes on to show.
    """
    ordered = _by_key({each.card: each for each in new})
    if any(each.sealed.record_version != each.from_record_version + 1 for each in ordered):
        raise ValueError("a new sealing has the next record version")
    refuse_retired(link, KeyName.CARDS, [each.sealed.key for each in ordered])
    _lock(link, [_pair(each.card) for each in ordered], share=False)
    rows = []
    marks: set[tuple[TenantId, bytes]] = set()
    # In the order in which cards with new fingerprints are inserted, so that the two never wait in a circle.
    for each in sorted(ordered, key=lambda each: (each.card.tenant, each.fingerprint.value, each.card.token)):
        mark = (each.card.tenant, each.fingerprint.value)
        is_first = mark not in marks
        marks.add(mark)
        rows.append(
            (
                *_pair(each.card),
                each.sealed.key.wrapped,
                each.sealed.key.kek_version,
                each.sealed.key.kek_version,
                each.sealed.ciphertext,
                each.sealed.record_version,
                each.fingerprint.value if is_first else None,
                each.fingerprint.version if is_first else None,
            )
        )
    batch = _rekey(link.engine)
    if link.locks_rows:
        for _ in range(_TRIES):
            # Someone may be inserting a card with one of these fingerprints: once that is there, we see it.
            changed = link.batch_rows_unless_conflict(batch, rows)
            if changed is not None:
                return _keys(changed)
    return _keys(link.batch_rows(batch, rows))


def delete_setting(link: Link, name: str) -> None:
    """Forget a fact."""
    link.count(_DELETE_SETTING, {"wanted": name})


def _lock(link: Link, pairs: Sequence[tuple[str, str]], *, share: bool) -> None:
    if link.locks_rows:
        link.batch_rows(lock_cards(link.engine, share=share), pairs)


def _by_key(new: dict[CardKey, Any]) -> list[Any]:
    return [new[card] for card in sorted(new, key=_pair)]


def _pair(card: CardKey) -> tuple[TenantId, Token]:
    return (card.tenant, card.token)


def _keys(rows: Sequence[Any]) -> frozenset[CardKey]:
    return frozenset(CardKey(TenantId(row.tenant_id), Token(row.token)) for row in rows)
