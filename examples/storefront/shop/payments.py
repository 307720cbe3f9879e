"""Paying an order: a grant from the vault, handed to the processor. Safe to begin again at any point.

Three things keep an order from being paid twice: the processor takes each order once; the idempotency key of the grant
is the order's; and where the vault says that this key's grant was used, the processor is asked what became of it
before another one is drawn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from weakref import WeakValueDictionary

from examples.storefront.shop.acquirer import Acquirer, NeedsAnotherGrant, ProcessorAway, VaultAway
from examples.storefront.shop.catalogue import CURRENCY
from examples.storefront.shop.database import Database, How, Order, State
from vault.client import (
    AsyncCheckout,
    CallError,
    Conflict,
    ConsentRequired,
    InvalidArgument,
    Money,
    NotAvailable,
    OneTimeToken,
    StoredCard,
)

_ROUNDS = 3
_STATES = {"approved": State.APPROVED, "declined": State.DECLINED, "cancelled": State.ABANDONED}


class Payments:
    """Of all orders. One-time tokens wait here, in memory, until their order is paid."""

    def __init__(self, vault: AsyncCheckout, acquirer: Acquirer, database: Database, *, processor: str) -> None:
        self._vault = vault
        self._acquirer = acquirer
        self._database = database
        self._processor = processor
        self._waiting: dict[str, OneTimeToken] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def alone(self, order: str) -> asyncio.Lock:
        """Held by whoever does something about an order: a second click waits for the first."""
        return self._locks.setdefault(order, asyncio.Lock())

    def hold(self, order: str, token: OneTimeToken) -> None:
        """It carries the sealed card and its security code, so it goes into no database."""
        now = datetime.now(UTC)
        self._waiting = {
            each: held for each, held in self._waiting.items() if held.expires_at is None or held.expires_at > now
        }
        self._waiting[order] = token

    async def pay(self, order: Order) -> None:
        """Once more if need be; afterwards the database says what is known."""
        try:
            answer = await self._acquirer.find(order.id) or await self._ask(order)
        except ProcessorAway:
            self._database.trouble(order.id, "processor")
        except (VaultAway, CallError) as error:
            is_gone = isinstance(error, NotAvailable | ConsentRequired | InvalidArgument)
            self._database.trouble(order.id, "retype" if is_gone else "away")
        else:
            self._settle(order, answer)

    async def give_up(self, order: Order) -> bool:
        """Let an order go for good, so that its goods can be bought anew. False: it was paid, or nobody knows."""
        try:
            answer = await self._acquirer.cancel(order.id)
        except ProcessorAway:
            self._database.trouble(order.id, "processor")
            return False
        self._settle(order, answer)
        return answer["outcome"] == "cancelled"

    async def _ask(self, order: Order) -> Mapping[str, str]:
        subject = self._subject(order)
        amount = Money(minor_units=order.minor_units, currency=CURRENCY)
        number = order.round
        for _ in range(_ROUNDS):
            try:
                grant = await self._vault.issue_grant(
                    subject,
                    order=order.id,
                    amount=amount,
                    processor=self._processor,
                    idempotency_key=f"{order.id}.grant.{number}",
                )
                return await self._acquirer.pay(
                    grant.reveal_text(), order=order.id, minor_units=order.minor_units, currency=CURRENCY
                )
            except (Conflict, NeedsAnotherGrant):
                # The processor took the grant of this round; did it pay?
                if (known := await self._acquirer.find(order.id)) is not None:
                    return known
                number = self._database.next_round(order.id)
        raise VaultAway

    def _subject(self, order: Order) -> StoredCard | OneTimeToken:
        if order.id in self._waiting:
            return self._waiting[order.id]
        # A one-time token that was lost with the last restart: nobody can pay with it.
        token = order.token if order.how is not How.ONCE and order.token else "tok_lost"
        return StoredCard(customer=order.customer, token=token)

    def _settle(self, order: Order, answer: Mapping[str, str]) -> None:
        self._waiting.pop(order.id, None)
        self._database.settle(order.id, _STATES[answer["outcome"]], answer["network_transaction_id"])
