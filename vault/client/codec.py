"""Values to protobuf and back: the one place of the client where digits leave a `CardNumber`.

A newer server may answer with a scheme, use or state that is not known here; that becomes None and never an error.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from enum import IntEnum
from typing import TypeVar

from google.protobuf import timestamp_pb2

from vault.client.values import (
    Brand,
    Card,
    CardInput,
    CardNumber,
    CardState,
    CardUse,
    Consent,
    ConsentSummary,
    ErasureReceipt,
    Expiry,
    Grant,
    HolderName,
    InclusionProof,
    Money,
    OneTimeToken,
    Release,
    ReleasedCard,
    SecurityCode,
    Token,
    Tokenized,
)
from vault.domain import letters
from vault.v1 import account_pb2, cards_pb2, checkout_pb2, processor_pb2

E = TypeVar("E", bound=IntEnum)


def new_key() -> str:
    """A fresh idempotency key of letters, as a run of digits could be taken for a card number."""
    return "key_" + letters.encode(os.urandom(16))


# --- going out ------------------------------------------------------------------------------------------------------


def card_input(card: CardInput) -> cards_pb2.CardInput:
    """A card on its way to the vault."""
    return cards_pb2.CardInput(
        pan=card.number.reveal(),
        expiry=expiry_out(card.expiry),
        holder_name=card.holder_name.reveal_text(),
        security_code=card.security_code.reveal_text(),
    )


def expiry_out(expiry: Expiry) -> cards_pb2.Expiry:
    """An expiry date."""
    return cards_pb2.Expiry(month=expiry.month, year=expiry.year)


def consent_out(consent: Consent) -> cards_pb2.Consent:
    """An opt-in. Raises `ValueError` for an end without a time zone."""
    message = cards_pb2.Consent(
        terms_version=consent.terms_version,
        terms_sha256=consent.terms_sha256,
        uses=[cards_pb2.CardUse.ValueType(use) for use in consent.uses],
        channel=cards_pb2.ConsentChannel.ValueType(consent.channel),
        locale=consent.locale,
    )
    if consent.agreed_until is not None:
        if consent.agreed_until.tzinfo is None:
            raise ValueError("needs a time zone")
        message.agreed_until.FromDatetime(consent.agreed_until)
    return message


def money_out(amount: Money) -> cards_pb2.Money:
    """An amount."""
    return cards_pb2.Money(minor_units=amount.minor_units, currency=amount.currency)


def one_time_token_text(token: OneTimeToken) -> str:
    """The token, for the vault that made it."""
    return token.reveal_text()


def grant_text(grant: Grant | str) -> str:
    """The grant, for the vault that made it."""
    return grant.reveal_text() if isinstance(grant, Grant) else grant


# --- coming in ------------------------------------------------------------------------------------------------------


def _known(kind: type[E], number: int) -> E | None:
    return kind(number) if number in set(kind) else None


def _time(message: timestamp_pb2.Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)


def _expiry(message: cards_pb2.Expiry) -> Expiry:
    return Expiry(year=message.year, month=message.month)


def card(message: cards_pb2.Card) -> Card:
    """A stored card as it may be shown."""
    return Card(
        token=Token(message.token),
        brand=_known(Brand, message.brand),
        last4=message.last4,
        expiry=_expiry(message.expiry),
        expired=message.expired,
        is_default=message.is_default,
        state=_known(CardState, message.state),
        created_at=_time(message.created_at),
        consent=consent(message.consent),
    )


def consent(message: cards_pb2.ConsentSummary) -> ConsentSummary:
    """What a consent says."""
    return ConsentSummary(
        consent_id=message.consent_id,
        terms_version=message.terms_version,
        uses=tuple(use for number in message.uses if (use := _known(CardUse, number)) is not None),
        agreed_at=_time(message.agreed_at),
        agreed_until=_time(message.agreed_until) if message.HasField("agreed_until") else None,
        withdrawn_at=_time(message.withdrawn_at) if message.HasField("withdrawn_at") else None,
    )


def tokenized(message: checkout_pb2.TokenizeResponse) -> Tokenized:
    """What became of a card."""
    once = None
    if message.one_time_token:
        once = OneTimeToken(message.one_time_token, expires_at=_time(message.one_time_token_expires_at))
    return Tokenized(
        card=card(message.card) if message.card.token else None,
        brand=_known(Brand, message.card.brand),
        last4=message.card.last4,
        expiry=_expiry(message.card.expiry),
        one_time_token=once,
    )


def grant(message: checkout_pb2.IssueGrantResponse) -> Grant:
    """A grant."""
    return Grant(message.grant, expires_at=_time(message.expires_at))


def receipt(message: account_pb2.ErasureReceipt, *, idempotency_key: str) -> ErasureReceipt:
    """What was erased."""
    return ErasureReceipt(
        event_id=message.event_id,
        erased_at=_time(message.erased_at),
        cards=message.cards,
        grants_revoked=message.grants_revoked,
        proof=_proof(message.proof) if message.HasField("proof") else None,
        idempotency_key=idempotency_key,
    )


def _proof(message: account_pb2.InclusionProof) -> InclusionProof:
    return InclusionProof(
        leaf=message.leaf,
        leaf_index=message.leaf_index,
        tree_size=message.tree_size,
        path=tuple(message.path),
        checkpoint=message.checkpoint,
    )


def release(message: account_pb2.Release) -> Release:
    """One release of a card."""
    return Release(
        token=Token(message.token) if message.token else None,
        order=message.order_id,
        processor=message.processor,
        released_at=_time(message.released_at),
        by_one_time_token=message.by_one_time_token,
    )


def released_card(message: processor_pb2.DetokenizeResponse) -> ReleasedCard:
    """A card in the processor's hands."""
    return ReleasedCard(
        number=CardNumber(message.pan),
        expiry=_expiry(message.expiry),
        holder_name=HolderName(message.holder_name),
        security_code=SecurityCode(message.security_code),
        brand=_known(Brand, message.brand),
        purpose=_known(CardUse, message.purpose),
        network_transaction_id=message.network_transaction_id,
    )
