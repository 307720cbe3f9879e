"""What goes in and what comes out: frozen values with real types, none of which can print a card number."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from vault.domain.brand import Brand
from vault.domain.card import CardState, Expiry, Secret
from vault.domain.consent import CardUse, ConsentChannel
from vault.domain.grant import Money
from vault.domain.ids import Token
from vault.domain.outcome import PaymentOutcome

__all__ = [
    "Brand",
    "Card",
    "CardInput",
    "CardNumber",
    "CardState",
    "CardUse",
    "Consent",
    "ConsentChannel",
    "ConsentSummary",
    "CustomerExport",
    "ErasureReceipt",
    "Expiry",
    "Grant",
    "HolderName",
    "ImportItem",
    "InclusionProof",
    "Money",
    "OneTimeToken",
    "PaymentOutcome",
    "Release",
    "ReleasedCard",
    "SecurityCode",
    "StoredCard",
    "Token",
    "Tokenized",
]

_SHORTEST_NUMBER = 12
_LAST = 4


class CardNumber(Secret):
    """A card number on its way in or out. Whether it is valid the server decides.

    It shows its last four digits. Printing, formatting, pickling, copying and JSON refuse. `reveal()` is the one way to
    the digits: search your own code for it.
    """

    __slots__ = ()

    def reveal(self) -> str:
        """The digits. Every call of this method is a place where a card can leak."""
        return self._text

    def last4(self) -> str:
        """The last four digits; nothing of what is too short to be a card number."""
        return self._text[-_LAST:] if len(self._text) >= _SHORTEST_NUMBER else ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(••••{self.last4()})"


class HolderName(Secret):
    """The name on a card; `reveal_text()` gives it. May be empty."""

    __slots__ = ()


class SecurityCode(Secret):
    """CVC, CVV or CID; `reveal_text()` gives it. Never keep it after authorisation (PCI DSS 3.3.1). May be empty."""

    __slots__ = ()


class CardInput:
    """A card as the customer typed it.

    >>> card = CardInput(typed, expiry=Expiry(year=2030, month=12), holder_name="Ada Example")
    >>> card
    CardInput(number=CardNumber(••••4242), expiry=Expiry(year=2030, month=12))
    """

    __slots__ = ("_expiry", "_holder_name", "_number", "_security_code")

    def __init__(
        self, number: str | CardNumber, *, expiry: Expiry, holder_name: str = "", security_code: str = ""
    ) -> None:
        """`number`: ASCII digits and nothing else. `security_code` only together with an order."""
        self._number = number if isinstance(number, CardNumber) else CardNumber(number)
        self._expiry = expiry
        self._holder_name = HolderName(holder_name)
        self._security_code = SecurityCode(security_code)

    @property
    def number(self) -> CardNumber:
        """The card number."""
        return self._number

    @property
    def expiry(self) -> Expiry:
        """The month through whose last day it is valid."""
        return self._expiry

    @property
    def holder_name(self) -> HolderName:
        """The name on it."""
        return self._holder_name

    @property
    def security_code(self) -> SecurityCode:
        """Its security code."""
        return self._security_code

    def __repr__(self) -> str:
        return f"CardInput(number={self._number!r}, expiry={self._expiry!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """The customer's opt-in, to be recorded with the card.

    >>> terms = "Keep my card for my next purchase. You can remove it on your account page."
    >>> consent = Consent.to(terms, version="2026-01", uses=[CardUse.CUSTOMER_INITIATED], locale="en")
    >>> consent.channel.name, len(consent.terms_sha256)
    ('WEB', 32)
    """

    terms_version: str
    """1 to 64 characters."""
    terms_sha256: bytes
    """SHA-256 of the exact text that was shown (32 bytes)."""
    uses: tuple[CardUse, ...]
    """What the customer agreed to."""
    channel: ConsentChannel
    """Where the customer ticked the box."""
    locale: str
    """Language of the text shown, as in `de-AT`."""
    agreed_until: datetime | None = None
    """End of the agreement; without one it holds until withdrawn. With a time zone."""

    @classmethod
    def to(
        cls,
        terms: str,
        *,
        version: str,
        uses: Sequence[CardUse],
        locale: str,
        channel: ConsentChannel = ConsentChannel.WEB,
        agreed_until: datetime | None = None,
    ) -> Self:
        """Consent to the very text that was shown, which is hashed here as UTF-8."""
        return cls(
            terms_version=version,
            terms_sha256=hashlib.sha256(terms.encode()).digest(),
            uses=tuple(uses),
            channel=channel,
            locale=locale,
            agreed_until=agreed_until,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentSummary:
    """What a recorded consent says."""

    consent_id: str
    terms_version: str
    uses: tuple[CardUse, ...]
    """Without those that this release of the client does not know."""
    agreed_at: datetime
    agreed_until: datetime | None
    withdrawn_at: datetime | None
    """Only in an export."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A stored card as it may be shown."""

    token: Token
    """Names it from now on; a `str` to be kept in your database."""
    brand: Brand | None
    """None: a scheme that this release of the client does not know."""
    last4: str
    expiry: Expiry
    expired: bool
    is_default: bool
    state: CardState | None
    """None: a state that this release of the client does not know."""
    created_at: datetime
    """First time it was stored, UTC."""
    consent: ConsentSummary
    """Under which it is kept."""


