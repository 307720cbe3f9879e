"""Closes what a process leaves open by default: core files, other processes' eyes, readable new files."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

MIN_DESCRIPTORS = 8192
_PR_SET_DUMPABLE = 4


def harden() -> None:
    """No core file, no reading of this memory by the same user, new files for the owner alone.

    Root can still read everything, and so can whoever holds the virtual machine.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Connections of strangers hold descriptors until their handshake times out; the usual soft limit is soon reached.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def descriptor_warnings() -> list[str]:
    """A hard limit of open files that strangers' connections could use up."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = hard != resource.RLIM_INFINITY and hard < MIN_DESCRIPTORS
    return [f"at most {hard} open files: raise the hard limit to {MIN_DESCRIPTORS} or more"] if low else []


def swap_warnings(swaps: Path = Path("/proc/swaps")) -> list[str]:
    """Swap devices to which pages with card numbers could be written; zram stays in memory."""
    try:
        lines = swaps.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return []
    devices = [line.split()[0] for line in lines if line.strip()]
    return [f"swap is on ({device}): memory may reach the disk" for device in devices if "zram" not in device]
