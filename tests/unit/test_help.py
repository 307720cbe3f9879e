"""The command's own manual: quick, whole, true, and the same in the README."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer.main

from vault.cli.main import app
from vault.cli.manual import PAGES

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
CARDVAULT = Path(sys.executable).with_name("cardvault")
HEAVY = (
    *("sqlalchemy", "hvac", "requests", "grpc", "google", "pydantic", "prometheus_client", "opentelemetry"),
    *("structlog", "cryptography", "alembic", "psycopg", "stamina", "rich"),
)


def commands(group: Any = None, above: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command by the words that are typed."""
    top: Any = group or typer.main.get_command(app)
    for name, command in top.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*above, name))
        else:
            yield " ".join((*above, name)), command


COMMANDS = dict(commands())


def typed(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    return subprocess.run(
        [CARDVAULT, *arguments], capture_output=True, text=True, timeout=60, check=False, env=clean | environ
    )


# --- what stands in it ----------------------------------------------------------------------------------------------


def test_every_command_has_a_page_and_every_page_a_command() -> None:
    assert set(PAGES) == set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_s_help_says_what_it_does_and_changes_its_exit_codes_and_how_it_is_typed(words: str) -> None:
    command, page = COMMANDS[words], PAGES[words]
    text = typed(*words.split(), "--help").stdout

    assert len((command.help or "").strip()) > 15
    assert "Changes: " in text
    assert "Exit codes:" in text
    assert "Examples:" in text
    assert 0 in page.exits
    assert len(page.short) <= 58
    assert all(parameter.help for parameter in command.params if parameter.name != "help")
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("words", COMMANDS)
def test_every_example_is_one_that_the_command_takes(words: str) -> None:
    command = COMMANDS[words]

    for example in PAGES[words].examples:
        typed_words = shlex.split(example.replace("\\\n", " "))
        assert typed_words[: 1 + len(words.split())] == ["cardvault", *words.split()]
        context = type(command).context_class(command)
        given, left, _ = command.make_parser(context).parse_args(typed_words[1 + len(words.split()) :])
        assert left == []
        required = {parameter.name for parameter in command.params if parameter.required}
        assert required <= {name for name, value in given.items() if value is not None}, example


def test_a_short_description_is_never_cut_off() -> None:
    for words in ("", "keys", "audit", "retention"):
        listed = typed(*words.split(), "--help").stdout.split("Commands:")[1]
        assert "..." not in listed


def test_without_arguments_it_helps_and_says_that_something_was_missing() -> None:
    bare, group = typed(), typed("keys")

    assert bare.stdout + bare.stderr == typed("--help").stdout
    assert "rotate" in group.stdout + group.stderr
    assert (bare.returncode, group.returncode) == (2, 2)


def test_the_width_of_the_terminal_is_kept_to() -> None:
    narrow, wide = (typed("import", "--help", COLUMNS=columns).stdout for columns in ("60", "200"))

    assert max(len(line) for line in narrow.split("Changes:")[0].splitlines()) <= 60
    assert 80 < max(map(len, wide.splitlines())) <= 100


# --- how quick it is ------------------------------------------------------------------------------------------------


def test_no_help_loads_what_it_does_not_need() -> None:
    program = f"""
import contextlib, io, sys
from vault.cli.main import main
for words in {[[]] + [words.split() for words in COMMANDS]!r}:
    sys.argv = ["cardvault", *words, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    assert "Usage" in out.getvalue()
print(*sorted({{name.split(".")[0] for name in sys.modules}} & set({HEAVY!r})))
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def took(*command: str | Path) -> float:
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    return time.perf_counter() - began


def test_help_takes_little_longer_than_the_library_that_prints_it() -> None:
    # By turns, so that what else this machine does weighs on both.
    pairs = [(took(CARDVAULT, "--help"), took(sys.executable, "-c", "import typer")) for _ in range(7)]
    ours, typer_alone = map(min, zip(*pairs, strict=True))

    # 0.1 s against 0.05 s on the machine that this was written on; 0.25 s with rich's boxes around it.
    assert ours < 3.5 * typer_alone


# --- shells and terminals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shell", "word"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --command")]
)
def test_the_completion_script_of_a_shell_is_printed(shell: str, word: str) -> None:
    done = typed(_CARDVAULT_COMPLETE=f"source_{shell}")

    assert done.returncode == 0
    assert word in done.stdout
    assert "cardvault" in done.stdout


def test_a_shell_completes_commands_and_options() -> None:
    def completed(words: str) -> set[str]:
        done = typed(_CARDVAULT_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1))
        return set(done.stdout.split())

    assert completed("cardvault keys ro") == {"rotate"}
    assert completed("cardvault st") == {"status"}
    assert "--dry-run" in completed("cardvault keys rotate --dr")


def on_a_terminal(*arguments: str, **environ: str) -> str:
    """What the command writes to a real terminal."""
    main, side = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    environment: Mapping[str, str] = clean | {"TERM": "xterm-256color"} | environ
    with subprocess.Popen([CARDVAULT, *arguments], stdout=side, stderr=side, env=environment) as process:
        os.close(side)
        text = b""
        while True:
            try:
                piece = os.read(main, 65536)
            except OSError:  # Linux says so when the other side is gone
                break
            if not piece:
                break
            text += piece
        process.wait(timeout=30)
    os.close(main)
    return text.decode()


def test_tables_are_plain_where_nobody_looks_and_colourless_where_asked() -> None:
    piped = typed("data-map", COLUMNS="120").stdout
    colourless = on_a_terminal("data-map", NO_COLOR="1", COLUMNS="120")

    assert "\x1b" not in piped
    assert re.search(r"[─-╿]", piped) is None
    assert re.search(r"\x1b\[[0-9;]*3[0-7]", colourless) is None
    assert "card_secrets" in piped
    assert "card_secrets" in colourless


# --- the README -----------------------------------------------------------------------------------------------------


def quoted() -> dict[str, str]:
    """What the README says that commands print."""
    text = README.read_text(encoding="utf-8")
    return {
        command: output.rstrip()
        for command, output in re.findall(r"```text\n\$ (cardvault[^\n]*--help)\n(.*?)```", text, re.DOTALL)
    }


def test_the_readme_quotes_help_as_it_is() -> None:
    assert set(quoted()) >= {"cardvault --help", "cardvault status --help"}

    for command, output in quoted().items():
        assert typed(*command.split()[1:]).stdout.rstrip() == output, command
