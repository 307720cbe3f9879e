"""The set-up: safe to repeat, strict about keys that are there already."""

from __future__ import annotations

import dataclasses
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from vault.embedded.files import policies_dir
from vault.embedded.openbao import OpenBao
from vault.keyring.admin import Administrator
from vault.keyring.session import VaultSession
from vault.keyring.setup import LoginName, SetupRefused, changes, configure, hints, issue_secret_id, write_login_files
from vault.keyring.transit import IntakeTransit
from vault.ports import KeyName


def test_running_it_again_changes_nothing(root: Administrator) -> None:
    def state() -> list[object]:
        return [
            [root.client.read(f"transit/keys/{name}")["data"] for name in KeyName],
            [root.client.get_policy(name.role) for name in LoginName],
        ]

    first = configure(root.client, policies_dir=policies_dir())
    before = state()
    second = configure(root.client, policies_dir=policies_dir())

    assert (first, before) == (second, state())


def test_existing_keys_with_wrong_flags_are_refused_by_name(own_root: Administrator) -> None:
    own_root.client.write_data(f"transit/keys/{KeyName.ONCE}/config", data={"exportable": True})
    own_root.client.write_data(f"transit/keys/{KeyName.AUDIT}/config", data={"deletion_allowed": True})

    with pytest.raises(SetupRefused) as caught:
        configure(own_root.client, policies_dir=policies_dir())

    assert caught.value.problems == [
        "transit key cardvault-once: exportable must be false",
        "transit key cardvault-audit: deletion_allowed must be false",
    ]


def test_an_administrator_without_rights_gets_a_short_answer(openbao: OpenBao) -> None:
    intake = Administrator.logged_in(openbao.address, openbao.login(LoginName.INTAKE))

    with pytest.raises(SetupRefused, match="vault_forbidden"):
        configure(intake.client, policies_dir=policies_dir())
    intake.close()


def test_another_mount_gets_policies_of_its_own(own_openbao: OpenBao, own_root: Administrator) -> None:
    role_ids = configure(own_root.client, mount="shop/transit", policies_dir=policies_dir())
    files = write_login_files(
        own_openbao.files.directory / "other",
        role_id=role_ids[LoginName.INTAKE],
        secret_id=issue_secret_id(own_root.client, LoginName.INTAKE.role),
    )
    elsewhere = dataclasses.replace(own_openbao.address, mount="shop/transit")

    session = VaultSession(address=elsewhere, login=files.login())
    with closing(session):
        intake = IntakeTransit(session)
        intake.check()
        problems = intake.inspect_keys()

    assert problems == []


def _due(admin: Administrator) -> list[str]:
    return [change.what for change in changes(admin.client, policies_dir=policies_dir())]


def _writes(server: OpenBao, since: int) -> list[str]:
    """Paths that were written to after so many lines of Vault's own audit log."""
    lines = server.files.audit_log.read_text(encoding="utf-8").splitlines()[since:]
    requests: list[dict[str, Any]] = [json.loads(line)["request"] for line in lines if '"type":"request"' in line]
    return [found["path"] for found in requests if found["operation"] in ("create", "update", "patch", "delete")]


def test_where_nothing_differs_nothing_is_written(own_openbao: OpenBao, own_root: Administrator) -> None:
    before = len(own_openbao.files.audit_log.read_text(encoding="utf-8").splitlines())

    assert _due(own_root) == []
    configure(own_root.client, policies_dir=policies_dir())

    assert _writes(own_openbao, before) == []


def test_what_was_changed_by_hand_is_named_and_put_right(own_root: Administrator) -> None:
    client = own_root.client
    client.sys.create_or_update_policy("cardvault-intake", 'path "transit/decrypt/*" { capabilities = ["update"] }')
    client.sys.delete_policy("cardvault-checkpointer")
    client.write_data(
        "auth/approle/role/cardvault-release",
        data={"token_policies": ["cardvault-release", "cardvault-intake"], "token_period": "24h"},
    )
    client.delete("auth/approle/role/cardvault-operator")
    client.write_data("transit/config/keys", data={"disable_upsert": False})

    due = _due(own_root)
    configure(client, policies_dir=policies_dir())

    assert due == [
        "forbid transit/ to make keys by encrypting",
        "update policy cardvault-intake, which differs from intake.hcl",
        "create policy cardvault-checkpointer",
        "update AppRole cardvault-release (token_policies, token_period)",
        "create AppRole cardvault-operator",
    ]
    assert _due(own_root) == []
    found: Any = client.read("auth/approle/role/cardvault-release")
    assert found["data"]["token_policies"] == ["cardvault-release"]
    text: Any = client.read("sys/policies/acl/cardvault-intake")
    assert "decrypt" not in text["data"]["policy"]


def test_what_the_deployer_narrowed_stays(own_root: Administrator) -> None:
    narrowed = {"token_bound_cidrs": ["10.0.0.0/8"], "secret_id_bound_cidrs": ["10.0.0.0/8"]}
    own_root.client.write_data("auth/approle/role/cardvault-intake", data=narrowed)

    due = _due(own_root)

    assert due == []


@pytest.mark.parametrize("flag", ["exportable", "allow_plaintext_backup", "deletion_allowed"])
def test_a_weak_key_is_refused_before_anything_is_written(own_root: Administrator, flag: str) -> None:
    own_root.client.write_data(f"transit/keys/{KeyName.CARDS}/config", data={flag: True})
    own_root.client.sys.delete_policy("cardvault-intake")

    with pytest.raises(SetupRefused) as caught:
        configure(own_root.client, policies_dir=policies_dir())

    assert f"transit key cardvault-cards: {flag} must be false" in caught.value.problems
    assert own_root.client.read("sys/policies/acl/cardvault-intake") is None


def test_the_set_up_needs_its_stated_policy_and_no_root(own_openbao: OpenBao, own_root: Administrator) -> None:
    client = own_root.client
    client.sys.disable_secrets_engine("transit")
    client.sys.disable_auth_method("approle")
    for name in LoginName:
        client.sys.delete_policy(name.role)
    # Another name than the embedded default's own.
    text = (policies_dir() / "setup.hcl").read_text(encoding="utf-8")
    client.sys.create_or_update_policy("stated", text)
    made: Any = client.auth.token.create_orphan(policies=["stated"], no_default_policy=True, ttl="15m")

    with closing(Administrator(own_openbao.address, token=made["auth"]["client_token"])) as admin:
        before = _due(admin)
        configure(admin.client, policies_dir=policies_dir())
        after = _due(admin)
        secret_ids = [issue_secret_id(admin.client, name.role) for name in LoginName]
        seen = hints(admin.client)

    assert len(before) == 2 + len(KeyName) + len(LoginName) + 1 + len(LoginName)
    assert after == []
    assert len(set(secret_ids)) == len(LoginName)
    assert seen == []


def test_a_vault_without_an_audit_device_is_pointed_out(own_openbao: OpenBao, own_root: Administrator) -> None:
    with closing(Administrator(own_openbao.address, token="s.nobody")) as nobody:
        blind = hints(nobody.client)

    assert hints(own_root.client) == []
    assert len(blind) == 1
    assert "may not see" in blind[0]


def test_every_policy_file_is_one_that_is_known() -> None:
    files = {path.stem for path in Path(policies_dir()).glob("*.hcl")}

    assert files == {*LoginName, "setup"}
