"""Signed statements as a cluster makes them for its pods, by an issuer made up here."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

ISSUER = "https://cluster.test.localhost"


class Issuer:
    """Signs with a key of its own (ES256)."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    @property
    def public_key(self) -> str:
        """PEM."""
        return (
            self._key.public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode()
        )

    def statement(self, subject: str, *, audience: Sequence[str], seconds: float = 600, **more: Any) -> str:
        """A JWT about a subject that is good for so long from now."""
        now = time.time()
        claims = {
            "iss": ISSUER,
            "sub": subject,
            "aud": list(audience),
            "iat": int(now - 5),
            "nbf": int(now - 5),
            "exp": int(now + seconds),
            **more,
        }
        head = f"{_part({'alg': 'ES256', 'typ': 'JWT'})}.{_part(claims)}"
        r, s = decode_dss_signature(self._key.sign(head.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{head}.{_text(r.to_bytes(32) + s.to_bytes(32))}"


def _part(value: Mapping[str, Any]) -> str:
    return _text(json.dumps(value).encode())


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
