"""The systemd units: valid, hardened, and hardened no further than the server stands."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, SERVERS, paths_in, settings, unit
from tests.support.commands import problem_with

FOLDER = DEPLOY / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed: apt-get install systemd")
MOST_EXPOSED = 1.5
"""Of 10, as `systemd-analyze security` counts."""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units, with a program in place of the one that is not installed here."""
    for path in FOLDER.iterdir():
        if path.suffix in (".service", ".timer"):
            text = path.read_text(encoding="utf-8").replace("/opt/cardvault/bin/cardvault", sys.executable)
            (tmp_path / path.name.replace("@.", "@intake.")).write_text(text, encoding="utf-8")
    return tmp_path


@needs_systemd
def test_systemd_takes_every_unit(installed: Path) -> None:
    done = subprocess.run(
        [str(ANALYZE), "verify", *map(str, sorted(installed.iterdir()))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    ours = [line for line in done.stderr.splitlines() if "cardvault" in line]
    assert (done.returncode, ours) == (0, [])


@needs_systemd
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_exposes_little(path: Path, installed: Path) -> None:
    file = installed / path.name.replace("@.", "@intake.")

    done = subprocess.run(
        [str(ANALYZE), "security", "--offline=true", "--no-pager", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    level = re.search(r"exposure level for .*: ([0-9.]+)", done.stdout)
    assert level is not None, done.stdout + done.stderr
    assert float(level[1]) <= MOST_EXPOSED


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_starts_a_command_that_cardvault_knows_and_leaves_nothing_behind(path: Path) -> None:
    found = unit(path)

    (start,) = found["ExecStart"]
    program, *words = shlex.split(start)
    assert program == "/opt/cardvault/bin/cardvault"
    assert problem_with(words) is None
    assert found["LimitCORE"] == ["0"]
    assert found["MemorySwapMax"] == ["0"]
    assert found["NoNewPrivileges"] == ["yes"]
    assert not any(name.startswith(("ExecStartPre", "EnvironmentFile")) for name in found)


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_is_handed_every_secret_that_its_configuration_names(name: str) -> None:
    found = unit(FOLDER / "cardvault@.service")
    credentials = {line.split(":")[0] for line in found["LoadCredential"]}
    named = set(paths_in(settings(FOLDER / "config" / f"{name}.toml")))
    folder = f"/run/credentials/cardvault@{name}.service/"

    assert {path.removeprefix(folder) for path in named if path.startswith(folder)} == credentials
    assert f"/var/lib/{found['StateDirectory'][0].replace('%i', name)}/log" in named
    assert re.search(rf"^u cardvault-{name} ", (FOLDER / "sysusers.conf").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_job_has_a_timer() -> None:
    jobs = {path.stem for path in UNITS if "@" not in path.name}

    assert {path.stem for path in FOLDER.glob("*.timer")} == jobs == {"cardvault-keys-maintain", "cardvault-retention"}


_REFUSING = """
import ctypes, os, sys
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
if ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0):
    sys.exit(77)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_everything_works_where_memory_never_becomes_executable() -> None:
    """What `MemoryDenyWriteExecute` forbids, by the kernel's own switch; children inherit it."""
    done = subprocess.run(
        [sys.executable, "-c", _REFUSING, "-m", "vault", "demo"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("Every step did what it should.")
