"""A real vault, the processor and the shop, in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.storefront.stand import Storefront
from tests.examples.shopper import Shopper
from tests.fixtures_db import sqlite_template, sqlite_url
from tests.support.cards import REGISTRY
from vault.testing import CardVault
from vault.testing.scan import Scanner

__all__ = ["sqlite_template", "sqlite_url"]


@dataclass(frozen=True, slots=True)
class Street:
    """What stands for the tests of this folder."""

    vault: CardVault
    storefront: Storefront
    first: int
    """How many numbers this process had made before the street stood, none of which can have come here."""

    def shopper(self, name: str = "") -> Shopper:
        """A visitor, signed in where a name is given."""
        shopper = Shopper(self.storefront.shop.address)
        if name:
            shopper.sign_in(name)
        return shopper


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    """The one street that all tests of this folder shop in."""
    directory = tmp_path_factory.mktemp("storefront")
    first = len(REGISTRY.canaries())
    with (
        CardVault.start(directory / "vault", tenants=1) as vault,
        Storefront(directory / "shop", vault=vault.address, pki=directory / "vault" / "pki") as storefront,
    ):
        yield Street(vault, storefront, first)


@pytest.fixture
def leaks(street: Street) -> Callable[..., list[str]]:
    """Searches texts and everything that shop and processor wrote for all cards made since they stand."""

    def look(*texts: bytes, more: tuple[Path, ...] = ()) -> list[str]:
        scanner = Scanner(REGISTRY.canaries()[street.first :])
        found = [str(finding) for finding in scanner.scan([street.storefront.state, *more])]
        return found + [f"{form}: {canary}" for text in texts for _, form, canary in scanner.scan_bytes(text)]

    return look
