"""Transit requests and answers: what is sent, and what an answer must look like to be believed."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from vault.domain.errors import KeyRefused, KeyRingUnavailable
from vault.domain.grant import SealedKey
from vault.keyring.session import VaultSession
from vault.keyring.trouble import Trouble
from vault.ports import Fingerprint, KeyName, KeyToUnwrap, KeyToWrap

BATCH_ITEMS = 200
"""Vault counts the JSON strings of a request and refuses about 250 items of two fields."""
KEY_BYTES = 32
VERSION_RETIRED = "disallowed by policy (too old)"

T = TypeVar("T")

_WRAPPED = re.compile(r"vault:v[1-9][0-9]{0,8}:[A-Za-z0-9+/]{40,400}={0,2}")
_HMAC = re.compile(r"vault:v([1-9][0-9]{0,8}):([A-Za-z0-9+/]{43}=)")


@dataclass(frozen=True, slots=True, repr=False)
class Question(Generic[T]):
    """A write to the transit mount, which may be repeated, and how what it is answered is read."""

    path: str
    body: dict[str, Any]
    read: Callable[[dict[str, Any]], list[T]]
    """Raises `KeyRingUnavailable` for an answer that is not to be believed."""


def wrap(name: KeyName, items: Sequence[KeyToWrap]) -> Question[SealedKey]:
    """Encrypt a batch of data keys, each under its context."""
    body = {
        "batch_input": [{"plaintext": _b64(item.data_key), "context": _b64(item.context)} for item in items],
    }
    return Question(f"encrypt/{name}", body, partial(_wrapped, count=len(items)))


def _wrapped(data: dict[str, Any], *, count: int) -> list[SealedKey]:
    results = _results(data, count=count)
    return [SealedKey(_matching(_WRAPPED, result.get("ciphertext")).group()) for result in results]


def fingerprint(messages: Sequence[bytes], *, version: int | None) -> Question[Fingerprint]:
    """HMAC a batch of messages under one version of the key, the newest if None is given."""
    body: dict[str, Any] = {"batch_input": [{"input": _b64(message)} for message in messages]}
    if version is not None:
        # At the top: inside an item Vault ignores it without a word and answers under the newest version.
        body["key_version"] = version
    return Question(
        f"hmac/{KeyName.FINGERPRINT}/sha2-256", body, partial(_fingerprints, count=len(messages), version=version)
    )


def _fingerprints(data: dict[str, Any], *, count: int, version: int | None) -> list[Fingerprint]:
    found: list[Fingerprint] = []
    for result in _results(data, count=count):
        match = _matching(_HMAC, result.get("hmac"))
        found.append(Fingerprint(int(match[1]), base64.b64decode(match[2])))
    if len({fp.version for fp in found}) > 1 or (version is not None and found[0].version != version):
        raise KeyRingUnavailable(Trouble.ODD_ANSWER)
    return found


def unwrap(session: VaultSession, item: KeyToUnwrap) -> bytes:
    """Decrypt one data key. Raises `KeyRefused` if it does not belong to its context."""
    if _WRAPPED.fullmatch(item.key.wrapped) is None:
        raise KeyRefused
    body = {"ciphertext": item.key.wrapped, "context": _b64(item.context)}
    plaintext = session.write(f"decrypt/{item.name}", body, repeatable=True).get("plaintext")
    if not isinstance(plaintext, str):
        raise KeyRingUnavailable(Trouble.ODD_ANSWER)
    key = _unb64(plaintext)
    if len(key) != KEY_BYTES:
        raise KeyRefused
    return key


def rewrap(session: VaultSession, name: KeyName, items: Sequence[KeyToUnwrap]) -> list[SealedKey | KeyRefused]:
    """Have a batch of wrapped data keys wrapped anew under the newest version of their key."""
    body = {"batch_input": [{"ciphertext": item.key.wrapped, "context": _b64(item.context)} for item in items]}
    answer = session.write(f"rewrap/{name}", body, repeatable=True)
    results = answer.get("batch_results")
    if not isinstance(results, list) or len(results) != len(items):
        raise KeyRingUnavailable(Trouble.ODD_ANSWER)
    found: list[SealedKey | KeyRefused] = []
    for result in results:
        # Refused items come under HTTP 200, each with an error of its own.
        ciphertext = result.get("ciphertext") if isinstance(result, dict) and not result.get("error") else None
        if isinstance(ciphertext, str) and _WRAPPED.fullmatch(ciphertext) is not None:
            found.append(SealedKey(ciphertext))
        else:
            # A version that was retired too early heals when it is allowed again: no row was altered.
            if isinstance(result, dict) and VERSION_RETIRED in str(result.get("error")):
                raise KeyRingUnavailable(Trouble.VERSION_RETIRED)
            found.append(KeyRefused())
    return found


def _results(data: dict[str, Any], *, count: int) -> list[dict[str, Any]]:
    results = data.get("batch_results")
    if not isinstance(results, list) or len(results) != count:
        raise KeyRingUnavailable(Trouble.ODD_ANSWER)
    for result in results:
        # hmac answers 200 with an error inside the item.
        if not isinstance(result, dict) or result.get("error"):
            raise KeyRingUnavailable(Trouble.ODD_ANSWER)
    return results


def _matching(pattern: re.Pattern[str], text: object) -> re.Match[str]:
    match = pattern.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise KeyRingUnavailable(Trouble.ODD_ANSWER)
    return match


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _unb64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        odd = KeyRingUnavailable(Trouble.ODD_ANSWER)
    raise odd
