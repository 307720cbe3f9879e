"""Other processes, as the system shows them."""

from __future__ import annotations

from pathlib import Path


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and not merely its remains."""
    return _fields(pid)[:1] not in ([], ["Z"])


def children_of(pid: int) -> list[int]:
    """The processes that it forked and that live, oldest first."""
    pids = sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return [each for each in pids if is_alive(each) and _fields(each)[1] == str(pid)]


def remains_of(pid: int) -> list[int]:
    """Children that ended and that nobody waited for."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [each for each in pids if _fields(each)[:2] == ["Z", str(pid)]]


def _fields(pid: int) -> list[str]:
    """State, parent and so on; nothing for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
