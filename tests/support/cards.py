"""Fresh card numbers, names and security codes, made when a test runs and remembered for the leak scan.

Whatever `fresh_*` hands out is recorded; at the end of a run everything the tests left behind is searched for it.
`made_up_digits` does not record: it is for property tests that draw thousands of numbers and never leave the process.
"""

from __future__ import annotations

import os
import random
import string
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from vault.domain.brand import Brand
from vault.domain.card import CardDetails, Expiry, HolderName, SecurityCode
from vault.domain.pan import Pan
from vault.testing.numbers import REGISTRY, Registry, check_digit, made_up_digits
from vault.testing.scan import Kind

__all__ = [
    "ARTIFACTS_VARIABLE",
    "PUBLISHED_VISA",
    "REGISTRY",
    "Registry",
    "TypedCard",
    "artifact_root",
    "check_digit",
    "fresh_card",
    "fresh_digits",
    "fresh_holder_name",
    "fresh_pan",
    "fresh_security_code",
    "fresh_typed_card",
    "made_up_digits",
]

ARTIFACTS_VARIABLE = "CARDVAULT_TEST_ARTIFACTS"
PUBLISHED_VISA = "4242424242424242"
"""The one number that golden vectors are made of."""

_SYSTEM = random.SystemRandom()


def artifact_root() -> Path:
    """Where test runs leave things, and where the registry goes."""
    return Path(os.environ.get(ARTIFACTS_VARIABLE) or Path(__file__).resolve().parents[2] / ".test-artifacts")


def fresh_digits(*, brand: Brand | None = None, length: int | None = None, rng: random.Random | None = None) -> str:
    """A valid number as text, recorded. A Visa of 16 digits unless told otherwise."""
    if brand is None and length is None:
        brand, length = Brand.VISA, 16
    digits = made_up_digits(brand=brand, length=length, rng=rng)
    REGISTRY.record(Kind.PAN, digits)
    return digits


def fresh_pan(*, brand: Brand | None = None, length: int | None = None, rng: random.Random | None = None) -> Pan:
    """As `fresh_digits`, parsed."""
    return Pan.parse(fresh_digits(brand=brand, length=length, rng=rng))


def fresh_security_code(*, brand: Brand = Brand.VISA, rng: random.Random | None = None) -> str:
    """A security code, recorded.

    Three digits stand everywhere, so the scan cannot look for them alone. It looks for them behind a word such as
    `security_code` or `cvv`, and for their unkeyed digests; beyond that it relies on their company: whoever writes
    down a whole card writes its number and its holder's unique name as well, and for those it looks anywhere.
    """
    code = "".join((rng or _SYSTEM).choices(string.digits, k=brand.security_code_digits))
    REGISTRY.record(Kind.CODE, code)
    return code


def fresh_holder_name(*, rng: random.Random | None = None) -> str:
    """A name of two words and 16 letters that stands nowhere else, recorded."""
    letters = (rng or _SYSTEM).choices(string.ascii_lowercase, k=16)
    name = f"{''.join(letters[:6]).title()} {''.join(letters[6:]).title()}"
    REGISTRY.record(Kind.NAME, name)
    return name


@dataclass(frozen=True, slots=True)
class TypedCard:
    """A card as a customer types it: plain texts, for requests."""

    pan: str = field(repr=False)
    month: int
    year: int
    holder_name: str = field(repr=False)
    security_code: str = field(repr=False)

    @property
    def last4(self) -> str:
        """What may be shown of it."""
        return self.pan[-4:]

    @property
    def brand(self) -> Brand:
        """Its scheme."""
        return Pan.parse(self.pan).brand

    def details(self) -> CardDetails:
        """The domain's card."""
        pan = Pan.parse(self.pan)
        return CardDetails(
            pan=pan,
            expiry=Expiry(year=self.year, month=self.month),
            holder_name=HolderName.parse(self.holder_name),
            security_code=SecurityCode.parse(self.security_code, brand=pan.brand),
        )


def fresh_typed_card(
    *,
    brand: Brand | None = None,
    length: int | None = None,
    with_security_code: bool = False,
    with_name: bool = True,
    year: int | None = None,
    month: int = 12,
    rng: random.Random | None = None,
) -> TypedCard:
    """A card nobody has, recorded, valid for some years yet; a Visa of 16 digits unless told otherwise."""
    pan = fresh_digits(brand=brand, length=length, rng=rng)
    return TypedCard(
        pan=pan,
        month=month,
        year=year if year is not None else datetime.now(UTC).year + 3,
        holder_name=fresh_holder_name(rng=rng) if with_name else "",
        security_code=fresh_security_code(brand=Pan.parse(pan).brand, rng=rng) if with_security_code else "",
    )


def fresh_card(
    *,
    brand: Brand | None = None,
    length: int | None = None,
    with_security_code: bool = False,
    with_name: bool = True,
    year: int | None = None,
    month: int = 12,
    rng: random.Random | None = None,
) -> CardDetails:
    """As `fresh_typed_card`, parsed."""
    return fresh_typed_card(
        brand=brand,
        length=length,
        with_security_code=with_security_code,
        with_name=with_name,
        year=year,
        month=month,
        rng=rng,
    ).details()
