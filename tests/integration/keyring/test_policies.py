"""Every login against every transit operation: an explicit table, and whatever it does not name is denied."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
from hvac.exceptions import Forbidden, VaultError

from vault.embedded.openbao import OpenBao
from vault.keyring.admin import Administrator
from vault.keyring.setup import LoginName

_B64 = base64.b64encode(bytes(32)).decode()
_WRAPPED = f"vault:v1:{base64.b64encode(bytes(60)).decode()}"
_KEYS = ("cards", "once", "fingerprint", "audit")
_CARD_KEYS = ("cards", "once")


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    body: Mapping[str, Any] = field(default_factory=dict)


def _operations() -> Iterator[tuple[str, Operation]]:
    for key in _CARD_KEYS:
        name = f"cardvault-{key}"
        plain, sealed = {"plaintext": _B64, "context": _B64}, {"ciphertext": _WRAPPED, "context": _B64}
        yield f"encrypt {key}", Operation("post", f"encrypt/{name}", plain)
        yield f"encrypt batch {key}", Operation("post", f"encrypt/{name}", {"batch_input": [plain]})
        yield f"decrypt {key}", Operation("post", f"decrypt/{name}", sealed)
        yield f"decrypt batch {key}", Operation("post", f"decrypt/{name}", {"batch_input": [sealed, sealed]})
        yield f"decrypt batch of one {key}", Operation("post", f"decrypt/{name}", {"batch_input": [sealed]})
        yield f"decrypt null batch {key}", Operation("post", f"decrypt/{name}", {**sealed, "batch_input": None})
        yield f"decrypt BATCH_INPUT {key}", Operation("post", f"decrypt/{name}", {"Batch_Input": [sealed]})
        yield f"rewrap {key}", Operation("post", f"rewrap/{name}", sealed)
        yield f"rewrap batch {key}", Operation("post", f"rewrap/{name}", {"batch_input": [sealed]})
        yield f"datakey plaintext {key}", Operation("post", f"datakey/plaintext/{name}", {"context": _B64})
        yield f"datakey wrapped {key}", Operation("post", f"datakey/wrapped/{name}", {"context": _B64})
    for key in _KEYS:
        name = f"cardvault-{key}"
        yield f"hmac sha2-256 {key}", Operation("post", f"hmac/{name}/sha2-256", {"input": _B64})
        yield f"hmac sha2-512 {key}", Operation("post", f"hmac/{name}/sha2-512", {"input": _B64})
        yield f"hmac {key}", Operation("post", f"hmac/{name}", {"input": _B64})
        yield f"sign {key}", Operation("post", f"sign/{name}", {"input": _B64})
        yield f"sign sha2-256 {key}", Operation("post", f"sign/{name}/sha2-256", {"input": _B64})
        yield f"verify {key}", Operation("post", f"verify/{name}", {"input": _B64, "signature": _WRAPPED})
        yield f"read {key}", Operation("get", f"keys/{name}")
        yield f"rotate {key}", Operation("post", f"keys/{name}/rotate")
        yield f"config versions {key}", Operation("post", f"keys/{name}/config", {"min_decryption_version": 1})
        yield f"config exportable {key}", Operation("post", f"keys/{name}/config", {"exportable": True})
        yield f"config backup {key}", Operation("post", f"keys/{name}/config", {"allow_plaintext_backup": True})
        yield f"config deletion {key}", Operation("post", f"keys/{name}/config", {"deletion_allowed": True})
        yield f"trim {key}", Operation("post", f"keys/{name}/trim", {"min_available_version": 1})
        yield f"create {key}", Operation("post", f"keys/{name}", {"type": "aes256-gcm96"})
        yield f"delete {key}", Operation("delete", f"keys/{name}")
        yield f"backup {key}", Operation("get", f"backup/{name}")
        yield f"restore {key}", Operation("post", f"restore/{name}", {"backup": _B64, "force": True})
        for kind in ("encryption-key", "signing-key", "hmac-key", "public-key"):
            yield f"export {kind} {key}", Operation("get", f"export/{kind}/{name}")
            yield f"export {kind} latest {key}", Operation("get", f"export/{kind}/{name}/latest")
    yield "encrypt unknown", Operation("post", "encrypt/cardvault-unknown", {"plaintext": _B64})
    yield "create unknown", Operation("post", "keys/cardvault-unknown", {"type": "aes256-gcm96"})
    yield "import unknown", Operation("post", "keys/cardvault-unknown/import", {"ciphertext": _B64})
    yield "list keys", Operation("get", "keys?list=true")
    yield "config upsert", Operation("post", "config/keys", {"disable_upsert": False})
    yield "write policy", Operation("post", "/sys/policies/acl/cardvault-intake", {"policy": ""})
    yield "list policies", Operation("get", "/sys/policies/acl?list=true")
    yield "mount", Operation("post", "/sys/mounts/other", {"type": "transit"})
    yield "seal", Operation("post", "/sys/seal")
    yield "new secret id", Operation("post", "/auth/approle/role/cardvault-release/secret-id")
    yield "new token", Operation("post", "/auth/token/create")
    yield "look up own token", Operation("get", "/auth/token/lookup-self")
    yield "renew own token", Operation("post", "/auth/token/renew-self")


OPERATIONS = dict(_operations())

_OWN_TOKEN = {"look up own token", "renew own token"}
ALLOWED: Mapping[LoginName, frozenset[str]] = {
    LoginName.INTAKE: frozenset(
        {"encrypt cards", "encrypt batch cards", "encrypt once", "encrypt batch once", "hmac sha2-256 fingerprint"}
        | {"read cards", "read once", "read fingerprint"}
        | _OWN_TOKEN
    ),
    LoginName.RELEASE: frozenset({"decrypt cards", "decrypt once", "read cards", "read once"} | _OWN_TOKEN),
    LoginName.OPERATOR: frozenset(
        {f"{action} {key}" for action in ("read", "rotate", "config versions", "trim") for key in _KEYS}
        | {"rewrap cards", "rewrap once", "rewrap batch cards", "rewrap batch once"}
        | _OWN_TOKEN
    ),
    LoginName.CHECKPOINTER: frozenset({"sign audit", "read audit"} | _OWN_TOKEN),
}


@pytest.fixture(scope="module")
def logged_in(openbao: OpenBao) -> Iterator[Mapping[LoginName, Administrator]]:
    clients = {name: Administrator.logged_in(openbao.address, openbao.login(name)) for name in LoginName}
    yield clients
    for client in clients.values():
        client.close()


def is_denied(who: Administrator, operation: Operation) -> bool:
    path = operation.path if operation.path.startswith("/") else f"/transit/{operation.path}"
    try:
        who.client.adapter.request(operation.method, f"/v1{path}", json=dict(operation.body) or None)
    except Forbidden:
        return True
    except VaultError:
        return False  # it got past the policy, and only the made-up content was refused
    return False


@pytest.mark.parametrize("name", list(LoginName))
def test_a_login_may_do_what_its_table_says_and_nothing_else(
    name: LoginName, logged_in: Mapping[LoginName, Administrator]
) -> None:
    expected = {operation: operation not in ALLOWED[name] for operation in OPERATIONS}

    denied = {operation: is_denied(logged_in[name], what) for operation, what in OPERATIONS.items()}

    assert denied == expected


def test_the_table_names_only_operations_that_are_tried() -> None:
    assert frozenset().union(*ALLOWED.values()) <= OPERATIONS.keys()


def test_the_operations_denied_to_all_are_denied_by_policy_and_not_by_chance(root: Administrator) -> None:
    harmless = ("encrypt cards", "hmac sha2-512 fingerprint", "list keys", "datakey wrapped cards", "list policies")

    denied = [name for name in harmless if is_denied(root, OPERATIONS[name])]

    assert denied == []


def test_nobody_may_export_back_up_create_or_delete_a_key() -> None:
    never = ("export", "backup", "restore", "create", "delete", "import", "config exportable", "config deletion")

    granted = [op for allowed in ALLOWED.values() for op in allowed if op.startswith(never)]

    assert granted == []


def test_encrypting_under_an_unknown_key_creates_none_even_for_an_administrator(root: Administrator) -> None:
    with pytest.raises(VaultError):
        root.client.write_data("transit/encrypt/cardvault-unknown", data={"plaintext": _B64})

    assert root.client.read("transit/keys/cardvault-unknown") is None


def test_a_login_carries_its_own_policy_alone(openbao: OpenBao) -> None:
    for name in LoginName:
        with closing(Administrator.logged_in(openbao.address, openbao.login(name))) as who:
            found = who.client.auth.token.lookup_self()

            assert found["data"]["policies"] == [name.role]
