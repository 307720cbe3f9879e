"""What a shopper agrees to by ticking the box. A version that was ever shown stays here, letter for letter."""

from __future__ import annotations

from vault.client import CardUse, Consent

LOCALE = "en"
CURRENT = "2026-11"

TEXTS = {
    "2026-11": """\
We keep your card so that you need not type it again. This is your choice, and you can buy without it.

What is kept: the card number, the name on it and its expiry date, encrypted, by our card vault. The security code is \
never kept. We ourselves see only the brand, the last four digits and the expiry date.

What it is used for: payments that you start yourself in this shop. We never charge it on our own.

Who gets the number: our payment processor, once for each payment.

How long: until you remove it on your account page, which takes effect at once; at the latest one month after it \
expires, or after 13 months without use.""",
}


def consent_to(version: str) -> Consent | None:
    """For the ledger, with the digest of the very text; None for a version that was never shown."""
    text = TEXTS.get(version)
    if text is None:
        return None
    return Consent.to(text, version=version, uses=[CardUse.CUSTOMER_INITIATED], locale=LOCALE)
