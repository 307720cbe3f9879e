"""Card schemes by the first digits of the number (ISO/IEC 7812), with the lengths each one issues.

The ranges follow the schemes' published tables as collected in the `credit-card-type` package; where two
overlap, the longer prefix wins.
"""

from __future__ import annotations

from bisect import bisect_right
from enum import IntEnum

_PREFIX_DIGITS = 8


class Brand(IntEnum):
    """A card scheme; the numbers are those of the wire format and of the database."""

    VISA = 1
    MASTERCARD = 2
    AMEX = 3
    DISCOVER = 4
    DINERS = 5
    JCB = 6
    UNIONPAY = 7
    MAESTRO = 8
    RUPAY = 9
    MIR = 10
    ELO = 11
    TROY = 12
    VERVE = 13

    @property
    def label(self) -> str:
        """The name as people write it."""
        return _LABELS[self]

    @property
    def lengths(self) -> frozenset[int]:
        """Lengths that numbers of this scheme have, in digits."""
        return _LENGTHS[self]

    @property
    def security_code_digits(self) -> int:
        """Digits of the security code: four on American Express, three elsewhere."""
        return 4 if self is Brand.AMEX else 3


_LABELS = {
    Brand.VISA: "Visa",
    Brand.MASTERCARD: "Mastercard",
    Brand.AMEX: "American Express",
    Brand.DISCOVER: "Discover",
    Brand.DINERS: "Diners Club",
    Brand.JCB: "JCB",
    Brand.UNIONPAY: "UnionPay",
    Brand.MAESTRO: "Maestro",
    Brand.RUPAY: "RuPay",
    Brand.MIR: "Mir",
    Brand.ELO: "Elo",
    Brand.TROY: "Troy",
    Brand.VERVE: "Verve",
}

_SIXTEEN_TO_NINETEEN = frozenset({16, 17, 18, 19})
_LENGTHS = {
    Brand.VISA: frozenset({13, 16, 18, 19}),
    Brand.MASTERCARD: frozenset({16}),
    Brand.AMEX: frozenset({15}),
    Brand.DISCOVER: _SIXTEEN_TO_NINETEEN,
    Brand.DINERS: frozenset({14, 15, 16, 17, 18, 19}),
    Brand.JCB: _SIXTEEN_TO_NINETEEN,
    Brand.UNIONPAY: _SIXTEEN_TO_NINETEEN,
    Brand.MAESTRO: frozenset({12, 13, 14, 15, 16, 17, 18, 19}),
    Brand.RUPAY: frozenset({16}),
    Brand.MIR: _SIXTEEN_TO_NINETEEN,
    Brand.ELO: frozenset({16}),
    Brand.TROY: frozenset({16}),
    Brand.VERVE: frozenset({16, 18, 19}),
}

RANGES: dict[Brand, tuple[str, ...]] = {
    Brand.VISA: ("4",),
    Brand.MASTERCARD: ("51-55", "2221-2720"),
    Brand.AMEX: ("34", "37"),
    Brand.DISCOVER: ("6011", "644-649", "65"),
    Brand.DINERS: ("300-305", "3095", "36", "38", "39"),
    Brand.JCB: ("3528-3589",),
    Brand.UNIONPAY: ("62", "8100-8171"),
    Brand.MAESTRO: ("493698", "50", "56-59", "63", "67"),
    Brand.RUPAY: ("508500-508999", "606985-607984", "608001-608500", "652150-653149", "817200-820199"),
    Brand.MIR: ("2200-2204",),
    Brand.ELO: (
        *("401178", "401179", "431274", "438935", "451416", "457393", "457631", "457632", "504175"),
        *("506699-506778", "509000-509999", "627780", "636297", "636368", "650031-650033", "650035-650051"),
        *("650405-650439", "650485-650538", "650541-650598", "650700-650718", "650720-650727"),
        *("650901-650978", "651652-651679", "655000-655019", "655021-655058"),
    ),
    Brand.TROY: ("9792",),
    Brand.VERVE: ("506099-506198", "507865-507964", "650002-650027"),
}
"""For each brand, first digits as `low-high` or a single prefix, both ends included."""


def _build_table() -> tuple[list[int], list[Brand | None]]:
    """Flatten the ranges into sorted starting points, narrower ranges overriding wider ones."""
    spans: list[tuple[int, int, int, Brand]] = []
    for brand, ranges in RANGES.items():
        for text in ranges:
            low, _, high = text.partition("-")
            high = high or low
            pad = _PREFIX_DIGITS - len(low)
            spans.append((len(low), int(low + "0" * pad), int(high + "9" * pad), brand))
    points = sorted({start for _, start, _, _ in spans} | {end + 1 for _, _, end, _ in spans})
    brands: list[Brand | None] = []
    for point in points:
        covering = [(width, -(end - start), brand) for width, start, end, brand in spans if start <= point <= end]
        brands.append(max(covering)[2] if covering else None)
    return points, brands


_POINTS, _BRANDS = _build_table()


def brand_of(digits: str) -> Brand | None:
    """The scheme of a number of at least eight ASCII digits, or None where no known scheme issues it."""
    index = bisect_right(_POINTS, int(digits[:_PREFIX_DIGITS])) - 1
    return _BRANDS[index] if index >= 0 else None
