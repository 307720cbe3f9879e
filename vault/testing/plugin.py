"""What pytest loads: two fixtures for whoever asks for them, and the leak scan, which is off unless asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vault.testing.server import CardVault, Shop

_OPTION = "cardvault_leaks"
_PATHS = "cardvault_leak_paths"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The flag, and the two settings of a configuration file."""
    group = parser.getgroup("cardvault")
    group.addoption(
        "--cardvault-leaks",
        action="store_true",
        dest=_OPTION,
        help="fail if a card number, name or security code of the run is in anything it leaves behind",
    )
    parser.addini(_OPTION, "as --cardvault-leaks", type="bool", default=False)
    parser.addini(_PATHS, "more files and directories to be searched", type="paths", default=[])


def pytest_configure(config: pytest.Config) -> None:
    """Begin the leak scan where it is asked for."""
    if not (config.getoption(_OPTION) or config.getini(_OPTION)) or config.getoption("collectonly"):
        return
    if hasattr(config, "workerinput") or config.getoption("numprocesses", default=None):
        raise pytest.UsageError("the leak scan sees one process: run it without pytest-xdist")
    from vault.testing.session import LeakScan

    config.pluginmanager.register(LeakScan(config), "cardvault-leak-scan")


@pytest.fixture(scope="session")
def cardvault_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CardVault]:
    """A running vault, one for the whole run."""
    from vault.testing.server import CardVault

    with CardVault.start(tmp_path_factory.mktemp("cardvault")) as vault:
        yield vault


@pytest.fixture
def cardvault(cardvault_server: CardVault) -> Shop:
    """A shop of this test's own on a running vault."""
    return cardvault_server.shop()
