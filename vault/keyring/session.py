"""One login to Vault, kept alive, shared by many threads.

Nothing here touches the network before the first call: a process starts while Vault is sealed or away, and heals by
itself once Vault is back.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import hvac

from vault.domain.errors import KeyRefused, KeyRingUnavailable
from vault.keyring.http import http_session, vault_client
from vault.keyring.login import Lease, Login, VaultAddress
from vault.keyring.posts import Posts, Sent
from vault.keyring.trouble import FOREIGN, OUTAGES, Trouble, connection_broke, translate
from vault.ports_telemetry import FAILED, OK, REFUSED, UNWATCHED, Telemetry, Watched

T = TypeVar("T")

_FRESH = 1.0
"""Seconds in which a token refused right after login is not exchanged again: the policy lacks it, not the token."""
_MAX_BACKOFF = 30.0
_FAREWELL = (0.5, 0.5)
"""Timeouts of revoking the token at the end; a courtesy that must not delay the exit."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A lease in use."""

    lease: Lease
    client: hvac.Client
    since: float
    renew_at: float
    ends_at: float


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    at: float


class VaultSession:
    """Calls Vault under one login: logs in lazily, renews in the background, logs in again when refused."""

    def __init__(
        self,
        *,
        address: VaultAddress,
        login: Login,
        connections: int = 16,
        clock: Callable[[], float] = time.monotonic,
        telemetry: Telemetry = UNWATCHED,
    ) -> None:
        self.mount = address.mount
        self._address = address
        self._login = login
        self._clock = clock
        self._telemetry = telemetry
        self._http = http_session(address, connections=2)
        self._posts = Posts(address, connections=connections)
        self._lock = threading.Lock()
        self._held: _Held | None = None
        self._failure: _Failure | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._keeper: threading.Thread | None = None

    @property
    def token_ends_in(self) -> float | None:
        """Seconds until the token ends unless it is renewed; None if there is none, or none that ends."""
        held = self._held
        return None if held is None or held.ends_at == float("inf") else held.ends_at - self._clock()

    def call(self, fn: Callable[[hvac.Client], T], *, repeatable: bool = False, operation: str = "auth") -> T:
        """Run one Vault call; `operation` is what telemetry calls it.

        `repeatable` calls are sent once more if the connection broke, as it does when Vault restarts.
        Raises `KeyRingUnavailable`, or `KeyRefused` for a ciphertext that is refused.
        """
        return self._watched(self._telemetry.trip(operation), lambda: self._call(fn, repeatable=repeatable))

    def _watched(self, watched: Watched, work: Callable[[], T]) -> T:
        outcome, reason = FAILED, ""
        try:
            found = work()
            outcome = OK
        except KeyRingUnavailable as e:
            reason = e.reason
            raise
        except KeyRefused:
            outcome, reason = REFUSED, "key_refused"
            raise
        finally:
            watched.ended(outcome, reason)
        return found

    def _call(
        self,
        fn: Callable[[hvac.Client], T],
        *,
        repeatable: bool,
        held: _Held | None = None,
        since: float | None = None,
    ) -> T:
        held = held or self._current()
        try:
            return self._attempt(held, fn, repeatable=repeatable)
        except KeyRingUnavailable as e:
            if e.reason != Trouble.FORBIDDEN:
                raise
        # An expired token and a missing permission get the same answer: only a new token tells.
        return self._attempt(self._log_in(instead_of=held, since=since), fn, repeatable=repeatable)

    def read(self, path: str) -> dict[str, Any]:
        """`data` of what is at `path` under the transit mount."""
        found = self.call(
            lambda client: client.read(f"{self.mount}/{path}"), repeatable=True, operation=path.partition("/")[0]
        )
        return _data_of(found)

    def write(self, path: str, body: dict[str, Any], *, repeatable: bool = False) -> dict[str, Any]:
        """`data` of the answer to writing `body` to `path` under the transit mount."""
        found = self.call(
            lambda client: self._posts.post(f"{self.mount}/{path}", body, token=client.token),
            repeatable=repeatable,
            operation=path.partition("/")[0],
        )
        return _data_of(found)

    def write_all(
        self, writes: Sequence[tuple[str, dict[str, Any]]]
    ) -> list[dict[str, Any] | KeyRefused | KeyRingUnavailable]:
        """For each write of a body to a path what `write` would return or raise; all of them may be repeated.

        They are on their way together, and this one thread waits for all: another for each would have to be woken.
        Raises `KeyRingUnavailable` where none could be sent for want of a token.
        """
        if not writes:
            return []
        held, since = self._current(), self._clock()
        early = [_Early(self._posts, f"{self.mount}/{path}", body) for path, body in writes]
        watched = [self._telemetry.trip(path.partition("/")[0]) for path, _ in writes]
        outcomes: list[dict[str, Any] | KeyRefused | KeyRingUnavailable] = []
        outage: KeyRingUnavailable | None = None
        try:
            for number, each in enumerate(early):
                if not each.begin(held.client.token, wait=number == 0):
                    break
            for each, watching in zip(early, watched, strict=True):
                outcome = self._outcome(each, watching, held, since, outage)
                if isinstance(outcome, KeyRingUnavailable) and outcome.reason in OUTAGES:
                    outage = outcome
                outcomes.append(outcome)
        finally:
            for each in early:
                each.abandon()
        return outcomes

    def _outcome(
        self, early: _Early, watched: Watched, held: _Held, since: float, outage: KeyRingUnavailable | None
    ) -> dict[str, Any] | KeyRefused | KeyRingUnavailable:
        """How one write ends. Where Vault was found gone, what was not sent yet is not, nor anything once more."""

        def work() -> object:
            if outage is not None and not early.is_under_way:
                raise KeyRingUnavailable(outage.reason)
            return self._call(early, repeatable=outage is None, held=held, since=since)

        try:
            return _data_of(self._watched(watched, work))
        except (KeyRefused, KeyRingUnavailable) as e:
            return e

    def close(self) -> None:
        """Stop renewing and give the token back. Later calls raise `KeyRingUnavailable`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._keeper is not None:
            self._keeper.join(timeout=1)
        held, self._held = self._held, None
        if held is not None and held.lease.ours:
            with contextlib.suppress(*FOREIGN):
                held.client.adapter.post("/v1/auth/token/revoke-self", timeout=_FAREWELL)
        self._posts.close()
        self._http.close()

    # --- calls ------------------------------------------------------------------------------------------------------

    def _attempt(self, held: _Held, fn: Callable[[hvac.Client], T], *, repeatable: bool) -> T:
        trouble: KeyRingUnavailable | KeyRefused
        try:
            return fn(held.client)
        except FOREIGN as e:
            broken = connection_broke(e)
            trouble = translate(e)
        if broken and repeatable:
            return self._attempt(held, fn, repeatable=False)
        raise trouble

    # --- the token --------------------------------------------------------------------------------------------------

    def _current(self) -> _Held:
        held = self._held
        if held is None or self._clock() >= held.ends_at:
            return self._log_in(instead_of=held)
        return held

    def _log_in(self, *, instead_of: _Held | None, since: float | None = None) -> _Held:
        """A token newer than `instead_of`. Threads that wait here share one login and its outcome.

        So does what was sent at one time, `since` then.
        """
        asked_at = self._clock()
        with self._lock:
            if self._closed:
                raise KeyRingUnavailable(Trouble.CLOSED)
            if self._held is not None and self._held is not instead_of:
                return self._held
            if self._failure is not None and self._failure.at > (asked_at if since is None else since):
                raise KeyRingUnavailable(self._failure.reason)
            if instead_of is not None and asked_at < min(instead_of.since + _FRESH, instead_of.ends_at):
                raise KeyRingUnavailable(Trouble.FORBIDDEN)
            try:
                held = self._hold(self._new_lease())
            except KeyRingUnavailable as e:
                self._failure = _Failure(e.reason, self._clock())
                raise
            self._held = held
            self._ensure_keeper()
        with self._changed:
            self._changed.notify_all()
        return held

    def _new_lease(self) -> Lease:
        try:
            return self._login.log_in(vault_client(self._address, self._http, token=""))
        except FOREIGN as e:
            trouble = translate(e, logging_in=True)
        raise trouble

    def _hold(self, lease: Lease) -> _Held:
        now = self._clock()
        client = vault_client(self._address, self._http, token=lease.token)
        if lease.ttl <= 0:
            return _Held(lease, client, now, float("inf"), float("inf"))
        # About two thirds of the way, never all processes at once.
        renew_in = lease.ttl * secrets.SystemRandom().uniform(0.6, 0.7)
        return _Held(lease, client, now, now + renew_in, now + lease.ttl)

    # --- keeping it -------------------------------------------------------------------------------------------------

    def _ensure_keeper(self) -> None:
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="vault-renewal", daemon=True)
            self._keeper.start()

    def _keep(self) -> None:
        failures = 0
        while True:
            with self._changed:
                held = self._held
                due = float("inf") if held is None else held.renew_at - self._clock()
                if failures:
                    due = min(_MAX_BACKOFF, 2.0 ** (failures - 1)) * secrets.SystemRandom().uniform(0.5, 1)
                if not self._closed and due > 0:
                    self._changed.wait(timeout=min(due, threading.TIMEOUT_MAX))
                if self._closed:
                    return
            held = self._held
            if held is None or self._clock() < held.renew_at:
                failures = 0
                continue
            failures = 0 if self._renew(held) else failures + 1

    def _renew(self, held: _Held) -> bool:
        """Lengthen the token, or exchange it where that fails or the end of its longest life is near."""
        try:
            renewed = self._attempt(held, _renew_self, repeatable=True) if held.lease.renewable else 0.0
        except (KeyRingUnavailable, KeyRefused):
            renewed = 0.0
        try:
            if renewed * 3 < held.lease.ttl * 2:
                lease = self._new_lease()
            else:
                lease = Lease(held.lease.token, renewed, renewable=True, ours=held.lease.ours)
        except KeyRingUnavailable:
            return False
        with self._lock:
            if self._held is held:
                self._held = self._hold(lease)
        return True


@dataclass(slots=True, repr=False)
class _Early:
    """A write that may be under way before its turn has come. Called once more, it is written once more."""

    _posts: Posts
    _path: str
    _body: dict[str, Any]
    _sent: Sent | None = None
    _failure: Exception | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether it was sent and its answer not yet read."""
        return self._sent is not None

    def begin(self, token: str, *, wait: bool) -> bool:
        """Send it, if a connection is free; False if there is no use in sending others now."""
        try:
            self._sent = self._posts.begin(self._path, self._body, token=token, wait=wait)
        except FOREIGN as e:
            self._failure = e
        return self._sent is not None

    def __call__(self, client: hvac.Client) -> object:
        """The answer. Raises `FOREIGN`."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        sent, self._sent = self._sent, None
        return self._posts.post(self._path, self._body, token=client.token) if sent is None else sent.answer()

    def abandon(self) -> None:
        """Give up on an answer that nobody waits for any more."""
        if self._sent is not None:
            self._sent.abandon()


def _renew_self(client: hvac.Client) -> float:
    answer: Any = client.auth.token.renew_self()
    return float(answer["auth"]["lease_duration"])


def _data_of(answer: object) -> dict[str, Any]:
    """`data` of an answer. For 404 hvac hands out None, and a bare response for any status but 200."""
    if answer is None:
        raise KeyRingUnavailable(Trouble.KEY_MISSING)
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, dict):
        raise KeyRingUnavailable(Trouble.ODD_ANSWER)
    return data
