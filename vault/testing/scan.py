"""The leak scan: searches bytes for every card number, security code and name that a test run made up.

It looks for each number as digits (with any separators between them, reversed, as escapes, in hexadecimal and in UTF-16
or UTF-32), in base64, in packed BCD, as an integer, and as an unkeyed digest. Files are read as raw bytes, so database
pages, WAL and free space are covered; compressed or encrypted content is not looked into. No digit of a finding is ever
printed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

REGISTRY_SUFFIX = ".canaries"

Place = tuple[Path, Path]
"""The root that was to be searched, and a file in it."""


class Kind(StrEnum):
    """What a canary stands for."""

    PAN = "pan"
    CODE = "code"
    NAME = "name"


@dataclass(frozen=True, slots=True)
class Canary:
    """One made-up secret of a test run; `id` is what a report calls it."""

    kind: Kind
    text: str = field(repr=False)
    id: str


def write_registry(path: Path, canaries: Iterable[Canary]) -> None:
    """Write them masked: each line is XORed with a stream of its own, so that no form of a number is in the file."""
    lines = []
    for canary in canaries:
        plain = json.dumps([canary.kind, canary.text, canary.id]).encode()
        nonce = secrets.token_bytes(16)
        lines.append(base64.b64encode(nonce + _mask(plain, nonce)).decode() + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="ascii")


def read_registry(path: Path) -> tuple[Canary, ...]:
    """What `write_registry` wrote; of a directory, all registries in it. Raises `ValueError` if it is none."""
    files = sorted(path.glob(f"*{REGISTRY_SUFFIX}")) if path.is_dir() else [path]
    canaries = []
    for file in files:
        for line in file.read_text(encoding="ascii").splitlines():
            raw = base64.b64decode(line, validate=True)
            kind, text, canary_id = json.loads(_mask(raw[16:], raw[:16]))
            canaries.append(Canary(Kind(kind), text, canary_id))
    return tuple(canaries)


def _mask(data: bytes, nonce: bytes) -> bytes:
    stream = hashlib.shake_256(nonce).digest(len(data))
    return bytes(a ^ b for a, b in zip(data, stream, strict=True))


# --- findings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Where a secret lies, in what form, and which one by its id. Offset -1 stands for a name in `path`."""

    path: Path
    offset: int
    form: str
    canary: str

    def __str__(self) -> str:
        if self.offset < 0:
            return f"{self.path}: a name here: {self.form}: {self.canary}"
        return f"{self.path}: offset {self.offset}: {self.form}: {self.canary}"


# --- the forms of a number ------------------------------------------------------------------------------------------

_DIGESTS = ("md5", "sha1", "sha256", "sha512")
_SHORTEST = 12
"""Digits of the shortest card number; every digit needle is found by its first twelve digits."""

_BETWEEN = rb" \-./_:,%\\xXuU;&#\x00"
_DIGIT_CANDIDATE = re.compile(rb"[0-9][0-9" + _BETWEEN + rb"]{11,}")
_NOT_DIGITS = bytes(sorted(set(range(256)) - set(b"0123456789")))
# Twelve consecutive digits in base64 hold three whole quanta of digits, whatever the alignment.
_QUANTUM = rb"[MNO][DTjz][AEIMQUYcgk][0-5w-z]"
_BASE64_CANDIDATE = re.compile(_QUANTUM * 3)
_BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_")
_URLSAFE = bytes.maketrans(b"-_", b"+/")
# Three digits alone are everywhere; three digits behind one of these words are a leak.
_LABEL_WORDS = (b"security", b"verification", b"cvv", b"cvc", b"csc")
_LABELLED_CODE = re.compile(
    rb"(?:security[ _.-]?code|card[ _.-]?verification[a-z _.-]{0,12}|cvv2?|cvc2?|csc)"
    rb"[\"'\\: =>(\x00]{1,12}(?<![0-9])([0-9]{3,4})(?![0-9])"
)


def _grouped(digits: str, separator: str) -> str:
    return separator.join(digits[i : i + 4] for i in range(0, len(digits), 4))


