"""The migrations, and that they and the tables say the same."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, bindparam, inspect, text
from sqlalchemy.exc import IntegrityError

from tests.support.world import NOW
from vault.domain.errors import StoreUnavailable
from vault.store import DatabaseRefused, SqlStore, current, head, schema, sqlite, upgrade
from vault.store.columns import Engine, UtcTime
from vault.store.engine import Limits, open_engines
from vault.store.tables import ONLY_ON, metadata

OF_THE_LOG = {"audit_queue", "audit_leaves", "audit_nodes", "audit_head", "audit_checkpoints"}
"""One log for all tenants."""


def test_an_empty_database_is_brought_to_the_newest_revision(empty_database_url: str) -> None:
    upgrade(empty_database_url)

    assert current(empty_database_url) == head()


def test_migrating_again_changes_nothing(database_url: str) -> None:
    upgrade(database_url)

    assert current(database_url) == head()


def test_four_migrations_at_once_wait_for_each_other(empty_database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upgrade, [empty_database_url] * 4))

    assert current(empty_database_url) == head()


def test_migrations_of_two_processes_wait_for_each_other(empty_database_url: str) -> None:
    program = "import sys; from vault.store import upgrade; upgrade(sys.argv[1])"
    command = [sys.executable, "-c", program, empty_database_url]

    processes = [subprocess.Popen(command) for _ in range(2)]

    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert current(empty_database_url) == head()


def test_the_migrated_schema_is_the_one_that_the_code_describes(database_url: str) -> None:
    engines = open_engines(database_url, Limits())
    with engines.reader.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "target_metadata": metadata,
                "include_object": lambda thing, *_: thing.info.get(ONLY_ON, engines.kind) == engines.kind,
            },
        )

        differences = compare_metadata(context, metadata)

    engines.dispose()
    assert differences == []


def test_the_release_before_finds_its_way_in_the_newer_schema(empty_database_url: str) -> None:
    _migrate(empty_database_url, "0001")
    engines = open_engines(empty_database_url, Limits())
    with engines.writer.begin() as connection:
        _store_as_the_first_release(connection, "tok_1")
    upgrade(empty_database_url)

    with engines.writer.begin() as connection:
        _store_as_the_first_release(connection, "tok_2")
        connection.execute(text("UPDATE card_secrets SET wrapped_key = 'vault:v2:AA', kek_version = 2"))
        kept = connection.execute(text("SELECT token, previous_wrapped_key, previous_kek_version FROM card_secrets"))
        rows = sorted(tuple(row) for row in kept)

    engines.dispose()
    assert rows == [("tok_1", None, None), ("tok_2", None, None)]
    assert current(empty_database_url) == head()


def test_secrets_that_are_moved_into_the_order_of_their_names_stay_what_they_are(empty_database_url: str) -> None:
    """On SQLite they are copied; nothing may change, and no copy may outlive an erasure."""
    _migrate(empty_database_url, "0005")
    engines = open_engines(empty_database_url, Limits())
    with engines.writer.begin() as connection:
        for number in (3, 1, 2):
            _store_as_the_first_release(connection, f"tok_{number}")
        connection.execute(
            text("UPDATE cards SET network_transaction_id = 'n1', last_used_at = NULL WHERE token='tok_1'")
        )
        connection.execute(
            text(
                "UPDATE card_secrets SET previous_wrapped_key = 'vault:v1:former', previous_kek_version = 1, "
                "kek_version = 2, data_key_version = 7, ciphertext = :mark WHERE token = 'tok_2'"
            ),
            {"mark": b"sealed-bytes-of-the-second-card"},
        )
        before = _everything(connection)

    upgrade(empty_database_url)

    with engines.writer.begin() as connection:
        assert _everything(connection) == before
        if engines.kind is Engine.SQLITE:
            wanted = text("SELECT sql FROM sqlite_master WHERE name = 'card_secrets'")
            assert "WITHOUT ROWID" in connection.execute(wanted).scalar_one()
        connection.execute(text("DELETE FROM card_secrets WHERE token = 'tok_2'"))
        connection.execute(text("DELETE FROM cards WHERE token = 'tok_2'"))
    with pytest.raises(IntegrityError), engines.writer.begin() as connection:
        connection.execute(text("DELETE FROM cards WHERE token = 'tok_1'"))  # its secret would be left
    with pytest.raises(IntegrityError), engines.writer.begin() as connection:
        connection.execute(text("UPDATE card_secrets SET fingerprint = :mark"), {"mark": b"same"})
    engines.dispose()
    if engines.kind is Engine.SQLITE:
        path = sqlite.path_from(empty_database_url)
        files = b"".join(each.read_bytes() for each in path.parent.glob(f"{path.name}*"))
        assert b"vault:v1:AA" in files
        assert b"sealed-bytes-of-the-second-card" not in files


def _everything(connection: Connection) -> list[list[tuple[object, ...]]]:
    tables = [metadata.tables[name] for name in ("consents", "cards", "card_secrets")]
    return [sorted((tuple(row) for row in connection.execute(table.select())), key=str) for table in tables]


def test_every_table_of_a_tenant_has_the_tenant_first_in_its_key_and_a_comment_on_every_column() -> None:
    for table in metadata.sorted_tables:
        assert table.comment
        assert all(column.comment for column in table.columns), table.name
        if table.name not in {"settings", *OF_THE_LOG}:
            assert next(iter(table.primary_key.columns)).name == "tenant_id", table.name


def test_no_column_is_named_after_what_must_not_be_stored() -> None:
    names = {column.name for table in metadata.sorted_tables for column in table.columns}

    assert not names & {"pan", "card_number", "number", "holder_name", "security_code", "cvc", "cvv", "bin", "first6"}


def test_partial_indexes_carry_their_condition_on_the_database(database_url: str) -> None:
    engines = open_engines(database_url, Limits())
    with engines.reader.connect() as connection:
        found = {
            index["name"]: index
            for table in ("grants", "audit_events", "card_secrets", "cards", "consents")
            for index in inspect(connection).get_indexes(table)
        }
    engines.dispose()

    where = f"{engines.kind}_where"
    assert "open" in str(found["uq_grants_open"]["dialect_options"][where])
    assert "released" in str(found["uq_audit_events_released"]["dialect_options"][where])
    assert "released" in str(found["ix_audit_events_releases"]["dialect_options"][where])
    assert "NOT NULL" in str(found["ix_consents_withdrawals"]["dialect_options"][where]).upper()
    assert "previous_kek_version" in str(found["ix_card_secrets_previous_wraps"]["dialect_options"][where])
    assert found["uq_grants_open"]["unique"]
    assert found["uq_audit_events_released"]["unique"]


def test_a_database_without_the_schema_is_named_as_a_weakness(empty_database_url: str, tmp_path: Path) -> None:
    upgrade(empty_database_url)
    engines = open_engines(empty_database_url, Limits())
    with engines.writer.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engines.dispose()
    store = SqlStore(empty_database_url)

    problems = store.weaknesses()

    store.close()
    assert problems == [f"the database's schema has revision 9999; this release needs {head()}"]


def test_a_missing_sqlite_file_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "lost.db"
    store = SqlStore(f"sqlite:///{path}")

    with pytest.raises(StoreUnavailable, match="database_unreachable"):
        store.check()

    assert not path.exists()


def test_a_new_sqlite_file_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new.db"

    upgrade(f"sqlite:///{path}")

    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://root:secret@host/x", "nonsense", ""])
def test_other_databases_are_refused_without_showing_the_url(url: str) -> None:
    with pytest.raises(DatabaseRefused) as caught:
        SqlStore(url)

    assert "secret" not in str(caught.value)


def _migrate(url: str, revision: str) -> None:
    engines = open_engines(url, Limits(), create=True)
    config = schema._config()
    with engines.writer.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engines.dispose()


def _store_as_the_first_release(connection: Connection, token: str) -> None:
    """With the columns that the first schema had."""
    consent = (
        "INSERT INTO consents (tenant_id, consent_id, kind, customer_id, token, terms_version, terms_sha256, uses, "
        "channel, locale, recorded_at, recorded_by) "
        "VALUES ('shop', 'cns_' || :token, 'given', 'c', :token, '1', :mark, '1', 1, 'en', :now, 'x')"
    )
    shown = (
        "INSERT INTO cards (tenant_id, token, customer_id, brand, last4, expiry_year, expiry_month, state, "
        "default_rank, consent_id, created_at) "
        "VALUES ('shop', :token, 'c', 1, '0000', 2031, 1, 1, 0, 'cns_' || :token, :now)"
    )
    secret = (
        "INSERT INTO card_secrets (tenant_id, token, wrapped_key, kek_version, ciphertext, record_version, "
        "fingerprint, fingerprint_version) VALUES ('shop', :token, 'vault:v1:AA', 1, :mark, 1, :mark, 1)"
    )
    now = bindparam("now", NOW, type_=UtcTime())
    for statement in (consent, shown, secret):
        prepared = text(statement)
        if ":now" in statement:
            prepared = prepared.bindparams(now)
        given = {"token": token, "mark": token.encode()}
        connection.execute(prepared, {name: value for name, value in given.items() if f":{name}" in statement})
