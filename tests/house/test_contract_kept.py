"""What shops rely on stays: the protos against the contract as it was last released (`make released`)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUF = ROOT / "node_modules" / ".bin" / "buf"


def breaking(protos: Path) -> subprocess.CompletedProcess[str]:
    """What `buf breaking` says of a folder of protos."""
    if not BUF.exists():
        if os.environ.get("CARDVAULT_CI"):
            pytest.fail("missing: npm install")
        pytest.skip("buf is missing: npm install")
    command: list[str | Path] = [BUF, "breaking", protos, "--against", ROOT / "protos" / "released.json"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_nothing_that_was_released_is_broken() -> None:
    done = breaking(ROOT / "protos")

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("cards.proto", "string last4 = 3", "string last4 = 33"),
        ("checkout.proto", "string customer_id = 2;", ""),
        ("account.proto", "rpc ListCards(", "rpc ListEveryCard("),
        ("cards.proto", "CARD_USE_RECURRING = 2", "CARD_USE_RECURRING = 9"),
    ],
)
def test_a_breaking_change_is_found(tmp_path: Path, file: str, before: str, after: str) -> None:
    protos = shutil.copytree(ROOT / "protos", tmp_path / "protos")
    text = (protos / "vault" / "v1" / file).read_text(encoding="utf-8")
    assert before in text
    (protos / "vault" / "v1" / file).write_text(text.replace(before, after, 1), encoding="utf-8")

    done = breaking(protos)

    assert done.returncode != 0
    assert file in done.stdout
