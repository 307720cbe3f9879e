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
from vault.ports import KeyName, Reader, ReleaseKeys
from vault.ports_operator import KeyVersions, OperatorKeys, OperatorWriter
from vault.usecases.canary import recover_canary, rewrap_canary, version_of_canary
from vault.usecases.operating import Operator, OperatorWorld
from vault.usecases.restored import (
    ADVICE,
    INTENT,
    check_not_restored,
    newer_than,
    reborn,
    refuse_if_restored,
    remember,
)
from vault.usecases.restored import rows_by_version as rows_by_version
from vault.usecases.sample import refuse_if_one_does_not_open

SETTLED = timedelta(hours=1)
"""A version that this command made less than this ago is taken for the one that a repeated command asks for."""

ROTATION = "rotation_record."
"""Settings that say who rotated a key when and why, by key and version."""
_MADE = "rotated."
OLDEST = "oldest."
"""Settings with the oldest version under which the database takes a wrap, by key: the store itself looks at them."""
_RETIRED = "retired."
"""Settings with the version to which `RetireKey` went to its end, the wait included, by key."""


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

    def plan(self, name: KeyName, *, again: bool = False) -> Rotated:
        """What a run would answer if Vault does as it is told; changes nothing. Raises as a run does."""
        versions = self._keys.versions(name)
        check_not_restored(self._world, name, versions)
        started_from = self._begun_at(name, versions)
        if started_from is None:
            recent = self._recent(name, versions, again=again)
            return recent or Rotated(name, versions.latest, versions.latest + 1, None, "ok")
        return Rotated(name, started_from, max(started_from + 1, versions.latest), None, "resumed")

    def __call__(self, name: KeyName, operator: Operator, *, again: bool = False) -> Rotated:
        """Make one new version. With `again` also right after another rotation.

        Raises `KeyRingUnavailable` where Vault did not do it, or where it cannot be told yet: run it again, it will
        not rotate twice. Raises `PreconditionFailed` if Vault was restored from an older snapshot. Raises `Busy`.
        """
        with self._world.store.exclusively(f"rotate-{name}"):
            versions = self._keys.versions(name)
            refuse_if_restored(self._world, name, versions)
            started_from = self._begun_at(name, versions)
            if started_from is None:
                recent = self._recent(name, versions, again=again)
                if recent is not None:
                    return recent
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

    def _begun_at(self, name: KeyName, versions: KeyVersions) -> int | None:
        """The version at which an unfinished rotation was begun. Raises `PreconditionFailed` if Vault forgot it."""
        with self._world.store.reading() as tx:
            known = tx.setting(INTENT + name)
        if known is None:
            return None
        begun_at = int(json.loads(known)["from"])
        if begun_at > versions.latest:
            raise PreconditionFailed(
                "version_unknown",
                message=f"a rotation of {name} was begun at version {begun_at}, which is not there: {ADVICE}",
            )
        return begun_at

    def _recent(self, name: KeyName, versions: KeyVersions, *, again: bool) -> Rotated | None:
        """The last rotation, if it is taken for the one that is asked for."""
        made = recorded_at(self._world, name, versions.latest)
        if again or made is None or self._world.clock.now() - made >= SETTLED:
            return None
        return Rotated(name, versions.latest, versions.latest, made, "recent")

    def _write_intent(self, name: KeyName, version: int, operator: Operator) -> None:
        begun = self._world.clock.now().isoformat()
        facts = {"from": version, "by": operator.name, "reason": operator.reason, "begun": begun}
        with self._world.store.writing() as tx:
            tx.put_setting(INTENT + name, json.dumps(facts, sort_keys=True))
            tx.append_events([self._world.event(operator, "key.rotation_begun", target=name, version=version)])

    def _finish(self, name: KeyName, before: int, versions: KeyVersions, answer: str, operator: Operator) -> Rotated:
        now = self._world.clock.now()
        with self._world.store.writing() as tx:
            intent = json.loads(tx.setting(INTENT + name) or "{}")
            tx.delete_setting(INTENT + name)
            tx.put_setting(f"{_MADE}{name}.{versions.latest}", now.isoformat())
            facts = {**intent, "to": versions.latest, "answer": answer, "finished": now.isoformat()}
            tx.put_setting(f"{ROTATION}{name}.{versions.latest}", json.dumps(facts, sort_keys=True))
            event = self._world.event(
                operator, "key.rotated", target=name, before=before, version=versions.latest, answer=answer
            )
            tx.append_events([event])
        remember(self._world, name, versions)
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
    """This run destroyed older versions; for `RetireKey`: they were destroyed before."""


