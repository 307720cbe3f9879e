"""Care for the one-time key: rotated every day, older versions destroyed once no one-time token needs them.

After that nobody can open an old one-time token, whatever was copied in time (PCI DSS 3.3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from vault.domain.grant import ONE_TIME_LIFETIME
from vault.ports import KeyName
from vault.ports_operator import KeyVersions, OperatorKeys
from vault.usecases.operating import Operator, OperatorWorld
from vault.usecases.restored import check_not_restored
from vault.usecases.rotate import RetireKey, RotateKey, made_at, older_than, recorded_at, rows_by_version

ROTATE_AFTER = timedelta(days=1)
SETTLED = ONE_TIME_LIFETIME + timedelta(minutes=5)
"""After this nothing wrapped under the version before can still be of use, nor be on its way into the database."""


@dataclass(frozen=True, slots=True)
class Maintained:
    """What was done."""

    version: int
    rotated: bool
    trimmed_below: int
    """0: nothing was trimmed."""


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done, and when something will be."""

    version: int
    """The newest there is."""
    would_make: int
    """The version to be made, as a day has passed or a rotation was cut off; 0: none."""
    would_trim_below: int
    """0: nothing is destroyed."""
    next_rotation: datetime
    next_trim: datetime | None
    """None: there is nothing to destroy, or it waits for one-time tokens that live at most fifteen minutes."""
    waits_for: int
    """Living one-time tokens that need an older version."""


class MaintainOnceKey:
    """The use case; safe to run as often as one likes."""

    def __init__(self, *, world: OperatorWorld, keys: OperatorKeys) -> None:
        self._world = world
        self._keys = keys
        self._rotate = RotateKey(world=world, keys=keys)
        self._retire = RetireKey(world=world, keys=keys)

    def plan(self, *, rotate_after: timedelta = ROTATE_AFTER) -> Due:
        """What a run would do now; changes nothing. Raises as a run does."""
        versions = self._keys.versions(KeyName.ONCE)
        check_not_restored(self._world, KeyName.ONCE, versions)
        if self._rotates(versions, rotate_after):
            made = self._rotate.plan(KeyName.ONCE, again=True).after
            now = self._world.clock.now()
            return Due(versions.latest, made, 0, now + rotate_after, now + SETTLED, self._needed(made))
        return self._due(versions, rotate_after)

    def __call__(self, operator: Operator, *, rotate_after: timedelta = ROTATE_AFTER) -> Maintained:
        """Rotate if a day has passed; destroy versions that no living one-time token needs.

        Raises `KeyRingUnavailable`, `StoreUnavailable`, `Busy`.
        """
        name = KeyName.ONCE
        versions = self._keys.versions(name)
        rotated = False
        if self._rotates(versions, rotate_after):
            after = self._rotate(name, operator, again=True)
            rotated = after.after > versions.latest
            versions = self._keys.versions(name)
        below = self._due(versions, rotate_after).would_trim_below
        if below:
            self._retire(name, operator)
            self._trim(operator, below=below)
        return Maintained(versions.latest, rotated, below)

    def _rotates(self, versions: KeyVersions, rotate_after: timedelta) -> bool:
        made = self._made_at(versions)
        return made is None or self._world.clock.now() - made >= rotate_after or self._is_cut_off(KeyName.ONCE)

    def _due(self, versions: KeyVersions, rotate_after: timedelta) -> Due:
        """What is to be done once the newest version is young enough."""
        now = self._world.clock.now()
        # A version of unknown age is taken for a new one: haste destroys.
        made = self._made_at(versions) or now
        next_rotation, next_trim = made + rotate_after, made + SETTLED
        # Vault says 0 until something was trimmed; there is nothing below the first version.
        if max(versions.min_available, 1) >= versions.latest:
            return Due(versions.latest, 0, 0, next_rotation, None, 0)
        needed = self._needed(versions.latest)
        if now < next_trim:
            return Due(versions.latest, 0, 0, next_rotation, next_trim, needed)
        return Due(versions.latest, 0, 0 if needed else versions.latest, next_rotation, None, needed)

    def _needed(self, version: int) -> int:
        return older_than(version, rows_by_version(self._world, KeyName.ONCE))

    def _made_at(self, versions: KeyVersions) -> datetime | None:
        """When the newest version was made. Of two clocks the later one: Vault's may be behind, and haste destroys."""
        told = made_at(self._world, KeyName.ONCE, versions)
        recorded = recorded_at(self._world, KeyName.ONCE, versions.latest)
        return max((moment for moment in (told, recorded) if moment is not None), default=None)

    def _is_cut_off(self, name: KeyName) -> bool:
        with self._world.store.reading() as tx:
            return tx.setting(f"rotation.{name}") is not None

    def _trim(self, operator: Operator, *, below: int) -> None:
        """No snapshot is asked for: what a one-time token holds is worth nothing after fifteen minutes."""
        self._keys.trim(KeyName.ONCE, below=below)
        with self._world.store.writing() as tx:
            tx.append_events([self._world.event(operator, "key.trimmed", target=KeyName.ONCE, below=below)])
