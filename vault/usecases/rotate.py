"""Rotation of a transit key: exactly one new version, whatever Vault answers and wherever the command is cut off.

What is about to happen is written down before Vault is asked, with the version that stood then. So a second run knows
whether the first one's request came through, and an answer of 500, which may hide a rotation that happened, is
settled by reading the version (PCI DSS 3.7.4).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from vault.domain.errors import KeyRingUnavailable, PreconditionFailed
from vault.ports import KeyName, Reader
from vault.ports_operator import KeyVersions, OperatorKeys
from vault.usecases.operating import Operator, OperatorWorld

SETTLED = timedelta(hours=1)
"""A version that this command made less than this ago is taken for the one that a repeated command asks for."""

ROTATION = "rotation_record."
"""Settings that say who rotated a key when and why, by key and version."""
_INTENT = "rotation."
_MADE = "rotated."


@dataclass(frozen=True, slots=True)
class Rotated:
    """What came of a rotation."""

    name: KeyName
    before: int
    after: int
    created: datetime | None
    answer: str
    """`ok`, the reason of Vault's trouble where it did it all the same, `resumed`, or `recent` if nothing was done."""


class RotateKey:
    """The use case."""

    def __init__(self, *, world: OperatorWorld, keys: OperatorKeys) -> None:
        self._world = world
        self._keys = keys

    def __call__(self, name: KeyName, operator: Operator, *, again: bool = False) -> Rotated:
        """Make one new version. With `again` also right after another rotation.

        Raises `KeyRingUnavailable` where Vault did not do it, or where it cannot be told yet: run it again, it will
        not rotate twice. Raises `Busy`.
        """
        with self._world.store.exclusively(f"rotate-{name}"):
            versions = self._keys.versions(name)
            started_from = self._intent(name)
            if started_from is None:
                made = recorded_at(self._world, name, versions.latest)
                if not again and made is not None and self._world.clock.now() - made < SETTLED:
                    return Rotated(name, versions.latest, versions.latest, made, "recent")
                started_from = versions.latest
                self._write_intent(name, started_from, operator)
            answer = "resumed"
            if versions.latest <= started_from:
                answer = self._ask(name)
                versions = self._keys.versions(name)
            if versions.latest <= started_from:
                # Read after the answer and unchanged: it did not happen. The intent stays for the next run.
                raise KeyRingUnavailable(answer if answer != "ok" else "vault_odd_answer")
            return self._finish(name, started_from, versions, answer, operator)

    def _ask(self, name: KeyName) -> str:
        try:
            self._keys.rotate(name)
        except KeyRingUnavailable as trouble:
            return trouble.reason
        return "ok"

    def _intent(self, name: KeyName) -> int | None:
        with self._world.store.reading() as tx:
            known = tx.setting(_INTENT + name)
        return int(json.loads(known)["from"]) if known is not None else None

    def _write_intent(self, name: KeyName, version: int, operator: Operator) -> None:
        begun = self._world.clock.now().isoformat()
        facts = {"from": version, "by": operator.name, "reason": operator.reason, "begun": begun}
        with self._world.store.writing() as tx:
            tx.put_setting(_INTENT + name, json.dumps(facts, sort_keys=True))
            tx.append_events([self._world.event(operator, "key.rotation_begun", target=name, version=version)])

    def _finish(self, name: KeyName, before: int, versions: KeyVersions, answer: str, operator: Operator) -> Rotated:
        now = self._world.clock.now()
        with self._world.store.writing() as tx:
            intent = json.loads(tx.setting(_INTENT + name) or "{}")
            tx.delete_setting(_INTENT + name)
            tx.put_setting(f"{_MADE}{name}.{versions.latest}", now.isoformat())
            facts = {**intent, "to": versions.latest, "answer": answer, "finished": now.isoformat()}
            tx.put_setting(f"{ROTATION}{name}.{versions.latest}", json.dumps(facts, sort_keys=True))
            event = self._world.event(
                operator, "key.rotated", target=name, before=before, version=versions.latest, answer=answer
            )
            tx.append_events([event])
        return Rotated(name, before, versions.latest, versions.created.get(versions.latest, now), answer)


def made_at(world: OperatorWorld, name: KeyName, versions: KeyVersions) -> datetime | None:
    """When the newest version was made: from Vault, which does not tell it of hmac keys, else from our own records."""
    created = versions.created.get(versions.latest)
    if created is not None:
        return created
    with world.store.reading() as tx:
        known = tx.setting(f"{_MADE}{name}.{versions.latest}")
        known = known if known is not None or versions.latest > 1 else _first_seen(tx)
    return datetime.fromisoformat(known) if known is not None else None


