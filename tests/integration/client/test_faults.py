"""What the client makes of lost answers, dead servers and full ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import grpc
import pytest

from tests.integration.client.conftest import Driven, Way, new_order
from tests.integration.client.test_calls import ADA, AMOUNT, CONSENT, granted, stored
from tests.support.installation import eventually
from tests.support.proxy import Proxy, proxy_to
from tests.support.raw import scalar
from vault.client import (
    AsyncCheckout,
    Checkout,
    ClientClosed,
    DidNotHappen,
    ImportItem,
    NotAvailable,
    Options,
    OutcomeUnknown,
    Overloaded,
    StoredCard,
    Unavailable,
)
from vault.testing import CardVault, Shop, fresh_card
from vault.v1 import checkout_pb2

SHORT = timedelta(seconds=1)


@pytest.fixture
def proxy(cardvault: Shop) -> Iterator[Proxy]:
    with proxy_to(cardvault.address) as proxy:
        yield proxy


def in_background(act: Callable[[], Any]) -> Future[Any]:
    """Carry it out on a thread of its own."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(act)
    pool.shutdown(wait=False)
    return future


def events(vault: CardVault, order_or_customer: str, outcome: str, event: str) -> int:
    url = f"sqlite:///{vault.directory / 'cardvault.sqlite'}"
    where = f"event = '{event}' AND outcome = '{outcome}' AND order_id = '{order_or_customer}'"
    return int(scalar(url, f"SELECT count(*) FROM audit_events WHERE {where}"))


# --- lost answers ---------------------------------------------------------------------------------------------------


def test_a_lost_answer_is_fetched_with_the_same_key_and_there_is_one_card(
    way: Way, cardvault: Shop, account: Driven, proxy: Proxy
) -> None:
    checkout = way.client(cardvault, "checkout", address=proxy.address)
    checkout.wait_ready()
    card = fresh_card()

    proxy.hold()
    asked = in_background(lambda: checkout.tokenize(card, customer=ADA, consent=CONSENT))
    eventually(lambda: list(account.list_cards(ADA)))
    assert not asked.done()
    proxy.cut()

    cards = list(account.list_cards(ADA))
    assert [card.token for card in cards] == [asked.result(timeout=15).card.token]
    assert len(account.export_customer(ADA).consents) == 1
    assert proxy.connections == 2


def test_a_lost_receipt_is_the_same_receipt(
    way: Way, cardvault: Shop, checkout: Driven, account: Driven, proxy: Proxy
) -> None:
    token = stored(checkout).token
    cut_off = way.client(cardvault, "account", address=proxy.address)
    cut_off.wait_ready()

    proxy.hold()
    asked = in_background(lambda: cut_off.delete_card(ADA, token))
    eventually(lambda: not list(account.list_cards(ADA)))
    proxy.cut()

    receipt = asked.result(timeout=15)
    assert receipt.cards == 1
    assert account.delete_card(ADA, token, idempotency_key=receipt.idempotency_key).event_id == receipt.event_id


def test_a_release_whose_answer_is_lost_is_not_tried_again(
    way: Way, cardvault: Shop, checkout: Driven, cardvault_server: CardVault, proxy: Proxy
) -> None:
    order = f"{cardvault.tenant}-{way.kind}"
    grant = granted(checkout, order)
    processor = way.client(cardvault, "processor", address=proxy.address)
    processor.wait_ready()

    proxy.hold()
    asked = in_background(lambda: processor.detokenize(grant, order=order, amount=AMOUNT))
    eventually(lambda: events(cardvault_server, order, "ok", "card.released"))
    proxy.cut()

    with pytest.raises(OutcomeUnknown, match="ask the shop for a new grant"):
        asked.result(timeout=15)
    assert events(cardvault_server, order, "refused", "card.released") == 0
    fresh = granted(checkout, order)
    assert processor.detokenize(fresh, order=order, amount=AMOUNT).number


