"""Runs one rotation command in a process of its own that kills itself at a chosen point.

A point is the moment before or after a message to Vault, and before or after a commit. The process is gone by SIGKILL:
no `finally`, no rollback, no farewell.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from tests.faults.bench import Place, Tools
from vault.keyring.posts import Posts
from vault.ports import KeyName
from vault.ports_operator import Selection
from vault.store import SqlStore
from vault.usecases.rekey import RekeyCards
from vault.usecases.rewrap import Proof, Rewrap
from vault.usecases.rotate import RetireKey, RotateKey, TrimKey

NEVER = 0


def rotate(tools: Tools) -> None:
    RotateKey(world=tools.world, keys=tools.operator)(KeyName.CARDS, tools.operator_now(), again=True)


def rotate_if_due(tools: Tools) -> None:
    """As an operator types it a second time."""
    RotateKey(world=tools.world, keys=tools.operator)(KeyName.CARDS, tools.operator_now())


def rewrap(tools: Tools) -> None:
    Rewrap(world=tools.world, keys=tools.operator, release=tools.release)(tools.operator_now(), proof=Proof.SAMPLE)


def rekey(tools: Tools) -> None:
    use_case = RekeyCards(world=tools.world, keys=tools.operator, intake=tools.intake, release=tools.release)
    use_case(tools.operator_now(), Selection())


def retire(tools: Tools) -> None:
    RetireKey(world=tools.world, keys=tools.operator)(KeyName.CARDS, tools.operator_now())


def trim(tools: Tools) -> None:
    TrimKey(world=tools.world, keys=tools.operator)(KeyName.CARDS, tools.operator_now(), snapshot_confirmed=True)


COMMANDS: dict[str, Callable[[Tools], None]] = {
    "rotate": rotate,
    "rotate_if_due": rotate_if_due,
    "rewrap": rewrap,
    "rekey": rekey,
    "retire": retire,
    "trim": trim,
}


class Points:
    """Counts points, and ends the process at one of them."""

    def __init__(self, kill_at: int) -> None:
        self.passed = 0
        self._kill_at = kill_at
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.passed += 1
            if self.passed == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def run(place: Place, command: str, kill_at: int, count_file: Path) -> None:
    """In the child: run the command; if it was not killed, write down how many points it passed."""
    points = Points(kill_at)
    with place.open() as tools:
        _watch(requests.Session, "send", points)
        _watch(Posts, "post", points)
        _watch(SqlStore, "_commit", points)
        COMMANDS[command](tools)
        count_file.write_text(str(points.passed), encoding="ascii")
        # The farewells of closing are no part of the command.
        os._exit(0)


def _watch(owner: Any, name: str, points: Points) -> None:
    original = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        points()
        result = original(*args, **kwargs)
        points()
        return result

    setattr(owner, name, watched)
