"""JSON posted to Vault, over connections that stay open. Nothing that a server does is done as often.

The connections are urllib3's, on which hvac stands too: it finds Vault, and believes no certificate but those of the
one authority. The answers are read by llhttp, the parser of Node.js (RFC 9112). Between the two a post is one write and
one read: urllib3's own way through a request takes four times the processor time, most of it for what Vault is never
sent, and each of its steps lets other threads of the process go first.
"""

from __future__ import annotations

import contextlib
import json
import queue
import ssl
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any
from urllib.parse import quote, urlsplit

import hvac.exceptions
import orjson
from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpResponseParser
from urllib3.connection import HTTPSConnection
from urllib3.exceptions import ProtocolError
from urllib3.util import wait_for_read, wait_for_write

from vault.keyring.login import VaultAddress

_FINAL = 200
_OK = 200
_FIRST_ERROR = 400
_HTTPS = 443
_CHUNK = 1 << 16
_SAFE = "/%!$&'()*+,;=:@~"
"""What a path may hold as it is (RFC 3986, 3.3), and what is encoded already."""


class Posts:
    """Posts JSON to Vault, from any number of threads; those above `connections` wait for a free one."""

    def __init__(self, address: VaultAddress, *, connections: int) -> None:
        """Touches no network."""
        parts = urlsplit(address.address)
        self.host, self.port = parts.hostname or "", parts.port or _HTTPS
        self._address = address
        self._target = parts.path.rstrip("/") + "/v1/"
        # As RFC 9110, 7.2 has it: without what the address may say about a user.
        self._authority = parts.netloc.rpartition("@")[2]
        self._closed = threading.Event()
        # The last one given back is the first to be taken: those that few need fall asleep, and Vault ends them.
        self._idle: deque[_Connection] = deque()
        # Not a semaphore: Ctrl-C in the middle of one would leave it locked for good.
        self._permits: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(connections):
            self._permits.put(None)

    def post(self, path: str, body: dict[str, Any], *, token: str) -> object:
        """What Vault answered with 200, parsed. Raises hvac's exceptions for errors, urllib3's, and `OSError`."""
        sent = self.begin(path, body, token=token)
        assert sent is not None, "it waits for a connection"
        return sent.answer()

    def begin(self, path: str, body: dict[str, Any], *, token: str, wait: bool = True) -> Sent | None:
        """Send without waiting for the answer. Raises as `post` does.

        Who has begun one already must not `wait` for a free connection for another: all others could do the same. None
        if there is none.
        """
        request = self._written(path, body, token)
        try:
            self._permits.get(block=wait)
        except queue.Empty:
            return None
        connection = None
        try:
            connection = self._last_used() or self._connected()
            connection.send(request)
            return Sent(connection, partial(self._give_back, connection))
        except BaseException:
            self._give_back(connection, is_fit=False)
            raise

    def close(self) -> None:
        """Close every connection that is not in use, and each of the others once its answer came."""
        self._closed.set()
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _last_used(self) -> _Connection | None:
        """An idle connection on which Vault is still there."""
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if connection.is_fit():
                    return connection
                connection.close()
        return None

    def _connected(self) -> _Connection:
        if self._closed.is_set():
            raise ConnectionError("closed")
        https = HTTPSConnection(
            self.host,
            self.port,
            timeout=self._address.connect_timeout.total_seconds(),
            ssl_context=_tls(),
            cert_reqs="CERT_REQUIRED",
            ca_certs=str(self._address.ca_file),
        )
        try:
            https.connect()
            return _Connection(https, longest_silence=self._address.timeout.total_seconds())
        except BaseException:
            https.close()
            raise

    def _give_back(self, connection: _Connection | None, *, is_fit: bool) -> None:
        try:
            if connection is not None and is_fit and not self._closed.is_set():
                self._idle.append(connection)
            elif connection is not None:
                connection.close()
        finally:
            self._permits.put(None)
        if self._closed.is_set():
            self.close()

    def _written(self, path: str, body: dict[str, Any], token: str) -> bytes:
        """Head and body in one piece: two writes are two records of TLS, and twice a thread lets others go first."""
        if not (token.isascii() and token.isprintable()):
            raise ValueError("a token with characters that no header may have")
        content = _json(body)
        head = (
            f"POST {quote(self._target + path, safe=_SAFE)} HTTP/1.1\r\n"
            f"Host: {self._authority}\r\n"
            "Accept-Encoding: identity\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n"
            "X-Vault-Request: true\r\n"
            f"X-Vault-Token: {token}\r\n"
            "\r\n"
        )
        return head.encode("ascii") + content


