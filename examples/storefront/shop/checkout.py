"""The checkout: a card is typed in, or one that was kept is chosen, and the order is paid."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import timedelta

from starlette.exceptions import HTTPException
from starlette.responses import Response

from examples.storefront.shop import terms
from examples.storefront.shop.card_form import Mistakes, read_card
from examples.storefront.shop.catalogue import total
from examples.storefront.shop.database import How, Order, State
from examples.storefront.shop.payments import Payments
from examples.storefront.shop.sentences import field_errors, sentence
from examples.storefront.shop.visit import Visit, draw
from vault.client import (
    AsyncAccount,
    AsyncCheckout,
    CallError,
    Card,
    CardInput,
    Conflict,
    Consent,
    InvalidArgument,
    Tokenized,
)

_SHOW = timedelta(seconds=2)
"""Without its list of cards the page still has its form."""
_ORDER = re.compile(r"order-[a-z]{16}")


class Checkout:
    """Its pages."""

    def __init__(self, vault: AsyncCheckout, account: AsyncAccount, payments: Payments) -> None:
        self._vault = vault
        self._account = account
        self._payments = payments

    async def show(self, visit: Visit) -> Response:
        """`GET /checkout`: the basket, the cards that were kept, and the form."""
        visit.signed_in()
        if not visit.database.basket(visit.name):
            return visit.go("/basket")
        return await self._page(visit, f"order-{draw(16)}")

    async def pay(self, visit: Visit) -> Response:
        """`POST /checkout`, by either form. The order's name comes from the page, so a second click is no new order."""
        customer = visit.signed_in()
        fields = await visit.form()
        order = fields.get("order", "")
        if _ORDER.fullmatch(order) is None:
            raise HTTPException(400)
        async with self._payments.alone(order):
            if visit.database.order(order) is not None:
                return visit.go(f"/orders/{own_order(visit, order).id}")
            lines = visit.database.basket(visit.name)
            if not lines:
                return visit.go("/basket")
            try:
                if "token" in fields:
                    card: Card | Tokenized = await self._account.get_card(customer, fields["token"])
                    how = How.STORED
                else:
                    consent = self._consent(fields)
                    typed = read_card(fields)
                    if isinstance(typed, Mistakes):
                        return await self._page(visit, order, fields, mistakes=typed.by_field)
                    card = await self._tokenize(typed, customer, consent, order)
                    how = How.ONCE if consent is None else How.KEPT
            except InvalidArgument as error:
                return await self._page(visit, order, fields, mistakes=field_errors(error), trouble=sentence(error))
            except CallError as error:
                return await self._page(visit, order, fields, trouble=sentence(error))
            if isinstance(card, Tokenized) and card.one_time_token is not None:
                self._payments.hold(order, card.one_time_token)
            visit.database.place(order, visit.name, customer, lines, card, how=how)
            await self._pay(visit, order)
        return visit.go(f"/orders/{order}")

    async def again(self, visit: Visit, order: str) -> Response:
        """`POST /orders/{order}/again`: the same payment once more, never a second one."""
        visit.signed_in()
        await visit.form()
        async with self._payments.alone(order):
            own_order(visit, order)
            await self._pay(visit, order)
        return visit.go(f"/orders/{order}")

    async def anew(self, visit: Visit, order: str) -> Response:
        """`POST /orders/{order}/anew`: back to the checkout with its goods, once it is sure that it was not paid."""
        visit.signed_in()
        await visit.form()
        async with self._payments.alone(order):
            found = own_order(visit, order)
            is_open = found.state is State.PLACED and not await self._payments.give_up(found)
            if not is_open and found.state is not State.APPROVED:
                for line in found.lines:
                    visit.database.put(visit.name, line.product.sku, line.quantity)
                return visit.go("/checkout")
        return visit.go(f"/orders/{order}")

    async def _pay(self, visit: Visit, order: str) -> None:
        found = visit.database.order(order)
        if found is not None and found.state is State.PLACED:
            await self._payments.pay(found)

    async def _tokenize(self, card: CardInput, customer: str, consent: Consent | None, order: str) -> Tokenized:
        key = f"{order}.card"
        try:
            return await self._vault.tokenize(
                card, customer=customer, consent=consent, order=order, idempotency_key=key
            )
        except Conflict:
            # A first try was cut off, and now the form says something else. Handing a card in charges nobody.
            return await self._vault.tokenize(card, customer=customer, consent=consent, order=order)

    @staticmethod
    def _consent(fields: Mapping[str, str]) -> Consent | None:
        """Only if the box was ticked, and to the version that stood beside it."""
        if fields.get("keep") != "yes":
            return None
        consent = terms.consent_to(fields.get("terms", ""))
        if consent is None:
            raise HTTPException(400)
        return consent

    async def _page(
        self,
        visit: Visit,
        order: str,
        fields: Mapping[str, str] | None = None,
        *,
        mistakes: Mapping[str, str] | None = None,
        trouble: str = "",
    ) -> Response:
        customer = visit.signed_in()
        lines = visit.database.basket(visit.name)
        cards: list[Card] = []
        try:
            cards = [card async for card in self._account.list_cards(customer, deadline=_SHOW)]
        except CallError as error:
            trouble = trouble or sentence(error)
        text = terms.TEXTS[terms.CURRENT]
        return visit.page(
            "checkout.html",
            422 if fields is not None else 200,
            order=order,
            lines=lines,
            total=total(lines),
            cards=sorted(cards, key=lambda card: not card.is_default),
            # Of what was typed nothing else goes back into a page.
            keep=fields is not None and fields.get("keep") == "yes",
            mistakes=mistakes or {},
            trouble=trouble,
            terms=text,
            terms_sha256=hashlib.sha256(text.encode()).hexdigest(),
        )


def own_order(visit: Visit, order: str) -> Order:
    """The customer's own; 404 for anybody else's."""
    found = visit.database.order(order)
    if found is None or found.customer != visit.signed_in():
        raise HTTPException(404)
    return found
