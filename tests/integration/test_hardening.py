"""Every command that works beside the database and Vault closes what a process leaves open, before it does anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from vault.cli.main import app

# Runs the command as the console script does; at its end the process itself tells how it stood.
OBSERVED = """
import atexit, ctypes, os, resource, sys

def tell():
    PR_GET_DUMPABLE = 3
    dumpable = ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
    umask = os.umask(0)
    print(dumpable, *resource.getrlimit(resource.RLIMIT_CORE), oct(umask), file=sys.stderr)

atexit.register(tell)
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
os.umask(0o022)
from vault.cli.main import main
main()
"""


def commands() -> list[tuple[str, ...]]:
    """Those of the groups for operators that take a configuration, as the command line has them."""
    found = []
    whole = get_command(app)
    for group in ("keys", "tenants"):
        for name, command in whole.commands[group].commands.items():  # type: ignore[attr-defined]
            if any(parameter.name == "config" for parameter in command.params):
                needed = [
                    word
                    for parameter in command.params
                    if parameter.required and parameter.name != "config"
                    for word in (*parameter.opts[: parameter.param_type_name == "option"], "given")
                ]
                found.append((group, name, *needed))
    return found


def test_there_are_commands_to_look_at() -> None:
    assert isinstance(app, typer.Typer)
    assert {("keys", "verify"), ("keys", "rekey"), ("tenants", "erase")} <= {words[:2] for words in commands()}
    assert len(commands()) >= 12


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux knows what is dumpable")
@pytest.mark.parametrize("words", commands(), ids="-".join)
def test_an_operators_command_leaves_no_core_file_and_cannot_be_looked_into(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    # What is hardened only once the file is read would not show here.
    done = subprocess.run(
        [sys.executable, "-c", OBSERVED, *words, "--config", str(tmp_path / "absent.toml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2, done.stderr
    assert "absent.toml" in done.stderr
    assert done.stderr.splitlines()[-1] == "0 0 0 0o77"
