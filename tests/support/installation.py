"""A whole installation for tests: certificates, configuration, real server processes, clients over real mTLS."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vault.embedded.openbao import OpenBao
from vault.embedded.pki import CertificateFiles, DevelopmentCa
from vault.keyring.setup import LoginName
from vault.rpc.server import READY
from vault.v1 import account_pb2_grpc, checkout_pb2_grpc, processor_pb2_grpc

TRUST_DOMAIN = "test.localhost"
SHOP, OTHER_SHOP = "shop", "other"
ACQUIRER, SECOND_ACQUIRER = "acquirer", "second"
ENVIRONMENT = "test"

IDENTITIES: Mapping[str, Mapping[str, Any]] = {
    "checkout": {"role": "checkout", "tenant": SHOP},
    "account": {"role": "account", "tenant": SHOP},
    "processor": {"role": "processor", "processor": ACQUIRER, "tenants": [SHOP, OTHER_SHOP]},
    "second-processor": {"role": "processor", "processor": SECOND_ACQUIRER, "tenants": [SHOP]},
    "other-checkout": {"role": "checkout", "tenant": OTHER_SHOP},
    "other-account": {"role": "account", "tenant": OTHER_SHOP},
}
"""Clients by the last part of their URI."""

_PORT = re.compile(r"port (\d+)")
START_TIMEOUT = 30.0


def uri_of(name: str) -> str:
    """A client's SPIFFE URI."""
    return f"spiffe://{TRUST_DOMAIN}/{name}"


@dataclass(slots=True)
class ServerProcess:
    """One `cardvault serve`."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def stop(self, *, timeout: float = 30) -> int:
        """SIGTERM; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout=timeout)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.wait()

    def wait(self, *, timeout: float = 30) -> int:
        """Its exit code, once it has ended."""
        code = self.process.wait(timeout=timeout)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


@dataclass(frozen=True, slots=True)
class Client:
    """All stubs of one client on one server."""

    channel: grpc.Channel
    checkout: checkout_pb2_grpc.CheckoutServiceStub
    account: account_pb2_grpc.AccountServiceStub
    processor: processor_pb2_grpc.ProcessorServiceStub
    health: health_pb2_grpc.HealthStub

    @classmethod
    def on(cls, channel: grpc.Channel) -> Client:
        """Stubs on a channel."""
        return cls(
            channel=channel,
            checkout=checkout_pb2_grpc.CheckoutServiceStub(channel),
            account=account_pb2_grpc.AccountServiceStub(channel),
            processor=processor_pb2_grpc.ProcessorServiceStub(channel),
            health=health_pb2_grpc.HealthStub(channel),
        )


