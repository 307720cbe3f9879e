"""What tests of every kind share: the real things, started once, and the search through all that a run leaves."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.support import canary
from vault.embedded.openbao import OpenBao


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


def pytest_sessionstart() -> None:
    """Forget what earlier runs recorded."""
    canary.begin()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Search everything that the run left behind for every card it used; databases and servers still stand."""
    if session.config.option.collectonly:
        return
    temporary: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
    problems = canary.end([temporary.getbasetemp(), *canary.ALSO_SCANNED])
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.ensure_newline()
        verdict = "\n".join(problems) or "clean; it found the one number that was planted for it"
        reporter.write_line(f"leak scan: {verdict}", red=bool(problems))
    if problems:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
