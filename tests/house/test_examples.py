"""What the storefront shows to be enough: the client, and one place where a number is looked at."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STARTS_A_VAULT = "examples/storefront/__main__.py"


def _trees() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "examples").rglob("*.py"))
    }


def _using(name: str) -> set[str]:
    return {
        path
        for path, tree in _trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == name
    }


def test_only_the_processor_looks_at_a_card_number_and_the_shop_hands_on_nothing_but_grants() -> None:
    assert _using("reveal") == {"examples/storefront/processor.py"}
    assert _using("reveal_text") == {"examples/storefront/shop/payments.py"}


def test_shop_and_processor_need_nothing_of_cardvault_but_its_client() -> None:
    imported = {
        node.module
        for path, tree in _trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and path != STARTS_A_VAULT
    }

    assert {module for module in imported if module is not None and module.split(".")[0] == "vault"} == {"vault.client"}


def test_no_template_holds_a_script_or_text_that_is_not_escaped() -> None:
    templates = list((ROOT / "examples/storefront/shop/templates").glob("*.html"))

    assert templates
    for template in templates:
        text = template.read_text(encoding="utf-8")
        assert "<script" not in text
        assert "| safe" not in text
