"""The pytest plugin as integrators use it, each time in a pytest of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

HEAD = """
import base64, logging, sys
from vault.testing import fresh_card, fresh_number, watch
number = fresh_number().reveal()
"""
LEAKS = {
    "print": "print(number)",
    "to stderr": "sys.stderr.write(number)",
    "spaced": "print(' '.join(number[i:i + 4] for i in range(0, 16, 4)))",
    "hex": "print(number.encode().hex())",
    "base64": "print(base64.b64encode(b'card ' + number.encode()))",
    "UTF-16 in a file": "tmp_path.joinpath('dump').write_bytes(number.encode('utf-16-le'))",
    "a file": "tmp_path.joinpath('log').write_text('paid with ' + number)",
    "a log record": "logging.getLogger('shop').warning('card %s', number)",
    "a failure": "assert number == 'x'",
    "a name": "print(fresh_card().holder_name.reveal_text())",
    "a security code": "print('cvv=' + fresh_card(security_code=True).security_code.reveal_text())",
}


def leaking(pytester: pytest.Pytester, line: str) -> str:
    """A test file with one test."""
    pytester.makepyfile(test_shop=f"{HEAD}\ndef test_it(tmp_path):\n    {line}\n")
    return line


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments)


def test_it_does_nothing_unless_asked(pytester: pytest.Pytester) -> None:
    leaking(pytester, LEAKS["print"])

    result = run(pytester)

    assert result.ret == pytest.ExitCode.OK
    assert "leak scan" not in result.stdout.str()


@pytest.mark.parametrize("how", LEAKS)
def test_a_leak_fails_the_run_and_the_report_does_not_repeat_it(pytester: pytest.Pytester, how: str) -> None:
    leaking(pytester, LEAKS[how])

    result = run(pytester, "--cardvault-leaks")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    said = [line for line in result.outlines if "leak: " in line]
    assert said
    assert all("test_shop" in line or "test_it" in line for line in said)
    assert not any(sum(character.isdigit() for character in line.rpartition("/")[2]) > 8 for line in said)


@pytest.mark.parametrize("line", ["fresh_card()", "print(repr(fresh_card()))", "print('4' * 16)"])
def test_a_clean_run_passes_and_says_so(pytester: pytest.Pytester, line: str) -> None:
    leaking(pytester, line)

    result = run(pytester, "--cardvault-leaks")

    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*leak scan: clean: * secrets looked for, those planted found."])


def test_the_setting_in_a_file_is_enough_and_names_more_paths(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ncardvault_leaks = true\ncardvault_leak_paths = var/log absent\n")
    pytester.mkdir("var")
    leaking(pytester, "__import__('pathlib').Path('var/log').write_text(number)")

    result = run(pytester)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*leak: *var/log: offset 0: plain: *"])


def test_the_log_file_is_searched(pytester: pytest.Pytester) -> None:
    leaking(pytester, LEAKS["a log record"])

    result = run(pytester, "--cardvault-leaks", "--log-file=shop.log")

    result.stdout.fnmatch_lines(["*leak: *shop.log: offset *: plain: *"])


def test_a_number_of_ones_own_is_looked_for(pytester: pytest.Pytester) -> None:
    leaking(pytester, "own = '4242424242424242'; watch(own); print(own)")

    assert run(pytester, "--cardvault-leaks").ret == pytest.ExitCode.TESTS_FAILED


def test_a_number_in_the_name_of_a_test_is_a_leak_that_is_not_repeated(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"{HEAD}\nimport pytest\n@pytest.mark.parametrize('n', [number])\ndef test_it(n):\n    assert n\n"
    )

    result = run(pytester, "--cardvault-leaks")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*leak: a test with a number in its name: plain: *"])


@pytest.mark.parametrize(
    ("blinded", "what"),
    [
        ("vault.testing.leaks.scan = lambda roots, canaries: ()", "planted for it"),
        ("vault.testing.session.Scanner.scan_bytes = lambda self, data: iter(())", "planted in captured output"),
    ],
)
def test_a_scan_that_finds_nothing_of_what_was_planted_fails(
    pytester: pytest.Pytester, blinded: str, what: str
) -> None:
    pytester.makeconftest(f"import vault.testing.leaks, vault.testing.session\n{blinded}\n")
    leaking(pytester, "fresh_card()")

    result = run(pytester, "--cardvault-leaks")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"*the leak scan did not find the number that was {what}"])


def test_it_does_not_pretend_to_see_what_workers_do(pytester: pytest.Pytester) -> None:
    leaking(pytester, LEAKS["print"])

    result = run(pytester, "--cardvault-leaks", "-n", "2")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*the leak scan sees one process: run it without pytest-xdist*"])


def test_without_capturing_it_says_what_it_could_not_see(pytester: pytest.Pytester) -> None:
    leaking(pytester, "fresh_card()")

    run(pytester, "--cardvault-leaks", "-s").stdout.fnmatch_lines(["*leak scan: clean*Output was not captured*"])


def test_loading_the_plugin_brings_in_nothing_else_of_ours() -> None:
    script = "import sys, vault.testing.plugin; print(*(n for n in sys.modules if n.startswith(('vault', 'grpc'))))"

    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert set(said.split()) == {"vault", "vault.testing", "vault.testing.plugin"}