def test_a_read_is_repeated_as_well(way: Way, cardvault: Shop, checkout: Driven, proxy: Proxy) -> None:
    token = stored(checkout).token
    account = way.client(cardvault, "account", address=proxy.address)
    account.wait_ready()

    proxy.hold()
    asked = in_background(lambda: account.get_card(ADA, token))
    time.sleep(0.3)
    proxy.cut()

    assert asked.result(timeout=15).token == token


def test_an_answer_that_never_comes_is_asked_for_once_more_and_then_unknown(
    way: Way, cardvault: Shop, account: Driven, proxy: Proxy
) -> None:
    options = Options(attempt=timedelta(milliseconds=300))
    checkout = way.client(cardvault, "checkout", address=proxy.address, options=options)
    checkout.wait_ready()
    card = fresh_card()

    proxy.hold()
    began = time.monotonic()
    with pytest.raises(OutcomeUnknown) as raised:
        checkout.tokenize(card, customer=ADA, consent=CONSENT, deadline=SHORT)
    took = time.monotonic() - began
    proxy.release()

    assert (raised.value.code, raised.value.error_id) == (grpc.StatusCode.DEADLINE_EXCEEDED, "")
    assert 0.5 < took < 1.3
    again = checkout.tokenize(card, customer=ADA, consent=CONSENT, idempotency_key=raised.value.idempotency_key)
    assert [card.token for card in account.list_cards(ADA)] == [again.card.token]


# --- servers that come and go ---------------------------------------------------------------------------------------


def test_a_restart_is_waited_for(cardvault_server: CardVault, checkout: Driven, account: Driven) -> None:
    before = stored(checkout).token

    cardvault_server.kill_server()
    asked = in_background(lambda: stored(checkout).token)
    time.sleep(0.2)
    cardvault_server.start_server()

    after = asked.result(timeout=20)
    assert {card.token for card in account.list_cards(ADA)} == {before, after}


def test_a_dead_server_costs_no_more_than_the_deadline(
    cardvault_server: CardVault, checkout: Driven, processor: Driven, account: Driven
) -> None:
    order = new_order()
    token = stored(checkout).token
    grant = granted(checkout, order, StoredCard(ADA, token))

    with cardvault_server.server_away():
        for act in (
            lambda: checkout.tokenize(fresh_card(), order="o", deadline=SHORT),
            lambda: list(account.list_cards(ADA, deadline=SHORT)),
            lambda: processor.detokenize(grant, order=order, amount=AMOUNT, deadline=SHORT),
        ):
            began = time.monotonic()
            with pytest.raises(Unavailable) as raised:
                act()
            assert time.monotonic() - began < 1.3
            assert raised.value.error_id == ""

    # It was never sent, so it was not used up.
    assert processor.detokenize(grant, order=order, amount=AMOUNT).number


def test_without_keys_the_account_page_works_and_the_rest_says_unavailable(
    cardvault_server: CardVault, checkout: Driven, processor: Driven, account: Driven
) -> None:
    order = f"sealed-{new_order()}"
    token = stored(checkout).token
    grant = granted(checkout, order, StoredCard(ADA, token))

    with cardvault_server.keys_away():
        with pytest.raises(Unavailable) as raised:
            checkout.tokenize(fresh_card(), customer=ADA, consent=CONSENT, deadline=SHORT)
        assert raised.value.error_id.startswith("req_")
        with pytest.raises(Unavailable):
            processor.detokenize(grant, order=order, amount=AMOUNT, deadline=SHORT)
        assert [card.token for card in account.list_cards(ADA)] == [token]

    checkout.wait_ready()
    assert processor.detokenize(grant, order=order, amount=AMOUNT).number


def test_the_budget_ends_repeats_while_nothing_comes_back(way: Way, cardvault: Shop, proxy: Proxy) -> None:
    options = Options(retry_tokens=4, attempt=timedelta(milliseconds=100), first_pause=timedelta(milliseconds=1))
    checkout = way.client(cardvault, "checkout", address=proxy.address, options=options)
    checkout.wait_ready()
    proxy.hold()

    took = []
    for _ in range(4):
        began = time.monotonic()
        with pytest.raises(OutcomeUnknown):
            checkout.tokenize(fresh_card(), order="o", deadline=timedelta(seconds=3))
        took.append(time.monotonic() - began)

    assert max(took) < 1


