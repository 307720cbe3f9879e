"""What the root conftest calls when a session ends: the leak scan over everything the tests left behind.

A scan that finds nothing proves nothing unless it can find. So one number is planted on purpose, and the session
fails as well when that one is not found.

In `conftest.py`:

    def pytest_sessionstart(session):
        canary.begin()

    def pytest_sessionfinish(session, exitstatus):
        problems = canary.end(roots=[...])
        if problems:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.cards import REGISTRY, Registry, artifact_root, fresh_digits, made_up_digits
from tools.canary_scan import REGISTRY_SUFFIX, Canary, Finding, Kind, read_registry, scan

PLANTED_NAME = "planted-on-purpose.txt"

ALSO_SCANNED: list[Path] = []
"""Directories outside the run's own temporary one; whoever makes such a directory adds it here."""


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


def begin(root: Path | None = None) -> Path:
    """Make the artifact root and remove registries of earlier runs, whose numbers nobody looks for any more."""
    root = root or artifact_root()
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob(f"*{REGISTRY_SUFFIX}"):
        stale.unlink()
    return root


def plant(directory: Path, registry: Registry = REGISTRY) -> Planted:
    """Leak one number into a file of `directory`."""
    digits = made_up_digits() if registry is not REGISTRY else fresh_digits()
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


def end(roots: Iterable[Path] = (), *, root: Path | None = None, registry: Registry = REGISTRY) -> tuple[str, ...]:
    """Plant, dump the registry, scan the artifact root and `roots`; returns the problems, none if all is well.

    Registries that other processes of this run dumped into the artifact root are looked for as well. The planted
    file is removed afterwards.
    """
    root = root or artifact_root()
    planted = plant(root, registry)
    try:
        registry.dump(root)
        existing = [path for path in dict.fromkeys([root, *roots]) if path.exists()]
        return judge(existing, read_registry(root), planted).problems()
    finally:
        planted.path.unlink()
