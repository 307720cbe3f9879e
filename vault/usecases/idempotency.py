"""Same key and request, same answer; same key and other request, a refusal. The database settles who was first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from vault.domain.audit import Outcome
from vault.domain.errors import IdempotencyConflict, NotAvailable, Unavailable
from vault.domain.ids import CustomerId, IdempotencyKey, TenantId, Token
from vault.ports import IdempotencyId, IdempotencyRecord, Writer
from vault.usecases.batch import Attempt, Journal

LIFETIME = timedelta(hours=24)
"""How long an answer is remembered; shorter than that only for cards erased meanwhile."""

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str).encode

A = TypeVar("A", bound=Attempt[Any, Any])


@dataclass(frozen=True, slots=True)
class Request(Generic[A]):
    """What one attempt says about its idempotency."""

    attempt: A
    tenant: TenantId
    method: str
    key: IdempotencyKey
    digests: Mapping[int, bytes]
    """Digest of the request by fingerprint version, newest first; version 0 where no card is in it."""
    answer: Mapping[str, str | int]
    customer: CustomerId | None = None
    token: Token | None = None
    voids_former: bool = False
    """Whether a repeat exchanges the answer, so that two repeats cannot be answered in one transaction."""

    @property
    def id(self) -> IdempotencyId:
        """What the key is unique in."""
        return IdempotencyId(self.tenant, self.method, self.key)


@dataclass(frozen=True, slots=True)
class Settled(Generic[A]):
    """How the requests of one transaction stand."""

    claimed: set[int]
    """`id()` of attempts that are first, or have no key: they carry out the effect."""
    repeats: dict[int, IdempotencyRecord] = field(default_factory=dict)
    """By `id()` of the attempt: the answered request that it repeats."""


def digest(fields: Mapping[str, object]) -> bytes:
    """SHA-256 over the canonical form of a request (32 bytes)."""
    return hashlib.sha256(_encode(fields).encode()).digest()


def settle(
    tx: Writer, requests: Sequence[Request[A]], *, without_key: Sequence[A], journal: Journal, now: datetime
) -> Settled[A]:
    """Claim keys, and compare those that are taken.

    An attempt that is in neither group of the answer and not ended either shares its key with another of this batch
    that is carried out first: it stays open for the next round.
    """
    settled: Settled[A] = Settled(claimed={id(attempt) for attempt in without_key})
    first: dict[IdempotencyId, Request[A]] = {}
    for request in requests:
        first.setdefault(request.id, request)
    if not first:
        return settled
    records = [_record(request, now) for request in first.values()]
    won = tx.claim_idempotency(records, now=now)
    known = tx.idempotency([key for key in first if key not in won])
    settled.claimed.update(id(first[key].attempt) for key in won)
    exchanged: set[IdempotencyId] = set()
    for request in requests:
        record = known.get(request.id)
        if record is None:
            continue  # claimed just now, or erased between the two statements; the next round settles it
        if record.erased:
            journal.refuse(request.attempt, NotAvailable("answer_erased"))
        elif record.fingerprint_version not in request.digests:
            # The key of its fingerprint was retired: whether this is the same request cannot be told, so it is unknown.
            journal.refuse(request.attempt, Unavailable("answer_not_comparable"), outcome=Outcome.ERROR)
        elif request.digests[record.fingerprint_version] != record.request_sha256:
            journal.refuse(request.attempt, IdempotencyConflict("idempotency_key_reused"))
        elif request.id not in exchanged:
            settled.repeats[id(request.attempt)] = record
            if request.voids_former:
                exchanged.add(request.id)
    return settled


def _record(request: Request[A], now: datetime) -> IdempotencyRecord:
    version, request_sha256 = next(iter(request.digests.items()))
    return IdempotencyRecord(
        id=request.id,
        request_sha256=request_sha256,
        fingerprint_version=version,
        answer=request.answer,
        customer=request.customer,
        token=request.token,
        created_at=now,
        expires_at=now + LIFETIME,
    )
