"""The leak scan as a command (`vault/testing/scan.py`), and the search of this repository for live numbers.

It knows what to look for from registry files that the tests write (`tests/support/cards.py`). `--repository` needs no
registry: it reports whatever looks like a live card number in the text files of a source tree. No digit of a finding is
ever printed.

Exit codes: 0 clean, 1 found, 2 usage or a file that could not be read.
"""

from __future__ import annotations

import argparse
import binascii
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vault.domain.brand import brand_of
from vault.testing.numbers import PUBLISHED_TEST_NUMBERS
from vault.testing.scan import Finding, read_registry, scan

CLEAN, FOUND, TROUBLE = 0, 1, 2

_GROUPED_RUN = re.compile(rb"(?<![0-9])[0-9]+(?:[ -][0-9]+)*(?![0-9])")
_HEX_RUN = re.compile(rb"[0-9A-Fa-f]{32,}")
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def luhn_ok(digits: str) -> bool:
    """The check digit of ISO/IEC 7812-1, written anew so that the scan does not lean on the code it watches."""
    total = sum(_DOUBLED[int(d)] if i % 2 else int(d) for i, d in enumerate(reversed(digits)))
    return total % 10 == 0


def looks_live(digits: str) -> bool:
    """Whether it could be somebody's card number: 13 to 19 digits, check digit, known scheme, not published."""
    if not 13 <= len(digits) <= 19 or digits in PUBLISHED_TEST_NUMBERS or not luhn_ok(digits):
        return False
    brand = brand_of(digits)
    return brand is not None and len(digits) in brand.lengths


def live_numbers(data: bytes) -> Iterator[int]:
    """Offsets of what could be live card numbers in a text; hexadecimal of 32 characters and more is a digest."""
    digests = [(m.start(), m.end()) for m in _HEX_RUN.finditer(data) if not m.group().isdigit()]
    for match in _GROUPED_RUN.finditer(data):
        if len(match.group()) < 13 or any(a <= match.start() and match.end() <= b for a, b in digests):
            continue
        groups = [(g.group().decode(), match.start() + g.start()) for g in re.finditer(rb"[0-9]+", match.group())]
        for i, (_, offset) in enumerate(groups):
            joined = ""
            for text, _ in groups[i:]:
                joined += text
                if len(joined) > 19:
                    break
                if looks_live(joined):
                    yield offset
        for text, offset in groups:
            windows = ((i, n) for n in range(13, 20) for i in range(len(text) - n + 1))
            if len(text) > 19 and any(looks_live(text[i : i + n]) for i, n in windows):
                yield offset


def repository_files(root: Path) -> tuple[Path, ...]:
    """Files under version control or about to be; without git, all but hidden and installed ones."""
    listed = subprocess.run(  # noqa: S603 - fixed words and a directory
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        paths = [root / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    else:
        paths = [
            path
            for path in root.rglob("*")
            if not any(p.startswith(".") or p == "node_modules" for p in path.relative_to(root).parts)
        ]
    return tuple(sorted(path for path in set(paths) if path.is_file() and not path.is_symlink()))


def scan_repository(files: Iterable[Path]) -> tuple[Finding, ...]:
    """What could be live card numbers in text files (those without a NUL byte) and their names."""
    found: set[Finding] = set()
    for path in files:
        data = path.read_bytes()
        found.update(Finding(path.parent, -1, "plain", "live number") for _ in live_numbers(os.fsencode(path.name)))
        if b"\0" not in data:
            found.update(Finding(path, offset, "plain", "live number") for offset in live_numbers(data))
    return tuple(sorted(found))


# --- command line ---------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", type=Path, help="files and directories to search")
    parser.add_argument("--registry", action="append", default=[], type=Path, help="a registry or a directory of them")
    parser.add_argument("--repository", type=Path, metavar="DIR", help="search this source tree for live numbers")
    asked = parser.parse_args(arguments)
    if asked.repository is None and not (asked.roots and asked.registry):
        parser.error("give roots and --registry, or --repository")
    try:
        findings: list[Finding] = []
        if asked.repository is not None:
            findings += scan_repository(repository_files(asked.repository))
        if asked.roots:
            canaries = [canary for path in asked.registry for canary in read_registry(path)]
            if not canaries:
                parser.error("the registry holds nothing to look for")
            findings += scan(asked.roots, canaries)
    except (OSError, ValueError, binascii.Error) as e:
        sys.stderr.write(f"canary_scan: {type(e).__name__} {getattr(e, 'filename', None) or ''}\n")
        return TROUBLE
    for finding in findings:
        sys.stdout.write(f"{finding}\n")
    sys.stderr.write(f"canary_scan: {len(findings)} found\n")
    return FOUND if findings else CLEAN


if __name__ == "__main__":
    sys.exit(main())
