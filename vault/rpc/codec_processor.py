"""The codec of the processor's calls: the only place outside the cleanroom where a card number becomes digits again."""

from __future__ import annotations

from datetime import datetime, timedelta

from vault.domain.errors import InvalidField
from vault.domain.grant import GrantText
from vault.domain.ids import NetworkTransactionId, OrderId
from vault.domain.outcome import PaymentOutcome
from vault.rpc.codec import decode_money, encode_expiry
from vault.rpc.door import Call
from vault.usecases.detokenize import DetokenizeCommand, ReleasedCard
from vault.usecases.outcomes import ReportOutcomeCommand
from vault.v1 import cards_pb2, processor_pb2


def decode_detokenize(request: processor_pb2.DetokenizeRequest, call: Call, *, now: datetime) -> DetokenizeCommand:
    """A grant with what it must have been issued for."""
    return DetokenizeCommand(
        caller=call.caller,
        order=OrderId.parse(request.order_id, field="order_id"),
        amount=decode_money(request.amount),
        grant=GrantText.parse(request.grant),
        deadline=now + timedelta(seconds=call.budget),
    )


def encode_released_card(released: ReleasedCard) -> processor_pb2.DetokenizeResponse:
    """The card on its way out."""
    card = released.card
    return processor_pb2.DetokenizeResponse(
        pan=card.pan.reveal(),
        expiry=encode_expiry(released.expiry),
        holder_name=card.holder_name.reveal_text(),
        security_code=card.security_code.reveal_text(),
        brand=cards_pb2.Brand.ValueType(card.pan.brand),
        purpose=cards_pb2.CardUse.ValueType(released.purpose),
        network_transaction_id=released.network_transaction_id or "",
    )


def decode_report_outcome(request: processor_pb2.ReportOutcomeRequest, call: Call) -> ReportOutcomeCommand:
    """What became of a payment."""
    reference = request.network_transaction_id
    return ReportOutcomeCommand(
        caller=call.caller,
        order=OrderId.parse(request.order_id, field="order_id"),
        outcome=_decode_outcome(request.outcome),
        network_transaction_id=NetworkTransactionId.parse(reference, field="network_transaction_id")
        if reference
        else None,
        grant=GrantText.parse(request.grant),
    )


def _decode_outcome(value: int) -> PaymentOutcome:
    try:
        return PaymentOutcome(value)
    except ValueError:
        raise InvalidField("outcome", "must be approved or declined") from None
