"""Which CPU the threads of a server share. What changes threads for good runs in a process of its own."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from typing import Any

import pytest

from vault.one_cpu import IS_LINUX, OneCpu, _Moment

pytestmark = pytest.mark.skipif(
    not IS_LINUX or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two CPUs to choose from"
)

_START = """
import json, os, threading
from vault.one_cpu import OneCpu, stand_behind
done = threading.Event()
def cpus(thread): return len(os.sched_getaffinity(thread.native_id))
def started(work=lambda: None):
    thread = threading.Thread(target=lambda: (work(), done.wait()))
    thread.start()
    return thread
"""
_END = """
print(json.dumps(told))
done.set()
"""


def told_by(program: str) -> Any:
    """What a process of its own prints."""
    run = subprocess.run(
        [sys.executable, "-c", _START + program + _END], capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(run.stdout)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coin says yes."""
    monkeypatch.setattr(secrets, "randbelow", lambda _: 0)


def moved(cpus: OneCpu, *, ours: float, used: dict[int, float]) -> bool:
    """Whether the threads move after a second with so much use of each CPU."""
    before = _Moment(100.0, dict.fromkeys(used, 50.0), 10.0)
    now = _Moment(101.0, {cpu: 50.0 + share for cpu, share in used.items()}, 10.0 + ours)
    return cpus._better(before, now) != cpus.cpu


def others_of(cpus: OneCpu) -> list[int]:
    """The CPUs that it is not on."""
    return sorted(os.sched_getaffinity(0) - {cpus.cpu})


def test_every_thread_is_gathered_and_so_is_one_that_comes_later() -> None:
    program = """
before = started()
keeper = OneCpu()
keeper.look()
after = started()
keeper.look()
told = [cpus(thread) for thread in (threading.main_thread(), before, after)]
told.append(os.sched_getaffinity(after.native_id) == {keeper.cpu})
"""

    assert told_by(program) == [1, 1, 1, True]


def test_who_lets_go_leaves_nothing_behind() -> None:
    program = """
all_cpus = len(os.sched_getaffinity(0))
keeper = OneCpu()
keeper.look()
thread = started()
keeper.let_go()
told = [cpus(each) == all_cpus for each in (threading.main_thread(), thread, started())]
"""

    assert told_by(program) == [True, True, True]


def test_threads_that_are_not_pythons_stay_free() -> None:
    program = """
import _thread
ids = []
_thread.start_new_thread(lambda: (ids.append(threading.get_native_id()), done.wait()), ())
while not ids: pass
keeper = OneCpu()
all_cpus = len(os.sched_getaffinity(0))
keeper.look()
told = [len(os.sched_getaffinity(ids[0])) == all_cpus, cpus(threading.main_thread())]
_thread.start_new_thread(lambda: (ids.append(threading.get_native_id()), done.wait()), ())
while len(ids) < 2: pass
told.append(len(os.sched_getaffinity(ids[1])))
keeper.look()
told.append(len(os.sched_getaffinity(ids[1])) == all_cpus)
"""

    assert told_by(program) == [True, 1, 1, True]


def test_who_stands_behind_is_alone_in_that() -> None:
    program = """
policies = []
thread = started(lambda: (stand_behind(), policies.append(os.sched_getscheduler(0))))
while not policies: pass
told = [policies[0] == os.SCHED_BATCH, os.sched_getscheduler(0) == os.SCHED_OTHER]
"""

    assert told_by(program) == [True, True]


@pytest.mark.usefixtures("always")
def test_threads_move_where_others_want_their_cpu() -> None:
    cpus = OneCpu()

    assert moved(cpus, ours=0.3, used={cpus.cpu: 0.9, **dict.fromkeys(others_of(cpus), 0.1)})


@pytest.mark.usefixtures("always")
def test_threads_stay_where_they_alone_are_busy() -> None:
    cpus = OneCpu()

    assert not moved(cpus, ours=1.0, used={cpus.cpu: 1.0, **dict.fromkeys(others_of(cpus), 0.0)})


@pytest.mark.usefixtures("always")
def test_threads_stay_where_every_cpu_is_wanted_alike() -> None:
    cpus = OneCpu()

    assert not moved(cpus, ours=0.5, used={cpus.cpu: 1.0, **dict.fromkeys(others_of(cpus), 0.4)})


def test_two_servers_on_one_cpu_do_not_move_together_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus = OneCpu()
    monkeypatch.setattr(secrets, "randbelow", lambda _: 1)

    assert not moved(cpus, ours=0.3, used={cpus.cpu: 0.9, **dict.fromkeys(others_of(cpus), 0.1)})


def test_workers_begin_on_cpus_of_their_own() -> None:
    assert len({OneCpu(worker, workers=8).cpu for worker in range(8)}) == min(8, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(("cpus", "workers", "is_of_use"), [(2, 1, True), (2, 2, False), (4, 2, True), (6, 4, False)])
def test_workers_that_fill_the_cpus_are_left_to_the_scheduler(
    monkeypatch: pytest.MonkeyPatch, cpus: int, workers: int, *, is_of_use: bool
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))

    assert OneCpu(workers=workers).is_of_use == is_of_use


def test_one_cpu_to_be_on_leaves_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OneCpu().is_of_use
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})

    assert not OneCpu().is_of_use
