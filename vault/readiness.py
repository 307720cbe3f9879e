"""Proves that a process can do its work: a real wrap, a real unwrap, a real write path.

`sys/health` of Vault says 200 while every transit call fails, so nothing less than the real thing counts. The unwrap
needs something wrapped; processes that may only unwrap find it in the database, where those that may wrap left it.
"""

from __future__ import annotations

from vault.ports import IntakeKeys, KeyToWrap, ReleaseKeys
from vault.usecases.batch import World
from vault.usecases.canary import SETTING, canary_of, context_of


class Readiness:
    """The probes."""

    def __init__(self, *, world: World) -> None:
        self._world = world

    def store(self) -> None:
        """A write would work."""
        self._world.store.check()

    def intake(self, keys: IntakeKeys) -> None:
        """Wrapping works; leaves a canary for those that unwrap."""
        keys.check()
        with self._world.store.reading() as tx:
            if tx.setting(SETTING) is not None:
                return
        data_key = self._world.entropy.bytes(32)
        wrapped = keys.protect(
            cards=[KeyToWrap(data_key, context_of(self._world.environment))], once=[], fingerprints=[]
        ).cards[0]
        with self._world.store.writing() as tx:
            tx.put_setting(SETTING, wrapped.wrapped)

    def release(self, keys: ReleaseKeys) -> None:
        """Unwrapping works, and this is the Vault under whose keys this database was written."""
        with self._world.store.reading() as tx:
            canary = canary_of(tx, environment=self._world.environment)
        keys.check(canary)