def recorded_at(world: OperatorWorld, name: KeyName, version: int) -> datetime | None:
    """When `RotateKey` made a version, by our own clock; None where it was made otherwise."""
    with world.store.reading() as tx:
        known = tx.setting(f"{_MADE}{name}.{version}")
    return datetime.fromisoformat(known) if known is not None else None


def _first_seen(tx: Reader) -> str | None:
    """The first version is about as old as the installation."""
    return tx.setting("installed_at")


@dataclass(frozen=True, slots=True)
class Retired:
    """From which version on a key works."""

    name: KeyName
    version: int
    trimmed: bool


class RetireKey:
    """Stops older versions of a key from being used; reversible until they are trimmed (PCI DSS 3.7.5)."""

    def __init__(self, *, world: OperatorWorld, keys: OperatorKeys) -> None:
        self._world = world
        self._keys = keys

    def __call__(self, name: KeyName, operator: Operator, *, settle: Callable[[], None] = lambda: None) -> Retired:
        """Raise the minimum versions to the newest. Raises `PreconditionFailed` while one row needs an older one.

        `settle` is called after the minimums were raised and should take longer than any call may: what wrapped under
        an older version before has then been committed or given up. If such a row shows up, the minimums go back.
        """
        with self._world.store.exclusively(f"retire-{name}"):
            versions = self._keys.versions(name)
            self._refuse_if_needed(name, versions.latest)
            before = (max(versions.min_decryption, 1), versions.min_encryption)
            with self._world.store.writing() as tx:
                event = self._world.event(operator, "key.retiring", target=name, version=versions.latest)
                tx.append_events([event])
            self._keys.set_minimums(name, decryption=versions.latest, encryption=versions.latest)
            settle()
            try:
                self._refuse_if_needed(name, versions.latest)
            except PreconditionFailed:
                self._keys.set_minimums(name, decryption=before[0], encryption=before[1])
                raise
            with self._world.store.writing() as tx:
                tx.append_events([self._world.event(operator, "key.retired", target=name, version=versions.latest)])
            return Retired(name, versions.latest, trimmed=False)

    def _refuse_if_needed(self, name: KeyName, version: int) -> None:
        needed = older_than(version, rows_by_version(self._world, name))
        if needed:
            raise PreconditionFailed(
                "version_needed", message=f"{needed} rows still need a version of {name} older than {version}"
            )


class TrimKey:
    """Destroys retired versions for good, and with them whatever old backups still hold under them."""

    def __init__(self, *, world: OperatorWorld, keys: OperatorKeys) -> None:
        self._world = world
        self._keys = keys

    def __call__(self, name: KeyName, operator: Operator, *, snapshot_confirmed: bool) -> Retired:
        """Destroy what is below the minimum version.

        Raises `PreconditionFailed` unless the caller confirms that a Vault snapshot holding the newest version exists:
        restoring an older one would lose every card wrapped since.
        """
        with self._world.store.exclusively(f"retire-{name}"):
            versions = self._keys.versions(name)
            below = versions.min_decryption
            if older_than(below, rows_by_version(self._world, name)):
                raise PreconditionFailed("version_needed", message="rows still need an older version")
            if below <= max(1, versions.min_available):
                return Retired(name, below, trimmed=False)
            if not snapshot_confirmed:
                raise PreconditionFailed(
                    "snapshot_unconfirmed",
                    message=f"take a Vault snapshot that holds version {versions.latest} first, then confirm it",
                )
            if name is KeyName.CARDS:
                self._forget(operator)
            with self._world.store.writing() as tx:
                tx.append_events([self._world.event(operator, "key.trimming", target=name, below=below)])
            self._keys.trim(name, below=below)
            with self._world.store.writing() as tx:
                tx.append_events([self._world.event(operator, "key.trimmed", target=name, below=below)])
            return Retired(name, below, trimmed=True)

    def _forget(self, operator: Operator) -> None:
        """Remove former wraps: without their version they are waste."""
        while True:
            with self._world.store.writing() as tx:
                forgotten = tx.forget_previous_wraps(limit=1000)
                if forgotten == 0:
                    return
                tx.append_events([self._world.event(operator, "key.former_wraps_forgotten", cards=forgotten)])


def rows_by_version(world: OperatorWorld, name: KeyName) -> Mapping[int, int]:
    """How many rows need each version of a key."""
    with world.store.reading() as tx:
        match name:
            case KeyName.CARDS:
                return tx.count_wraps()
            case KeyName.ONCE:
                return tx.count_once_wraps(now=world.clock.now())
            case KeyName.FINGERPRINT:
                return tx.count_fingerprints()
            case KeyName.AUDIT:
                return {}


def older_than(version: int, counts: Mapping[int, int]) -> int:
    """How many rows are under older versions."""
    return sum(count for used, count in counts.items() if used < version)
