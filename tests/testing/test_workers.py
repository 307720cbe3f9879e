"""The suite's own leak scan where workers run the tests: each case is a pytest of its own with the suite's conftest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cards import ARTIFACTS_VARIABLE

pytest_plugins = ["pytester"]

CONFTEST = "from tests.conftest import *\n"
BLINDED = f"{CONFTEST}\nimport vault.testing.leaks\nvault.testing.leaks.scan = lambda roots, canaries: ()\n"
LIKE_MAKE_TEST = ("--dist", "loadfile", "--no-loadscope-reorder", "--max-worker-restart=0")
HIDE = """
import time
from pathlib import Path
from tests.support import canary
from tests.support.cards import artifact_root, fresh_digits

HIDDEN = canary.RUN.directory / "hidden"
LETTERS = str.maketrans("0123456789", "qwrtzpsdfg")
DIGITS = str.maketrans("qwrtzpsdfg", "0123456789")
"""
MAKER = f"""{HIDE}
def test_it_makes_a_number_and_tells_the_other_worker_in_letters():
    made = HIDDEN.with_suffix(".new")
    made.write_text(fresh_digits().translate(LETTERS))
    made.rename(HIDDEN)
"""
WRITER = f"""{HIDE}
def test_it_writes_the_number_of_the_other_worker(tmp_path):
    while not HIDDEN.exists():
        time.sleep(0.02)
    number = HIDDEN.read_text().translate(DIGITS)
    {{line}}
"""
LINES = {
    "nothing": "assert number",
    "its own directory": "(tmp_path / 'log').write_text('paid with ' + number)",
    "the artifact folder": "(artifact_root() / 'log').write_text(number)",
    "the directory of its database": "(canary.RUN.directory / 'pg').write_text(number)",
}


def run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, *arguments: str, conftest: str = CONFTEST
) -> pytest.RunResult:
    monkeypatch.setenv(ARTIFACTS_VARIABLE, str(pytester.path / "artifacts"))
    pytester.makeconftest(conftest)
    words = ("-p", "no:cacheprovider", "-n", "2", *LIKE_MAKE_TEST, *arguments)
    return pytester.runpytest_subprocess(*words)


def two_files(pytester: pytest.Pytester, line: str) -> None:
    pytester.makepyfile(test_maker=MAKER, test_writer=WRITER.format(line=line))


@pytest.mark.parametrize("where", LINES)
def test_what_one_worker_writes_is_searched_for_what_another_made(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    two_files(pytester, LINES[where])

    result = run(pytester, monkeypatch)

    result.assert_outcomes(passed=2)
    said = result.stdout.str()
    assert said.count("leak scan: ") == 1
    if where == "nothing":
        assert result.ret == pytest.ExitCode.OK
        assert "leak scan: clean; it found the one number that was planted for it" in said
    else:
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        assert said.count("leak: ") == 1
        result.stdout.fnmatch_lines(["*leak: *: offset *: plain: *"])
    assert not list((pytester.path / "artifacts").glob("planted*"))


def test_without_workers_the_same_is_found(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    two_files(pytester, LINES["its own directory"])

    result = run(pytester, monkeypatch, "-n", "0")

    result.assert_outcomes(passed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*leak: *: offset 10: plain: *"])


def test_a_worker_that_does_not_tell_its_numbers_fails_the_run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_files(pytester, LINES["nothing"])
    pytester.makepyfile(
        test_silent="def test_it():\n    from tests.support import canary\n    canary.hand_over = str\n"
    )

    result = run(pytester, monkeypatch)

    result.assert_outcomes(passed=3)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*leak scan: the leak scan does not know the numbers of gw?: *"])


def test_a_worker_that_dies_takes_its_numbers_with_it_and_that_is_said(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_files(pytester, LINES["nothing"])
    pytester.makepyfile(test_dying="def test_it():\n    import os\n    os._exit(1)\n")

    result = run(pytester, monkeypatch)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*the leak scan does not know the numbers of gw?: *"])


def test_a_scan_that_finds_nothing_of_what_was_planted_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_files(pytester, LINES["nothing"])
    result = run(pytester, monkeypatch, conftest=BLINDED)

    result.assert_outcomes(passed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*the leak scan did not find the number that was planted for it"])


def test_directories_of_a_run_are_removed_at_its_end(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_files(pytester, "Path(__file__).with_name('where').write_text(str(canary.RUN.directory))")

    run(pytester, monkeypatch).assert_outcomes(passed=2)

    assert not Path((pytester.path / "where").read_text()).exists()
