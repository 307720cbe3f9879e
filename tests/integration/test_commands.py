"""The commands a newcomer types: demo, dev, the README's first call, the set-up of a Vault."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vault.embedded.openbao import OpenBao
from vault.keyring.setup import LoginName, login_files

README = Path(__file__).resolve().parents[2] / "README.md"


def cardvault(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "vault", *arguments], capture_output=True, text=True, timeout=90, check=False
    )


def test_the_demo_tells_every_step_and_exits_zero() -> None:
    done = cardvault("demo")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗" not in done.stdout
    assert len(re.findall(r"^ *\d+\. ", done.stdout, re.MULTILINE)) == 11
    assert done.stdout.rstrip().endswith("Every step did what it should.")


@contextmanager
def _dev(state: Path) -> Iterator[str]:
    """`cardvault dev` in the background; gives what it printed until it was up."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vault", "dev", "--state", str(state)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    printed = ""
    try:
        for line in process.stdout:
            printed += line
            if "Ctrl-C" in line:
                break
        assert "cardvault is up at localhost:" in printed
        yield printed
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        process.stdout.close()


def _first_call(directory: Path) -> str:
    """Run the README's Python examples beside a state directory called `.cardvault`; gives what they printed."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": str(README.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_call_of_the_readme_works_and_its_card_is_there_after_a_restart(tmp_path: Path) -> None:
    state = tmp_path / ".cardvault"

    with _dev(state) as printed:
        first = _first_call(tmp_path)
    with _dev(state) as again:
        second = _first_call(tmp_path)

    assert re.fullmatch(r"tok_[a-z]{42} ends in 4242\nthe processor has CardNumber\(••••4242\)\n", first)
    assert first == second
    assert re.findall(r"localhost:\d+", printed) == re.findall(r"localhost:\d+", again)
    assert all(f"{role} " in printed for role in ("checkout", "account", "processor"))


def test_only_the_owner_can_read_what_dev_leaves_behind(tmp_path: Path) -> None:
    state = tmp_path / "state"

    with _dev(state):
        pass

    open_files = [path for path in state.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    assert open_files == []
    assert state.stat().st_mode & 0o077 == 0


@pytest.fixture
def bare_openbao(tmp_path: Path) -> Iterator[OpenBao]:
    """An OpenBao whose transit engine, policies and logins were taken away again."""
    server = OpenBao(tmp_path / "openbao", storage="inmem", keep_root_token=True)
    server.start()
    root = server.root()
    root.client.sys.disable_secrets_engine("transit")
    root.client.sys.disable_auth_method("approle")
    for name in LoginName:
        root.client.sys.delete_policy(name.role)
    root.close()
    yield server
    server.stop()


def test_vault_setup_says_what_it_would_do_then_does_it_then_has_nothing_to_do(
    bare_openbao: OpenBao, tmp_path: Path
) -> None:
    out = tmp_path / "logins"
    arguments = [
        *("vault", "setup", "--address", bare_openbao.address.address),
        *("--ca-file", str(bare_openbao.address.ca_file)),
        *("--admin-token-file", str(bare_openbao.files.root_token), "--out", str(out)),
    ]

    planned = cardvault(*arguments, "--dry-run")
    existed_after_plan = out.exists()
    done = cardvault(*arguments)
    again = cardvault(*arguments)

    assert (planned.returncode, done.returncode, again.returncode) == (0, 0, 0)
    assert not existed_after_plan
    assert "would create key cardvault-cards" in planned.stdout
    assert "would create policy cardvault-intake" in planned.stdout
    assert all(login_files(out / name).exist() for name in LoginName)
    assert again.stdout.strip() == "nothing to do"


def test_vault_setup_refuses_without_saying_the_token(bare_openbao: OpenBao, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("s.not-a-token-of-this-vault\n", encoding="ascii")
    token_file.chmod(0o600)

    done = cardvault(
        *("vault", "setup", "--address", bare_openbao.address.address),
        *("--ca-file", str(bare_openbao.address.ca_file), "--admin-token-file", str(token_file)),
        *("--out", str(tmp_path / "logins")),
    )

    assert done.returncode == 2
    assert "vault_forbidden" in done.stderr
    assert "not-a-token" not in done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["serve", "--help"], ["vault", "setup", "--help"], ["version"]])
def test_help_and_version_need_nothing(arguments: list[str]) -> None:
    done = cardvault(*arguments)

    # Without arguments something is missing: help goes to stderr, as for any wrong use.
    assert (done.returncode, bool(done.stdout.strip())) == ((0, True) if arguments else (2, False))
    assert not done.stderr or "Usage" in done.stderr
