"""`cardvault retention compact`: a database of whatever size written anew, beside a server, or left as it was."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from pathlib import Path

import pytest

from tests.contract.store.make import card, stored
from tests.support.cards import fresh_typed_card
from tests.support.installation import installed
from tests.support.raw import execute, rows
from tests.support.requests import TIMEOUT, new_customer, store_request
from vault.embedded.openbao import OpenBao
from vault.store import SqlStore
from vault.store.sql_store import COMPACTED_UP_TO
from vault.v1 import account_pb2

WHY = ("--reason", "after erasures")


def _grow(url: str) -> None:
    """Beyond what a server writes anew by itself."""
    for n in range(COMPACTED_UP_TO // (1 << 20) + 16):
        execute(url, f"INSERT INTO settings (name, value) VALUES ('filler{n}', hex(zeroblob({1 << 19})))")


def test_a_large_database_is_written_anew_beside_a_server_that_goes_on(
    openbao: OpenBao, sqlite_url: str, tmp_path: Path
) -> None:
    with installed(tmp_path / "installation", openbao, sqlite_url) as made:
        execute(sqlite_url, "INSERT INTO settings (name, value) VALUES ('environment', 'test')")
        file = str(made.config())
        _grow(sqlite_url)
        made.serve(retention__sweep_minutes=1440)
        checkout, account = made.client("checkout").checkout, made.client("account").account
        customer, ended, kept = new_customer(), threading.Event(), list[str]()
        checkout.Tokenize(store_request(fresh_typed_card(), customer), timeout=TIMEOUT)
        account.EraseCustomer(account_pb2.EraseCustomerRequest(customer_id=customer), timeout=TIMEOUT)
        execute(sqlite_url, "DELETE FROM settings WHERE name LIKE 'filler1%'")

        def shop() -> None:
            while not ended.is_set():
                request = store_request(fresh_typed_card(), new_customer())
                kept.append(checkout.Tokenize(request, timeout=TIMEOUT).card.token)

        dry = made.command("retention", "compact", "--config", file, *WHY, "--dry-run")
        warned = made.command("doctor", "--config", file)
        verified = made.command("retention", "verify", "--config", file)
        verified_json = made.command("retention", "verify", "--config", file, "--json")
        shopping = threading.Thread(target=shop)
        shopping.start()
        try:
            done = made.command("retention", "compact", "--config", file, *WHY, "--json")
        finally:
            ended.set()
            shopping.join()
        again = made.command("retention", "compact", "--config", file, *WHY)
        well = made.command("doctor", "--config", file)
        verified_since = made.command("retention", "verify", "--config", file, "--json")

    for each in (dry, done, again, verified, verified_since):
        assert each.returncode == 0, each.stderr
    assert "1 cards erased since it was written anew" in dry.stdout
    words = "1 cards were erased since the database's file"
    assert words in warned.stdout
    assert words in verified.stdout
    assert json.loads(verified_json.stdout)["not_compacted"]["erased"] == 1
    facts = json.loads(done.stdout)
    assert facts["bytes_before"] > facts["bytes_after"] > COMPACTED_UP_TO
    assert facts["seconds"] > 0
    assert facts["is_clear"]
    assert "MiB before" in again.stdout
    assert words not in well.stdout
    assert json.loads(verified_since.stdout)["not_compacted"] is None
    assert kept
    found = {row[0] for row in rows(sqlite_url, "SELECT token FROM cards")}
    assert found == set(kept)
    events = rows(sqlite_url, "SELECT reason, actor, outcome FROM audit_events WHERE event = 'database.compacted'")
    assert [(reason, actor.startswith("operator:"), outcome) for reason, actor, outcome in events] == [
        ("after erasures", True, "ok")
    ] * 2


def test_beside_a_long_reader_nothing_is_done_and_it_is_said(openbao: OpenBao, sqlite_url: str, tmp_path: Path) -> None:
    with installed(tmp_path / "installation", openbao, sqlite_url) as made:
        file = str(made.config())
        with closing(SqlStore(sqlite_url)) as store:
            stored(store, card())
            with closing(SqlStore(sqlite_url)) as elsewhere, elsewhere.reading() as reader:
                reader.setting("environment")
                stored(store, card())

                refused = made.command("retention", "compact", "--config", file, *WHY)

        done = made.command("retention", "compact", "--config", file, *WHY)

    assert refused.returncode == 5
    assert "nothing was changed" in refused.stderr
    assert done.returncode == 0, done.stderr


def test_on_postgresql_it_is_refused_and_says_what_to_do(openbao: OpenBao, postgresql_url: str, tmp_path: Path) -> None:
    with installed(tmp_path / "installation", openbao, postgresql_url) as made:
        file = str(made.config())
        refused = made.command("retention", "compact", "--config", file, *WHY, "--json")
        dry = made.command("retention", "compact", "--config", file, *WHY, "--dry-run")

    assert (refused.returncode, dry.returncode) == (5, 0)
    assert json.loads(refused.stdout)["error"] == "not_sqlite"
    assert "VACUUM FULL card_secrets, cards" in refused.stderr
    assert dry.stdout == "PostgreSQL: nothing would be done\n"


@pytest.mark.parametrize("reason", ["", "x" * 201])
def test_it_wants_a_reason(openbao: OpenBao, sqlite_url: str, tmp_path: Path, reason: str) -> None:
    with installed(tmp_path / "installation", openbao, sqlite_url) as made:
        done = made.command("retention", "compact", "--config", str(made.config()), "--reason", reason)

    assert done.returncode == 2
