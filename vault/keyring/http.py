"""How hvac speaks to Vault: over verified TLS connections that believe nothing the environment says.

Logins, renewals and what is read of keys go through it. What is done for cards goes through `vault.keyring.posts`.
"""

from __future__ import annotations

import hvac
import requests
import requests.adapters

from vault.keyring.login import VaultAddress


def http_session(address: VaultAddress, *, connections: int) -> requests.Session:
    """A connection pool for any number of threads; those above `connections` wait for a free one.

    One shared pool: as fast as a session for each thread, and the number of connections stays bounded.
    """
    http = requests.Session()
    http.trust_env = False  # no proxy, no netrc, no CA bundle out of the environment
    # hvac leaves its own `verify` aside when it is given a session.
    http.verify = str(address.ca_file)
    http.mount("https://", requests.adapters.HTTPAdapter(1, connections, max_retries=0, pool_block=True))
    http.adapters.pop("http://", None)
    return http


def vault_client(address: VaultAddress, http: requests.Session, *, token: str) -> hvac.Client:
    """Hvac over that pool. An empty token means none."""
    return hvac.Client(
        url=address.address,
        token=token,
        cert=(),  # anything but None keeps hvac from taking a certificate out of the environment
        verify=http.verify,
        timeout=(address.connect_timeout.total_seconds(), address.timeout.total_seconds()),
        allow_redirects=False,  # a redirect would carry the token to wherever it points
        session=http,
    )
