"""A browser without a browser: keeps the cookie, reads forms out of pages and posts them as they stand."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urlencode, urlsplit

from tests.support.cards import TypedCard


@dataclass(slots=True)
class Form:
    """One form of a page."""

    action: str
    fields: dict[str, str] = field(default_factory=dict)
    """What is posted if nobody touches it: an unticked box is not."""
    inputs: dict[str, dict[str, str | None]] = field(default_factory=dict)
    """Attributes of each input by name."""


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.tags.append((tag, told))
        if tag == "form":
            self.forms.append(Form(told["action"] or ""))
        name = told.get("name")
        if tag != "input" or not name:
            return
        form = self.forms[-1]
        is_left_out = told.get("type") in ("checkbox", "radio") and "checked" not in told
        if not is_left_out:
            form.fields[name] = told.get("value") or ""
        if name not in form.inputs:
            form.inputs[name] = told

    def handle_data(self, data: str) -> None:
        self.words.append(data)


class Page:
    """An answer."""

    def __init__(self, status: int, headers: http.client.HTTPMessage, raw: bytes, path: str) -> None:
        self.status = status
        self.headers = headers
        self.raw = raw
        self.path = path
        self._parser = _Parser()
        self._parser.feed(raw.decode())

    @property
    def text(self) -> str:
        """What stands on it, blanks made one."""
        return " ".join(" ".join(self._parser.words).split())

    @property
    def tags(self) -> list[tuple[str, dict[str, str | None]]]:
        """Every tag with its attributes."""
        return self._parser.tags

    def form(self, action: str, *, holding: str = "") -> Form:
        """The first that posts to `action` and has a field named `holding`."""
        return next(
            form for form in self._parser.forms if form.action == action and (not holding or holding in form.inputs)
        )

    def has_form(self, action: str) -> bool:
        """Whether there is one."""
        return any(form.action == action for form in self._parser.forms)


class Shopper:
    """One visitor. `seen` is every byte that ever came back, with the headers."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.cookie = ""
        self.seen: list[bytes] = []

    def get(self, path: str, **headers: str) -> Page:
        """A page, after redirects."""
        return self._call("GET", path, None, headers)

    def post(self, path: str, fields: Mapping[str, str], **headers: str) -> Page:
        """Post what one likes."""
        told = {"Content-Type": "application/x-www-form-urlencoded"} | headers
        return self._call("POST", path, urlencode(fields), told)

    def submit(self, form: Form, **changed: str) -> Page:
        """A form as it stands, but for `changed`."""
        return self.post(form.action, form.fields | changed)

    # --- what shoppers do ---

    def sign_in(self, name: str) -> Page:
        """As a customer."""
        return self.submit(self.get("/sign-in").form("/sign-in"), name=name)

    def choose(self, sku: str = "cups") -> Page:
        """Put one of it in the basket and go to the checkout."""
        self.submit(self.get("/").form("/basket"), sku=sku)
        return self.get("/checkout")

    def pay(self, card: TypedCard, *, keep: bool = False, sku: str = "cups") -> Page:
        """Buy with a card typed in; the page that follows."""
        form = self.choose(sku).form("/checkout", holding="number")
        return self.submit(form, **typed(card), **({"keep": "yes"} if keep else {}))

    def _call(self, method: str, path: str, body: str | None, headers: Mapping[str, str]) -> Page:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        try:
            connection.request(method, path, body, {"Cookie": self.cookie, **headers})
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        self.seen.append(str(response.headers).encode() + raw)
        if cookie := response.headers.get("set-cookie"):
            self.cookie = cookie.partition(";")[0]
        onward = response.headers.get("location")
        if onward:
            parts = urlsplit(onward)
            assert not parts.netloc, "a redirect stays in the shop"
            return self._call("GET", onward, None, {})
        return Page(response.status, response.headers, raw, path)


def typed(card: TypedCard) -> dict[str, str]:
    """The fields of the card form, the number in groups as people type it."""
    grouped = " ".join(card.pan[i : i + 4] for i in range(0, len(card.pan), 4))
    return {
        "number": grouped,
        "expiry": f"{card.month:02}/{card.year % 100:02}",
        "name": card.holder_name,
        "code": card.security_code,
    }
