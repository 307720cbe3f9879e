"""Which versions of the fingerprint key are in use. A card may have been stored under any of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from vault.domain.errors import KeyRingUnavailable
from vault.keyring.session import VaultSession
from vault.keyring.trouble import Trouble
from vault.ports import KeyName

MAX_AGE = 60.0
"""Seconds. A rotation is noticed sooner, by the version that an answer carries; this finds raised minimums."""
MAX_VERSIONS = 32
"""More is a sign of trouble, not of rotation."""


class FingerprintVersions:
    """The versions that Vault still computes with, newest first; read once a minute for all threads."""

    def __init__(self, session: VaultSession, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._clock = clock
        self._lock = threading.Lock()
        self._versions: tuple[int, ...] = ()
        self._read_at = float("-inf")

    def current(self) -> tuple[int, ...]:
        """Newest first, never empty. Raises `KeyRingUnavailable`."""
        if self._clock() - self._read_at < MAX_AGE:
            return self._versions
        return self.reread(stale=self._versions, asked_at=self._clock())

    def reread(self, *, stale: tuple[int, ...], asked_at: float | None = None) -> tuple[int, ...]:
        """Ask Vault, unless another thread has done so since `asked_at`, or has found other versions than `stale`."""
        with self._lock:
            if self._versions != stale or (asked_at is not None and self._read_at >= asked_at):
                return self._versions
            versions = self._read()
            self._versions, self._read_at = versions, self._clock()
            return versions

    def _read(self) -> tuple[int, ...]:
        data = self._session.read(f"keys/{KeyName.FINGERPRINT}")
        bounds = ("min_decryption_version", "min_encryption_version", "min_available_version")
        try:
            latest = int(data["latest_version"])
            oldest = max(1, *(int(data.get(bound) or 0) for bound in bounds))
        except (KeyError, TypeError, ValueError):
            latest, oldest = 0, 1
        if not oldest <= latest < oldest + MAX_VERSIONS:
            raise KeyRingUnavailable(Trouble.ODD_ANSWER)
        return tuple(range(latest, oldest - 1, -1))
