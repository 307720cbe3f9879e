"""The one room where digits and data keys meet: it seals cards, opens them, and prepares what is fingerprinted.

AES-256-GCM, a fresh key for each sealing, so a nonce can never repeat under a key (NIST SP 800-38D 8.3). The plaintext
is padded to one length (PCI DSS 3.5.1: nothing about the number shows). Nothing here is cached or logged.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vault.domain.binding import Binding
from vault.domain.binding import fingerprint_message as message_of
from vault.domain.card import CardDetails, Expiry, HolderName, SecurityCode
from vault.domain.errors import BrokenSeal
from vault.domain.ids import CustomerId, TenantId
from vault.domain.pan import Pan
from vault.ports import Entropy

DATA_KEY_BYTES = 32
_SUITE_AES_256_GCM = 1
_NONCE_BYTES = 12
_PLAINTEXT_FORMAT = 1
_PADDED_BYTES = 192


@dataclass(frozen=True, slots=True)
class OpenedCard:
    """A card in clear, on its way to the processor."""

    pan: Pan
    expiry: Expiry | None
    """Only in a one-time token; a stored card's expiry is a display column."""
    holder_name: HolderName
    security_code: SecurityCode


class DataKey:
    """A card's own key. It seals once; what is kept of it is its wrap."""

    __slots__ = ("_key", "_sealed")

    def __init__(self, entropy: Entropy) -> None:
        self._key = entropy.bytes(DATA_KEY_BYTES)
        self._sealed = False

    def for_wrapping(self) -> bytes:
        """The 32 bytes, to be wrapped by Vault."""
        return self._key

    def seal_stored(self, card: CardDetails, binding: Binding, entropy: Entropy) -> bytes:
        """Seal number and name for storage. A security code never goes in, nor does the expiry."""
        return self._seal(_pad(card.pan.reveal(), "", card.holder_name.reveal_text(), ""), binding, entropy)

    def seal_again(self, card: OpenedCard, binding: Binding, entropy: Entropy) -> bytes:
        """Seal an opened stored card anew, for storage."""
        return self._seal(_pad(card.pan.reveal(), "", card.holder_name.reveal_text(), ""), binding, entropy)

    def seal_once(self, card: CardDetails, binding: Binding, entropy: Entropy) -> bytes:
        """Seal the whole card, with its security code if one was given, for a one-time token."""
        plaintext = _pad(
            card.pan.reveal(),
            f"{card.expiry.year:04}{card.expiry.month:02}",
            card.holder_name.reveal_text(),
            card.security_code.reveal_text(),
        )
        return self._seal(plaintext, binding, entropy)

    def _seal(self, plaintext: bytes, binding: Binding, entropy: Entropy) -> bytes:
        if self._sealed:
            raise AssertionError("a data key seals one card once")
        self._sealed = True
        nonce = entropy.bytes(_NONCE_BYTES)
        sealed = AESGCM(self._key).encrypt(nonce, plaintext, binding.aad(_SUITE_AES_256_GCM))
        return bytes((_SUITE_AES_256_GCM,)) + nonce + sealed


def open_sealed(sealed: bytes, *, data_key: bytes, binding: Binding) -> OpenedCard:
    """Open what `DataKey` sealed. Raises `BrokenSeal` if a bit of it or of its binding changed."""
    if len(sealed) <= 1 + _NONCE_BYTES or sealed[0] != _SUITE_AES_256_GCM:
        raise BrokenSeal("unknown suite")
    nonce, body = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
    try:
        plaintext = AESGCM(data_key).decrypt(nonce, body, binding.aad(_SUITE_AES_256_GCM))
    except (InvalidTag, ValueError):
        raise BrokenSeal("does not open under its binding") from None
    pan, expiry, name, code = _unpad(plaintext)
    return OpenedCard(
        pan=Pan(pan),
        expiry=Expiry(year=int(expiry[:4]), month=int(expiry[4:])) if expiry else None,
        holder_name=HolderName(name),
        security_code=SecurityCode(code),
    )


def fingerprint_message(pan: Pan, *, environment: str, tenant: TenantId, customer: CustomerId) -> bytes:
    """The 32 bytes that Vault is asked to HMAC for this card of this customer."""
    return message_of(environment=environment, tenant=tenant, customer=customer, digits=pan.reveal())


def _pad(*fields: str) -> bytes:
    plain = bytearray((_PLAINTEXT_FORMAT,))
    for field in fields:
        raw = field.encode()
        plain.append(len(raw))
        plain += raw
    if len(plain) > _PADDED_BYTES:
        raise AssertionError("field limits keep a card below the padded length")
    return bytes(plain.ljust(_PADDED_BYTES, b"\0"))


def _unpad(plaintext: bytes) -> tuple[str, str, str, str]:
    if len(plaintext) != _PADDED_BYTES or plaintext[0] != _PLAINTEXT_FORMAT:
        raise BrokenSeal("unknown plaintext format")
    fields: list[str] = []
    at = 1
    for _ in range(4):
        length = plaintext[at]
        fields.append(plaintext[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return fields[0], fields[1], fields[2], fields[3]
