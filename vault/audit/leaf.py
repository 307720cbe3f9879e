"""An audit event as the bytes that are hashed, exported and kept: one line of canonical JSON.

Sorted keys, no spaces, ASCII: the same event has the same bytes on every database, in every export, for ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from vault.domain.audit import AuditEvent, Outcome
from vault.domain.ids import EventId, RequestId

FORMAT = 1
"""Stands in each leaf as `v`; a later form gets another number, and old leaves stay as they are."""

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, check_circular=False).encode
_DELETE = b"\x7f"


class BadLeaf(Exception):
    """Bytes that are no event."""


def encode(event: AuditEvent) -> bytes:
    """The leaf, without a line end."""
    # In the order of their names, so that they need not be sorted a thousand times a second.
    facts: dict[str, Any] = {
        "actor": event.actor,
        "actor_certificate": event.actor_certificate,
        "customer": event.customer,
        "details": dict(sorted(event.details.items())),
        "event": event.event,
        "event_id": event.event_id,
        "grant_sha256": "" if event.grant_sha256 is None else event.grant_sha256.hex(),
        "occurred_at": event.occurred_at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "order": event.order,
        "outcome": event.outcome.value,
        "peer": event.peer,
        "processor": event.processor,
        "reason": event.reason,
        "request_id": event.request_id,
        "role": event.role,
        "target": event.target,
        "tenant": event.tenant,
        "v": FORMAT,
    }
    try:
        line = orjson.dumps(facts)
    except TypeError:  # text that is no valid Unicode, or a number of more than 64 bits
        return _encode(facts).encode("ascii")
    # Of printable ASCII both write the same bytes. The rest is escaped, and that in the one way that was settled on.
    return line if line.isascii() and _DELETE not in line else _encode(facts).encode("ascii")


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
