"""Sealing a Vault so that it stays sealed."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path

from vault.embedded.openbao import OpenBao

OPENS_ITSELF_UNTIL = 7.0
"""Seconds after its start: a first try to open its seal, before it was initialised, is repeated after five."""
LOOK = 0.3


def seal(openbao: OpenBao) -> None:
    """Seal it. A server that has just started opens itself once more, so stay until it cannot any longer."""
    with closing(openbao.root()) as root:
        while True:
            root.client.sys.seal()
            since = time.monotonic()
            while (health := root.health()) is None or health.sealed:
                if _age(openbao.pid) > OPENS_ITSELF_UNTIL and time.monotonic() - since > LOOK:
                    return
                time.sleep(0.02)


def _age(pid: int) -> float:
    """Seconds since a process began."""
    began = int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    return uptime - began / os.sysconf("SC_CLK_TCK")
