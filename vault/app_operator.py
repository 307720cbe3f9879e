"""Puts the parts of operator commands together; they work beside running servers, under logins of their own."""

from __future__ import annotations

from contextlib import ExitStack, closing
from functools import cached_property
from pathlib import Path

from vault.config import LoginSection, OperatorSettings
from vault.domain.errors import PreconditionFailed
from vault.keyring.admin import Administrator, Health
from vault.keyring.keyflags import inspect_login
from vault.keyring.operator import CheckpointerTransit, OperatorTransit
from vault.keyring.session import VaultSession
from vault.keyring.transit import IntakeTransit, ReleaseTransit
from vault.parts import open_store, open_vault, vault_address
from vault.ports_audit import LogStore
from vault.system import SystemClock, SystemEntropy
from vault.usecases.operating import OperatorWorld


class MissingLogin(PreconditionFailed):
    """The command needs a login that the file does not name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no_{name}_login", message=f"this command needs [vault.{name}] in the configuration")


class OperatorTools:
    """Opens what a command asks for, when it asks; a login that is not configured is None."""

    def __init__(self, settings: OperatorSettings) -> None:
        """Touches neither network nor database. Raises `DatabaseRefused`."""
        self._settings = settings
        self.retention = settings.retention.limits()
        self._open = ExitStack()
        store = self._open.enter_context(closing(open_store(settings)))
        self.log_store: LogStore = store
        self._store = store
        self.world = OperatorWorld(
            environment=settings.environment, store=store, clock=SystemClock(), entropy=SystemEntropy()
        )

    def close(self) -> None:
        """Give everything back."""
        self._open.close()

    def audit_directory(self) -> Path | None:
        """Where the log's copy is kept."""
        return self._settings.audit.directory

    def releasers(self) -> tuple[str, ...]:
        """Identities that may redeem grants, if this file names any."""
        named = self._settings.identities
        found = [item for item in named if isinstance(item, dict)] if isinstance(named, list) else []
        return tuple(str(item.get("uri")) for item in found if item.get("role") == "processor")

    def database_problems(self) -> list[str]:
        """Every setting that makes the database unsafe. Raises `StoreUnavailable`."""
        return self._store.weaknesses()

    def operator_keys(self) -> OperatorTransit:
        """Rotation and the like. Raises `MissingLogin`."""
        if self._operator is None:
            raise MissingLogin("operator")
        return self._operator

    def intake(self) -> IntakeTransit | None:
        """Wrapping."""
        return self._intake

    def release(self) -> ReleaseTransit | None:
        """Unwrapping."""
        return self._release

    def signer(self) -> CheckpointerTransit | None:
        """Signing."""
        return self._signer

    def vault_health(self) -> Health | None:
        """Vault's own word on its state; None if it does not answer."""
        with closing(Administrator(vault_address(self._settings))) as admin:
            return admin.health()

    def logins(self) -> tuple[str, ...]:
        """The logins that the file names."""
        vault = self._settings.vault
        return tuple(
            name for name in ("intake", "release", "operator", "checkpointer") if getattr(vault, name) is not None
        )

    def inspect_login(self, name: str) -> tuple[list[str], float | None]:
        """Log in: what is wrong with it, and how many seconds the token lives, None: without end.

        Raises `KeyRingUnavailable`.
        """
        with closing(open_vault(self._settings, getattr(self._settings.vault, name), connections=1)) as session:
            return inspect_login(session), session.token_ends_in

    @cached_property
    def _operator(self) -> OperatorTransit | None:
        session = self._session(self._settings.vault.operator)
        return OperatorTransit(session) if session is not None else None

    @cached_property
    def _intake(self) -> IntakeTransit | None:
        session = self._session(self._settings.vault.intake)
        return IntakeTransit(session) if session is not None else None

    @cached_property
    def _release(self) -> ReleaseTransit | None:
        threads = self._settings.vault.unwrap_threads
        session = self._session(self._settings.vault.release, connections=threads + 2)
        return self._open.enter_context(closing(ReleaseTransit(session, threads=threads))) if session else None

    @cached_property
    def _signer(self) -> CheckpointerTransit | None:
        session = self._session(self._settings.vault.checkpointer)
        return CheckpointerTransit(session) if session is not None else None

    def _session(self, login: LoginSection | None, *, connections: int = 8) -> VaultSession | None:
        if login is None:
            return None
        return self._open.enter_context(closing(open_vault(self._settings, login, connections=connections)))