def test_a_client_comes_out_of_an_outage_with_its_patience_whole(
    way: Way, cardvault: Shop, cardvault_server: CardVault
) -> None:
    checkout = way.client(cardvault, "checkout", options=Options(retry_tokens=2))

    with cardvault_server.server_away():
        for _ in range(5):
            with pytest.raises(Unavailable):
                checkout.tokenize(fresh_card(), order="o", deadline=timedelta(milliseconds=300))
        asked = in_background(lambda: checkout.tokenize(fresh_card(), order="o"))
        time.sleep(0.5)

    assert asked.result(timeout=15).one_time_token


# --- the rest -------------------------------------------------------------------------------------------------------


def test_many_threads_share_a_client(cardvault: Shop) -> None:
    checkout = cardvault.checkout

    with ThreadPoolExecutor(16) as pool:
        tokens = list(
            pool.map(lambda _: checkout.tokenize(fresh_card(), customer=ADA, consent=CONSENT).card, range(64))
        )

    assert len({card.token for card in tokens if card}) == 64


def test_many_tasks_share_a_client_and_one_that_is_cancelled_is_not_repeated(cardvault: Shop, proxy: Proxy) -> None:
    async def main() -> None:
        async with cardvault.async_checkout() as checkout:
            done = await asyncio.gather(
                *(checkout.tokenize(fresh_card(), customer=ADA, consent=CONSENT) for _ in range(64))
            )
            assert len({each.card.token for each in done if each.card}) == 64

        async with type(cardvault.async_account())(proxy.address, cardvault.tls("account")) as account:
            await account.wait_ready()
            proxy.hold()
            task = asyncio.ensure_future(account.get_card(ADA, "tok_none"))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            proxy.release()
            with pytest.raises(NotAvailable):
                await account.get_card(ADA, "tok_none")
        assert proxy.connections == 1

    asyncio.run(main())


def test_a_closed_client_says_so(way: Way, cardvault: Shop) -> None:
    checkout = way.client(cardvault, "checkout")
    checkout.wait_ready()

    checkout.close()
    checkout.close()

    with pytest.raises(ClientClosed, match="closed") as raised:
        checkout.tokenize(fresh_card(), order="o")
    assert isinstance(raised.value, DidNotHappen)
    assert isinstance(raised.value, RuntimeError)
    with pytest.raises(ClientClosed):
        checkout.wait_ready()


