"""What somebody should look at in the last hours: refused redemptions, failed openings, peaks, new identities.

PCI DSS 10.4.1: logs are reviewed at least daily; 10.4.1.1: by a machine.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from vault.domain.audit import OPEN_FAILED, RELEASED, AuditEvent, Outcome
from vault.ports_audit import LogStore

PAGE = 1000
PEAK_FACTOR = 3
PEAK_AT_LEAST = 20
"""Releases in one hour below which nothing is called a peak."""


@dataclass(slots=True)
class AuditReport:
    """Counts, and what stands out."""

    since: datetime
    until: datetime
    events: int = 0
    by_event: dict[str, int] = field(default_factory=dict)
    """Event and outcome, as in `card.released/refused`."""
    released: dict[str, int] = field(default_factory=dict)
    """By processor."""
    refused_redemptions: dict[str, int] = field(default_factory=dict)
    """By identity and reason."""
    failed_openings: list[str] = field(default_factory=list)
    """Events of sealed cards that did not open: a row was altered or moved."""
    new_identities: list[str] = field(default_factory=list)
    """Seen in this time and never before."""
    peaks: list[str] = field(default_factory=list)
    """Hours with far more releases than the others."""
    unreadable: int = 0
    """Rows of this time, or of no time, that are no events: somebody wrote or changed them in the database."""

    @property
    def has_findings(self) -> bool:
        """Whether somebody should look."""
        return bool(
            self.refused_redemptions or self.failed_openings or self.new_identities or self.peaks or self.unreadable
        )


def review(store: LogStore, *, since: datetime, until: datetime) -> AuditReport:
    """Look at every event of a time. Raises `StoreUnavailable`."""
    report = AuditReport(since, until)
    by_hour: dict[str, Counter[datetime]] = {}
    actors: set[str] = set()
    after: tuple[datetime, str] | None = None
    while True:
        with store.reading() as tx:
            page = tx.events_between(since, until, after=after, limit=PAGE)
        report.unreadable += page.unreadable
        for each in page.events:
            _count(report, each, by_hour)
            actors.add(each.actor)
        if page.next is None:
            break
        after = page.next
    with store.reading() as tx:
        known = tx.actors_before(since)
        report.unreadable += tx.count_out_of_time()
    report.new_identities = sorted(actors - set(known) - {""})
    report.peaks = _peaks(by_hour)
    return report


def _count(report: AuditReport, event: AuditEvent, by_hour: dict[str, Counter[datetime]]) -> None:
    report.events += 1
    _add(report.by_event, f"{event.event}/{event.outcome}")
    if event.event == OPEN_FAILED:
        report.failed_openings.append(event.event_id)
    if event.event == RELEASED and event.outcome is Outcome.OK:
        _add(report.released, event.processor)
        hour = event.occurred_at.replace(minute=0, second=0, microsecond=0)
        by_hour.setdefault(event.processor, Counter())[hour] += 1
    if event.event == RELEASED and event.outcome is not Outcome.OK:
        _add(report.refused_redemptions, f"{event.actor or 'nobody'}: {event.reason}")


def _add(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _peaks(by_hour: Mapping[str, Mapping[datetime, int]]) -> list[str]:
    found = []
    for processor, hours in sorted(by_hour.items()):
        counts: Sequence[int] = list(hours.values())
        usual = statistics.median(counts)
        found += [
            f"{processor}: {count} releases in the hour from {hour.isoformat()}, usually {usual:g}"
            for hour, count in sorted(hours.items())
            if count >= PEAK_AT_LEAST and count > PEAK_FACTOR * usual
        ]
    return found
