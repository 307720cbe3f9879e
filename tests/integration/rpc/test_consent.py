"""Consent decides at the moment of each effect: nothing is stored, granted or released under one that has ended."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from tests.integration.rpc.conftest import Shop
from tests.support.answers import refusal_of, rows_of
from tests.support.cards import fresh_typed_card
from tests.support.requests import (
    TIMEOUT,
    consent,
    grant_request,
    new_customer,
    new_order,
    redeem_request,
    store_request,
)
from vault.v1 import account_pb2


def in_a_moment(seconds: float) -> tuple[Timestamp, datetime]:
    moment, stamp = datetime.now(UTC) + timedelta(seconds=seconds), Timestamp()
    stamp.FromDatetime(moment)
    return stamp, moment


def wait_until(moment: datetime) -> None:
    while datetime.now(UTC) < moment + timedelta(milliseconds=20):
        time.sleep(0.01)


def test_a_consent_that_ended_between_grant_and_redemption_releases_nothing_and_grants_nothing(shop: Shop) -> None:
    card, customer, order = fresh_typed_card(), new_customer(), new_order()
    until, moment = in_a_moment(1.5)
    checkout = shop.checkout.checkout
    token = checkout.Tokenize(
        store_request(card, customer, consent=consent(agreed_until=until)), timeout=TIMEOUT
    ).card.token
    grant = checkout.IssueGrant(grant_request(order=order, customer=customer, token=token), timeout=TIMEOUT).grant
    wait_until(moment)

    redeemed = refusal_of(lambda: shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT))
    issued = refusal_of(
        lambda: checkout.IssueGrant(grant_request(order=new_order(), customer=customer, token=token), timeout=TIMEOUT)
    )

    assert redeemed is not None
    assert issued is not None
    assert (redeemed.code, redeemed.text) == (grpc.StatusCode.PERMISSION_DENIED, "refused")
    assert (issued.code, issued.text) == (grpc.StatusCode.FAILED_PRECONDITION, "consent required")
    with rows_of(shop.installation.database_url) as rows:
        reasons = [event["reason"] for each in (redeemed, issued) for event in rows.events(each.error_id)]
    assert reasons == ["consent_missing", "consent_not_covering"]


def test_a_new_consent_takes_the_place_of_one_that_ended(shop: Shop) -> None:
    card, customer, order = fresh_typed_card(), new_customer(), new_order()
    until, moment = in_a_moment(1.0)
    checkout = shop.checkout.checkout
    checkout.Tokenize(store_request(card, customer, consent=consent(agreed_until=until)), timeout=TIMEOUT)
    wait_until(moment)

    token = checkout.Tokenize(store_request(card, customer), timeout=TIMEOUT).card.token

    grant = checkout.IssueGrant(grant_request(order=order, customer=customer, token=token), timeout=TIMEOUT).grant
    released = shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
    assert released.pan == card.pan
    shown = shop.account.account.GetCard(
        account_pb2.GetCardRequest(customer_id=customer, token=token), timeout=TIMEOUT
    ).card
    assert not shown.consent.HasField("agreed_until")
