"""The two key rings that processes hold: one wraps and fingerprints, the other unwraps.

Neither keeps a data key, and neither writes anything to a log.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from vault.domain.errors import KeyRefused, KeyRingUnavailable
from vault.domain.grant import SealedKey
from vault.keyring import wire
from vault.keyring.keyflags import inspect_keys, inspect_login
from vault.keyring.session import VaultSession
from vault.keyring.trips import Trips
from vault.keyring.trouble import OUTAGES, Trouble
from vault.keyring.versions import FingerprintVersions
from vault.ports import Fingerprint, KeyName, KeyToUnwrap, KeyToWrap, Protected

T = TypeVar("T")

_Answer = list[T] | KeyRefused | KeyRingUnavailable
_Answers = Iterator[_Answer[Any]]


class IntakeTransit:
    """`IntakeKeys` over transit."""

    def __init__(self, session: VaultSession) -> None:
        self._session = session
        self._versions = FingerprintVersions(session)

    def protect(
        self, *, cards: Sequence[KeyToWrap], once: Sequence[KeyToWrap], fingerprints: Sequence[bytes]
    ) -> Protected:
        """Wrap and fingerprint, side by side. All or nothing: raises `KeyRingUnavailable`."""
        versions = self._versions.current() if fingerprints else ()
        of_cards = [wire.wrap(KeyName.CARDS, chunk) for chunk in _chunks(cards)]
        of_once = [wire.wrap(KeyName.ONCE, chunk) for chunk in _chunks(once)]
        answers = self._ask([*of_cards, *of_once, *_of_fingerprints(fingerprints, versions)])
        return Protected(
            cards=_joined(answers, len(of_cards)),
            once=_joined(answers, len(of_once)),
            fingerprints=self._settle(fingerprints, versions, answers) if fingerprints else (),
        )

    def check(self) -> None:
        """Prove readiness with a real wrap under both keys. Raises `KeyRingUnavailable`."""
        probe = KeyToWrap(secrets.token_bytes(wire.KEY_BYTES), secrets.token_bytes(32))
        self.protect(cards=(probe,), once=(probe,), fingerprints=())

    def inspect_keys(self) -> list[str]:
        """Every reason not to start with the keys and the login as they are. Raises `KeyRingUnavailable`."""
        names = (KeyName.CARDS, KeyName.ONCE, KeyName.FINGERPRINT)
        return [*inspect_login(self._session), *inspect_keys(self._session, names)]

    def _ask(self, questions: Sequence[wire.Question[Any]]) -> _Answers:
        """All side by side; each has an answer of its own."""
        found = self._session.write_all([(question.path, question.body) for question in questions])
        return iter([_read(question, answer) for question, answer in zip(questions, found, strict=True)])

    def _settle(
        self, messages: Sequence[bytes], versions: tuple[int, ...], answers: _Answers
    ) -> list[tuple[Fingerprint, ...]]:
        """The fingerprints of each message; asked for once more if the key's versions changed meanwhile."""
        try:
            rows = _rows(messages, versions, answers)
        except KeyRingUnavailable as e:
            # An old version was retired since the versions were read.
            if e.reason != Trouble.ERROR or len(versions) == 1:
                raise
            rows = []
        if _are_under(versions, rows):
            return rows
        versions = self._versions.reread(stale=versions)
        rows = _rows(messages, versions, self._ask(_of_fingerprints(messages, versions)))
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
            if e.reason in OUTAGES:
                outages.append(e)
            return e


def _chunks(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + wire.BATCH_ITEMS] for start in range(0, len(items), wire.BATCH_ITEMS)]


def _of_fingerprints(messages: Sequence[bytes], versions: tuple[int, ...]) -> list[wire.Question[Fingerprint]]:
    """For each chunk of messages one question per key version, newest first."""
    # The newest is asked for by leaving the version out: the answer then tells of a rotation at once.
    asked: tuple[int | None, ...] = (None, *versions[1:])
    return [wire.fingerprint(chunk, version=version) for chunk in _chunks(messages) for version in asked]


def _read(question: wire.Question[T], answer: dict[str, Any] | KeyRefused | KeyRingUnavailable) -> _Answer[T]:
    if not isinstance(answer, dict):
        return answer
    try:
        return question.read(answer)
    except KeyRingUnavailable as e:
        return e


def _result(answers: _Answers) -> list[Any]:
    """The next answer. Raises where it is an error."""
    answer = next(answers)
    if isinstance(answer, list):
        return answer
    raise answer


def _joined(answers: _Answers, chunks: int) -> list[SealedKey]:
    return [key for _ in range(chunks) for key in _result(answers)]


def _rows(messages: Sequence[bytes], versions: tuple[int, ...], answers: _Answers) -> list[tuple[Fingerprint, ...]]:
    columns = [[_result(answers) for _ in versions] for _ in _chunks(messages)]
    return [row for chunk in columns for row in zip(*chunk, strict=True)]


def _are_under(versions: tuple[int, ...], rows: list[tuple[Fingerprint, ...]]) -> bool:
    return bool(rows) and all(tuple(fp.version for fp in row) == versions for row in rows)
