"""What the code logs: fixed words under keys of the list, and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vault.telemetry import ALLOWED

ROOT = Path(__file__).resolve().parents[2]
LEVELS = {"debug", "info", "warning", "error", "critical", "exception", "msg", "log"}
ADDED = {"event", "level", "timestamp", "logger"}


def calls(text: str) -> Iterator[ast.Call]:
    """Every call that writes a log line."""
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in LEVELS
            and "log" in ast.unparse(node.func.value).lower()
        ):
            yield node


def wrong(call: ast.Call) -> list[str]:
    """What a log line may not be made of."""
    found = []
    first = call.args[0] if call.args else None
    if not isinstance(first, ast.Constant) or re.fullmatch(r"[a-z]+\.[a-z_]+", str(first.value)) is None:
        found.append("its event is no fixed word")
    if len(call.args) > 1:
        found.append("more than one positional argument")
    for word in call.keywords:
        if word.arg is None or word.arg not in ALLOWED:
            found.append(f"key {word.arg}")
    return found


def used() -> dict[str, list[ast.Call]]:
    """Log calls by file; of the server, for the client and the test double write to their caller's log."""
    callers = {ROOT / "vault" / "client", ROOT / "vault" / "testing"}
    files = [path for path in sorted((ROOT / "vault").rglob("*.py")) if not callers & set(path.parents)]
    return {str(path.relative_to(ROOT)): list(calls(path.read_text(encoding="utf-8"))) for path in files}


def test_every_log_line_is_a_fixed_word_with_keys_of_the_list() -> None:
    problems = [
        f"{path}:{call.lineno}: {each}" for path, found in used().items() for call in found for each in wrong(call)
    ]

    assert problems == []


def test_the_list_has_no_key_that_nobody_uses() -> None:
    keys = {word.arg for found in used().values() for call in found for word in call.keywords}

    assert set(ALLOWED) - ADDED - keys == set()


@pytest.mark.parametrize(
    "text",
    [
        "_log.info('call.refused', pan=x)",
        "_log.info(f'call {x}')",
        "log.info(message)",
        "_log.info('call.refused', message)",
        "_log.info('call.refused', **facts)",
        "structlog.get_logger().error('call.refused', request=x)",
    ],
)
def test_a_line_that_could_hold_a_value_is_found(text: str) -> None:
    (call,) = calls(text)

    assert wrong(call)
