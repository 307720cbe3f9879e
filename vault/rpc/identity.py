"""Who is calling: the one SPIFFE URI of the client certificate, mapped by the configuration.

Never a common name, a DNS name or metadata.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from vault.domain.caller import Caller, Identity
from vault.domain.errors import Refused
from vault.domain.ids import RequestId

AuthContext = Mapping[str, Sequence[bytes]]
MAX_URI_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class Identities:
    """The configured identities by URI."""

    by_uri: Mapping[str, Identity]

    def caller(self, auth: AuthContext, *, peer: str, request_id: RequestId) -> Caller:
        """The caller as its certificate proves it; `identity` is None where it is mapped to nobody."""
        uri = _first(auth, "peer_spiffe_id")
        return Caller(
            identity=self.by_uri.get(uri),
            presented_uri=uri[:MAX_URI_CHARACTERS],
            certificate_sha256=_thumbprint(_first_bytes(auth, "x509_pem_cert")),
            peer=peer,
            request_id=request_id,
        )


def check_transport(auth: AuthContext) -> None:
    """Refuse calls over anything below TLS 1.3; the handshake itself still permits 1.2. Raises `Refused`."""
    if _first(auth, "ssl_tls_version") != "TLSv1.3":
        raise Refused("tls_version")


def _first_bytes(auth: AuthContext, name: str) -> bytes:
    values = auth.get(name, ())
    # gRPC leaves the SPIFFE id out where a certificate has none or several URIs.
    return values[0] if len(values) == 1 else b""


def _first(auth: AuthContext, name: str) -> str:
    return _first_bytes(auth, name).decode("ascii", "replace")


@lru_cache(maxsize=1024)
def _thumbprint(pem: bytes) -> str:
    """Hex SHA-256 over the certificate's DER (RFC 8705 3.1 computes the same)."""
    lines = [line for line in pem.splitlines() if line and not line.startswith(b"-----")]
    return hashlib.sha256(base64.b64decode(b"".join(lines))).hexdigest() if lines else ""
