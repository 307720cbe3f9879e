"""Generates `vault/v1` from `protos/`; with `--check` only says whether it is up to date."""

from __future__ import annotations

import argparse
import filecmp
import os
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"


def generate(into: Path) -> None:
    """Run protoc with its Python, typing and gRPC plug-ins."""
    well_known = resources.files("grpc_tools") / "_proto"
    sources = sorted(str(p) for p in PROTOS.rglob("*.proto"))
    # The plug-ins are commands beside this interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    outputs = [f"--{kind}_out={into}" for kind in ("python", "mypy", "grpc_python", "mypy_grpc")]
    arguments = ["protoc", f"--proto_path={PROTOS}", f"--proto_path={well_known}", *outputs, *sources]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = {p.relative_to(scratch) for p in Path(scratch).rglob("*.py*")}
        kept = {p.relative_to(ROOT) for p in (ROOT / "vault/v1").glob("*_pb2*.py*")}
        stale = sorted(fresh ^ kept) + sorted(
            p for p in fresh & kept if not filecmp.cmp(Path(scratch) / p, ROOT / p, shallow=False)
        )
    if stale:
        sys.exit("out of date, run `make generate`: " + ", ".join(map(str, stale)))


if __name__ == "__main__":
    main()
