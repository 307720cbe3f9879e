"""The card form: what was typed, as the vault wants it. Whether a number is valid the vault decides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from vault.client import CardInput, Expiry

_SEPARATORS = str.maketrans("", "", " -\u00a0\u2009\u202f")
_NUMBER = re.compile(r"[0-9]{12,19}")
_EXPIRY = re.compile(r"(0?[1-9]|1[0-2]) ?/? ?(20)?([0-9]{2})")
_CODE = re.compile(r"[0-9]{3,4}")


@dataclass(frozen=True, slots=True)
class Mistakes:
    """What is wrong with a form, by field; a text never quotes what was typed."""

    by_field: Mapping[str, str] = field(default_factory=dict)


def read_expiry(text: str) -> Expiry | None:
    """Month and year, as in `12/30`; None for anything else."""
    match = _EXPIRY.fullmatch(text.strip())
    return None if match is None else Expiry(year=2000 + int(match[3]), month=int(match[1]))


def read_card(fields: Mapping[str, str]) -> CardInput | Mistakes:
    """From the form's fields `number`, `expiry`, `name` and `code`."""
    number = fields.get("number", "").translate(_SEPARATORS)
    code = fields.get("code", "").strip()
    expiry = read_expiry(fields.get("expiry", ""))
    mistakes = {}
    if _NUMBER.fullmatch(number) is None:
        mistakes["number"] = "A card number has 12 to 19 digits. Please type it as it stands on the card."
    if _CODE.fullmatch(code) is None:
        mistakes["code"] = "The security code is the 3 digits on the back, or 4 on the front of an Amex."
    if expiry is None:
        mistakes["expiry"] = "Please write month and year, as in 12/30."
    if mistakes or expiry is None:
        return Mistakes(mistakes)
    return CardInput(number, expiry=expiry, holder_name=fields.get("name", "").strip(), security_code=code)