@dataclass(slots=True)
class Sent:
    """A post on its way. Either its answer is read to the end, or its connection is closed."""

    _connection: _Connection | None
    _give_back: Callable[..., None]

    def answer(self) -> object:
        """Wait for the answer, once. Returns and raises as `Posts.post` does."""
        connection, self._connection = self._connection, None
        assert connection is not None, "a post has one answer"
        is_fit = False
        try:
            status, content, is_fit = connection.receive()
        finally:
            # Never with an answer in it that would be taken for the next one's.
            self._give_back(is_fit=is_fit)
        if status >= _FIRST_ERROR:
            raise hvac.exceptions.VaultError.from_status(status, errors=_errors_in(content))
        return orjson.loads(content) if status == _OK else ""

    def abandon(self) -> None:
        """Give up on the answer, unless it came already."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._give_back(is_fit=False)


class _Connection:
    """An open connection to Vault, for one post at a time.

    Its socket never blocks: a read that waits by itself would ask first whether it may, and then once more.
    """

    __slots__ = ("_https", "_longest_silence", "_silent_since", "_socket")

    def __init__(self, https: HTTPSConnection, *, longest_silence: float) -> None:
        assert https.sock is not None, "it is connected"
        https.sock.setblocking(False)
        self._https = https
        self._socket: Any = https.sock
        self._longest_silence = longest_silence
        self._silent_since = 0.0

    def is_fit(self) -> bool:
        """Whether nothing is there to be read: neither its end nor words that nobody asked for."""
        return not self._socket.pending() and not wait_for_read(self._socket, timeout=0.0)

    def send(self, request: bytes) -> None:
        """All of it."""
        self._silent_since = monotonic()
        rest = memoryview(request)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except ssl.SSLWantWriteError:
                self._wait(wait_for_write)
            except ssl.SSLWantReadError:
                self._wait(wait_for_read)

    def receive(self) -> tuple[int, bytes, bool]:
        """Status and body of the answer, and whether another post may follow."""
        answer = _Answer()
        parser = answer.parser = HttpResponseParser(answer)
        trouble: BaseException | None = None
        try:
            while not answer.has_come():
                # Nothing is there yet, so soon: it would be asked for in vain, and then again.
                self._wait(wait_for_read)
                while not answer.has_come() and (part := self._read()) is not None:
                    if part:
                        parser.feed_data(part)
                    else:
                        answer.end()
                    self._silent_since = monotonic()
        except HttpParserCallbackError as e:
            trouble = e.__context__  # ours, as Ctrl-C may be: no fault of Vault's
        except (HttpParserError, HttpParserUpgrade):
            trouble = ProtocolError("no answer of HTTP")
        finally:
            answer.parser = None  # it refers to the answer, which may hold what is secret
        if trouble is not None:
            raise trouble
        return answer.status, b"".join(answer.parts), answer.allows_more

    def close(self) -> None:
        """Without a word."""
        self._https.close()

    def _read(self) -> bytes | None:
        """What has come; empty at the end of the connection, None if nothing has."""
        try:
            return bytes(self._socket.recv(_CHUNK))
        except ssl.SSLWantReadError:
            return None

    def _wait(self, until: Any) -> None:
        if not until(self._socket, timeout=max(0.0, self._silent_since + self._longest_silence - monotonic())):
            raise TimeoutError


class _Answer:
    """What llhttp tells of an answer."""

    __slots__ = ("_has_end", "_has_head", "_is_complete", "allows_more", "parser", "parts", "status")

    def __init__(self) -> None:
        self.parser: HttpResponseParser | None = None
        self.status = 0
        self.parts: list[bytes] = []
        self._is_complete = False
        self.allows_more = False
        self._has_head = False
        self._has_end = False
        """Whether its head says where it ends."""

    def has_come(self) -> bool:
        """Whether it is complete."""
        return self._is_complete

    def on_message_begin(self) -> None:
        """An answer begins. Behind the one that was asked for, there must be no other."""
        self.allows_more = False
        self._has_head = self._has_end = False

    def on_header(self, name: bytes, _value: bytes) -> None:
        """One line of its head."""
        self._has_end |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        """The head is complete."""
        if not self._is_complete:
            self._has_head, self.status = True, self._parser.get_status_code()

    def on_body(self, part: bytes) -> None:
        """A part of the body."""
        if not self._is_complete:
            self.parts.append(part)

    def on_message_complete(self) -> None:
        """The answer is complete, unless it was an interim one (RFC 9110, 15.2)."""
        if self.status >= _FINAL and not self._is_complete:
            self._is_complete = True
            self.allows_more = self._parser.should_keep_alive()

    def end(self) -> None:
        """The connection has ended. That ends an answer whose head names no end (RFC 9112, 6.3); others are cut off."""
        if not self._has_head or self._has_end or self.status < _FINAL:
            raise ProtocolError("closed before the answer was complete")
        self._is_complete = True

    @property
    def _parser(self) -> HttpResponseParser:
        assert self.parser is not None, "it reads"
        return self.parser


def _tls() -> ssl.SSLContext:
    """Verifies certificates and names. urllib3's own would write the session's secrets where the environment says."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _json(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:
        # A wrap whose bytes are no UTF-8: somebody wrote it past us. Vault refuses it, and none of those beside it.
        return json.dumps(body, separators=(",", ":")).encode("ascii")


def _errors_in(raw: bytes) -> list[str]:
    """Vault's words for what is wrong, if it is Vault that answers."""
    try:
        found = orjson.loads(raw)
    except ValueError:
        return []
    errors = found.get("errors") if isinstance(found, dict) else None
    return [str(each) for each in errors] if isinstance(errors, list) else []
