"""A card as it is typed in, and as it may be shown."""

from __future__ import annotations

import re
import unicodedata
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import NoReturn

from vault.domain.brand import Brand
from vault.domain.consent import ConsentEntry
from vault.domain.errors import InvalidField
from vault.domain.ids import CustomerId, TenantId, Token
from vault.domain.pan import Pan, contains_pan

MAX_YEARS_AHEAD = 20
MAX_NAME_CHARACTERS = 64
MAX_NAME_BYTES = 128
_TRAILING_CODE = re.compile(r"(?:^|[^0-9])[0-9]{3,4}$")
_ASCII_DIGITS = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True)
class Expiry:
    """The month through whose last day a card is valid."""

    year: int
    month: int

    @classmethod
    def parse(cls, *, year: int, month: int, now: datetime, field: str = "card.expiry") -> Expiry:
        """Check that it is a month, not past and plausible."""
        if not 1 <= month <= 12:
            raise InvalidField(f"{field}.month", "must be 1 to 12")
        if not 2000 <= year <= 9999:
            raise InvalidField(f"{field}.year", "must have four digits")
        expiry = cls(year=year, month=month)
        if expiry.is_past(now):
            raise InvalidField(field, "is past")
        if year > now.year + MAX_YEARS_AHEAD:
            raise InvalidField(f"{field}.year", f"must be at most {MAX_YEARS_AHEAD} years ahead")
        return expiry

    def is_past(self, now: datetime) -> bool:
        """Whether the whole month lies before `now` (UTC)."""
        return (self.year, self.month) < (now.year, now.month)

    def last_moment(self) -> datetime:
        """The end of its last day, UTC."""
        return datetime(self.year, self.month, monthrange(self.year, self.month)[1], 23, 59, 59, 999999, UTC)


class Secret:
    """A text that must not be printed."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal_text(self) -> str:
        """The text itself."""
        return self._text

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._text == other._text

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(••••)"

    def __str__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot become text")

    def __format__(self, spec: str) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be formatted")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be pickled or copied")


class HolderName(Secret):
    """Name on the card; may be empty."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str, *, field: str = "card.holder_name") -> HolderName:
        """Fold white space; refuse control characters, card numbers and what looks like a security code."""
        # Before anything else: normalising a long text of combining marks takes time that grows with its square.
        if len(text) > 4 * MAX_NAME_CHARACTERS:
            raise InvalidField(field, f"must be at most {MAX_NAME_CHARACTERS} characters")
        name = " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())
        if len(name) > MAX_NAME_CHARACTERS:
            raise InvalidField(field, f"must be at most {MAX_NAME_CHARACTERS} characters")
        plain = name
        if name.isascii():
            is_printable = name.isprintable()
        else:
            is_printable = not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn") for c in name)
            # NFKC turns digits of other scripts' forms into ASCII, so that they cannot carry a number past the checks.
            plain = "".join(str(unicodedata.digit(c, c)) for c in unicodedata.normalize("NFKC", name))
        if not is_printable:
            raise InvalidField(field, "must not contain control characters")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise InvalidField(field, f"must be at most {MAX_NAME_CHARACTERS} characters")
        if contains_pan(plain):
            raise InvalidField(field, "must not contain a card number")
        if _TRAILING_CODE.search(plain):
            raise InvalidField(field, "must not end in three or four digits")
        return cls(name)


class SecurityCode(Secret):
    """CVC, CVV or CID. It lives in a one-time token only (PCI DSS 3.3.1.2); may be empty."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str, *, brand: Brand, field: str = "card.security_code") -> SecurityCode:
        """Empty, or as many ASCII digits as the scheme prints."""
        if text and (_ASCII_DIGITS.fullmatch(text) is None or len(text) != brand.security_code_digits):
            raise InvalidField(field, "must be 3 digits, 4 for American Express")
        return cls(text)

    @property
    def is_given(self) -> bool:
        """Whether there is one."""
        return bool(self._text)


@dataclass(frozen=True, slots=True)
class CardDetails:
    """A valid card as the customer typed it."""

    pan: Pan
    expiry: Expiry
    holder_name: HolderName
    security_code: SecurityCode


class CardState(IntEnum):
    """A stored card's state; the numbers are those of the wire format and of the database."""

    ACTIVE = 1
    PENDING = 2
    """Good for nothing but a customer-initiated payment, until the first of them is approved."""


PENDING_FOR = timedelta(hours=24)
"""How long after it was first stored a card may stay pending; then it is erased (PCI DSS 3.2.1)."""


@dataclass(frozen=True, slots=True)
class StoredCard:
    """A stored card as it may be shown: display columns and the consent under which it is kept."""

    tenant: TenantId
    customer: CustomerId
    token: Token
    brand: Brand
    last4: str
    expiry: Expiry
    state: CardState
    is_default: bool
    created_at: datetime
    consent: ConsentEntry
