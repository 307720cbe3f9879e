"""The card number. It shows its last four digits and nothing else, unless asked by name."""

from __future__ import annotations

import hmac
import re
from typing import NoReturn

from vault.domain.brand import Brand, brand_of
from vault.domain.errors import InvalidField

_SHORTEST = 12
_DIGITS = re.compile(r"[0-9]{12,19}")
# One digit, then at least eleven more, each with at most one separator before it.
_DIGIT_RUN = re.compile(r"[0-9](?:[ .,\-/_:@+=#]?[0-9]){11,}")
_DOUBLED = bytes.maketrans(b"0123456789", b"0246813579")


def _luhn_ok(digits: str) -> bool:
    """The check digit of ISO/IEC 7812-1 annex B."""
    raw = digits.encode("ascii")
    # The sums of bytes: each counts 48 more than its digit.
    total = sum(raw[-1::-2]) + sum(raw[-2::-2].translate(_DOUBLED)) - 48 * len(raw)
    return total % 10 == 0


def _problem_with(digits: str) -> str | None:
    """What keeps a text from being a card number, in words, or None."""
    if _DIGITS.fullmatch(digits) is None:
        return "must be 12 to 19 ASCII digits and nothing else"
    if not _luhn_ok(digits):
        return "check digit does not match"
    brand = brand_of(digits)
    if brand is None:
        return "belongs to no supported card scheme"
    if len(digits) not in brand.lengths:
        return "has a length that its card scheme does not issue"
    return None


class Pan:
    """A valid primary account number (PAN).

    Printing, formatting, pickling and JSON all show at most the last four digits or refuse; `reveal()` is the one
    way to the number and may be called in two files only, which a test holds.
    """

    __slots__ = ("_digits", "brand")

    brand: Brand

    def __init__(self, digits: str) -> None:
        brand = brand_of(digits)
        if brand is None:
            raise InvalidField("card.pan", "belongs to no supported card scheme")
        self._digits = digits
        self.brand = brand

    @classmethod
    def parse(cls, text: str, *, field: str = "card.pan") -> Pan:
        """Check ASCII digits, length, check digit and scheme. Raises `InvalidField`, never with the value."""
        problem = _problem_with(text)
        if problem is not None:
            raise InvalidField(field, problem)
        return cls(text)

    def reveal(self) -> str:
        """The full number. Every call of this method is a place where a card can leak."""
        return self._digits

    def last4(self) -> str:
        """The one truncated form there is (PCI DSS 3.4.1, 3.5.1: never two different truncations)."""
        return self._digits[-4:]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pan):
            return NotImplemented
        return hmac.compare_digest(self._digits, other._digits)

    __hash__ = None  # type: ignore[assignment]  # a number must not become a dictionary key

    def __repr__(self) -> str:
        return f"Pan(••••{self.last4()})"

    def __str__(self) -> NoReturn:
        raise TypeError("a card number cannot become text; use last4()")

    def __format__(self, spec: str) -> NoReturn:
        raise TypeError("a card number cannot be formatted; use last4()")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a card number cannot be pickled or copied")


def contains_pan(text: str) -> bool:
    """Whether a text that should hold no card number holds one, also with separators between the digits.

    A run of at most 19 digits counts if all of it is a valid number, so that long numeric ids pass, or if some of its
    groups are, as in a number with `-01` behind it; of a longer run every window counts.
    """
    if len(text) < _SHORTEST:
        return False
    for match in _DIGIT_RUN.finditer(text):
        groups = re.findall(r"[0-9]+", match.group())
        digits = "".join(groups)
        if len(digits) <= 19:
            spans = ("".join(groups[i:j]) for i in range(len(groups)) for j in range(i + 1, len(groups) + 1))
            if any(_problem_with(span) is None for span in spans):
                return True
            continue
        windows = (digits[i : i + n] for n in range(13, 20) for i in range(len(digits) - n + 1))
        if any(_problem_with(window) is None for window in windows):
            return True
    return False