class OneTimeToken(Secret):
    """A sealed card that you hold until its order is paid, and no longer.

    To carry it between two requests, keep `reveal_text()` and make it again with `OneTimeToken(text)`.
    """

    __slots__ = ("expires_at",)

    expires_at: datetime | None
    """When it stops working; None where it was made again from its text."""

    def __init__(self, text: str, *, expires_at: datetime | None = None) -> None:
        super().__init__(text)
        self.expires_at = expires_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """What became of a card."""

    card: Card | None
    """The stored card; None where there was no consent, so that nothing was stored."""
    brand: Brand | None
    """None: a scheme that this release of the client does not know."""
    last4: str
    expiry: Expiry
    one_time_token: OneTimeToken | None
    """For the order, if one was named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportItem:
    """One card of a batch, with consent and without a security code."""

    customer: str
    card: CardInput
    consent: Consent
    idempotency_key: str = ""
    """Drawn for this call if empty. With one of your own an import can be run again."""


@dataclass(frozen=True, slots=True)
class StoredCard:
    """A token with its owner: a token alone is not enough to spend it."""

    customer: str
    token: str


class Grant(Secret):
    """The right to one card number. Hand `reveal_text()` to the processor, as one opaque string."""

    __slots__ = ("expires_at",)

    expires_at: datetime | None
    """When it stops working; None where it was made again from its text."""

    def __init__(self, text: str, *, expires_at: datetime | None = None) -> None:
        super().__init__(text)
        self.expires_at = expires_at


@dataclass(frozen=True, slots=True, kw_only=True)
class InclusionProof:
    """Shows that an event stands in the signed log (RFC 6962, 2.1.1); `cardvault audit check-proof` checks it."""

    leaf: bytes
    leaf_index: int
    tree_size: int
    path: tuple[bytes, ...]
    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureReceipt:
    """Says that something was erased, and where the audit log shows it."""

    event_id: str
    erased_at: datetime
    cards: int
    """How many were erased."""
    grants_revoked: int
    """How many open grants died with them."""
    proof: InclusionProof | None
    """None until a checkpoint covers the event: repeat the call with its idempotency key after some seconds."""
    idempotency_key: str
    """Of the call, to repeat it with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One release of a card to a processor."""

    token: Token | None
    """None: it was paid with by one-time token and not stored."""
    order: str
    processor: str
    released_at: datetime
    by_one_time_token: bool = False
    """Whether it was paid with by one-time token, and not with the stored card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerExport:
    """What is kept about a customer (subject access); never a card number."""

    cards: tuple[Card, ...]
    consents: tuple[ConsentSummary, ...]
    """Also those withdrawn."""
    releases: tuple[Release, ...]
    """Also of cards erased since; of cards never stored only if the call that took them in named the customer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedCard:
    """A card in the processor's hands. Use it for the order it was released for, and let it go."""

    number: CardNumber
    expiry: Expiry
    holder_name: HolderName
    security_code: SecurityCode
    """Only from a one-time token that was made with one; else empty."""
    brand: Brand | None
    """None: a scheme that this release of the client does not know."""
    purpose: CardUse | None
    """The use that the grant was issued for; None: one that this release of the client does not know."""
    network_transaction_id: str = field(default="")
    """Of the card's first approved payment, which a payment that the shop starts must refer to; else empty."""
