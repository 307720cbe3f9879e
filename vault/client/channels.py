"""Which channel a call goes over, as certificates change on disk: decisions and counting, without gRPC.

gRPC for Python can renew the certificates of servers but not of clients (grpc/grpc#41779), so a changed file means a
new channel. A channel that was replaced is closed when its last call has ended.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from time import monotonic
from typing import Generic, TypeVar

from vault.client.options import Options, Pem, TlsFiles, UnusableCertificates

C = TypeVar("C")
_log = logging.getLogger("vault.client")


class Closed(RuntimeError):
    """The client was closed."""

    def __init__(self) -> None:
        super().__init__("this client is closed")


class Lease(Generic[C]):
    """A channel and how many calls are on it."""

    __slots__ = ("calls", "channel", "is_retired")

    def __init__(self, channel: C) -> None:
        self.channel = channel
        self.calls = 0
        self.is_retired = False


class Channels(Generic[C]):
    """The channel of now, and former ones with calls on them. For any number of threads."""

    def __init__(self, files: TlsFiles, options: Options, open_channel: Callable[[Pem], C]) -> None:
        """Looks at the files, opens nothing. Raises `UnusableCertificates` and `OSError`."""
        self._files = files
        self._pause = options.look_for_certificates.total_seconds()
        self._open_channel = open_channel
        self._lock = threading.Lock()
        self._leases: list[Lease[C]] = []
        self._stamp: tuple[int, ...] = ()
        self._looked_at = 0.0
        self._process = 0
        self._is_closed = False
        files.read()

    def take(self) -> tuple[Lease[C], list[C]]:
        """A channel for one call, to be given back, and channels to be closed now.

        Raises `Closed` once closed, `RuntimeError` in a process forked from the one in which the first call was made.
        """
        with self._lock:
            if self._is_closed:
                raise Closed
            if self._process not in (0, os.getpid()):
                raise RuntimeError("this client was used before the process was forked; make one in each process")
            done = self._renew() if self._is_due() else []
            lease = self._leases[-1]
            lease.calls += 1
            return lease, done

    def give_back(self, lease: Lease[C]) -> list[C]:
        """A call has ended; channels to be closed now."""
        with self._lock:
            lease.calls -= 1
            return self._swept()

    def close(self) -> list[C]:
        """No more calls; every channel, to be closed now."""
        with self._lock:
            self._is_closed = True
            open_now, self._leases = self._leases, []
            return [lease.channel for lease in open_now] if self._process == os.getpid() else []

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def _is_due(self) -> bool:
        return not self._leases or monotonic() - self._looked_at >= self._pause

    def _renew(self) -> list[C]:
        self._looked_at = monotonic()
        try:
            if self._leases and self._files.stamp() == self._stamp:
                return []
            pem, stamp = self._files.read()
        except (OSError, UnusableCertificates) as trouble:
            if not self._leases:
                raise
            # Half of a pair is written, most likely. What is in use goes on.
            _log.warning("certificates on disk cannot be used yet: %s", type(trouble).__name__)
            return []
        if self._leases:
            _log.info("certificates on disk changed: new connection")
            self._leases[-1].is_retired = True
        self._leases.append(Lease(self._open_channel(pem)))
        self._stamp, self._process = stamp, os.getpid()
        return self._swept()

    def _swept(self) -> list[C]:
        done = [lease for lease in self._leases if lease.is_retired and not lease.calls]
        self._leases = [lease for lease in self._leases if lease not in done]
        return [lease.channel for lease in done]
