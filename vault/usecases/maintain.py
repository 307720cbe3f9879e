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


class MaintainOnceKey:
    """The use case; safe to run as often as one likes."""

    def __init__(self, *, world: OperatorWorld, keys: OperatorKeys) -> None:
        self._world = world
        self._keys = keys
        self._rotate = RotateKey(world=world, keys=keys)
        self._retire = RetireKey(world=world, keys=keys)

    def __call__(self, operator: Operator, *, rotate_after: timedelta = ROTATE_AFTER) -> Maintained:
        """Rotate if a day has passed; destroy versions that no living one-time token needs.

        Raises `KeyRingUnavailable`, `StoreUnavailable`, `Busy`.
        """
        name = KeyName.ONCE
        versions = self._keys.versions(name)
        made = self._made_at(versions)
        rotated = False
        if made is None or self._world.clock.now() - made >= rotate_after or self._is_cut_off(name):
            after = self._rotate(name, operator, again=True)
            rotated = after.after > versions.latest
            versions = self._keys.versions(name)
        # Vault says 0 until something was trimmed; there is nothing below the first version.
        if max(versions.min_available, 1) >= versions.latest:
            return Maintained(versions.latest, rotated, 0)
        made = self._made_at(versions)
        young = made is None or self._world.clock.now() - made < SETTLED
        if young or older_than(versions.latest, rows_by_version(self._world, name)):
            return Maintained(versions.latest, rotated, 0)
        self._retire(name, operator)
        self._trim(operator, below=versions.latest)
        return Maintained(versions.latest, rotated, versions.latest)

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
