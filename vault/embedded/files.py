"""Where the embedded OpenBao keeps its things, its configuration, and where the policies are."""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import vault
from vault.embedded.pki import CertificateFiles
from vault.keyring.files import write_private

StorageKind = Literal["raft", "inmem"]

_GARBAGE_COLLECTOR = {"GOGC": "400", "GOMEMLIMIT": "512MiB"}
"""A batch of 200 keys is many small pieces of garbage: Go's default spends a fifth of OpenBao's time on collecting it.

With this it takes some 30 MB more; near the limit it collects as often as it must.
"""


@dataclass(frozen=True, slots=True)
class StateFiles:
    """The files of one embedded OpenBao. Whoever reads `seal.key` and `raft` together holds its keys."""

    directory: Path

    @property
    def lock(self) -> Path:
        """Held as long as a server runs on this directory."""
        return self.directory / "lock"

    @property
    def seal_key(self) -> Path:
        """32 random bytes that unseal it."""
        return self.directory / "seal.key"

    @property
    def recovery_key(self) -> Path:
        """Unseals it after somebody sealed it by hand."""
        return self.directory / "recovery.key"

    @property
    def root_token(self) -> Path:
        """Only where a test asked to keep it."""
        return self.directory / "root.token"

    @property
    def setup_login(self) -> Path:
        """Credentials with which a later start runs the set-up again."""
        return self.directory / "setup"

    @property
    def setup_mark(self) -> Path:
        """Digest of the set-up that was run last."""
        return self.directory / "setup.sha256"

    @property
    def logins(self) -> Path:
        """A directory per login, with role_id and secret_id."""
        return self.directory / "logins"

    @property
    def pki(self) -> Path:
        """The CA of the listener, unless another is given."""
        return self.directory / "pki"

    @property
    def raft(self) -> Path:
        """Storage."""
        return self.directory / "raft"

    @property
    def config(self) -> Path:
        """Configuration, written at each start."""
        return self.directory / "openbao.hcl"

    @property
    def audit_log(self) -> Path:
        """Every request and answer, secrets hashed."""
        return self.directory / "audit.log"

    @property
    def server_log(self) -> Path:
        """What the server prints."""
        return self.directory / "server.log"

    @property
    def ports(self) -> Path:
        """Ports of the last start."""
        return self.directory / "ports.json"


def policies_dir() -> Path:
    """The policy files: inside the package where it is installed from a wheel, in `deploy/vault` in a checkout."""
    package = Path(vault.__file__).parent
    for directory in (package / "embedded" / "policies", package.parent / "deploy" / "vault"):
        if (directory / "intake.hcl").is_file():
            return directory
    raise FileNotFoundError("the Vault policies are missing from this installation")


def seal_key(files: StateFiles) -> Path:
    """The seal's key file, made if this is the first start."""
    if not files.seal_key.is_file():
        write_private(files.seal_key, secrets.token_bytes(32))
    return files.seal_key


def pick_ports(files: StateFiles) -> tuple[int, int]:
    """API and cluster port: those of the last start if they are free, so that clients find the server again."""
    try:
        api, cluster = map(int, json.loads(files.ports.read_text()))
    except (OSError, ValueError, TypeError):
        api, cluster = 0, 0
    with socket.socket() as one, socket.socket() as other:
        chosen = _bind(one, api), _bind(other, cluster)
    write_private(files.ports, json.dumps(chosen))
    return chosen


def _bind(probe: socket.socket, port: int) -> int:
    # As the server itself will: connections of the last run that still linger do not make the port taken.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        probe.bind(("127.0.0.1", 0))
    found: int = probe.getsockname()[1]
    return found


def write_config(
    files: StateFiles, *, storage: StorageKind, ports: tuple[int, int], tls: CertificateFiles, log_raw: bool
) -> Path:
    """OpenBao's configuration: loopback only, TLS 1.3 only, one audit device, an automatic seal."""
    api, cluster = ports
    if storage == "raft":
        files.raft.mkdir(mode=0o700, exist_ok=True)
        # A lone node need not wait long for others to vote: 1 instead of 5 makes the first start 5 s quicker.
        store = f"""storage "raft" {{
  path                   = {_quoted(files.raft)}
  node_id                = "embedded"
  performance_multiplier = 1
}}"""
    else:
        store = 'storage "inmem" {}'
    text = f"""# Written at each start; edits are lost.
{store}

seal "static" {{
  current_key_id = "1"
  current_key    = {_quoted(f"file://{files.seal_key.resolve()}")}
}}

listener "tcp" {{
  address                  = "127.0.0.1:{api}"
  cluster_address          = "127.0.0.1:{cluster}"
  tls_cert_file            = {_quoted(tls.cert_file)}
  tls_key_file             = {_quoted(tls.key_file)}
  tls_min_version          = "tls13"
  # Keys and values of a batch of 200 items with two fields, and a little more.
  max_request_json_strings = 1000
}}

# OpenBao records these options in its storage and will not start with others. So the path is relative, to the
# state directory the server runs in, and the directory can be moved.
audit "file" "embedded" {{
  options = {{
    file_path = "{files.audit_log.name}"
    mode      = "0600"
    log_raw   = "{str(log_raw).lower()}"
  }}
}}

api_addr     = "https://127.0.0.1:{api}"
cluster_addr = "https://127.0.0.1:{cluster}"
log_level    = "warn"
"""
    write_private(files.config, text)
    return files.config


def _quoted(text: str | Path) -> str:
    path = str(text if isinstance(text, str) else text.resolve())
    if "${" in path or any(ord(letter) < 32 for letter in path):
        raise ValueError("the state directory's name has letters that OpenBao's configuration cannot hold")
    return json.dumps(path, ensure_ascii=False)


def child_environment() -> dict[str, str]:
    """What the server sees of our environment: nothing that could point it elsewhere (proxies, BAO_*, VAULT_*)."""
    return {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ} | _GARBAGE_COLLECTOR
