"""A real PgBouncer before a real PostgreSQL."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import make_url

_PATIENCE = 10.0


def is_installed() -> bool:
    """Whether there is a PgBouncer on this machine."""
    return _program() is not None


@contextmanager
def pooled(url: str, mode: str, *, passes_over: str = "options,extra_float_digits") -> Iterator[str]:
    """The URL of the same database through a pooler of this mode, until the end of the block.

    `passes_over`: what clients ask for at the start and do not get; for anything else they are turned away.
    """
    program = _program()
    assert program is not None, "ask first"
    address = make_url(url)
    sockets = Path(str(address.query["host"]))
    directory = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    port = _free_port()
    config = directory / "pgbouncer.ini"
    config.write_text(
        f"""[databases]
* = host={sockets} user={address.username}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
ignore_startup_parameters = {passes_over}
""",
        encoding="utf-8",
    )
    # It does not run as root, so it runs as who runs PostgreSQL, to whose sockets alone it must come.
    as_root = os.getuid() == 0
    owner = sockets.owner()
    if as_root:
        for path in (directory, config):
            shutil.chown(path, owner)
    command = [program, "-q", *(["-u", owner] if as_root else []), str(config)]
    with (directory / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _wait_for(port, process, directory / "log")
            yield address.set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)
        finally:
            process.kill()
    shutil.rmtree(directory)


def _program() -> str | None:
    # Debian keeps it where only root's PATH leads.
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up:
                raise AssertionError(f"PgBouncer did not start: {log.read_text(encoding='utf-8')}") from None
            time.sleep(0.05)
        else:
            return
