"""Whether a service can do its work, as `grpc.health.v1` says."""

from __future__ import annotations

from grpc_health.v1 import health_pb2

from vault.client.calls import Call, Effect, call


def check(service: str) -> Call[bool]:
    """One look."""
    return call(
        "/grpc.health.v1.Health/Check",
        lambda: health_pb2.HealthCheckRequest(service=service),
        health_pb2.HealthCheckResponse,
        lambda answer: answer.status == health_pb2.HealthCheckResponse.SERVING,
        effect=Effect.READ,
        deadline=None,
    )
