"""The main job through real clients: store with consent, show four digits, release to the processor alone."""

from __future__ import annotations

import grpc
import pytest

from tests.integration.rpc.conftest import Shop
from tests.support.cards import fresh_typed_card
from tests.support.requests import (
    TIMEOUT,
    grant_request,
    new_customer,
    new_order,
    once_request,
    redeem_request,
    store_request,
)
from vault.v1 import account_pb2


def test_a_card_with_consent_is_stored_shown_and_released_once(shop: Shop) -> None:
    card, customer, order = fresh_typed_card(), new_customer(), new_order()

    stored = shop.checkout.checkout.Tokenize(store_request(card, customer), timeout=TIMEOUT)
    listed = shop.account.account.ListCards(account_pb2.ListCardsRequest(customer_id=customer), timeout=TIMEOUT)
    grant = shop.checkout.checkout.IssueGrant(
        grant_request(order=order, customer=customer, token=stored.card.token), timeout=TIMEOUT
    ).grant
    released = shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)

    assert [c.token for c in listed.cards] == [stored.card.token]
    assert listed.cards[0].last4 == card.last4
    assert (released.pan, released.holder_name) == (card.pan, card.holder_name)
    assert (released.expiry.month, released.expiry.year) == (card.month, card.year)
    assert not released.security_code
    with pytest.raises(grpc.RpcError) as refused:
        shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.PERMISSION_DENIED, "refused")


def test_a_card_without_consent_is_only_in_the_one_time_token(shop: Shop) -> None:
    card, order = fresh_typed_card(), new_order()

    once = shop.checkout.checkout.Tokenize(once_request(card, order), timeout=TIMEOUT)
    grant = shop.checkout.checkout.IssueGrant(
        grant_request(order=order, one_time_token=once.one_time_token), timeout=TIMEOUT
    ).grant
    released = shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)

    assert not once.card.token
    assert (released.pan, released.security_code) == (card.pan, card.security_code)
    with pytest.raises(grpc.RpcError) as gone:
        shop.checkout.checkout.IssueGrant(
            grant_request(order=order, one_time_token=once.one_time_token), timeout=TIMEOUT
        )
    assert gone.value.code() is grpc.StatusCode.NOT_FOUND
