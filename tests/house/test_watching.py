"""`deploy/WATCHING.md` lists all that logs and metrics hold; reasons are a closed list that the code keeps to."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from vault.domain.errors import CardVaultError
from vault.domain.reasons import OPERATOR_REASONS, OTHER, REASONS, known
from vault.keyring.trouble import Trouble
from vault.metrics.facts import GAUGES
from vault.metrics.prometheus import Metrics
from vault.store import faults
from vault.telemetry import ALLOWED

ROOT = Path(__file__).resolve().parents[2]
WATCHING = (ROOT / "deploy" / "WATCHING.md").read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, tuple[str, ...]]:
    """A table's rows by their first cell, without the marks of code."""
    _, _, rest = WATCHING.partition(heading + "\n")
    table = rest.split("\n\n")[0].splitlines()[1:]
    cells = [tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]) for line in table]
    return {first.strip("`"): tuple(more) for first, *more in cells}


def test_the_list_of_log_keys_is_that_of_the_code() -> None:
    assert rows("| key | meaning |") == {key: (meaning,) for key, meaning in ALLOWED.items()}


def test_the_list_of_gauges_is_that_of_the_code() -> None:
    documented = rows("| gauge | labels | meaning |")
    documented.pop("cardvault_build_info")

    assert documented == {
        name: (", ".join(f"`{label}`" for label in gauge.labels), gauge.meaning) for name, gauge in GAUGES.items()
    }


def test_the_list_of_counters_is_that_of_the_code() -> None:
    documented = set(rows("| counter or histogram | labels | meaning |"))
    page = Metrics(build={"version": "0"}).page().decode()
    shown = set(re.findall(r"^# TYPE (cardvault_\w+) (?:counter|histogram)$", page, re.MULTILINE))

    assert documented == shown


# --- reasons --------------------------------------------------------------------------------------------------------

_ERRORS = {"Denied", "KeyRingUnavailable", "StoreUnavailable", "Busy"}


def error_names(kind: type[CardVaultError] = CardVaultError) -> Iterator[str]:
    """The names of the tree's classes that take a reason first; others, made elsewhere, take what they like."""
    if kind.__module__ == CardVaultError.__module__:
        yield kind.__name__
    for below in kind.__subclasses__():
        yield from error_names(below)


def reasons_in(text: str) -> Iterator[str]:
    """Texts that errors are made with, and those of the checks that `Denied` is made of."""
    names = {*error_names(), *_ERRORS}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and node.args:
            for part in ast.walk(node.args[0]):
                if isinstance(part, ast.Constant) and isinstance(part.value, str) and len(part.value) > 1:
                    yield part.value


def test_every_reason_in_the_code_is_in_the_list() -> None:
    found = {
        reason
        for path in (ROOT / "vault").rglob("*.py")
        if "v1" not in path.parts and path.name != "trouble.py"
        for reason in reasons_in(path.read_text(encoding="utf-8"))
        # InvalidField takes a field first; a prefix is completed by the kind of id.
        if re.fullmatch(r"[a-z]+(_[a-z]+)*", reason) and reason not in _FIELDS
    }

    assert found - REASONS - OPERATOR_REASONS - {"ok"} == set()
    assert {"grant_used", "queue_full", "card_gone", "role"} <= found


_FIELDS = frozenset(
    {
        field
        for path in (ROOT / "vault").rglob("*.py")
        if "v1" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "InvalidField"
        and node.args
        and isinstance(node.args[0], ast.Constant)
        for field in [str(node.args[0].value)]
    }
)


def test_reasons_of_vault_and_the_database_are_in_the_list() -> None:
    of_database = {faults.UNREACHABLE, faults.LOCKED, faults.FULL, faults.READONLY, faults.COMMIT_UNKNOWN, faults.ERROR}

    assert {str(trouble) for trouble in Trouble} <= REASONS
    assert of_database <= REASONS


def test_a_reason_that_is_none_of_ours_is_not_passed_on() -> None:
    assert known("4 words of a caller") == OTHER
    assert known("") == ""
    assert known("role") == "role"
