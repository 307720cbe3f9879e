"""Requests that were answered. A unique key decides which of several calls does the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache

from sqlalchemy import and_, bindparam, delete, literal, tuple_, update
from sqlalchemy import select as select_

from vault.domain.ids import IdempotencyKey, TenantId
from vault.ports import IdempotencyId, IdempotencyRecord
from vault.store.columns import Engine, UtcTime, found_once
from vault.store.given import Given, inserting, row_of
from vault.store.link import Batch, Inserting, Link, telling
from vault.store.tables import idempotency

_KEY = (idempotency.c.tenant_id, idempotency.c.method, idempotency.c.idempotency_key)


@cache
def _claim(engine: Engine) -> Inserting:
    statement, given = inserting(engine, idempotency)
    taken_over = {c.name: statement.excluded[c.name] for c in idempotency.columns if not c.primary_key}
    statement = statement.on_conflict_do_update(
        index_elements=list(_KEY),
        set_=taken_over,
        where=idempotency.c.expires_at <= bindparam("now", type_=UtcTime()),
    )
    return telling((statement, given), *_KEY)


@cache
def _replace(engine: Engine) -> Batch:
    given = Given(engine, [*_KEY, idempotency.c.answer])
    statement = (
        update(idempotency)
        .values(answer=given.c.answer)
        .where(and_(*(c == given.c[c.name] for c in _KEY)), idempotency.c.erased.is_(False))
    )
    return Batch(statement, given)


@cache
def _release(engine: Engine) -> Batch:
    given = Given(engine, _KEY)
    wanted = select_(*(given.c[c.name] for c in _KEY))
    return Batch(delete(idempotency).where(tuple_(*_KEY).in_(wanted)), given)


@cache
def _empty(engine: Engine) -> Batch:
    given = Given(engine, [idempotency.c.tenant_id, idempotency.c.token])
    statement = (
        update(idempotency)
        .values(answer={}, request_sha256=literal(b"", idempotency.c.request_sha256.type), erased=True)
        .where(idempotency.c.tenant_id == given.c.tenant_id, idempotency.c.token == given.c.token)
    )
    return Batch(statement, given)


_OVERDUE = found_once(
    select_(*_KEY)
    .where(idempotency.c.expires_at <= bindparam("now", type_=UtcTime()))
    .order_by(idempotency.c.expires_at)
    .limit(bindparam("most"))
    # One that is being claimed anew right now is left alone.
    .with_for_update(skip_locked=True)
)
_FORGET = delete(idempotency).where(tuple_(*_KEY).in_(_OVERDUE))


def _sort_key(wanted: IdempotencyId) -> tuple[str, str, str]:
    return (wanted.tenant, wanted.method, wanted.key)


def claim(link: Link, records: Sequence[IdempotencyRecord], now: datetime) -> frozenset[IdempotencyId]:
    """Insert those whose key is free; a row that expired counts as free and is taken over."""
    values = [
        row_of(
            idempotency,
            {
                "tenant_id": record.id.tenant,
                "method": record.id.method,
                "idempotency_key": record.id.key,
                "request_sha256": record.request_sha256,
                "fingerprint_version": record.fingerprint_version,
                "answer": record.answer,
                "customer_id": record.customer,
                "token": record.token,
                "created_at": record.created_at,
                "expires_at": record.expires_at,
                "erased": record.erased,
            },
        )
        for record in sorted(records, key=lambda record: _sort_key(record.id))
    ]
    claimed = link.batch_inserted(_claim(link.engine), values, now=now)
    return frozenset(IdempotencyId(TenantId(tenant), method, IdempotencyKey(key)) for tenant, method, key in claimed)


def replace_answers(link: Link, answers: Mapping[IdempotencyId, Mapping[str, str | int]]) -> int:
    """Exchange answers; that of an erased card stays empty."""
    rows = [(each.tenant, each.method, each.key, answers[each]) for each in sorted(answers, key=_sort_key)]
    return link.batch_count(_replace(link.engine), rows)


def release(link: Link, ids: Sequence[IdempotencyId]) -> int:
    """Remove claims."""
    return link.batch_count(_release(link.engine), sorted(_sort_key(each) for each in ids))


def empty_for_cards(link: Link, cards: Sequence[tuple[TenantId, str]]) -> None:
    """Forget digest and answer of every request that speaks of these cards."""
    link.batch_count(_empty(link.engine), cards)


def forget(link: Link, *, now: datetime, limit: int) -> int:
    """Remove rows whose key is free again; how many."""
    return link.count(_FORGET, {"now": now, "most": limit})
