"""The account page: what a customer sees, changes and takes back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from tests.integration.rpc.conftest import Shop
from tests.support.cards import TypedCard, fresh_typed_card
from tests.support.installation import Client
from tests.support.requests import (
    TIMEOUT,
    consent,
    grant_request,
    new_customer,
    new_key,
    new_order,
    redeem_request,
    store_request,
)
from vault.v1 import account_pb2, cards_pb2


def store(shop: Shop, card: TypedCard, customer: str, **changes: Any) -> cards_pb2.Card:
    return shop.checkout.checkout.Tokenize(store_request(card, customer, **changes), timeout=TIMEOUT).card


def several(shop: Shop, customer: str, count: int) -> list[cards_pb2.Card]:
    return [store(shop, fresh_typed_card(), customer) for _ in range(count)]


def listed(shop: Shop, customer: str, *, client: Client | None = None, **more: Any) -> account_pb2.ListCardsResponse:
    request = account_pb2.ListCardsRequest(customer_id=customer, **more)
    return (client or shop.account).account.ListCards(request, timeout=TIMEOUT)


def shown(shop: Shop, customer: str, token: str) -> cards_pb2.Card:
    request = account_pb2.GetCardRequest(customer_id=customer, token=token)
    return shop.account.account.GetCard(request, timeout=TIMEOUT).card


def make_default(shop: Shop, customer: str, token: str) -> cards_pb2.Card:
    request = account_pb2.SetDefaultCardRequest(customer_id=customer, token=token)
    return shop.account.account.SetDefaultCard(request, timeout=TIMEOUT).card


def delete(shop: Shop, customer: str, token: str, **more: Any) -> account_pb2.ErasureReceipt:
    request = account_pb2.DeleteCardRequest(customer_id=customer, token=token, **more)
    return shop.account.account.DeleteCard(request, timeout=TIMEOUT).receipt


def release(shop: Shop, customer: str, token: str) -> Any:
    order = new_order()
    grant = shop.checkout.checkout.IssueGrant(
        grant_request(order=order, customer=customer, token=token), timeout=TIMEOUT
    ).grant
    return shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)


def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    code: grpc.StatusCode = error.code()
    return code


# --- showing --------------------------------------------------------------------------------------------------------


def test_a_card_is_shown_by_what_may_be_shown(shop: Shop) -> None:
    card, customer = fresh_typed_card(), new_customer()
    started = datetime.now(UTC) - timedelta(seconds=1)

    stored = store(shop, card, customer)

    seen = shown(shop, customer, stored.token)
    assert seen == stored
    assert (seen.last4, seen.brand) == (card.last4, int(card.brand))
    assert (seen.expiry.month, seen.expiry.year) == (card.month, card.year)
    assert seen.state == cards_pb2.CARD_STATE_ACTIVE
    assert not seen.expired
    assert started <= seen.created_at.ToDatetime(tzinfo=UTC) <= datetime.now(UTC)
    assert seen.consent.terms_version == "2026-01"
    assert list(seen.consent.uses) == [cards_pb2.CARD_USE_CUSTOMER_INITIATED]
    assert not seen.consent.HasField("agreed_until")
    text = repr(seen) + repr(listed(shop, customer))
    assert card.pan not in text
    assert card.pan[:6] not in text
    assert card.holder_name not in text


def test_an_unknown_customer_has_no_cards(shop: Shop) -> None:
    page = listed(shop, new_customer())

    assert not page.cards
    assert not page.next_page_token


@pytest.mark.parametrize("page_size", [1, 2, 3, 6, 7, 8, 100])
def test_pages_show_every_card_once_oldest_first(shop: Shop, page_size: int) -> None:
    customer = new_customer()
    stored = [card.token for card in several(shop, customer, 7)]

    pages, page_token = [], ""
    while True:
        page = listed(shop, customer, page_size=page_size, page_token=page_token)
        pages.append([card.token for card in page.cards])
        page_token = page.next_page_token
        if not page_token:
            break

    assert [token for page_ in pages for token in page_] == stored
    assert all(len(page_) == page_size for page_ in pages[:-1])
    assert pages[-1]


def test_a_page_that_nobody_sized_has_twenty_cards(shop: Shop) -> None:
    customer = new_customer()
    several(shop, customer, 21)

    page = listed(shop, customer)

    assert len(page.cards) == 20
    assert len(listed(shop, customer, page_token=page.next_page_token).cards) == 1


def test_a_page_goes_on_where_it_ended_though_cards_came_and_went(shop: Shop) -> None:
    customer = new_customer()
    first, second, third, fourth = several(shop, customer, 4)
    page = listed(shop, customer, page_size=2)
    delete(shop, customer, second.token)
    delete(shop, customer, third.token)
    (fifth,) = several(shop, customer, 1)

    rest = listed(shop, customer, page_size=10, page_token=page.next_page_token)

    assert [card.token for card in page.cards] == [first.token, second.token]
    assert [card.token for card in rest.cards] == [fourth.token, fifth.token]


def test_a_page_token_of_another_customer_shows_nothing_of_that_customer(shop: Shop) -> None:
    mine, other = new_customer(), new_customer()
    several(shop, other, 3)
    own = [card.token for card in several(shop, mine, 2)]
    page_token = listed(shop, other, page_size=1).next_page_token

    page = listed(shop, mine, page_token=page_token)

    assert [card.token for card in page.cards] == own


@pytest.mark.parametrize("page_token", ["x", "tok_", "aaaa", "0", "ä"])
def test_a_page_token_that_is_not_ours_is_refused(shop: Shop, page_token: str) -> None:
    assert code_of(lambda: listed(shop, new_customer(), page_token=page_token)) is grpc.StatusCode.INVALID_ARGUMENT


# --- other shops and customers --------------------------------------------------------------------------------------


def test_another_shop_sees_and_changes_nothing(shop: Shop) -> None:
    customer = new_customer()
    card = store(shop, fresh_typed_card(), customer)
    stranger = shop.installation.client("other-account")

    assert not listed(shop, customer, client=stranger).cards
    erased = stranger.account.EraseCustomer(account_pb2.EraseCustomerRequest(customer_id=customer), timeout=TIMEOUT)

    assert (erased.receipt.cards, erased.receipt.grants_revoked) == (0, 0)
    assert shown(shop, customer, card.token) == card


def test_another_customer_sees_nothing(shop: Shop) -> None:
    customer = new_customer()
    card = store(shop, fresh_typed_card(), customer)

    assert not listed(shop, customer + "-2").cards
    assert not listed(shop, customer[:-1]).cards
    assert not listed(shop, customer.upper()).cards
    assert code_of(lambda: shown(shop, new_customer(), card.token)) is grpc.StatusCode.NOT_FOUND


# --- the default card -----------------------------------------------------------------------------------------------


def defaults(shop: Shop, customer: str) -> list[str]:
    return [card.token for card in listed(shop, customer).cards if card.is_default]


def test_the_oldest_card_is_the_default_until_another_is_chosen(shop: Shop) -> None:
    customer = new_customer()
    first, second, third = several(shop, customer, 3)
    assert first.is_default
    assert not second.is_default
    assert defaults(shop, customer) == [first.token]

    assert make_default(shop, customer, third.token).is_default

    assert defaults(shop, customer) == [third.token]
    make_default(shop, customer, second.token)
    assert defaults(shop, customer) == [second.token]
    make_default(shop, customer, second.token)
    assert defaults(shop, customer) == [second.token]


def test_when_the_default_card_goes_the_one_chosen_before_takes_its_place(shop: Shop) -> None:
    customer = new_customer()
    first, second, third = several(shop, customer, 3)
    make_default(shop, customer, third.token)
    make_default(shop, customer, second.token)

    delete(shop, customer, second.token)
    assert defaults(shop, customer) == [third.token]

    delete(shop, customer, third.token)
    assert defaults(shop, customer) == [first.token]

    delete(shop, customer, first.token)
    assert defaults(shop, customer) == []


def test_storing_a_card_again_keeps_it_the_default_and_in_its_place(shop: Shop) -> None:
    card, customer = fresh_typed_card(), new_customer()
    first = store(shop, card, customer)
    (second,) = several(shop, customer, 1)
    make_default(shop, customer, first.token)

    again = store(shop, card, customer)

    assert (again.token, again.is_default, again.created_at) == (first.token, True, first.created_at)
    assert [c.token for c in listed(shop, customer).cards] == [first.token, second.token]


# --- changing the expiry --------------------------------------------------------------------------------------------


def test_a_changed_expiry_is_shown_and_released_and_stays(shop: Shop) -> None:
    card, customer = fresh_typed_card(), new_customer()
    token = store(shop, card, customer).token
    expiry = cards_pb2.Expiry(month=3, year=card.year + 2)
    request = account_pb2.UpdateCardRequest(customer_id=customer, token=token, expiry=expiry)

    changed = shop.account.account.UpdateCard(request, timeout=TIMEOUT).card

    assert changed.expiry == expiry
    assert shown(shop, customer, token).expiry == expiry
    for _ in range(2):
        released = release(shop, customer, token)
        assert (released.pan, released.expiry) == (card.pan, expiry)


def test_storing_the_card_again_brings_its_new_expiry(shop: Shop) -> None:
    card, customer = fresh_typed_card(), new_customer()
    token = store(shop, card, customer).token
    renewed = TypedCard(card.pan, 5, card.year + 1, card.holder_name, "")

    again = store(shop, renewed, customer, consent=consent(terms_version="2026-07"))

    assert again.token == token
    assert (again.expiry.month, again.expiry.year) == (5, card.year + 1)
    assert again.consent.terms_version == "2026-07"
    released = release(shop, customer, token)
    assert (released.pan, released.expiry.month) == (card.pan, 5)


def test_a_change_under_one_key_is_made_once(shop: Shop) -> None:
    card, customer, key = fresh_typed_card(), new_customer(), new_key()
    token = store(shop, card, customer).token

    def change(month: int, **more: Any) -> cards_pb2.Card:
        expiry = cards_pb2.Expiry(month=month, year=card.year + 1)
        request = account_pb2.UpdateCardRequest(customer_id=customer, token=token, expiry=expiry, **more)
        return shop.account.account.UpdateCard(request, timeout=TIMEOUT).card

    change(1, idempotency_key=key)
    change(2)
    again = change(1, idempotency_key=key)

    # The repeat changes nothing any more.
    assert again.expiry.month == 2
    assert code_of(lambda: change(3, idempotency_key=key)) is grpc.StatusCode.ALREADY_EXISTS


# --- erasing --------------------------------------------------------------------------------------------------------


def test_a_deleted_card_is_gone_and_its_receipt_stays(shop: Shop) -> None:
    customer, key = new_customer(), new_key()
    card, other = several(shop, customer, 2)

    receipt = delete(shop, customer, card.token, idempotency_key=key)

    assert receipt.event_id.startswith("evt_")
    assert (receipt.cards, receipt.grants_revoked) == (1, 0)
    assert [c.token for c in listed(shop, customer).cards] == [other.token]
    assert delete(shop, customer, card.token, idempotency_key=key) == receipt
    assert code_of(lambda: delete(shop, customer, card.token)) is grpc.StatusCode.NOT_FOUND
    other_request = code_of(lambda: delete(shop, customer, other.token, idempotency_key=key))
    assert other_request is grpc.StatusCode.ALREADY_EXISTS
    assert shown(shop, customer, other.token).token == other.token


def test_an_erased_customer_has_no_cards_and_open_grants_die(shop: Shop) -> None:
    customer, key = new_customer(), new_key()
    cards = several(shop, customer, 3)
    orders = [new_order() for _ in cards]
    issued = [
        shop.checkout.checkout.IssueGrant(
            grant_request(order=order, customer=customer, token=card.token), timeout=TIMEOUT
        ).grant
        for order, card in zip(orders, cards, strict=True)
    ]
    request = account_pb2.EraseCustomerRequest(customer_id=customer, idempotency_key=key)

    receipt = shop.account.account.EraseCustomer(request, timeout=TIMEOUT).receipt

    assert (receipt.cards, receipt.grants_revoked) == (3, 3)
    assert not listed(shop, customer).cards
    for grant, order in zip(issued, orders, strict=True):
        refused = code_of(
            lambda g=grant, o=order: shop.processor.processor.Detokenize(redeem_request(g, o), timeout=TIMEOUT)
        )
        assert refused is grpc.StatusCode.PERMISSION_DENIED
    assert shop.account.account.EraseCustomer(request, timeout=TIMEOUT).receipt == receipt


@pytest.mark.parametrize("everything", [False, True], ids=["DeleteCard", "EraseCustomer"])
def test_an_order_under_way_can_still_be_paid_when_its_card_is_erased(shop: Shop, everything: bool) -> None:
    customer, card, order = new_customer(), fresh_typed_card(), new_order()
    answer = shop.checkout.checkout.Tokenize(store_request(card, customer, order_id=order), timeout=TIMEOUT)

    if everything:
        shop.account.account.EraseCustomer(account_pb2.EraseCustomerRequest(customer_id=customer), timeout=TIMEOUT)
    else:
        delete(shop, customer, answer.card.token)

    request = grant_request(order=order, one_time_token=answer.one_time_token)
    grant = shop.checkout.checkout.IssueGrant(request, timeout=TIMEOUT).grant
    released = shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
    assert released.pan == card.pan
    assert not listed(shop, customer).cards


def test_after_erasure_the_same_card_gets_another_token(shop: Shop) -> None:
    card, customer, key = fresh_typed_card(), new_customer(), new_key()
    first = store(shop, card, customer, idempotency_key=key)
    delete(shop, customer, first.token)

    # What was answered before the erasure is not answered again.
    repeated = code_of(lambda: store(shop, card, customer, idempotency_key=key))
    second = store(shop, card, customer)

    assert repeated is grpc.StatusCode.NOT_FOUND
    assert second.token != first.token
    assert second.consent.consent_id != first.consent.consent_id
    assert release(shop, customer, second.token).pan == card.pan
    assert code_of(lambda: shown(shop, customer, first.token)) is grpc.StatusCode.NOT_FOUND
