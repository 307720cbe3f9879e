"""An OpenBao of one's own: started, initialised, set up and unsealed without anybody's help.

For development and single-host use. The key of its seal lies in a file beside its data, which is as good as no seal
against whoever takes both; a production Vault is somebody else's machine.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from vault.embedded.files import (
    StateFiles,
    StorageKind,
    child_environment,
    pick_ports,
    policies_dir,
    seal_key,
    write_config,
)
from vault.embedded.pki import DevelopmentCa
from vault.embedded.process import DirectoryLock, OpenBaoFailed, OpenBaoProcess
from vault.keyring.admin import Administrator, Health
from vault.keyring.files import make_private_dir, write_private
from vault.keyring.login import AppRoleLogin, VaultAddress
from vault.keyring.setup import (
    DEFAULT_TOKEN_TTL,
    LoginFiles,
    LoginName,
    configure,
    issue_secret_id,
    login_files,
    write_login_files,
)

_SETUP_ROLE = "cardvault-setup"
_SETUP_EDITION = b"2"
"""Raise it when the set-up itself changes, not only the policy files: the next start then runs it again."""

_START_TIMEOUT = 30.0
_POLL = 0.02


class OpenBao:
    """One OpenBao on one state directory. `start` and `stop` may be called again and again, one at a time.

    With `storage="raft"` everything survives a restart, also after SIGKILL; with `"inmem"` each start is a first one,
    with new keys and new credentials.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        storage: StorageKind = "raft",
        ca: DevelopmentCa | None = None,
        log_raw: bool = False,
        keep_root_token: bool = False,
        token_ttl: timedelta = DEFAULT_TOKEN_TTL,
    ) -> None:
        """`log_raw` and `keep_root_token` are for tests: secrets in the audit log, a root token that stays valid."""
        self.files = StateFiles(state_dir.resolve())
        self._storage = storage
        self._ca = ca
        self._log_raw = log_raw
        self._keep_root_token = keep_root_token
        self._token_ttl = token_ttl
        self._process: OpenBaoProcess | None = None
        self._address: VaultAddress | None = None

    @property
    def address(self) -> VaultAddress:
        """Where it listens; known once started."""
        assert self._address is not None, "not started"
        return self._address

    @property
    def pid(self) -> int:
        """Of the server itself."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives; it may be sealed."""
        return self._process is not None and self._process.is_running

    def login_files(self, name: LoginName) -> LoginFiles:
        """Credentials of a login."""
        return login_files(self.files.logins / name)

    def login(self, name: LoginName) -> AppRoleLogin:
        """A login for `VaultSession`."""
        return self.login_files(name).login()

    def root(self) -> Administrator:
        """An administrator who may do anything; only with `keep_root_token`. Close it after use."""
        return Administrator(self.address, token=self.files.root_token.read_text(encoding="utf-8").strip())

    def start(self) -> None:
        """Start it and wait until it serves; at the first start initialise it and run the set-up."""
        if self.is_running:
            raise OpenBaoFailed("already started")
        make_private_dir(self.files.directory)
        if self._storage == "raft" and self.files.raft.is_dir() and not self.files.seal_key.is_file():
            raise OpenBaoFailed("the seal's key is gone, and with it all keys in this state directory")
        seal_key(self.files)
        try:
            self._spawn()
            self._make_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self, *, grace: timedelta = timedelta(seconds=5)) -> None:
        """SIGTERM, then SIGKILL; returns when the process is gone. Does nothing if it is not running."""
        if self._process is not None:
            self._process.stop(grace=grace.total_seconds())

    def kill(self) -> None:
        """SIGKILL, for tests of crashes."""
        if self._process is not None:
            self._process.kill()

    def unseal(self) -> None:
        """Open it again after somebody sealed it by hand; a restart does the same by itself."""
        with closing(Administrator(self.address)) as stranger:
            stranger.unseal(self.files.recovery_key.read_text(encoding="utf-8").strip())
            self._wait(stranger, lambda health: health.is_active)

    # --- starting ---------------------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        ca = self._ca or DevelopmentCa.load_or_create(self.files.pki)
        tls = ca.issue_server("openbao")
        lock = DirectoryLock(self.files.lock)
        descriptor = lock.take(timeout=1)
        try:
            ports = pick_ports(self.files)
            config = write_config(self.files, storage=self._storage, ports=ports, tls=tls, log_raw=self._log_raw)
            self._address = VaultAddress(address=f"https://127.0.0.1:{ports[0]}", ca_file=ca.ca_file)
            self._process = OpenBaoProcess(
                ["server", f"-config={config}"],
                log_file=self.files.server_log,
                environment=child_environment(),
                keep_fd=descriptor,
            )
            self._process.start()
        finally:
            lock.drop()

    def _make_ready(self) -> None:
        with closing(Administrator(self.address)) as stranger:
            root_token = ""
            if not self._wait(stranger, lambda _: True).initialized:
                root_token = self._initialise(stranger)
            self._wait(stranger, lambda health: health.is_active)
        digest = self._setup_digest()
        if root_token or not self._is_set_up(digest):
            with closing(self._administrator(root_token)) as admin:
                self._set_up(admin, is_first=bool(root_token))
            write_private(self.files.setup_mark, digest + "\n")

    def _initialise(self, stranger: Administrator) -> str:
        """Make the recovery key and the first root token. What an earlier, lost storage left behind is void."""
        for stale in (self.files.setup_mark, self.files.root_token):
            stale.unlink(missing_ok=True)
        made = stranger.initialise()
        write_private(self.files.recovery_key, made.recovery_key + "\n")
        if self._keep_root_token:
            write_private(self.files.root_token, made.root_token + "\n")
        return made.root_token

    def _wait(self, stranger: Administrator, is_enough: Callable[[Health], bool]) -> Health:
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            if not self.is_running:
                raise OpenBaoFailed(f"OpenBao stopped; its last words are in {self.files.server_log}")
            health = stranger.health()
            if health is not None and is_enough(health):
                return health
            time.sleep(_POLL)
        raise OpenBaoFailed(f"OpenBao did not become ready; see {self.files.server_log}")

    # --- set-up -----------------------------------------------------------------------------------------------------

    def _setup_digest(self) -> str:
        digest = hashlib.sha256(_SETUP_EDITION + _setup_policy().encode())
        digest.update(str(self._token_ttl).encode())
        for name in LoginName:
            digest.update((policies_dir() / f"{name}.hcl").read_bytes())
        return digest.hexdigest()

    def _is_set_up(self, digest: str) -> bool:
        mark = self.files.setup_mark
        return (
            mark.is_file()
            and mark.read_text(encoding="utf-8").strip() == digest
            and all(self.login_files(name).exist() for name in LoginName)
        )

    def _administrator(self, root_token: str) -> Administrator:
        """Under the root token at the first start; later under the login that was made then."""
        if root_token:
            return Administrator(self.address, token=root_token)
        files = login_files(self.files.setup_login)
        if not files.exist():
            raise OpenBaoFailed("the first start was cut off during set-up: remove the state directory and start again")
        return Administrator.logged_in(self.address, files.login())

    def _set_up(self, admin: Administrator, *, is_first: bool) -> None:
        role_ids = configure(admin.client, policies_dir=policies_dir(), token_ttl=self._token_ttl)
        make_private_dir(self.files.logins)
        for name, role_id in role_ids.items():
            if is_first or not self.login_files(name).exist():
                secret_id = issue_secret_id(admin.client, name.role)
                write_login_files(self.files.logins / name, role_id=role_id, secret_id=secret_id)
        admin.put_policy(_SETUP_ROLE, _setup_policy())
        if is_first:
            role_id, secret_id = admin.make_login(_SETUP_ROLE, token_ttl=timedelta(minutes=5))
            write_login_files(self.files.setup_login, role_id=role_id, secret_id=secret_id)
        if not (is_first and self._keep_root_token):
            admin.revoke_token()


def _setup_policy() -> str:
    return (policies_dir() / "setup.hcl").read_text(encoding="utf-8")
