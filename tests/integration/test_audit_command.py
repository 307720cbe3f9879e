"""Every `cardvault audit …` command as an auditor or operator types it, beside a running server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support.cards import fresh_typed_card
from tests.support.desk import Desk, open_desk
from tests.support.raw import execute, rows, scalar
from tests.support.requests import (
    TIMEOUT,
    new_customer,
    new_key,
    new_order,
    redeem_request,
    store_request,
)
from vault.audit.checkpoint import parse_keys
from vault.audit.proof import check
from vault.domain.audit import InclusionProof
from vault.domain.ids import EventId
from vault.embedded.openbao import OpenBao
from vault.v1 import account_pb2


@pytest.fixture
def desk(tmp_path: Path, openbao: OpenBao, database_url: str) -> Iterator[Desk]:
    """A server on SQLite and on PostgreSQL."""
    with open_desk(tmp_path, openbao, database_url) as opened:
        yield opened


def test_an_auditor_verifies_with_what_was_kept_elsewhere(desk: Desk, tmp_path: Path) -> None:
    _, event = desk.shop()
    (tmp_path / "keys").write_text(desk.audit("keys"))
    kept = tmp_path / "kept"
    desk.audit("checkpoint", "--out", kept)
    desk.shop()
    desk.settle()

    online = desk.facts("verify", "--key", tmp_path / "keys", "--checkpoint", kept, "--reason", "quarterly")
    shutil.copytree(desk.copy, tmp_path / "carried")
    offline = desk.type(
        "audit", "verify", "--export", tmp_path / "carried", "--key", tmp_path / "keys", "--checkpoint", kept
    )
    desk.audit("prove", event, "--out", tmp_path / "proof")
    proven = desk.type("audit", "check-proof", tmp_path / "proof", "--key", tmp_path / "keys")
    newer = tmp_path / "newer"
    desk.audit("checkpoint", "--out", newer)
    desk.audit("consistency", kept, newer, "--out", tmp_path / "consistency")
    continued = desk.type("audit", "check-proof", tmp_path / "consistency", "--key", tmp_path / "keys")

    assert online["good"]
    assert online["covered"] > 0
    assert "The log is intact" in offline
    assert "card.erased ok" in proven
    assert "continues the log of" in continued
    read = rows(desk.installation.database_url, "SELECT target, reason FROM audit_events WHERE event = 'audit.read'")
    assert ("verify", "quarterly") in [tuple(row) for row in read]
    assert {row[0] for row in read} == {"verify", "prove", "consistency"}


def test_a_proof_of_something_else_is_refused(desk: Desk, tmp_path: Path) -> None:
    _, event = desk.shop()
    (tmp_path / "keys").write_text(desk.audit("keys"))
    desk.settle()
    desk.audit("prove", event, "--out", tmp_path / "proof")
    text = (tmp_path / "proof").read_text()
    (tmp_path / "forged").write_text(text.replace("card.erased", "card.stored"))
    other = tmp_path / "other-keys"
    key = parse_keys((tmp_path / "keys").read_text())[0]
    other.write_text(str(type(key)(key.name, bytes(31) + b"\x01")) + "\n")

    desk.type("audit", "check-proof", tmp_path / "forged", "--key", tmp_path / "keys", code=1)
    desk.type("audit", "check-proof", tmp_path / "proof", "--key", other, code=1)
    desk.type("audit", "check-proof", tmp_path / "keys", "--key", tmp_path / "keys", code=1)
    (tmp_path / "endless").write_text(text.replace('"index": ', '"index": Infinity, "was": '))
    (tmp_path / "deep").write_text("[" * 200_000)
    desk.type("audit", "check-proof", tmp_path / "endless", "--key", tmp_path / "keys", code=1)
    desk.type("audit", "check-proof", tmp_path / "deep", "--key", tmp_path / "keys", code=1)
    desk.audit("prove", EventId.from_random(bytes(16)), code=1)


def test_what_is_no_event_id_is_not_written_down(desk: Desk, database_url: str) -> None:
    typed = fresh_typed_card().pan

    done = desk.audit("prove", typed, code=2)

    assert typed not in done
    assert not [row for row in rows(database_url, "SELECT details FROM audit_events") if typed in row[0]]


def test_the_receipt_of_an_erasure_carries_its_proof_once_a_checkpoint_covers_it(desk: Desk) -> None:
    customer = new_customer()
    card = desk.checkout.checkout.Tokenize(store_request(fresh_typed_card(), customer), timeout=TIMEOUT).card
    request = account_pb2.DeleteCardRequest(idempotency_key=new_key(), customer_id=customer, token=card.token)
    first = desk.account.account.DeleteCard(request, timeout=TIMEOUT).receipt
    desk.settle()

    second = desk.account.account.DeleteCard(request, timeout=TIMEOUT).receipt

    keys = parse_keys(desk.audit("keys"))
    path = tuple(second.proof.path)
    proof = InclusionProof(
        second.proof.leaf, second.proof.leaf_index, second.proof.tree_size, path, second.proof.checkpoint
    )
    event = check(proof, keys)
    assert not first.HasField("proof")
    assert (first.event_id, first.erased_at) == (second.event_id, second.erased_at)
    assert (event.event_id, event.event, event.target) == (first.event_id, "card.erased", card.token)


def test_the_report_tells_what_to_look_at(desk: Desk) -> None:
    desk.shop()
    desk.settle()
    first = desk.facts("report", "--since", "1h", code=1)
    with pytest.raises(grpc.RpcError, match="refused"):
        desk.processor.processor.Detokenize(redeem_request("grant_" + "a" * 34, new_order()), timeout=TIMEOUT)
    desk.settle()
    second = desk.facts("report", code=1)

    assert first["released"] == {"acquirer": 1}
    assert len(first["new_identities"]) >= 3
    assert first["refused_redemptions"] == {}
    assert len(second["refused_redemptions"]) == 1
    assert "LOOK 1 refused redemptions" in desk.audit("report", code=1)
    desk.audit("report", "--since", "yesterday", code=2)


def test_events_are_shown_as_they_come(desk: Desk) -> None:
    customer, _ = desk.shop()
    desk.settle()

    shown = desk.audit("tail", "-n", "50")
    leaves = [json.loads(line) for line in desk.audit("tail", "-n", "3", "--json").splitlines()]

    assert [
        name for name in ("card.tokenized", "grant.issued", "card.released", "card.erased") if name not in shown
    ] == []
    assert customer in shown
    assert len(leaves) == 3
    assert all(each["v"] == 1 for each in leaves)


def test_an_export_is_gone_on_with(desk: Desk, tmp_path: Path) -> None:
    desk.shop()
    desk.settle()
    first = desk.facts("export", "--out", tmp_path / "export")
    desk.shop()
    desk.settle()
    second = desk.facts("export", "--out", tmp_path / "export")

    assert 0 < first["events"] < second["events"]
    assert second["added"] == second["events"] - first["events"]
    desk.type("audit", "verify", "--export", tmp_path / "export")


def test_a_server_refuses_a_database_that_was_set_back(desk: Desk, tmp_path: Path, database_url: str) -> None:
    if not database_url.startswith("sqlite"):
        pytest.skip("a file is set back by copying it; PostgreSQL is set back in the tests of `restore`")
    database = Path(database_url.removeprefix("sqlite:///"))
    desk.shop()
    desk.installation.servers[0].stop()
    backup = tmp_path / "backup.sqlite"
    shutil.copy(database, backup)
    server = desk.installation.serve(**desk.settings)
    again = Desk(
        desk.installation,
        desk.config,
        desk.settings,
        desk.installation.client("checkout", server),
        desk.installation.client("account", server),
        desk.installation.client("processor", server),
    )
    again.shop()
    again.settle()
    desk.installation.servers[-1].stop()
    shutil.copy(backup, database)

    refused = subprocess.run(
        [sys.executable, "-m", "vault", "serve", "--config", str(desk.config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert refused.returncode == 2
    assert "restored from a backup" in refused.stderr
    would = json.loads(desk.type("restore", "reconcile", "-c", desk.config, "--reason", "disk", "--dry-run", "--json"))
    desk.type("restore", "reconcile", "-c", desk.config, "--reason", "disk", code=5)  # nobody to ask
    done = json.loads(desk.type("restore", "reconcile", "-c", desk.config, "--reason", "disk", "--yes", "--json"))
    assert done["events"] == would["missing"] > 0
    assert done["lost_cards"] == []  # the one that was stored since was erased since
    desk.installation.serve(**desk.settings)
    assert desk.facts("verify")["good"]


def test_a_server_whose_database_is_set_back_under_it_ends(desk: Desk, database_url: str) -> None:
    desk.shop()
    desk.settle()
    size = scalar(database_url, "SELECT size FROM audit_head")
    execute(database_url, f"UPDATE audit_head SET size = {size - 1}")

    assert desk.installation.servers[0].wait(timeout=30) == 2


def test_commands_do_not_go_on_with_a_database_that_was_set_back(desk: Desk, database_url: str) -> None:
    desk.shop()
    desk.settle()
    desk.installation.servers[0].stop()
    segment = desk.copy / "segments" / "000000000000.jsonl"
    before = segment.read_bytes()
    segment.write_bytes(before + before.splitlines(keepends=True)[-1])  # the copy knows more than the database
    size = scalar(database_url, "SELECT size FROM audit_head")

    desk.audit("tail")
    assert scalar(database_url, "SELECT size FROM audit_head") == size
    segment.write_bytes(before)
    desk.audit("tail")
    assert scalar(database_url, "SELECT size FROM audit_head") > size


def test_usage_is_explained(desk: Desk, tmp_path: Path) -> None:
    desk.type("audit", "verify", code=2)
    desk.type("audit", "verify", "--export", tmp_path / "nothing", code=2)
    desk.audit("verify", "--key", tmp_path / "nothing", code=2)
    desk.audit("verify", "--checkpoint", tmp_path / "nothing", code=2)
    (tmp_path / "bad").write_text("bad")
    desk.audit("verify", "--key", tmp_path / "bad", code=2)
    assert "evt_" in desk.type("audit", "prove", "--help")
