"""What tests of every kind share: the real things, started once in each process that runs tests, and the search through
all that the run leaves.

With pytest-xdist (`-n 2`) workers run the files, each with servers, databases and directories of its own; the process
that started them runs no test. At the end it alone searches, once, everything that all of them left for every number
that any of them made.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import canary, order
from vault.embedded.openbao import OpenBao

_REGISTRY = "cardvault_registry"
_DIRECTORY = "cardvault_directory"


@pytest.fixture(scope="session")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """A real OpenBao with a root token (`openbao.root()`), its audit log in clear. Leave it unsealed and running."""
    server = OpenBao(tmp_path_factory.mktemp("openbao") / "state", storage="inmem", keep_root_token=True, log_raw=True)
    server.start()
    yield server
    server.stop()


def pytest_configure() -> None:
    """Shells start what runs in the background with Ctrl-C ignored, and every process below would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Forget what earlier runs recorded, and make the run's directory; a worker is told which one that is."""
    if _is_worker(session.config):
        canary.RUN.join(session.config.workerinput[_DIRECTORY])  # type: ignore[attr-defined]
    else:
        canary.begin()
        canary.RUN.begin()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first, so that the workers end together."""
    if _is_worker(config):
        order.longest_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """A worker is about to start: from now on its numbers are asked for."""
    node.workerinput[_DIRECTORY] = str(canary.RUN.directory)
    canary.RUN.registries[node.gateway.id] = None


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker has ended; if it ended well, it says where its numbers are."""
    if file := getattr(node, "workeroutput", {}).get(_REGISTRY):
        canary.RUN.registries[node.gateway.id] = file


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Search everything that the run left behind for every card it used: servers have stopped, their files stand."""
    if session.config.option.collectonly:
        return
    if _is_worker(session.config):
        session.config.workeroutput[_REGISTRY] = canary.hand_over()  # type: ignore[attr-defined]
        return
    temporary: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
    problems = canary.end([temporary.getbasetemp(), canary.RUN.directory], workers=canary.RUN.registries)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.ensure_newline()
        verdict = "\n".join(problems) or "clean; it found the one number that was planted for it"
        reporter.write_line(f"leak scan: {verdict}", red=bool(problems))
    if problems:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what does not lie in pytest's own temporary directory."""
    if not _is_worker(config):
        canary.RUN.remove()


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")
