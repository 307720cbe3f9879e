"""Judging a run: a scan that finds nothing proves nothing unless it can find.

So one number is planted on purpose, and the run fails as well when that one is not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vault.testing.numbers import Registry, made_up_digits
from vault.testing.scan import Canary, Finding, Kind, scan

PLANTED_NAME = "planted-on-purpose.txt"


@dataclass(frozen=True, slots=True)
class Planted:
    """A number that was leaked on purpose, and where."""

    path: Path
    canary: Canary


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a scan says: leaks, and whether it found what it had to find."""

    leaks: tuple[Finding, ...]
    control_found: bool

    @property
    def is_clean(self) -> bool:
        """Whether the session may pass."""
        return self.control_found and not self.leaks

    def problems(self) -> tuple[str, ...]:
        """Each problem in words, without a digit of any number."""
        words = [f"leak: {finding}" for finding in self.leaks]
        if not self.control_found:
            words.append("the leak scan did not find the number that was planted for it")
        return tuple(words)


def plant(directory: Path, registry: Registry) -> Planted:
    """Leak one number into a file of `directory`."""
    digits = made_up_digits()
    canary = registry.record(Kind.PAN, digits)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / PLANTED_NAME
    path.write_text(f"order=1 pan={digits} outcome=ok\n", encoding="ascii")
    return Planted(path, canary)


def judge(roots: Sequence[Path], canaries: Sequence[Canary], planted: Planted) -> Verdict:
    """Scan; what was planted is no leak where it was planted, and anywhere else it is one."""
    findings = scan(roots, canaries)
    on_purpose = {f for f in findings if f.canary == planted.canary.id and f.path == planted.path and f.offset >= 0}
    return Verdict(tuple(f for f in findings if f not in on_purpose), bool(on_purpose))
