"""What the shop and the processor share as web servers: a given socket, small bodies, and silence about exceptions."""

from __future__ import annotations

import logging
import resource
import socket
from collections.abc import Mapping
from types import TracebackType
from urllib.parse import parse_qsl

import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 32 * 1024
_MOST_FIELDS = 32

log = logging.getLogger("storefront")


async def read_body(request: Request, kind: str) -> bytes:
    """The body, if it is of that content type and not too long.

    It stays in memory: multipart bodies, which frameworks spool to temporary files, are refused.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != kind:
        raise HTTPException(415)
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise HTTPException(413)
    return body


async def read_form(request: Request) -> Mapping[str, str]:
    """The fields of a posted form; of a repeated one the last."""
    body = await read_body(request, "application/x-www-form-urlencoded")
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict")
    except ValueError:
        # Out of the `except`, as this error may quote what was posted.
        pairs = None
    if pairs is None:
        raise HTTPException(400)
    return dict(pairs)


class Guard:
    """Answers for an exception that nobody caught, and tells of it no more than its type and place.

    Its text and the values around it may hold a card number: frameworks would print both.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:  # noqa: BLE001 - the outermost wall
            log.error("%s at %s", type(error).__name__, _place(error.__traceback__))  # noqa: TRY400 - no traceback
            if not begun:
                sorry = PlainTextResponse("Something went wrong here, and it is not your fault. Please go back.", 500)
                await sorry(scope, receive, send)


def _place(traceback: TracebackType | None) -> str:
    place = "nowhere"
    while traceback is not None:
        place = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place


def serve(app: ASGIApp, descriptor: int) -> None:
    """Serve behind a `Guard`, on a listening socket that the parent opened, until SIGTERM."""
    # A core dump holds whatever was in memory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # No access log: a shopper can paste anything into an address.
    config = uvicorn.Config(
        Guard(app),
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    with socket.socket(fileno=descriptor) as listening:
        uvicorn.Server(config).run(sockets=[listening])
