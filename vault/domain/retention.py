"""How long anything is kept: the rules by which cards and leftovers end, and when each is due (PCI DSS 3.2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from vault.domain.card import PENDING_FOR, Expiry

SLACK = timedelta(hours=24)
"""How late the sweep may be before `cardvault retention verify` says so."""


class CardRule(StrEnum):
    """Why a stored card is erased, in the order in which they are asked; the value stands in the audit event."""

    CONSENT_ENDED = "consent_ended"
    """The customer's consent had an end, and that has come."""
    PENDING = "pending"
    """No first approval came."""
    EXPIRED = "expired"
    """The month through which the card was valid ended."""
    UNUSED = "unused"
    """Neither stored again nor released for a long time."""


class RowRule(StrEnum):
    """What is removed beside cards."""

    ONCE_KEYS = "once_keys"
    """Wrapped keys of one-time tokens whose time is over, and a day later the row."""
    OPEN_GRANTS = "open_grants"
    """Grants that nobody used or revoked are closed a day after they expired; until then a late use says so."""
    CLOSED_GRANTS = "closed_grants"
    """Rows of grants; before that an outcome may be reported for them, and a refusal says used or revoked."""
    IDEMPOTENCY = "idempotency"
    """Remembered answers, 24 hours after they were given; callers rely on that, so it is no setting."""


Rule = CardRule | RowRule
RULES: tuple[Rule, ...] = (*CardRule, *RowRule)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """What is due at one moment: each of these times lies in the past by the limit of its rule."""

    now: datetime
    valid_from: Expiry
    """Cards valid only through an earlier month are due."""
    unused_since: datetime
    pending_since: datetime
    grants_expired_before: datetime
    """Open grants that expired by then are closed."""
    grants_forgotten_before: datetime
    """Grants that expired by then are removed."""
    once_forgotten_before: datetime
    """Spent one-time keys that expired by then leave no row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionLimits:
    """How long each thing is kept; the defaults are the longest, but for grants (at most 90 days)."""

    after_expiry: timedelta = timedelta(days=30)
    """After the end of the card's expiry month."""
    unused: timedelta = timedelta(days=395)
    pending: timedelta = PENDING_FOR
    """After the consent under which the card waits."""
    closed_grants: timedelta = timedelta(days=30)
    """After the grant's expiry, which is at most 15 minutes after it was used or revoked."""
    open_grants: timedelta = timedelta(days=1)
    once_rows: timedelta = timedelta(days=1)

    def at(self, now: datetime) -> Deadlines:
        """What is due at `now`."""
        valid_from = now - self.after_expiry
        return Deadlines(
            now=now,
            valid_from=Expiry(year=valid_from.year, month=valid_from.month),
            unused_since=now - self.unused,
            pending_since=now - self.pending,
            grants_expired_before=now - self.open_grants,
            grants_forgotten_before=now - self.closed_grants,
            once_forgotten_before=now - self.once_rows,
        )
