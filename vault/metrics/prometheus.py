"""What is measured, and under which names: the only file that knows the Prometheus library.

Labels are names of RPCs, gRPC codes, reasons of `domain.reasons`, Vault operations and the like: words of this project
in a bounded number. No identity, tenant, customer, token, order or address is ever one (PCI DSS 3.5.1, 10.3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from vault.domain.reasons import OTHER, known
from vault.metrics.facts import GAUGES, Fact
from vault.ports_telemetry import CALL_OK, FAILED, OK, Watched

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 200)
OPERATIONS = frozenset(
    {"auth", "config", "decrypt", "encrypt", "hmac", "keys", "login", "renew", "rewrap", "rotate", "sign", "trim"}
)


class _Child(Protocol):
    def inc(self, amount: float = 1) -> None: ...


class _Observer(Protocol):
    def observe(self, amount: float) -> None: ...


class _Timed:
    """Calls back with how long it took."""

    __slots__ = ("_done", "_name", "_since")

    def __init__(self, name: str, done: Callable[[str, float, str, str], None]) -> None:
        self._name = name
        self._done = done
        self._since = perf_counter()

    def ended(self, outcome: str = OK, reason: str = "", error_id: str = "") -> None:  # noqa: ARG002 - not a label
        """It is over."""
        self._done(self._name, perf_counter() - self._since, outcome, reason)


class Metrics:
    """Implements `ports_telemetry.Telemetry`; one for a process, with a registry of its own."""

    def __init__(self, *, build: Mapping[str, str]) -> None:
        """`build`: labels of `cardvault_build_info`."""
        # Else every counter is shown twice, once with the time at which it was made.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry(auto_describe=False)
        self._calls = Counter("cardvault_calls", "Calls that ended.", ["rpc", "code"], registry=registry)
        self._call_seconds = Histogram(
            "cardvault_call_seconds", "Time that calls took.", ["rpc"], buckets=SECONDS, registry=registry
        )
        self._refusals = Counter(
            "cardvault_refusals", "Calls that ended with an error.", ["rpc", "reason"], registry=registry
        )
        self._batch_size = Histogram(
            "cardvault_batch_size", "Calls in one batch.", ["queue"], buckets=SIZES, registry=registry
        )
        self._batch_seconds = Histogram(
            "cardvault_batch_seconds", "Time that batches took.", ["queue"], buckets=SECONDS, registry=registry
        )
        self._trip_seconds = Histogram(
            "cardvault_vault_seconds",
            "Time that calls to Vault took.",
            ["operation"],
            buckets=SECONDS,
            registry=registry,
        )
        self._trip_errors = Counter(
            "cardvault_vault_errors", "Calls to Vault that failed.", ["operation", "reason"], registry=registry
        )
        self._transaction_seconds = Histogram(
            "cardvault_transaction_seconds",
            "Time that database transactions took, with the wait for a connection.",
            ["kind"],
            buckets=SECONDS,
            registry=registry,
        )
        self._transaction_errors = Counter(
            "cardvault_transaction_errors", "Database transactions that failed.", ["kind", "reason"], registry=registry
        )
        Gauge("cardvault_build_info", "What runs here.", sorted(build), registry=registry).labels(**build).set(1)
        ProcessCollector(registry=registry)
        # `labels()` costs more than counting: each child is looked up once.
        self._ended_calls: dict[tuple[str, str], _Child] = {}
        self._timed_calls: dict[str, _Observer] = {}
        self._timed_trips: dict[str, _Observer] = {}
        self._timed_transactions: dict[str, _Observer] = {}
        self._batches: dict[str, tuple[_Observer, _Observer]] = {}

    def page(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def add_facts(self, facts: Callable[[], Iterable[Fact]]) -> None:
        """Facts that are asked for whenever the page is."""
        self._registry.register(_Facts(facts))

    # --- telemetry --------------------------------------------------------------------------------------------------

    def call(self, rpc: str, traceparent: Callable[[], str]) -> Watched:  # noqa: ARG002 - for traces
        """An RPC."""
        return _Timed(rpc, self._call_ended)

    def batch(self, queue: str, size: int, origins: Sequence[object]) -> Watched:  # noqa: ARG002 - for traces
        """A batch."""
        known_batch = self._batches.get(queue)
        if known_batch is None:
            known_batch = (self._batch_size.labels(queue), self._batch_seconds.labels(queue))
            self._batches[queue] = known_batch
        known_batch[0].observe(size)
        return _Timed(queue, self._batch_ended)

    def trip(self, operation: str) -> Watched:
        """A call to Vault."""
        return _Timed(operation if operation in OPERATIONS else OTHER, self._trip_ended)

    def transaction(self, kind: str) -> Watched:
        """A transaction."""
        return _Timed(kind, self._transaction_ended)

    def origin(self) -> object:
        """Nothing."""
        return None

    # --- the ends ---------------------------------------------------------------------------------------------------

    def _call_ended(self, rpc: str, seconds: float, code: str, reason: str) -> None:
        counter = self._ended_calls.get((rpc, code))
        if counter is None:
            counter = self._ended_calls[rpc, code] = self._calls.labels(rpc, code)
        counter.inc()
        timed = self._timed_calls.get(rpc)
        if timed is None:
            timed = self._timed_calls[rpc] = self._call_seconds.labels(rpc)
        timed.observe(seconds)
        if reason and code != CALL_OK:
            self._refusals.labels(rpc, known(reason)).inc()

    def _batch_ended(self, queue: str, seconds: float, _outcome: str, _reason: str) -> None:
        self._batches[queue][1].observe(seconds)

    def _trip_ended(self, operation: str, seconds: float, outcome: str, reason: str) -> None:
        timed = self._timed_trips.get(operation)
        if timed is None:
            timed = self._timed_trips[operation] = self._trip_seconds.labels(operation)
        timed.observe(seconds)
        if outcome != OK:
            self._trip_errors.labels(operation, known(reason)).inc()

    def _transaction_ended(self, kind: str, seconds: float, outcome: str, reason: str) -> None:
        timed = self._timed_transactions.get(kind)
        if timed is None:
            timed = self._timed_transactions[kind] = self._transaction_seconds.labels(kind)
        timed.observe(seconds)
        if outcome == FAILED:
            self._transaction_errors.labels(kind, known(reason)).inc()


class _Facts(Collector):
    """Facts as gauges."""

    def __init__(self, facts: Callable[[], Iterable[Fact]]) -> None:
        self._facts = facts

    def collect(self) -> Iterable[Metric]:
        """What is known now."""
        families: dict[str, GaugeMetricFamily] = {}
        for fact in self._facts():
            gauge = GAUGES[fact.name]
            if fact.name not in families:
                families[fact.name] = GaugeMetricFamily(fact.name, gauge.meaning, labels=gauge.labels)
            families[fact.name].add_metric(fact.labels, fact.value)
        return families.values()
