"""`cardvault health`: what a probe hears of a real server, and when it must not believe one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures_db import sqlite_url_of
from tests.support.installation import Installation, ServerProcess, installed
from vault.embedded.openbao import OpenBao
from vault.embedded.pki import DevelopmentCa

SERVING, NOT, USAGE = 0, 1, 2


def ask(site: Installation, server: ServerProcess, *more: str, ca: Path | None = None) -> tuple[int, str]:
    """As a container does, with a certificate whose URI is in no configuration."""
    probe = site.ca.issue_client("spiffe://test.localhost/probe")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "vault", "health", f"--address=localhost:{server.port}"),
            *(f"--certificate={probe.cert_file}", f"--private-key={probe.key_file}", f"--ca={ca or site.ca.ca_file}"),
            *more,
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout.strip()


@pytest.fixture
def own_openbao(tmp_path: Path) -> OpenBao:
    """One that the test may take away."""
    return OpenBao(tmp_path / "state", storage="inmem")


def test_a_probe_without_a_role_hears_what_works_and_what_does_not(
    tmp_path: Path, own_openbao: OpenBao, sqlite_template: Path
) -> None:
    shutil.copy(sqlite_template, tmp_path / "vault.db")
    own_openbao.start()
    try:
        with installed(tmp_path / "site", own_openbao, sqlite_url_of(tmp_path / "vault.db")) as site:
            server = site.serve()
            well = [
                ask(site, server, *more) for more in ((), ("--service=live",), ("--service=vault.v1.CheckoutService",))
            ]
            unknown = ask(site, server, "--service=nothing")
            stranger = ask(site, server, ca=DevelopmentCa.load_or_create(tmp_path / "other").ca_file)
            own_openbao.kill()
            while (ready := ask(site, server)) == (SERVING, "SERVING"):
                pass
            live = ask(site, server, "--service=live")
            server.stop()
            gone = ask(site, server, "--service=live", "--timeout=1")
    finally:
        own_openbao.kill()

    assert well == [(SERVING, "SERVING")] * 3
    assert unknown == (NOT, "NOT_FOUND")
    assert stranger == (NOT, "UNAVAILABLE")
    assert ready == (NOT, "NOT_SERVING")
    assert live == (SERVING, "SERVING")
    assert gone[0] == NOT


def test_a_missing_file_is_a_mistake_of_usage(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "vault",
            "health",
            "--address=localhost:1",
            *(f"--{o}=nowhere" for o in ("certificate", "private-key", "ca")),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (done.returncode, done.stdout) == (USAGE, "")
    assert "nowhere" in done.stderr