class _Lost(grpc.RpcError):
    """As gRPC tells of a connection that broke."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "Socket closed"

    def trailing_metadata(self) -> tuple[()]:
        return ()


class _Scripted:
    """A channel whose first answer is lost, and whose second says that the one item was not stored."""

    def __init__(self, *, is_awaited: bool) -> None:
        self._is_awaited = is_awaited
        self._calls = 0

    def unary_unary(self, _path: str, **_: Any) -> Callable[..., Any]:
        return self._send_later if self._is_awaited else self._send

    def _send(self, *_: Any, **__: Any) -> bytes:
        self._calls += 1
        if self._calls == 1 and not self._is_awaited:
            raise _Lost
        if self._calls == 1:
            none = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, none, none, details="Socket closed")
        failure = checkout_pb2.BatchTokenizeFailure(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message="full")
        results = [checkout_pb2.BatchTokenizeResult(failure=failure)]
        return checkout_pb2.BatchTokenizeResponse(results=results).SerializeToString()

    async def _send_later(self, *_: Any, **__: Any) -> bytes:
        return self._send()

    def close(self) -> Any:
        return asyncio.sleep(0) if self._is_awaited else None


def test_an_item_that_failed_after_a_lost_answer_may_have_been_stored(
    way: Way, cardvault: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_awaited = way.kind == "awaited"
    kind = AsyncCheckout if is_awaited else Checkout
    monkeypatch.setattr(kind, "_open", lambda *_: _Scripted(is_awaited=is_awaited))
    checkout = way.client(cardvault, "checkout")
    item = ImportItem(customer=ADA, card=fresh_card(), consent=CONSENT, idempotency_key="import:1")

    (after_loss,) = checkout.batch_tokenize([item])
    (at_once,) = checkout.batch_tokenize([item])

    assert (type(after_loss.error), after_loss.error.idempotency_key) == (OutcomeUnknown, "import:1")
    assert type(at_once.error) is Overloaded


class _ClosedJustThen:
    """A channel of a client that another thread or task closes before the call begins."""

    def __init__(self, channel: Any, client: Any, *, is_awaited: bool) -> None:
        self._channel, self._client, self._is_awaited = channel, client, is_awaited

    def unary_unary(self, path: str, **facts: Any) -> Callable[..., Any]:
        def send(*args: Any, **more: Any) -> Any:
            self._client.close()
            return self._channel.unary_unary(path, **facts)(*args, **more)

        async def send_later(*args: Any, **more: Any) -> Any:
            await self._client.close()
            return await self._channel.unary_unary(path, **facts)(*args, **more)

        return send_later if self._is_awaited else send

    def close(self) -> Any:
        return self._channel.close()


def test_a_call_that_begins_while_its_client_is_closed_did_not_happen(
    way: Way, cardvault: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_awaited = way.kind == "awaited"
    kind: Any = AsyncCheckout if is_awaited else Checkout
    opened = kind._open
    monkeypatch.setattr(
        kind, "_open", lambda client, pem: _ClosedJustThen(opened(client, pem), client, is_awaited=is_awaited)
    )

    with pytest.raises(ClientClosed):
        way.client(cardvault, "checkout").tokenize(fresh_card(), order="o")


def test_closing_a_blocking_client_leaves_calls_under_way_unknown(cardvault: Shop, proxy: Proxy) -> None:
    checkout = type(cardvault.checkout)(proxy.address, cardvault.tls("checkout"))
    processor = type(cardvault.processor)(proxy.address, cardvault.tls("processor"))
    account = type(cardvault.account)(proxy.address, cardvault.tls("account"))
    for each in (checkout, processor, account):
        each.wait_ready()
    proxy.hold()
    asked = [
        in_background(lambda: checkout.tokenize(fresh_card(), customer=ADA, consent=CONSENT, idempotency_key="once")),
        in_background(lambda: processor.detokenize("grant_" + "a" * 40, order="o", amount=AMOUNT)),
    ]
    read = in_background(lambda: account.get_card(ADA, "tok_none"))
    time.sleep(0.5)

    for each in (checkout, processor, account):
        each.close()

    errors = [each.exception(timeout=10) for each in asked]
    assert [type(each) for each in errors] == [OutcomeUnknown, OutcomeUnknown]
    assert getattr(errors[0], "idempotency_key", "") == "once"
    assert isinstance(read.exception(timeout=10), ClientClosed)
    proxy.release()


def test_closing_an_awaited_client_leaves_calls_under_way_unknown(cardvault: Shop, proxy: Proxy) -> None:
    async def main() -> None:
        checkout = type(cardvault.async_checkout())(proxy.address, cardvault.tls("checkout"))
        await checkout.wait_ready()
        proxy.hold()
        tasks = [
            asyncio.ensure_future(
                checkout.tokenize(fresh_card(), customer=ADA, consent=CONSENT, idempotency_key=f"a{n}")
            )
            for n in range(3)
        ]
        await asyncio.sleep(0.5)
        tasks[2].cancel()

        await checkout.close()

        errors = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=10)
        assert [type(each) for each in errors] == [OutcomeUnknown, OutcomeUnknown, asyncio.CancelledError]
        proxy.release()

    asyncio.run(main())
