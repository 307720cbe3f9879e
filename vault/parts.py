"""Opens what servers and operator commands have in common: the database and logins to Vault, as the settings say."""

from __future__ import annotations

from datetime import timedelta

from vault.config import CommonSettings, LoginSection
from vault.keyring.login import AppRoleLogin, TokenFileLogin, VaultAddress
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
    if login.token_file is not None:
        way: AppRoleLogin | TokenFileLogin = TokenFileLogin(path=login.token_file)
    else:
        assert login.role_id_file is not None, "the settings were checked"
        assert login.secret_id_file is not None, "the settings were checked"
        way = AppRoleLogin(
            role_id_file=login.role_id_file, secret_id_file=login.secret_id_file, mount=login.approle_mount
        )
    return VaultSession(address=vault_address(settings), login=way, connections=connections, telemetry=telemetry)


def vault_address(settings: CommonSettings) -> VaultAddress:
    """Where Vault is."""
    vault = settings.vault
    return VaultAddress(
        address=vault.address,
        ca_file=vault.ca_file,
        mount=vault.mount,
        timeout=timedelta(seconds=vault.timeout_seconds),
    )
