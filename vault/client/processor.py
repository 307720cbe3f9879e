"""The payment processor: the one role that gets a card number."""

from __future__ import annotations

from datetime import timedelta

from vault.client import codec
from vault.client.calls import Call, Effect, call, rpc
from vault.client.clients import AsyncClient, BlockingClient
from vault.client.values import Grant, Money, PaymentOutcome, ReleasedCard
from vault.v1 import processor_pb2

_SERVICE = "vault.v1.ProcessorService"


class _ProcessorCalls:
    service = _SERVICE

    @rpc
    def detokenize(
        self, grant: Grant | str, *, order: str, amount: Money, deadline: timedelta | None = None
    ) -> Call[ReleasedCard]:
        """Redeem a grant, once, naming the order and the amount it was issued for.

        It is repeated only while the vault says that it could not, or cannot be reached at all. When an answer is lost
        the grant may be used up: that is `OutcomeUnknown`, and the shop issues a new one. `Refused` means that this
        grant releases nothing here.
        """
        return call(
            f"/{_SERVICE}/Detokenize",
            lambda: processor_pb2.DetokenizeRequest(
                grant=codec.grant_text(grant), order_id=order, amount=codec.money_out(amount)
            ),
            processor_pb2.DetokenizeResponse,
            codec.released_card,
            effect=Effect.REDEEM,
            deadline=deadline,
        )

    @rpc
    def report_outcome(
        self,
        grant: Grant | str,
        *,
        order: str,
        outcome: PaymentOutcome,
        network_transaction_id: str = "",
        deadline: timedelta | None = None,
    ) -> Call[None]:
        """Say what became of the payment. The first outcome stands; repeating it is safe, another one is `Refused`."""
        return call(
            f"/{_SERVICE}/ReportOutcome",
            lambda: processor_pb2.ReportOutcomeRequest(
                grant=codec.grant_text(grant),
                order_id=order,
                outcome=processor_pb2.Outcome.ValueType(outcome),
                network_transaction_id=network_transaction_id,
            ),
            processor_pb2.ReportOutcomeResponse,
            lambda _: None,
            effect=Effect.WRITE,
            deadline=deadline,
        )


class Processor(_ProcessorCalls, BlockingClient):
    """Calls with a certificate of role processor, blocking."""


class AsyncProcessor(_ProcessorCalls, AsyncClient):
    """Calls with a certificate of role processor, awaited."""
