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

from collections.abc import Iterable
from pathlib import Path

from tests.support.cards import REGISTRY, Registry, artifact_root
from vault.testing.leaks import judge, plant
from vault.testing.scan import REGISTRY_SUFFIX, read_registry

ALSO_SCANNED: list[Path] = []
"""Directories outside the run's own temporary one; whoever makes such a directory adds it here."""


def begin(root: Path | None = None) -> Path:
    """Make the artifact root and remove registries of earlier runs, whose numbers nobody looks for any more."""
    root = root or artifact_root()
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob(f"*{REGISTRY_SUFFIX}"):
        stale.unlink()
    return root


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
