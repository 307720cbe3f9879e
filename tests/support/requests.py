"""Requests as a shop would send them."""

from __future__ import annotations

import hashlib
import itertools
import secrets
from typing import Any

from tests.support.cards import TypedCard
from tests.support.installation import ACQUIRER
from vault.v1 import cards_pb2, checkout_pb2, processor_pb2

TIMEOUT = 15.0
CUSTOMER_INITIATED = cards_pb2.CARD_USE_CUSTOMER_INITIATED
_numbers = itertools.count(1)
_run = secrets.token_hex(4)


def new_customer() -> str:
    """A customer that no other test knows."""
    return f"customer-{_run}-{next(_numbers)}-c"


def new_order() -> str:
    """An order that no other test knows."""
    return f"order-{_run}-{next(_numbers)}"


def new_key() -> str:
    """A fresh idempotency key."""
    return f"key-{_run}-{next(_numbers)}"


def card_input(card: TypedCard, *, security_code: bool = False) -> cards_pb2.CardInput:
    """A typed card as it goes over the wire."""
    return cards_pb2.CardInput(
        pan=card.pan,
        expiry=cards_pb2.Expiry(month=card.month, year=card.year),
        holder_name=card.holder_name,
        security_code=card.security_code if security_code else "",
    )


def consent(*uses: cards_pb2.CardUse.ValueType, **changes: Any) -> cards_pb2.Consent:
    """A consent, to customer-initiated use unless told otherwise."""
    facts: dict[str, Any] = {
        "terms_version": "2026-01",
        "terms_sha256": hashlib.sha256(b"keep my card").digest(),
        "uses": uses or [CUSTOMER_INITIATED],
        "channel": cards_pb2.CONSENT_CHANNEL_WEB,
        "locale": "en",
    }
    return cards_pb2.Consent(**{**facts, **changes})


def store_request(card: TypedCard, customer: str, **changes: Any) -> checkout_pb2.TokenizeRequest:
    """A card with consent."""
    facts: dict[str, Any] = {"customer_id": customer, "card": card_input(card), "consent": consent()}
    return checkout_pb2.TokenizeRequest(**{**facts, **changes})


def once_request(
    card: TypedCard, order: str, *, security_code: bool = True, **changes: Any
) -> checkout_pb2.TokenizeRequest:
    """A card for one order, not stored."""
    return checkout_pb2.TokenizeRequest(card=card_input(card, security_code=security_code), order_id=order, **changes)


def money(minor_units: int = 4900, currency: str = "EUR") -> cards_pb2.Money:
    """An amount."""
    return cards_pb2.Money(minor_units=minor_units, currency=currency)


def grant_request(
    *,
    order: str,
    customer: str = "",
    token: str = "",
    one_time_token: str = "",
    **changes: Any,
) -> checkout_pb2.IssueGrantRequest:
    """A grant for a stored card or a one-time token."""
    facts: dict[str, Any] = {
        "order_id": order,
        "amount": money(),
        "purpose": CUSTOMER_INITIATED,
        "processor": ACQUIRER,
    }
    if one_time_token:
        facts["one_time_token"] = one_time_token
    else:
        facts["stored_card"] = checkout_pb2.StoredCardSubject(customer_id=customer, token=token)
    return checkout_pb2.IssueGrantRequest(**{**facts, **changes})


def redeem_request(grant: str, order: str, **changes: Any) -> processor_pb2.DetokenizeRequest:
    """A redemption."""
    facts: dict[str, Any] = {"grant": grant, "order_id": order, "amount": money()}
    return processor_pb2.DetokenizeRequest(**{**facts, **changes})
