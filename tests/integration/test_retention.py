"""Retention as it is lived: the sweep of a real server, and the commands of an operator beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.contract.store.make import card, stored
from tests.support.cards import fresh_typed_card
from tests.support.installation import Client, Installation, eventually, installed
from tests.support.raw import execute, rows, scalar
from tests.support.requests import (
    TIMEOUT,
    consent,
    grant_request,
    new_customer,
    new_key,
    new_order,
    redeem_request,
    store_request,
)
from tests.support.world import consent as agreement
from vault.embedded.openbao import OpenBao
from vault.store import SqlStore
from vault.v1 import account_pb2

SOON = timedelta(seconds=4)


@pytest.fixture
def installation(openbao: OpenBao, database_url: str, tmp_path: Path) -> Iterator[Installation]:
    with installed(tmp_path / "installation", openbao, database_url) as made:
        yield made


@pytest.mark.parametrize("swept", [False, True], ids=["before the sweep", "by the sweep"])
def test_after_the_end_of_a_consent_nothing_is_released_and_the_sweep_erases_the_card(
    installation: Installation, swept: bool
) -> None:
    installation.serve(retention__sweep_minutes=0.005 if swept else 1440)
    checkout, account, processor = (installation.client(name) for name in ("checkout", "account", "processor"))
    ends = datetime.now(UTC) + SOON
    customer, order, lasting = new_customer(), new_order(), new_customer()
    given = consent()
    given.agreed_until.FromDatetime(ends)
    stored_card = checkout.checkout.Tokenize(
        store_request(fresh_typed_card(), customer, consent=given), timeout=TIMEOUT
    ).card
    other = checkout.checkout.Tokenize(store_request(fresh_typed_card(), lasting), timeout=TIMEOUT).card
    grant = checkout.checkout.IssueGrant(
        grant_request(order=order, customer=customer, token=stored_card.token), timeout=TIMEOUT
    ).grant
    assert _tokens(account, customer) == [stored_card.token]

    time.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()) + 0.1)

    with pytest.raises(grpc.RpcError) as refused:
        processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.PERMISSION_DENIED, "refused")
    if not swept:
        assert _tokens(account, customer) == [stored_card.token]
        return
    eventually(lambda: _tokens(account, customer) == [])
    erased = rows(
        installation.database_url,
        "SELECT reason, actor, outcome FROM audit_events "
        f"WHERE event = 'card.erased' AND target = '{stored_card.token}'",
    )
    assert [tuple(each) for each in erased] == [("consent_ended", "cardvault:test", "ok")]
    assert scalar(installation.database_url, "SELECT count(*) FROM card_secrets") == 1
    assert _tokens(account, lasting) == [other.token]


def _tokens(account: Client, customer: str) -> list[str]:
    request = account_pb2.ListCardsRequest(customer_id=customer)
    return [each.token for each in account.account.ListCards(request, timeout=TIMEOUT).cards]


def test_the_commands_plan_run_and_verify(installation: Installation) -> None:
    url = installation.database_url
    execute(url, "INSERT INTO settings (name, value) VALUES ('environment', 'test')")
    store = SqlStore(url)
    long_ago = datetime.now(UTC) - timedelta(days=3)
    due = [card(agreed=agreement(agreed_until=long_ago)) for _ in range(5)]
    stored(store, *due)
    store.close()
    file = str(installation.config(retention__pending_hours=2))

    planned = installation.command("retention", "plan", "--config", file)
    late = installation.command("retention", "verify", "--config", file, "--json")
    rehearsed = installation.command("retention", "run", "--config", file, "--dry-run", "--json")
    done = installation.command("retention", "run", "--config", file, "--json")
    again = installation.command("retention", "run", "--config", file, "--max-rate", "100")
    well = installation.command("retention", "verify", "--config", file)

    codes = [each.returncode for each in (planned, late, rehearsed, done, again, well)]
    assert codes == [0, 1, 0, 0, 0, 0], [each.stderr for each in (planned, late, rehearsed, done, again, well)]
    assert "cards whose consent has ended" in planned.stdout
    assert json.loads(late.stdout)["overdue"]["consent_ended"] == 5
    assert json.loads(rehearsed.stdout)["now"]["consent_ended"] == 5
    assert json.loads(done.stdout)["removed"]["consent_ended"] == 5
    assert "0 cards erased" in again.stdout
    assert well.stdout == "nothing is overdue\n"
    assert "✓ retention" in installation.command("doctor", "--config", file).stdout
    long_since = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    execute(url, f"UPDATE settings SET value = '{long_since}' WHERE name = 'retention.completed'")
    assert "! retention" in installation.command("doctor", "--config", file).stdout
    actors = rows(url, "SELECT DISTINCT actor, reason FROM audit_events WHERE event = 'card.erased'")
    assert [(str(actor).startswith("operator:"), reason) for actor, reason in actors] == [(True, "consent_ended")]


def test_a_run_beside_another_says_so(installation: Installation) -> None:
    file = str(installation.config())
    store = SqlStore(installation.database_url)

    with store.exclusively("retention"):
        done = installation.command("retention", "run", "--config", file)

    store.close()
    assert done.returncode == 5
    assert "another operator command is at work" in done.stderr


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("after_expiry_days", 31, "at most 30 days"),
        ("unused_days", 396, "at most 395 days"),
        ("pending_hours", 25, "at most 24 hours"),
        ("closed_grant_days", 91, "at most 90 days"),
    ],
)
def test_a_limit_cannot_be_made_longer(
    openbao: OpenBao, sqlite_url: str, tmp_path: Path, key: str, value: int, words: str
) -> None:
    with installed(tmp_path / "installation", openbao, sqlite_url) as made:
        changes: dict[str, Any] = {f"retention__{key}": value}
        file = str(made.config(**changes))

        served = made.command("serve", "--config", file)
        run = made.command("retention", "run", "--config", file)

    for done in (served, run):
        assert done.returncode == 2
        assert f"retention.{key}: may be made shorter, not longer: {words}" in done.stderr


def test_the_sweep_is_done_by_one_server_and_the_next_does_not_repeat_it(
    openbao: OpenBao, postgresql_url: str, tmp_path: Path
) -> None:
    with installed(tmp_path / "installation", openbao, postgresql_url) as made:
        made.serve()
        eventually(lambda: rows(postgresql_url, "SELECT value FROM settings WHERE name = 'retention.completed'"))
        first = scalar(postgresql_url, "SELECT value FROM settings WHERE name = 'retention.completed'")

        made.serve()
        time.sleep(1.5)

        assert scalar(postgresql_url, "SELECT value FROM settings WHERE name = 'retention.completed'") == first


def test_erased_by_call_or_by_command_a_card_leaves_no_byte_in_the_files_beside_a_running_server(
    openbao: OpenBao, sqlite_url: str, tmp_path: Path
) -> None:
    with installed(tmp_path / "installation", openbao, sqlite_url) as made:
        made.serve(retention__sweep_minutes=1440)
        checkout, account = made.client("checkout").checkout, made.client("account").account
        ends = datetime.now(UTC) + SOON
        ending = consent()
        ending.agreed_until.FromDatetime(ends)
        customers = [new_customer() for _ in range(3)]
        tokens = [
            checkout.Tokenize(
                store_request(fresh_typed_card(), customer, consent=given, idempotency_key=new_key()), timeout=TIMEOUT
            ).card.token
            for customer, given in zip(customers, (consent(), consent(), ending), strict=True)
        ]
        secrets = _secrets_at_rest(sqlite_url)
        assert len(secrets) == 12
        assert all(_left_in_files(tmp_path, secret) for secret in secrets), "the search finds what is there"

        account.DeleteCard(account_pb2.DeleteCardRequest(customer_id=customers[0], token=tokens[0]), timeout=TIMEOUT)
        account.EraseCustomer(account_pb2.EraseCustomerRequest(customer_id=customers[1]), timeout=TIMEOUT)
        time.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()) + 0.1)
        run = made.command("retention", "run", "--config", str(made.config()))

        assert run.returncode == 0, run.stderr
        assert "1 cards erased" in run.stdout
        # Should a reader have been in the way of the last one, the server's own tidying comes by within 15 s.
        eventually(lambda: not any(_left_in_files(tmp_path, secret) for secret in secrets), timeout=40)


def _secrets_at_rest(url: str) -> list[bytes]:
    """Of every stored card: ciphertext, wrapped key, fingerprint, display row (columns that stand side by side)."""
    found = rows(
        url,
        "SELECT ciphertext, wrapped_key, fingerprint, c.token || customer_id AS owner, brand, last4 "
        "FROM card_secrets s JOIN cards c ON c.tenant_id = s.tenant_id AND c.token = s.token",
    )
    secrets: list[bytes] = []
    for ciphertext, wrapped, fingerprint, owner, brand, last4 in found:
        # SQLite keeps the number 1 in the row's header.
        assert brand == 1
        secrets += [ciphertext, wrapped.encode(), fingerprint, f"{owner}{last4}".encode()]
    return secrets


def _left_in_files(directory: Path, secret: bytes) -> list[str]:
    return [path.name for path in directory.glob("vault.db*") if secret in path.read_bytes()]
