"""Traces of a real server, as a collector gets them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.support.cards import artifact_root, fresh_typed_card
from tests.support.installation import Installation, eventually, installed
from tests.support.requests import TIMEOUT, grant_request, new_customer, new_order, redeem_request, store_request
from vault.domain.reasons import REASONS
from vault.embedded.openbao import OpenBao

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans over OTLP, as any collector does."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self._lock = threading.Lock()
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)  # type: ignore[no-untyped-call]
        place = "127.0.0.1:0"
        self.port = (
            self.server.add_secure_port(place, credentials) if credentials else self.server.add_insecure_port(place)
        )
        self.server.start()

    def Export(self, request: Any, context: Any) -> trace_service_pb2.ExportTraceServiceResponse:  # noqa: N802
        with self._lock:
            self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> Sequence[trace_pb2.Span]:
        with self._lock:
            return [
                span
                for request in self.requests
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ]

    def raw(self) -> bytes:
        with self._lock:
            return b"".join(request.SerializeToString() for request in self.requests)


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.server.stop(0).wait()


@pytest.fixture
def site(tmp_path: Path, openbao: OpenBao, sqlite_url: str, collector: Collector) -> Iterator[Installation]:
    with installed(tmp_path / "site", openbao, sqlite_url) as made:
        made.serve(traces__otlp_endpoint=f"http://127.0.0.1:{collector.port}")
        yield made


def test_a_call_is_traced_through_batch_vault_and_database_and_nothing_of_it_is_in_the_spans(
    site: Installation, collector: Collector
) -> None:
    checkout, processor = site.client("checkout"), site.client("processor")
    card, customer, order = fresh_typed_card(), new_customer(), new_order()
    metadata = (("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", "vendor=secret-state"), ("baggage", "a=b"))

    token = checkout.checkout.Tokenize(store_request(card, customer), timeout=TIMEOUT, metadata=metadata).card.token
    grant = checkout.checkout.IssueGrant(
        grant_request(order=order, customer=customer, token=token), timeout=TIMEOUT
    ).grant
    processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
    bad = store_request(card, customer)
    bad.card.pan = card.pan + "0"
    refused: list[grpc.RpcError] = []
    for call in (
        lambda: processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT),
        lambda: checkout.checkout.Tokenize(bad, timeout=TIMEOUT),
        lambda: checkout.checkout.Tokenize(
            store_request(card, customer), timeout=TIMEOUT, metadata=(("traceparent", f"00-{card.pan:0>32}-{SPAN}-01"),)
        ),
    ):
        try:
            call()
        except grpc.RpcError as e:
            refused.append(e)
    assert len(refused) == 2

    eventually(lambda: sum(span.name == "Tokenize" for span in collector.spans()) == 3)
    eventually(lambda: sum(span.name == "Detokenize" for span in collector.spans()) == 2)
    spans = collector.spans()
    mine = [span for span in spans if span.trace_id.hex() == TRACE]
    by_id = {span.span_id: span for span in spans}
    assert {"Tokenize", "batch Tokenize", "vault encrypt", "vault hmac", "database write"} <= {s.name for s in mine}
    (call_span,) = (span for span in mine if span.name == "Tokenize")
    assert call_span.parent_span_id.hex() == SPAN
    within = {span.name: by_id[span.parent_span_id].name for span in mine if span is not call_span}
    assert {within[name] for name in ("vault encrypt", "vault hmac", "database write")} == {"batch Tokenize"}
    for span in mine:
        at = span
        while at.span_id != call_span.span_id:
            at = by_id[at.parent_span_id]
    assert {"vault decrypt", "batch Detokenize"} <= {span.name for span in spans}

    raw = collector.raw()
    folder = artifact_root() / "traces"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spans.bin").write_bytes(raw)  # for the leak scan at the end of the session
    secrets = [card.pan, card.holder_name, customer, order, token, grant, bad.card.pan, "secret-state", "spiffe"]
    assert [number for number, secret in enumerate(secrets) if secret.encode() in raw] == []
    assert f"{card.pan:0>32}" not in {span.trace_id.hex() for span in spans}
    for span in spans:
        assert not span.events
        assert not span.status.message
        assert not span.trace_state
        reasons = {a.value.string_value for a in span.attributes if a.key == "cardvault.reason"}
        assert reasons <= REASONS


@pytest.mark.parametrize("is_known", [True, False])
def test_a_collector_over_tls_must_be_of_the_ca_in_the_file(
    is_known: bool, tmp_path: Path, openbao: OpenBao, sqlite_url: str
) -> None:
    with installed(tmp_path / "site", openbao, sqlite_url) as site:
        files = site.ca.issue_server("collector")
        pair = (files.key_file.read_bytes(), files.cert_file.read_bytes())
        collector = Collector(grpc.ssl_server_credentials([pair]))
        try:
            ca_file = site.ca.ca_file if is_known else openbao.address.ca_file
            server = site.serve(
                traces__otlp_endpoint=f"https://localhost:{collector.port}", traces__ca_file=str(ca_file)
            )
            site.client("checkout").checkout.Tokenize(
                store_request(fresh_typed_card(), new_customer()), timeout=TIMEOUT
            )

            assert server.stop() == 0
            assert any(span.name == "Tokenize" for span in collector.spans()) is is_known
        finally:
            collector.server.stop(0).wait()


def test_a_collector_that_is_away_costs_no_call_and_no_exit(tmp_path: Path, openbao: OpenBao, sqlite_url: str) -> None:
    with installed(tmp_path / "site", openbao, sqlite_url) as site:
        server = site.serve(traces__otlp_endpoint="http://127.0.0.1:1")
        checkout = site.client("checkout").checkout

        for _ in range(20):
            checkout.Tokenize(store_request(fresh_typed_card(), new_customer()), timeout=TIMEOUT)
        began = time.monotonic()
        code = server.stop()

        assert code == 0
        assert time.monotonic() - began < 10
        assert "Traceback" not in server.log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "environ", "problem"),
    [
        ({"traces__otlp_endpoint": "http://collector.example:4317"}, {}, "must begin with https://"),
        ({"traces__otlp_endpoint": "collector:4317"}, {}, "must look like https://host:port"),
        ({"traces__otlp_endpoint": "https://user:word@collector:4317"}, {}, "must look like https://host:port"),
        (
            {"traces__otlp_endpoint": "https://collector:4317"},
            {"OTEL_EXPORTER_OTLP_HEADERS": "x=y"},
            "environment variable OTEL_EXPORTER_OTLP_HEADERS is set",
        ),
        ({"traces__otlp_endpoint": "https://collector:4317", "traces__sample": 1.5}, {}, "traces.sample"),
        ({"traces__otlp_endpoint": "https://c:4317", "traces__ca_file": "nowhere.pem"}, {}, "traces.ca_file: no such"),
        ({"metrics__listen": "0.0.0.0:9464"}, {}, "metrics.listen: plain HTTP that other hosts can reach"),
        ({"metrics__listen": "9464"}, {}, "metrics.listen: must be host:port"),
        ({"metrics__listen": "127.0.0.1:65535", "server__workers": 2}, {}, "metrics.listen: must be host:port"),
        ({"metrics__listen": "127.0.0.1:9464", "server__listen": "0.0.0.0:9464"}, {}, "takes the port that server"),
        ({"metrics__hosts": "x"}, {}, "metrics.hosts"),
    ],
)
def test_a_weak_or_wrong_setting_is_refused(
    changes: dict[str, Any], environ: dict[str, str], problem: str, tmp_path: Path, openbao: OpenBao, sqlite_url: str
) -> None:
    with installed(tmp_path / "site", openbao, sqlite_url) as site:
        file = site.config(**changes)

        done = site.command("serve", "--config", str(file), "--check-config", environ=environ)

    assert done.returncode == 2
    assert problem in done.stderr


def test_an_address_beyond_loopback_is_taken_where_the_file_says_so(
    tmp_path: Path, openbao: OpenBao, sqlite_url: str
) -> None:
    with installed(tmp_path / "site", openbao, sqlite_url) as site:
        file = site.config(metrics__listen="0.0.0.0:9464", metrics__beyond_loopback=True)

        done = site.command("serve", "--config", str(file), "--check-config")

    assert (done.returncode, done.stderr) == (0, "")
