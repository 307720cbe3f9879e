"""What is looked at for slow facts, and how often. Each look is a few statements that an index answers, or a count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from vault.certificates import first_to_end
from vault.domain.retention import RetentionLimits
from vault.metrics.facts import Fact, Look
from vault.ports import Clock
from vault.ports_audit import LogStore
from vault.ports_operator import OperatorStore
from vault.usecases.retention import COMPLETED

CARDS_SELDOM = 4
"""Cards are counted so many times less often than other things are looked at, and `facts.REST` spares a large table."""
CERTIFICATES_EVERY = timedelta(minutes=5)


def look_at_log(store: LogStore, clock: Clock, *, copied: Callable[[], int] | None, every: timedelta) -> Look:
    """The audit log (PCI DSS 10.3.3, 10.7.2). `copied`: how many events its copy holds."""

    def find() -> Iterator[Fact]:
        with store.reading() as tx:
            state = tx.log_state()
        now, newest = clock.now(), state.newest_checkpoint
        yield Fact("cardvault_log_events", state.size)
        yield Fact("cardvault_log_waiting_events", state.queued)
        yield Fact("cardvault_log_oldest_waiting_seconds", _age(state.oldest_queued, now))
        ahead = state.latest_queued - now if state.latest_queued is not None else timedelta()
        yield Fact("cardvault_log_ahead_seconds", max(0.0, ahead.total_seconds()))
        yield Fact("cardvault_log_unsigned_events", state.size - (newest.size if newest is not None else 0))
        if newest is not None:
            yield Fact("cardvault_log_checkpoint_timestamp_seconds", newest.signed_at.timestamp())
        if copied is not None:
            yield Fact("cardvault_log_copy_behind_events", state.size - copied())

    return Look(name="log", every=every, find=find)


def _age(moment: datetime | None, now: datetime) -> float:
    return 0.0 if moment is None else max(0.0, (now - moment).total_seconds())


def look_at_cards(store: OperatorStore, *, every: timedelta) -> Look:
    """Cards by the version of their wrapping key: old ones after a rotation wait for `keys rewrap` (PCI DSS 3.7.4)."""

    def find() -> Iterator[Fact]:
        with store.reading() as tx:
            found = tx.count_wraps()
        for version, count in found.items():
            yield Fact("cardvault_cards", count, (str(version),))

    return Look(name="cards", every=every * CARDS_SELDOM, find=find)


def look_at_leftovers(store: OperatorStore, clock: Clock, *, limits: RetentionLimits, every: timedelta) -> Look:
    """Open grants, one-time keys, and what retention has to do (PCI DSS 3.2.1, 3.3.2)."""

    def find() -> Iterator[Fact]:
        now = clock.now()
        with store.reading() as tx:
            text = tx.setting(COMPLETED)
            due = tx.count_due_rows(limits.at(now))
            open_grants = tx.count_open_grants()
            oldest = tx.oldest_open_once_key()
        if text is not None:
            completed = datetime.fromisoformat(text).timestamp()
            yield Fact("cardvault_retention_completed_timestamp_seconds", completed)
        for rule, count in due.items():
            yield Fact("cardvault_retention_due_rows", count, (str(rule),))
        yield Fact("cardvault_grants_open", open_grants)
        yield Fact("cardvault_once_key_oldest_seconds", _age(oldest, now))

    return Look(name="leftovers", every=every, find=find)


def look_at_certificates(files: Mapping[str, Path]) -> Look:
    """When certificates end; 0, as if it had long ended, where a file cannot be read."""

    def find() -> Iterator[Fact]:
        for name, path in files.items():
            try:
                ends = first_to_end(path).timestamp()
            except (OSError, ValueError):
                ends = 0.0
            yield Fact("cardvault_certificate_expires_timestamp_seconds", ends, (name,))

    return Look(name="certificates", every=CERTIFICATES_EVERY, find=find)
