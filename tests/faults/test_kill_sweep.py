"""SIGKILL before and after every message to Vault and every commit of each rotation command, over a store of cards.

After each kill every card opens to its own number; running the command again ends in the same state as a run that was
not killed. No point is skipped, and the number of points is printed.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import sweep
from tests.faults.bench import Place, Tools, new_place
from tests.support.cards import fresh_card
from tests.support.raw import execute
from vault.domain.pan import Pan
from vault.embedded.openbao import OpenBao
from vault.ports import KeyName
from vault.ports_operator import CardKey

CARDS = 50
TIMEOUT = 60.0

PREPARATION: Mapping[str, tuple[str, ...]] = {
    "rotate": (),
    "rewrap": ("rotate",),
    "rekey": ("rotate",),
    "retire": ("rotate", "rewrap"),
    "trim": ("rotate", "rewrap", "retire"),
}
"""What must have been done before each command makes sense."""

AGAIN = {"rotate": "rotate_if_due"}
"""How the command is typed the second time, where that differs: a second `rotate` is not to make a third version."""


@dataclass(frozen=True)
class State:
    """What a store and its keys are in, without what differs from run to run."""

    latest: int
    min_decryption: int
    min_available: int
    wraps: Mapping[int, int]
    former: Mapping[int, int]
    fingerprints: Mapping[int, int]
    data_keys_due: int
    unfinished: tuple[str, ...]


def state_of(tools: Tools) -> State:
    from dataclasses import replace

    from vault.ports_operator import Selection

    versions = tools.operator.versions(KeyName.CARDS)
    with tools.store.reading() as tx:
        return State(
            latest=versions.latest,
            min_decryption=versions.min_decryption,
            min_available=versions.min_available,
            wraps=dict(tx.count_wraps()),
            former=dict(tx.count_previous_wraps()),
            fingerprints=dict(tx.count_fingerprints()),
            data_keys_due=tx.count_secrets(replace(Selection(), data_key_below=versions.latest)),
            unfinished=tuple(tx.settings("rotation.")),
        )


class Sweep:
    """One command on one database, from a prepared state to a finished one, again and again."""

    def __init__(self, openbao: OpenBao, database_url: str, command: str, directory: Path) -> None:
        self._openbao = openbao
        self._url = database_url
        self._command = command
        self._count_file = directory / "points"
        # The same cards in each trial: the search at the end of the run is for every card that was ever made.
        self._cards = [fresh_card() for _ in range(CARDS)]
        # Children come from a server process without threads, in which everything is imported once.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.faults.sweep"])

    def run(self) -> int:
        """Every point; returns how many there are."""
        place, numbers = self._prepare()
        assert self._child(place, self._command, sweep.NEVER) == 0
        points = int(self._count_file.read_text(encoding="ascii"))
        finished = self._look(place, numbers)
        for point in range(1, points + 1):
            self._one(point, finished)
        return points

    def _one(self, point: int, finished: State) -> None:
        place, numbers = self._prepare()
        code = self._child(place, self._command, point)
        # Work on several threads passes its points in any order, so a run may have a point less than another.
        assert code in (-signal.SIGKILL, 0), f"point {point}: the child ended with {code}"
        self._look(place, numbers)
        assert self._child(place, AGAIN.get(self._command, self._command), sweep.NEVER) == 0, f"point {point}"
        assert self._look(place, numbers) == finished, f"point {point}: another end than without the kill"

    def _prepare(self) -> tuple[Place, Mapping[CardKey, Pan]]:
        _empty(self._url)
        place = new_place(self._openbao, self._url)
        with place.open() as tools:
            names = tools.store_again(self._cards)
            numbers = dict(zip(names, (card.pan for card in self._cards), strict=True))
            for step in PREPARATION[self._command]:
                sweep.COMMANDS[step](tools)
        return place, numbers

    def _child(self, place: Place, command: str, kill_at: int) -> int | None:
        child = self._context.Process(target=sweep.run, args=(place, command, kill_at, self._count_file))
        child.start()
        child.join(TIMEOUT)
        assert child.exitcode is not None, "the child hangs"
        code = child.exitcode
        child.close()
        return code

    def _look(self, place: Place, numbers: Mapping[CardKey, Pan]) -> State:
        with place.open() as tools:
            assert tools.opened() == numbers, "a card does not open to its own number"
            return state_of(tools)


def _empty(url: str) -> None:
    """Forget the last trial: append-only tables are only cut by someone who owns the database."""
    tables = ("idempotency", "grants", "once_keys", "erasures", "card_secrets", "cards", "consents", "audit_events")
    if url.startswith("sqlite"):
        execute(
            url,
            "PRAGMA foreign_keys=OFF",
            *(
                f"DROP TRIGGER IF EXISTS {t}_no_{verb}"
                for t in ("consents", "audit_events")
                for verb in ("update", "delete")
            ),
            *(f"DELETE FROM {table}" for table in (*tables, "settings")),
        )
        return
    execute(
        url,
        "ALTER TABLE consents DISABLE TRIGGER ALL",
        "ALTER TABLE audit_events DISABLE TRIGGER ALL",
        f"TRUNCATE {', '.join((*tables, 'settings'))} CASCADE",
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", list(PREPARATION))
def test_a_kill_at_any_point_loses_no_card_and_running_it_again_finishes(
    openbao: OpenBao, database_url: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = Sweep(openbao, database_url, command, tmp_path).run()

    with capsys.disabled():
        engine = database_url.split(":", 1)[0]
        print(f"\nkill sweep: {command} on {engine}: {points} points, {CARDS} cards, 0 lost", end=" ")
    assert points >= 8