def channel_to(port: int, files: CertificateFiles | None, *, ca_file: Path) -> grpc.Channel:
    """A channel with a connection of its own; without `files` it presents no certificate."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=ca_file.read_bytes(),
        private_key=files.key_file.read_bytes() if files else None,
        certificate_chain=files.cert_file.read_bytes() if files else None,
    )
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    return grpc.secure_channel(f"localhost:{port}", credentials, options=options)


@dataclass(slots=True)
class Installation:
    """One deployment in one directory. Servers that it started are ended by `close`."""

    directory: Path
    openbao: OpenBao
    database_url: str
    environment: str = ENVIRONMENT
    identities: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: dict(IDENTITIES))
    servers: list[ServerProcess] = field(default_factory=list)
    _channels: list[grpc.Channel] = field(default_factory=list)
    _number: int = 0

    @property
    def ca(self) -> DevelopmentCa:
        """The CA of servers and clients."""
        return DevelopmentCa.load_or_create(self.directory / "pki")

    def config(self, *, services: Sequence[str] = ("checkout", "account", "processor"), **changes: Any) -> Path:
        """Write a configuration file. `changes` replace keys, as in `server__threads=4`; None removes one."""
        server = self.ca.issue_server("server")
        settings: dict[str, Any] = {
            "environment": self.environment,
            "profile": "development",
            "server": {
                "listen": "127.0.0.1:0",
                "services": list(services),
                "certificate": str(server.cert_file),
                "private_key": str(server.key_file),
                "client_ca": str(server.ca_file),
            },
            "database": {"url": self.database_url},
            "vault": {
                "address": self.openbao.address.address,
                "ca_file": str(self.openbao.address.ca_file),
                "mount": self.openbao.address.mount,
                "timeout_seconds": 3,
            },
        }
        for name in (LoginName.INTAKE, LoginName.RELEASE):
            files = self.openbao.login_files(name)
            settings["vault"][str(name)] = {
                "role_id_file": str(files.role_id_file),
                "secret_id_file": str(files.secret_id_file),
            }
        for path, value in changes.items():
            *sections, key = path.split("__")
            section = settings
            for part in sections:
                section = section.setdefault(part, {})
            if value is None:
                section.pop(key, None)
            else:
                section[key] = value
        self._number += 1
        file = self.directory / f"config-{self._number}.toml"
        file.write_text(_toml(settings) + _identities_toml(self.identities), encoding="utf-8")
        return file

    def command(self, *arguments: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run the command `cardvault` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "vault", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **(environ or {})},
        )

    def serve(self, *, ready: bool = True, environ: Mapping[str, str] | None = None, **config: Any) -> ServerProcess:
        """Start a server process; with `ready` wait until it can do its work."""
        file = self.config(**config)
        log = self.directory / f"server-{self._number}.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "vault", "serve", "--config", str(file)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **(environ or {})},
            )
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        found = _PORT.search(line)
        if found is None:
            process.wait(timeout=START_TIMEOUT)
            process.stdout.close()
            raise AssertionError(f"the server did not start: {log.read_text(encoding='utf-8')}")
        server = ServerProcess(process, int(found.group(1)), log)
        self.servers.append(server)
        if ready:
            wait_until_ready(self.client("checkout", server))
        return server

    def client(self, name: str, server: ServerProcess | None = None) -> Client:
        """A client with a connection of its own; to the first server unless told otherwise."""
        files = self.ca.issue_client(uri_of(name))
        return self.client_with(files, server)

    def client_with(self, files: CertificateFiles | None, server: ServerProcess | None = None) -> Client:
        """A client with any certificate, or none."""
        channel = channel_to((server or self.servers[0]).port, files, ca_file=self.ca.ca_file)
        self._channels.append(channel)
        return Client.on(channel)

    def close(self) -> None:
        """End everything that was started."""
        for channel in self._channels:
            channel.close()
        for server in self.servers:
            if server.process.poll() is None:
                server.process.terminate()
        for server in self.servers:
            if server.process.stdout is not None and not server.process.stdout.closed:
                try:
                    server.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    server.kill()


@contextmanager
def installed(directory: Path, openbao: OpenBao, database_url: str, **more: Any) -> Iterator[Installation]:
    """An installation that is ended at the end of the block."""
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        installation = Installation(directory, openbao, database_url, **more)
        stack.callback(installation.close)
        yield installation


def wait_until_ready(client: Client, *, service: str = READY, timeout: float = START_TIMEOUT) -> None:
    """Return once health says SERVING."""
    wait_for_health(client, health_pb2.HealthCheckResponse.SERVING, service=service, timeout=timeout)


def wait_for_health(client: Client, wanted: int, *, service: str = READY, timeout: float = START_TIMEOUT) -> None:
    """Return once health says what is wanted."""
    request = health_pb2.HealthCheckRequest(service=service)
    watch = client.health.Watch(request, timeout=timeout, wait_for_ready=True)
    for answer in watch:
        if answer.status == wanted:
            watch.cancel()
            return
    raise AssertionError(f"health of {service!r} did not become {wanted}")


def eventually(holds: Any, *, timeout: float = 20.0) -> None:
    """Return once `holds()` is true."""
    deadline = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError("did not come true in time")
        time.sleep(0.02)


def _toml(settings: Mapping[str, Any], prefix: str = "") -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if not isinstance(value, Mapping)]
    text = "\n".join(lines) + "\n"
    for key, value in settings.items():
        if isinstance(value, Mapping):
            name = f"{prefix}{key}"
            text += f"\n[{name}]\n" + _toml(value, f"{name}.")
    return text


def _identities_toml(identities: Mapping[str, Mapping[str, Any]]) -> str:
    return "".join(
        "\n[[identities]]\n"
        + "\n".join(f"{k} = {json.dumps(v)}" for k, v in {"uri": uri_of(name), **facts}.items())
        + "\n"
        for name, facts in identities.items()
    )
