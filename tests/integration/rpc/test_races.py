"""Many at once, through real servers: the database decides, and exactly one wins.

On PostgreSQL the calls are spread over two server processes, on SQLite there is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from sqlalchemy import Connection, select

from tests.integration.rpc.conftest import Shop
from tests.support.cards import fresh_typed_card
from tests.support.installation import Client
from tests.support.requests import (
    TIMEOUT,
    grant_request,
    money,
    new_customer,
    new_key,
    new_order,
    once_request,
    redeem_request,
    store_request,
)
from vault.store.engine import Limits, open_engines
from vault.store.tables import audit_events, card_secrets, cards, consents, grants, once_keys
from vault.v1 import account_pb2, checkout_pb2

OK, REFUSED, GONE, BUSY = (
    grpc.StatusCode.OK,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ABORTED,
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How one call ended."""

    code: grpc.StatusCode
    text: str
    answer: Any


@contextmanager
def direct(url: str) -> Iterator[Connection]:
    """One transaction on the database itself, past all of our own code."""
    engines = open_engines(url, Limits(pool_size=2))
    try:
        with engines.writer.begin() as connection:
            yield connection
    finally:
        engines.dispose()


def at_once(calls: Sequence[tuple[Any, Message]]) -> list[Ended]:
    """Send all before looking at any answer."""
    futures = [stub.future(request, timeout=TIMEOUT) for stub, request in calls]
    return [
        Ended(future.code(), future.details() or "", future.result() if future.code() is OK else None)
        for future in futures
    ]


class Crowd:
    """Clients of one shop on every server, with two connections to each."""

    def __init__(self, shop: Shop) -> None:
        self.url = shop.installation.database_url
        self._shop = shop
        self._clients: dict[str, list[Client]] = {}

    def clients(self, name: str) -> list[Client]:
        if name not in self._clients:
            installation = self._shop.installation
            self._clients[name] = [installation.client(name, server) for server in installation.servers * 2]
        return self._clients[name]

    def spread(self, name: str, method: Callable[[Client], Any], requests: Sequence[Message]) -> list[Any]:
        """Calls, dealt out to the clients in turn."""
        clients = self.clients(name)
        return [(method(clients[number % len(clients)]), request) for number, request in enumerate(requests)]

    def tokenize(self, requests: Sequence[Message]) -> list[Any]:
        return self.spread("checkout", lambda client: client.checkout.Tokenize, requests)

    def issue(self, requests: Sequence[Message]) -> list[Any]:
        return self.spread("checkout", lambda client: client.checkout.IssueGrant, requests)

    def redeem(self, requests: Sequence[Message]) -> list[Any]:
        return self.spread("processor", lambda client: client.processor.Detokenize, requests)

    def delete(self, requests: Sequence[Message]) -> list[Any]:
        return self.spread("account", lambda client: client.account.DeleteCard, requests)

    def released(self, *, order: str) -> int:
        """How many releases for an order the audit log knows."""
        with direct(self.url) as connection:
            query = select(audit_events.c.outcome).where(
                audit_events.c.event == "card.released",
                audit_events.c.outcome == "ok",
                audit_events.c.order_id == order,
            )
            return len(connection.execute(query).all())


@pytest.fixture
def crowd(shop: Shop) -> Crowd:
    return Crowd(shop)


def codes(ended: Sequence[Ended]) -> Counter[grpc.StatusCode]:
    return Counter(each.code for each in ended)


def stored_token(crowd: Crowd, customer: str) -> tuple[str, str]:
    """Token and number of a new card."""
    card = fresh_typed_card()
    checkout = crowd.clients("checkout")[0].checkout
    return checkout.Tokenize(store_request(card, customer), timeout=TIMEOUT).card.token, card.pan


# --- one card, one token --------------------------------------------------------------------------------------------


