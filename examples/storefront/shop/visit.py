"""One request of a shopper: who it is, that the form is ours, and the page that goes back."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from examples.storefront.shop import terms
from examples.storefront.shop.catalogue import money
from examples.storefront.shop.database import Database, Order
from examples.storefront.shop.sentences import NOTICES, TROUBLES
from examples.storefront.web import read_form

HERE = Path(__file__).parent
COOKIE = "visit"
_VISIT = re.compile(r"[a-z]{32}")

_HEADERS = {
    # No script at all, nothing from elsewhere, forms go to us alone, nobody frames us.
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def draw(letters: int) -> str:
    """A random name of letters alone, so that it can never look like a card number."""
    return "".join(secrets.choice(string.ascii_lowercase) for _ in range(letters))


class Headers:
    """Puts the headers on every answer, and `no-store` on all but pictures and style."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                is_static = scope["path"].startswith("/static/")
                headers["cache-control"] = "public, max-age=300" if is_static else "no-store"
            await send(message)

        await self._app(scope, receive, dressed if scope["type"] == "http" else send)


def _day(moment: datetime) -> str:
    return f"{moment:%d %b %Y}".lstrip("0")


def _time(moment: datetime) -> str:
    return f"{_day(moment)}, {moment:%H:%M:%S} UTC"


class Pages:
    """The templates."""

    def __init__(self) -> None:
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(money=money, day=_day, time=_time, reference=reference)
        self._templates.globals.update(troubles=TROUBLES, terms_version=terms.CURRENT)

    def render(self, name: str, **values: object) -> str:
        """The text of a page."""
        return self._templates.get_template(name).render(**values)


def reference(order: Order | str) -> str:
    """An order's number as people read it out."""
    name = order if isinstance(order, str) else order.id
    return name.removeprefix("order-")[:8].upper()


@dataclass(frozen=True, slots=True)
class Keeper:
    """What is needed to receive a shopper."""

    key: str
    """Signs cookies and forms."""
    database: Database
    pages: Pages

    def visit(self, request: Request) -> Visit:
        """The visit that the cookie names, or a new one."""
        name, _, seal = request.cookies.get(COOKIE, "").partition(".")
        is_ours = _VISIT.fullmatch(name) is not None and hmac.compare_digest(seal, self.seal("cookie", name))
        return Visit(self, request, name if is_ours else draw(32), is_new=not is_ours)

    def seal(self, use: str, text: str) -> str:
        """Nobody without the key can make it."""
        return hmac.new(self.key.encode(), f"{use}:{text}".encode(), hashlib.sha256).hexdigest()


class Visit:
    """One shopper's, from the first page to signing in or out."""

    def __init__(self, keeper: Keeper, request: Request, name: str, *, is_new: bool) -> None:
        self._keeper = keeper
        self._request = request
        self._is_new = is_new
        self.name = name
        self.customer = None if is_new else keeper.database.customer_of(name)

    @property
    def database(self) -> Database:
        """The shop's."""
        return self._keeper.database

    async def form(self) -> Mapping[str, str]:
        """What was posted, from a page that we gave to this very visit; 403 if it was not."""
        fields = await read_form(self._request)
        shown = fields.get("csrf", "")
        if self._is_new or not hmac.compare_digest(shown.encode(), self._keeper.seal("form", self.name).encode()):
            raise HTTPException(403)
        return fields

    def part(self, name: str) -> str:
        """Of the address."""
        return str(self._request.path_params[name])

    def query(self, name: str) -> str:
        """Of what follows the address."""
        return self._request.query_params.get(name, "")

    def signed_in(self) -> str:
        """The customer; without one, off to the page for signing in."""
        if self.customer is None:
            raise SignInFirst(self._request.url.path)
        return self.customer

    def begin_anew(self, customer: str | None) -> None:
        """Another name for the visit, so that nobody who planted the former one is signed in with it."""
        before, self.name, self._is_new, self.customer = self.name, draw(32), True, customer
        if customer is None:
            self.database.sign_out(before)
        else:
            self.database.sign_in(self.name, customer, before=before)

    def page(self, name: str, status: int = 200, **values: Any) -> Response:
        """A page for this shopper."""
        basket = self.database.basket(self.name)
        text = self._keeper.pages.render(
            name,
            path=self._request.url.path,
            customer=self.customer,
            csrf=self._keeper.seal("form", self.name),
            in_basket=sum(line.quantity for line in basket),
            notice=NOTICES.get(self.query("notice"), ""),
            **values,
        )
        return self._with_cookie(HTMLResponse(text, status))

    def go(self, path: str, notice: str = "") -> Response:
        """To another page, which is fetched anew: a reload posts nothing twice."""
        return self._with_cookie(RedirectResponse(path + (f"?notice={notice}" if notice else ""), 303))

    def _with_cookie(self, response: Response) -> Response:
        if self._is_new:
            value = f"{self.name}.{self._keeper.seal('cookie', self.name)}"
            # Over plain HTTP, as on loopback, a `Secure` cookie would be lost.
            is_https = self._request.url.scheme == "https"
            response.set_cookie(COOKIE, value, httponly=True, samesite="lax", secure=is_https, path="/")
        return response


class SignInFirst(Exception):
    """The page is for customers."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path
