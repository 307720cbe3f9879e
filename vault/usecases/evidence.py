"""One signed report for the periodic audit: each line says what is so, which requirement it supports, how to see it.

The statement is JSON with sorted keys; the signature (ed25519, RFC 8032) covers its exact bytes, so a file and a public
key are all that checking takes. It supports an assessment; it is none.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from vault.ports import KeyName
from vault.ports_operator import EvidenceCounts, Signer
from vault.usecases.key_status import Level, StatusReport
from vault.usecases.operating import OperatorWorld

FORMAT = "cardvault evidence v1"
SINCE = timedelta(days=90)
"""How far back releases are counted."""
ONCE_KEY_AT_MOST = timedelta(minutes=20)
"""A one-time token lives fifteen minutes; the sweep may be a little late."""
REVIEW_AT_MOST = timedelta(days=1, hours=12)


@dataclass(frozen=True, slots=True)
class Line:
    """One fact."""

    name: str
    found: str
    holds: bool | None
    """None: a fact to be read, with nothing it must be."""
    requirements: tuple[str, ...]
    """PCI DSS 4.0.1."""
    command: str
    """Shows it."""


@dataclass(frozen=True, slots=True)
class Looks:
    """What other parts found; each is asked once, when the report is made."""

    releasers: Sequence[str]
    """Identities that may redeem grants, from the servers' file; empty: not in this file."""
    keys: Callable[[], StatusReport]
    log: Callable[[], tuple[bool, str]]
    overdue: Callable[[], Mapping[str, int]]
    database: Callable[[], Sequence[str]]
    vault: Callable[[], Sequence[str]]


class GatherEvidence:
    """The use case."""

    def __init__(self, *, world: OperatorWorld, signer: Signer, looks: Looks) -> None:
        self._world = world
        self._signer = signer
        self._looks = looks

    def lines(self) -> Sequence[Line]:
        """Look at everything. Raises `KeyRingUnavailable`, `StoreUnavailable`."""
        now = self._world.clock.now()
        with self._world.store.reading() as tx:
            counts = tx.evidence_counts(since=now - SINCE)
        is_intact, log = self._looks.log()
        return [
            *self._who(counts),
            *_keys(self._looks.keys()),
            *_cards(counts, now),
            _empty("overdue retention", _worded(self._looks.overdue()), ("3.2.1",), "cardvault retention verify"),
            Line("audit log", log, is_intact, ("10.3.2", "10.3.4", "10.5.1"), "cardvault audit verify"),
            _reviewed(counts.last_review, now),
            _empty("database settings", self._looks.database(), ("2.2.1", "10.3.2"), "cardvault doctor"),
            _empty("Vault keys and login", self._looks.vault(), ("3.6.1", "3.7.1"), "cardvault doctor"),
        ]

    def sign(self, lines: Sequence[Line]) -> str:
        """The report as JSON text. Raises `KeyRingUnavailable`."""
        facts = {
            "format": FORMAT,
            "environment": self._world.environment,
            "issued_at": self._world.clock.now().isoformat(),
            "lines": [asdict(line) for line in lines],
        }
        statement = json.dumps(facts, sort_keys=True, indent=2)
        version, signature = self._signer.sign(statement.encode())
        return json.dumps(
            {
                "statement": statement,
                "signature": base64.b64encode(signature).decode("ascii"),
                "key": str(KeyName.AUDIT),
                "key_version": version,
                "public_key": base64.b64encode(self._signer.public_keys()[version]).decode("ascii"),
            },
            indent=2,
        )

    def _who(self, counts: EvidenceCounts) -> list[Line]:
        allowed = ", ".join(self._looks.releasers) or "not in this file: run it with a server's"
        released = ", ".join(f"{actor}: {count}" for actor, count in counts.releases.items()) or "none"
        strangers = set(counts.releases) - set(self._looks.releasers)
        return [
            Line("who may release", allowed, None, ("7.2.1", "7.2.5"), "the servers' configuration"),
            Line(
                f"released in the last {SINCE.days} days",
                released,
                not strangers if self._looks.releasers else None,
                ("7.2.1", "10.2.1.1"),
                "cardvault audit report --since 90d",
            ),
            Line(
                "releases without a grant",
                str(counts.releases_without_grant),
                counts.releases_without_grant == 0,
                ("7.2.1", "10.2.1.1"),
                "cardvault evidence",
            ),
        ]


def _keys(status: StatusReport) -> list[Line]:
    lines = []
    for key in status.keys:
        made = f", made {key.made_at:%Y-%m-%d}" if key.made_at is not None else ""
        due = f", due {key.due_at:%Y-%m-%d}" if key.due_at is not None else ""
        notes = "".join(f"; {note}" for note in key.notes)
        lines.append(
            Line(
                str(key.name),
                f"version {key.versions.latest}{made}{due}{notes}",
                key.level in (Level.OK, Level.DUE),
                ("3.6.1", "3.7.4"),
                "cardvault keys status",
            )
        )
    return lines


def _cards(counts: EvidenceCounts, now: datetime) -> list[Line]:
    oldest = counts.oldest_once_key
    age = now - oldest if oldest is not None else None
    return [
        Line("cards stored", str(counts.cards), None, ("3.2.1",), "cardvault evidence"),
        Line("cards that wait for approval", str(counts.cards_pending), None, ("3.2.1",), "cardvault retention plan"),
        Line(
            "cards without consent",
            str(counts.cards_without_consent),
            counts.cards_without_consent == 0,
            ("3.2.1",),
            "cardvault consent show",
        ),
        Line(
            "oldest one-time key",
            "none" if age is None else f"{age.total_seconds() / 60:.1f} minutes",
            age is None or age <= ONCE_KEY_AT_MOST,
            ("3.3.1", "3.3.2"),
            "cardvault keys status",
        ),
    ]


def _reviewed(last: datetime | None, now: datetime) -> Line:
    return Line(
        "last review of the log",
        "never" if last is None else f"{last:%Y-%m-%d %H:%M} UTC",
        last is not None and now - last <= REVIEW_AT_MOST,
        ("10.4.1", "10.4.1.1"),
        "cardvault audit report",
    )


def _empty(name: str, problems: Sequence[str], requirements: tuple[str, ...], command: str) -> Line:
    return Line(name, "; ".join(problems) or "nothing found", not problems, requirements, command)


def _worded(overdue: Mapping[str, int]) -> list[str]:
    return [f"{rule}: {count}" for rule, count in overdue.items() if count]
