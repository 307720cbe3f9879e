"""The Patroni example says what the measured fail-over relied on."""

from __future__ import annotations

from typing import Any

from tests.deploy.files import DEPLOY, SERVERS, load_yaml

(NODE,) = load_yaml(DEPLOY / "patroni" / "patroni.yaml")


def test_a_write_is_on_two_nodes_before_it_is_acknowledged() -> None:
    dcs: dict[str, Any] = NODE["bootstrap"]["dcs"]

    assert dcs["synchronous_mode"] is True
    assert dcs["synchronous_mode_strict"] is True
    assert dcs["synchronous_node_count"] >= 1
    parameters = dcs["postgresql"]["parameters"]
    assert {
        name: parameters[name] for name in ("synchronous_commit", "fsync", "full_page_writes", "ssl")
    } == dict.fromkeys(("synchronous_commit", "fsync", "full_page_writes", "ssl"), "on")
    assert dcs["ttl"] >= dcs["loop_wait"] + 2 * dcs["retry_timeout"]


def test_nobody_comes_in_without_tls_and_a_password_and_no_password_is_in_the_file() -> None:
    lines = [line.split() for line in NODE["postgresql"]["pg_hba"]]

    assert all(line[0] == "hostssl" or line[0] == "local" for line in lines)
    assert all(line[-1] == "scram-sha-256" for line in lines if line[0] == "hostssl")
    assert {f"cardvault_{name}" for name in SERVERS} <= {line[2] for line in lines if line[0] == "hostssl"}
    assert "password" not in str(NODE).replace("password_encryption", "")
