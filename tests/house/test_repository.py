"""No live card number is in the repository; only numbers that payment companies publish for tests (PCI DSS 6.5.5)."""

from __future__ import annotations

from pathlib import Path

from tests.support.cards import made_up_digits
from tools.canary_scan import repository_files, scan_repository
from vault.domain.brand import Brand

ROOT = Path(__file__).resolve().parents[2]


def test_no_file_of_the_repository_holds_what_could_be_a_live_card_number() -> None:
    files = repository_files(ROOT)

    findings = scan_repository(files)

    assert ROOT / "vault/domain/pan.py" in files
    assert [str(finding) for finding in findings] == []


def test_a_live_number_beside_the_sources_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text(f"My card: {made_up_digits(brand=Brand.VISA, length=16)}\n")

    findings = scan_repository(repository_files(tmp_path))

    assert len(findings) == 1
