"""Subject access: everything that is kept about one customer of one shop, page by page, and never a card number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.integration.rpc.conftest import Shop
from tests.support.answers import refusal_of
from tests.support.cards import TypedCard, fresh_typed_card
from tests.support.installation import ACQUIRER, SECOND_ACQUIRER, Client
from tests.support.requests import (
    TIMEOUT,
    consent,
    grant_request,
    money,
    new_customer,
    new_order,
    once_request,
    redeem_request,
    store_request,
)
from vault.v1 import account_pb2, cards_pb2


@dataclass(slots=True)
class Exported:
    """All pages of one customer."""

    pages: list[account_pb2.ExportCustomerResponse] = field(default_factory=list)

    @property
    def cards(self) -> list[cards_pb2.Card]:
        return [card for page in self.pages for card in page.cards]

    @property
    def consents(self) -> list[cards_pb2.ConsentSummary]:
        return [given for page in self.pages for given in page.consents]

    @property
    def releases(self) -> list[account_pb2.Release]:
        return [release for page in self.pages for release in page.releases]

    @property
    def sizes(self) -> list[int]:
        return [len(page.cards) + len(page.consents) + len(page.releases) for page in self.pages]


def export(shop: Shop, customer: str, *, client: Client | None = None, page_size: int = 0) -> Exported:
    found, page_token = Exported(), ""
    while True:
        request = account_pb2.ExportCustomerRequest(customer_id=customer, page_size=page_size, page_token=page_token)
        page = (client or shop.account).account.ExportCustomer(request, timeout=TIMEOUT)
        found.pages.append(page)
        page_token = page.next_page_token
        if not page_token:
            return found


def keep(shop: Shop, card: TypedCard, customer: str, **changes: Any) -> cards_pb2.Card:
    return shop.checkout.checkout.Tokenize(store_request(card, customer, **changes), timeout=TIMEOUT).card


def pay(shop: Shop, customer: str, token: str, *, who: str = "processor", processor: str = ACQUIRER) -> str:
    order = new_order()
    grant = shop.checkout.checkout.IssueGrant(
        grant_request(order=order, customer=customer, token=token, processor=processor), timeout=TIMEOUT
    ).grant
    shop.installation.client(who).processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
    return order


def listed(shop: Shop, customer: str) -> Sequence[cards_pb2.Card]:
    return shop.account.account.ListCards(account_pb2.ListCardsRequest(customer_id=customer), timeout=TIMEOUT).cards


def test_a_customer_gets_cards_consents_and_releases(shop: Shop) -> None:
    customer, first, second = new_customer(), fresh_typed_card(), fresh_typed_card()
    started = datetime.now(UTC) - timedelta(seconds=1)
    gone, kept = keep(shop, first, customer), keep(shop, second, customer)
    orders = [
        pay(shop, customer, gone.token),
        pay(shop, customer, kept.token, who="second-processor", processor=SECOND_ACQUIRER),
    ]
    renewed = keep(shop, second, customer, consent=consent(terms_version="2026-07"))
    shop.account.account.DeleteCard(
        account_pb2.DeleteCardRequest(customer_id=customer, token=gone.token), timeout=TIMEOUT
    )

    found = export(shop, customer)

    assert found.cards == list(listed(shop, customer))
    assert [card.token for card in found.cards] == [renewed.token] == [kept.token]
    assert [given.consent_id for given in found.consents] == [each.consent.consent_id for each in (gone, kept, renewed)]
    assert [given.terms_version for given in found.consents] == ["2026-01", "2026-01", "2026-07"]
    withdrawn = [given.HasField("withdrawn_at") for given in found.consents]
    assert withdrawn == [True, False, False]
    assert started <= found.consents[0].withdrawn_at.ToDatetime(tzinfo=UTC) <= datetime.now(UTC)
    assert [(each.token, each.order_id, each.processor) for each in found.releases] == [
        (gone.token, orders[0], ACQUIRER),
        (kept.token, orders[1], SECOND_ACQUIRER),
    ]
    for release in found.releases:
        assert started <= release.released_at.ToDatetime(tzinfo=UTC) <= datetime.now(UTC)
    sent = b"".join(page.SerializeToString() for page in found.pages)
    for card in (first, second):
        assert card.pan.encode() not in sent
        assert card.pan[:6].encode() not in sent
        assert card.holder_name.encode() not in sent


def test_an_erased_customer_still_learns_what_was_agreed_and_who_got_the_card(shop: Shop) -> None:
    customer = new_customer()
    card = keep(shop, fresh_typed_card(), customer)
    order = pay(shop, customer, card.token)
    shop.account.account.EraseCustomer(account_pb2.EraseCustomerRequest(customer_id=customer), timeout=TIMEOUT)

    found = export(shop, customer)

    assert found.cards == []
    assert [given.HasField("withdrawn_at") for given in found.consents] == [True]
    assert [each.order_id for each in found.releases] == [order]


def pay_once(shop: Shop, card: TypedCard, **facts: Any) -> str:
    """Pay with a one-time token; `facts` are the TokenizeRequest's."""
    order, checkout = new_order(), shop.checkout.checkout
    once = checkout.Tokenize(once_request(card, order, **facts), timeout=TIMEOUT).one_time_token
    grant = checkout.IssueGrant(grant_request(order=order, one_time_token=once), timeout=TIMEOUT).grant
    shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
    return order


