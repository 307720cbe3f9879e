"""A real vault for the length of a test run: OpenBao in memory, SQLite, a CA and `cardvault serve`, on loopback."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Self

from vault.client import Account, AsyncAccount, AsyncCheckout, AsyncProcessor, Checkout, Processor, TlsFiles
from vault.domain.caller import Role
from vault.embedded.pki import CertificateFiles, DevelopmentCa
from vault.embedded.stack import PROCESSOR, TENANT, Stack, prepare, uri_of

_START_TIMEOUT = timedelta(seconds=30)
_STOP_TIMEOUT = 30.0
_OPENS_ITSELF_FOR = 7.0
"""Seconds after its start in which OpenBao opens a seal by itself once more."""
_LOOK = 0.3


class Shop:
    """One tenant: what a shop and its payment processor hold. Its clients are closed with the vault."""

    processor_name = PROCESSOR
    """To be named in `issue_grant`."""

    def __init__(self, address: str, tenant: str, tls: Mapping[Role, TlsFiles], closing_with: ExitStack) -> None:
        self.address = address
        """For your own clients."""
        self.tenant = tenant
        self._tls = tls
        self._closing = closing_with

    def tls(self, role: str) -> TlsFiles:
        """Certificate files of `checkout`, `account` or `processor`."""
        return self._tls[Role[role.upper()]]

    @cached_property
    def checkout(self) -> Checkout:
        """A blocking client."""
        return self._closing.enter_context(Checkout(self.address, self.tls("checkout")))

    @cached_property
    def account(self) -> Account:
        """A blocking client."""
        return self._closing.enter_context(Account(self.address, self.tls("account")))

    @cached_property
    def processor(self) -> Processor:
        """A blocking client."""
        return self._closing.enter_context(Processor(self.address, self.tls("processor")))

    def async_checkout(self) -> AsyncCheckout:
        """A client to be awaited and closed: `async with shop.async_checkout() as checkout`."""
        return AsyncCheckout(self.address, self.tls("checkout"))

    def async_account(self) -> AsyncAccount:
        """The same for the account page."""
        return AsyncAccount(self.address, self.tls("account"))

    def async_processor(self) -> AsyncProcessor:
        """The same for the processor."""
        return AsyncProcessor(self.address, self.tls("processor"))


class CardVault:
    """A running vault; `start` makes one."""

    def __init__(self, stack: Stack, tenants: Iterator[str]) -> None:
        self._stack = stack
        self._tenants = tenants
        self._lock = threading.Lock()
        self._clients = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._ca = DevelopmentCa.load_or_create(stack.directory / "pki")
        self._started = time.monotonic()
        self.address = f"localhost:{(stack.directory / 'port').read_text(encoding='ascii').strip()}"

    @classmethod
    @contextmanager
    def start(cls, directory: Path | None = None, *, tenants: int = 500) -> Iterator[Self]:
        """A vault that is ready, until the end of the block.

        Its files lie in `directory`, or in a temporary one that is removed. `tenants`: how many shops it can have.
        """
        with ExitStack() as stack:
            if directory is None:
                made = tempfile.TemporaryDirectory(prefix="cardvault-testing-", ignore_cleanup_errors=True)
                directory = Path(stack.enter_context(made))
            names = [f"shop-{number}" for number in range(1, tenants)]
            prepared = prepare(directory, storage="inmem", keep_root_token=True, more_tenants=names)
            stack.callback(prepared.close)
            vault = cls(prepared, iter([TENANT, *names]))
            stack.callback(vault.stop_server)
            stack.callback(vault._clients.close)
            vault.start_server()
            yield vault

    @property
    def directory(self) -> Path:
        """Everything it writes: database, logs, OpenBao's audit log."""
        return self._stack.directory

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.directory / "server.log"

    def shop(self) -> Shop:
        """A shop that nobody used yet. Raises `LookupError` when there are no more."""
        with self._lock:
            tenant = next(self._tenants, None)
            if tenant is None:
                raise LookupError("no unused tenant is left: start the vault with more")
            files = {role: self._files(tenant, role) for role in Role}
        tls = {
            role: TlsFiles(ca=each.ca_file, certificate=each.cert_file, private_key=each.key_file)
            for role, each in files.items()
        }
        return Shop(self.address, tenant, tls, self._clients)

    def start_server(self) -> None:
        """Start it, at the address it had, and wait until it can do its work."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and file
                [sys.executable, "-m", "vault", "serve", "--config", str(self._stack.config)],
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        files = self._stack.clients[Role.CHECKOUT]
        tls = TlsFiles(ca=files.ca_file, certificate=files.cert_file, private_key=files.key_file)
        with Checkout(self.address, tls) as anybody:
            anybody.wait_ready(_START_TIMEOUT)

    def stop_server(self) -> None:
        """SIGTERM; calls in flight end in peace."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_STOP_TIMEOUT)
            self._process = None

    def kill_server(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_TIMEOUT)
            self._process = None

    @contextmanager
    def server_away(self) -> Iterator[None]:
        """Nobody answers in the block; afterwards the server is back with everything it had."""
        self.stop_server()
        try:
            yield
        finally:
            self.start_server()

    @contextmanager
    def keys_away(self) -> Iterator[None]:
        """OpenBao is sealed in the block: what needs a key is `Unavailable`, the account page works.

        In the first seven seconds of the vault it takes that long to begin.
        """
        self._seal()
        try:
            yield
        finally:
            self._stack.openbao.unseal()

    def _seal(self) -> None:
        with closing(self._stack.openbao.root()) as root:
            while True:
                root.seal()
                since = time.monotonic()
                while (health := root.health()) is None or health.sealed:
                    now = time.monotonic()
                    if now - self._started > _OPENS_ITSELF_FOR and now - since > _LOOK:
                        return
                    time.sleep(0.02)

    def _files(self, tenant: str, role: Role) -> CertificateFiles:
        if tenant == TENANT or role is Role.PROCESSOR:
            return self._stack.clients[role]
        return self._ca.issue_client(uri_of(tenant, role), name=f"{tenant}-{role.label}")
