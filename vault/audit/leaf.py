"""An audit event as the bytes that are hashed, exported and kept: one line of canonical JSON.

Sorted keys, no spaces, ASCII: the same event has the same bytes on every database, in every export, for ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from vault.domain.audit import AuditEvent, Outcome
from vault.domain.ids import EventId, RequestId

FORMAT = 1
"""Stands in each leaf as `v`; a later form gets another number, and old leaves stay as they are."""

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, check_circular=False).encode


class BadLeaf(Exception):
    """Bytes that are no event."""


def encode(event: AuditEvent) -> bytes:
    """The leaf, without a line end."""
    facts: dict[str, Any] = {
        "v": FORMAT,
        "event_id": event.event_id,
        "occurred_at": event.occurred_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "event": event.event,
        "outcome": event.outcome.value,
        "reason": event.reason,
        "actor": event.actor,
        "actor_certificate": event.actor_certificate,
        "role": event.role,
        "peer": event.peer,
        "request_id": event.request_id,
        "tenant": event.tenant,
        "customer": event.customer,
        "target": event.target,
        "order": event.order,
        "processor": event.processor,
        "grant_sha256": "" if event.grant_sha256 is None else event.grant_sha256.hex(),
        "details": dict(event.details),
    }
    return _encode(facts).encode("ascii")


def decode(leaf: bytes) -> AuditEvent:
    """The event of a leaf. Raises `BadLeaf` if these bytes are not exactly what `encode` writes of an event."""
    try:
        facts: Mapping[str, Any] = json.loads(leaf)
        event = AuditEvent(
            event_id=EventId(facts["event_id"]),
            occurred_at=datetime.strptime(facts["occurred_at"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC),
            event=facts["event"],
            outcome=Outcome(facts["outcome"]),
            reason=facts["reason"],
            actor=facts["actor"],
            actor_certificate=facts["actor_certificate"],
            role=facts["role"],
            peer=facts["peer"],
            request_id=RequestId(facts["request_id"]),
            tenant=facts["tenant"],
            customer=facts["customer"],
            target=facts["target"],
            order=facts["order"],
            processor=facts["processor"],
            grant_sha256=bytes.fromhex(facts["grant_sha256"]) or None,
            details=dict(facts["details"]),
        )
        is_exact = encode(event) == leaf
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BadLeaf("is not an audit event in canonical form") from None
    if not is_exact:
        raise BadLeaf("is not an audit event in canonical form")
    return event
