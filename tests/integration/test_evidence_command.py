"""`cardvault evidence`: one signed report, each of whose lines can fail."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.audit.test_log import tampering
from tests.support.desk import Desk, open_desk
from vault.embedded.openbao import OpenBao


@pytest.fixture
def desk(tmp_path: Path, openbao: OpenBao, database_url: str) -> Iterator[Desk]:
    """A server on SQLite and on PostgreSQL."""
    with open_desk(tmp_path, openbao, database_url) as opened:
        yield opened


def _lines(desk: Desk, *words: str | Path, code: int = 0) -> dict[str, Any]:
    facts = json.loads(desk.type("evidence", "--config", desk.config, "--json", *words, code=code))
    return {line["name"]: line for line in facts["lines"]}


def test_a_well_kept_installation_shows_that_everything_holds(desk: Desk, tmp_path: Path) -> None:
    desk.shop()
    desk.audit("report", code=1)  # seen for the first time, and so reviewed
    desk.settle()
    report = tmp_path / "evidence.json"

    lines = _lines(desk, "--out", report)
    shown = desk.type("check-evidence", report)

    assert [name for name, line in lines.items() if line["holds"] is False] == []
    assert lines["cards without consent"]["found"] == "0"
    assert lines["releases without a grant"]["found"] == "0"
    assert "processor" in lines["who may release"]["found"]
    assert all(line["requirements"] and line["command"] for line in lines.values())
    assert "audit log" in shown
    document = json.loads(report.read_text())
    (tmp_path / "forged.json").write_text(
        json.dumps(document | {"statement": document["statement"].replace('"found": "0"', '"found": "1"', 1)})
    )
    desk.type("check-evidence", tmp_path / "forged.json", code=1)
    desk.type("check-evidence", report, "--public-key", base64.b64encode(bytes(32)).decode(), code=1)
    desk.type("check-evidence", desk.config, code=2)


def test_what_does_not_hold_is_named(desk: Desk) -> None:
    desk.shop()
    desk.settle()
    url = desk.installation.database_url
    with tampering(url) as db:
        db.exec_driver_sql("DELETE FROM audit_events WHERE event = 'grant.issued'")
        db.exec_driver_sql(
            "UPDATE audit_events SET actor = 'spiffe://test.localhost/stranger' WHERE event = 'card.released'"
        )

    lines = _lines(desk, code=1)

    failed = {name for name, line in lines.items() if line["holds"] is False}
    assert failed == {
        "releases without a grant",
        "released in the last 90 days",
        "audit log",
        "last review of the log",
        "database settings",  # the triggers that kept the log were taken away
    }
