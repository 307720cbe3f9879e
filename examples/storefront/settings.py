"""What a process of the storefront is told on its command line. Secrets are files."""

from __future__ import annotations

import argparse
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vault.client import TlsFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Of the shop and, but for `acquirer`, of the processor."""

    descriptor: int
    """A listening socket, inherited."""
    state: Path
    """Where its files are."""
    vault: str
    """cardvault's `host:port`."""
    pki: Path
    """Directory with `ca.pem` and, for each certificate, a `.pem` and a `.key`."""
    checkout: str
    account: str
    processor: str
    """Names of the certificates."""
    acquirer: str
    """`host:port` of the processor's API; only the shop needs it."""

    @classmethod
    def parse(cls, arguments: Sequence[str] | None = None) -> Self:
        """Of a command line."""
        parser = argparse.ArgumentParser(allow_abbrev=False)
        parser.add_argument("--descriptor", type=int, required=True)
        parser.add_argument("--state", type=Path, required=True)
        parser.add_argument("--vault", required=True)
        parser.add_argument("--pki", type=Path, required=True)
        for role in ("checkout", "account", "processor"):
            parser.add_argument(f"--{role}", default=role)
        parser.add_argument("--acquirer", default="")
        return cls(**vars(parser.parse_args(arguments)))

    def tls(self, name: str) -> TlsFiles:
        """Certificate files by their name."""
        return TlsFiles(
            ca=self.pki / "ca.pem", certificate=self.pki / f"{name}.pem", private_key=self.pki / f"{name}.key"
        )


def kept_secret(path: Path) -> str:
    """A random secret in a file of mode 0600, made if it is not there."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text(encoding="ascii").strip()
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(made := secrets.token_urlsafe(32))
    return made
