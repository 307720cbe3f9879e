"""Valid card numbers that nobody has, made when a test runs, and remembered for the leak scan."""

from __future__ import annotations

import os
import secrets
import string
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from vault.domain.brand import RANGES, Brand, brand_of
from vault.testing.scan import REGISTRY_SUFFIX, Canary, Kind, write_registry

T = TypeVar("T")

_PUBLISHED = """
    4242424242424242 4111111111111111 4012888888881881 4000056655665556 4000000000000002 4222222222222
    5555555555554444 5105105105105100 5200828282828210 2223003122003222 378282246310005 371449635398431
    6011111111111117 6011000990139424 30569309025904 38520000023237 3056930009020004 36227206271667
    3530111333300000 3566002020360505 6200000000000005
"""

PUBLISHED_TEST_NUMBERS = frozenset(_PUBLISHED.split())
"""Numbers printed in the manuals of payment companies for everybody's tests; they alone may stand in a file."""

_SYSTEM = secrets.SystemRandom()
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


class Chooser(Protocol):
    """What is asked of a source of randomness, so that a property test can bring a seeded one."""

    def choice(self, seq: Sequence[T], /) -> T:
        """One of them."""

    def choices(self, population: Sequence[T], *, k: int) -> list[T]:
        """`k` of them, each any number of times."""

    def randint(self, a: int, b: int, /) -> int:
        """From `a` to `b`, both included."""


class Registry:
    """Every secret handed out by this process."""

    def __init__(self) -> None:
        self._canaries: dict[tuple[Kind, str], Canary] = {}
        self._lock = threading.Lock()

    def record(self, kind: Kind, text: str) -> Canary:
        """Remember a secret; the same one keeps its id."""
        with self._lock:
            fresh = Canary(kind, text, "".join(secrets.choice(string.ascii_lowercase) for _ in range(8)))
            return self._canaries.setdefault((kind, text), fresh)

    def canaries(self) -> tuple[Canary, ...]:
        """All so far."""
        with self._lock:
            return tuple(self._canaries.values())

    def dump(self, directory: Path) -> Path:
        """Write them, masked, to a file of this process under `directory`."""
        path = directory / f"{os.getpid()}{REGISTRY_SUFFIX}"
        write_registry(path, self.canaries())
        return path


REGISTRY = Registry()
"""What this process handed out."""


def check_digit(body: str) -> str:
    """The digit that makes `body` pass the Luhn check."""
    total = sum(int(d) if i % 2 else _DOUBLED[int(d)] for i, d in enumerate(reversed(body)))
    return str(-total % 10)


def made_up_digits(*, brand: Brand | None = None, length: int | None = None, rng: Chooser | None = None) -> str:
    """A valid number of a scheme and length, not recorded. Without `brand` or `length`, any that exists."""
    rng = rng or _SYSTEM
    if brand is None:
        brand = rng.choice([b for b in Brand if length is None or length in b.lengths])
    if length is None:
        length = rng.choice(sorted(brand.lengths))
    if length not in brand.lengths:
        raise ValueError(f"{brand.label} issues no numbers of that length")
    while True:
        low, _, high = rng.choice(RANGES[brand]).partition("-")
        prefix = str(rng.randint(int(low), int(high or low)))
        body = prefix + "".join(rng.choices(string.digits, k=length - 1 - len(prefix)))
        digits = body + check_digit(body)
        if brand_of(digits) is brand and digits not in PUBLISHED_TEST_NUMBERS:
            return digits
