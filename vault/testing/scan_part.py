"""A share of a leak scan, in a process of its own: a task as JSON on standard input, findings on standard output."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from vault.testing.scan import Canary, Kind, scan_in_passes


def main() -> None:
    """Search the files that were named for the secrets that were named."""
    task = json.load(sys.stdin)
    canaries = [Canary(Kind(kind), text, name) for kind, text, name in task["canaries"]]
    places = [(Path(root), Path(path)) for root, path in task["places"]]
    found = scan_in_passes(places, canaries)
    json.dump([(os.fspath(each.path), each.offset, each.form, each.canary) for each in found], sys.stdout)


if __name__ == "__main__":
    main()
