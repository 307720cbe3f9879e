"""The example in Node.js, run as its README says, against a real server."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.cards import fresh_typed_card
from tests.support.installation import installed, uri_of
from vault.domain.brand import Brand
from vault.embedded.openbao import OpenBao

EXAMPLE = Path(__file__).parents[2] / "examples" / "node"


@pytest.fixture
def node() -> str:
    """The interpreter. CI installs everything and takes no excuse."""
    found = shutil.which("node")
    missing = "node" if found is None else "" if (EXAMPLE / "node_modules").is_dir() else "npm install in examples/node"
    if missing and os.environ.get("CARDVAULT_CI"):
        pytest.fail(f"missing: {missing}")
    if missing or found is None:
        pytest.skip(f"the example in Node.js needs {missing}")
    return found


def test_the_example_prints_what_its_readme_says(openbao: OpenBao, sqlite_url: str, node: str, tmp_path: Path) -> None:
    card = fresh_typed_card(brand=Brand.VISA)
    number = tmp_path / "number"
    number.write_text(card.pan)
    with installed(tmp_path / "site", openbao, sqlite_url) as site:
        server = site.serve()
        for role in ("checkout", "account", "processor"):
            site.ca.issue_client(uri_of(role))
        (site.directory / "port").write_text(str(server.port))

        done = subprocess.run(
            [node, "shop.mjs", str(site.directory)],
            cwd=EXAMPLE,
            env={**os.environ, "CARD_NUMBER_FILE": str(number)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    number.unlink()

    assert done.returncode == 0, done.stderr
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert done.stdout.replace(card.pan[-4:], "4242") in readme
    assert card.pan not in done.stdout + done.stderr
