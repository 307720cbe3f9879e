"""What became of a payment, as the processor that made it says."""

from __future__ import annotations

from enum import IntEnum


class PaymentOutcome(IntEnum):
    """The issuer's answer; the numbers are those of the wire format and of the database."""

    APPROVED = 1
    DECLINED = 2
