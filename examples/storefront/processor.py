"""A payment processor to try the shop with: it redeems grants, and approves or declines by fixed rules.

It declines the published test number for declined payments, and amounts that end in 13 cents. An order is paid at most
once: asked again, it gives the answer of the first time. It keeps and logs no more than the last four digits.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import sqlite3
import string
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from examples.storefront.settings import Settings, kept_secret
from examples.storefront.web import read_body, serve
from vault.client import (
    AsyncProcessor,
    CallError,
    DidNotHappen,
    Money,
    OutcomeUnknown,
    PaymentOutcome,
    Refused,
    ReleasedCard,
)

KEY_FILE = "acquirer.key"
"""What the shop must show, as real processors give their shops a key."""

DECLINED_NUMBER = "4000000000000002"
DECLINED_CENTS = 13
_REPORT_PAUSE = 2.0
_REPORT_TRIES = 30

log = logging.getLogger("storefront.processor")


class Ledger:
    """What became of each order: one row, written once."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS payments (order_id TEXT PRIMARY KEY, outcome TEXT NOT NULL,"
            " network_transaction_id TEXT NOT NULL, minor_units INTEGER NOT NULL, currency TEXT NOT NULL,"
            " last4 TEXT NOT NULL) STRICT"
        )

    def find(self, order: str) -> dict[str, str] | None:
        """The answer that was given for an order."""
        row = self._db.execute(
            "SELECT outcome, network_transaction_id FROM payments WHERE order_id = ?", (order,)
        ).fetchone()
        return None if row is None else {"outcome": row[0], "network_transaction_id": row[1]}

    def record(self, order: str, outcome: str, reference: str, amount: Money, last4: str) -> dict[str, str]:
        """Write an answer down, or find the one that stands."""
        self._db.execute(
            "INSERT INTO payments VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (order, outcome, reference, amount.minor_units, amount.currency, last4),
        )
        found = self.find(order)
        assert found is not None, "just written"
        return found

    def close(self) -> None:
        """End."""
        self._db.close()


class Desk:
    """Takes payments, one at a time for each order."""

    def __init__(self, vault: AsyncProcessor, ledger: Ledger, key: str) -> None:
        self._vault = vault
        self._ledger = ledger
        self._key = key
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._reports: set[asyncio.Task[None]] = set()

    async def pay(self, request: Request) -> JSONResponse:
        """`POST /payments` with `grant`, `order`, `minor_units`, `currency`.

        409: the grant releases nothing. 502: the grant may be used up, ask the shop for another one. 503: the vault
        is away, come again with the same grant.
        """
        self._admit(request)
        try:
            told = json.loads(await read_body(request, "application/json"))
            grant, order = str(told["grant"]), str(told["order"])
            amount = Money(minor_units=int(told["minor_units"]), currency=str(told["currency"]))
        except (ValueError, KeyError, TypeError):
            return JSONResponse({"error": "malformed"}, 400)
        async with self._locks.setdefault(order, asyncio.Lock()):
            if (known := self._ledger.find(order)) is not None:
                return JSONResponse(known)
            try:
                card = await self._vault.detokenize(grant, order=order, amount=amount)
            except CallError as error:
                log.warning("no card for order %s: %s", order, error)
                return JSONResponse({"error": _trouble(error)}, _status(error))
            answer = self._ledger.record(order, *_decide(card, amount), amount, card.number.last4())
            log.info("order %s, card ••••%s: %s", order, card.number.last4(), answer["outcome"])
            del card
        self._report(grant, order, answer)
        return JSONResponse(answer)

    async def look(self, request: Request) -> JSONResponse:
        """`GET /payments/{order}`: what became of it, or 404. It waits for a payment that is under way."""
        self._admit(request)
        order = request.path_params["order"]
        async with self._locks.setdefault(order, asyncio.Lock()):
            known = self._ledger.find(order)
        return JSONResponse(known or {"error": "unknown"}, 200 if known else 404)

    async def cancel(self, request: Request) -> JSONResponse:
        """`DELETE /payments/{order}`: never pay it, unless it was paid already; says which."""
        self._admit(request)
        order = request.path_params["order"]
        async with self._locks.setdefault(order, asyncio.Lock()):
            return JSONResponse(self._ledger.record(order, "cancelled", "", Money(0, "EUR"), ""))

    async def end(self) -> None:
        """Give reports that are under way a moment."""
        if self._reports:
            await asyncio.wait(self._reports, timeout=2)

    def _admit(self, request: Request) -> None:
        shown = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(shown.encode(), self._key.encode()):
            raise HTTPException(401)

    def _report(self, grant: str, order: str, answer: dict[str, str]) -> None:
        """The shopper need not wait until the vault knows."""
        task = asyncio.create_task(self._report_until_heard(grant, order, answer))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _report_until_heard(self, grant: str, order: str, answer: dict[str, str]) -> None:
        for _ in range(_REPORT_TRIES):
            try:
                await self._vault.report_outcome(
                    grant,
                    order=order,
                    outcome=PaymentOutcome[answer["outcome"].upper()],
                    network_transaction_id=answer["network_transaction_id"],
                )
            except DidNotHappen as error:
                log.warning("report for order %s: %s", order, error)
                return
            except OutcomeUnknown:
                await asyncio.sleep(_REPORT_PAUSE)
            else:
                return
        log.error("the outcome of order %s could not be reported", order)


def _decide(card: ReleasedCard, amount: Money) -> tuple[str, str]:
    """Outcome and network transaction id. A real processor would ask the card's issuer here."""
    is_declined = card.number.reveal() == DECLINED_NUMBER or amount.minor_units % 100 == DECLINED_CENTS
    if is_declined:
        return "declined", ""
    return "approved", "ntid-" + "".join(secrets.choice(string.ascii_uppercase) for _ in range(15))


def _trouble(error: CallError) -> str:
    return "refused" if isinstance(error, DidNotHappen) else "away"


def _status(error: CallError) -> int:
    if isinstance(error, Refused):
        return 409
    # The vault says so where it could not and is to be asked again; otherwise its answer may be lost.
    is_lost = isinstance(error, OutcomeUnknown) and error.failure.retry_after is None and not error.failure.never_left
    return 502 if is_lost else 503


def make_app(settings: Settings) -> Starlette:
    """The processor's API."""
    key = kept_secret(settings.state / KEY_FILE)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        ledger = Ledger(settings.state / "processor.sqlite")
        async with AsyncProcessor(settings.vault, settings.tls(settings.processor)) as vault:
            app.state.desk = desk = Desk(vault, ledger, key)
            yield
            await desk.end()
        ledger.close()

    async def payments(request: Request) -> JSONResponse:
        desk: Desk = request.app.state.desk
        return await desk.pay(request)

    async def payment(request: Request) -> JSONResponse:
        desk: Desk = request.app.state.desk
        return await (desk.cancel(request) if request.method == "DELETE" else desk.look(request))

    async def health(_: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/payments", payments, methods=["POST"]),
            Route("/payments/{order}", payment, methods=["GET", "DELETE"]),
        ],
        lifespan=lifespan,
    )


if __name__ == "__main__":
    told = Settings.parse()
    serve(make_app(told), told.descriptor)
