"""Metrics of real servers: what is counted, what never stands on the page, and the files made for them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.fixtures_db import sqlite_url_of
from tests.integration.test_workers import pids_of
from tests.support.cards import artifact_root, fresh_typed_card
from tests.support.installation import SHOP, Installation, ServerProcess, eventually, installed
from tests.support.metrics import free_ports, get, samples, value
from tests.support.raw import execute
from tests.support.requests import (
    TIMEOUT,
    grant_request,
    new_customer,
    new_order,
    redeem_request,
    store_request,
)
from tests.support.seal import seal
from vault.domain.reasons import OTHER, REASONS
from vault.embedded.openbao import OpenBao
from vault.keyring.setup import LoginName
from vault.metrics.facts import GAUGES

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "cardvault.json"
RUNBOOK = ROOT / "deploy" / "RUNBOOK.md"


def checkpointer(openbao: OpenBao) -> dict[str, Any]:
    files = openbao.login_files(LoginName.CHECKPOINTER)
    return {
        "vault__checkpointer__role_id_file": str(files.role_id_file),
        "vault__checkpointer__secret_id_file": str(files.secret_id_file),
    }


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, openbao: OpenBao, sqlite_template: Path
) -> Iterator[tuple[Installation, ServerProcess, int]]:
    """A server with metrics and everything that they can show."""
    directory = tmp_path_factory.mktemp("metrics")
    shutil.copy(sqlite_template, directory / "vault.db")
    port = free_ports(1)
    with installed(directory / "site", openbao, sqlite_url_of(directory / "vault.db")) as site:
        server = site.serve(
            metrics__listen=f"127.0.0.1:{port}",
            metrics__refresh_seconds=1,
            audit__directory=str(directory / "copy"),
            audit__checkpoint_seconds=1,
            **checkpointer(openbao),
        )
        yield site, server, port


def work(site: Installation, server: ServerProcess) -> list[str]:
    """Calls of many kinds, good and bad; gives every secret and every name that they had."""
    checkout, account, processor = (site.client(name, server) for name in ("checkout", "account", "processor"))
    card, customer, order = fresh_typed_card(), new_customer(), new_order()
    token = checkout.checkout.Tokenize(store_request(card, customer), timeout=TIMEOUT).card.token
    grant = checkout.checkout.IssueGrant(
        grant_request(order=order, customer=customer, token=token), timeout=TIMEOUT
    ).grant
    assert processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT).pan == card.pan
    bad = store_request(card, customer)
    bad.card.pan = card.pan[:-1] + str((int(card.pan[-1]) + 1) % 10)
    for call in (
        lambda: processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT),
        lambda: checkout.checkout.Tokenize(bad, timeout=TIMEOUT),
        lambda: account.checkout.Tokenize(store_request(card, customer), timeout=TIMEOUT),
    ):
        with pytest.raises(grpc.RpcError):
            call()
    return [card.pan, card.holder_name, customer, order, token, grant, bad.card.pan]


# --- the page -------------------------------------------------------------------------------------------------------


def test_calls_are_counted_by_rpc_and_code_and_refusals_by_reason(
    place: tuple[Installation, ServerProcess, int],
) -> None:
    site, server, port = place
    before = samples(port)

    work(site, server)

    after = samples(port)

    def grew(name: str, **labels: str) -> float:
        return max(0.0, value(after, name, **labels)) - max(0.0, value(before, name, **labels))

    assert grew("cardvault_calls_total", rpc="Tokenize", code="OK") == 1
    assert grew("cardvault_calls_total", rpc="Detokenize", code="OK") == 1
    assert grew("cardvault_calls_total", rpc="Detokenize", code="PERMISSION_DENIED") == 1
    assert grew("cardvault_refusals_total", rpc="Detokenize", reason="grant_used") == 1
    assert grew("cardvault_refusals_total", rpc="Tokenize", reason="invalid_field") == 1
    assert grew("cardvault_refusals_total", rpc="Tokenize", reason="role") == 1
    assert grew("cardvault_call_seconds_count", rpc="Tokenize") == 3
    assert grew("cardvault_batch_size_count", queue="Tokenize") == 1
    assert grew("cardvault_batch_seconds_count", queue="Detokenize") >= 1
    assert grew("cardvault_vault_seconds_count", operation="encrypt") >= 1
    assert grew("cardvault_vault_seconds_count", operation="hmac") >= 1
    assert grew("cardvault_vault_seconds_count", operation="decrypt") >= 1
    assert grew("cardvault_transaction_seconds_count", kind="write") >= 3
    assert value(after, "cardvault_calls_in_flight") == 0
    assert value(after, "cardvault_calls_waiting", queue="Tokenize") == 0


def test_slow_facts_are_found(place: tuple[Installation, ServerProcess, int]) -> None:
    site, server, port = place
    work(site, server)

    def settled() -> bool:
        found = samples(port)
        return (
            value(found, "cardvault_log_events") > 3
            and value(found, "cardvault_log_copy_behind_events") == 0
            and value(found, "cardvault_log_unsigned_events") == 0
            and value(found, "cardvault_log_waiting_events") == 0
        )

    eventually(settled)
    found = samples(port)
    now = time.time()
    assert now - value(found, "cardvault_log_checkpoint_timestamp_seconds") < 60
    assert value(found, "cardvault_log_oldest_waiting_seconds") == 0
    for name in ("server", "client_ca", "vault_ca"):
        assert value(found, "cardvault_certificate_expires_timestamp_seconds", certificate=name) > now
    for login in ("intake", "release", "checkpointer"):
        assert value(found, "cardvault_vault_token_expires_timestamp_seconds", login=login) > now
    assert value(found, "cardvault_look_succeeded") == 4
    assert value(found, "cardvault_retention_due_rows", rule="once_keys") >= 0
    assert value(found, "cardvault_build_info") == 1
    for check in ("database", "vault-intake", "vault-release"):
        assert value(found, "cardvault_check_passed", check=check) == 1


def test_no_label_holds_anything_that_a_caller_sent(place: tuple[Installation, ServerProcess, int]) -> None:
    site, server, port = place
    secrets = work(site, server)

    page = get(port)[1]

    # The leak scan at the end of the session looks at this as well.
    folder = artifact_root() / "metrics"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "page.txt").write_text(page, encoding="utf-8")
    assert [number for number, secret in enumerate(secrets) if secret in page] == []
    assert SHOP not in set(re.findall(r'"([^"]*)"', page))
    assert "spiffe" not in page
    labels = {name for family in text_string_to_metric_families(page) for s in family.samples for name in s.labels}
    assert labels <= {
        *("rpc", "code", "reason", "queue", "operation", "kind", "le", "check", "look", "kek_version", "rule"),
        *("certificate", "login", "version", "python"),
    }
    reasons = {
        s.labels["reason"] for f in text_string_to_metric_families(page) for s in f.samples if "reason" in s.labels
    }
    assert reasons <= REASONS
    assert OTHER not in reasons


def test_only_the_page_is_served(place: tuple[Installation, ServerProcess, int]) -> None:
    port = place[2]

    assert get(port, "/")[0] == 404
    assert get(port, "/metrics?name=x")[0] == 404
    assert get(port, method="POST")[0] == 501


def test_a_client_that_says_nothing_does_not_keep_others_from_the_page(
    place: tuple[Installation, ServerProcess, int],
) -> None:
    port = place[2]

    with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
        began = time.monotonic()
        status, _ = get(port)

    assert status == 200
    assert time.monotonic() - began < 8


def test_what_cannot_be_looked_at_is_not_shown_as_it_was(tmp_path: Path, openbao: OpenBao, sqlite_url: str) -> None:
    port = free_ports(1)
    with installed(tmp_path / "site", openbao, sqlite_url) as site:
        site.serve(metrics__listen=f"127.0.0.1:{port}", metrics__refresh_seconds=1)
        eventually(lambda: value(samples(port), "cardvault_log_events") >= 0)

        execute(sqlite_url, "ALTER TABLE audit_checkpoints RENAME TO gone")

        eventually(lambda: value(samples(port), "cardvault_look_succeeded", look="log") == 0)
        assert value(samples(port), "cardvault_log_events") == -1
        assert value(samples(port), "cardvault_look_succeeded", look="cards") == 1


def test_each_worker_has_a_port_of_its_own_and_one_shows_the_installation(
    tmp_path: Path, openbao: OpenBao, postgresql_url: str
) -> None:
    first = free_ports(2)
    with installed(tmp_path / "site", openbao, postgresql_url) as site:
        server = site.serve(server__workers=2, metrics__listen=f"127.0.0.1:{first}", metrics__refresh_seconds=1)
        clients = [site.client("checkout", server) for _ in range(12)]
        for client in clients:
            client.checkout.Tokenize(store_request(fresh_typed_card(), new_customer()), timeout=TIMEOUT)

        eventually(lambda: value(samples(first), "cardvault_cards") >= 0)
        pages = [samples(first), samples(first + 1)]

        assert sum(max(0.0, value(page, "cardvault_calls_total", rpc="Tokenize", code="OK")) for page in pages) == 12
        assert [value(page, "cardvault_log_events") >= 0 for page in pages] == [True, False]
        assert all(value(page, "cardvault_certificate_expires_timestamp_seconds") > 0 for page in pages)

        # One that dies is replaced, on the same port.
        started = value(pages[1], "process_start_time_seconds")
        os.kill(pids_of(server)[1], signal.SIGKILL)

        def is_back() -> bool:
            try:
                return value(samples(first + 1), "process_start_time_seconds") > started
            except OSError:
                return False

        eventually(is_back)
        assert server.stop() == 0


def test_a_taken_port_is_refused_by_name(
    place: tuple[Installation, ServerProcess, int], tmp_path: Path, openbao: OpenBao, postgresql_url: str
) -> None:
    with installed(tmp_path / "site", openbao, postgresql_url) as site:
        done = site.command("serve", "--config", str(site.config(metrics__listen=f"127.0.0.1:{place[2]}")))

    assert done.returncode == 2
    assert f"metrics.listen: port {place[2]}" in done.stderr


def test_calls_that_fail_because_of_vault_are_counted_with_the_reason(tmp_path: Path, sqlite_url: str) -> None:
    port = free_ports(1)
    vault = OpenBao(tmp_path / "openbao", storage="inmem", keep_root_token=True)
    vault.start()
    try:
        with installed(tmp_path / "site", vault, sqlite_url) as site:
            site.serve(metrics__listen=f"127.0.0.1:{port}")
            checkout = site.client("checkout")
            seal(vault)
            with pytest.raises(grpc.RpcError):
                checkout.checkout.Tokenize(store_request(fresh_typed_card(), new_customer()), timeout=TIMEOUT)
            found = samples(port)
    finally:
        vault.stop()

    assert value(found, "cardvault_refusals_total", rpc="Tokenize", reason="vault_sealed") == 1
    assert value(found, "cardvault_vault_errors_total", reason="vault_sealed") >= 1


def test_pages_asked_for_at_once_are_answered_one_after_the_other(
    place: tuple[Installation, ServerProcess, int],
) -> None:
    port = place[2]
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(get(port)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert statuses == [200] * 8


# --- dashboards and alerts ------------------------------------------------------------------------------------------

_METRIC = re.compile(r"\b(?:cardvault|process)_[a-z_]+")


def expressions() -> dict[str, str]:
    """Every expression of the dashboard and the alerts, by where it stands."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found = {
        f"panel {panel['title']}: {target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel.get("targets", [])
    }
    found["variable job"] = next(v["query"]["query"] for v in board["templating"]["list"] if v["name"] == "job")
    return found | {f"alert {rule['alert']}": rule["expr"] for rule in rules()}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_metric_of_dashboard_and_alerts_is_one_that_a_server_shows(
    place: tuple[Installation, ServerProcess, int],
) -> None:
    site, server, port = place
    work(site, server)
    eventually(lambda: value(samples(port), "cardvault_log_checkpoint_timestamp_seconds") > 0)
    eventually(lambda: value(samples(port), "cardvault_retention_completed_timestamp_seconds") > 0)
    eventually(lambda: value(samples(port), "cardvault_cards") > 0)
    page = get(port)[1]
    families = list(text_string_to_metric_families(page))
    shown = {s.name for f in families for s in f.samples}
    # A counter of failures that did not happen yet has no sample, but its name stands on the page.
    shown |= {f"{f.name}_total" for f in families if f.type == "counter"}
    used = {name: set(_METRIC.findall(text)) for name, text in expressions().items()}

    missing = {name: metrics - shown for name, metrics in used.items() if metrics - shown}

    assert missing == {}
    assert set(GAUGES) - {name for name in shown if name in GAUGES} == set()
    assert len(used) > 40


