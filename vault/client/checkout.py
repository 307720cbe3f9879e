"""The shop's checkout: cards go in, tokens and grants come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import grpc
from google.protobuf import duration_pb2

from vault.client import codec
from vault.client.calls import Call, Effect, call, rpc
from vault.client.clients import AsyncClient, BlockingClient
from vault.client.errors import CallError, Failure, FieldViolation
from vault.client.retry import kind_after_loss
from vault.client.values import (
    Card,
    CardInput,
    CardUse,
    Consent,
    Grant,
    ImportItem,
    Money,
    OneTimeToken,
    StoredCard,
    Tokenized,
)
from vault.v1 import cards_pb2, checkout_pb2

_SERVICE = "vault.v1.CheckoutService"


@dataclass(frozen=True, slots=True)
class NotStored:
    """Why one card of a batch was not stored, or is not known to be."""

    error: CallError
    """As `tokenize` would have raised it. After `OutcomeUnknown` repeat the item with its idempotency key."""

    @property
    def idempotency_key(self) -> str:
        """Of the item."""
        return self.error.idempotency_key


class _CheckoutCalls:
    service = _SERVICE

    @rpc
    def tokenize(
        self,
        card: CardInput,
        *,
        customer: str = "",
        consent: Consent | None = None,
        order: str = "",
        idempotency_key: str = "",
        deadline: timedelta | None = None,
    ) -> Call[Tokenized]:
        """Hand a card in.

        With `consent` it is stored for `customer` and named by a token; with `order` the answer also holds a one-time
        token; with neither it is `InvalidArgument`. The same card of the same customer keeps its token.
        """
        key = idempotency_key or codec.new_key()
        return call(
            f"/{_SERVICE}/Tokenize",
            lambda: checkout_pb2.TokenizeRequest(
                idempotency_key=key,
                customer_id=customer,
                card=codec.card_input(card),
                consent=None if consent is None else codec.consent_out(consent),
                order_id=order,
            ),
            checkout_pb2.TokenizeResponse,
            codec.tokenized,
            effect=Effect.WRITE,
            deadline=deadline,
            idempotency_key=key,
        )

    @rpc
    def batch_tokenize(
        self, items: Sequence[ImportItem], *, deadline: timedelta | None = None
    ) -> Call[tuple[Card | NotStored, ...]]:
        """Store up to 200 cards; a result for each item, in their order. One bad item fails alone."""
        keys = [item.idempotency_key or codec.new_key() for item in items]
        return call(
            f"/{_SERVICE}/BatchTokenize",
            lambda: checkout_pb2.BatchTokenizeRequest(
                items=[
                    checkout_pb2.BatchTokenizeItem(
                        idempotency_key=key,
                        customer_id=item.customer,
                        card=codec.card_input(item.card),
                        consent=codec.consent_out(item.consent),
                    )
                    for item, key in zip(items, keys, strict=True)
                ]
            ),
            checkout_pb2.BatchTokenizeResponse,
            lambda answer: _results(answer, keys, kind_of=lambda failure: failure.kind),
            effect=Effect.WRITE,
            deadline=deadline,
            # Then an item that failed may have been stored by that attempt.
            decode_after_loss=lambda answer: _results(answer, keys, kind_of=kind_after_loss),
        )

    @rpc
    def issue_grant(
        self,
        subject: StoredCard | OneTimeToken,
        *,
        order: str,
        amount: Money,
        processor: str,
        purpose: CardUse = CardUse.CUSTOMER_INITIATED,
        lifetime: timedelta | None = None,
        idempotency_key: str = "",
        deadline: timedelta | None = None,
    ) -> Call[Grant]:
        """The right to one card number, for one processor, order and amount, once, within `lifetime`.

        10 seconds to 15 minutes, 2 minutes if not given. An earlier unused grant for the same card and order ends.
        """
        key = idempotency_key or codec.new_key()

        def request() -> checkout_pb2.IssueGrantRequest:
            message = checkout_pb2.IssueGrantRequest(
                idempotency_key=key,
                order_id=order,
                amount=codec.money_out(amount),
                purpose=cards_pb2.CardUse.ValueType(purpose),
                processor=processor,
            )
            if isinstance(subject, StoredCard):
                message.stored_card.customer_id = subject.customer
                message.stored_card.token = subject.token
            else:
                message.one_time_token = codec.one_time_token_text(subject)
            if lifetime is not None:
                duration = duration_pb2.Duration()
                duration.FromTimedelta(lifetime)
                message.lifetime.CopyFrom(duration)
            return message

        return call(
            f"/{_SERVICE}/IssueGrant",
            request,
            checkout_pb2.IssueGrantResponse,
            codec.grant,
            effect=Effect.WRITE,
            deadline=deadline,
            idempotency_key=key,
        )

    @rpc
    def revoke_grant(self, grant: Grant | str, *, deadline: timedelta | None = None) -> Call[None]:
        """Take an unused grant back; `PreconditionFailed` if it was used. Repeating it is safe."""
        return call(
            f"/{_SERVICE}/RevokeGrant",
            lambda: checkout_pb2.RevokeGrantRequest(grant=codec.grant_text(grant)),
            checkout_pb2.RevokeGrantResponse,
            lambda _: None,
            effect=Effect.WRITE,
            deadline=deadline,
        )


_KindOf = Callable[[Failure], type[CallError]]


def _results(
    answer: checkout_pb2.BatchTokenizeResponse, keys: Sequence[str], *, kind_of: _KindOf
) -> tuple[Card | NotStored, ...]:
    return tuple(_result(result, key, kind_of) for result, key in zip(answer.results, keys, strict=True))


def _result(result: checkout_pb2.BatchTokenizeResult, key: str, kind_of: _KindOf) -> Card | NotStored:
    if result.WhichOneof("outcome") == "card":
        return codec.card(result.card)
    told = result.failure
    code = next((each for each in grpc.StatusCode if each.value[0] == told.code), grpc.StatusCode.UNKNOWN)
    violations = (FieldViolation(told.field, told.message),) if told.field else ()
    failure = Failure(code, told.message, told.error_id, told.reason, violations)
    return NotStored(kind_of(failure)(failure, "Tokenize", key))


class Checkout(_CheckoutCalls, BlockingClient):
    """Calls with a certificate of role checkout, blocking."""


class AsyncCheckout(_CheckoutCalls, AsyncClient):
    """Calls with a certificate of role checkout, awaited."""