def test_fifty_parallel_stores_of_one_card_give_one_token_and_a_card_that_opens(crowd: Crowd) -> None:
    for _ in range(4):
        card, customer, order = fresh_typed_card(), new_customer(), new_order()

        ended = at_once(crowd.tokenize([store_request(card, customer)] * 50))

        assert codes(ended) == {OK: 50}
        (token,) = {each.answer.card.token for each in ended}
        with direct(crowd.url) as connection:
            rows = connection.execute(select(cards.c.token).where(cards.c.customer_id == customer)).all()
            versions = connection.execute(
                select(card_secrets.c.record_version).where(card_secrets.c.token == token)
            ).all()
            given = connection.execute(select(consents.c.consent_id).where(consents.c.customer_id == customer)).all()
        assert [row.token for row in rows] == [token]
        # Each of them was carried out: sealed anew, under a consent of its own.
        assert [row.record_version for row in versions] == [50]
        assert len(given) == 50
        grant = crowd.clients("checkout")[0].checkout.IssueGrant(
            grant_request(order=order, customer=customer, token=token), timeout=TIMEOUT
        )
        released = crowd.clients("processor")[0].processor.Detokenize(
            redeem_request(grant.grant, order), timeout=TIMEOUT
        )
        assert released.pan == card.pan


def test_parallel_stores_of_one_card_for_several_customers_keep_apart(crowd: Crowd) -> None:
    card, customers = fresh_typed_card(), [new_customer() for _ in range(5)]

    ended = at_once(crowd.tokenize([store_request(card, customer) for customer in customers * 10]))

    assert codes(ended) == {OK: 50}
    tokens = {customer: {each.answer.card.token for each in ended[n::5]} for n, customer in enumerate(customers)}
    assert all(len(own) == 1 for own in tokens.values())
    assert len(set.union(*tokens.values())) == 5


def test_fifty_parallel_calls_with_one_key_are_one_effect(crowd: Crowd) -> None:
    card, customer = fresh_typed_card(), new_customer()

    ended = at_once(crowd.tokenize([store_request(card, customer, idempotency_key=new_key())] * 50))

    assert codes(ended) == {OK: 50}
    assert len({each.answer.card.token for each in ended}) == 1
    with direct(crowd.url) as connection:
        given = connection.execute(select(consents.c.consent_id).where(consents.c.customer_id == customer)).all()
    assert len(given) == 1


def test_of_two_requests_under_one_key_one_is_carried_out(crowd: Crowd) -> None:
    mine, other, customer, key = fresh_typed_card(), fresh_typed_card(), new_customer(), new_key()

    ended = at_once(crowd.tokenize([store_request(card, customer, idempotency_key=key) for card in (mine, other) * 15]))

    assert codes(ended) == {OK: 15, grpc.StatusCode.ALREADY_EXISTS: 15}
    assert len({each.answer.card.token for each in ended if each.answer}) == 1
    with direct(crowd.url) as connection:
        rows = connection.execute(select(cards.c.last4).where(cards.c.customer_id == customer)).all()
    assert len(rows) == 1


def test_of_many_one_time_tokens_under_one_key_one_is_usable(crowd: Crowd) -> None:
    card, order, key = fresh_typed_card(), new_order(), new_key()

    ended = at_once(crowd.tokenize([once_request(card, order, idempotency_key=key)] * 30))
    last = at_once(crowd.tokenize([once_request(card, order, idempotency_key=key)]))

    assert codes(ended).keys() <= {OK, BUSY}
    assert codes(last) == {OK: 1}
    tokens = [each.answer.one_time_token for each in (*ended, *last) if each.answer]
    assert len(set(tokens)) == len(tokens)
    issued = at_once(crowd.issue([grant_request(order=order, one_time_token=token) for token in tokens]))
    assert codes(issued)[OK] == 1
    assert issued[-1].code is OK
    with direct(crowd.url) as connection:
        rows = connection.execute(select(once_keys.c.state).where(once_keys.c.order_id == order)).all()
    assert [row.state for row in rows].count("open") == 1


# --- one grant, one release -----------------------------------------------------------------------------------------


def test_forty_parallel_redemptions_of_one_grant_give_one_release(crowd: Crowd) -> None:
    customer = new_customer()
    token, pan = stored_token(crowd, customer)
    for _ in range(12):
        order = new_order()
        issued = at_once(crowd.issue([grant_request(order=order, customer=customer, token=token)]))

        ended = at_once(crowd.redeem([redeem_request(issued[0].answer.grant, order)] * 40))

        assert codes(ended) == {OK: 1, REFUSED: 39}
        assert {each.text for each in ended if each.code is REFUSED} == {"refused"}
        assert [each.answer.pan for each in ended if each.answer] == [pan]
        assert crowd.released(order=order) == 1


