"""One line of the audit log: who did what to which thing, and what came of it (PCI DSS 10.2.1, 10.2.2).

It never holds a card number, security code, name, expiry, last four digits, grant or one-time token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from vault.domain.caller import Caller
from vault.domain.ids import EventId, RequestId


class Outcome(StrEnum):
    """How it ended."""

    OK = "ok"
    REFUSED = "refused"
    ERROR = "error"


RELEASED = "card.released"
"""The event of a redeemed grant; the database allows one with outcome ok for each grant."""

OPEN_FAILED = "card.open_failed"
"""Critical: a sealed card did not open under its binding, so a row was altered or moved."""


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """An event, committed in the transaction of its effect."""

    event_id: EventId
    occurred_at: datetime
    event: str
    outcome: Outcome
    reason: str
    """Internal code; empty for outcome ok."""
    actor: str
    actor_certificate: str
    role: str
    peer: str
    request_id: RequestId
    tenant: str = ""
    customer: str = ""
    target: str = ""
    """A token, one-time token's id, consent id or key name."""
    order: str = ""
    processor: str = ""
    grant_sha256: bytes | None = None
    details: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """Shows that one event stands in the signed log (RFC 6962, 2.1.1); checked with the public key alone."""

    leaf: bytes
    """The event in canonical form."""
    index: int
    """Its place in the log, from 0."""
    size: int
    """Events under the checkpoint."""
    path: tuple[bytes, ...]
    """Hashes from the leaf to the root, 32 bytes each."""
    checkpoint: str
    """The signed checkpoint (C2SP signed-note)."""


def event_by(
    caller: Caller,
    *,
    event_id: EventId,
    now: datetime,
    event: str,
    outcome: Outcome = Outcome.OK,
    reason: str = "",
    tenant: str | None = None,
    customer: str = "",
    target: str = "",
    order: str = "",
    processor: str = "",
    grant_sha256: bytes | None = None,
    details: Mapping[str, str | int] | None = None,
) -> AuditEvent:
    """An event of one call. `tenant` defaults to the caller's own."""
    identity = caller.identity
    if tenant is None:
        tenant = identity.tenants[0] if identity is not None and identity.processor is None else ""
    return AuditEvent(
        event_id=event_id,
        occurred_at=now,
        event=event,
        outcome=outcome,
        reason=reason,
        actor=identity.uri if identity is not None else caller.presented_uri,
        actor_certificate=caller.certificate_sha256,
        role=identity.role.label if identity is not None else "",
        peer=caller.peer,
        request_id=caller.request_id,
        tenant=tenant,
        customer=customer,
        target=target,
        order=order,
        processor=processor or (identity.processor or "" if identity is not None else ""),
        grant_sha256=grant_sha256,
        details=details or {},
    )
