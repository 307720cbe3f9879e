"""How a client connects and how patient it is."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

_TRIES = 3


class UnusableCertificates(ValueError):
    """The files do not belong together, or are no PEM certificate, key and authority."""


@dataclass(frozen=True, slots=True)
class Pem:
    """What three files held at one moment."""

    ca: bytes
    certificate: bytes
    private_key: bytes

    def __repr__(self) -> str:
        return "Pem(…)"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files: the client's certificate and key, and the CA of the server's certificate.

    They are looked at again at most every second. Once the certificate and key on disk have changed and belong
    together, the next call goes over a new connection, and the former one ends with its last call.
    """

    ca: Path | str
    certificate: Path | str
    private_key: Path | str

    def stamp(self) -> tuple[int, ...]:
        """Changes whenever a file does. Raises `OSError`."""
        found = [Path(file).stat() for file in (self.ca, self.certificate, self.private_key)]
        return tuple(part for each in found for part in (each.st_mtime_ns, each.st_ino, each.st_size))

    def read(self) -> tuple[Pem, tuple[int, ...]]:
        """What they hold, and its stamp.

        Raises `OSError` and `UnusableCertificates`, also for a pair half of which is new.
        """
        for _ in range(_TRIES):
            stamp = self.stamp()
            problem = self._problem()
            pem = Pem(*(Path(file).read_bytes() for file in (self.ca, self.certificate, self.private_key)))
            if self.stamp() != stamp:
                continue
            if problem:
                break
            return pem, stamp
        else:
            problem = "they keep changing"
        raise UnusableCertificates(f"{self.certificate}, {self.private_key} and {self.ca}: {problem}")

    def _problem(self) -> str:
        """What is wrong with them, in OpenSSL's words, or nothing."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            # An empty password: a key that is sealed by one must fail here instead of asking on the terminal.
            context.load_cert_chain(self.certificate, self.private_key, password="")
            context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            return (error.reason or "no PEM certificate and key").lower().replace("_", " ")
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A client's patience and manners; the defaults suit a checkout page."""

    deadline: timedelta = timedelta(seconds=10)
    """For a call with all its attempts and pauses, unless the call names another."""
    attempt: timedelta = timedelta(seconds=5)
    """For one attempt, so that there is time for another."""
    first_pause: timedelta = timedelta(milliseconds=50)
    """Before the second attempt at most; it doubles with each. The pause is drawn between none and this."""
    longest_pause: timedelta = timedelta(seconds=2)
    """What the server asks for in `RetryInfo` goes before it."""
    retry_tokens: float = 20
    """A bucket of tokens for all calls of a client: a failed attempt takes one, a success brings back a tenth, and
    nothing is repeated while it is less than half full (gRPC's retry throttling). It keeps clients from holding a
    server down that is trying to get up. An attempt that found no connection takes none."""
    server_name: str = ""
    """The name that the server's certificate must bear, if it is not the one in the address."""
    keepalive: timedelta = timedelta(seconds=45)
    """While a call waits, the connection is probed so often; the server allows it every 30 seconds."""
    look_for_certificates: timedelta = timedelta(seconds=1)
    """How often the files are looked at."""

    def channel_options(self) -> tuple[tuple[str, int | str], ...]:
        """As gRPC takes them."""
        options: tuple[tuple[str, int | str], ...] = (
            # One policy rules, ours: no retries by service config, neither built in nor from DNS. What is left of
            # gRPC's own is the transparent retry of calls that no server has seen.
            ("grpc.service_config", "{}"),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.keepalive_time_ms", self.keepalive // timedelta(milliseconds=1)),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.max_receive_message_length", 1024 * 1024),
        )
        if self.server_name:
            options += (("grpc.ssl_target_name_override", self.server_name),)
        return options
