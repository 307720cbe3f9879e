"""A whole installation in one directory: OpenBao, SQLite, a development CA with one client for each role, a config."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vault.domain.caller import Role
from vault.embedded.files import StorageKind
from vault.embedded.openbao import OpenBao
from vault.embedded.pki import CertificateFiles, DevelopmentCa
from vault.keyring.files import make_private_dir, write_private
from vault.keyring.setup import LoginName
from vault.store import schema

CONFIG = "cardvault.toml"
"""Name of the configuration file that `prepare` writes."""
TENANT = "shop"
PROCESSOR = "acquirer"
TRUST_DOMAIN = "cardvault.localhost"

_CONFIG = """# Written anew at every start.
environment = "development"
profile = "development"
{log_level}
[server]
listen = "127.0.0.1:{port}"
certificate = "{server.cert_file}"
private_key = "{server.key_file}"
client_ca = "{server.ca_file}"

[database]
url = "sqlite:///{database}"

[vault]
address = "{vault_address}"
ca_file = "{server.ca_file}"

[vault.intake]
role_id_file = "{intake.role_id_file}"
secret_id_file = "{intake.secret_id_file}"

[vault.release]
role_id_file = "{release.role_id_file}"
secret_id_file = "{release.secret_id_file}"

[audit]
directory = "{audit}"

# A production server has no use for these two; operators have a file of their own.
[vault.operator]
role_id_file = "{operator.role_id_file}"
secret_id_file = "{operator.secret_id_file}"

[vault.checkpointer]
role_id_file = "{checkpointer.role_id_file}"
secret_id_file = "{checkpointer.secret_id_file}"

[[identities]]
uri = "spiffe://{trust_domain}/checkout"
role = "checkout"
tenant = "{tenant}"

[[identities]]
uri = "spiffe://{trust_domain}/account"
role = "account"
tenant = "{tenant}"

[[identities]]
uri = "spiffe://{trust_domain}/processor"
role = "processor"
processor = "{processor}"
tenants = {tenants}
"""

_MORE = """
[[identities]]
uri = "{checkout}"
role = "checkout"
tenant = "{tenant}"

[[identities]]
uri = "{account}"
role = "account"
tenant = "{tenant}"
"""


@dataclass(frozen=True, slots=True)
class Stack:
    """A prepared installation; its OpenBao runs, its server does not yet."""

    directory: Path
    openbao: OpenBao
    config: Path
    database: Path
    clients: Mapping[Role, CertificateFiles]

    def close(self) -> None:
        """Stop OpenBao."""
        self.openbao.stop()


def uri_of(tenant: str, role: Role) -> str:
    """The client of one of `more_tenants`, for whom the caller issues the certificate."""
    return f"spiffe://{TRUST_DOMAIN}/{tenant}/{role.label}"


def prepare(
    directory: Path,
    *,
    port: int | None = None,
    log_level: str | None = None,
    storage: StorageKind = "raft",
    keep_root_token: bool = False,
    more_tenants: Sequence[str] = (),
) -> Stack:
    """Start OpenBao and make everything that is not there yet; what is there is kept.

    `port` None: the one of last time, else any free one; 0: the server picks one when it starts. `storage` and
    `keep_root_token` as in `OpenBao`. The processor serves `more_tenants` as well.
    """
    directory = make_private_dir(directory.resolve())
    ca = DevelopmentCa.load_or_create(directory / "pki")
    server = ca.issue_server("server")
    clients = {role: ca.issue_client(f"spiffe://{TRUST_DOMAIN}/{role.label}") for role in Role}
    openbao = OpenBao(directory / "openbao", ca=ca, storage=storage, keep_root_token=keep_root_token)
    openbao.start()
    try:
        database = directory / "cardvault.sqlite"
        schema.upgrade(f"sqlite:///{database}")
        config = directory / CONFIG
        text = _CONFIG.format(
            port=_kept_port(directory / "port") if port is None else port,
            server=server,
            database=database,
            audit=directory / "audit",
            vault_address=openbao.address.address,
            intake=openbao.login_files(LoginName.INTAKE),
            release=openbao.login_files(LoginName.RELEASE),
            operator=openbao.login_files(LoginName.OPERATOR),
            checkpointer=openbao.login_files(LoginName.CHECKPOINTER),
            trust_domain=TRUST_DOMAIN,
            tenant=TENANT,
            processor=PROCESSOR,
            tenants=json.dumps([TENANT, *more_tenants]),
            log_level=f'log_level = "{log_level}"\n' if log_level else "",
        )
        for tenant in more_tenants:
            text += _MORE.format(
                tenant=tenant, checkout=uri_of(tenant, Role.CHECKOUT), account=uri_of(tenant, Role.ACCOUNT)
            )
        write_private(config, text)
    except BaseException:
        openbao.stop()
        raise
    return Stack(directory, openbao, config, database, clients)


def _kept_port(file: Path) -> int:
    """The port of last time if it is free, else a free one, kept for next time."""
    wanted = int(file.read_text(encoding="ascii")) if file.is_file() else 0
    for candidate in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            port = int(probe.getsockname()[1])
            write_private(file, f"{port}\n")
            return port
    raise OSError("no free port on loopback")
