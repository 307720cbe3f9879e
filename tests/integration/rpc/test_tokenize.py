"""Storing cards and making one-time tokens: one card one token, one key one answer."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import Connection, select

from tests.fixtures_db import sqlite_url_of
from tests.integration.rpc.conftest import Shop
from tests.support.cards import TypedCard, fresh_typed_card
from tests.support.installation import installed
from tests.support.requests import (
    TIMEOUT,
    card_input,
    consent,
    grant_request,
    new_customer,
    new_key,
    new_order,
    once_request,
    redeem_request,
    store_request,
)
from vault.domain.brand import Brand
from vault.domain.grant import ONE_TIME_LIFETIME
from vault.embedded.openbao import OpenBao
from vault.store.engine import Limits, open_engines
from vault.store.tables import card_secrets, cards, consents, idempotency, once_keys
from vault.v1 import checkout_pb2


@contextmanager
def direct(url: str) -> Iterator[Connection]:
    """One transaction on the database itself, past all of our own code."""
    engines = open_engines(url, Limits(pool_size=2))
    try:
        with engines.writer.begin() as connection:
            yield connection
    finally:
        engines.dispose()


def tokenize(shop: Shop, request: checkout_pb2.TokenizeRequest, *, client: str = "") -> checkout_pb2.TokenizeResponse:
    checkout = shop.installation.client(client) if client else shop.checkout
    return checkout.checkout.Tokenize(request, timeout=TIMEOUT)


def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    code: grpc.StatusCode = error.code()
    return code


def pay(shop: Shop, order: str, **subject: Any) -> Any:
    grant = shop.checkout.checkout.IssueGrant(grant_request(order=order, **subject), timeout=TIMEOUT).grant
    return shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)


def both_request(card: TypedCard, customer: str, order: str, **changes: Any) -> checkout_pb2.TokenizeRequest:
    """Keep the card, and pay this order with its security code."""
    request = store_request(card, customer, order_id=order, **changes)
    request.card.CopyFrom(card_input(card, security_code=True))
    return request


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_the_same_card_of_the_same_customer_keeps_its_token(shop: Shop) -> None:
    card, customer = fresh_typed_card(), new_customer()

    tokens = {tokenize(shop, store_request(card, customer)).card.token for _ in range(4)}

    (token,) = tokens
    assert re.fullmatch(r"tok_[a-z]{26,}", token)
    assert pay(shop, new_order(), customer=customer, token=token).pan == card.pan


def test_customers_and_shops_get_tokens_and_fingerprints_of_their_own(shop: Shop) -> None:
    card, customer, other = fresh_typed_card(), new_customer(), new_customer()

    tokens = [
        tokenize(shop, store_request(card, customer)).card.token,
        tokenize(shop, store_request(card, other)).card.token,
        tokenize(shop, store_request(card, customer), client="other-checkout").card.token,
        tokenize(shop, store_request(fresh_typed_card(), customer)).card.token,
    ]

    assert len(set(tokens)) == 4
    with direct(shop.installation.database_url) as connection:
        query = select(card_secrets.c.fingerprint).where(card_secrets.c.token.in_(tokens))
        assert len({row.fingerprint for row in connection.execute(query)}) == 4


@pytest.mark.parametrize("brand", Brand)
def test_cards_of_every_scheme_are_stored_and_released(shop: Shop, brand: Brand) -> None:
    for length in sorted(brand.lengths):
        card, customer = fresh_typed_card(brand=brand, length=length), new_customer()

        stored = tokenize(shop, store_request(card, customer)).card

        assert (stored.brand, stored.last4) == (int(brand), card.pan[-4:])
        released = pay(shop, new_order(), customer=customer, token=stored.token)
        assert (released.pan, released.brand) == (card.pan, int(brand))


def test_every_storing_is_a_consent_in_the_ledger(shop: Shop) -> None:
    card, customer = fresh_typed_card(), new_customer()
    last = tokenize(shop, store_request(card, customer)).card
    for version in ("2026-02", "2026-03"):
        last = tokenize(shop, store_request(card, customer, consent=consent(terms_version=version))).card

    with direct(shop.installation.database_url) as connection:
        ledger = connection.execute(
            select(consents).where(consents.c.customer_id == customer).order_by(consents.c.recorded_at)
        ).all()
        kept = connection.execute(select(cards.c.consent_id).where(cards.c.customer_id == customer)).scalar_one()
    assert [row.terms_version for row in ledger] == ["2026-01", "2026-02", "2026-03"]
    assert last.consent.consent_id == kept == ledger[-1].consent_id


# --- one-time tokens ------------------------------------------------------------------------------------------------


def test_without_consent_nothing_of_the_card_is_kept(shop: Shop) -> None:
    card, order, customer = fresh_typed_card(with_security_code=True), new_order(), new_customer()
    started = datetime.now(UTC)

    once = tokenize(shop, once_request(card, order, customer_id=customer))

    assert not once.card.token
    assert (once.card.last4, once.card.expiry.year) == (card.last4, card.year)
    life = once.one_time_token_expires_at.ToDatetime(tzinfo=UTC) - started
    assert ONE_TIME_LIFETIME - timedelta(seconds=1) <= life <= ONE_TIME_LIFETIME + timedelta(seconds=5)
    with direct(shop.installation.database_url) as connection:
        for table in (cards, consents):
            assert not connection.execute(select(table).where(table.c.customer_id == customer)).all()
        (row,) = connection.execute(select(once_keys).where(once_keys.c.order_id == order)).all()
    assert row.state == "open"
    released = pay(shop, order, one_time_token=once.one_time_token)
    assert (released.pan, released.security_code) == (card.pan, card.security_code)
    assert (released.expiry.month, released.expiry.year) == (card.month, card.year)
    with direct(shop.installation.database_url) as connection:
        (row,) = connection.execute(select(once_keys).where(once_keys.c.order_id == order)).all()
    assert (row.state, row.wrapped_key) == ("spent", None)


def test_the_security_code_comes_out_of_the_one_time_token_alone(shop: Shop) -> None:
    card, customer, order = fresh_typed_card(with_security_code=True), new_customer(), new_order()

    both = tokenize(shop, both_request(card, customer, order))

    first = pay(shop, order, one_time_token=both.one_time_token)
    later = pay(shop, new_order(), customer=customer, token=both.card.token)
    assert (first.pan, first.security_code) == (card.pan, card.security_code)
    assert (later.pan, later.security_code) == (card.pan, "")


def test_two_one_time_tokens_of_one_card_and_order_are_two(shop: Shop) -> None:
    card, order = fresh_typed_card(), new_order()
    first = tokenize(shop, once_request(card, order)).one_time_token
    second = tokenize(shop, once_request(card, order)).one_time_token

    assert first != second
    assert pay(shop, order, one_time_token=first).pan == card.pan
    assert pay(shop, order, one_time_token=second).pan == card.pan


def test_a_one_time_token_of_another_order_or_shop_is_not_available(shop: Shop) -> None:
    card, order = fresh_typed_card(), new_order()
    once = tokenize(shop, once_request(card, order)).one_time_token
    stranger = shop.installation.client("other-checkout").checkout

    codes = [
        code_of(lambda: pay(shop, new_order(), one_time_token=once)),
        code_of(lambda: stranger.IssueGrant(grant_request(order=order, one_time_token=once), timeout=TIMEOUT)),
    ]

    assert codes == [grpc.StatusCode.NOT_FOUND] * 2
    assert pay(shop, order, one_time_token=once).pan == card.pan


# --- idempotency ----------------------------------------------------------------------------------------------------


def test_the_same_key_and_request_give_the_same_answer(shop: Shop) -> None:
    request = store_request(fresh_typed_card(), new_customer(), idempotency_key=new_key())

    answers = [tokenize(shop, request) for _ in range(3)]

    assert answers[0].card.token
    assert answers[1:] == answers[:1] * 2
    with direct(shop.installation.database_url) as connection:
        ledger = connection.execute(select(consents).where(consents.c.customer_id == request.customer_id)).all()
    assert len(ledger) == 1


@pytest.mark.parametrize("changed", ["pan", "expiry", "customer", "consent", "order"])
def test_the_same_key_for_another_request_is_refused_and_does_nothing(shop: Shop, changed: str) -> None:
    card, customer, key = fresh_typed_card(), new_customer(), new_key()
    first = tokenize(shop, store_request(card, customer, idempotency_key=key))
    other_card = {
        "pan": TypedCard(fresh_typed_card().pan, card.month, card.year, card.holder_name, ""),
        "expiry": TypedCard(card.pan, card.month, card.year + 1, card.holder_name, ""),
    }.get(changed, card)
    request = store_request(
        other_card,
        new_customer() if changed == "customer" else customer,
        idempotency_key=key,
        consent=consent(terms_version="2027-01" if changed == "consent" else "2026-01"),
        order_id=new_order() if changed == "order" else "",
    )

    assert code_of(lambda: tokenize(shop, request)) is grpc.StatusCode.ALREADY_EXISTS

    with direct(shop.installation.database_url) as connection:
        owned = connection.execute(select(cards.c.token).where(cards.c.customer_id == customer)).all()
        others = connection.execute(select(cards.c.token).where(cards.c.customer_id == request.customer_id)).all()
    assert [row.token for row in owned] == [first.card.token]
    assert len(others) == (0 if changed == "customer" else 1)
    assert pay(shop, new_order(), customer=customer, token=first.card.token).pan == card.pan


def test_a_key_is_of_one_shop_and_one_method(shop: Shop) -> None:
    card, customer, key = fresh_typed_card(), new_customer(), new_key()
    mine = tokenize(shop, store_request(card, customer, idempotency_key=key)).card.token

    theirs = tokenize(
        shop, store_request(fresh_typed_card(), new_customer(), idempotency_key=key), client="other-checkout"
    ).card.token
    order = new_order()
    grant = shop.checkout.checkout.IssueGrant(
        grant_request(order=order, customer=customer, token=mine, idempotency_key=key), timeout=TIMEOUT
    ).grant

    assert theirs != mine
    assert grant


def test_a_repeat_with_a_one_time_token_voids_the_first(shop: Shop) -> None:
    card, customer, order = fresh_typed_card(with_security_code=True), new_customer(), new_order()
    request = both_request(card, customer, order, idempotency_key=new_key())

    first, second = tokenize(shop, request), tokenize(shop, request)

    assert first.card.token == second.card.token
    assert first.one_time_token != second.one_time_token
    assert code_of(lambda: pay(shop, order, one_time_token=first.one_time_token)) is grpc.StatusCode.NOT_FOUND
    assert pay(shop, order, one_time_token=second.one_time_token).security_code == card.security_code


def test_a_repeat_kills_a_grant_for_the_first_one_time_token(shop: Shop) -> None:
    card, order = fresh_typed_card(), new_order()
    request = once_request(card, order, idempotency_key=new_key())
    first = tokenize(shop, request).one_time_token
    grant = shop.checkout.checkout.IssueGrant(grant_request(order=order, one_time_token=first), timeout=TIMEOUT).grant

    tokenize(shop, request)

    refused = code_of(lambda: shop.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT))
    assert refused is grpc.StatusCode.PERMISSION_DENIED


def test_a_repeat_after_the_one_time_token_was_used_is_refused(shop: Shop) -> None:
    card, order = fresh_typed_card(), new_order()
    request = once_request(card, order, idempotency_key=new_key())
    pay(shop, order, one_time_token=tokenize(shop, request).one_time_token)

    assert code_of(lambda: tokenize(shop, request)) is grpc.StatusCode.ALREADY_EXISTS

    with direct(shop.installation.database_url) as connection:
        rows = connection.execute(select(once_keys.c.state).where(once_keys.c.order_id == order)).all()
    assert [row.state for row in rows] == ["spent"]


def test_a_refused_request_leaves_its_key_free(shop: Shop) -> None:
    card, customer, key = fresh_typed_card(), new_customer(), new_key()
    bad = store_request(card, customer, idempotency_key=key)
    bad.card.pan = bad.card.pan[:-1] + str((int(bad.card.pan[-1]) + 1) % 10)

    assert code_of(lambda: tokenize(shop, bad)) is grpc.StatusCode.INVALID_ARGUMENT

    assert tokenize(shop, store_request(card, customer, idempotency_key=key)).card.token


def test_what_is_kept_of_a_request_holds_no_card(shop: Shop) -> None:
    card, customer, key = fresh_typed_card(with_security_code=True), new_customer(), new_key()
    both = tokenize(shop, both_request(card, customer, new_order(), idempotency_key=key))

    with direct(shop.installation.database_url) as connection:
        (row,) = connection.execute(select(idempotency).where(idempotency.c.idempotency_key == key)).all()

    assert set(row.answer) == {"token", "once_id"}
    assert row.answer["token"] == both.card.token
    assert len(row.request_sha256) == 32
    assert row.answer["once_id"].removeprefix("oid_") not in both.one_time_token


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_same_answer_comes_after_a_restart(
    request: pytest.FixtureRequest, tmp_path: Path, openbao: OpenBao, kind: str
) -> None:
    if kind == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "vault.db")
        url = sqlite_url_of(tmp_path / "vault.db")
    else:
        url = request.getfixturevalue("postgresql_url")
    card, customer, order = fresh_typed_card(with_security_code=True), new_customer(), new_order()
    wanted = store_request(card, customer, idempotency_key=new_key())
    both = both_request(card, customer, order, idempotency_key=new_key())
    with installed(tmp_path, openbao, url) as installation:
        first = installation.client("checkout", installation.serve())
        stored = first.checkout.Tokenize(wanted, timeout=TIMEOUT).card.token
        former = first.checkout.Tokenize(both, timeout=TIMEOUT).one_time_token
        grant_wanted = grant_request(order=new_order(), customer=customer, token=stored, idempotency_key=new_key())
        former_grant = first.checkout.IssueGrant(grant_wanted, timeout=TIMEOUT).grant
        assert installation.servers[0].stop() == 0

        second = installation.serve()
        checkout = installation.client("checkout", second).checkout
        processor = installation.client("processor", second).processor
        account_token = checkout.Tokenize(wanted, timeout=TIMEOUT).card.token
        latter = checkout.Tokenize(both, timeout=TIMEOUT).one_time_token
        latter_grant = checkout.IssueGrant(grant_wanted, timeout=TIMEOUT).grant

        assert account_token == stored
        assert latter != former
        assert code_of(
            lambda: checkout.IssueGrant(grant_request(order=order, one_time_token=former), timeout=TIMEOUT)
        ) is (grpc.StatusCode.NOT_FOUND)
        assert code_of(
            lambda: processor.Detokenize(redeem_request(former_grant, grant_wanted.order_id), timeout=TIMEOUT)
        ) is (grpc.StatusCode.PERMISSION_DENIED)
        released = processor.Detokenize(redeem_request(latter_grant, grant_wanted.order_id), timeout=TIMEOUT)
        assert released.pan == card.pan
