"""Starts and stops the processes of the storefront."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

_HERE = Path(__file__).resolve().parents[2]
_READY_SECONDS = 30.0
_STOP_SECONDS = 30.0
_LOOK = 0.05


class DidNotStart(Exception):
    """A process ended, or did not answer in time. Its log says why."""


class Process:
    """One process, its output in a file."""

    def __init__(self, arguments: Sequence[str], *, log: Path, descriptor: int | None = None) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=_HERE,
                process_group=0,  # Ctrl-C at the terminal is for us; we stop it in order
                pass_fds=() if descriptor is None else (descriptor,),
            )

    def check(self) -> None:
        """Raises `DidNotStart` if it has ended."""
        if self._process.poll() is not None:
            raise DidNotStart(f"see {self._log}")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not help."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Site:
    """A web server of ours at an address that it keeps when it is started anew."""

    def __init__(self, name: str, module: str, arguments: Mapping[str, str], *, state: Path) -> None:
        self.log = state / f"{name}.log"
        self._module = module
        self._arguments = [word for key, value in arguments.items() for word in (f"--{key}", value)]
        self._port_file = state / f"{name}.port"
        self._process: Process | None = None
        self.port = 0

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Return once it answers. Raises `DidNotStart`."""
        # We open the socket: so there is no moment in which somebody else can take the port.
        with _listen(self.port or _number_in(self._port_file)) as listening:
            self.port = listening.getsockname()[1]
            self._port_file.write_text(f"{self.port}\n", encoding="ascii")
            descriptor = listening.fileno()
            arguments = [self._module, "--descriptor", str(descriptor), *self._arguments]
            self._process = process = Process(arguments, log=self.log, descriptor=descriptor)
        until = time.monotonic() + _READY_SECONDS
        while not self._answers():
            process.check()
            if time.monotonic() > until:
                raise DidNotStart(f"see {self.log}")
            time.sleep(_LOOK)

    def stop(self) -> None:
        """Return once it is gone."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self.address, timeout=1)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class Storefront:
    """Shop and processor beside a vault that runs; a context manager."""

    def __init__(
        self, state: Path, *, vault: str, pki: Path, checkout: str = "checkout", account: str = "account"
    ) -> None:
        """`vault` is `host:port`; `checkout` and `account` name certificates in `pki`."""
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.state = state
        self._told = {"state": str(state), "vault": vault, "pki": str(pki), "checkout": checkout, "account": account}
        self.processor = Site("processor", "examples.storefront.processor", self._told, state=state)
        self.shop = Site("shop", "examples.storefront.shop", self._told, state=state)
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            starting.callback(self.processor.stop)
            self.processor.start()
            told = self._told | {"acquirer": self.processor.address}
            self.shop = Site("shop", "examples.storefront.shop", told, state=self.state)
            starting.callback(self.shop.stop)
            self.shop.start()
            self._running = starting.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._running.close()


def _listen(port: int) -> socket.socket:
    """At that port if it is free, else at any."""
    for candidate in (port, 0):
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", candidate))
        except OSError:
            listening.close()
            continue
        listening.listen(128)
        os.set_inheritable(listening.fileno(), True)
        return listening
    raise DidNotStart("no free port on loopback")


def _number_in(file: Path) -> int:
    return int(file.read_text(encoding="ascii")) if file.is_file() else 0
