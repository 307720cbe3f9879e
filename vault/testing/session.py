"""The leak scan of one pytest run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vault.testing.leaks import judge, plant
from vault.testing.numbers import REGISTRY, made_up_digits
from vault.testing.scan import Canary, Kind, Scanner

_PLANTED = "planted on purpose"


@dataclass(frozen=True, slots=True, repr=False)
class _Text:
    """Something that pytest captured."""

    where: str
    raw: bytes


class LeakScan:
    """Remembers what tests printed; at the end searches it and the files."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._texts: list[_Text] = []
        self._verdict = ""
        self._is_clean = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test printed and logged, and how it failed."""
        for title, text in (*report.sections, ("failure", report.longreprtext), ("its name", report.nodeid)):
            if text:
                self._texts.append(_Text(f"{report.nodeid} ({report.when}): {title}", _bytes(text)))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Search, while everything still stands."""
        problems = self._problems()
        self._is_clean = not problems
        is_blind = self._config.getoption("capture") == "no"
        note = " Output was not captured (-s), so it was not searched." if is_blind else ""
        said = "\n".join(problems) or f"clean: {len(REGISTRY.canaries())} secrets looked for, those planted found."
        self._verdict = f"leak scan: {said}{note}"
        if problems:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what was found."""
        terminalreporter.ensure_newline()
        terminalreporter.write_line(self._verdict, red=not self._is_clean, green=self._is_clean)

    def _problems(self) -> list[str]:
        with tempfile.TemporaryDirectory(prefix="cardvault-leaks-") as made:
            planted = plant(Path(made), REGISTRY)
            printed = REGISTRY.record(Kind.PAN, made_up_digits())
            self._texts.append(_Text(_PLANTED, f"order=1 pan={printed.text} outcome=ok".encode()))
            canaries = REGISTRY.canaries()
            verdict = judge([Path(made), *self._roots()], canaries, planted)
        in_texts = set(self._in_texts(canaries))
        control = {found for found in in_texts if found[0] == _PLANTED and found[2] == printed.id}
        problems = list(verdict.problems())
        if not control:
            problems.append("the leak scan did not find the number that was planted in captured output")
        problems += [f"leak: {where}: {form}: {canary}" for where, form, canary in sorted(in_texts - control)]
        return problems

    def _in_texts(self, canaries: tuple[Canary, ...]) -> Iterator[tuple[str, str, str]]:
        scanner = Scanner(canaries)
        for text in self._texts:
            found = [(form, canary) for _, form, canary in scanner.scan_bytes(text.raw)]
            # A test can bear a number in its name, and the report of it must not.
            where = "a test with a number in its name" if any(scanner.scan_bytes(_bytes(text.where))) else text.where
            yield from ((where, form, canary) for form, canary in found)

    def _roots(self) -> Iterator[Path]:
        factory: pytest.TempPathFactory = self._config._tmp_path_factory  # type: ignore[attr-defined]  # noqa: SLF001
        yield factory.getbasetemp()
        log_file = self._config.getoption("log_file", default=None) or self._config.getini("log_file")
        for path in (*self._config.getini("cardvault_leak_paths"), *([Path(log_file)] if log_file else [])):
            # What is not there holds nothing; it may only be written when something goes wrong.
            if path.exists():
                yield path


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")
