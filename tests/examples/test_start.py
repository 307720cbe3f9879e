"""The command that starts everything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.examples.shopper import Shopper
from tests.support.cards import fresh_typed_card


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if "http://" in line:
            return line.split("http://")[1].strip().rstrip("/")
    raise AssertionError("it ended without an address")


def _processes_of(state: Path) -> list[str]:
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                words = (each / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if any(str(state) in word for word in words):
                found.append(" ".join(words))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_starts_everything_keeps_its_state_and_stops_everything(tmp_path: Path, how: signal.Signals) -> None:
    state = tmp_path / "state"
    command = [sys.executable, "-m", "examples.storefront", "--state", str(state)]
    addresses, cards = [], ""

    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
            try:
                addresses.append(_address(process))
                shopper = Shopper(addresses[-1])
                shopper.sign_in("Ada")
                page = shopper.pay(fresh_typed_card(with_security_code=True), keep=True)
                cards = shopper.get("/account").text
                running = _processes_of(state)
            finally:
                os.kill(process.pid, how)
            assert process.wait(60) == 0
        assert "is paid" in page.text
        assert len(running) >= 5

    assert addresses[0] == addresses[1]
    assert cards.count("••••") == 2
    deadline = time.monotonic() + 5
    while _processes_of(state) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _processes_of(state) == []


def test_a_vault_that_does_not_start_ends_with_1_and_says_so(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "vault").mkdir(parents=True)
    (state / "vault" / "pki").write_text("in the way")

    ended = subprocess.run(
        [sys.executable, "-m", "examples.storefront", "--state", str(state)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 1
    assert ended.stderr.startswith("storefront: ")
    assert "Traceback" not in ended.stderr
