"""Spans of our own around calls, batches, trips to Vault and transactions: the only file that knows OpenTelemetry.

A span has names out of fixed lists, times, and for a failed call its code, reason and error id. Never a message, an
identity, an exception, a stack: OpenTelemetry's own interceptor for gRPC copies an exception's text, and with it what a
client sent, so it is not used. Of the caller's headers `traceparent` alone is read, and believed only if well-formed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import Token
from pathlib import Path

import grpc
from opentelemetry import context as contexts
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)

from vault.domain.pan import contains_pan
from vault.domain.reasons import known
from vault.ports_telemetry import CALL_OK, FAILED, NOTHING, OK, Watched

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_LONG_RUN = re.compile(r"[0-9]{13,}")
_MAX_LINKS = 32
_QUEUE = 2048
_EXPORT_SECONDS = 2.0
_FAREWELL_SECONDS = 2.0
_OURS = frozenset({"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "DATA_LOSS"})
"""Codes of calls that failed because of us; the others are what a caller must expect."""


def to_collector(endpoint: str, *, ca_file: Path | None) -> SpanProcessor:
    """Sends spans to an OTLP/gRPC collector in the background; what does not fit into the queue is dropped."""
    insecure = endpoint.startswith("http://")
    roots = ca_file.read_bytes() if ca_file is not None else None
    exporter = OTLPSpanExporter(
        endpoint=endpoint,
        insecure=insecure,
        credentials=None if insecure else grpc.ssl_channel_credentials(root_certificates=roots),
        timeout=_EXPORT_SECONDS,
    )
    return BatchSpanProcessor(exporter, max_queue_size=_QUEUE, schedule_delay_millis=1000, max_export_batch_size=512)


class Traces:
    """Implements `ports_telemetry.Telemetry`; one for a process, with a provider of its own."""

    def __init__(self, processor: SpanProcessor, *, resource: Mapping[str, str], sample: float) -> None:
        """`sample`: share of calls that are traced where the caller does not say."""
        self._provider = TracerProvider(
            # Not `Resource.create`: it would take attributes out of the environment, and the command line.
            resource=Resource(dict(resource)),
            sampler=ParentBased(TraceIdRatioBased(sample)),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("cardvault")

    def stop(self) -> None:
        """Send what is left; a collector that does not answer is not waited for long."""
        # OpenTelemetry would wait for half a minute.
        farewell = threading.Thread(target=self._provider.shutdown, name="traces-end", daemon=True)
        farewell.start()
        farewell.join(timeout=_FAREWELL_SECONDS)

    # --- telemetry --------------------------------------------------------------------------------------------------

    def call(self, rpc: str, traceparent: Callable[[], str]) -> Watched:
        """An RPC; a child of the caller's span if the header is well-formed."""
        span = self._tracer.start_span(
            rpc,
            context=_parent(parsed(traceparent())),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.method": rpc},
            record_exception=False,
            set_status_on_exception=False,
        )
        return _Call(span)

    def batch(self, queue: str, size: int, origins: Sequence[object]) -> Watched:
        """A batch: a child of its first member's call, with links to the others'."""
        members = [each for each in origins if isinstance(each, SpanContext)]
        if not members:
            return _Nowhere()
        return _Work(
            self._span(
                f"batch {queue}",
                {"cardvault.batch.size": size},
                context=_parent(members[0]),
                links=[Link(each) for each in members[1 : _MAX_LINKS + 1]],
            )
        )

    def trip(self, operation: str) -> Watched:
        """A call to Vault, as far as it is made for a call that is traced."""
        if not get_current_span().is_recording():
            return NOTHING
        return _Trip(self._span(f"vault {operation}", {}, kind=SpanKind.CLIENT))

    def transaction(self, kind: str) -> Watched:
        """A transaction, as far as it is made for a call that is traced."""
        if not get_current_span().is_recording():
            return NOTHING
        return _Work(self._span(f"database {kind}", {}, kind=SpanKind.CLIENT))

    def origin(self) -> object:
        """The span that is current here, if it is recorded."""
        span = get_current_span()
        return span.get_span_context() if span.is_recording() else None

    def _span(
        self,
        name: str,
        attributes: Mapping[str, int],
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        context: Context | None = None,
        links: Sequence[Link] = (),
    ) -> Span:
        return self._tracer.start_span(
            name,
            context=context,
            kind=kind,
            attributes=dict(attributes),
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        )


def parsed(traceparent: str) -> SpanContext | None:
    """What a W3C `traceparent` header of version 00 says; None for anything else.

    Ids are chosen by the caller, so one in which a card number could be read is not taken over either.
    """
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or _shows_a_number(match[1]) or _shows_a_number(match[2]):
        return None
    context = SpanContext(
        int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=TraceFlags(int(match[3], 16) & 1)
    )
    return context if context.is_valid else None


def _shows_a_number(text: str) -> bool:
    """Whether any part of it could be taken for a card number."""
    return any(
        contains_pan(run[start : start + length])
        for run in _LONG_RUN.findall(text)
        for length in range(13, 20)
        for start in range(len(run) - length + 1)
    )


def _parent(context: SpanContext | None) -> Context:
    """Nothing else of this thread's or task's context goes into it: no baggage, no state."""
    return Context() if context is None else set_span_in_context(NonRecordingSpan(context), Context())


class _Trip:
    """A span in which nothing else is done: several may be under way in one thread, and end in any order."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def ended(self, outcome: str = OK, reason: str = "", error_id: str = "") -> None:  # noqa: ARG002 - a call's
        """It is over."""
        if reason:
            self._span.set_attribute("cardvault.reason", known(reason))
        if outcome == FAILED:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class _Work(_Trip):
    """A span that is current until it ends."""

    __slots__ = ("_token",)

    def __init__(self, span: Span) -> None:
        super().__init__(span)
        self._token: Token[Context] = contexts.attach(set_span_in_context(span))

    def ended(self, outcome: str = OK, reason: str = "", error_id: str = "") -> None:
        """It is over."""
        contexts.detach(self._token)
        super().ended(outcome, reason, error_id)


class _Call(_Work):
    """The span of an RPC."""

    __slots__ = ()

    def ended(self, outcome: str = OK, reason: str = "", error_id: str = "") -> None:
        """It is over."""
        contexts.detach(self._token)
        if self._span.is_recording():
            self._span.set_attribute("rpc.grpc.status_code", int(grpc.StatusCode[outcome].value[0]))
            if outcome != CALL_OK:
                self._span.set_attribute("cardvault.reason", known(reason))
                self._span.set_attribute("cardvault.error_id", error_id)
            if outcome in _OURS:
                self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class _Nowhere:
    """A batch that belongs to no traced call: what is done for it belongs to none either."""

    __slots__ = ("_token",)

    def __init__(self) -> None:
        self._token: Token[Context] = contexts.attach(Context())

    def ended(self, outcome: str = OK, reason: str = "", error_id: str = "") -> None:  # noqa: ARG002 - nobody asks
        """It is over."""
        contexts.detach(self._token)