class RetireKey:
    """Stops older versions of a key from being used; reversible until they are trimmed (PCI DSS 3.7.5)."""

    def __init__(self, *, world: OperatorWorld, keys: OperatorKeys) -> None:
        self._world = world
        self._keys = keys

    def __call__(self, name: KeyName, operator: Operator, *, settle: Callable[[], None] = lambda: None) -> Retired:
        """Raise the minimum versions to the newest. Raises `PreconditionFailed` while one row needs an older one.

        `settle` is called after the minimums were raised and should take longer than any call may: what wrapped under
        an older version before has then been committed or given up. If such a row shows up, the minimums go back.
        Run again after it came to its end, it does nothing and does not wait.
        """
        with self._world.store.exclusively(f"retire-{name}"):
            versions = self._keys.versions(name)
            refuse_if_restored(self._world, name, versions)
            self._refuse_if_needed(name, versions.latest)
            if self._is_done(name, versions):
                return Retired(name, versions.latest, trimmed=oldest_available(versions) >= versions.latest)
            if name is KeyName.CARDS:
                self._take_canary_along(versions.latest, operator)
            before = (max(versions.min_decryption, 1), versions.min_encryption)
            with self._world.store.writing() as tx:
                fence = tx.setting(OLDEST + name)
                # From here on no wrap under an older version gets into the database, however long its maker slept.
                tx.put_setting(OLDEST + name, str(versions.latest))
                # Should this run be cut off, the next one must wait.
                tx.delete_setting(_RETIRED + name)
                event = self._world.event(operator, "key.retiring", target=name, version=versions.latest)
                tx.append_events([event])
            self._keys.set_minimums(name, decryption=versions.latest, encryption=versions.latest)
            settle()
            try:
                self._refuse_if_needed(name, versions.latest)
            except PreconditionFailed:
                self._keys.set_minimums(name, decryption=before[0], encryption=before[1])
                with self._world.store.writing() as tx:
                    _set_fence(tx, name, int(fence or 0))
                    tx.append_events([self._world.event(operator, "key.retirement_taken_back", target=name)])
                raise
            with self._world.store.writing() as tx:
                tx.put_setting(_RETIRED + name, str(versions.latest))
                tx.append_events([self._world.event(operator, "key.retired", target=name, version=versions.latest)])
            return Retired(name, versions.latest, trimmed=False)

    def _is_done(self, name: KeyName, versions: KeyVersions) -> bool:
        """Whether a run before came to its end, and nothing was lowered since, in Vault or in the database."""
        with self._world.store.reading() as tx:
            recorded = (tx.setting(_RETIRED + name), tx.setting(OLDEST + name))
        lowest = min(versions.min_decryption, versions.min_encryption)
        return recorded == (str(versions.latest), str(versions.latest)) and lowest >= versions.latest

    def _take_canary_along(self, version: int, operator: Operator) -> None:
        """Processes that unwrap prove themselves with it; under a retired version they would never be ready again."""
        rewrap_canary(self._world, self._keys, operator, version=version)
        left_at = version_of_canary(self._world)
        if left_at is not None and left_at < version:
            raise PreconditionFailed("canary_refused", message="the canary does not belong to this Vault's key")

    def _refuse_if_needed(self, name: KeyName, version: int) -> None:
        needed = older_than(version, rows_by_version(self._world, name))
        if needed:
            raise PreconditionFailed(
                "version_needed", message=f"{needed} rows still need a version of {name} older than {version}"
            )


class TrimKey:
    """Destroys retired versions for good, and with them whatever old backups still hold under them."""

    def __init__(self, *, world: OperatorWorld, keys: OperatorKeys, release: ReleaseKeys | None = None) -> None:
        self._world = world
        self._keys = keys
        self._release = release

    def __call__(self, name: KeyName, operator: Operator, *, snapshot_confirmed: bool) -> Retired:
        """Destroy what is below the minimum version.

        Raises `PreconditionFailed` unless the caller confirms that a Vault snapshot holding the newest version exists:
        restoring an older one would lose every card wrapped since. So it does if Vault was restored from an older
        snapshot, and, with `release`, if one of a sample of cards does not open.
        """
        with self._world.store.exclusively(f"retire-{name}"):
            versions = self._keys.versions(name)
            refuse_if_restored(self._world, name, versions)
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
                if self._release is not None:
                    refuse_if_one_does_not_open(self._world, self._release)
                self._forget(operator, below)
            with self._world.store.writing() as tx:
                tx.append_events([self._world.event(operator, "key.trimming", target=name, below=below)])
            self._keys.trim(name, below=below)
            with self._world.store.writing() as tx:
                tx.append_events([self._world.event(operator, "key.trimmed", target=name, below=below)])
            return Retired(name, below, trimmed=True)

    def _forget(self, operator: Operator, below: int) -> None:
        """Remove former wraps under what will be destroyed: without their version they are waste."""
        while True:
            with self._world.store.writing() as tx:
                forgotten = tx.forget_previous_wraps(below=below, limit=1000)
                if forgotten == 0:
                    return
                tx.append_events([self._world.event(operator, "key.former_wraps_forgotten", cards=forgotten)])


