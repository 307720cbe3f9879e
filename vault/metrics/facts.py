"""Facts that nobody passes by: how far the log is, when certificates end, how many cards there are under which key.

Each look has a pace of its own, and takes at most half a percent of one connection's time however large the database
is: after a look that took long, the next one waits two hundred times as long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic, time

import structlog

from vault.domain.errors import CardVaultError
from vault.telemetry import where

_log = structlog.get_logger()

REST = 200
"""A look that took a second is followed by so many without one."""


@dataclass(frozen=True, slots=True)
class GaugeRule:
    """What a gauge means."""

    meaning: str
    labels: tuple[str, ...] = ()


GAUGES: Mapping[str, GaugeRule] = {
    "cardvault_calls_in_flight": GaugeRule("Calls under way."),
    "cardvault_calls_waiting": GaugeRule("Calls that wait for their batch.", ("queue",)),
    "cardvault_check_passed": GaugeRule("Whether a readiness check passes.", ("check",)),
    "cardvault_look_succeeded": GaugeRule("Whether the newest look at slow facts succeeded.", ("look",)),
    "cardvault_look_seconds": GaugeRule("How long the newest look took.", ("look",)),
    "cardvault_look_timestamp_seconds": GaugeRule("When the newest look succeeded, Unix time.", ("look",)),
    "cardvault_log_events": GaugeRule("Events in the audit log."),
    "cardvault_log_waiting_events": GaugeRule("Committed events that wait for their place in the log."),
    "cardvault_log_oldest_waiting_seconds": GaugeRule("How long the oldest of them waits; 0 if none."),
    "cardvault_log_ahead_seconds": GaugeRule("How far a waiting event's time lies in the future; 0 if none."),
    "cardvault_log_unsigned_events": GaugeRule("Events in the log that no checkpoint covers."),
    "cardvault_log_checkpoint_timestamp_seconds": GaugeRule("When the newest checkpoint was signed, Unix time."),
    "cardvault_log_copy_behind_events": GaugeRule("Events in the log that its copy lacks; negative: it has more."),
    "cardvault_cards": GaugeRule("Stored cards by the version of the key that wraps their data key.", ("kek_version",)),
    "cardvault_grants_open": GaugeRule("Grants that are neither used nor revoked nor closed."),
    "cardvault_once_key_oldest_seconds": GaugeRule("Age of the open one-time key that expires first; 0 if none."),
    "cardvault_retention_completed_timestamp_seconds": GaugeRule("When retention last came to its end, Unix time."),
    "cardvault_retention_due_rows": GaugeRule("Rows that retention is to remove, beside cards.", ("rule",)),
    "cardvault_certificate_expires_timestamp_seconds": GaugeRule(
        "When a certificate ends, Unix time; of several in one file the first to end.", ("certificate",)
    ),
    "cardvault_vault_token_expires_timestamp_seconds": GaugeRule(
        "When a login's token ends unless it is renewed, Unix time.", ("login",)
    ),
}
"""Every gauge beside counters and histograms. Label values are words of this project and version numbers."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One value."""

    name: str
    """Of `GAUGES`."""
    value: float
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Facts that are found together."""

    name: str
    every: timedelta
    find: Callable[[], Iterable[Fact]]
    """Called on a thread of its own, never while another look is under way."""


@dataclass(slots=True)
class _Found:
    facts: Sequence[Fact] = ()
    succeeded: bool = False
    seconds: float = 0.0
    at: float = 0.0
    due: float = 0.0
    """On the monotonic clock."""


@dataclass(slots=True)
class Facts:
    """Keeps the newest answer of each look. What could not be found is not shown as it was before."""

    looks: Sequence[Look]
    _found: dict[str, _Found] = field(default_factory=dict)
    _ends: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look, on a thread."""
        self._thread = threading.Thread(target=self._keep_looking, name="facts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; a look under way is not waited for long."""
        self._ends.set()
        if self._thread is not None:
            self._thread.join(timeout=1)

    def known(self) -> Iterator[Fact]:
        """What the newest looks found, and how they went."""
        for name, found in sorted(self._found.items()):
            yield from found.facts
            yield Fact("cardvault_look_succeeded", float(found.succeeded), (name,))
            yield Fact("cardvault_look_seconds", found.seconds, (name,))
            if found.at:
                yield Fact("cardvault_look_timestamp_seconds", found.at, (name,))

    def look(self, look: Look) -> None:
        """Look once."""
        before = self._found.get(look.name, _Found())
        began = monotonic()
        facts: Sequence[Fact] = ()
        succeeded = False
        try:
            facts = tuple(look.find())
            succeeded = True
        except CardVaultError as e:
            _log.info("metrics.look_failed", service=look.name, reason=e.reason)
        except Exception as e:  # noqa: BLE001 - metrics go on without these facts
            _log.warning("metrics.look_failed", service=look.name, where=where(e))
        seconds = monotonic() - began
        pause = max(look.every.total_seconds(), seconds * REST)
        at = time() if succeeded else before.at
        self._found = {**self._found, look.name: _Found(facts, succeeded, seconds, at, began + seconds + pause)}

    def _keep_looking(self) -> None:
        while not self._ends.is_set():
            now = monotonic()
            for look in self.looks:
                found = self._found.get(look.name)
                if (found is None or found.due <= now) and not self._ends.is_set():
                    self.look(look)
            next_due = min((found.due for found in self._found.values()), default=now + 1)
            self._ends.wait(max(0.05, next_due - monotonic()))