def test_forty_parallel_redemptions_for_one_one_time_token_give_one_release(crowd: Crowd) -> None:
    for _ in range(10):
        card, order = fresh_typed_card(with_security_code=True), new_order()
        once = at_once(crowd.tokenize([once_request(card, order)]))[0].answer.one_time_token
        issued = at_once(crowd.issue([grant_request(order=order, one_time_token=once)]))

        ended = at_once(crowd.redeem([redeem_request(issued[0].answer.grant, order)] * 40))

        assert codes(ended) == {OK: 1, REFUSED: 39}
        assert [(each.answer.pan, each.answer.security_code) for each in ended if each.answer] == [
            (card.pan, card.security_code)
        ]
        assert crowd.released(order=order) == 1


def test_parallel_redemptions_of_many_grants_release_each_once(crowd: Crowd) -> None:
    customer = new_customer()
    known = dict(stored_token(crowd, customer) for _ in range(4))
    orders = {new_order(): token for token in known for _ in range(5)}
    issued = at_once(
        crowd.issue([grant_request(order=order, customer=customer, token=token) for order, token in orders.items()])
    )
    assert codes(issued) == {OK: 20}
    attempts = list(zip(orders.items(), (each.answer.grant for each in issued), strict=True)) * 10

    ended = at_once(crowd.redeem([redeem_request(grant, order) for (order, _), grant in attempts]))

    assert codes(ended) == {OK: 20, REFUSED: 180}
    for ((order, token), _), each in zip(attempts, ended, strict=True):
        assert each.answer is None or each.answer.pan == known[token], order


def test_parallel_grants_for_one_order_leave_one_open(crowd: Crowd) -> None:
    customer = new_customer()
    token, pan = stored_token(crowd, customer)
    for _ in range(3):
        order = new_order()

        ended = at_once(crowd.issue([grant_request(order=order, customer=customer, token=token)] * 30))

        assert codes(ended).keys() <= {OK, BUSY}
        assert codes(ended)[OK] >= 1
        with direct(crowd.url) as connection:
            states = connection.execute(select(grants.c.state).where(grants.c.order_id == order)).all()
        assert Counter(row.state for row in states) == {"open": 1, "revoked": codes(ended)[OK] - 1}
        redeemed = at_once(crowd.redeem([redeem_request(each.answer.grant, order) for each in ended if each.answer]))
        assert codes(redeemed)[OK] == 1
        assert [each.answer.pan for each in redeemed if each.answer] == [pan]


def test_parallel_grants_under_one_key_leave_one_open(crowd: Crowd) -> None:
    customer, order, key = new_customer(), new_order(), new_key()
    token, _ = stored_token(crowd, customer)
    request = grant_request(order=order, customer=customer, token=token, idempotency_key=key)

    ended = at_once(crowd.issue([request] * 50))

    assert codes(ended).keys() <= {OK, BUSY}
    again = at_once(crowd.issue([request]))
    assert codes(again) == {OK: 1}
    redeemed = at_once(
        crowd.redeem([redeem_request(each.answer.grant, order) for each in (*ended, *again) if each.answer])
    )
    assert codes(redeemed)[OK] == 1
    assert redeemed[-1].code is OK


# --- erasure --------------------------------------------------------------------------------------------------------


def test_nothing_is_released_after_the_card_was_erased(crowd: Crowd) -> None:
    for _ in range(15):
        customer, order = new_customer(), new_order()
        token, _ = stored_token(crowd, customer)
        issued = at_once(crowd.issue([grant_request(order=order, customer=customer, token=token)]))
        redeem = crowd.redeem([redeem_request(issued[0].answer.grant, order)] * 6)
        delete = crowd.delete([account_pb2.DeleteCardRequest(customer_id=customer, token=token)] * 2)

        ended = at_once([*redeem[:3], delete[0], *redeem[3:], delete[1]])

        deleted, redeemed = [ended[3], ended[-1]], [*ended[:3], *ended[4:-1]]
        assert codes(deleted) == {OK: 1, GONE: 1}
        assert codes(redeemed)[OK] <= 1
        assert codes(redeemed).keys() <= {OK, REFUSED}
        late = at_once(crowd.redeem([redeem_request(issued[0].answer.grant, order)] * 2))
        assert codes(late) == {REFUSED: 2}
        assert crowd.released(order=order) == codes(redeemed)[OK]
        with direct(crowd.url) as connection:
            left = connection.execute(select(card_secrets.c.token).where(card_secrets.c.token == token)).all()
        assert not left


