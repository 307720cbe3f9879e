"""What an operator must know of the keys before the weekend: versions, ages, what needs which, unfinished work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from vault.domain.errors import KeyRingUnavailable
from vault.ports import IntakeKeys, KeyName, KeyToUnwrap, KeyToWrap, ReleaseKeys
from vault.ports_operator import KeyVersions, OperatorKeys
from vault.usecases.canary import canary_of
from vault.usecases.operating import OperatorWorld
from vault.usecases.restored import reborn
from vault.usecases.rotate import made_at, older_than, oldest_available, rows_by_version

CRYPTOPERIODS: Mapping[KeyName, timedelta] = {
    KeyName.CARDS: timedelta(days=90),
    KeyName.ONCE: timedelta(days=1),
    KeyName.FINGERPRINT: timedelta(days=730),
    KeyName.AUDIT: timedelta(days=365),
}
"""How long a version wraps, fingerprints or signs before it must be rotated (PCI DSS 3.7.4; NIST SP 800-57)."""

WARN_BEFORE = timedelta(days=14)
_GRACE = timedelta(days=1)
"""The one-time key is rotated by the clock; a day late is overdue, not an hour."""


class Level(StrEnum):
    """How urgent it is."""

    OK = "ok"
    DUE = "due"
    """Within 14 days, or something waits for the operator."""
    OVERDUE = "overdue"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class KeyReport:
    """One key."""

    name: KeyName
    versions: KeyVersions
    made_at: datetime | None
    due_at: datetime | None
    rows: Mapping[int, int]
    level: Level
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StatusReport:
    """Everything."""

    keys: tuple[KeyReport, ...]
    former_wraps: Mapping[int, int]
    canary: str
    """`ok`, the reason why not, or `not checked` where a login is missing."""

    @property
    def level(self) -> Level:
        """The most urgent of all."""
        order = list(Level)
        worst = max((order.index(key.level) for key in self.keys), default=0)
        failed = self.canary not in ("ok", "not checked")
        return Level.FAILED if failed else order[worst]


class KeyStatus:
    """The use case; changes nothing."""

    def __init__(
        self,
        *,
        world: OperatorWorld,
        keys: OperatorKeys,
        intake: IntakeKeys | None,
        release: ReleaseKeys | None,
    ) -> None:
        self._world = world
        self._keys = keys
        self._intake = intake
        self._release = release

    def __call__(self) -> StatusReport:
        """Look. Raises `KeyRingUnavailable`, `StoreUnavailable`."""
        reports = tuple(self._report(name) for name in KeyName)
        with self._world.store.reading() as tx:
            former = tx.count_previous_wraps()
        return StatusReport(reports, former, self._canary())

    def _report(self, name: KeyName) -> KeyReport:
        versions = self._keys.versions(name)
        made = made_at(self._world, name, versions)
        rows = rows_by_version(self._world, name)
        with self._world.store.reading() as tx:
            intent = tx.setting(f"rotation.{name}")
        due = made + CRYPTOPERIODS[name] if made is not None else None
        level, notes = self._age(name, due)
        if intent is not None:
            notes.append(f"a rotation from version {json.loads(intent)['from']} was cut off: run `keys rotate` again")
            level = max(level, Level.DUE, key=list(Level).index)
        waiting = older_than(versions.latest, rows)
        if waiting and name is KeyName.CARDS:
            notes.append(f"{waiting} cards wait for `keys rewrap`")
            level = max(level, Level.DUE, key=list(Level).index)
        lost = sum(count for version, count in rows.items() if version > versions.latest)
        if lost:
            notes.append(f"{lost} rows need a version that Vault does not have: it was restored from an older snapshot")
            level = Level.FAILED
        destroyed = older_than(oldest_available(versions), rows)
        if destroyed:
            notes.append(f"{destroyed} rows need a version that is destroyed")
            level = Level.FAILED
        retired = older_than(versions.min_decryption, rows) - destroyed
        if retired > 0:
            notes.append(f"{retired} rows need a version that is retired: `keys recover`, or `keys unretire`")
            level = Level.FAILED
        changed = reborn(self._world, name, versions)
        if changed:
            notes.append(f"version {changed[0]} is not the one that rows are under: Vault was restored and rotated")
            level = Level.FAILED
        if versions.min_decryption > max(1, versions.min_available):
            notes.append(f"versions below {versions.min_decryption} are retired and not trimmed")
        return KeyReport(name, versions, made, due, rows, level, tuple(notes))

    def _age(self, name: KeyName, due: datetime | None) -> tuple[Level, list[str]]:
        if due is None:
            return Level.OK, ["age unknown"]
        now = self._world.clock.now()
        short = CRYPTOPERIODS[name] <= WARN_BEFORE
        if now >= due + (_GRACE if short else timedelta(0)):
            return Level.OVERDUE, ["overdue: rotate it"]
        if not short and now >= due - WARN_BEFORE:
            return Level.DUE, ["due soon"]
        return Level.OK, []

    def _canary(self) -> str:
        """Wrap a random key and unwrap it again."""
        if self._intake is None or self._release is None:
            return "not checked"
        data_key = self._world.entropy.bytes(32)
        context = hashlib.sha256(b"cardvault.status.v1" + self._world.environment.encode()).digest()
        try:
            wrapped = self._intake.protect(cards=[KeyToWrap(data_key, context)], once=[], fingerprints=[]).cards[0]
        except KeyRingUnavailable as trouble:
            return trouble.reason
        (back,) = self._release.unwrap([KeyToUnwrap(KeyName.CARDS, wrapped, context)])
        if isinstance(back, KeyRingUnavailable):
            return back.reason
        return self._stored_canary(self._release) if back == data_key else "unwrapped_to_something_else"

    def _stored_canary(self, release: ReleaseKeys) -> str:
        """The one by which servers prove themselves; without it they are not ready."""
        with self._world.store.reading() as tx:
            canary = canary_of(tx, environment=self._world.environment)
        if canary is None:
            return "ok"
        (opened,) = release.unwrap([canary])
        if isinstance(opened, KeyRingUnavailable):
            return f"stored_canary_{opened.reason}"
        return "ok" if isinstance(opened, bytes) else "stored_canary_refused"
