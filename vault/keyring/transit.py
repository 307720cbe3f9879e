"""The two key rings that processes hold: one wraps and fingerprints, the other unwraps.

Neither keeps a data key, and neither writes anything to a log.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from vault.domain.errors import KeyRefused, KeyRingUnavailable
from vault.domain.grant import SealedKey
from vault.keyring import wire
from vault.keyring.keyflags import inspect_keys, inspect_login
from vault.keyring.session import VaultSession
from vault.keyring.trips import Trips
from vault.keyring.trouble import Trouble
from vault.keyring.versions import FingerprintVersions
from vault.ports import Fingerprint, KeyName, KeyToUnwrap, KeyToWrap, Protected

T = TypeVar("T")

_Columns = list[list[Future[list[Fingerprint]]]]
"""For each chunk of messages one answer per key version, newest first."""

_OUTAGES = frozenset({Trouble.SEALED, Trouble.UNREACHABLE, Trouble.TIMEOUT, Trouble.CLOSED})
"""Troubles that the next call would meet too."""


class IntakeTransit:
    """`IntakeKeys` over transit."""

    def __init__(self, session: VaultSession, *, threads: int = 8) -> None:
        self._session = session
        self._versions = FingerprintVersions(session)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="vault-intake")

    def protect(
        self, *, cards: Sequence[KeyToWrap], once: Sequence[KeyToWrap], fingerprints: Sequence[bytes]
    ) -> Protected:
        """Wrap and fingerprint, side by side. All or nothing: raises `KeyRingUnavailable`."""
        versions = self._versions.current() if fingerprints else ()
        trips = Trips(self._pool)
        wrapped_cards = self._wrap(trips, KeyName.CARDS, cards)
        wrapped_once = self._wrap(trips, KeyName.ONCE, once)
        columns = self._fingerprint(trips, fingerprints, versions)
        trips.run()
        return Protected(
            cards=_joined(wrapped_cards),
            once=_joined(wrapped_once),
            fingerprints=self._settle(fingerprints, versions, columns) if fingerprints else (),
        )

    def check(self) -> None:
        """Prove readiness with a real wrap under both keys. Raises `KeyRingUnavailable`."""
        probe = KeyToWrap(secrets.token_bytes(wire.KEY_BYTES), secrets.token_bytes(32))
        self.protect(cards=(probe,), once=(probe,), fingerprints=())

    def inspect_keys(self) -> list[str]:
        """Every reason not to start with the keys and the login as they are. Raises `KeyRingUnavailable`."""
        names = (KeyName.CARDS, KeyName.ONCE, KeyName.FINGERPRINT)
        return [*inspect_login(self._session), *inspect_keys(self._session, names)]

    def close(self) -> None:
        """Stop the threads; the session stays open."""
        self._pool.shutdown(cancel_futures=True)

    def _wrap(self, trips: Trips, name: KeyName, items: Sequence[KeyToWrap]) -> list[Future[list[SealedKey]]]:
        return [trips.add(partial(wire.wrap, self._session, name, chunk)) for chunk in _chunks(items)]

    def _fingerprint(self, trips: Trips, messages: Sequence[bytes], versions: tuple[int, ...]) -> _Columns:
        # The newest is asked for by leaving the version out: the answer then tells of a rotation at once.
        asked: tuple[int | None, ...] = (None, *versions[1:])
        return [
            [trips.add(partial(wire.fingerprint, self._session, chunk, version=version)) for version in asked]
            for chunk in _chunks(messages)
        ]

    def _settle(
        self, messages: Sequence[bytes], versions: tuple[int, ...], columns: _Columns
    ) -> list[tuple[Fingerprint, ...]]:
        """The fingerprints of each message; asked for once more if the key's versions changed meanwhile."""
        try:
            rows = _rows(columns)
        except KeyRingUnavailable as e:
            # An old version was retired since the versions were read.
            if e.reason != Trouble.ERROR or len(versions) == 1:
                raise
            rows = []
        if _are_under(versions, rows):
            return rows
        versions = self._versions.reread(stale=versions)
        trips = Trips(self._pool)
        columns = self._fingerprint(trips, messages, versions)
        trips.run()
        rows = _rows(columns)
        if not _are_under(versions, rows):
            raise KeyRingUnavailable(Trouble.ODD_ANSWER)
        return rows


class ReleaseTransit:
    """`ReleaseKeys` over transit."""

    def __init__(self, session: VaultSession, *, threads: int = 8) -> None:
        self._session = session
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="vault-release")

    def unwrap(self, items: Sequence[KeyToUnwrap]) -> Sequence[bytes | KeyRefused | KeyRingUnavailable]:
        """Unwrap each key in a Vault call of its own, so that Vault's audit log shows each (PCI DSS 10.2.1.1)."""
        answers: dict[int, bytes | KeyRefused | KeyRingUnavailable] = {}
        outages: list[KeyRingUnavailable] = []
        waiting = deque(enumerate(items))

        def work() -> None:
            while waiting:
                try:
                    place, item = waiting.popleft()
                except IndexError:  # another took the last one just now
                    return
                answers[place] = self._unwrap_one(item, outages)

        trips = Trips(self._pool)
        for _ in range(min(self._threads, len(items))):
            trips.add(work)
        trips.run()
        return [answers[place] for place in range(len(items))]

    def check(self, canary: KeyToUnwrap | None) -> None:
        """Prove readiness with a real unwrap of `canary`. Raises `KeyRingUnavailable`, also if there is none."""
        if canary is None:
            raise KeyRingUnavailable(Trouble.NO_CANARY)
        (answer,) = self.unwrap((canary,))
        if isinstance(answer, KeyRingUnavailable):
            raise answer
        if isinstance(answer, KeyRefused):
            # Another Vault with keys of the same name, or one restored from before the canary.
            raise KeyRingUnavailable(Trouble.CANARY_REFUSED)

    def inspect_keys(self) -> list[str]:
        """Every reason not to start with the keys and the login as they are. Raises `KeyRingUnavailable`."""
        return [*inspect_login(self._session), *inspect_keys(self._session, (KeyName.CARDS, KeyName.ONCE))]

    def close(self) -> None:
        """Stop the threads; the session stays open."""
        self._pool.shutdown(cancel_futures=True)

    def _unwrap_one(
        self, item: KeyToUnwrap, outages: list[KeyRingUnavailable]
    ) -> bytes | KeyRefused | KeyRingUnavailable:
        if outages:
            # Not one timeout after the other for each key that waits its turn.
            return KeyRingUnavailable(outages[0].reason)
        try:
            return wire.unwrap(self._session, item)
        except KeyRefused as e:
            return e
        except KeyRingUnavailable as e:
            if e.reason in _OUTAGES:
                outages.append(e)
            return e


def _chunks(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + wire.BATCH_ITEMS] for start in range(0, len(items), wire.BATCH_ITEMS)]


def _joined(answers: list[Future[list[SealedKey]]]) -> list[SealedKey]:
    return [key for answer in answers for key in answer.result()]


def _rows(columns: _Columns) -> list[tuple[Fingerprint, ...]]:
    return [row for chunk in columns for row in zip(*(column.result() for column in chunk), strict=True)]


def _are_under(versions: tuple[int, ...], rows: list[tuple[Fingerprint, ...]]) -> bool:
    return bool(rows) and all(tuple(fp.version for fp in row) == versions for row in rows)
