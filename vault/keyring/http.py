"""How Vault is spoken to: over verified TLS connections that believe nothing the environment says.

Logins, renewals and keys' settings go through hvac. What is done for cards, which is posting JSON, goes straight to a
pool of urllib3, on which hvac stands too: hvac and requests cost as much processor time again as a whole post, merging
cookies, hooks, proxies and certificates that Vault is never sent, and a server asks once for every card it releases.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import hvac
import hvac.exceptions
import orjson
import requests
import requests.adapters
import urllib3
import urllib3.connection

from vault.keyring.login import VaultAddress

_OK = 200
_FIRST_ERROR = 400
_HTTPS = 443


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


class Posts:
    """Posts JSON to Vault, from any number of threads; those above `connections` wait for a free one."""

    def __init__(self, address: VaultAddress, *, connections: int) -> None:
        """Touches no network."""
        parts = urlsplit(address.address)
        self._prefix = parts.path.rstrip("/") + "/v1/"
        self._pool = _Pool(
            parts.hostname or "",
            parts.port or _HTTPS,
            timeout=urllib3.Timeout(
                connect=address.connect_timeout.total_seconds(), read=address.timeout.total_seconds()
            ),
            maxsize=connections,
            block=True,
            retries=False,
            cert_reqs="CERT_REQUIRED",
            ca_certs=str(address.ca_file),
        )

    def post(self, path: str, body: dict[str, Any], *, token: str) -> object:
        """What Vault answered with 200, parsed. Raises hvac's exceptions for errors, and urllib3's."""
        answer = self._pool.urlopen(
            "POST",
            self._prefix + path,
            body=_written(body),
            headers={"Content-Type": "application/json", "X-Vault-Request": "true", "X-Vault-Token": token},
            redirect=False,  # it would carry the token to wherever it points
        )
        if answer.status >= _FIRST_ERROR:
            raise hvac.exceptions.VaultError.from_status(answer.status, errors=_errors_in(answer.data))
        return orjson.loads(answer.data) if answer.status == _OK else ""

    def close(self) -> None:
        """Close every connection that is not in use."""
        self._pool.close()


class _OneWrite(urllib3.connection.HTTPSConnection):
    """Sends head and body together: two writes are two records of TLS, and twice a thread lets others go first."""

    _held: list[bytes] | None = None

    def request(self, *arguments: Any, **more: Any) -> None:
        """As ever."""
        held: list[bytes] = []
        self._held = held
        try:
            super().request(*arguments, **more)
        finally:
            self._held = None
        super().send(b"".join(held))

    def send(self, data: Any) -> None:
        """Now, or with the rest of the request."""
        if self._held is None:
            super().send(data)
        else:
            self._held.append(data)


class _Pool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _OneWrite


def _written(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:
        # A wrap whose bytes are no UTF-8: somebody wrote it past us. Vault refuses it, and none of those beside it.
        return json.dumps(body, separators=(",", ":")).encode("ascii")


def _errors_in(raw: bytes) -> list[str]:
    """Vault's words for what is wrong, if it is Vault that answers."""
    try:
        found = json.loads(raw)
    except ValueError:
        return []
    errors = found.get("errors") if isinstance(found, dict) else None
    return [str(each) for each in errors] if isinstance(errors, list) else []
