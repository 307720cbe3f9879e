"""A TCP proxy that holds back what a server answers, and cuts connections at the worst moment."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIZE = 65536


class Proxy:
    """Between a client and a server on loopback."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._passing = threading.Event()
        self._passing.set()
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.connections = 0
        """Made so far."""
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """For the client."""
        return f"localhost:{self._listener.getsockname()[1]}"

    def hold(self) -> None:
        """From now on nothing that the server says comes through."""
        self._passing.clear()

    def release(self) -> None:
        """What was held comes through."""
        self._passing.set()

    def cut(self) -> None:
        """End all connections; what was held is lost. New ones pass."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self.release()

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    @property
    def open_connections(self) -> int:
        """That neither side has ended."""
        with self._lock:
            return len(self._pairs)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                pair = (client, server)
                with self._lock:
                    self._pairs.append(pair)
                threading.Thread(target=self._carry, args=(client, server, pair, False), daemon=True).start()
                threading.Thread(target=self._carry, args=(server, client, pair, True), daemon=True).start()

    def _carry(
        self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket], is_answer: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_SIZE):
                if is_answer:
                    self._passing.wait()
                    with self._lock:
                        if pair not in self._pairs:
                            break
                sink.sendall(data)
        with self._lock:
            if pair in self._pairs:
                self._pairs.remove(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


@contextmanager
def proxy_to(address: str) -> Iterator[Proxy]:
    """A proxy until the end of the block."""
    proxy = Proxy(int(address.rpartition(":")[2]))
    try:
        yield proxy
    finally:
        proxy.close()
