"""A grant: the right to one card number, for one order and amount, once, soon, by one processor."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Self

from vault.domain import letters
from vault.domain.caller import Identity
from vault.domain.card import Expiry, Secret
from vault.domain.consent import CardUse, ConsentEntry
from vault.domain.errors import InvalidField, NotAvailable, Refused
from vault.domain.ids import (
    RANDOM_BYTES,
    CustomerId,
    NetworkTransactionId,
    OnceId,
    OrderId,
    ProcessorName,
    TenantId,
    Token,
)
from vault.domain.outcome import PaymentOutcome

DEFAULT_LIFETIME = timedelta(minutes=2)
MIN_LIFETIME = timedelta(seconds=10)
MAX_LIFETIME = timedelta(minutes=15)
ONE_TIME_LIFETIME = timedelta(minutes=15)
"""How long a one-time token works, and so the longest time a security code can be opened (PCI DSS 3.3.2)."""

MAX_MINOR_UNITS = 999_999_999_999
_ONCE_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in the currency's smallest unit."""

    minor_units: int
    currency: str

    @classmethod
    def parse(cls, *, minor_units: int, currency: str, field: str = "amount") -> Money:
        """Zero is allowed, for account verification."""
        if not 0 <= minor_units <= MAX_MINOR_UNITS:
            raise InvalidField(f"{field}.minor_units", f"must be 0 to {MAX_MINOR_UNITS}")
        if len(currency) != 3 or not (currency.isascii() and currency.isalpha() and currency.isupper()):
            raise InvalidField(f"{field}.currency", "must be three capital letters (ISO 4217)")
        return cls(minor_units, currency)


class OneTimeToken(Secret):
    """A sealed card that only the caller holds, for one order: `once_`, letters."""

    __slots__ = ("once_id", "sealed")

    def __init__(self, once_id: OnceId, sealed: bytes) -> None:
        super().__init__("once_" + letters.encode(bytes((_ONCE_FORMAT,)) + once_id.raw() + sealed))
        self.once_id = once_id
        self.sealed = sealed

    @classmethod
    def parse(cls, text: str) -> OneTimeToken:
        """Raises `NotAvailable` for whatever is not one."""
        body = text.removeprefix("once_")
        raw = letters.decode(body) if body != text else None
        if raw is None or len(raw) <= 1 + RANDOM_BYTES or raw[0] != _ONCE_FORMAT:
            raise NotAvailable("malformed_one_time_token")
        return cls(OnceId.from_random(raw[1 : 1 + RANDOM_BYTES]), raw[1 + RANDOM_BYTES :])


