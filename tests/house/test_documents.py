"""The documents name tests, commands and files that exist, and claim nothing that nobody can hold."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from tests.support.commands import problem_with

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])
PCI = ROOT / "docs" / "pci-dss.md"
_TEST = re.compile(r"(tests/[\w/]+\.py)(?:::(\w+))?")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def functions_of(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def spans(text: str) -> list[str]:
    """What stands between back-quotes within a line."""
    without_blocks = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.findall(r"`([^`\n]+)`", without_blocks)


def rows(text: str) -> list[list[str]]:
    """Cells of the tables, without their heads."""
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [cells for cells in found if cells[0] and not cells[0].startswith("-")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_test_that_a_document_names_exists(path: Path) -> None:
    named = _TEST.findall(path.read_text(encoding="utf-8"))

    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / file).is_file() or (test and test not in functions_of(ROOT / file))
    ]

    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_that_a_document_names_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    whole = path == PCI
    typed = [span for span in spans(text) if span.startswith("cardvault ")]
    typed += [line.strip() for line in re.findall(r"^\s*cardvault [^\n`]*$", _shell(text), re.MULTILINE)]

    wrong = {line: problem for line in typed if (problem := _problem(line, whole=whole)) is not None}

    assert wrong == {}


def _shell(text: str) -> str:
    return "\n".join(block.replace("\\\n", " ") for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL))


def _problem(line: str, *, whole: bool) -> str | None:
    words = shlex.split(line, comments=True)[1:]
    # `cardvault keys` names a group, `…` stands for options.
    return problem_with([word for word in words if word != "…"], whole=whole)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_link_leads_to_a_file(path: Path) -> None:
    links = [link for link in _LINK.findall(path.read_text(encoding="utf-8")) if "://" not in link]

    assert [link for link in links if not (path.parent / link).exists()] == []


def test_each_line_of_the_pci_map_says_what_shows_it_or_what_remains() -> None:
    found = rows(PCI.read_text(encoding="utf-8"))

    assert len(found) > 30
    for number, does, seen, yours in found:
        assert re.match(r"\d+\.\d", number), number
        assert bool(does) == bool(_TEST.search(seen) or "`cardvault" in seen), number
        assert does or yours, number


CLAIMS = (
    r"PCI(?: DSS)?[ -](?:compliant|certified)",
    r"(?:GDPR|CCPA)[ -]compliant",
    r"out of (?:PCI )?scope",
    r"zero[ -]knowledge",
    r"end-to-end encrypt",
    r"tamper-proof",
    r"(?:memory|RAM) is (?:wiped|cleared|zeroed)",
    r"FIPS 140",
    r"HSM-protected",
    r"quantum[ -]safe",
    r"constant[ -]time",
    r"penetration[ -]tested",
    r"split knowledge",
)
"""What must not be claimed; a sentence that denies it is well."""
_DENIES = re.compile(r"\b(?:no|not|nor|never|none|cannot|only an assessed)\b", re.IGNORECASE)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_nothing_is_claimed_that_nobody_can_hold(path: Path) -> None:
    sentences = re.split(r"(?<=[.;:|])\s", path.read_text(encoding="utf-8"))

    found = [s for s in sentences for claim in CLAIMS if re.search(claim, s, re.IGNORECASE) and not _DENIES.search(s)]

    assert found == []


@pytest.mark.parametrize("claim", ["It is PCI compliant.", "A tamper-proof audit log.", "Memory is wiped after use."])
def test_a_false_claim_would_be_found(claim: str) -> None:
    assert any(re.search(known, claim, re.IGNORECASE) for known in CLAIMS)
    assert not _DENIES.search(claim)


@pytest.mark.parametrize(
    "line",
    ["cardvault keys spin", "cardvault serve --confg x", "cardvault keys rotate --config x", "cardvault nothing"],
)
def test_a_command_that_does_not_exist_would_be_found(line: str) -> None:
    assert _problem(line, whole=True) is not None