def test_a_grant_redeemed_after_the_answer_to_deletion_is_refused_on_every_server(crowd: Crowd) -> None:
    for _ in range(10):
        customer, orders = new_customer(), [new_order() for _ in range(4)]
        token, _ = stored_token(crowd, customer)
        issued = at_once(crowd.issue([grant_request(order=o, customer=customer, token=token) for o in orders]))

        receipt = at_once(crowd.delete([account_pb2.DeleteCardRequest(customer_id=customer, token=token)]))
        ended = at_once(
            crowd.redeem([redeem_request(i.answer.grant, o) for i, o in zip(issued, orders, strict=True)] * 4)
        )

        assert receipt[0].answer.receipt.grants_revoked == 4
        assert codes(ended) == {REFUSED: 16}
        assert sum(crowd.released(order=order) for order in orders) == 0


def test_parallel_stores_deletions_and_redemptions_leave_no_half_card(crowd: Crowd) -> None:
    for _ in range(4):
        card, customer, orders = fresh_typed_card(), new_customer(), [new_order() for _ in range(5)]
        token = at_once(crowd.tokenize([store_request(card, customer)]))[0].answer.card.token
        issued = at_once(crowd.issue([grant_request(order=o, customer=customer, token=token) for o in orders]))

        ended = at_once(
            [
                *crowd.tokenize([store_request(card, customer)] * 10),
                *crowd.redeem([redeem_request(i.answer.grant, o) for i, o in zip(issued, orders, strict=True)] * 3),
                *crowd.delete([account_pb2.DeleteCardRequest(customer_id=customer, token=token)]),
                *crowd.tokenize([store_request(card, customer)] * 10),
            ]
        )

        assert codes([*ended[:10], *ended[26:]]).keys() <= {OK, BUSY}
        assert codes([*ended[:10], *ended[26:]])[OK] >= 1
        assert codes(ended[10:25]).keys() <= {OK, REFUSED}
        assert all(each.answer.pan == card.pan for each in ended[10:25] if each.answer)
        assert ended[25].code is OK
        with direct(crowd.url) as connection:
            shown = connection.execute(select(cards.c.token).where(cards.c.customer_id == customer)).all()
            sealed = connection.execute(
                select(card_secrets.c.token).where(card_secrets.c.token.in_([token, *(row.token for row in shown)]))
            ).all()
        assert sorted(shown) == sorted(sealed)
        assert len(shown) <= 1
        if shown:
            order = new_order()
            grant = at_once(crowd.issue([grant_request(order=order, customer=customer, token=shown[0].token)]))
            opened = at_once(crowd.redeem([redeem_request(grant[0].answer.grant, order)]))
            assert opened[0].answer.pan == card.pan


def test_parallel_revocation_and_redemption_agree(crowd: Crowd) -> None:
    customer = new_customer()
    token, _ = stored_token(crowd, customer)
    for number in range(10):
        order = new_order()
        issued = at_once(crowd.issue([grant_request(order=order, customer=customer, token=token, amount=money(1))]))
        grant = issued[0].answer.grant
        revoke = (crowd.clients("checkout")[0].checkout.RevokeGrant, checkout_pb2.RevokeGrantRequest(grant=grant))
        redeem = crowd.redeem([redeem_request(grant, order, amount=money(1))] * 2)

        ended = at_once([revoke, *redeem] if number % 2 else [*redeem, revoke])
        revoked, redeemed = (ended[0], ended[1:]) if number % 2 else (ended[-1], ended[:-1])

        # Either it was used and cannot be taken back, or it was taken back and is not used.
        used = codes(redeemed)[OK]
        assert revoked.code is (grpc.StatusCode.FAILED_PRECONDITION if used else OK)
        assert crowd.released(order=order) == used
