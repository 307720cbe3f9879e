"""What being watched costs one call: telemetry alone, without gRPC, Vault or a database.

    python -m benchmarks.eyes

A lone `Tokenize` is watched most: one call, one batch, two trips to Vault, one transaction. Under load the last four
are shared by the batch.
"""

from __future__ import annotations

from time import perf_counter_ns

from vault.ports_telemetry import READ, UNWATCHED, WRITE, Telemetry

ROUNDS = 20_000
HEADER = ""


def lone_call(telemetry: Telemetry) -> None:
    """All that one call on its own tells."""
    call = telemetry.call("Tokenize", lambda: HEADER)
    batch = telemetry.batch("Tokenize", 1, [telemetry.origin()])
    for operation in ("encrypt", "hmac"):
        telemetry.trip(operation).ended()
    telemetry.transaction(READ).ended()
    telemetry.transaction(WRITE).ended()
    batch.ended()
    call.ended("OK")


def call_alone(telemetry: Telemetry) -> None:
    """What is not shared under load."""
    call = telemetry.call("Tokenize", lambda: HEADER)
    telemetry.origin()
    call.ended("OK")


def microseconds(telemetry: Telemetry) -> tuple[float, float]:
    """The best of five rounds: for a call in a batch, and for one on its own."""
    found = []
    for work in (call_alone, lone_call):
        best = float("inf")
        for _ in range(5):
            began = perf_counter_ns()
            for _ in range(ROUNDS):
                work(telemetry)
            best = min(best, (perf_counter_ns() - began) / ROUNDS / 1000)
        found.append(best)
    return found[0], found[1]


def main() -> None:
    """Print microseconds."""
    from opentelemetry.sdk.trace import SpanProcessor

    from vault.metrics.prometheus import Metrics
    from vault.traces import Traces

    # A processor that throws spans away: sending is done by a thread of its own, at its own pace.
    traced, sampled_out = (Traces(SpanProcessor(), resource={}, sample=share) for share in (1.0, 0.0))
    watched: list[tuple[str, Telemetry]] = [
        ("off", UNWATCHED),
        ("metrics", Metrics(build={"version": "0"})),
        ("traces, all", traced),
        ("traces, not sampled", sampled_out),
    ]
    for name, telemetry in watched:
        shared, alone = microseconds(telemetry)
        print(f"{name:<20} {shared:6.2f} µs a call in a batch, {alone:6.2f} µs a call on its own")


if __name__ == "__main__":
    main()
