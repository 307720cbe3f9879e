"""Notices a Vault that was restored from an older snapshot, before anything is done that makes the loss permanent.

Such a Vault misses versions that rows are under; or, if it was rotated since, it has another version of the same
number. The second is known by the time at which Vault says that it was made.
"""

from __future__ import annotations

from collections.abc import Mapping

from vault.domain.errors import PreconditionFailed
from vault.ports import KeyName
from vault.ports_operator import KeyVersions, OperatorReader
from vault.usecases.operating import OperatorWorld

INTENT = "rotation."
"""Settings with a rotation that was begun and not finished, by key."""
MADE_BY_VAULT = "version_made."
"""Settings with the creation time of versions as Vault tells it, by key and version."""

ADVICE = "Vault was restored from an older snapshot; restore the newer one, or run `cardvault keys recover`"


def rows_by_version(world: OperatorWorld, name: KeyName) -> Mapping[int, int]:
    """How many rows need each version of a key."""
    with world.store.reading() as tx:
        return _rows(world, tx, name)


def _rows(world: OperatorWorld, tx: OperatorReader, name: KeyName) -> Mapping[int, int]:
    match name:
        case KeyName.CARDS:
            return tx.count_wraps()
        case KeyName.ONCE:
            return tx.count_once_wraps(now=world.clock.now())
        case KeyName.FINGERPRINT:
            return tx.count_fingerprints()
        case KeyName.AUDIT:
            return {}


def newer_than(version: int, counts: Mapping[int, int]) -> int:
    """How many rows are under newer versions."""
    return sum(count for used, count in counts.items() if used > version)


def reborn(world: OperatorWorld, name: KeyName, versions: KeyVersions) -> list[int]:
    """Versions with rows that are not the ones of this number that Vault had before, lowest first."""
    with world.store.reading() as tx:
        remembered = _remembered(tx, name)
        rows = _rows(world, tx, name)
    return [v for v, made in _made(versions).items() if rows.get(v) and remembered.get(v, made) != made]


def refuse_if_restored(world: OperatorWorld, name: KeyName, versions: KeyVersions) -> None:
    """Raise `PreconditionFailed` where rows need what this Vault does not have; else remember its versions."""
    check_not_restored(world, name, versions)
    remember(world, name, versions)


def check_not_restored(world: OperatorWorld, name: KeyName, versions: KeyVersions) -> None:
    """Raise `PreconditionFailed` where rows need what this Vault does not have; changes nothing."""
    lost = newer_than(versions.latest, rows_by_version(world, name))
    if lost:
        raise PreconditionFailed(
            "version_unknown",
            message=f"{lost} rows need a version of {name} newer than {versions.latest}: {ADVICE}",
        )
    changed = reborn(world, name, versions)
    if changed:
        raise PreconditionFailed(
            "version_reborn",
            message=f"version {changed[0]} of {name} is not the one that rows are wrapped under: {ADVICE}",
        )


def remember(world: OperatorWorld, name: KeyName, versions: KeyVersions) -> None:
    """Write down when Vault made its versions, and forget those that it does not have: no row needs them."""
    made = _made(versions)
    with world.store.reading() as tx:
        remembered = _remembered(tx, name)
    new = {v: moment for v, moment in made.items() if remembered.get(v) != moment}
    gone = [v for v in remembered if v > versions.latest]
    if not new and not gone:
        return
    with world.store.writing() as tx:
        for version, moment in new.items():
            tx.put_setting(f"{MADE_BY_VAULT}{name}.{version}", moment)
        for version in gone:
            tx.delete_setting(f"{MADE_BY_VAULT}{name}.{version}")


def _remembered(tx: OperatorReader, name: KeyName) -> dict[int, str]:
    found = tx.settings(f"{MADE_BY_VAULT}{name}.")
    return {int(setting.rpartition(".")[2]): made for setting, made in found.items()}


def _made(versions: KeyVersions) -> dict[int, str]:
    return {version: versions.created[version].isoformat() for version in sorted(versions.created)}
