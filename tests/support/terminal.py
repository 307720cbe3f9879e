"""Commands as an operator types them, with the logins of production, beside a running server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures_db import sqlite_url_of
from tests.support.cards import TypedCard, fresh_typed_card
from tests.support.installation import Client, Installation, installed
from tests.support.raw import rows
from tests.support.requests import TIMEOUT, grant_request, new_customer, new_order, redeem_request, store_request
from vault.embedded.openbao import OpenBao
from vault.keyring.setup import LoginName

OK, FAILED, USAGE, DUE, OVERDUE, REFUSED = range(6)
INTERRUPTED = 130
ALL_LOGINS = tuple(LoginName)


@dataclass(frozen=True)
class Typed:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def facts(self) -> Any:
        return json.loads(self.out)


@dataclass
class Terminal:
    """Where commands are typed; remembers all that they printed."""

    installation: Installation
    openbao: OpenBao
    configs: dict[tuple[LoginName, ...], Path]
    cards: dict[str, tuple[str, TypedCard]]
    printed: list[str]
    checkout: Client
    processor: Client

    @property
    def url(self) -> str:
        return self.installation.database_url

    def config(self, logins: tuple[LoginName, ...] = ALL_LOGINS) -> Path:
        """The configuration of a host that has these logins."""
        if logins not in self.configs:
            changes: dict[str, Any] = {f"vault__{name}": None for name in LoginName if name not in logins}
            for name in logins:
                files = self.openbao.login_files(name)
                changes[f"vault__{name}__role_id_file"] = str(files.role_id_file)
                changes[f"vault__{name}__secret_id_file"] = str(files.secret_id_file)
            self.configs[logins] = self.installation.config(**changes)
        return self.configs[logins]

    def type(self, *arguments: str, logins: tuple[LoginName, ...] = ALL_LOGINS) -> Typed:
        """`cardvault keys …`."""
        words = ("keys", arguments[0], "--config", str(self.config(logins)), *arguments[1:])
        return self._noted(self.installation.command(*words))

    def type_bare(self, *arguments: str) -> Typed:
        """Without a configuration."""
        return self._noted(self.installation.command("keys", *arguments))

    def _noted(self, done: subprocess.CompletedProcess[str]) -> Typed:
        self.printed += [done.stdout, done.stderr]
        assert "Traceback" not in done.stderr, done.stderr
        return Typed(done.returncode, done.stdout, done.stderr)

    def store(self, count: int) -> None:
        """Through the server."""
        for _ in range(count):
            card, customer = fresh_typed_card(), new_customer()
            answer = self.checkout.checkout.Tokenize(store_request(card, customer), timeout=TIMEOUT)
            self.cards[answer.card.token] = (customer, card)

    def redeem_all(self) -> None:
        """Every card opens to its own number, through the server."""
        for token, (customer, card) in self.cards.items():
            order = new_order()
            request = grant_request(order=order, customer=customer, token=token)
            grant = self.checkout.checkout.IssueGrant(request, timeout=TIMEOUT).grant
            released = self.processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT)
            assert released.pan == card.pan

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`cardvault keys …` that goes on by itself. What it prints is for the caller to note."""
        words = ("keys", arguments[0], "--config", str(self.config()), *arguments[1:])
        command = [sys.executable, "-m", "vault", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def move_to_version_2(self) -> None:
        """Rotate the cards' key and rewrap them all."""
        for command in ("rotate", "rewrap"):
            assert self.type(command, "--reason", "planned").code == OK

    def key(self) -> Any:
        """What Vault tells of the cards' key."""
        return self.type("status", "--json").facts["keys"][0]

    def oldest_usable(self) -> int:
        """The cards' key's oldest version that opens."""
        return int(self.key()["min_decryption"])

    def everything(self) -> tuple[object, ...]:
        """What a command that changes nothing leaves as it was."""
        facts = self.type("status", "--json").facts
        settings = rows(self.url, "SELECT name, value FROM settings ORDER BY name")
        return facts, settings, rows(self.url, "SELECT count(*) FROM audit_events"), self.wraps()

    def wraps(self) -> dict[int, int]:
        return dict(rows(self.url, "SELECT kek_version, count(*) FROM card_secrets GROUP BY kek_version"))


@pytest.fixture
def terminal(tmp_path: Path, sqlite_template: Path) -> Iterator[Terminal]:
    """A server on SQLite with cards in it; its OpenBao is its own, as keys are retired and destroyed."""
    shutil.copy(sqlite_template, tmp_path / "vault.db")
    openbao = OpenBao(tmp_path / "openbao", storage="inmem", keep_root_token=True, log_raw=True)
    openbao.start()
    try:
        with installed(tmp_path / "shop", openbao, sqlite_url_of(tmp_path / "vault.db")) as installation:
            installation.serve()
            clients = installation.client("checkout"), installation.client("processor")
            found = Terminal(installation, openbao, {}, {}, [], *clients)
            found.store(5)
            yield found
            _nothing_secret(found)
    finally:
        openbao.stop()


def _nothing_secret(terminal: Terminal) -> None:
    """No card number, no name, no secret of a login, no token of Vault, no wrapped key in anything printed."""
    printed = "\n".join(terminal.printed)
    secrets = [text for _, card in terminal.cards.values() for text in (card.pan, card.holder_name)]
    for name in LoginName:
        files = terminal.openbao.login_files(name)
        secrets += [files.role_id_file.read_text().strip(), files.secret_id_file.read_text().strip()]
    secrets.append(terminal.openbao.files.root_token.read_text().strip())
    assert [number for number, secret in enumerate(secrets) if secret in printed] == []
    assert re.search(r"vault:v\d+:|\bhvs\.|\bs\.[A-Za-z0-9]{20}", printed) is None
