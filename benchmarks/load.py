"""Clients under load: processes of their own, each with one connection and so many calls in flight."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.cards import TypedCard, made_up_digits
from tests.support.requests import grant_request, redeem_request, store_request
from vault.embedded.pki import CertificateFiles
from vault.v1 import account_pb2, account_pb2_grpc, checkout_pb2, checkout_pb2_grpc, processor_pb2_grpc

if TYPE_CHECKING:
    from vault.v1.account_pb2_grpc import AccountServiceAsyncStub
    from vault.v1.checkout_pb2_grpc import CheckoutServiceAsyncStub
    from vault.v1.processor_pb2_grpc import ProcessorServiceAsyncStub

WARM_UP = 1.0
"""Seconds before anything is counted."""
TIMEOUT = 20


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to call, and as whom: certificates by role."""

    port: int
    ca_file: Path
    files: Mapping[str, CertificateFiles]


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


@dataclass(frozen=True, slots=True)
class Stubs:
    """All stubs of one role's connection."""

    checkout: CheckoutServiceAsyncStub
    account: AccountServiceAsyncStub
    processor: ProcessorServiceAsyncStub
    health: Any

    @classmethod
    def on(cls, channel: grpc.aio.Channel) -> Stubs:
        """Stubs on a channel."""
        return cls(
            checkout=checkout_pb2_grpc.CheckoutServiceStub(channel),
            account=account_pb2_grpc.AccountServiceStub(channel),
            processor=processor_pb2_grpc.ProcessorServiceStub(channel),
            health=health_pb2_grpc.HealthStub(channel),
        )


@dataclass(slots=True)
class Seat:
    """One client process: its connections by role, and what it remembers from one kind of work to the next."""

    number: int
    clients: Mapping[str, Stubs]
    cards: list[tuple[str, str]] = field(default_factory=list)
    """Customers and tokens of stored cards."""
    grants: list[tuple[str, str]] = field(default_factory=list)
    """Open grants and their orders."""
    names: Iterator[int] = field(default_factory=itertools.count)

    def new_name(self) -> str:
        """Of a customer or an order that nobody knows."""
        return f"bench-{os.getpid()}-{self.number}-{next(self.names)}"


class Spent(Exception):
    """There is nothing left to work on."""


Call = Callable[[], Awaitable[Any]]
Work = Callable[[Seat], Awaitable[Call]]
"""Prepares, for one process, what makes one call."""
Job = Callable[[Seat], Awaitable[dict[str, Any]]]


# --- work -----------------------------------------------------------------------------------------------------------


async def nothing(seat: Seat) -> Call:
    """The floor: health's own check, through the same door, server, certificates and connection."""
    stub, request = seat.clients["checkout"].health, health_pb2.HealthCheckRequest()
    return lambda: stub.Check(request, timeout=TIMEOUT)


async def tokenize(seat: Seat) -> Call:
    """Fresh cards of fresh customers, with consent. Numbers are drawn before the clock starts."""
    year = datetime.now(UTC).year + 3
    pool = itertools.cycle(
        [store_request(TypedCard(made_up_digits(length=16), 12, year, "A Shopper", ""), "") for _ in range(2000)]
    )
    stub = seat.clients["checkout"].checkout

    async def call() -> None:
        request = next(pool)
        request.customer_id = customer = seat.new_name()
        answer = await stub.Tokenize(request, timeout=TIMEOUT)
        if len(seat.cards) < 500:
            seat.cards.append((customer, answer.card.token))

    return call


BATCH = 200
"""Cards in one call of `batch_tokenize`: as many as it takes."""


async def batch_tokenize(seat: Seat) -> Call:
    """Full batches of fresh cards of fresh customers, as an import sends them."""
    year = datetime.now(UTC).year + 3

    def items() -> Iterator[checkout_pb2.BatchTokenizeItem]:
        for _ in range(BATCH):
            stored = store_request(TypedCard(made_up_digits(length=16), 12, year, "A Shopper", ""), "")
            yield checkout_pb2.BatchTokenizeItem(card=stored.card, consent=stored.consent)

    pool = itertools.cycle([checkout_pb2.BatchTokenizeRequest(items=items()) for _ in range(20)])
    stub = seat.clients["checkout"].checkout

    async def call() -> None:
        request = next(pool)
        for item in request.items:
            item.customer_id = item.idempotency_key = seat.new_name()
        answer = await stub.BatchTokenize(request, timeout=TIMEOUT)
        assert all(result.HasField("card") for result in answer.results), "every card was stored"

    return call


