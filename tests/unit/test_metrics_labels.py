"""Metrics as they are told: labels are words of the lists, whatever comes in; and the listener's own limits."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from time import monotonic, sleep

import pytest

from tests.support.cards import fresh_digits
from vault.domain.errors import StoreUnavailable
from vault.metrics.facts import REST, Fact, Facts, Look
from vault.metrics.listener import Listener
from vault.metrics.prometheus import Metrics
from vault.ports_telemetry import FAILED, READ


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(build={"version": "0"})


def test_a_word_that_is_none_of_ours_becomes_other(metrics: Metrics) -> None:
    digits = fresh_digits()

    metrics.call("Tokenize", lambda: digits).ended("INTERNAL", digits, digits)
    metrics.trip(digits).ended(FAILED, digits)
    metrics.transaction(READ).ended(FAILED, digits)

    page = metrics.page().decode()
    assert digits not in page
    assert 'cardvault_refusals_total{reason="other",rpc="Tokenize"} 1.0' in page
    assert 'cardvault_vault_errors_total{operation="other",reason="other"} 1.0' in page
    assert 'cardvault_transaction_errors_total{kind="read",reason="other"} 1.0' in page


def test_threads_that_count_at_once_lose_nothing(metrics: Metrics) -> None:
    def count() -> None:
        for _ in range(2000):
            metrics.trip("encrypt").ended()
            metrics.call("Tokenize", str).ended("OK")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    page = metrics.page().decode()
    assert 'cardvault_vault_seconds_count{operation="encrypt"} 8000.0' in page
    assert 'cardvault_calls_total{code="OK",rpc="Tokenize"} 8000.0' in page


def looked(look: Look) -> Facts:
    facts = Facts((look,))
    facts.look(look)
    return facts


def test_a_look_that_fails_shows_nothing_but_that() -> None:
    failing = False

    def find() -> Iterator[Fact]:
        if failing:
            raise StoreUnavailable("database_unreachable")
        yield Fact("cardvault_log_events", 7)

    look = Look(name="log", every=timedelta(seconds=1), find=find)
    facts = looked(look)
    before = {fact.name: fact.value for fact in facts.known()}
    failing = True
    facts.look(look)
    after = {fact.name: fact.value for fact in facts.known()}

    assert (before["cardvault_log_events"], before["cardvault_look_succeeded"]) == (7, 1)
    assert "cardvault_log_events" not in after
    assert after["cardvault_look_succeeded"] == 0
    assert after["cardvault_look_timestamp_seconds"] == before["cardvault_look_timestamp_seconds"]


def test_after_a_look_that_took_long_the_next_one_waits() -> None:
    def find() -> Iterator[Fact]:
        sleep(0.05)
        yield Fact("cardvault_cards", 1, ("1",))

    began = monotonic()
    facts = looked(Look(name="cards", every=timedelta(seconds=1), find=find))

    assert facts._found["cards"].due - began >= 0.05 * REST


def test_a_client_that_drips_does_not_keep_others_from_the_page() -> None:
    listener = Listener("127.0.0.1", 0, lambda: b"page")
    listener.start()
    host, _, port = listener.address.rpartition(":")
    ends = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))) as slow:
            while not ends.wait(0.2):
                slow.sendall(b"x")

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        sleep(0.3)
        connection = http.client.HTTPConnection(host, int(port), timeout=6)
        connection.request("GET", "/metrics")
        assert connection.getresponse().read() == b"page"
        connection.close()
    finally:
        ends.set()
        dripping.join()
        listener.stop()
