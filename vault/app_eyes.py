"""Opens the eyes that the settings ask for: metrics on a listener of their own, traces to a collector, or none.

Their libraries are imported only where they are asked for: without them a server starts an eighth of a second sooner.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from importlib.metadata import version
from time import time
from typing import TYPE_CHECKING

import structlog

from vault.audit.copy import Directory
from vault.config import Settings
from vault.metrics.facts import Fact, Facts, Look
from vault.metrics.looks import look_at_cards, look_at_certificates, look_at_leftovers, look_at_log
from vault.ports import Clock
from vault.ports_telemetry import UNWATCHED, Telemetry, Watchers
from vault.store.sql_store import SqlStore

if TYPE_CHECKING:
    from vault.metrics.listener import Listener
    from vault.metrics.prometheus import Metrics
    from vault.traces import Traces

_log = structlog.get_logger()


class Eyes:
    """What one process shows of itself."""

    def __init__(self, settings: Settings, *, worker: int) -> None:
        """Listens, but answers nobody yet. Raises `OSError` where the port is taken."""
        self._settings = settings
        self._metrics: Metrics | None = None
        self._listener: Listener | None = None
        self._looks: list[Look] = []
        self._facts: Facts | None = None
        address = settings.metrics.address(worker)
        if address is not None:
            from vault.metrics.listener import Listener
            from vault.metrics.prometheus import Metrics

            self._metrics = Metrics(build={"version": version("cardvault"), "python": platform.python_version()})
            try:
                self._listener = Listener(*address, self._metrics.page)
            except OSError as e:
                raise OSError(e.errno, f"metrics.listen: port {address[1]}: {e.strerror}") from None
        self._traces = _traces(settings)
        # Traces first: they give origins.
        watching = [each for each in (self._traces, self._metrics) if each is not None]
        self.telemetry: Telemetry = (
            UNWATCHED if not watching else watching[0] if len(watching) == 1 else Watchers(*watching)
        )

    def show(
        self,
        *,
        in_flight: Callable[[], int],
        waiting: Callable[[], Mapping[str, int]],
        passed: Callable[[], Mapping[str, bool]],
        tokens: Callable[[], Mapping[str, float | None]],
    ) -> None:
        """What is asked whenever somebody looks at the page: calls, queues by name, checks, seconds left of tokens."""
        if self._metrics is None:
            return

        def facts() -> Iterator[Fact]:
            yield Fact("cardvault_calls_in_flight", in_flight())
            for name, count in waiting().items():
                yield Fact("cardvault_calls_waiting", count, (name,))
            for name, passes in dict(passed()).items():
                yield Fact("cardvault_check_passed", float(passes), (name,))
            for name, left in dict(tokens()).items():
                if left is not None:
                    yield Fact("cardvault_vault_token_expires_timestamp_seconds", time() + left, (name,))

        self._metrics.add_facts(facts)
        server, vault = self._settings.server, self._settings.vault
        files = {"server": server.certificate, "client_ca": server.client_ca, "vault_ca": vault.ca_file}
        self._looks.append(look_at_certificates(files))

    def look_at(self, store: SqlStore, clock: Clock) -> None:
        """Facts of the whole installation: one of several workers shows them."""
        if self._metrics is None:
            return
        settings = self._settings
        every = timedelta(seconds=settings.metrics.refresh_seconds)
        directory = Directory(settings.audit.directory) if settings.audit.directory is not None else None
        self._looks += [
            look_at_log(store, clock, copied=directory.size if directory is not None else None, every=every),
            look_at_leftovers(store, clock, limits=settings.retention.limits(), every=every),
            look_at_cards(store, every=every),
        ]

    def start(self) -> None:
        """Show."""
        if self._metrics is None or self._listener is None:
            return
        self._facts = Facts(tuple(self._looks))
        self._metrics.add_facts(self._facts.known)
        self._facts.start()
        self._listener.start()
        _log.info("metrics.listening", address=self._listener.address)

    def stop(self) -> None:
        """Show no more."""
        if self._listener is not None:
            self._listener.stop()
        if self._facts is not None:
            self._facts.stop()
        if self._traces is not None:
            self._traces.stop()


def _traces(settings: Settings) -> Traces | None:
    section = settings.traces
    if section.otlp_endpoint is None:
        return None
    from vault.traces import Traces, to_collector

    return Traces(
        to_collector(section.otlp_endpoint, ca_file=section.ca_file),
        resource={
            "service.name": "cardvault",
            "service.version": version("cardvault"),
            "deployment.environment.name": settings.environment,
        },
        sample=section.sample,
    )
