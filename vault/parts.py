"""Opens what servers and operator commands have in common: the database and logins to Vault, as the settings say."""

from __future__ import annotations

from datetime import timedelta

from vault.config import CommonSettings, LoginSection
from vault.keyring.login import AppRoleLogin, JwtLogin, Login, TokenFileLogin, VaultAddress
from vault.keyring.session import VaultSession
from vault.ports_telemetry import UNWATCHED, Telemetry
from vault.store.engine import Limits
from vault.store.sql_store import SqlStore


def open_store(settings: CommonSettings, *, telemetry: Telemetry = UNWATCHED) -> SqlStore:
    """The database that the settings name. Raises `DatabaseRefused`."""
    return SqlStore(settings.database_url(), limits=Limits(pool_size=settings.database.pool_size), telemetry=telemetry)


def open_vault(
    settings: CommonSettings, login: LoginSection, *, connections: int, telemetry: Telemetry = UNWATCHED
) -> VaultSession:
    """One login to Vault."""
    return VaultSession(
        address=vault_address(settings), login=_way(login), connections=connections, telemetry=telemetry
    )


def vault_address(settings: CommonSettings) -> VaultAddress:
    """Where Vault is."""
    vault = settings.vault
    return VaultAddress(
        address=vault.address,
        ca_file=vault.ca_file,
        mount=vault.mount,
        timeout=timedelta(seconds=vault.timeout_seconds),
    )


def _way(login: LoginSection) -> Login:
    if login.token_file is not None:
        return TokenFileLogin(path=login.token_file)
    if login.jwt_file is not None:
        assert login.jwt_role is not None, "the settings were checked"
        return JwtLogin(jwt_file=login.jwt_file, role=login.jwt_role, mount=login.jwt_mount)
    assert login.role_id_file is not None, "the settings were checked"
    assert login.secret_id_file is not None, "the settings were checked"
    return AppRoleLogin(role_id_file=login.role_id_file, secret_id_file=login.secret_id_file, mount=login.approle_mount)
