"""What the root conftest calls when a session ends: the leak scan over everything the tests left behind.

A scan that finds nothing proves nothing unless it can find. So one number is planted on purpose, and the session
fails as well when that one is not found.

Where workers run the tests, each hands over the numbers that it made, and the process that started them searches. A
worker that did not hand them over fails the run: nobody can look for what nobody knows.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.support.cards import REGISTRY, Registry, artifact_root
from vault.testing.leaks import judge, plant
from vault.testing.scan import REGISTRY_SUFFIX, read_registry

_ROOM = 2 * 1024**3


class Run:
    """One run of pytest, in whichever of its processes: its directory in memory, and its workers."""

    def __init__(self) -> None:
        self._directory: Path | None = None
        self.registries: dict[str, str | None] = {}
        """Of each worker that was started, the file with its numbers; None as long as it has handed over none."""

    @property
    def directory(self) -> Path:
        """What lies here is searched at the end and removed after that, not before."""
        assert self._directory is not None, "pytest_sessionstart makes it"
        return self._directory

    def begin(self) -> None:
        """Make it: in memory, if there is room, where copying a database is ten times faster.

        What these tests ask of a database does not depend on the disk; power cuts are tested elsewhere.
        """
        memory = Path("/dev/shm")
        has_room = memory.is_dir() and shutil.disk_usage(memory).free > _ROOM
        self._directory = Path(tempfile.mkdtemp(prefix="cardvault-", dir=memory if has_room else None))

    def join(self, directory: str) -> None:
        """As a worker: use what the process that started it has made."""
        self._directory = Path(directory)

    def remove(self) -> None:
        """Once it was searched."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


RUN = Run()
"""The one that this process belongs to."""


def begin(root: Path | None = None) -> Path:
    """Make the artifact root and remove registries of earlier runs, whose numbers nobody looks for any more."""
    root = root or artifact_root()
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob(f"*{REGISTRY_SUFFIX}"):
        stale.unlink()
    return root


def hand_over() -> str:
    """As a worker, after its last test: write down, masked, which numbers it made; returns the file."""
    return str(REGISTRY.dump(artifact_root()))


def end(
    roots: Iterable[Path] = (),
    *,
    root: Path | None = None,
    registry: Registry = REGISTRY,
    workers: Mapping[str, str | None] | None = None,
) -> tuple[str, ...]:
    """Plant, dump the registry, scan the artifact root and `roots`; returns the problems, none if all is well.

    Registries that other processes of this run dumped into the artifact root are looked for as well; those of
    `workers` have to be there. A root that is not there is a problem too. The planted file is removed afterwards.
    """
    root = root or artifact_root()
    planted = plant(root, registry)
    try:
        registry.dump(root)
        found = list(dict.fromkeys([root, *roots]))
        absent = [f"the leak scan did not find the directory {path}" for path in found if not path.exists()]
        unknown = [
            f"the leak scan does not know the numbers of {worker}: it ended without handing them over"
            for worker, file in (workers or {}).items()
            if file is None or Path(file).parent != root or not Path(file).is_file()
        ]
        existing = [path for path in found if path.exists()]
        return (*judge(existing, read_registry(root), planted).problems(), *unknown, *absent)
    finally:
        planted.path.unlink()
