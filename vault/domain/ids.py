"""Names of things, each with a type of its own, so that a customer cannot stand where a token belongs."""

from __future__ import annotations

import re
from datetime import datetime
from typing import ClassVar, Self

from vault.domain import letters
from vault.domain.errors import InvalidField, NotAvailable
from vault.domain.pan import contains_pan

RANDOM_BYTES = 16
"""128 bits (OWASP ASVS 11.5.1; a UUID is not enough)."""
SHARED_BYTES = 4
"""What tokens that are drawn together have in common; their 128 bits come after it."""
DATED_RANDOM_BYTES = 10
"""What is random of a name that begins with the time: enough that no two of one millisecond are ever the same."""


class _GivenId(str):
    """A name that a caller chose: checked against a pattern, and refused if it holds a card number."""

    __slots__ = ()
    pattern: ClassVar[re.Pattern[str]]
    rule: ClassVar[str]

    @classmethod
    def parse(cls, text: str, *, field: str) -> Self:
        """Raises `InvalidField` naming `field`, never the value."""
        if cls.pattern.fullmatch(text) is None:
            raise InvalidField(field, cls.rule)
        if contains_pan(text):
            raise InvalidField(field, "must not contain a card number")
        return cls(text)


class TenantId(_GivenId):
    """A shop or partner portal; proven by the client certificate."""

    __slots__ = ()
    pattern = re.compile(r"[a-z][a-z0-9-]{0,62}")
    rule = "must be 1 to 63 lower-case letters, digits and dashes, beginning with a letter"


class CustomerId(_GivenId):
    """The shop's own name for a customer."""

    __slots__ = ()
    pattern = re.compile(r"[A-Za-z0-9._:@+=/-]{1,128}")
    rule = "must be 1 to 128 characters of letters, digits and ._:@+=/-"


class OrderId(_GivenId):
    """The shop's own name for an order."""

    __slots__ = ()
    pattern = re.compile(r"[A-Za-z0-9._:/#-]{1,64}")
    rule = "must be 1 to 64 characters of letters, digits and ._:/#-"


class IdempotencyKey(_GivenId):
    """Unique for each intended effect, for 24 hours, within one tenant and RPC."""

    __slots__ = ()
    pattern = re.compile(r"[A-Za-z0-9._:-]{1,64}")
    rule = "must be 1 to 64 characters of letters, digits and ._:-"


class NetworkTransactionId(_GivenId):
    """The card scheme's name for an approved payment, which later merchant-initiated ones refer to.

    Some schemes draw 15 digits; about one such id in eighty looks like a card number and is refused like one.
    """

    __slots__ = ()
    pattern = re.compile(r"[A-Za-z0-9._:-]{1,64}")
    rule = "must be 1 to 64 characters of letters, digits and ._:-"


class ProcessorName(_GivenId):
    """A payment processor, as the configuration names it."""

    __slots__ = ()
    pattern = re.compile(r"[a-z][a-z0-9-]{0,62}")
    rule = "must be 1 to 63 lower-case letters, digits and dashes, beginning with a letter"


class _DrawnId(str):
    """A name that the vault drew at random: a prefix and letters with a check byte."""

    __slots__ = ()
    prefix: ClassVar[str]
    sizes: ClassVar[tuple[int, ...]] = (RANDOM_BYTES,)
    """How many bytes it may be of."""

    @classmethod
    def from_random(cls, raw: bytes) -> Self:
        """`raw` is 16 random bytes."""
        if len(raw) not in cls.sizes:
            raise ValueError(f"{cls.__name__} needs {RANDOM_BYTES} random bytes")
        return cls(cls.prefix + letters.encode(raw))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises `NotAvailable`: a mistyped name and an unknown one get the same answer."""
        body = text.removeprefix(cls.prefix)
        raw = letters.decode(body) if body != text else None
        if raw is None or len(raw) not in cls.sizes:
            raise NotAvailable("malformed_" + cls.prefix.rstrip("_"))
        return cls(text)

    def raw(self) -> bytes:
        """The bytes that the letters stand for."""
        raw = letters.decode(self.removeprefix(self.prefix))
        assert raw is not None, "ids are checked when they are made"
        return raw


class _DatedId(_DrawnId):
    """A drawn name that opens nothing: it begins with the time, so that names drawn together lie together.

    In an index of random names each new one lies on a page of its own, which is to be read, changed and written.
    """

    __slots__ = ()

    @classmethod
    def drawn(cls, now: datetime, raw: bytes) -> Self:
        """48 bits of milliseconds since 1970, as in UUID version 7 (RFC 9562, 5.7), then `raw`: 10 random bytes."""
        return cls.from_random(int(now.timestamp() * 1000).to_bytes(RANDOM_BYTES - DATED_RANDOM_BYTES, "big") + raw)


class Token(_DrawnId):
    """One stored card of one customer of one tenant. Random: nothing about the card can be derived from it.

    Tokens of cards that are stored together begin alike, so that their rows and what indexes hold of them lie together:
    among names that have nothing in common each lies on a page of its own, which is to be read, changed and written.
    """

    __slots__ = ()
    prefix = "tok_"
    sizes = (SHARED_BYTES + RANDOM_BYTES, RANDOM_BYTES)  # earlier versions drew the shorter ones

    @classmethod
    def drawn(cls, shared: bytes, raw: bytes) -> Self:
        """`shared`: 4 random bytes for all that are drawn together. `raw`: 16 for this one alone (ASVS 11.5.1)."""
        if len(shared) != SHARED_BYTES or len(raw) != RANDOM_BYTES:
            raise ValueError(f"a token needs {SHARED_BYTES} bytes in common and {RANDOM_BYTES} of its own")
        return cls.from_random(shared + raw)


class ConsentId(_DatedId):
    """One entry of the consent ledger."""

    __slots__ = ()
    prefix = "cns_"


class OnceId(_DrawnId):
    """The vault's name for a one-time token, whose text only the caller holds."""

    __slots__ = ()
    prefix = "oid_"


class EventId(_DatedId):
    """One event of the audit log."""

    __slots__ = ()
    prefix = "evt_"


class RequestId(_DrawnId):
    """One call. An error answer carries it as its error id; the log and the audit event repeat it."""

    __slots__ = ()
    prefix = "req_"