async def list_five(seat: Seat) -> Call:
    """A customer's wallet of five cards."""
    year, customers = datetime.now(UTC).year + 3, [seat.new_name() for _ in range(20)]
    stored = (
        store_request(TypedCard(made_up_digits(length=16), 12, year, "A Shopper", ""), customer)
        for customer in customers
        for _ in range(5)
    )
    await asyncio.gather(*(seat.clients["checkout"].checkout.Tokenize(each, timeout=TIMEOUT) for each in stored))
    requests = itertools.cycle([account_pb2.ListCardsRequest(customer_id=customer) for customer in customers])
    stub = seat.clients["account"].account
    first = await stub.ListCards(next(requests), timeout=TIMEOUT)
    assert len(first.cards) == 5
    return lambda: stub.ListCards(next(requests), timeout=TIMEOUT)


async def issue_grant(seat: Seat) -> Call:
    """Grants for cards that `tokenize` stored; kept for `detokenize`."""
    cards, stub = itertools.cycle(seat.cards), seat.clients["checkout"].checkout

    async def call() -> None:
        customer, token = next(cards)
        order = seat.new_name()
        request = grant_request(order=order, customer=customer, token=token)
        answer = await stub.IssueGrant(request, timeout=TIMEOUT)
        seat.grants.append((answer.grant, order))

    return call


async def detokenize(seat: Seat) -> Call:
    """Redeems what `issue_grant` left, and ends when all is spent."""
    stub = seat.clients["processor"].processor

    async def call() -> None:
        if not seat.grants:
            raise Spent
        grant, order = seat.grants.pop()
        await stub.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)

    return call


# --- processes ------------------------------------------------------------------------------------------------------


class Clients:
    """Client processes, one for each target, that stay for as many measurements as are asked for."""

    def __init__(self, targets: Sequence[Target]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for number, target in enumerate(targets):
            here, there = context.Pipe()
            process = context.Process(target=_child, args=(there, target, number), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()

    def run(self, work: Work, *, in_flight: int, seconds: float, warm_up: float = WARM_UP) -> Load:
        """Calls in flight are shared among the processes; a single one is made by the first alone."""
        return self.run_job(
            _Driven(work, max(1, in_flight // len(self._pipes)), seconds, warm_up), alone=in_flight == 1
        )

    def run_job(self, job: Job, *, alone: bool = False) -> Load:
        """Any work, in each process."""
        pipes = self._pipes[:1] if alone else self._pipes
        for pipe in pipes:
            pipe.send(job)
        found = [pipe.recv() for pipe in pipes]
        taken = sorted(each for part in found for each in part["taken"])
        if not taken:
            raise RuntimeError(f"no call succeeded: {sum(part['errors'] for part in found)} errors")
        return Load(
            rate=sum(len(part["taken"]) / part["elapsed"] for part in found),
            p50=statistics.median(taken) * 1000,
            p99=taken[int(len(taken) * 0.99)] * 1000,
            errors=sum(part["errors"] for part in found),
            client_busy=max(part["busy"] for part in found),
        )


def run(targets: Sequence[Target], work: Work, *, in_flight: int, seconds: float) -> Load:
    """One measurement by processes of its own."""
    with Clients(targets) as clients:
        return clients.run(work, in_flight=in_flight, seconds=seconds)


def _child(pipe: Any, target: Target, number: int) -> None:
    import uvloop

    uvloop.run(_serve(pipe, target, number))


async def _serve(pipe: Any, target: Target, number: int) -> None:
    channels = {}
    for role, files in target.files.items():
        credentials = grpc.ssl_channel_credentials(
            root_certificates=target.ca_file.read_bytes(),
            private_key=files.key_file.read_bytes(),
            certificate_chain=files.cert_file.read_bytes(),
        )
        channels[role] = grpc.aio.secure_channel(f"localhost:{target.port}", credentials)
    seat = Seat(number, {role: Stubs.on(channel) for role, channel in channels.items()})
    loop = asyncio.get_running_loop()
    while True:
        try:
            job = await loop.run_in_executor(None, pipe.recv)
        except EOFError:
            break
        pipe.send(await job(seat))
    for channel in channels.values():
        await channel.close()


@dataclass(frozen=True, slots=True)
class _Driven:
    """So many calls in flight for so long."""

    work: Work
    in_flight: int
    seconds: float
    warm_up: float

    async def __call__(self, seat: Seat) -> dict[str, Any]:
        call = await self.work(seat)
        taken: list[float] = []
        errors = 0
        began = time.perf_counter() + self.warm_up
        end = began + self.seconds
        busy_before = 0.0

        async def one() -> None:
            nonlocal errors
            while (now := time.perf_counter()) < end:
                try:
                    await call()
                except grpc.RpcError:
                    errors += 1
                    continue
                except Spent:
                    return
                if now >= began:
                    taken.append(time.perf_counter() - now)

        async def mark() -> None:
            nonlocal busy_before
            await asyncio.sleep(self.warm_up)
            busy_before = time.process_time()

        await asyncio.gather(mark(), *(one() for _ in range(self.in_flight)))
        elapsed = time.perf_counter() - began
        busy = (time.process_time() - busy_before) / elapsed
        return {"taken": taken, "errors": errors, "elapsed": elapsed, "busy": busy}
