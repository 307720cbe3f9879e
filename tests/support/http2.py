"""One unary call over a TLS connection of one's own making, for what a gRPC client cannot be told to do.

HTTP/2 (RFC 9113) and HPACK (RFC 7541) as far as one small call needs them. gRPC's server sends its own headers without
Huffman coding.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY = 0, 1, 4, 6, 7
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 1, 1, 4, 8, 32
_STATIC_ENTRIES = 61
_TIMEOUT = 10.0


def unary_call(port: int, context: ssl.SSLContext, path: str, message: bytes) -> tuple[str, Mapping[str, str]]:
    """The TLS version, and the headers and trailers of the answer. Raises `OSError` if the handshake fails."""
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        headers = (
            (":method", "POST"),
            (":scheme", "https"),
            (":path", path),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", "5S"),
        )
        tls.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(_SETTINGS, 0, 0, b"")
            + _frame(_HEADERS, _END_HEADERS, 1, b"".join(_literal(*header) for header in headers))
            + _frame(_DATA, _END_STREAM, 1, b"\0" + struct.pack(">I", len(message)) + message)
        )
        version = tls.version()
        assert version is not None, "the handshake is over"
        return version, _answer(tls)


def _answer(tls: ssl.SSLSocket) -> Mapping[str, str]:
    found: dict[str, str] = {}
    decoder = _Decoder()
    while True:
        length, kind, flags, stream = _header(_exactly(tls, 9))
        payload = _exactly(tls, length)
        if kind == _SETTINGS and not flags & _ACK:
            tls.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            tls.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            raise ConnectionError("the server said goodbye")
        elif kind == _HEADERS and stream == 1:
            assert flags & _END_HEADERS, "small enough for one frame"
            assert not flags & (_PADDED | _PRIORITY), "gRPC does not do that"
            found.update(decoder.headers(payload))
        if stream == 1 and flags & _END_STREAM and kind in (_DATA, _HEADERS):
            return found


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _header(raw: bytes) -> tuple[int, int, int, int]:
    return int.from_bytes(raw[:3], "big"), raw[3], raw[4], int.from_bytes(raw[5:], "big") & 0x7FFFFFFF


def _exactly(tls: ssl.SSLSocket, length: int) -> bytes:
    parts = b""
    while len(parts) < length:
        part = tls.recv(length - len(parts))
        if not part:
            raise ConnectionError("the server closed the connection")
        parts += part
    return parts


def _literal(name: str, value: str) -> bytes:
    """A header that is not indexed; all of ours are shorter than 127 octets."""
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


@dataclass(slots=True)
class _Decoder:
    dynamic: list[tuple[str, str]] = field(default_factory=list)

    def headers(self, block: bytes) -> Iterator[tuple[str, str]]:
        """Names and values; those of the static table as `static-<index>`."""
        rest = block
        while rest:
            first = rest[0]
            if first & 0x80:
                index, rest = _integer(rest, 7)
                yield self._entry(index)
                continue
            if first & 0xE0 == 0x20:
                _, rest = _integer(rest, 5)
                continue
            is_kept = bool(first & 0x40)
            index, rest = _integer(rest, 6 if is_kept else 4)
            if index:
                name = self._entry(index)[0]
            else:
                name, rest = _text(rest)
            value, rest = _text(rest)
            if is_kept:
                self.dynamic.insert(0, (name, value))
            yield name, value

    def _entry(self, index: int) -> tuple[str, str]:
        if index <= _STATIC_ENTRIES:
            return f"static-{index}", ""
        return self.dynamic[index - _STATIC_ENTRIES - 1]


def _integer(raw: bytes, bits: int) -> tuple[int, bytes]:
    limit = (1 << bits) - 1
    value, at, shift = raw[0] & limit, 1, 0
    if value == limit:
        while True:
            octet = raw[at]
            value += (octet & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not octet & 0x80:
                break
    return value, raw[at:]


def _text(raw: bytes) -> tuple[str, bytes]:
    is_huffman = bool(raw[0] & 0x80)
    length, rest = _integer(raw, 7)
    text = "<huffman>" if is_huffman else rest[:length].decode("latin-1")
    return text, rest[length:]
