"""The gRPC server: registers guarded handlers, proves identity by mTLS, says how it is, and stops gracefully."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

from vault.rpc.access import SERVICES, PolicyGap, Rule, path_of, read_rules
from vault.rpc.door import Door
from vault.telemetry import where

_log = structlog.get_logger()

MAX_MESSAGE_BYTES = 64 * 1024
READY = "ready"
"""Health name for: every service of this process can do its work. The empty name only says the process is up."""

_FAREWELL = 0.5
"""Seconds in which those that watch health hear NOT_SERVING before their streams end."""

_LEAST = 1.0
"""Seconds that each check may take."""

_HEALTH = "grpc.health.v1.Health"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

MAX_CONNECTION_AGE = timedelta(minutes=10)
"""A client certificate is checked at the handshake only, so connections must end from time to time."""

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", 1024 * 1024),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 256),
    ("grpc.server_handshake_timeout_ms", 8_000),
    ("grpc.max_connection_age_grace_ms", 35_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files of the server's identity and of the CA that its clients' certificates come from."""

    certificate: Path
    private_key: Path
    client_ca: Path

    def credentials(self) -> grpc.ServerCredentials:
        """Mutual TLS with certificates that are read again whenever a file changes. Raises `OSError`."""
        self._read()
        known: list[tuple[int, ...]] = [self._stamp()]

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            stamp = self._stamp()
            if stamp == known[0]:
                return None
            fresh = self._read()
            known[0] = stamp
            return fresh

        # The stubs do not know that the fetcher may answer None for "no change".
        return grpc.dynamic_ssl_server_credentials(
            self._read(),
            fetch,  # type: ignore[arg-type]
            require_client_authentication=True,
        )

    def _stamp(self) -> tuple[int, ...]:
        files = (self.certificate, self.private_key, self.client_ca)
        return tuple(part for file in files for part in (file.stat().st_mtime_ns, file.stat().st_ino))

    def _read(self) -> grpc.ServerCertificateConfiguration:
        pair = (self.private_key.read_bytes(), self.certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=self.client_ca.read_bytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that must work for some services to be ready."""

    name: str
    services: frozenset[str]
    """Names as in the configuration."""
    probe: Callable[[], None]
    """Raises if it does not work; called on a worker thread."""


class Server:
    """One gRPC server on one port."""

    def __init__(
        self,
        *,
        door: Door,
        servicers: Mapping[str, object],
        tls: TlsFiles,
        address: str,
        checks: Sequence[Check],
        executor: Executor,
        check_every: timedelta = timedelta(seconds=5),
        check_patience: timedelta = timedelta(seconds=10),
        connection_age: timedelta = MAX_CONNECTION_AGE,
        shares_port: bool = False,
    ) -> None:
        """`servicers` by service name as in the configuration. Raises `PolicyGap` where the contract has a gap.

        `check_patience` is for all checks together, but each has a second: what is under way longer has not passed, for
        a database that is frozen gives no answer at all.
        `shares_port`: other workers listen on the same port. Else nobody does: a second server is refused.
        Raises `ValueError` where connections should live longer than `MAX_CONNECTION_AGE`.
        """
        if connection_age > MAX_CONNECTION_AGE:
            raise ValueError("a connection must end in time")
        age = connection_age // timedelta(milliseconds=1)
        rules = read_rules([SERVICES[name] for name in servicers])
        self._door = door
        self._servicers = servicers
        self._checks = checks
        self._executor = executor
        self._check_every = check_every
        self._check_patience = check_patience
        self._overdue: dict[str, asyncio.Future[bool]] = {}
        """Checks that are still under way though they had their time, by name."""
        self._health = health_aio.HealthServicer()
        self._states: dict[str, bool] = {}
        self._watch: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._server = grpc.aio.server(
            options=(*_OPTIONS, ("grpc.so_reuseport", int(shares_port)), ("grpc.max_connection_age_ms", age)),
            compression=grpc.Compression.NoCompression,
        )
        handlers = [_handlers_of(SERVICES[name], servicer, rules, door) for name, servicer in servicers.items()]
        self._server.add_generic_rpc_handlers((*handlers, self._health_handlers()))
        self._port = self._server.add_secure_port(address, tls.credentials())

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def passed(self) -> Mapping[str, bool]:
        """How each check went the last time; empty before the first."""
        return self._states

    async def start(self) -> None:
        """Serve; health says NOT_SERVING until every check has passed once."""
        for name in self._servicers:
            await self._health.set(SERVICES[name].full_name, _NOT_SERVING)
        await self._health.set(READY, _NOT_SERVING)
        await self._server.start()
        await self._health.set("", _SERVING)
        self._watch = asyncio.get_running_loop().create_task(self._keep_checking())

    async def stop(self, grace: timedelta) -> None:
        """Say NOT_SERVING, let calls in flight finish within `grace`, then end."""
        if self._watch is not None:
            self._watch.cancel()
        await self._health.enter_graceful_shutdown()
        self._stopping.set()
        await self._server.stop(grace.total_seconds())

    async def check_now(self) -> Mapping[str, bool]:
        """Run every check once and publish the result; readiness by service."""
        enough = asyncio.get_running_loop().time() + self._check_patience.total_seconds()
        # One after the other: what the second needs, such as the canary, the first may have to make.
        passed = {check.name: await self._passes_until(enough, check) for check in self._checks}
        ready = {
            name: all(passed[check.name] for check in self._checks if name in check.services)
            for name in self._servicers
        }
        for name, is_ready in ready.items():
            await self._health.set(SERVICES[name].full_name, _SERVING if is_ready else _NOT_SERVING)
        await self._health.set(READY, _SERVING if all(ready.values()) else _NOT_SERVING)
        if passed != self._states:
            for name, passes in passed.items():
                if self._states.get(name) != passes:
                    _log.info("ready.changed", service=name, state="up" if passes else "down")
            self._states = passed
        return ready

    async def _passes_until(self, enough: float, check: Check) -> bool:
        loop = asyncio.get_running_loop()
        # One that is stuck holds a thread until it ends: no second one is begun meanwhile, nor is it waited for again.
        overdue = self._overdue.pop(check.name, None)
        running = overdue or loop.run_in_executor(self._executor, _passes, check)
        await asyncio.wait((running,), timeout=0 if overdue is not None else max(enough - loop.time(), _LEAST))
        if running.done():
            return running.result()
        if overdue is None:
            _log.warning("ready.check_stuck", service=check.name)
        self._overdue[check.name] = running
        return False

    async def _keep_checking(self) -> None:
        while True:
            ready = await self.check_now()
            # Look more often while something is wrong, so that recovery shows soon.
            pause = self._check_every if all(ready.values()) else min(self._check_every, timedelta(seconds=1))
            await asyncio.sleep(pause.total_seconds())

    async def _follow_health(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """Health's own Watch never ends, so it would hold up every stop for the whole grace."""
        following = asyncio.ensure_future(self._health.Watch(request, context))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((following, stopping), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((following,), timeout=_FAREWELL)
            if following.done():
                await following
        finally:
            following.cancel()
            stopping.cancel()

    def _health_handlers(self) -> grpc.GenericRpcHandler:
        check = self._door.guard_open(
            method="Check", request_type=health_pb2.HealthCheckRequest, handler=self._health.Check
        )
        watch = self._door.guard_open_stream(
            method="Watch", request_type=health_pb2.HealthCheckRequest, handler=self._follow_health
        )
        return grpc.method_handlers_generic_handler(
            _HEALTH,
            {
                "Check": grpc.unary_unary_rpc_method_handler(check),
                "Watch": grpc.unary_stream_rpc_method_handler(
                    watch, response_serializer=health_pb2.HealthCheckResponse.SerializeToString
                ),
            },
        )


def _passes(check: Check) -> bool:
    try:
        check.probe()
    except Exception as error:  # noqa: BLE001 - whatever it is, the check did not pass
        _log.warning("ready.check_failed", service=check.name, reason=getattr(error, "reason", ""), where=where(error))
        return False
    return True


def _handlers_of(
    service: ServiceDescriptor, servicer: object, rules: Mapping[str, Rule], door: Door
) -> grpc.GenericRpcHandler:
    """Guarded handlers for every RPC of a service. Raises `PolicyGap` if the servicer lacks one."""
    missing = [method.full_name for method in service.methods if not hasattr(servicer, method.name)]
    if missing:
        raise PolicyGap([f"{name}: has no handler" for name in missing])
    handlers: dict[str, Any] = {}
    for method in service.methods:
        request_type: type[Message] = GetMessageClass(method.input_type)
        guarded = door.guard(
            method=method.name,
            rule=rules[path_of(method)],
            request_type=request_type,
            handler=getattr(servicer, method.name),
        )
        handlers[method.name] = grpc.unary_unary_rpc_method_handler(guarded)
    return grpc.method_handlers_generic_handler(service.full_name, handlers)
