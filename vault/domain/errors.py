"""The one tree of errors that callers may learn of; a table in the gate maps each kind to a status code."""

from __future__ import annotations

from datetime import timedelta
from enum import Enum


class Kind(Enum):
    """What sort of refusal or trouble it is. Definite kinds promise that nothing happened."""

    INVALID = "invalid"
    REFUSED = "refused"
    NOT_AVAILABLE = "not_available"
    CONSENT_REQUIRED = "consent_required"
    PRECONDITION = "precondition"
    CONFLICT = "conflict"
    EXHAUSTED = "exhausted"
    CONTENTION = "contention"
    UNAVAILABLE = "unavailable"


class CardVaultError(Exception):
    """Stops one call.

    `reason` is a short code for the audit log and never reaches the caller unless the kind's answer says so.
    `message` is for the caller: fixed words, never a value out of the request.
    """

    kind: Kind
    default_message = "error"

    def __init__(
        self,
        reason: str,
        *,
        message: str | None = None,
        field: str = "",
        retry_after: timedelta | None = None,
        audited: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.message = message if message is not None else self.default_message
        self.field = field
        self.retry_after = retry_after
        self.audited = audited
        """True when an event about this refusal is already committed."""


class InvalidField(CardVaultError):
    """A field fails its checks; `field` is its path in the request, as in `card.pan`."""

    kind = Kind.INVALID
    default_message = "invalid"

    def __init__(self, field: str, message: str) -> None:
        super().__init__("invalid_field", message=message, field=field)


class Refused(CardVaultError):
    """The caller may not do this. One text for every cause."""

    kind = Kind.REFUSED
    default_message = "refused"


class NotAvailable(CardVaultError):
    """Not there, not yours, erased or expired: one answer for all."""

    kind = Kind.NOT_AVAILABLE
    default_message = "not available"


class ConsentRequired(CardVaultError):
    """The customer's consent is missing, ended, or does not cover the use."""

    kind = Kind.CONSENT_REQUIRED
    default_message = "consent required"


class PreconditionFailed(CardVaultError):
    """The thing is in a state that does not allow this."""

    kind = Kind.PRECONDITION


class IdempotencyConflict(CardVaultError):
    """The idempotency key stands for another request, or for one whose secret answer was used."""

    kind = Kind.CONFLICT
    default_message = "idempotency key already used"


class Exhausted(CardVaultError):
    """A limit is reached; try later."""

    kind = Kind.EXHAUSTED
    default_message = "try later"


class Contention(CardVaultError):
    """Others kept changing the same thing; nothing happened, repeat the call."""

    kind = Kind.CONTENTION
    default_message = "retry"


class Unavailable(CardVaultError):
    """Vault, the database or the audit log cannot be reached. Whether a write happened is unknown."""

    kind = Kind.UNAVAILABLE
    default_message = "unavailable"


class KeyRingUnavailable(Unavailable):
    """Vault gave no usable answer."""


class StoreUnavailable(Unavailable):
    """The database gave no usable answer."""


class KeyRefused(Exception):
    """Vault says that this wrapped key does not belong to this binding: a row was altered or moved."""


class BrokenSeal(Exception):
    """A sealed card does not open under its binding: a row was altered or moved."""