class GrantText(Secret):
    """What the processor redeems: `grant_`, letters, and a one-time token's letters behind `_` if it is for one.

    The vault keeps only its SHA-256.
    """

    __slots__ = ("one_time_token",)

    def __init__(self, text: str, one_time_token: OneTimeToken | None) -> None:
        super().__init__(text)
        self.one_time_token = one_time_token

    @classmethod
    def draw(cls, raw: bytes, one_time_token: OneTimeToken | None) -> GrantText:
        """`raw` is 16 random bytes."""
        if len(raw) != RANDOM_BYTES:
            raise ValueError(f"a grant needs {RANDOM_BYTES} random bytes")
        text = "grant_" + letters.encode(raw)
        if one_time_token is not None:
            text += "_" + one_time_token.reveal_text().removeprefix("once_")
        return cls(text, one_time_token)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises `Refused` for whatever is not one: a mistyped and an unknown grant get the same answer."""
        body = text.removeprefix("grant_")
        secret, _, once = body.partition("_")
        raw = letters.decode(secret) if body != text else None
        if raw is None or len(raw) != RANDOM_BYTES or text.endswith("_"):
            raise Refused("malformed_grant")
        try:
            return cls(text, OneTimeToken.parse("once_" + once) if once else None)
        except NotAvailable as e:
            raise Refused("malformed_grant") from e

    @classmethod
    def parse_for_issuer(cls, text: str) -> Self:
        """The same for the shop that issued it. Raises `NotAvailable`, as for an unknown one."""
        try:
            return cls.parse(text)
        except Refused as e:
            raise NotAvailable(e.reason) from None

    def sha256(self) -> bytes:
        """The name under which the vault keeps it (32 bytes)."""
        return hashlib.sha256(self._text.encode()).digest()


class GrantState(StrEnum):
    """Where a grant is in its life. It never comes back to `OPEN`."""

    OPEN = "open"
    USED = "used"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Grant:
    """The scope of one release, as the vault keeps it. It is for a stored card or for a one-time token."""

    tenant: TenantId
    grant_sha256: bytes
    customer: CustomerId | None
    """Whose card it releases; None for a one-time token of which the shop did not say it."""
    token: Token | None
    once_id: OnceId | None
    order: OrderId
    amount: Money
    purpose: CardUse
    processor: ProcessorName
    state: GrantState
    issued_at: datetime
    expires_at: datetime
    issued_by: str
    outcome: PaymentOutcome | None = None
    """What became of its payment, once the processor has said so."""

    @property
    def subject(self) -> str:
        """The token or the one-time token's id."""
        subject = self.token or self.once_id
        assert subject is not None, "a grant is always for something"
        return subject


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A data key as it is stored: wrapped by transit, with the version of the key that wrapped it."""

    wrapped: str
    """`vault:v<version>:<base64>`."""

    @property
    def kek_version(self) -> int:
        """Version of the key-encryption key."""
        return int(self.wrapped.split(":", 2)[1][1:])


@dataclass(frozen=True, slots=True)
class RedeemableStoredCard:
    """What a grant for a stored card leads to."""

    token: Token
    customer: CustomerId
    key: SealedKey
    ciphertext: bytes
    record_version: int
    expiry: Expiry
    is_active: bool
    consent: ConsentEntry
    network_transaction_id: NetworkTransactionId | None = None
    """Of its first approved payment, if the processor named one."""


@dataclass(frozen=True, slots=True)
class RedeemableOnce:
    """What a grant for a one-time token leads to; the sealed card itself comes inside the grant."""

    once_id: OnceId
    order: OrderId
    key: SealedKey
    expires_at: datetime
    token: Token | None = None
    """The card that was stored in the same call, if one was."""


@dataclass(frozen=True, slots=True)
class Redeemable:
    """A grant and what it leads to; `target` is None once that is gone."""

    grant: Grant
    target: RedeemableStoredCard | RedeemableOnce | None


@dataclass(frozen=True, slots=True)
class Allowed:
    """The redemption may go on to Vault."""

    redeemable: Redeemable
    target: RedeemableStoredCard | RedeemableOnce


@dataclass(frozen=True, slots=True)
class Denied:
    """The redemption is refused; the reason is for the audit log alone."""

    reason: str


def decide_redemption(
    found: Redeemable | None, *, identity: Identity, order: OrderId, amount: Money, now: datetime
) -> Allowed | Denied:
    """Whether this processor may redeem this grant for this order and amount now."""
    if found is None:
        return Denied("unknown_grant")
    grant = found.grant
    checks: tuple[tuple[bool, str], ...] = (
        (grant.tenant in identity.tenants, "foreign_tenant"),
        (grant.processor == identity.processor, "wrong_processor"),
        (grant.state is GrantState.OPEN, f"grant_{grant.state}"),
        (now < grant.expires_at, "grant_expired"),
        # No grant of ours lives longer: this one was written by somebody else.
        (grant.expires_at - grant.issued_at <= MAX_LIFETIME, "impossible_lifetime"),
        (grant.order == order, "wrong_order"),
        (grant.amount == amount, "wrong_amount"),
    )
    for holds, reason in checks:
        if not holds:
            return Denied(reason)
    target = found.target
    match target:
        case None:
            return Denied("card_gone")
        # Each payment that the customer starts may be the first one approved; nothing else may be paid with it yet.
        case RedeemableStoredCard() if not target.is_active and grant.purpose is not CardUse.CUSTOMER_INITIATED:
            return Denied("card_pending")
        case RedeemableStoredCard() if target.expiry.is_past(now):
            return Denied("card_expired")
        case RedeemableStoredCard() if not target.consent.covers(grant.purpose, now=now):
            return Denied("consent_missing")
        case RedeemableOnce() if target.order != order:
            return Denied("wrong_order")
        case RedeemableOnce() if now >= target.expires_at:
            return Denied("one_time_token_expired")
    return Allowed(found, target)


def why_no_outcome(
    grant: Grant | None, *, processor: ProcessorName, order: OrderId, outcome: PaymentOutcome
) -> str | None:
    """Why an outcome cannot be reported that the database did not take as the first; None if it only repeats it.

    The reason is for the audit log alone. `grant` is one of a tenant that the processor serves, or None.
    """
    if grant is None:
        return "unknown_grant"
    checks: tuple[tuple[bool, str], ...] = (
        (grant.processor == processor, "wrong_processor"),
        (grant.order == order, "wrong_order"),
        (grant.state is GrantState.USED, "grant_unused" if grant.state is GrantState.OPEN else f"grant_{grant.state}"),
        (grant.outcome is outcome, "other_outcome"),
    )
    return next((reason for holds, reason in checks if not holds), None)


def parse_lifetime(lifetime: timedelta | None) -> timedelta:
    """Check a grant's lifetime; the default if none is asked for."""
    if lifetime is None:
        return DEFAULT_LIFETIME
    if not MIN_LIFETIME <= lifetime <= MAX_LIFETIME:
        raise InvalidField("lifetime", "must be 10 seconds to 15 minutes")
    return lifetime