def test_every_label_value_in_an_expression_is_one_of_ours() -> None:
    for name, text in expressions().items():
        for pattern in re.findall(r'reason=~"([^"]*)"', text):
            for word in pattern.split("|"):
                assert any(re.fullmatch(word, reason) for reason in REASONS), (name, word)
        for pattern in re.findall(r'code=~"([^"]*)"', text):
            assert set(pattern.split("|")) <= {code.name for code in grpc.StatusCode}, name


def headings() -> set[str]:
    """Anchors as GitHub makes them of the runbook's headings."""
    titles = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_alert_says_how_bad_it_is_what_it_is_and_what_to_read() -> None:
    anchors = headings()

    for rule in rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}, rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
        file, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert file.endswith("/deploy/RUNBOOK.md"), rule["alert"]
        assert anchor in anchors, (rule["alert"], anchor)
    assert len({rule["alert"] for rule in rules()}) == len(rules()) >= 15


def test_the_dashboard_s_panels_do_not_lie_on_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    ids = []
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        at = panel["gridPos"]
        ids.append(panel["id"])
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
        assert at["x"] + at["w"] <= 24
    assert len(set(ids)) == len(ids)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Debian's package prometheus")
def test_promtool_finds_nothing_wrong_with_the_alerts_and_the_page(
    place: tuple[Installation, ServerProcess, int], tmp_path: Path
) -> None:
    checked = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    page = subprocess.run(
        ["promtool", "check", "metrics"], input=get(place[2])[1], capture_output=True, text=True, check=False
    )

    assert checked.returncode == 0, checked.stderr
    assert page.returncode in (0, 3), page.stderr  # 3: matters of style
    for name, text in expressions().items():
        if name.startswith("panel"):
            # There is no offline check of one expression: a rule made of it is as good.
            plain = text.replace("$__rate_interval", "5m").replace("$job", "cardvault")
            rule = {"groups": [{"name": "x", "rules": [{"record": "x", "expr": plain}]}]}
            file = tmp_path / "rule.yaml"
            file.write_text(yaml.safe_dump(rule), encoding="utf-8")
            done = subprocess.run(
                ["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, (name, done.stderr)
