"""Vault's troubles in our own words. No text from Vault or from the network gets past this module.

The text of an exception may hold the whole answer of a batch, and so plaintext: what leaves here is a code out of a
fixed list, and callers raise it outside the `except` block, so that not even `__context__` leads back to the text.
"""

from __future__ import annotations

from enum import StrEnum

import requests.exceptions
import urllib3.exceptions
from hvac import exceptions as answers

from vault.domain.errors import KeyRefused, KeyRingUnavailable


class Trouble(StrEnum):
    """Reasons of `KeyRingUnavailable`."""

    SEALED = "vault_sealed"
    UNREACHABLE = "vault_unreachable"
    FORBIDDEN = "vault_forbidden"
    TIMEOUT = "vault_timeout"
    RATE_LIMITED = "vault_rate_limited"
    ERROR = "vault_error"
    ODD_ANSWER = "vault_odd_answer"
    KEY_MISSING = "vault_key_missing"
    VERSION_RETIRED = "vault_key_version_retired"
    LOGIN_FILE = "vault_login_file"
    NO_CANARY = "vault_no_canary"
    CANARY_REFUSED = "vault_canary_refused"
    CLOSED = "vault_session_closed"


OUTAGES = frozenset({Trouble.SEALED, Trouble.UNREACHABLE, Trouble.TIMEOUT, Trouble.CLOSED})
"""Troubles that the next call would meet too."""

FOREIGN = (
    answers.VaultError,
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
    # hvac's own code stumbles over error bodies that are JSON of another shape.
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
)
"""Whatever a call to Vault may raise."""

_NO_CONNECTION = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.SSLError,
)

# Vault says in words alone why it answers 400 to a decrypt. These speak of the ciphertext; any other text is trouble
# with Vault or with us, and must not raise a false alarm about an altered row.
_CIPHERTEXT_REFUSED = ("cipher: message authentication failed", "invalid ciphertext")
# An operator raised min_decryption_version too early. It heals when lowered again, so it is no refusal.
_VERSION_RETIRED = "disallowed by policy (too old)"
_KEY_MISSING = ("encryption key not found", "no handler for route", "unsupported path")


def connection_broke(error: BaseException) -> bool:
    """Whether one of `FOREIGN` says that there is no connection, or none any more; silence is something else."""
    match error:
        case requests.exceptions.ConnectionError():
            return not isinstance(error, requests.exceptions.Timeout)
        case requests.exceptions.RequestException() | TimeoutError():
            return False
    return isinstance(error, (*_NO_CONNECTION, OSError))


def translate(error: BaseException, *, logging_in: bool = False) -> KeyRingUnavailable | KeyRefused:
    """The error to raise instead of one of `FOREIGN`. `KeyRefused` comes only from decrypt and rewrap."""
    match error:
        case answers.InvalidRequest() if logging_in:
            return KeyRingUnavailable(Trouble.FORBIDDEN)  # a wrong role or secret id is a 400
        case answers.InvalidRequest() | answers.InvalidPath():
            return _of_request(" ".join(map(str, error.errors or ())))
    return KeyRingUnavailable(_of_transport(error))


def _of_request(text: str) -> KeyRingUnavailable | KeyRefused:
    if any(known in text for known in _KEY_MISSING):
        return KeyRingUnavailable(Trouble.KEY_MISSING)
    if _VERSION_RETIRED in text:
        return KeyRingUnavailable(Trouble.VERSION_RETIRED)
    if any(text.startswith(known) for known in _CIPHERTEXT_REFUSED):
        return KeyRefused()
    return KeyRingUnavailable(Trouble.ERROR)


def _of_transport(error: BaseException) -> Trouble:
    match error:
        case answers.VaultDown() | answers.VaultNotInitialized():
            return Trouble.SEALED
        case answers.Forbidden() | answers.Unauthorized():
            return Trouble.FORBIDDEN
        case answers.RateLimitExceeded():
            return Trouble.RATE_LIMITED
        case answers.BadGateway():
            return Trouble.UNREACHABLE
        case _ if connection_broke(error):
            return Trouble.UNREACHABLE
        case requests.exceptions.Timeout() | urllib3.exceptions.TimeoutError() | TimeoutError():
            return Trouble.TIMEOUT
        case answers.VaultError() | requests.exceptions.RequestException() | urllib3.exceptions.HTTPError():
            return Trouble.ERROR
        case _:
            return Trouble.ODD_ANSWER
