"""The leak scan finds every form that it claims to find, and nothing where there is nothing."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import sqlite3
import subprocess
import sys
import urllib.parse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support import canary
from tests.support.cards import Registry, fresh_security_code, made_up_digits
from tools import canary_scan
from vault.domain.brand import Brand
from vault.testing import leaks, numbers
from vault.testing import scan as leak_scan
from vault.testing.scan import Canary, Kind, Scanner

ROOT = Path(__file__).resolve().parents[2]


def _hex(raw: bytes) -> bytes:
    return raw.hex().encode()


def _grouped(digits: str, separator: str) -> bytes:
    return separator.join(digits[i : i + 4] for i in range(0, len(digits), 4)).encode()


def _amex(digits: str) -> bytes:
    return f"{digits[:4]} {digits[4:10]} {digits[10:]}".encode()


def _varint(digits: str) -> bytes:
    number, out = int(digits), bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes((number,))


def _integer(digits: str, order: str) -> bytes:
    return int(digits).to_bytes(8, "big" if order == "big" else "little")


def _base64(encode: Callable[[bytes], bytes], before: bytes, digits: str) -> bytes:
    return encode(before + digits.encode() + b"\xff\xfb")


def _digest(name: str, write: Callable[[bytes], bytes], digits: str) -> bytes:
    return write(hashlib.new(name, digits.encode()).digest())


DIGESTS = ("md5", "sha1", "sha256", "sha512")
DIGEST_FORMS: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "hex": _hex,
    "HEX": lambda raw: _hex(raw).upper(),
    "base64": base64.b64encode,
    "urlsafe base64": base64.urlsafe_b64encode,
    "base64 within something longer": lambda raw: base64.b64encode(b"?" + raw + b"?"),
}
FORMS: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "plain in a long run of digits": lambda d: b"17" * 20 + d.encode() + b"93" * 20,
    "spaced": lambda d: _grouped(d, " "),
    "spaced in fours, sixes and fives": _amex,
    "dashed": lambda d: _grouped(d, "-"),
    "dotted": lambda d: _grouped(d, "."),
    "every digit apart": lambda d: " ".join(d).encode(),
    "reversed": lambda d: d[::-1].encode(),
    "hex": lambda d: _hex(d.encode()),
    "HEX": lambda d: _hex(d.encode()).upper(),
    "hex, spaced": lambda d: d.encode().hex(" ").encode(),
    "hex, colons": lambda d: d.encode().hex(":").encode(),
    "hex of spaced": lambda d: _hex(_grouped(d, " ")),
    "hex of UTF-16 BE": lambda d: _hex(d.encode("utf-16-be")),
    "hex of UTF-16 LE": lambda d: _hex(d.encode("utf-16-le")),
    "\\x escapes": lambda d: "".join(f"\\x{ord(c):02x}" for c in d).encode(),
    "JSON \\u escapes": lambda d: "".join(f"\\u{ord(c):04x}" for c in d).encode(),
    "URL, encoded": lambda d: "".join(f"%{ord(c):02X}" for c in d).encode(),
    "URL, spaced": lambda d: urllib.parse.quote(_grouped(d, " ")).replace("%20", "%").encode(),
    "XML references": lambda d: "".join(f"&#{ord(c)};" for c in d).encode(),
    "list of bytes": lambda d: str(list(d.encode())).encode(),
    "UTF-16 LE": lambda d: d.encode("utf-16-le"),
    "UTF-16 BE": lambda d: d.encode("utf-16-be"),
    "UTF-32": lambda d: d.encode("utf-32-le"),
    "packed BCD": lambda d: bytes.fromhex(d + "0" * (len(d) % 2)),
    "packed BCD filled with F": lambda d: bytes.fromhex(d + "f" * (len(d) % 2)),
    "packed BCD, shifted": lambda d: bytes.fromhex("0" + d + "c" * (1 - len(d) % 2)),
    "big-endian integer": lambda d: _integer(d, "big"),
    "little-endian integer": lambda d: _integer(d, "little"),
    "varint": _varint,
    "base64 at 0": partial(_base64, base64.b64encode, b""),
    "base64 at 1": partial(_base64, base64.b64encode, b"\xfe"),
    "base64 at 2": partial(_base64, base64.b64encode, b"\xfe\xff"),
    "urlsafe base64 at 0": partial(_base64, base64.urlsafe_b64encode, b""),
    "urlsafe base64 at 1": partial(_base64, base64.urlsafe_b64encode, b"\xfe"),
    "urlsafe base64 at 2": partial(_base64, base64.urlsafe_b64encode, b"\xfe\xff"),
    "base64 of reversed": lambda d: base64.b64encode(d[::-1].encode()),
    "base64 of spaced": lambda d: base64.b64encode(b"x" + _grouped(d, " ")),
    "base64 of dashed": lambda d: base64.b64encode(b"xy" + _grouped(d, "-")),
    **{f"{name} {form}": partial(_digest, name, write) for name in DIGESTS for form, write in DIGEST_FORMS.items()},
}


def _brand_with(length: int) -> Brand:
    return next(brand for brand in Brand if length in brand.lengths)


NUMBERS = [made_up_digits(brand=_brand_with(length), length=length) for length in range(12, 20)]
SCANNER = Scanner([Canary(Kind.PAN, digits, f"len{len(digits)}") for digits in NUMBERS])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("digits", NUMBERS, ids=len)
def test_each_form_is_found_at_every_alignment(form: str, digits: str) -> None:
    planted = FORMS[form](digits)

    missed = [
        before
        for before in range(8)
        if f"len{len(digits)}" not in {c for _, _, c in SCANNER.scan_bytes(b"<" * before + planted + b">\n")}
    ]

    assert missed == []


def test_other_numbers_in_every_form_are_not_found() -> None:
    others = [made_up_digits() for _ in range(200)]
    text = b"\n".join(form(digits) for digits in others for form in FORMS.values())

    found = list(SCANNER.scan_bytes(text))

    assert found == []


def test_random_bytes_are_clean() -> None:
    noise = random.Random(7).randbytes(4 << 20)

    assert list(SCANNER.scan_bytes(noise)) == []


def test_a_number_across_two_blocks_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leak_scan, "_BLOCK", 8192)
    file = tmp_path / "log"
    file.write_bytes(b"x" * 8185 + NUMBERS[4].encode() + b"x" * 20_000)

    findings = SCANNER.scan([tmp_path])

    assert [(f.path, f.offset, f.canary) for f in findings] == [(file, 8185, "len16")]


def test_offsets_point_at_the_number(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"0 - 1: " + _grouped(NUMBERS[4], " ") + b" 9 9")

    findings = SCANNER.scan([tmp_path])

    assert [(f.offset, f.form) for f in findings] == [(7, "plain, spaced")]


def test_deleted_rows_and_the_wal_of_a_database_are_searched(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "cards.db", isolation_level=None)
    database.execute("pragma journal_mode=wal")
    database.execute("pragma secure_delete=off")
    database.execute("create table t (as_text text, as_number integer)")
    database.execute("insert into t values (?, ?)", (NUMBERS[4], int(NUMBERS[3])))
    database.execute("delete from t")

    found_in_wal = {f.canary for f in SCANNER.scan([tmp_path / "cards.db-wal"])}
    database.execute("pragma wal_checkpoint(truncate)")
    database.close()
    found_in_database = {f.canary for f in SCANNER.scan([tmp_path / "cards.db"])}

    assert found_in_wal == {"len16", "len15"}
    assert found_in_database == {"len16", "len15"}


def test_a_file_name_is_searched_and_not_repeated(tmp_path: Path) -> None:
    number = NUMBERS[4]
    directory = tmp_path / "artifacts"
    directory.mkdir()
    (directory / f"card-{number}.txt").write_text(number)

    findings = SCANNER.scan([directory])

    assert sorted(f.offset for f in findings) == [-1, 0]
    assert all(number not in str(f) for f in findings)


def test_a_labelled_security_code_is_found() -> None:
    code = fresh_security_code()
    scanner = Scanner([Canary(Kind.CODE, code, "code")])
    texts = (
        f'{{"security_code": "{code}"}}',
        f'{{\\"securityCode\\":\\"{code}\\"}}',
        f"CVV={code}",
        f"cvc2: {code}",
        f"SecurityCode('{code}')",
        hashlib.sha256(code.encode()).hexdigest(),
    )

    missed = [text for text in texts if not list(scanner.scan_bytes(text.encode()))]

    assert missed == []


def test_the_digits_of_a_security_code_alone_are_not_a_finding() -> None:
    code = fresh_security_code()
    scanner = Scanner([Canary(Kind.CODE, code, "code")])

    assert list(scanner.scan_bytes(f"took {code} ms; cvv must be 3 digits; security_code=0{code}1".encode())) == []


@pytest.mark.parametrize(
    "encode",
    [
        str.encode,
        lambda name: name.upper().encode(),
        lambda name: name.encode("utf-16-le"),
        lambda name: name.encode("utf-16-be"),
        lambda name: _hex(name.encode()),
        lambda name: base64.b64encode(b"??" + name.encode()),
    ],
    ids=["plain", "capitals", "UTF-16 LE", "UTF-16 BE", "hex", "base64"],
)
def test_a_holder_name_is_found(encode: Callable[[str], bytes]) -> None:
    name = "Qwrtzp Lkjhgfdsyx"
    scanner = Scanner([Canary(Kind.NAME, name, "name")])

    found = {c for _, _, c in scanner.scan_bytes(b"## " + encode(name) + b" ##")}

    assert found == {"name"}


def test_names_that_begin_alike_are_told_apart_at_every_alignment() -> None:
    names = [f"Qwrtzp Lkjhgfd{end}" for end in ("syx", "qay", "wsx", "edc")]
    scanner = Scanner([Canary(Kind.NAME, name, name[-3:]) for name in names])

    found = [[{c for _, _, c in scanner.scan_bytes(b"#" * at + n.encode() + b"#")} for at in range(8)] for n in names]

    assert found == [[{name[-3:]}] * 8 for name in names]


def test_a_registry_can_be_read_back_and_holds_nothing_that_the_scan_finds(tmp_path: Path) -> None:
    registry = Registry()
    for _ in range(200):
        registry.record(Kind.PAN, made_up_digits())

    path = registry.dump(tmp_path)

    assert leak_scan.read_registry(tmp_path) == registry.canaries()
    assert Scanner(registry.canaries()).scan([path]) == ()


def test_what_is_handed_out_is_remembered_once() -> None:
    registry = Registry()
    digits = made_up_digits()

    first, second = registry.record(Kind.PAN, digits), registry.record(Kind.PAN, digits)

    assert first.id == second.id
    assert len(registry.canaries()) == 1


def test_the_number_planted_on_purpose_is_found_and_is_no_leak(tmp_path: Path) -> None:
    registry = Registry()
    root = canary.begin(tmp_path / "artifacts")
    registry.record(Kind.PAN, made_up_digits())

    problems = canary.end(root=root, registry=registry)

    assert problems == ()
    assert not (root / leaks.PLANTED_NAME).exists()


def test_a_leak_is_a_problem(tmp_path: Path) -> None:
    registry = Registry()
    root = canary.begin(tmp_path / "artifacts")
    digits = made_up_digits()
    leaked = registry.record(Kind.PAN, digits)
    (tmp_path / "server.log").write_text(f"oops {digits}")

    problems = canary.end([tmp_path / "server.log"], root=root, registry=registry)

    assert len(problems) == 1
    assert leaked.id in problems[0]
    assert digits not in problems[0]


def test_the_planted_number_anywhere_else_is_a_leak(tmp_path: Path) -> None:
    registry = Registry()
    planted = leaks.plant(tmp_path, registry)
    (tmp_path / "copy.txt").write_bytes(planted.path.read_bytes())

    verdict = leaks.judge([tmp_path], registry.canaries(), planted)

    assert verdict.control_found
    assert [f.path.name for f in verdict.leaks] == ["copy.txt"]


def test_a_scan_that_does_not_find_the_planted_number_fails(tmp_path: Path) -> None:
    registry = Registry()
    planted = leaks.plant(tmp_path, registry)
    planted.path.write_text("nothing here")

    verdict = leaks.judge([tmp_path], registry.canaries(), planted)

    assert not verdict.is_clean
    assert verdict.problems() == ("the leak scan did not find the number that was planted for it",)


def test_many_canaries_are_searched_in_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leak_scan, "_CANARIES_AT_ONCE", 3)
    (tmp_path / "log").write_text("\n".join(NUMBERS))
    canaries = [Canary(Kind.PAN, digits, f"len{len(digits)}") for digits in NUMBERS]

    found = {f.canary for f in leak_scan.scan([tmp_path], canaries)}

    assert found == {c.id for c in canaries}


@pytest.mark.parametrize(("at_once", "shared"), [(len(NUMBERS), "files"), (1, "secrets")])
def test_processes_that_share_the_work_find_what_one_finds(
    at_once: int, shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    for number, digits in enumerate(NUMBERS):
        (tmp_path / f"log-{number}").write_text(digits * 2)
    (tmp_path / f"named-{NUMBERS[0]}").write_text("nothing but its name")
    canaries = [Canary(Kind.PAN, digits, f"len{len(digits)}") for digits in NUMBERS]
    alone = leak_scan.scan([tmp_path], canaries)

    monkeypatch.setattr(leak_scan, "_WORTH_SHARING", 1)
    monkeypatch.setattr(leak_scan, "_CANARIES_AT_ONCE", at_once)

    assert leak_scan.scan([tmp_path], canaries) == alone
    assert {finding.canary for finding in alone} == {canary.id for canary in canaries}


def test_no_secret_has_more_needles_than_there_are_numbers_for() -> None:
    canaries = [Canary(kind, "1234567890123456789", "x") for kind in Kind]

    assert max(len(tuple(leak_scan._long_needles(canary))) for canary in canaries) < leak_scan._MOST_NEEDLES


def test_a_process_that_fails_fails_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leak_scan, "_WORTH_SHARING", 1)
    (tmp_path / "log").write_text(NUMBERS[0])

    with pytest.raises(RuntimeError, match="failed"):
        leak_scan.scan([tmp_path], [Canary("no kind", NUMBERS[0], "x")])  # type: ignore[arg-type]


@pytest.mark.parametrize("place", [0, 100, (1 << 20) - 9, 1 << 20, (3 << 20) - 9, 3 << 20, (5 << 20) - 16])
def test_a_number_among_many_zeros_is_found(place: int, tmp_path: Path) -> None:
    digits = NUMBERS[-1].encode()
    for name, form in (("plain", digits), ("wide", digits.decode().encode("utf-16-le"))):
        data = bytearray(5 << 20)
        at = min(place, len(data) - len(form))
        data[at : at + len(form)] = form
        (tmp_path / name).write_bytes(data)

    findings = SCANNER.scan([tmp_path])

    assert {finding.path.name for finding in findings} == {"plain", "wide"}


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tools/canary_scan.py", *arguments], capture_output=True, text=True, check=False
    )


def test_the_command_says_found_without_saying_what(tmp_path: Path) -> None:
    registry = Registry()
    digits = made_up_digits()
    found = registry.record(Kind.PAN, digits)
    path = registry.dump(tmp_path / "registry")
    (tmp_path / "dirty").write_text(digits)

    result = _run(tmp_path / "dirty", "--registry", path)

    assert result.returncode == canary_scan.FOUND
    assert found.id in result.stdout
    assert digits[-4:] not in result.stdout.replace(str(tmp_path), "")


def test_the_command_exits_0_when_clean_and_2_on_misuse(tmp_path: Path) -> None:
    registry = Registry()
    registry.record(Kind.PAN, made_up_digits())
    path = registry.dump(tmp_path / "registry")
    (tmp_path / "empty.canaries").touch()

    assert _run(path, "--registry", path).returncode == canary_scan.CLEAN
    assert _run(path).returncode == canary_scan.TROUBLE
    assert _run(path, "--registry", tmp_path / "empty.canaries").returncode == canary_scan.TROUBLE
    assert _run(tmp_path / "absent", "--registry", path).returncode == canary_scan.TROUBLE


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read_is_trouble(tmp_path: Path) -> None:
    (tmp_path / "closed").touch(mode=0)

    with pytest.raises(PermissionError):
        SCANNER.scan([tmp_path])


@pytest.mark.parametrize("form", ["plain", "spaced", "dashed", "plain in a long run of digits"])
def test_a_live_number_in_a_source_file_is_found(form: str, tmp_path: Path) -> None:
    (tmp_path / "test_card.py").write_bytes(b'CARD = "' + FORMS[form](NUMBERS[4]) + b' 12/30"\n')

    findings = canary_scan.scan_repository([tmp_path / "test_card.py"])

    assert len(findings) >= 1


def test_published_numbers_digests_and_binary_files_are_no_live_numbers(tmp_path: Path) -> None:
    number = NUMBERS[4]
    (tmp_path / "published").write_text(" ".join(sorted(numbers.PUBLISHED_TEST_NUMBERS)).replace(" ", "\n"))
    (tmp_path / "lock").write_text("sha256:" + "ab" * 12 + number + "cd" * 12)
    (tmp_path / "binary").write_bytes(b"\0" + number.encode())
    (tmp_path / "timestamps").write_text("1767225600000000 2026-10-01 12:00:00")

    assert canary_scan.scan_repository(sorted(tmp_path.iterdir())) == ()


def test_published_numbers_are_valid_numbers() -> None:
    wrong = [n for n in numbers.PUBLISHED_TEST_NUMBERS if not canary_scan.luhn_ok(n)]

    assert wrong == []
