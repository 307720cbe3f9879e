"""Cards that nobody has, each handed out once and known to the leak scan."""

from __future__ import annotations

import secrets
import string
from datetime import UTC, datetime

from vault.client import Brand, CardInput, CardNumber, Expiry
from vault.testing.numbers import REGISTRY, made_up_digits
from vault.testing.scan import Kind

_YEARS_AHEAD = 3
_system = secrets.SystemRandom()


def watch(number: str) -> None:
    """Let the leak scan look for a card number of your own as well."""
    REGISTRY.record(Kind.PAN, number)


def fresh_number(*, brand: Brand = Brand.VISA, length: int | None = None) -> CardNumber:
    """A valid number, of the brand's usual length unless told otherwise.

    >>> number = fresh_number(brand=Brand.AMEX)
    >>> len(number.reveal())
    15
    """
    usual = 16 if 16 in brand.lengths else min(brand.lengths)
    digits = made_up_digits(brand=brand, length=usual if length is None else length)
    REGISTRY.record(Kind.PAN, digits)
    return CardNumber(digits)


def fresh_holder_name() -> str:
    """A name that stands nowhere else."""
    letters = _system.choices(string.ascii_lowercase, k=16)
    name = f"{''.join(letters[:6]).title()} {''.join(letters[6:]).title()}"
    REGISTRY.record(Kind.NAME, name)
    return name


def fresh_security_code(*, brand: Brand = Brand.VISA) -> str:
    """A security code. As three digits stand everywhere, the leak scan looks for it behind words such as `cvv`."""
    code = "".join(_system.choices(string.digits, k=brand.security_code_digits))
    REGISTRY.record(Kind.CODE, code)
    return code


def fresh_card(*, brand: Brand = Brand.VISA, security_code: bool = False, expiry: Expiry | None = None) -> CardInput:
    """A card as a customer would type it, valid for some years yet.

    >>> fresh_card(expiry=Expiry(year=2030, month=12)).expiry
    Expiry(year=2030, month=12)
    """
    return CardInput(
        fresh_number(brand=brand),
        expiry=expiry or Expiry(year=datetime.now(UTC).year + _YEARS_AHEAD, month=12),
        holder_name=fresh_holder_name(),
        security_code=fresh_security_code(brand=brand) if security_code else "",
    )
