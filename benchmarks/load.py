"""Clients under load: processes of their own, each with one connection and so many calls in flight."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc

from tests.support.cards import TypedCard, made_up_digits
from tests.support.installation import Client
from tests.support.requests import new_customer, store_request
from vault.embedded.pki import CertificateFiles

WARM_UP = 1.0
"""Seconds before anything is counted."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to call, and as whom."""

    port: int
    files: CertificateFiles
    ca_file: Path


@dataclass(frozen=True, slots=True)
class Load:
    """What came of it."""

    rate: float
    """Calls a second, of all processes."""
    p50: float
    """Milliseconds."""
    p99: float
    errors: int
    client_busy: float
    """Of one core, the busiest client process: near 1 means that the client was the bottleneck."""


Work = Callable[[Client, int], Callable[[], Any]]
"""Makes, for one process, what makes the awaitable of one call."""


def tokenize(client: Client, seed: int) -> Callable[[], Any]:
    """Fresh cards of fresh customers, with consent. Numbers are drawn before the clock starts."""
    year = datetime.now(UTC).year + 3
    customers = f"bench-{seed}-{os.getpid()}"
    pool = [
        store_request(TypedCard(made_up_digits(length=16), 12, year, "A Shopper", ""), new_customer())
        for _ in range(2000)
    ]
    count = 0

    def call() -> Any:
        nonlocal count
        request = pool[count % len(pool)]
        count += 1
        request.customer_id = f"{customers}-{count}"
        return client.checkout.Tokenize(request, timeout=20)

    return call


def run(targets: Sequence[Target], work: Work, *, in_flight: int, seconds: float) -> Load:
    """One process for each target; the calls in flight are shared among them."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for number, target in enumerate(targets):
        here, there = context.Pipe(duplex=False)
        each = max(1, in_flight // len(targets))
        process = context.Process(target=_child, args=(there, target, work, number, each, seconds), daemon=True)
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    found = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    taken = sorted(each for part in found for each in part["taken"])
    return Load(
        rate=sum(len(part["taken"]) / part["elapsed"] for part in found),
        p50=statistics.median(taken) * 1000,
        p99=taken[int(len(taken) * 0.99)] * 1000,
        errors=sum(part["errors"] for part in found),
        client_busy=max(part["busy"] for part in found),
    )


def _child(pipe: Any, target: Target, work: Work, seed: int, in_flight: int, seconds: float) -> None:
    import uvloop

    pipe.send(uvloop.run(_drive(target, work, seed, in_flight, seconds)))


async def _drive(target: Target, work: Work, seed: int, in_flight: int, seconds: float) -> dict[str, Any]:
    credentials = grpc.ssl_channel_credentials(
        root_certificates=target.ca_file.read_bytes(),
        private_key=target.files.key_file.read_bytes(),
        certificate_chain=target.files.cert_file.read_bytes(),
    )
    taken: list[float] = []
    errors = 0
    async with grpc.aio.secure_channel(f"localhost:{target.port}", credentials) as channel:
        call = work(Client.on(channel), seed)  # type: ignore[arg-type]  # stubs work on either kind of channel
        began = time.perf_counter() + WARM_UP
        end = began + seconds
        busy_before = 0.0

        async def one() -> None:
            nonlocal errors
            while (now := time.perf_counter()) < end:
                try:
                    await call()
                except grpc.RpcError:
                    errors += 1
                    continue
                if now >= began:
                    taken.append(time.perf_counter() - now)

        async def mark() -> None:
            nonlocal busy_before
            await asyncio.sleep(WARM_UP)
            busy_before = time.process_time()

        await asyncio.gather(mark(), *(one() for _ in range(in_flight)))
        elapsed = time.perf_counter() - began
    return {"taken": taken, "errors": errors, "elapsed": elapsed, "busy": (time.process_time() - busy_before) / elapsed}
