"""A client certificate is checked at the handshake alone: a connection must end, and with it what expired meanwhile."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.installation import channel_to, uri_of
from vault.embedded.pki import DevelopmentCa, Subject
from vault.rpc.door import Door, Limits
from vault.rpc.identity import Identities
from vault.rpc.server import MAX_CONNECTION_AGE, Server, TlsFiles
from vault.system import SystemEntropy
from vault.usecases.refusals import RefusedCall

AGE = timedelta(seconds=6)
VALID = timedelta(seconds=4)
"""Of the client's certificate, from the connection on: gRPC ends connections up to a tenth sooner than `AGE`."""
TIMEOUT = 5


@pytest.fixture
def ca(tmp_path: Path) -> DevelopmentCa:
    return DevelopmentCa.load_or_create(tmp_path / "pki")


def made(ca: DevelopmentCa, age: timedelta, threads: ThreadPoolExecutor) -> Server:
    """The real server with health alone."""

    async def forget(_: RefusedCall) -> None: ...

    files = ca.issue_server()
    door = Door(identities=Identities({}), limits=Limits(), entropy=SystemEntropy(), record_refusal=forget)
    tls = TlsFiles(certificate=files.cert_file, private_key=files.key_file, client_ca=files.ca_file)
    return Server(
        door=door,
        servicers={},
        tls=tls,
        address="127.0.0.1:0",
        checks=[],
        executor=threads,
        connection_age=age,
    )


@contextmanager
def serving(ca: DevelopmentCa, age: timedelta) -> Iterator[int]:
    """It answers on this port while the block runs."""
    ports: queue.Queue[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def main() -> None:
        with ThreadPoolExecutor(1) as threads:
            server, stop = made(ca, age, threads), asyncio.Event()
            await server.start()
            ports.put((server.port, asyncio.get_running_loop(), stop))
            await stop.wait()
            await server.stop(timedelta(0))

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    port, loop, stop = ports.get(timeout=10)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


@pytest.fixture
def connected(ca: DevelopmentCa) -> Iterator[tuple[health_pb2_grpc.HealthStub, datetime]]:
    """A client on a server whose connections grow six seconds old, and when its certificate expires."""
    with ExitStack() as stack:
        port = stack.enter_context(serving(ca, AGE))
        begin = datetime.now(UTC) - timedelta(minutes=5)
        expires = datetime.now(UTC) + VALID
        files = ca.issue("short", Subject(uris=(uri_of("checkout"),)), lifetime=expires - begin, not_before=begin)
        channel = stack.enter_context(channel_to(port, files, ca_file=ca.ca_file))
        yield health_pb2_grpc.HealthStub(channel), expires


def test_a_client_whose_certificate_expired_is_out_once_its_connection_is_of_age(
    connected: tuple[health_pb2_grpc.HealthStub, datetime],
) -> None:
    health, expires = connected
    served_after_expiry, code = 0, None
    deadline = time.monotonic() + 15

    while code is None and time.monotonic() < deadline:
        try:
            health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        except grpc.RpcError as e:
            code = e.code()
        else:
            served_after_expiry += datetime.now(UTC) > expires + timedelta(milliseconds=100)
        time.sleep(0.05)

    # The connection outlived the certificate, as nobody looks at it again; and then it ended.
    assert served_after_expiry > 0
    assert code is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.RpcError):
        health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)


def test_no_server_lets_connections_live_longer_than_ten_minutes(ca: DevelopmentCa) -> None:
    assert timedelta(minutes=10) == MAX_CONNECTION_AGE

    with ThreadPoolExecutor(1) as threads, pytest.raises(ValueError, match="end in time"):
        made(ca, MAX_CONNECTION_AGE + timedelta(seconds=1), threads)
