"""The runbook's commands, in their order, on a real stack: each prints what the runbook says it prints."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.cards import fresh_typed_card
from tests.support.installation import Installation, installed
from tests.support.requests import TIMEOUT, new_customer, store_request
from vault.embedded.openbao import OpenBao
from vault.keyring.setup import LoginName

RUNBOOK = Path(__file__).resolve().parents[2] / "deploy" / "RUNBOOK.md"
CARDS = 12


@dataclass(frozen=True)
class Step:
    """A block of commands with what they are to print, or something that happens between."""

    commands: tuple[str, ...]
    printed: tuple[str, ...]
    happening: str = ""


def steps() -> list[Step]:
    found: list[Step] = []
    pattern = r"```sh\n(?P<sh>.*?)```\n\n```text\n(?P<text>.*?)```|<!-- (?P<happening>[a-z: ]+) -->"
    for match in re.finditer(pattern, RUNBOOK.read_text(encoding="utf-8"), re.DOTALL):
        if match["happening"]:
            found.append(Step((), (), match["happening"]))
        else:
            found.append(Step(tuple(match["sh"].splitlines()), tuple(match["text"].splitlines())))
    return found


@pytest.fixture
def openbao_on_disk(tmp_path: Path) -> Iterator[OpenBao]:
    server = OpenBao(tmp_path / "openbao", storage="raft", keep_root_token=True)
    server.start()
    yield server
    server.stop()


def test_every_block_of_the_runbook_is_one_that_is_run() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")

    assert text.count("```sh\n") == sum(1 for step in steps() if step.commands)
    assert len(steps()) >= 15


@pytest.mark.timeout(400)
def test_the_runbook_does_what_it_says(openbao_on_disk: OpenBao, sqlite_url: str, tmp_path: Path) -> None:
    with installed(tmp_path / "installation", openbao_on_disk, sqlite_url) as installation:
        files = openbao_on_disk.login_files(LoginName.CHECKPOINTER)
        server = installation.serve(
            audit__directory=str(tmp_path / "audit"),
            audit__checkpoint_seconds=1,
            vault__checkpointer__role_id_file=str(files.role_id_file),
            vault__checkpointer__secret_id_file=str(files.secret_id_file),
        )
        checkout = installation.client("checkout").checkout
        for _ in range(CARDS):
            checkout.Tokenize(store_request(fresh_typed_card(), new_customer()), timeout=TIMEOUT)
        run = _Runner(installation, openbao_on_disk, tmp_path)

        for step in steps():
            if step.happening == "restore: vault":
                server.stop()
                run.restore_vault()
                continue
            output = "".join(run(command) for command in step.commands)
            for line in step.printed:
                assert _appears(line, output), f"{step.commands}\nshould print: {line}\nprinted:\n{output}"


class _Runner:
    def __init__(self, installation: Installation, openbao: OpenBao, directory: Path) -> None:
        self._openbao = openbao
        self._snapshot = directory / "snapshot"
        self._directory = directory
        logins: dict[str, Any] = {
            f"vault__{name}": {
                "role_id_file": str(openbao.login_files(name).role_id_file),
                "secret_id_file": str(openbao.login_files(name).secret_id_file),
            }
            for name in LoginName
        }
        self._environ = {
            **os.environ,
            "CONFIG": str(installation.config(audit__directory=str(directory / "audit"), **logins)),
            "VAULT": openbao.address.address,
            "VAULT_CA": str(openbao.address.ca_file),
            "ADMIN_TOKEN": str(openbao.files.root_token),
            "LOGINS": str(openbao.files.logins),
            "COLUMNS": "200",
        }

    def __call__(self, command: str) -> str:
        words = shlex.split(os.path.expandvars(_with(command, self._environ)))
        assert words[0] == "cardvault"
        if words[1:3] == ["keys", "rotate"] and "rehearsal" in words:
            self._take_snapshot()
        if words[1:3] == ["keys", "retire"]:
            words += ["--settle", "0"]
        done = subprocess.run(
            [sys.executable, "-m", "vault", *words[1:]],
            cwd=self._directory,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode in (0, 3), f"{command}\nexit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def _take_snapshot(self) -> None:
        """A copy of a stopped Vault's storage is what a snapshot restores."""
        self._openbao.stop()
        shutil.copytree(self._openbao.files.raft, self._snapshot)
        self._start()

    def restore_vault(self) -> None:
        self._openbao.stop()
        shutil.rmtree(self._openbao.files.raft)
        shutil.copytree(self._snapshot, self._openbao.files.raft)
        self._start()

    def _start(self) -> None:
        before = self._openbao.address
        self._openbao.start()
        assert self._openbao.address == before
        with closing(self._openbao.root()) as root:
            assert root.health() is not None


def _with(command: str, environ: dict[str, str]) -> str:
    return re.sub(r'"?\$([A-Z_]+)"?', lambda match: shlex.quote(environ[match[1]]), command)


def _appears(line: str, output: str) -> bool:
    """`…` stands for anything within a line."""
    pattern = r"[^\n]*".join(re.escape(part) for part in line.split("…"))
    return re.search(f"^{pattern}$", output, re.MULTILINE) is not None
