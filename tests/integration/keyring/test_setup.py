"""The set-up: safe to repeat, strict about keys that are there already."""

from __future__ import annotations

import dataclasses
from contextlib import closing

import pytest

from vault.embedded.files import policies_dir
from vault.embedded.openbao import OpenBao
from vault.keyring.admin import Administrator
from vault.keyring.session import VaultSession
from vault.keyring.setup import LoginName, SetupRefused, configure, issue_secret_id, write_login_files
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
    with closing(session), closing(IntakeTransit(session)) as intake:
        intake.check()
        problems = intake.inspect_keys()

    assert problems == []
