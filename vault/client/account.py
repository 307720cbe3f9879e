"""The customer's account page: what is stored, and its end."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from vault.client import codec
from vault.client.calls import Call, Effect, Gathered, Page, call, gathered, paged, rpc
from vault.client.clients import AsyncClient, BlockingClient
from vault.client.values import Card, ConsentSummary, CustomerExport, ErasureReceipt, Expiry, Release
from vault.v1 import account_pb2

_SERVICE = "vault.v1.AccountService"
_MOST = 100


class _AccountCalls:
    service = _SERVICE

    @paged
    def list_cards(self, customer: str, *, page_size: int = 20, deadline: timedelta | None = None) -> Call[Page[Card]]:
        """The customer's cards, oldest first. `deadline` is for each page of 1 to 100 cards.

        >>> [f"{card.brand.label} •••• {card.last4}" for card in account.list_cards("ada")]
        ['Visa •••• 4242']
        """
        return _cards(customer, page_size, "", deadline)

    @rpc
    def get_card(self, customer: str, token: str, *, deadline: timedelta | None = None) -> Call[Card]:
        """One card. `NotAvailable` if it is not this customer's."""
        return call(
            f"/{_SERVICE}/GetCard",
            lambda: account_pb2.GetCardRequest(customer_id=customer, token=token),
            account_pb2.GetCardResponse,
            lambda answer: codec.card(answer.card),
            effect=Effect.READ,
            deadline=deadline,
        )

    @rpc
    def update_card(
        self,
        customer: str,
        token: str,
        *,
        expiry: Expiry,
        idempotency_key: str = "",
        deadline: timedelta | None = None,
    ) -> Call[Card]:
        """Change the expiry date; the number is not needed and not touched."""
        key = idempotency_key or codec.new_key()
        return call(
            f"/{_SERVICE}/UpdateCard",
            lambda: account_pb2.UpdateCardRequest(
                idempotency_key=key, customer_id=customer, token=token, expiry=codec.expiry_out(expiry)
            ),
            account_pb2.UpdateCardResponse,
            lambda answer: codec.card(answer.card),
            effect=Effect.WRITE,
            deadline=deadline,
            idempotency_key=key,
        )

    @rpc
    def set_default_card(
        self, customer: str, token: str, *, idempotency_key: str = "", deadline: timedelta | None = None
    ) -> Call[Card]:
        """Make this the customer's default card."""
        key = idempotency_key or codec.new_key()
        return call(
            f"/{_SERVICE}/SetDefaultCard",
            lambda: account_pb2.SetDefaultCardRequest(idempotency_key=key, customer_id=customer, token=token),
            account_pb2.SetDefaultCardResponse,
            lambda answer: codec.card(answer.card),
            effect=Effect.WRITE,
            deadline=deadline,
            idempotency_key=key,
        )

    @rpc
    def delete_card(
        self, customer: str, token: str, *, idempotency_key: str = "", deadline: timedelta | None = None
    ) -> Call[ErasureReceipt]:
        """Withdraw the consent: card, keys and open grants are gone before the receipt is there.

        Repeated with the receipt's idempotency key after some seconds, it answers with the proof that the erasure
        stands in the signed audit log.
        """
        key = idempotency_key or codec.new_key()
        return call(
            f"/{_SERVICE}/DeleteCard",
            lambda: account_pb2.DeleteCardRequest(idempotency_key=key, customer_id=customer, token=token),
            account_pb2.DeleteCardResponse,
            lambda answer: codec.receipt(answer.receipt, idempotency_key=key),
            effect=Effect.WRITE,
            deadline=deadline,
            idempotency_key=key,
        )

    @rpc
    def erase_customer(
        self, customer: str, *, idempotency_key: str = "", deadline: timedelta | None = None
    ) -> Call[ErasureReceipt]:
        """The same for every card of a customer."""
        key = idempotency_key or codec.new_key()
        return call(
            f"/{_SERVICE}/EraseCustomer",
            lambda: account_pb2.EraseCustomerRequest(idempotency_key=key, customer_id=customer),
            account_pb2.EraseCustomerResponse,
            lambda answer: codec.receipt(answer.receipt, idempotency_key=key),
            effect=Effect.WRITE,
            deadline=deadline,
            idempotency_key=key,
        )

    @gathered
    def export_customer(self, customer: str, *, deadline: timedelta | None = None) -> Gathered[_Part, CustomerExport]:
        """What is kept about a customer, all of it. `deadline` is for each page; each is an event of the audit log."""
        return Gathered(_parts(customer, "", deadline), _export)


_Part = Card | ConsentSummary | Release


def _cards(customer: str, page_size: int, page_token: str, deadline: timedelta | None) -> Call[Page[Card]]:
    def page(answer: account_pb2.ListCardsResponse) -> Page[Card]:
        following = answer.next_page_token
        return Page(
            tuple(codec.card(card) for card in answer.cards),
            _cards(customer, page_size, following, deadline) if following else None,
        )

    return call(
        f"/{_SERVICE}/ListCards",
        lambda: account_pb2.ListCardsRequest(customer_id=customer, page_size=page_size, page_token=page_token),
        account_pb2.ListCardsResponse,
        page,
        effect=Effect.READ,
        deadline=deadline,
    )


def _parts(customer: str, page_token: str, deadline: timedelta | None) -> Call[Page[_Part]]:
    def page(answer: account_pb2.ExportCustomerResponse) -> Page[_Part]:
        following = answer.next_page_token
        return Page(
            (
                *(codec.card(card) for card in answer.cards),
                *(codec.consent(consent) for consent in answer.consents),
                *(codec.release(release) for release in answer.releases),
            ),
            _parts(customer, following, deadline) if following else None,
        )

    return call(
        f"/{_SERVICE}/ExportCustomer",
        lambda: account_pb2.ExportCustomerRequest(customer_id=customer, page_size=_MOST, page_token=page_token),
        account_pb2.ExportCustomerResponse,
        page,
        effect=Effect.READ,
        deadline=deadline,
    )


def _export(parts: Iterable[_Part]) -> CustomerExport:
    found = tuple(parts)
    return CustomerExport(
        cards=tuple(part for part in found if isinstance(part, Card)),
        consents=tuple(part for part in found if isinstance(part, ConsentSummary)),
        releases=tuple(part for part in found if isinstance(part, Release)),
    )


class Account(_AccountCalls, BlockingClient):
    """Calls with a certificate of role account, blocking."""


class AsyncAccount(_AccountCalls, AsyncClient):
    """Calls with a certificate of role account, awaited."""
