"""Grants: for one card, one order, one amount, one processor, one use, and only as far as the consent reaches."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.integration.rpc.conftest import Shop
from tests.support.cards import TypedCard, fresh_typed_card
from tests.support.installation import SECOND_ACQUIRER
from tests.support.requests import (
    CUSTOMER_INITIATED,
    TIMEOUT,
    consent,
    grant_request,
    money,
    new_customer,
    new_key,
    new_order,
    once_request,
    redeem_request,
    store_request,
)
from vault.v1 import account_pb2, cards_pb2, checkout_pb2

RECURRING = cards_pb2.CARD_USE_RECURRING
REFUSED = grpc.StatusCode.PERMISSION_DENIED


def keep(shop: Shop, card: TypedCard, customer: str, **changes: Any) -> str:
    return shop.checkout.checkout.Tokenize(store_request(card, customer, **changes), timeout=TIMEOUT).card.token


def issue(shop: Shop, request: checkout_pb2.IssueGrantRequest) -> checkout_pb2.IssueGrantResponse:
    return shop.checkout.checkout.IssueGrant(request, timeout=TIMEOUT)


def redeem(shop: Shop, grant: str, order: str, **changes: Any) -> Any:
    return shop.processor.processor.Detokenize(redeem_request(grant, order, **changes), timeout=TIMEOUT)


def revoke(shop: Shop, grant: str) -> Any:
    return shop.checkout.checkout.RevokeGrant(checkout_pb2.RevokeGrantRequest(grant=grant), timeout=TIMEOUT)


def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    code: grpc.StatusCode = error.code()
    return code


@pytest.fixture
def card() -> TypedCard:
    return fresh_typed_card()


@pytest.fixture
def customer() -> str:
    return new_customer()


@pytest.fixture
def order() -> str:
    return new_order()


def test_a_grant_lives_for_two_minutes_unless_told_otherwise(
    shop: Shop, card: TypedCard, customer: str, order: str
) -> None:
    token = keep(shop, card, customer)
    now = datetime.now(UTC)

    issued = issue(shop, grant_request(order=order, customer=customer, token=token))
    longer = issue(
        shop, grant_request(order=new_order(), customer=customer, token=token, lifetime=Duration(seconds=900))
    )

    assert re.fullmatch(r"grant_[a-z]{26,}", issued.grant)
    for answer, minutes in ((issued, 2), (longer, 15)):
        life = answer.expires_at.ToDatetime(tzinfo=UTC) - now
        assert timedelta(minutes=minutes, seconds=-1) < life < timedelta(minutes=minutes, seconds=5)


@pytest.mark.parametrize("seconds", [-1, 0, 9, 901])
def test_a_lifetime_out_of_bounds_is_refused(
    shop: Shop, card: TypedCard, customer: str, order: str, seconds: int
) -> None:
    token = keep(shop, card, customer)
    request = grant_request(order=order, customer=customer, token=token, lifetime=Duration(seconds=seconds))

    assert code_of(lambda: issue(shop, request)) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_second_grant_for_one_order_replaces_the_first(
    shop: Shop, card: TypedCard, customer: str, order: str
) -> None:
    token = keep(shop, card, customer)
    first = issue(shop, grant_request(order=order, customer=customer, token=token)).grant
    second = issue(shop, grant_request(order=order, customer=customer, token=token, amount=money(1))).grant
    elsewhere = new_order()
    other = issue(shop, grant_request(order=elsewhere, customer=customer, token=token)).grant

    assert code_of(lambda: redeem(shop, first, order)) is REFUSED
    assert redeem(shop, second, order, amount=money(1)).pan == card.pan
    assert redeem(shop, other, elsewhere).pan == card.pan


def test_an_order_may_be_paid_again_under_a_new_grant(shop: Shop, card: TypedCard, customer: str, order: str) -> None:
    token = keep(shop, card, customer)
    for _ in range(3):
        grant = issue(shop, grant_request(order=order, customer=customer, token=token)).grant
        assert redeem(shop, grant, order).pan == card.pan


def test_a_grant_from_before_the_card_was_stored_again_opens_what_is_stored_now(
    shop: Shop, card: TypedCard, customer: str, order: str
) -> None:
    token = keep(shop, card, customer)
    grant = issue(shop, grant_request(order=order, customer=customer, token=token)).grant
    renewed = TypedCard(card.pan, 7, card.year + 1, "New Name", "")
    assert keep(shop, renewed, customer, consent=consent(terms_version="2026-09")) == token

    released = redeem(shop, grant, order)

    assert (released.pan, released.holder_name) == (card.pan, "New Name")
    assert (released.expiry.month, released.expiry.year) == (7, card.year + 1)


def test_a_grant_dies_with_the_consent_for_its_use(shop: Shop, card: TypedCard, customer: str, order: str) -> None:
    token = keep(shop, card, customer, consent=consent(CUSTOMER_INITIATED, RECURRING))
    grant = issue(shop, grant_request(order=order, customer=customer, token=token, purpose=RECURRING)).grant
    keep(shop, card, customer, consent=consent(CUSTOMER_INITIATED))

    assert code_of(lambda: redeem(shop, grant, order)) is REFUSED


@pytest.mark.parametrize("use", ["RECURRING", "INSTALMENT", "UNSCHEDULED", "CUSTOMER_INITIATED"])
def test_a_use_needs_a_consent_that_names_it(shop: Shop, card: TypedCard, customer: str, order: str, use: str) -> None:
    wanted = cards_pb2.CardUse.Value(f"CARD_USE_{use}")
    others = [each for each in cards_pb2.CardUse.values() if each not in (0, wanted)]
    token = keep(shop, card, customer, consent=consent(*others))
    request = grant_request(order=order, customer=customer, token=token, purpose=wanted)

    assert code_of(lambda: issue(shop, request)) is grpc.StatusCode.FAILED_PRECONDITION

    keep(shop, card, customer, consent=consent(*others, wanted))
    released = redeem(shop, issue(shop, request).grant, order)
    assert (released.pan, released.purpose) == (card.pan, wanted)


def test_a_one_time_token_is_for_the_customer_who_is_there(shop: Shop, card: TypedCard, order: str) -> None:
    once = shop.checkout.checkout.Tokenize(once_request(card, order), timeout=TIMEOUT).one_time_token

    refused = code_of(lambda: issue(shop, grant_request(order=order, one_time_token=once, purpose=RECURRING)))

    assert refused is grpc.StatusCode.FAILED_PRECONDITION
    assert redeem(shop, issue(shop, grant_request(order=order, one_time_token=once)).grant, order).pan == card.pan


@pytest.mark.parametrize("processor", ["nobody", "", "ACQUIRER", "shop"])
def test_an_unknown_processor_is_refused(
    shop: Shop, card: TypedCard, customer: str, order: str, processor: str
) -> None:
    token = keep(shop, card, customer)
    request = grant_request(order=order, customer=customer, token=token, processor=processor)

    assert code_of(lambda: issue(shop, request)) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_processor_of_another_shop_is_refused(shop: Shop, card: TypedCard, customer: str, order: str) -> None:
    stranger = shop.installation.client("other-checkout").checkout
    token = stranger.Tokenize(store_request(card, customer), timeout=TIMEOUT).card.token
    request = grant_request(order=order, customer=customer, token=token, processor=SECOND_ACQUIRER)

    assert code_of(lambda: stranger.IssueGrant(request, timeout=TIMEOUT)) is grpc.StatusCode.INVALID_ARGUMENT


# --- revocation -----------------------------------------------------------------------------------------------------


def test_a_revoked_grant_releases_nothing_and_may_be_revoked_again(
    shop: Shop, card: TypedCard, customer: str, order: str
) -> None:
    token = keep(shop, card, customer)
    grant = issue(shop, grant_request(order=order, customer=customer, token=token)).grant

    revoke(shop, grant)
    revoke(shop, grant)

    assert code_of(lambda: redeem(shop, grant, order)) is REFUSED
    again = issue(shop, grant_request(order=order, customer=customer, token=token)).grant
    assert redeem(shop, again, order).pan == card.pan


def test_a_used_grant_cannot_be_revoked(shop: Shop, card: TypedCard, customer: str, order: str) -> None:
    token = keep(shop, card, customer)
    grant = issue(shop, grant_request(order=order, customer=customer, token=token)).grant
    redeem(shop, grant, order)

    assert code_of(lambda: revoke(shop, grant)) is grpc.StatusCode.FAILED_PRECONDITION


def test_revoking_a_grant_leaves_its_one_time_token_good(shop: Shop, card: TypedCard, order: str) -> None:
    once = shop.checkout.checkout.Tokenize(once_request(card, order), timeout=TIMEOUT).one_time_token
    grant = issue(shop, grant_request(order=order, one_time_token=once)).grant

    revoke(shop, grant)

    assert code_of(lambda: redeem(shop, grant, order)) is REFUSED
    assert redeem(shop, issue(shop, grant_request(order=order, one_time_token=once)).grant, order).pan == card.pan


# --- idempotency ----------------------------------------------------------------------------------------------------


def test_a_repeat_voids_the_unused_first_grant(shop: Shop, card: TypedCard, customer: str, order: str) -> None:
    token = keep(shop, card, customer)
    request = grant_request(order=order, customer=customer, token=token, idempotency_key=new_key())

    first, second = issue(shop, request).grant, issue(shop, request).grant

    assert first != second
    assert code_of(lambda: redeem(shop, first, order)) is REFUSED
    assert redeem(shop, second, order).pan == card.pan


def test_a_repeat_after_use_is_refused(shop: Shop, card: TypedCard, customer: str, order: str) -> None:
    token = keep(shop, card, customer)
    request = grant_request(order=order, customer=customer, token=token, idempotency_key=new_key())
    redeem(shop, issue(shop, request).grant, order)

    assert code_of(lambda: issue(shop, request)) is grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize("changed", ["order_id", "amount", "processor", "lifetime"])
def test_one_key_is_for_one_grant(shop: Shop, card: TypedCard, customer: str, order: str, changed: str) -> None:
    token, key = keep(shop, card, customer), new_key()
    first = issue(shop, grant_request(order=order, customer=customer, token=token, idempotency_key=key)).grant
    changes: dict[str, Any] = {
        "order_id": new_order(),
        "amount": money(1),
        "processor": SECOND_ACQUIRER,
        "lifetime": Duration(seconds=30),
    }
    other = grant_request(
        order=order, customer=customer, token=token, idempotency_key=key, **{changed: changes[changed]}
    )

    assert code_of(lambda: issue(shop, other)) is grpc.StatusCode.ALREADY_EXISTS

    assert redeem(shop, first, order).pan == card.pan


def test_a_repeat_after_the_card_was_erased_is_not_available(
    shop: Shop, card: TypedCard, customer: str, order: str
) -> None:
    token = keep(shop, card, customer)
    request = grant_request(order=order, customer=customer, token=token, idempotency_key=new_key())
    issue(shop, request)
    shop.account.account.DeleteCard(account_pb2.DeleteCardRequest(customer_id=customer, token=token), timeout=TIMEOUT)

    assert code_of(lambda: issue(shop, request)) is grpc.StatusCode.NOT_FOUND


def test_a_refused_grant_leaves_its_key_free(shop: Shop, card: TypedCard, customer: str, order: str) -> None:
    token, key = keep(shop, card, customer), new_key()
    request = grant_request(order=order, customer=customer, token=token, purpose=RECURRING, idempotency_key=key)
    assert code_of(lambda: issue(shop, request)) is grpc.StatusCode.FAILED_PRECONDITION
    keep(shop, card, customer, consent=consent(RECURRING))

    assert redeem(shop, issue(shop, request).grant, order).pan == card.pan
