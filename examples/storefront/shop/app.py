"""The shop's addresses, and what stands behind them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from examples.storefront.processor import KEY_FILE
from examples.storefront.settings import Settings, kept_secret
from examples.storefront.shop import terms
from examples.storefront.shop.account import Account
from examples.storefront.shop.acquirer import Acquirer
from examples.storefront.shop.catalogue import PRODUCTS, total
from examples.storefront.shop.checkout import Checkout
from examples.storefront.shop.database import Database
from examples.storefront.shop.payments import Payments
from examples.storefront.shop.visit import HERE, Headers, Keeper, Pages, SignInFirst, Visit
from vault.client import AsyncAccount, AsyncCheckout, Options

_NAME = re.compile(r"[A-Za-z](?:[ -]?[A-Za-z]){0,31}")
_INSIDE = re.compile(r"/[a-z/-]*")
_ACQUIRER = "acquirer"
"""The processor's name in the vault's configuration."""

_PATIENCE = Options(deadline=timedelta(seconds=6), attempt=timedelta(seconds=3))
"""What a shopper waits for before hearing that something is away."""

_SENTENCES = {
    400: ("We did not understand that", "Please go back and try once more."),
    403: ("This page was open for too long", "Please go back, load the page again and repeat what you did."),
    404: ("There is nothing here", "The address may be mistyped, or what was here is gone."),
}


@dataclass(frozen=True, slots=True)
class Shop:
    """What the addresses lead to."""

    keeper: Keeper
    checkout: Checkout
    account: Account


def _shop(request: Request) -> Shop:
    shop: Shop = request.app.state.shop
    return shop


def _page(show: Callable[[Shop, Visit], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        shop = _shop(request)
        visit = shop.keeper.visit(request)
        try:
            return await show(shop, visit)
        except SignInFirst as first:
            return visit.go(f"/sign-in?next={first.path}" if request.method == "GET" else "/sign-in")

    return endpoint


async def _catalogue(_: Shop, visit: Visit) -> Response:
    return visit.page("catalogue.html", products=PRODUCTS.values())


async def _basket(_: Shop, visit: Visit) -> Response:
    lines = visit.database.basket(visit.name)
    return visit.page("basket.html", lines=lines, total=total(lines))


async def _put(_: Shop, visit: Visit) -> Response:
    fields = await visit.form()
    sku, quantity = fields.get("sku", ""), fields.get("quantity", "")
    if sku not in PRODUCTS or re.fullmatch("[0-9]", quantity or "0") is None:
        raise HTTPException(400)
    held = {line.product.sku: line.quantity for line in visit.database.basket(visit.name)}
    visit.database.put(visit.name, sku, int(quantity) if quantity else held.get(sku, 0) + 1)
    return visit.go("/basket") if quantity else visit.go("/", "added")


async def _signing_in(_: Shop, visit: Visit) -> Response:
    return visit.page("sign_in.html", next=visit.query("next"), mistake="")


async def _sign_in(_: Shop, visit: Visit) -> Response:
    fields = await visit.form()
    name, onward = fields.get("name", "").strip(), fields.get("next", "")
    if _NAME.fullmatch(name) is None:
        mistake = "Please use 1 to 32 letters, with single blanks or dashes between them."
        return visit.page("sign_in.html", 422, next=onward, mistake=mistake)
    visit.begin_anew(re.sub("[ -]", "-", name.lower()))
    # A path of ours and nothing else: `//elsewhere` would leave the shop.
    is_inside = _INSIDE.fullmatch(onward) is not None and not onward.startswith("//")
    return visit.go(onward if is_inside else "/account")


async def _sign_out(_: Shop, visit: Visit) -> Response:
    await visit.form()
    visit.begin_anew(None)
    return visit.go("/")


async def _terms(_: Shop, visit: Visit) -> Response:
    consent = terms.consent_to(terms.CURRENT)
    assert consent is not None, "the current terms exist"
    return visit.page("terms.html", text=terms.TEXTS[terms.CURRENT], sha256=consent.terms_sha256.hex())


async def _show_checkout(shop: Shop, visit: Visit) -> Response:
    return await shop.checkout.show(visit)


async def _pay(shop: Shop, visit: Visit) -> Response:
    return await shop.checkout.pay(visit)


async def _again(shop: Shop, visit: Visit) -> Response:
    return await shop.checkout.again(visit, visit.part("order"))


async def _anew(shop: Shop, visit: Visit) -> Response:
    return await shop.checkout.anew(visit, visit.part("order"))


async def _orders(shop: Shop, visit: Visit) -> Response:
    return await shop.account.history(visit)


async def _order(shop: Shop, visit: Visit) -> Response:
    return await shop.account.order(visit, visit.part("order"))


async def _account(shop: Shop, visit: Visit) -> Response:
    return await shop.account.show(visit)


async def _change_account(shop: Shop, visit: Visit) -> Response:
    return await shop.account.change(visit, visit.part("what"))


async def _health(_: Request) -> Response:
    return PlainTextResponse("ok")


async def _sorry(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    title, advice = _SENTENCES.get(status, _SENTENCES[400])
    visit = _shop(request).keeper.visit(request)
    return visit.page("sorry.html", status, title=title, advice=advice)


ROUTES = [
    Route("/", _page(_catalogue)),
    Route("/health", _health),
    Route("/basket", _page(_basket)),
    Route("/basket", _page(_put), methods=["POST"]),
    Route("/sign-in", _page(_signing_in)),
    Route("/sign-in", _page(_sign_in), methods=["POST"]),
    Route("/sign-out", _page(_sign_out), methods=["POST"]),
    Route("/terms", _page(_terms)),
    Route("/checkout", _page(_show_checkout)),
    Route("/checkout", _page(_pay), methods=["POST"]),
    Route("/orders", _page(_orders)),
    Route("/orders/{order}", _page(_order)),
    Route("/orders/{order}/again", _page(_again), methods=["POST"]),
    Route("/orders/{order}/anew", _page(_anew), methods=["POST"]),
    Route("/account", _page(_account)),
    Route("/account/{what:str}", _page(_change_account), methods=["POST"]),
    Mount("/static", StaticFiles(directory=HERE / "static")),
]


def make_app(settings: Settings) -> Starlette:
    """The shop."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        database = Database(settings.state / "shop.sqlite")
        keeper = Keeper(kept_secret(settings.state / "cookies.key"), database, Pages())
        acquirer = Acquirer(settings.acquirer, kept_secret(settings.state / KEY_FILE))
        async with (
            AsyncCheckout(settings.vault, settings.tls(settings.checkout), _PATIENCE) as checkout,
            AsyncAccount(settings.vault, settings.tls(settings.account), _PATIENCE) as account,
        ):
            payments = Payments(checkout, acquirer, database, processor=_ACQUIRER)
            app.state.shop = Shop(keeper, Checkout(checkout, account, payments), Account(account))
            yield
        database.close()

    return Starlette(
        routes=ROUTES,
        middleware=[
            Middleware(Headers),
            # A name that somebody else's DNS points at loopback is not ours.
            Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]),
        ],
        exception_handlers={HTTPException: _sorry},
        lifespan=lifespan,
    )
