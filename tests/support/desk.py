"""A host with every login, beside a server that signs and copies its log: what is typed there, and what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.cards import fresh_typed_card
from tests.support.installation import Client, Installation, eventually, installed
from tests.support.raw import scalar
from tests.support.requests import TIMEOUT, grant_request, new_customer, new_order, redeem_request, store_request
from vault.audit.copy import Directory
from vault.embedded.openbao import OpenBao
from vault.keyring.setup import LoginName
from vault.v1 import account_pb2


@dataclass
class Desk:
    """A host with everything, and what its commands printed."""

    installation: Installation
    config: Path
    settings: dict[str, Any]
    checkout: Client
    account: Client
    processor: Client

    @property
    def copy(self) -> Path:
        return Path(self.settings["audit__directory"])

    def type(self, *words: str | Path, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "vault", *map(str, words)], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def audit(self, command: str, *words: str | Path, code: int = 0) -> str:
        return self.type("audit", command, "--config", self.config, *words, code=code)

    def facts(self, command: str, *words: str | Path, code: int = 0) -> Any:
        return json.loads(self.audit(command, *words, "--json", code=code))

    def settle(self) -> None:
        """Wait until the server has signed and copied everything that happened so far."""
        url = self.installation.database_url

        def is_settled() -> bool:
            size = scalar(url, "SELECT size FROM audit_head")
            waiting = scalar(url, "SELECT count(*) FROM audit_queue")
            signed = scalar(url, "SELECT max(size) FROM audit_checkpoints")
            return bool(waiting == 0 and size == signed == Directory(self.copy).newest_checkpoint())

        eventually(is_settled, timeout=60)

    def shop(self) -> tuple[str, str]:
        """A card stored, released and erased: customer and the erasure's event."""
        customer, order = new_customer(), new_order()
        card = self.checkout.checkout.Tokenize(store_request(fresh_typed_card(), customer), timeout=TIMEOUT).card
        request = grant_request(order=order, customer=customer, token=card.token)
        grant = self.checkout.checkout.IssueGrant(request, timeout=TIMEOUT).grant
        self.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
        delete = account_pb2.DeleteCardRequest(customer_id=customer, token=card.token)
        return customer, self.account.account.DeleteCard(delete, timeout=TIMEOUT).receipt.event_id


def signing(openbao: OpenBao, copy: Path) -> dict[str, Any]:
    """Settings of a server that signs every second and keeps a copy."""
    return {
        "audit__directory": str(copy),
        "audit__checkpoint_seconds": 1,
        **login_settings(openbao, LoginName.CHECKPOINTER),
    }


def login_settings(openbao: OpenBao, name: LoginName) -> dict[str, str]:
    """Settings of one login."""
    files = openbao.login_files(name)
    return {
        f"vault__{name}__role_id_file": str(files.role_id_file),
        f"vault__{name}__secret_id_file": str(files.secret_id_file),
    }


@contextmanager
def open_desk(tmp_path: Path, openbao: OpenBao, database_url: str) -> Iterator[Desk]:
    """A desk with a server."""
    with installed(tmp_path, openbao, database_url) as installation:
        settings = signing(openbao, tmp_path / "copy")
        installation.serve(**settings)
        yield Desk(
            installation,
            installation.config(**settings, **login_settings(openbao, LoginName.OPERATOR)),
            settings,
            installation.client("checkout"),
            installation.client("account"),
            installation.client("processor"),
        )
