"""`cardvault status`: one screen, whatever is up or down."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.cards import fresh_typed_card
from tests.support.installation import Installation, eventually, installed
from tests.support.raw import execute
from tests.support.requests import TIMEOUT, new_customer, store_request
from vault.embedded.openbao import OpenBao
from vault.keyring.setup import LoginName

OK, FAILED, USAGE, DUE = range(4)
PARTS = {"server", "vault", "keys", "database", "cards", "audit_log", "retention", "certificates"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def logins(openbao: OpenBao) -> dict[str, Any]:
    return {
        f"vault__{name}": {
            "role_id_file": str(openbao.login_files(name).role_id_file),
            "secret_id_file": str(openbao.login_files(name).secret_id_file),
        }
        for name in LoginName
    }


@pytest.fixture
def own_openbao(tmp_path: Path) -> Iterator[OpenBao]:
    server = OpenBao(tmp_path / "openbao", storage="raft", keep_root_token=True)
    server.start()
    yield server
    server.kill()


class Place:
    """A server that can be seen, and the file that it was started with."""

    def __init__(self, site: Installation, openbao: OpenBao) -> None:
        self.site = site
        port, metrics = free_port(), free_port()
        self.settings: dict[str, Any] = {
            "server__listen": f"127.0.0.1:{port}",
            "metrics__listen": f"127.0.0.1:{metrics}",
            "metrics__refresh_seconds": 1,
            "audit__directory": str(site.directory / "copy"),
            "audit__checkpoint_seconds": 1,
            **logins(openbao),
        }
        self.server = site.serve(**self.settings)
        self.file = site.config(**self.settings)

    def status(self, **changes: Any) -> tuple[int, dict[str, Any]]:
        file = self.site.config(**{**self.settings, **changes}) if changes else self.file
        done = self.site.command("status", "--config", str(file), "--json")
        assert done.returncode != USAGE, done.stderr
        return done.returncode, json.loads(done.stdout)


@pytest.fixture
def place(tmp_path: Path, own_openbao: OpenBao, sqlite_url: str) -> Iterator[Place]:
    with installed(tmp_path / "site", own_openbao, sqlite_url) as site:
        found = Place(site, own_openbao)
        checkout = site.client("checkout").checkout
        customer = new_customer()
        for who in (customer, customer, new_customer()):
            checkout.Tokenize(store_request(fresh_typed_card(), who), timeout=TIMEOUT)
        yield found


def test_everything_is_on_one_screen_and_there_is_nothing_to_do(place: Place) -> None:
    eventually(lambda: place.status()[1]["parts"]["audit_log"]["waiting"] == 0)
    code, facts = place.status()
    plain = place.site.command("status", "--config", str(place.file), environ={"COLUMNS": "60"})

    parts = facts["parts"]
    assert set(parts) == PARTS
    assert parts["server"]["text"] == [f"answers on {place.settings['server__listen']}", "ready"]
    assert (parts["cards"]["cards"], parts["cards"]["customers"]) == (3, 2)
    assert parts["vault"]["sealed"] is False
    assert set(parts["vault"]["token_seconds"]) == {str(name) for name in LoginName}
    assert parts["keys"]["cardvault-cards"]["version"] == 1
    assert parts["audit_log"]["copy_behind"] == 0
    # The development CA's certificates live for a few days at most.
    due = {name for name, part in parts.items() if part["level"] not in ("ok", "unknown")}
    assert due <= {"certificates"}
    assert code == (DUE if due else OK) == plain.returncode
    assert "\x1b" not in plain.stdout
    lines = plain.stdout.splitlines()
    assert {line[6:18].strip() for line in lines[2:] if re.match(r"(ok  |-   |due |FAIL)  ", line)} == {
        name.replace("_", " ") for name in PARTS
    }
    assert len(lines) <= 40


def test_a_sealed_or_stopped_vault_hides_nothing_else(place: Place, own_openbao: OpenBao) -> None:
    own_openbao.stop()

    code, facts = place.status()

    parts = facts["parts"]
    assert code == FAILED
    assert parts["vault"]["text"] == ["does not answer"]
    assert parts["keys"]["reason"] == "vault_unreachable"
    assert parts["cards"]["cards"] == 3
    assert parts["database"]["level"] == "ok"
    assert any("start Vault" in each for each in facts["next"])
    eventually(lambda: place.status()[1]["parts"]["server"]["level"] == "failed")
    assert "vault-intake" in place.status()[1]["parts"]["server"]["failing_checks"]


def test_a_database_that_is_away_hides_nothing_else(place: Place, tmp_path: Path) -> None:
    code, facts = place.status(database__url=f"sqlite:///{tmp_path}/nothing.db")

    parts = facts["parts"]
    assert code == FAILED
    for name in ("database", "cards", "audit_log", "retention"):
        assert parts[name]["level"] == "failed", name
        assert parts[name]["reason"] == "database_unreachable"
    assert [each for each in facts["next"] if "database" in each] == [
        "bring the database back, or mend the way to it: until then nothing works"
    ]
    assert parts["vault"]["level"] == "ok"
    assert parts["server"]["level"] == "ok"


def test_a_server_that_is_down_is_said_and_what_to_do(place: Place) -> None:
    place.server.stop()

    code, facts = place.status()

    assert code == FAILED
    assert "does not answer" in facts["parts"]["server"]["text"][0]
    assert any("cardvault serve" in each for each in facts["next"])
    assert facts["parts"]["cards"]["cards"] == 3


def test_an_operator_s_file_is_enough_and_says_what_it_cannot_see(
    tmp_path: Path, openbao: OpenBao, sqlite_url: str
) -> None:
    file = tmp_path / "operator.toml"
    file.write_text(
        f'environment = "test"\nprofile = "development"\n[database]\nurl = "{sqlite_url}"\n'
        f'[vault]\naddress = "{openbao.address.address}"\nca_file = "{openbao.address.ca_file}"\n',
        encoding="utf-8",
    )
    with installed(tmp_path / "site", openbao, sqlite_url) as site:
        done = site.command("status", "--config", str(file), "--json")

    parts = json.loads(done.stdout)["parts"]
    assert {name for name, part in parts.items() if part["level"] == "failed"} == set()
    assert parts["server"]["level"] == parts["keys"]["level"] == "unknown"
    assert parts["vault"]["sealed"] is False


def test_an_event_that_waits_or_lies_ahead_is_said_by_status_and_doctor(
    place: Place, own_openbao: OpenBao, sqlite_url: str
) -> None:
    place.server.stop()
    for name, moment in (
        ("old", datetime.now(UTC) - timedelta(seconds=90)),
        ("new", datetime.now(UTC) + timedelta(days=2)),
    ):
        micros = int(moment.timestamp() * 1_000_000)
        # What whoever has the role of the servers could do. A trigger puts it into the queue.
        execute(
            sqlite_url,
            "INSERT INTO audit_events (tenant_id, event_id, occurred_at, event, outcome, reason, actor, "
            "actor_certificate, role, peer, request_id, customer_id, target, order_id, processor, details) "
            f"VALUES ('shop', 'evt_{name}', {micros}, 'x.y', 'ok', '', 'a', "
            "'', '', '', 'req_x', '', '', '', '', '{}')",
        )

    code, facts = place.status()
    doctor = place.site.command("doctor", "--config", str(place.file))

    text = " ".join(facts["parts"]["audit_log"]["text"])
    assert code == FAILED
    assert facts["parts"]["audit_log"]["level"] == "failed"
    assert "events have waited for their place" in text
    assert re.search(r"time lies 2 d ahead|time lies 48 h ahead", text)
    assert "have waited for their place" in doctor.stdout
    assert "ahead: a clock is wrong" in doctor.stdout
    assert doctor.returncode == 1


def test_a_file_with_problems_is_refused(tmp_path: Path, openbao: OpenBao, sqlite_url: str) -> None:
    file = tmp_path / "broken.toml"
    file.write_text("environment = 'X'\n", encoding="utf-8")

    with installed(tmp_path / "site", openbao, sqlite_url) as site:
        done = site.command("status", "--config", str(file))

    assert done.returncode == USAGE
    assert "environment: must be 1 to 63" in done.stderr
