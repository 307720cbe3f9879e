"""A server's Python threads share a CPU, unless the configuration says otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cards import fresh_typed_card
from tests.support.installation import Installation, eventually, installed
from tests.support.requests import TIMEOUT, new_customer, store_request
from vault.embedded.openbao import OpenBao
from vault.one_cpu import IS_LINUX

pytestmark = pytest.mark.skipif(
    not IS_LINUX or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two CPUs to choose from"
)


@pytest.fixture
def site(tmp_path: Path, openbao: OpenBao, sqlite_url: str) -> Iterator[Installation]:
    """An installation on SQLite."""
    with installed(tmp_path / "site", openbao, sqlite_url) as installation:
        yield installation


def bound_threads(pid: int) -> list[frozenset[int]]:
    """The one CPU of each thread that has no choice."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        allowed = frozenset(os.sched_getaffinity(int(task.name)))
        found += [allowed] if len(allowed) == 1 else []
    return found


def polite_threads(pid: int) -> int:
    """How many threads interrupt nobody when they are woken."""
    tasks = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(os.sched_getscheduler(task) == os.SCHED_BATCH for task in tasks)


def use(site: Installation) -> None:
    """Have worker threads begin."""
    site.client("checkout").checkout.Tokenize(store_request(fresh_typed_card(), new_customer()), timeout=TIMEOUT)


def test_the_threads_that_run_python_share_one_cpu(site: Installation) -> None:
    server = site.serve()
    use(site)

    def gathered() -> bool:
        bound = bound_threads(server.process.pid)
        # The event loop, a thread of gRPC's that wakes it, and those that worked on the call.
        return len(bound) >= 4 and len(set(bound)) == 1

    eventually(gathered)
    eventually(lambda: polite_threads(server.process.pid) > 0)  # the store's, which sweep once a server starts
    assert len(list(Path(f"/proc/{server.process.pid}/task").iterdir())) > len(bound_threads(server.process.pid))


def test_they_go_where_they_like_if_the_configuration_says_so(site: Installation) -> None:
    server = site.serve(server__one_cpu=False)
    use(site)

    assert bound_threads(server.process.pid) == []
    assert polite_threads(server.process.pid) == 0
