"""How Vault is spoken to: one verified TLS connection pool that believes nothing the environment says."""

from __future__ import annotations

import json
from typing import Any

import hvac
import requests
import requests.adapters
from requests.structures import CaseInsensitiveDict

from vault.keyring.login import VaultAddress


def http_session(address: VaultAddress, *, connections: int) -> requests.Session:
    """A connection pool for any number of threads; those above `connections` wait for a free one.

    One shared pool: as fast as a session for each thread, and the number of connections stays bounded.
    """
    http = _Direct()
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


_COMPACT = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class _Direct(requests.Session):
    """Hands JSON posts, which are all that is hot, straight to the connection pool.

    A session merges cookies, hooks, proxies and authentication into every request: of each call half the time, and
    nothing that Vault is sent. Verification, timeouts, and which exception is raised are the pool's adapter's as ever.
    """

    def request(self, method: str | bytes, url: str | bytes, **more: Any) -> requests.Response:  # type: ignore[override]
        """As the session's own; no redirect is followed."""
        body, headers = more.get("json"), more.get("headers")
        if not isinstance(url, str) or method not in {"post", "POST"} or body is None or more.get("params"):
            return super().request(method, url, **more)
        request = requests.PreparedRequest()
        request.method, request.url = "POST", url
        request.body = _COMPACT(body).encode("ascii")
        request.headers = CaseInsensitiveDict(headers or {})
        request.headers["Content-Type"] = "application/json"
        request.headers["Content-Length"] = str(len(request.body))
        # A path and never "do not verify": as text even None and False are files that do not exist.
        answer = self.get_adapter(url).send(request, timeout=more.get("timeout"), verify=str(self.verify))
        _ = answer.content  # read to its end, so that the connection is free again
        return answer
