"""Closes what a process leaves open by default: core files, other processes' eyes, readable new files."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4


def harden() -> None:
    """No core file, no reading of this memory by the same user, new files for the owner alone.

    Root can still read everything, and so can whoever holds the virtual machine.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def weaknesses() -> list[str]:
    """What of `harden` does not hold in this process, and what the machine leaves open."""
    found = []
    if resource.getrlimit(resource.RLIMIT_CORE)[0] != 0:
        found.append("core files are allowed")
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 0:
        found.append("the process is dumpable: others of the same user can read its memory")
    return found


def swap_warnings(swaps: Path = Path("/proc/swaps")) -> list[str]:
    """Swap devices to which pages with card numbers could be written; zram stays in memory."""
    try:
        lines = swaps.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return []
    devices = [line.split()[0] for line in lines if line.strip()]
    return [f"swap is on ({device}): memory may reach the disk" for device in devices if "zram" not in device]
