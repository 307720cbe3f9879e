"""`cardvault health`: what containers and load balancers ask a server, over the same mutual TLS as everybody."""

from __future__ import annotations

from pathlib import Path

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

LIVE = "live"
"""In `grpc.health.v1` the empty name; a word is easier to write into a manifest."""
EXIT_SERVING, EXIT_NOT, EXIT_USAGE = 0, 1, 2


def run(
    *,
    address: str,
    certificate: Path,
    private_key: Path,
    ca: Path,
    server_name: str | None,
    service: str,
    timeout: float,
) -> int:
    """Ask once, print one word."""
    try:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=ca.read_bytes(),
            private_key=private_key.read_bytes(),
            certificate_chain=certificate.read_bytes(),
        )
    except OSError as e:
        typer.echo(f"cardvault health: {e.filename}: {e.strerror}", err=True)
        return EXIT_USAGE
    # A proxy of the environment must not come between, and no retry may stretch the timeout.
    options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    with grpc.secure_channel(address, credentials, options=options) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service="" if service == LIVE else service), timeout=timeout
            )
        except grpc.RpcError as e:
            typer.echo(e.code().name)
            return EXIT_NOT
    typer.echo(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    return EXIT_SERVING if answer.status == health_pb2.HealthCheckResponse.SERVING else EXIT_NOT
