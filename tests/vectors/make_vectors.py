"""Makes the golden vectors of every stored format: `python -m tests.vectors.make_vectors`.

It writes the formats down a second time, from its description and not through the package, so that a change of
the package's bytes shows as a failing test. The card in it is a number that payment companies print in their manuals.
A vector that was ever released is never changed: old records must open for as long as they are kept.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

HERE = Path(__file__).resolve().parent
DATA_KEY = bytes(range(32))
NONCE = bytes(range(100, 112))
PAN = "4242424242424242"
NAME = "Zoë Example"
STORED = {
    "environment": "test",
    "tenant": "shop-a",
    "customer": "customer-1",
    "token": bytes(range(16)).hex(),
    "consent": bytes(range(16, 32)).hex(),
    "record_version": 7,
}
ONCE = {
    "environment": "test",
    "tenant": "shop-a",
    "once_id": bytes(range(32, 48)).hex(),
    "order": "order-1",
}
ONCE_EXPIRES_AT = 1_790_000_000_123_456  # microseconds since 1970


def crc8(data: bytes) -> int:
    """CRC-8, polynomial 0x07, beginning with 0xA5, bit by bit."""
    crc = 0xA5
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1) ^ 0x07 if crc & 0x80 else crc << 1
            crc &= 0xFF
    return crc


def letters(data: bytes) -> str:
    """Two consonants for each byte, and two for the check byte."""
    return "".join("bcdfghjkmnpqrstv"[b >> 4] + "bcdfghjkmnpqrstv"[b & 15] for b in data + bytes((crc8(data),)))


def prefixed(*fields: str) -> bytes:
    """Each field behind its length in two bytes."""
    return b"".join(len(f.encode()).to_bytes(2, "big") + f.encode() for f in fields)


def padded(*fields: str) -> bytes:
    """The plaintext of a sealed card: format 1, each field behind its length in one byte, zeros up to 192."""
    body = b"\x01" + b"".join(bytes((len(f.encode()),)) + f.encode() for f in fields)
    return body + bytes(192 - len(body))


def sealed(plaintext: bytes, aad: bytes) -> bytes:
    """Suite 1, nonce, ciphertext with tag."""
    return b"\x01" + NONCE + AESGCM(DATA_KEY).encrypt(NONCE, plaintext, aad)


def formats(binding: bytes, record_version: int, plaintext: bytes) -> dict[str, str]:
    """What follows from a binding."""
    aad = b"cardvault.rec.v1" + b"\x01" + binding + record_version.to_bytes(4, "big")
    return {
        "binding": binding.hex(),
        "wrap_context": hashlib.sha256(b"cardvault.wrap.v1" + binding).hexdigest(),
        "aad": aad.hex(),
        "sealed": sealed(plaintext, aad).hex(),
    }


def make() -> dict[str, object]:
    """All vectors by file name."""
    token = "tok_" + letters(bytes.fromhex(str(STORED["token"])))
    consent = "cns_" + letters(bytes.fromhex(str(STORED["consent"])))
    owner = (str(STORED["environment"]), str(STORED["tenant"]), str(STORED["customer"]))
    stored_binding = prefixed("card", *owner, token, consent)
    once_raw = bytes.fromhex(ONCE["once_id"])
    once_fields = (ONCE["environment"], ONCE["tenant"], "oid_" + letters(once_raw), ONCE["order"])
    once_binding = prefixed("once", *once_fields) + ONCE_EXPIRES_AT.to_bytes(8, "big")
    once_formats = formats(once_binding, 1, padded(PAN, "203009", NAME, "123"))
    once_text = letters(b"\x01" + once_raw + bytes.fromhex(once_formats["sealed"]))
    grant_raw = bytes(range(48, 64))
    grant_text = "grant_" + letters(grant_raw)
    card = {"pan": PAN, "holder_name": NAME, "data_key": DATA_KEY.hex(), "nonce": NONCE.hex()}
    fingerprint = b"cardvault.fp.v1" + prefixed("test", "shop-a", "customer-1", PAN)
    return {
        "stored_card.json": {
            "given": STORED | card,
            "token": token,
            "consent_id": consent,
            **formats(stored_binding, 7, padded(PAN, "", NAME, "")),
            "fingerprint_message": hashlib.sha256(fingerprint).hexdigest(),
        },
        "one_time_token.json": {
            "given": ONCE
            | card
            | {"expires_at_microseconds": ONCE_EXPIRES_AT, "expiry": [2030, 9], "security_code": "123"},
            "once_id": "oid_" + letters(once_raw),
            **once_formats,
            "one_time_token": "once_" + once_text,
            "grant": {
                "raw": grant_raw.hex(),
                "for_stored_card": grant_text,
                "for_stored_card_sha256": hashlib.sha256(grant_text.encode()).hexdigest(),
                "for_one_time_token": grant_text + "_" + once_text,
            },
        },
        "letters.json": [
            {"raw": raw.hex(), "letters": letters(raw)}
            for raw in (b"\x00", b"\xff", bytes(16), b"\xff" * 16, bytes(range(16)), bytes(range(240, 256)))
        ],
    }


def main() -> None:
    """Write the files beside this script."""
    for name, content in make().items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
