"""Starting and stopping: refuses to start weak, heals by itself, loses nothing that it acknowledged."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from tests import fixtures_db
from tests.fixtures_db import execute_as_admin, postgresql_url_of, sqlite_url_of
from tests.support.answers import raw_call, refusal_of
from tests.support.cards import fresh_typed_card
from tests.support.installation import (
    ENVIRONMENT,
    Installation,
    installed,
    wait_until_ready,
)
from tests.support.requests import TIMEOUT, grant_request, new_customer, new_order, redeem_request, store_request
from vault.config_file import LEAKING_VARIABLES
from vault.embedded.openbao import OpenBao
from vault.hardening import swap_warnings
from vault.ports import KeyName
from vault.rpc.server import READY
from vault.store import SqlStore, head, upgrade
from vault.v1 import account_pb2

postgresql_server = fixtures_db.postgresql_server
sqlite_template = fixtures_db.sqlite_template

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
REFUSED = 2
SECRET = "correct-horse-battery"


@pytest.fixture
def site(tmp_path: Path, openbao: OpenBao, request: pytest.FixtureRequest) -> Iterator[Installation]:
    """A deployment that nothing serves yet, on SQLite."""
    template: Path = request.getfixturevalue("sqlite_template")
    file = tmp_path / "vault.db"
    shutil.copy(template, file)
    with installed(tmp_path / "site", openbao, sqlite_url_of(file)) as installation:
        yield installation


def database_file(site: Installation) -> Path:
    return Path(site.database_url.removeprefix("sqlite:///"))


def refused(site: Installation, *arguments: str, environ: dict[str, str] | None = None, **config: Any) -> list[str]:
    """The problems for which a start is refused."""
    file = site.config(**config)
    done = site.command(*(arguments or ("serve",)), "--config", str(file), environ=environ)
    assert done.returncode == REFUSED, done.stdout + done.stderr
    assert not done.stdout
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr
    return [line.removeprefix("  - ") for line in done.stderr.splitlines() if line.startswith("  - ")]


# --- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("serve",), ("serve", "--check-config"), ("db", "upgrade")], ids=" ".join)
def test_every_problem_is_listed_at_once(site: Installation, arguments: Sequence[str], tmp_path: Path) -> None:
    open_key, secret_file = tmp_path / "open.key", tmp_path / "secret"
    shutil.copy(site.ca.issue_server("server").key_file, open_key)
    open_key.chmod(0o644)
    secret_file.write_text(SECRET)
    secret_file.chmod(0o640)
    leaking = {name: str(tmp_path / "leak") for name in LEAKING_VARIABLES if name != "PYTHONINSPECT"}

    problems = refused(
        site,
        *arguments,
        environ={**leaking, "PYTHONINSPECT": "", "PYTHONDEVMODE": "1", "GRPC_VERBOSITY": "debug"},
        server__services=[],
        server__private_key=str(open_key),
        server__client_ca=str(tmp_path / "nowhere.pem"),
        server__secret_key=SECRET,
        vault__address=f"http://vault.localhost:8200/{SECRET}",
        vault__ca_file=str(secret_file),
        database__url=f"postgresql://cardvault:{SECRET}@db.localhost/cardvault",
        database__password_file=str(secret_file),
    )

    expected = {
        "server.secret_key: Extra inputs are not permitted",
        *(
            f"environment variable {name} is set: it would leak keys or messages; unset it"
            for name in (*leaking, "GRPC_VERBOSITY")
        ),
        "server.services: names no service",
        f"server.private_key: others may read it: chmod 600 {open_key}",
        f"server.client_ca: no such file: {tmp_path / 'nowhere.pem'}",
        f"vault.ca_file: is no PEM certificate: {secret_file}",
        "vault.address: must begin with https://",
        f"database.password_file: others may read it: chmod 600 {secret_file}",
        "database.url: holds a password; put it into a file and name it in database.password_file",
    }
    # What a file says of a server is nothing to a command that is none.
    concerns_servers = {problem for problem in expected if problem.startswith("server.")}
    assert set(problems) == (expected - concerns_servers if arguments[0] == "db" else expected)


def test_a_file_without_problems_passes_the_check(site: Installation) -> None:
    file = site.config()

    done = site.command("serve", "--check-config", "--config", str(file))

    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}: no problems found\n", "")


def test_production_refuses_the_development_certificates(site: Installation) -> None:
    problems = refused(site, profile="production")

    assert problems == [
        f"{name}: comes from the development CA, which production refuses"
        for name in ("server.certificate", "server.client_ca", "vault.ca_file")
    ]


def test_a_port_that_is_taken_is_refused_by_name(site: Installation, tmp_path: Path) -> None:
    first = site.serve(ready=False)
    shutil.copy(database_file(site), tmp_path / "other.db")
    address = f"127.0.0.1:{first.port}"

    problems = refused(site, server__listen=address, database__url=sqlite_url_of(tmp_path / "other.db"))

    assert problems == [f"server.listen: cannot listen on {address}"]


# --- the database ---------------------------------------------------------------------------------------------------


def test_a_database_of_another_environment_is_refused(site: Installation) -> None:
    with closing(SqlStore(site.database_url)) as store, store.writing() as tx:
        tx.put_setting("environment", "elsewhere")

    problems = refused(site)

    assert problems == [f"environment: this database belongs to 'elsewhere', not '{ENVIRONMENT}'"]


def test_a_missing_database_is_refused_and_not_made(site: Installation, tmp_path: Path) -> None:
    missing = tmp_path / "missing.db"

    problems = refused(site, database__url=sqlite_url_of(missing))

    assert problems == ["database: database_unreachable"]
    assert not missing.exists()


def test_a_database_without_a_schema_or_with_another_is_refused(site: Installation, tmp_path: Path) -> None:
    empty = tmp_path / "empty.db"
    empty.touch(mode=0o600)
    with closing(sqlite3.connect(database_file(site))) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")

    without = refused(site, database__url=sqlite_url_of(empty))
    other = refused(site)

    wanted = f"this release needs revision {head()}: migrate it first"
    assert without == [f"database: the database has no cardvault schema; {wanted}"]
    assert other == [f"database: the database's schema has revision 9999; this release needs {head()}"]


def test_a_database_file_that_others_may_read_is_refused(site: Installation) -> None:
    database_file(site).chmod(0o644)

    problems = refused(site)

    assert problems == ["database: SQLite: the database file is open to other users of this machine: chmod 600"]


def test_postgresql_that_may_lose_commits_is_refused(site: Installation, request: pytest.FixtureRequest) -> None:
    server: str = request.getfixturevalue("postgresql_server")
    execute_as_admin(server, "CREATE DATABASE hasty", "ALTER DATABASE hasty SET synchronous_commit = off")
    url = postgresql_url_of(server, "hasty")
    upgrade(url)

    problems = refused(site, database__url=url)

    assert problems == ["database: PostgreSQL: synchronous_commit is off: a power cut can lose acknowledged writes"]


def test_a_second_server_on_one_file_is_refused_until_the_first_is_dead(site: Installation) -> None:
    """And whatever the first acknowledged before it was killed is there."""
    first = site.serve()
    checkout, customer = site.client("checkout", first), new_customer()
    cards = [fresh_typed_card() for _ in range(20)]
    acknowledged = {}

    def store(card: Any) -> None:
        stored = checkout.checkout.Tokenize(store_request(card, customer), timeout=TIMEOUT)
        acknowledged[stored.card.token] = card

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(store, card) for card in cards[:12]]:
            done.result()
        problems = refused(site)
        flying = [threads.submit(refusal_of, lambda card=card: store(card)) for card in cards[12:]]  # type: ignore[misc]
        while len(acknowledged) < 13:
            time.sleep(0.001)
        first.kill()
        unanswered = [found for future in flying if (found := future.result()) is not None]
    second = site.serve()

    assert problems == [f"database: another server already uses {database_file(site)}"]
    assert {refusal.code for refusal in unanswered} <= {grpc.StatusCode.UNAVAILABLE}
    listed = site.client("account", second).account.ListCards(
        account_pb2.ListCardsRequest(customer_id=customer, page_size=100), timeout=TIMEOUT
    )
    assert set(acknowledged) <= {card.token for card in listed.cards}
    token, card = next(reversed(acknowledged.items()))
    order = new_order()
    grant = site.client("checkout", second).checkout.IssueGrant(
        grant_request(order=order, customer=customer, token=token), timeout=TIMEOUT
    )
    released = site.client("processor", second).processor.Detokenize(
        redeem_request(grant.grant, order), timeout=TIMEOUT
    )
    assert released.pan == card.pan


# --- Vault ----------------------------------------------------------------------------------------------------------


def test_keys_with_wrong_flags_are_refused_by_name(site: Installation, tmp_path: Path) -> None:
    weak = OpenBao(tmp_path / "weak", storage="inmem", keep_root_token=True)
    weak.start()
    try:
        with closing(weak.root()) as root:
            root.client.write_data(f"transit/keys/{KeyName.CARDS}/config", data={"exportable": True})
            root.client.write_data(f"transit/keys/{KeyName.ONCE}/config", data={"deletion_allowed": True})
        site.openbao = weak

        problems = refused(site)
    finally:
        weak.kill()

    assert problems == [
        "vault: transit key cardvault-cards: exportable must be false",
        "vault: transit key cardvault-once: deletion_allowed must be false",
    ]


def test_with_vault_away_it_starts_says_so_and_heals(site: Installation, tmp_path: Path) -> None:
    away = OpenBao(tmp_path / "away")
    away.start()
    away.stop()
    site.openbao = away
    try:
        server = site.serve(ready=False)
        checkout, account = site.client("checkout"), site.client("account")
        customer = new_customer()

        wait_until_ready(account, service="vault.v1.AccountService")
        health = {
            service: checkout.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT).status
            for service in ("", READY, "vault.v1.CheckoutService", "vault.v1.ProcessorService")
        }
        request = store_request(fresh_typed_card(), customer)
        refusal = refusal_of(lambda: checkout.checkout.Tokenize(request, timeout=TIMEOUT))
        away.start()
        wait_until_ready(checkout)
        stored = checkout.checkout.Tokenize(request, timeout=TIMEOUT)

        assert set(health.items()) == {
            ("", SERVING),
            (READY, NOT_SERVING),
            ("vault.v1.CheckoutService", NOT_SERVING),
            ("vault.v1.ProcessorService", NOT_SERVING),
        }
        assert refusal is not None
        assert refusal.code is grpc.StatusCode.UNAVAILABLE
        assert refusal.error_id
        listed = account.account.ListCards(account_pb2.ListCardsRequest(customer_id=customer), timeout=TIMEOUT)
        assert [card.token for card in listed.cards] == [stored.card.token]
        assert server.stop() == 0
    finally:
        away.kill()


def test_the_account_page_alone_needs_no_login_to_vault(site: Installation) -> None:
    server = site.serve(ready=False, services=("account",), vault__intake=None, vault__release=None)
    account = site.client("account", server)

    wait_until_ready(account)
    listed = account.account.ListCards(account_pb2.ListCardsRequest(customer_id="nobody"), timeout=TIMEOUT)
    absent = raw_call(site.client("processor", server).channel, "/vault.v1.ProcessorService/Detokenize", b"")

    assert list(listed.cards) == []
    assert absent is not None
    assert absent.code is grpc.StatusCode.UNIMPLEMENTED


# --- stopping -------------------------------------------------------------------------------------------------------


def test_sigterm_says_so_finishes_what_is_in_flight_and_ends_with_0(site: Installation) -> None:
    server = site.serve()
    checkout, watcher, account = site.client("checkout"), site.client("account"), site.client("account")
    customer = new_customer()
    watch = watcher.health.Watch(health_pb2.HealthCheckRequest(service=READY), timeout=TIMEOUT)
    first = next(watch).status
    with closing(sqlite3.connect(database_file(site), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        in_flight = checkout.checkout.Tokenize.future(store_request(fresh_typed_card(), customer), timeout=TIMEOUT)
        time.sleep(0.3)
        began = time.monotonic()
        server.process.terminate()
        after = [answer.status for answer in watch]
        late = refusal_of(
            lambda: account.account.ListCards(account_pb2.ListCardsRequest(customer_id=customer), timeout=TIMEOUT)
        )
        was_waiting = not in_flight.done()
        other.execute("ROLLBACK")

    stored = in_flight.result()
    code = server.wait()

    assert (first, after) == (SERVING, [NOT_SERVING])
    assert was_waiting
    assert late is not None
    assert late.code is grpc.StatusCode.UNAVAILABLE
    assert code == 0
    assert time.monotonic() - began < 10
    with closing(SqlStore(site.database_url)) as store, store.reading() as tx:
        assert tx.setting("environment") == ENVIRONMENT
    with closing(sqlite3.connect(database_file(site))) as connection:
        rows = connection.execute("SELECT token FROM cards WHERE customer_id = ?", (customer,)).fetchall()
    assert rows == [(stored.card.token,)]


# --- commands -------------------------------------------------------------------------------------------------------


def test_doctor_tells_well_from_unfit(site: Installation) -> None:
    good = site.config(audit__directory=str(site.directory / "copy"))
    bad = site.config(vault__address="https://127.0.0.1:1")
    without_copy = site.config()
    with closing(SqlStore(site.database_url)) as store, store.writing() as tx:
        tx.put_setting("environment", ENVIRONMENT)

    well = site.command("doctor", "--json", "--config", str(good))
    words = site.command("doctor", "--config", str(good))
    unfit = site.command("doctor", "--json", "--config", str(bad))
    hopeless = site.command("doctor", "--json", "--config", str(good.with_name("none.toml")))
    lonely = json.loads(site.command("doctor", "--json", "--config", str(without_copy)).stdout)

    expected = 1 if swap_warnings() else 0
    assert (well.returncode, words.returncode) == (expected, expected)
    assert {f["level"] for f in json.loads(well.stdout)} <= {"ok", "warning"}
    areas = {"configuration", "certificates", "database", "retention", "audit log", "vault intake", "vault release"}
    assert {f["area"] for f in json.loads(well.stdout)} == areas | {"machine"}
    assert [f["level"] for f in lonely if "no second place" in f["text"]] == ["warning"]
    assert (unfit.returncode, hopeless.returncode) == (2, 2)
    assert {f["area"] for f in json.loads(unfit.stdout) if f["level"] == "problem"} == {"vault intake", "vault release"}
    assert [f["area"] for f in json.loads(hopeless.stdout)] == ["configuration"]


def test_upgrading_says_what_it_would_do_and_can_be_repeated(site: Installation, tmp_path: Path) -> None:
    new = tmp_path / "new.db"
    config = str(site.config(database__url=sqlite_url_of(new)))

    dry = site.command("db", "upgrade", "--dry-run", "--config", config)
    existed = new.exists()
    first = site.command("db", "upgrade", "--config", config)
    second = site.command("db", "upgrade", "--config", config)
    status = site.command("db", "status", "--json", "--config", config)

    assert (dry.returncode, dry.stdout) == (0, f"would go from schema none to {head()}\n")
    assert not existed
    assert (first.returncode, first.stdout) == (0, f"schema none -> {head()}\n")
    assert (second.returncode, second.stdout) == (0, f"schema {head()}: nothing to do\n")
    assert (status.returncode, json.loads(status.stdout)) == (0, {"schema": head(), "wanted": head()})
    assert new.stat().st_mode & 0o077 == 0