def test_a_card_that_was_paid_with_and_not_stored_is_in_it_where_the_shop_said_whose_it_was(shop: Shop) -> None:
    customer, card = new_customer(), fresh_typed_card(with_security_code=True)
    order = pay_once(shop, card, customer_id=customer)

    found = export(shop, customer)

    assert [(each.token, each.order_id, each.processor, each.by_one_time_token) for each in found.releases] == [
        ("", order, ACQUIRER, True)
    ]
    assert (found.cards, found.consents) == ([], [])
    assert export(shop, customer, client=shop.installation.client("other-account")).releases == []


def test_a_first_payment_by_one_time_token_names_the_card_that_was_stored_with_it(shop: Shop) -> None:
    customer, card = new_customer(), fresh_typed_card(with_security_code=True)
    first = pay_once(shop, card, customer_id=customer, consent=consent())
    (stored,) = listed(shop, customer)
    second = pay(shop, customer, stored.token)
    shop.account.account.EraseCustomer(account_pb2.EraseCustomerRequest(customer_id=customer), timeout=TIMEOUT)
    unstored = pay_once(shop, fresh_typed_card(with_security_code=True), customer_id=customer)

    found = export(shop, customer)

    assert [(each.token, each.order_id, each.by_one_time_token) for each in found.releases] == [
        (stored.token, first, True),
        (stored.token, second, False),
        ("", unstored, True),
    ]


def test_what_was_refused_and_what_was_paid_without_a_name_is_not_in_it(shop: Shop) -> None:
    customer, card, order = new_customer(), fresh_typed_card(), new_order()
    token = keep(shop, card, customer).token
    checkout = shop.checkout.checkout
    open_grant = checkout.IssueGrant(grant_request(order=order, customer=customer, token=token), timeout=TIMEOUT).grant
    refused = refusal_of(
        lambda: shop.processor.processor.Detokenize(redeem_request(open_grant, order, amount=money(1)), timeout=TIMEOUT)
    )
    assert refused is not None
    once = checkout.Tokenize(once_request(card, order), timeout=TIMEOUT).one_time_token
    grant = checkout.IssueGrant(grant_request(order=order, one_time_token=once), timeout=TIMEOUT).grant
    shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)

    assert export(shop, customer).releases == []


def test_nobody_else_is_in_it(shop: Shop) -> None:
    mine, theirs, card = new_customer(), new_customer(), fresh_typed_card()
    own, neighbour = keep(shop, card, mine), keep(shop, card, theirs)
    orders = pay(shop, mine, own.token), pay(shop, theirs, neighbour.token)
    stranger = shop.installation.client("other-account")

    first, second = export(shop, mine), export(shop, theirs)
    elsewhere = export(shop, mine, client=stranger)

    assert ([c.token for c in first.cards], [c.token for c in second.cards]) == ([own.token], [neighbour.token])
    assert ([r.order_id for r in first.releases], [r.order_id for r in second.releases]) == (
        [orders[0]],
        [orders[1]],
    )
    assert len(first.consents) == len(second.consents) == 1
    assert elsewhere.sizes == [0]
    assert export(shop, new_customer()).sizes == [0]


def test_the_same_customer_of_two_shops_is_two_customers(shop: Shop) -> None:
    customer, card = new_customer(), fresh_typed_card()
    here = keep(shop, card, customer)
    there = (
        shop.installation.client("other-checkout")
        .checkout.Tokenize(store_request(card, customer), timeout=TIMEOUT)
        .card
    )
    pay(shop, customer, here.token)

    elsewhere = export(shop, customer, client=shop.installation.client("other-account"))

    assert [card.token for card in elsewhere.cards] == [there.token]
    assert [given.consent_id for given in elsewhere.consents] == [there.consent.consent_id]
    assert elsewhere.releases == []


def test_pages_of_every_size_show_everything_once_and_in_order(shop: Shop) -> None:
    customer, cards = new_customer(), [fresh_typed_card() for _ in range(3)]
    tokens = [keep(shop, card, customer).token for card in cards]
    keep(shop, cards[0], customer)
    for token in tokens:
        pay(shop, customer, token)
    whole = export(shop, customer, page_size=100)
    assert (len(whole.cards), len(whole.consents), len(whole.releases)) == (3, 4, 3)
    assert whole.sizes == [10]

    for page_size in range(1, 12):
        found = export(shop, customer, page_size=page_size)

        assert (found.cards, found.consents, found.releases) == (whole.cards, whole.consents, whole.releases)
        assert all(size == page_size for size in found.sizes[:-1])
        assert 1 <= found.sizes[-1] <= page_size


def test_a_page_that_nobody_sized_has_twenty_items(shop: Shop) -> None:
    customer, card = new_customer(), fresh_typed_card()
    for _ in range(20):
        keep(shop, card, customer)

    assert export(shop, customer).sizes == [20, 1]


@pytest.mark.parametrize("part", ["cards", "consents", "releases"])
def test_a_place_in_another_customers_export_shows_nothing_of_that_customer(shop: Shop, part: str) -> None:
    mine, theirs = new_customer(), new_customer()
    for _ in range(2):
        pay(shop, theirs, keep(shop, fresh_typed_card(), theirs).token)
    own = keep(shop, fresh_typed_card(), mine)
    pay(shop, mine, own.token)
    pages = export(shop, theirs, page_size=1).pages
    place = next(page for page in pages if getattr(page, part)).next_page_token
    assert place

    request = account_pb2.ExportCustomerRequest(customer_id=mine, page_token=place)
    page = shop.account.account.ExportCustomer(request, timeout=TIMEOUT)

    shown = {card.token for card in page.cards} | {release.token for release in page.releases}
    assert shown <= {own.token}
    assert {given.consent_id for given in page.consents} <= {own.consent.consent_id}
