"""Where posts to Vault go, whatever form its address has."""

from __future__ import annotations

from pathlib import Path

import pytest

from vault.keyring.login import VaultAddress
from vault.keyring.posts import Posts


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("https://vault.example:8200", "vault.example", 8200),
        ("https://vault.example", "vault.example", 443),
        ("https://[2001:db8::5]", "2001:db8::5", 443),
        ("https://[::1]:8200", "::1", 8200),
    ],
)
def test_posts_go_to_the_host_and_port_of_the_address(address: str, host: str, port: int) -> None:
    posts = Posts(VaultAddress(address=address, ca_file=Path("ca.pem")), connections=1)

    assert (posts.host, posts.port) == (host, port)
