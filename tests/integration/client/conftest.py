"""Every test of the client runs twice: blocking, and awaited on a loop of its own."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from vault.client import Account, AsyncAccount, AsyncCheckout, AsyncProcessor, Checkout, Options, Processor, TlsFiles
from vault.testing import Shop

KINDS: dict[tuple[str, str], Any] = {
    ("blocking", "checkout"): Checkout,
    ("blocking", "account"): Account,
    ("blocking", "processor"): Processor,
    ("awaited", "checkout"): AsyncCheckout,
    ("awaited", "account"): AsyncAccount,
    ("awaited", "processor"): AsyncProcessor,
}
_orders = itertools.count(1)


def new_order() -> str:
    """An order of this test's own."""
    return f"order-{next(_orders)}"


class Driven:
    """A client of either kind, whose methods return when the answer is there."""

    def __init__(self, client: Any, runner: asyncio.Runner | None) -> None:
        self.client = client
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            answer = method(*args, **kwargs)
            if inspect.iscoroutine(answer):
                assert self._runner is not None
                return self._runner.run(answer)
            if hasattr(answer, "__aiter__"):
                assert self._runner is not None
                return self._runner.run(_all(answer))
            return answer

        return call


async def _all(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


class Way:
    """One of the two kinds, and how to make clients of it."""

    def __init__(self, kind: str, closing: ExitStack) -> None:
        self.kind = kind
        self._closing = closing

    def client(
        self, shop: Shop, role: str, *, address: str = "", tls: TlsFiles | None = None, options: Options | None = None
    ) -> Driven:
        """A client, closed at the end of the test. Each awaited one has a loop of its own, so that threads can."""
        runner = self._closing.enter_context(asyncio.Runner()) if self.kind == "awaited" else None
        made = KINDS[self.kind, role](address or shop.address, tls or shop.tls(role), options)
        driven = Driven(made, runner)
        self._closing.callback(driven.close)
        return driven


@pytest.fixture(params=["blocking", "awaited"])
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    """Blocking, then awaited."""
    with ExitStack() as closing:
        yield Way(request.param, closing)


@pytest.fixture
def checkout(way: Way, cardvault: Shop) -> Driven:
    return way.client(cardvault, "checkout")


@pytest.fixture
def account(way: Way, cardvault: Shop) -> Driven:
    return way.client(cardvault, "account")


@pytest.fixture
def processor(way: Way, cardvault: Shop) -> Driven:
    return way.client(cardvault, "processor")