class UnretireKey:
    """Makes retired versions that were not trimmed usable again."""

    def __init__(self, *, world: OperatorWorld, keys: OperatorKeys) -> None:
        self._world = world
        self._keys = keys

    def __call__(self, name: KeyName, operator: Operator) -> Retired:
        """Lower the minimum versions to the oldest that exists. Raises `KeyRingUnavailable`, `Busy`."""
        with self._world.store.exclusively(f"retire-{name}"):
            oldest = oldest_available(self._keys.versions(name))
            with self._world.store.writing() as tx:
                tx.append_events([self._world.event(operator, "key.unretiring", target=name, version=oldest)])
            self._keys.set_minimums(name, decryption=oldest, encryption=oldest)
            with self._world.store.writing() as tx:
                _set_fence(tx, name, oldest)
                tx.append_events([self._world.event(operator, "key.unretired", target=name, version=oldest)])
            return Retired(name, oldest, trimmed=False)


def oldest_available(versions: KeyVersions) -> int:
    """The oldest version that was not destroyed. Vault says 0 until something was."""
    return max(versions.min_available, 1)


def _set_fence(tx: OperatorWriter, name: KeyName, oldest: int) -> None:
    if oldest > 1:
        tx.put_setting(OLDEST + name, str(oldest))
    else:
        tx.delete_setting(OLDEST + name)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of cards whose current wrap Vault cannot open."""

    restored: int
    without_former_wrap: int
    latest: int


class RecoverWraps:
    """After Vault was restored from another snapshot: exchanges wraps that it cannot open for former ones that it can.

    Nothing is thrown away: should the newer snapshot be found, the same command exchanges them back.
    """

    def __init__(self, *, world: OperatorWorld, keys: OperatorKeys) -> None:
        self._world = world
        self._keys = keys

    def waiting(self) -> tuple[int, int, int]:
        """How many cards need another wrap, and the oldest and newest version that open cards."""
        versions = self._keys.versions(KeyName.CARDS)
        changed = reborn(self._world, KeyName.CARDS, versions)
        latest = min((versions.latest, *(version - 1 for version in changed)))
        oldest = max(versions.min_decryption, 1)
        return self._unusable(oldest, latest), oldest, latest

    def __call__(self, operator: Operator) -> Recovered:
        """Exchange them all, and forget what was remembered of a Vault that is no more."""
        waiting, oldest, latest = self.waiting()
        # Before the walk: what is sealed under the versions of this Vault must not be refused.
        for name in KeyName:
            self._adapt(name, operator)
        recover_canary(self._world, operator, oldest=oldest, latest=latest)
        restored = 0
        while waiting:
            with self._world.store.writing() as tx:
                changed = tx.restore_previous_wraps(above=latest, below=oldest, limit=1000)
                if changed == 0:
                    break
                tx.append_events([self._world.event(operator, "key.former_wraps_restored", cards=changed)])
            restored += changed
        for name in KeyName:
            self._forget(name, operator)
        return Recovered(restored, self._unusable(oldest, latest), latest)

    def _unusable(self, oldest: int, latest: int) -> int:
        rows = rows_by_version(self._world, KeyName.CARDS)
        return newer_than(latest, rows) + older_than(oldest, rows)

    def _adapt(self, name: KeyName, operator: Operator) -> None:
        """A fence above what Vault itself allows would let nobody store a card."""
        oldest = max(self._keys.versions(name).min_decryption, 1)
        with self._world.store.writing() as tx:
            fence = tx.setting(OLDEST + name)
            if fence is not None and int(fence) > oldest:
                _set_fence(tx, name, oldest)
                tx.append_events([self._world.event(operator, "key.fence_lowered", target=name, version=oldest)])

    def _forget(self, name: KeyName, operator: Operator) -> None:
        """Versions that Vault does not have and no row needs may be made again."""
        versions = self._keys.versions(name)
        if newer_than(versions.latest, rows_by_version(self._world, name)) or reborn(self._world, name, versions):
            return
        remember(self._world, name, versions)
        with self._world.store.writing() as tx:
            intent = tx.setting(INTENT + name)
            if intent is not None and int(json.loads(intent)["from"]) > versions.latest:
                tx.delete_setting(INTENT + name)
                tx.append_events([self._world.event(operator, "key.rotation_forgotten", target=name)])


def older_than(version: int, counts: Mapping[int, int]) -> int:
    """How many rows are under older versions."""
    return sum(count for used, count in counts.items() if used < version)
