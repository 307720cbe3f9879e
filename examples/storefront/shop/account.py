"""The account page: which cards are kept, and how to change or remove them; and the orders they paid."""

from __future__ import annotations

from starlette.responses import Response

from examples.storefront.shop.card_form import read_expiry
from examples.storefront.shop.checkout import own_order
from examples.storefront.shop.database import Receipt
from examples.storefront.shop.sentences import notice
from examples.storefront.shop.visit import Visit
from vault.client import AsyncAccount, CallError, Card, Release


class Account:
    """Its pages. What changes something takes the token from the form, never from the address."""

    def __init__(self, vault: AsyncAccount) -> None:
        self._vault = vault

    async def show(self, visit: Visit) -> Response:
        """`GET /account`."""
        customer = visit.signed_in()
        cards: list[Card] = []
        is_away = False
        try:
            cards = [card async for card in self._vault.list_cards(customer)]
        except CallError:
            is_away = True
        receipts = visit.database.receipts(customer)
        return visit.page("account.html", 503 if is_away else 200, cards=cards, is_away=is_away, receipts=receipts)

    async def change(self, visit: Visit, what: str) -> Response:
        """`POST /account/{what}`."""
        customer = visit.signed_in()
        fields = await visit.form()
        token = fields.get("token", "")
        try:
            match what:
                case "default":
                    await self._vault.set_default_card(customer, token)
                case "expiry":
                    expiry = read_expiry(fields.get("expiry", ""))
                    if expiry is None:
                        return visit.go("/account", "account-date")
                    await self._vault.update_card(customer, token, expiry=expiry)
                case "remove":
                    card = await self._vault.get_card(customer, token)
                    receipt = await self._vault.delete_card(customer, token)
                    brand = card.brand.label if card.brand else "Card"
                    visit.database.keep_receipt(customer, receipt, what=f"{brand} •••• {card.last4}", token=token)
                    what = "removed"
                case "erase":
                    receipt = await self._vault.erase_customer(customer)
                    visit.database.keep_receipt(customer, receipt, what="All cards", token=None)
                    what = "erased"
                case _:
                    await self._fetch_proofs(visit, customer)
        except CallError as error:
            return visit.go("/account", notice(error))
        return visit.go("/account", what)

    async def history(self, visit: Visit) -> Response:
        """`GET /orders`: with the moments at which the vault gave a kept card's number to the processor."""
        customer = visit.signed_in()
        releases: dict[str, Release] = {}
        is_away = False
        try:
            export = await self._vault.export_customer(customer)
            releases = {release.order: release for release in export.releases}
        except CallError:
            is_away = True
        orders = visit.database.orders(customer)
        return visit.page("orders.html", orders=orders, releases=releases, is_away=is_away)

    async def order(self, visit: Visit, order: str) -> Response:
        """`GET /orders/{order}`."""
        visit.signed_in()
        return visit.page("order.html", order=own_order(visit, order))

    async def _fetch_proofs(self, visit: Visit, customer: str) -> None:
        """The same calls with the same keys, once the vault's log has got so far."""
        for receipt in visit.database.receipts(customer):
            if not receipt.proof:
                await self._fetch_proof(visit, receipt)

    async def _fetch_proof(self, visit: Visit, receipt: Receipt) -> None:
        key = receipt.idempotency_key
        if receipt.token is None:
            proved = await self._vault.erase_customer(receipt.customer, idempotency_key=key)
        else:
            proved = await self._vault.delete_card(receipt.customer, receipt.token, idempotency_key=key)
        visit.database.keep_receipt(receipt.customer, proved, what=receipt.what, token=receipt.token)
