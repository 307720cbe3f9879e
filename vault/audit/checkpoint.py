"""Signed statements of the log's size and root: C2SP tlog-checkpoint, in a C2SP signed-note with Ed25519 keys.

A checkpoint is a few lines of text that anybody can keep: whoever has one and the public key can tell later that
nothing up to it was changed, taken out or cut off.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vault.audit.merkle import HASH_BYTES

_ED25519 = 0x01
_SIGNATURE_LINE = "\N{EM DASH} "
_ID_BYTES = 4
_KEY_BYTES = 32


class BadCheckpoint(Exception):
    """Text that is no checkpoint, or one that no known key signed."""


def origin_of(environment: str) -> str:
    """Names the log of one installation, and so its key too."""
    return f"cardvault/{environment}"


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key by name, as C2SP signed-note writes it: `name+id+key`."""

    name: str
    public_key: bytes
    """32 bytes."""

    @property
    def key_id(self) -> bytes:
        """Four bytes that a signature is found by."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes((_ED25519,)) + self.public_key).digest()[:_ID_BYTES]

    def __str__(self) -> str:
        encoded = base64.b64encode(bytes((_ED25519,)) + self.public_key).decode("ascii")
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Raises `BadCheckpoint`."""
        try:
            name, key_id, encoded = text.strip().split("+", 2)
            raw = base64.b64decode(encoded, validate=True)
            key = cls(name, raw[1:])
            is_good = bool(name) and raw[:1] == bytes((_ED25519,)) and len(raw) == 1 + _KEY_BYTES
            is_good = is_good and key.key_id.hex() == key_id
        except (ValueError, binascii.Error):
            raise BadCheckpoint("is not a verifier key (name+id+key)") from None
        if not is_good:
            raise BadCheckpoint("is not a verifier key (name+id+key)")
        return key


def parse_keys(text: str) -> tuple[VerifierKey, ...]:
    """Keys, one a line; lines that begin with # and empty ones are passed over. Raises `BadCheckpoint`."""
    lines = (line.strip() for line in text.splitlines())
    keys = tuple(VerifierKey.parse(line) for line in lines if line and not line.startswith("#"))
    if not keys:
        raise BadCheckpoint("holds no verifier key")
    return keys


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How long the log was, and its root."""

    origin: str
    size: int
    root: bytes
    """32 bytes."""

    def body(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode('ascii')}\n"


def note(checkpoint: Checkpoint, key: VerifierKey, signature: bytes) -> str:
    """The checkpoint with its signature, ready to be kept."""
    encoded = base64.b64encode(key.key_id + signature).decode("ascii")
    return f"{checkpoint.body()}\n{_SIGNATURE_LINE}{key.name} {encoded}\n"


def opened(text: str, keys: Iterable[VerifierKey], *, origin: str | None = None) -> Checkpoint:
    """The checkpoint of a note that one of the keys signed. Signatures of unknown keys, as of witnesses, are ignored.

    Raises `BadCheckpoint`.
    """
    body, separator, signatures = text.partition("\n\n")
    if not separator or not signatures.endswith("\n"):
        raise BadCheckpoint("is not a signed checkpoint")
    checkpoint = _parsed(body + "\n")
    if origin is not None and checkpoint.origin != origin:
        raise BadCheckpoint(f"is a checkpoint of another log ({checkpoint.origin!a})")
    known = {(key.name, key.key_id): key for key in keys}
    found = 0
    for line in signatures.splitlines():
        name, key_id, signature = _signature(line)
        key = known.get((name, key_id))
        if key is None:
            continue
        if not _signed(key, signature, body + "\n"):
            raise BadCheckpoint("carries a signature that does not fit")
        found += 1
    if not found:
        raise BadCheckpoint("is not signed by a known key")
    return checkpoint


def read(text: str) -> Checkpoint:
    """The checkpoint of a note, whoever signed it: to know which one it is, not to believe it.

    Raises `BadCheckpoint`.
    """
    return _parsed(text.partition("\n\n")[0] + "\n")


def _parsed(body: str) -> Checkpoint:
    lines: Sequence[str] = body.split("\n")
    try:
        origin, size, root = lines[0], lines[1], base64.b64decode(lines[2], validate=True)
        checkpoint = Checkpoint(origin, int(size), root)
        is_good = bool(origin) and len(root) == HASH_BYTES and str(checkpoint.size) == size and checkpoint.size >= 0
        # Extension lines are allowed by the format; we write none and so believe none.
        is_good = is_good and checkpoint.body() == body
    except (ValueError, IndexError, binascii.Error):
        raise BadCheckpoint("is not a checkpoint") from None
    if not is_good:
        raise BadCheckpoint("is not a checkpoint")
    return checkpoint


def _signature(line: str) -> tuple[str, bytes, bytes]:
    name, _, encoded = line.removeprefix(_SIGNATURE_LINE).partition(" ")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        raw = b""
    if not line.startswith(_SIGNATURE_LINE) or not name or len(raw) <= _ID_BYTES:
        raise BadCheckpoint("has a malformed signature line")
    return name, raw[:_ID_BYTES], raw[_ID_BYTES:]


def _signed(key: VerifierKey, signature: bytes, body: str) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key.public_key).verify(signature, body.encode())
    except (InvalidSignature, ValueError):
        return False
    return True
