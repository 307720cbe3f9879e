"""For the tests of those who call cardvault: a real vault of one's own, cards that nobody has, and a search for leaks.

`pip install cardvault[testing]`. There is no imitation of the vault, as there is none of its key provider: a test gets
the real server over real mutual TLS, with OpenBao (in memory) and SQLite, in processes of their own. It is up in some
seconds, once for a whole run; each test is a shop of its own, which sees nothing of the others.

    def test_a_customer_who_opts_in_pays_with_one_click(cardvault):
        card = fresh_card()
        stored = cardvault.checkout.tokenize(card, customer="ada", consent=consent).card
        ...

`cardvault` is a fixture, which pytest finds by itself, of a `Shop`: its `address`, `tls` files for your own code, and
a client for each role. `cardvault_server` is the `CardVault` behind it, whose `server_away()` and `keys_away()` show
how your code bears an outage. Without pytest:

    with CardVault.start() as vault:
        shop = vault.shop()

**The leak scan** searches what a run leaves behind for the numbers, names and security codes that it used: captured
output and logs, tracebacks of failed tests, the temporary directory (with the vault's own files), `--log-file`, and
`cardvault_leak_paths`; in plain, spaced, hexadecimal, base64, UTF-16 and many other forms. A run that leaks fails. It
proves itself by finding numbers planted for it. It is off unless asked for:

    pytest --cardvault-leaks

    [tool.pytest.ini_options]
    cardvault_leaks = true
    cardvault_leak_paths = ["var/log"]

It knows what `fresh_card` and its like handed out, and what you `watch`. It cannot see what pytest does not capture
(`-s`), and does not work under pytest-xdist.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vault.testing.cards import fresh_card, fresh_holder_name, fresh_number, fresh_security_code, watch
    from vault.testing.server import CardVault, Shop

__all__ = [
    "CardVault",
    "Shop",
    "fresh_card",
    "fresh_holder_name",
    "fresh_number",
    "fresh_security_code",
    "watch",
]


def __getattr__(name: str) -> object:
    """Load a part when it is first asked for: pytest imports this package in every run that has it installed."""
    if name not in __all__:
        raise AttributeError(name)
    module = "vault.testing.server" if name in ("CardVault", "Shop") else "vault.testing.cards"
    return getattr(import_module(module), name)