def _base64_cores(raw: bytes) -> Iterator[bytes]:
    """What base64 shows of `raw` at each of the three alignments, without letters that its neighbours decide."""
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + raw)
        end = (shift + len(raw)) * 8 // 6
        yield text[(shift * 8 + 5) // 6 : end]


def _digit_needles(digits: str) -> Iterator[tuple[str, str]]:
    yield "plain", digits
    if digits != digits[::-1]:
        yield "reversed", digits[::-1]
    yield "hex", digits.encode().hex()
    yield "hex of spaced", _grouped(digits, " ").encode().hex()
    yield "hex of UTF-16", digits.encode("utf-16-be").hex()[2:]  # what both byte orders share
    yield "character codes", "".join(str(ord(d)) for d in digits)


def _digest_needles(text: str) -> Iterator[tuple[str, bytes]]:
    for name in _DIGESTS:
        raw = hashlib.new(name, text.encode(), usedforsecurity=False).digest()
        yield name, raw
        yield f"{name} in hex", raw.hex().encode()
        yield f"{name} in HEX", raw.hex().upper().encode()
        for core in _base64_cores(raw):
            yield f"{name} in base64", core
            if set(core) & set(b"+/"):
                yield f"{name} in urlsafe base64", core.translate(bytes.maketrans(b"+/", b"-_"))


def _long_needles(canary: Canary) -> Iterator[tuple[str, bytes]]:
    """Byte strings of at least 15 bytes that stand for this canary."""
    match canary.kind:
        case Kind.PAN:
            yield from _digest_needles(canary.text)
            for separator, form in ((" ", "spaced in base64"), ("-", "dashed in base64")):
                for core in _base64_cores(_grouped(canary.text, separator).encode()):
                    yield form, core
        case Kind.CODE:
            yield from _digest_needles(canary.text)
        case Kind.NAME:
            raw = canary.text.encode()
            yield "name", raw
            yield "name in capitals", raw.upper()
            yield "name in UTF-16", canary.text.encode("utf-16-le")
            yield "name in UTF-16", canary.text.encode("utf-16-be")
            yield "name in hex", raw.hex().encode()
            yield "name in HEX", raw.hex().upper().encode()
            for core in _base64_cores(raw):
                yield "name in base64", core


@dataclass(frozen=True, slots=True)
class _Masked:
    """A short byte string some of whose bits may be anything."""

    form: str
    value: int
    mask: int
    length: int

    @classmethod
    def of_nibbles(cls, form: str, nibbles: str) -> _Masked:
        """Hexadecimal with `?` for a nibble that may be anything."""
        value = int(nibbles.replace("?", "0"), 16)
        mask = int("".join("0" if n == "?" else "f" for n in nibbles), 16)
        return cls(form, value, mask, len(nibbles) // 2)

    def matches(self, data: bytes, at: int) -> bool:
        found = data[at : at + self.length] if at >= 0 else b""
        return len(found) == self.length and int.from_bytes(found, "big") & self.mask == self.value

    def words(self, phase: int) -> tuple[int, Iterator[int]]:
        """Of the four-byte words at indexes equal to `phase` modulo 4, the best known: its index and its values."""
        best = min(range(phase - 4, self.length, 4), key=lambda at: self._part(at)[1].count("?"))
        return best, _expanded(self._part(best)[1])

    def _part(self, at: int) -> tuple[int, str]:
        value, mask = f"{self.value:0{self.length * 2}x}", f"{self.mask:0{self.length * 2}x}"
        nibbles = "".join(v if m == "f" else "?" for v, m in zip(value, mask, strict=True))
        padded = "?" * 8 + nibbles + "?" * 8
        start = 8 + at * 2
        return at, padded[start : start + 8]


def _expanded(nibbles: str) -> Iterator[int]:
    free = nibbles.count("?")
    for number in range(16**free):
        digits = iter(f"{number:0{free}x}" if free else "")
        filled = "".join(next(digits) if n == "?" else n for n in nibbles)
        yield int.from_bytes(bytes.fromhex(filled), sys.byteorder)


def _short_needles(digits: str) -> Iterator[_Masked]:
    odd = len(digits) % 2
    yield _Masked.of_nibbles("packed BCD", digits + "?" * odd)
    yield _Masked.of_nibbles("packed BCD", "?" + digits + "?" * (1 - odd))
    number = int(digits)
    size = max(6, (number.bit_length() + 7) // 8)
    for order in ("big", "little"):
        raw = number.to_bytes(size, "big" if order == "big" else "little")
        yield _Masked.of_nibbles(f"{order}-endian integer", raw.hex())
    varint = bytearray()
    while number:
        varint.append(number & 0x7F | (0x80 if number > 0x7F else 0))
        number >>= 7
    yield _Masked.of_nibbles("varint", varint.hex())


# --- the search -----------------------------------------------------------------------------------------------------

_BLOCK = 1 << 20
_OVERLAP = 4096
_PATCH = 64 << 10
_CANARIES_AT_ONCE = 16_000
"""In one table, which then takes about 500 MB."""
_MOST_NEEDLES = 256
"""More than `_long_needles` makes of one canary, and a power of two."""
_WORTH_SHARING = 128 << 20
"""Bytes to be read, in all passes together, from which on several processes share the files."""


class Scanner:
    """Searches for all canaries at once, at 15 to 50 MB/s for a thousand cards, hardly slower for more.

    Digits and base64 of digits are picked out by regular expressions and looked up in a table. Everything else is
    found by words: of a needle of 15 bytes or more, one 8-byte word lies on a multiple of eight wherever the needle
    begins, so with all eight of its possible words in a set it is enough to look up the aligned words of the data.
    """

    def __init__(self, canaries: Sequence[Canary]) -> None:
        self._canaries = tuple(canaries)
        self._numbers: dict[str, list[tuple[str, str, str]]] = {}
        # Hundreds of words for each card: numbers take a quarter of the room that lists of tuples would.
        self._long: dict[int, int | list[int]] = {}
        self._short: dict[int, list[tuple[_Masked, int, str]]] = {}
        self._codes = {canary.text.encode(): canary.id for canary in canaries if canary.kind is Kind.CODE}
        seen: set[tuple[Kind, str]] = set()
        for index, canary in enumerate(self._canaries):
            if (canary.kind, canary.text) in seen:
                continue
            seen.add((canary.kind, canary.text))
            self._learn(index, canary)
        self._long_words = self._long.keys()
        self._short_words = self._short.keys()

    def _learn(self, index: int, canary: Canary) -> None:
        if canary.kind is Kind.PAN:
            for form, needle in _digit_needles(canary.text):
                self._numbers.setdefault(needle[:_SHORTEST], []).append((needle, form, canary.id))
            for masked in _short_needles(canary.text):
                for phase in range(4):
                    at, words = masked.words(phase)
                    for word in words:
                        self._short.setdefault(word, []).append((masked, at, canary.id))
        for number, (_, raw) in enumerate(_long_needles(canary)):
            for shift in range(8):
                word = int.from_bytes(raw[shift : shift + 8], sys.byteorder)
                packed = (index * _MOST_NEEDLES + number) << 3 | shift
                known = self._long.setdefault(word, packed)
                if isinstance(known, list):
                    known.append(packed)
                elif known != packed:
                    self._long[word] = [known, packed]

    def scan(self, roots: Iterable[Path]) -> tuple[Finding, ...]:
        """Findings in files and, recursively, directories. Raises `OSError` for a root or file that cannot be read."""
        return self.scan_places(places_below(roots))

    def scan_places(self, places: Iterable[Place]) -> tuple[Finding, ...]:
        """Findings in files, each with the root under which it was found."""
        found: set[Finding] = set()
        for root, path in places:
            in_name = [
                Finding(root, -1, form, canary)
                for _, form, canary in self.scan_bytes(os.fsencode(path.relative_to(root.parent)))
            ]
            found.update(in_name)
            # A report that named such a file would itself be a leak, so what is in it goes by the root's name.
            found.update(self.scan_file(path, shown=root if in_name else path))
        return tuple(sorted(found))

    def scan_file(self, path: Path, *, shown: Path) -> Iterator[Finding]:
        """Findings in one file's bytes, reported under the name `shown`."""
        try:
            with path.open("rb") as file:
                base, tail = 0, b""
                while block := file.read(_BLOCK):
                    data = tail + block
                    searched = data
                    if not block.lstrip(b"\0"):
                        # Databases fill files with zeros. What began before them may end in the first few.
                        searched = data[: len(tail) + _OVERLAP] if tail.lstrip(b"\0") else b""
                    for offset, form, canary in self.scan_bytes(searched):
                        yield Finding(shown, base + offset, form, canary)
                    # What spans two blocks is found in the second; what lies whole in the overlap, twice.
                    keep = min(len(data), _OVERLAP)
                    base, tail = base + len(data) - keep, data[-keep:]
        except FileNotFoundError:
            return  # gone since it was listed: a temporary file of a process that still runs

    def scan_bytes(self, data: bytes) -> Iterator[tuple[int, str, str]]:
        """Offset, form and canary id of each finding in `data`."""
        for match in _DIGIT_CANDIDATE.finditer(data):
            yield from self._in_digits(match.group(), match.start())
        for match in _BASE64_CANDIDATE.finditer(data):
            yield from self._in_base64(data, match.start(), match.end())
        if self._codes:
            yield from self._labelled_codes(data)
        yield from self._by_words(data)

    def _labelled_codes(self, data: bytes) -> Iterator[tuple[int, str, str]]:
        lowered = data.lower()
        if any(word in lowered for word in _LABEL_WORDS):
            for match in _LABELLED_CODE.finditer(lowered):
                canary = self._codes.get(match.group(1))
                if canary is not None:
                    yield match.start(1), "labelled security code", canary

    def _in_digits(self, raw: bytes, start: int) -> Iterator[tuple[int, str, str]]:
        digits = raw.translate(None, _NOT_DIGITS).decode("ascii")
        known = self._numbers
        for at in [i for i in range(len(digits) - _SHORTEST + 1) if digits[i : i + _SHORTEST] in known]:
            for needle, form, canary in known[digits[at : at + _SHORTEST]]:
                if digits.startswith(needle, at):
                    offset, end = _positions(raw, at, at + len(needle) - 1)
                    yield start + offset, _with_separators(form, raw[offset : end + 1]), canary

    def _in_base64(self, data: bytes, start: int, end: int) -> Iterator[tuple[int, str, str]]:
        for _ in range(2):
            if start >= 4 and _BASE64.issuperset(data[start - 4 : start]):
                start -= 4
        while end - start < 64 and end < len(data) and data[end] in _BASE64:
            end += 1
        text = data[start:end].translate(_URLSAFE)
        text += b"A" * (-len(text) % 4)
        decoded = base64.b64decode(text)
        for match in re.finditer(rb"[0-9]{12,}", decoded):
            for offset, form, canary in self._in_digits(match.group(), match.start()):
                yield start + offset * 4 // 3, f"{form} in base64", canary

    def _by_words(self, data: bytes) -> Iterator[tuple[int, str, str]]:
        padded = memoryview(data + bytes(-len(data) % 8))
        for at in range(0, len(padded), _PATCH):
            patch = padded[at : at + _PATCH]
            long = patch.cast("Q")
            if not self._long_words.isdisjoint(long):
                for index in [i for i, word in enumerate(long) if word in self._long_words]:
                    yield from self._check_long(data, at + index * 8, long[index])
            short = patch.cast("I")
            if not self._short_words.isdisjoint(short):
                for index in [i for i, word in enumerate(short) if word in self._short_words]:
                    yield from self._check_short(data, at + index * 4, short[index])

    def _check_long(self, data: bytes, position: int, word: int) -> Iterator[tuple[int, str, str]]:
        known = self._long[word]
        for packed in known if isinstance(known, list) else [known]:
            index, number = divmod(packed >> 3, _MOST_NEEDLES)
            canary = self._canaries[index]
            form, raw = tuple(_long_needles(canary))[number]
            start = position - (packed & 7)
            if start >= 0 and data.startswith(raw, start):
                yield start, form, canary.id

    def _check_short(self, data: bytes, position: int, word: int) -> Iterator[tuple[int, str, str]]:
        for masked, index, canary in self._short[word]:
            if masked.matches(data, position - index):
                yield position - index, masked.form, canary


def scan(roots: Sequence[Path], canaries: Sequence[Canary]) -> tuple[Finding, ...]:
    """As `Scanner.scan`, in several passes where there are so many canaries that one table would be too large.

    Where that is a lot of work, processes share it; the secrets go to them through pipes. Raises `RuntimeError` if one
    of them does not come to its end.
    """
    places = list(places_below(roots))
    passes = -(-len(canaries) // _CANARIES_AT_ONCE)
    sizes = {place: _size(place[1]) for place in places}
    if sum(sizes.values()) * passes < _WORTH_SHARING:
        return scan_in_passes(places, canaries)
    processes = os.cpu_count() or 1
    if passes >= processes:
        # Each looks for some of the secrets in all files: making the tables is no small part of the work.
        return _shared([(places, canaries[number::processes]) for number in range(processes)])
    # Each looks for all in some files, dealt out by size, so that all are done at about the same time.
    places.sort(key=sizes.__getitem__)
    processes = min(processes, len(places))
    return _shared([(places[number::processes], canaries) for number in range(processes)])


def scan_in_passes(places: Sequence[Place], canaries: Sequence[Canary]) -> tuple[Finding, ...]:
    """What is found in these files, pass after pass, in this process."""
    found: set[Finding] = set()
    for at in range(0, len(canaries), _CANARIES_AT_ONCE):
        found.update(Scanner(canaries[at : at + _CANARIES_AT_ONCE]).scan_places(places))
    return tuple(sorted(found))


def _shared(parts: Sequence[tuple[Sequence[Place], Sequence[Canary]]]) -> tuple[Finding, ...]:
    def run(part: tuple[Sequence[Place], Sequence[Canary]]) -> list[Finding]:
        places, canaries = part
        task = {
            "canaries": [(canary.kind, canary.text, canary.id) for canary in canaries],
            "places": [(os.fspath(root), os.fspath(path)) for root, path in places],
        }
        done = subprocess.run(
            [sys.executable, "-m", "vault.testing.scan_part"],
            input=json.dumps(task).encode(),
            stdout=subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            raise RuntimeError("a process of the leak scan failed; what it says stands above")
        return [Finding(Path(path), *more) for path, *more in json.loads(done.stdout)]

    with ThreadPoolExecutor(len(parts)) as threads:
        return tuple(sorted({finding for found in threads.map(run, parts) for finding in found}))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _positions(raw: bytes, first: int, last: int) -> tuple[int, int]:
    """Where the digits number `first` and `last` of `raw` stand."""
    places = [i for i, byte in enumerate(raw) if 0x30 <= byte <= 0x39]
    return places[first], places[last]


def _with_separators(form: str, raw: bytes) -> str:
    between = set(raw) - set(b"0123456789")
    if not between:
        return form
    if 0 in between:
        return f"{form} in UTF-16 or UTF-32"
    names = {b" "[0]: "spaced", b"-"[0]: "dashed", b"%"[0]: "URL-encoded", b"\\"[0]: "escaped"}
    how = sorted({names.get(byte, "separated") for byte in between if byte not in b"xXuU"})
    return f"{form}, {' and '.join(how)}"


def places_below(roots: Iterable[Path]) -> Iterator[Place]:
    """Every regular file below. Raises `OSError` for a root or directory that cannot be read."""
    for root in roots:
        root.lstat()
        yield from ((root, path) for path in _files_below(root))


def _files_below(root: Path) -> Iterator[Path]:
    if root.is_file() and not root.is_symlink():
        yield root
        return
    for directory, _, names in os.walk(root, onerror=_raise_unless_gone):
        for name in names:
            path = Path(directory, name)
            try:
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path
            except FileNotFoundError:
                continue


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
