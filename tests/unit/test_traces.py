"""Spans: which there are, what is in them, and above all what is not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.support.cards import fresh_digits
from vault.domain.errors import KeyRingUnavailable, Refused
from vault.ports_telemetry import FAILED, READ
from vault.rpc.coalescer import Coalescer
from vault.traces import Traces, parsed

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{SPAN}-01"


class Seen:
    """Traces and all spans that ended."""

    def __init__(self, sample: float = 1.0) -> None:
        self._exporter = InMemorySpanExporter()
        self.traces = Traces(SimpleSpanProcessor(self._exporter), resource={"service.name": "test"}, sample=sample)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> ReadableSpan:
        (span,) = (each for each in self.spans if each.name == name)
        return span

    def text(self) -> str:
        """Everything that would be sent: names, attributes, events, links, states."""
        return "\n".join(span.to_json() for span in self.spans)


@pytest.fixture
def seen() -> Iterator[Seen]:
    found = Seen()
    yield found
    found.traces.stop()


# --- what the caller says -------------------------------------------------------------------------------------------


def test_a_well_formed_traceparent_is_followed(seen: Seen) -> None:
    seen.traces.call("Tokenize", lambda: HEADER).ended("OK")

    (span,) = seen.spans
    assert span.context is not None
    assert format(span.context.trace_id, "032x") == TRACE
    assert span.parent is not None
    assert format(span.parent.span_id, "016x") == SPAN


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        HEADER.upper(),
        HEADER + "\n",
        HEADER + "-more",
        HEADER.replace("00-", "01-", 1),
        HEADER.replace("00-", "ff-", 1),
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
    ],
)
def test_any_other_traceparent_begins_a_trace_of_our_own(header: str, seen: Seen) -> None:
    seen.traces.call("Tokenize", lambda: header).ended("OK")

    assert parsed(header) is None
    assert seen.spans[0].parent is None


@pytest.mark.parametrize("before", ["", "a", "0", "000", "0000000", "0000000000000000"])
def test_a_traceparent_that_holds_a_card_number_is_not_believed(before: str) -> None:
    digits = fresh_digits()

    trace = (before + digits).ljust(32, "a")[:32]

    assert parsed(f"00-{trace}-{SPAN}-01") is None
    assert parsed(f"00-{TRACE}-{digits[:16].ljust(16, 'a')}-01") is None


def test_the_caller_decides_whether_its_trace_is_recorded() -> None:
    nobody = Seen(sample=0.0)

    nobody.traces.call("Tokenize", lambda: "").ended("OK")
    nobody.traces.call("Tokenize", lambda: HEADER[:-1] + "0").ended("OK")
    nobody.traces.call("Detokenize", lambda: HEADER).ended("OK")

    assert [span.name for span in nobody.spans] == ["Detokenize"]


# --- which spans there are ------------------------------------------------------------------------------------------


def test_a_batch_belongs_to_its_first_call_and_links_the_others(seen: Seen) -> None:
    origins = []
    calls = []
    for _ in range(3):
        calls.append(seen.traces.call("Tokenize", lambda: ""))
        origins.append(seen.traces.origin())
    batch = seen.traces.batch("Tokenize", 3, origins)
    trip = seen.traces.trip("encrypt")
    trip.ended(FAILED, "vault_sealed")
    seen.traces.transaction(READ).ended()
    batch.ended()
    for call in reversed(calls):
        call.ended("OK")

    spans = {span.name: span for span in seen.spans}
    assert set(spans) == {"Tokenize", "batch Tokenize", "vault encrypt", "database read"}
    of_batch = spans["batch Tokenize"]
    assert of_batch.parent == origins[0]
    assert [link.context for link in of_batch.links] == origins[1:]
    assert spans["vault encrypt"].parent == of_batch.context == spans["database read"].parent
    assert spans["vault encrypt"].attributes == {"cardvault.reason": "vault_sealed"}


def test_chores_make_no_spans(seen: Seen) -> None:
    seen.traces.trip("sign").ended()
    seen.traces.transaction(READ).ended()
    seen.traces.batch("Refusals", 1, [None]).ended()

    assert seen.spans == ()


def test_what_a_batch_does_on_other_threads_belongs_to_it(seen: Seen) -> None:
    def work(commands: Sequence[str]) -> Sequence[str]:
        seen.traces.trip("encrypt").ended()
        return commands

    async def two_calls() -> None:
        with ThreadPoolExecutor(1) as pool:
            coalescer = Coalescer(
                work, executor=pool, lanes=1, max_batch=10, max_waiting=10, name="Tokenize", telemetry=seen.traces
            )

            async def call() -> None:
                watched = seen.traces.call("Tokenize", lambda: "")
                await coalescer.submit("x", budget=5)
                watched.ended("OK")

            # One after the other over one lane: the second must not end up in the first one's trace.
            await asyncio.create_task(call())
            await asyncio.create_task(call())

    asyncio.run(two_calls())

    trips = [span for span in seen.spans if span.name == "vault encrypt"]
    batches = {span.context.span_id: span for span in seen.spans if span.name == "batch Tokenize" and span.context}
    calls = {span.context.span_id for span in seen.spans if span.name == "Tokenize" and span.context}
    assert len(trips) == len(batches) == len(calls) == 2
    assert {batches[trip.parent.span_id].parent.span_id for trip in trips if trip.parent} == calls  # type: ignore[union-attr]


# --- what is not in them --------------------------------------------------------------------------------------------


class SpeakingError(Exception):
    """Has a number in its text, its arguments and its notes."""


@pytest.mark.parametrize("kind", [SpeakingError, ValueError, KeyRingUnavailable, Refused])
def test_no_digit_of_a_failing_call_is_in_any_span(kind: type[Exception], seen: Seen) -> None:
    digits = fresh_digits()
    error = kind(digits)
    error.add_note(digits)

    def work(_: Sequence[str]) -> Sequence[Any]:
        watched = seen.traces.transaction(READ)
        try:
            raise error
        except Exception:
            watched.ended(FAILED, digits)
            raise

    async def call() -> None:
        with ThreadPoolExecutor(1) as pool:
            coalescer = Coalescer(
                work, executor=pool, lanes=1, max_batch=10, max_waiting=10, name="Tokenize", telemetry=seen.traces
            )
            watched = seen.traces.call("Tokenize", lambda: f"00-{digits}")
            try:
                await coalescer.submit(digits, budget=5)
            except kind:
                # Also where a reason is not what it should be.
                watched.ended("INTERNAL", digits, "req_x")

    asyncio.run(call())

    assert len(seen.spans) == 3
    assert digits not in seen.text()
    for span in seen.spans:
        assert span.events == ()
        assert span.status.description is None
        assert set(span.attributes or {}) <= {
            *("rpc.system", "rpc.method", "rpc.grpc.status_code"),
            *("cardvault.reason", "cardvault.error_id", "cardvault.batch.size"),
        }
    assert json.loads(seen.named("Tokenize").to_json())["attributes"]["cardvault.reason"] == "other"
