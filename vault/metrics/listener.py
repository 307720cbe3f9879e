"""Shows the metrics page over plain HTTP: one thread, one request at a time, nothing but GET /metrics."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PATIENCE = 2.0
"""Seconds that a client may take over its request and its answer together; others wait meanwhile."""


class Listener:
    """Answers until it is stopped."""

    def __init__(self, host: str, port: int, page: Callable[[], bytes]) -> None:
        """Listen. Port 0 takes a free one. Raises `OSError`."""

        class Handler(_Handler):
            answer = staticmethod(page)

        self._server = _Server((host, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="metrics", daemon=True)

    @property
    def address(self) -> str:
        """Where it listens, as `host:port`."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _Server(HTTPServer):
    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """As the base of the base: HTTP's own asks the name service who we are."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "", 0

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer one client. A timeout of the socket alone would begin anew with every byte that drips in."""
        enough = threading.Timer(_PATIENCE, _hang_up, (request,))
        enough.daemon = True
        enough.start()
        try:
            super().finish_request(request, client_address)
        finally:
            enough.cancel()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is nothing to talk about."""


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    timeout = _PATIENCE
    answer: Callable[[], bytes]
    server_version = "cardvault"
    sys_version = ""

    def do_GET(self) -> None:
        """The page."""
        is_it = self.path == PATH
        body = self.answer() if is_it else b"see /metrics\n"
        self.send_response(HTTPStatus.OK if is_it else HTTPStatus.NOT_FOUND)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: its words would hold what a client sent."""
