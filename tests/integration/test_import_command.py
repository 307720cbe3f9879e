"""`cardvault import` against real servers: what is good is stored once, what is bad is named, and no digit is shown."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.cards import TypedCard, fresh_digits, fresh_typed_card
from tests.support.installation import Installation, eventually, installed, uri_of
from tests.support.raw import rows, scalar
from tests.support.requests import TIMEOUT, grant_request, new_customer, new_order, redeem_request
from tests.support.seal import seal
from vault.embedded.openbao import OpenBao
from vault.v1 import account_pb2

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
HEADER = "customer_id,pan,exp_month,exp_year,holder_name,terms_version,terms_sha256,uses,channel,locale"
SHA256 = hashlib.sha256(b"keep my card").hexdigest()
YEAR = datetime.now(UTC).year + 3


@dataclass
class Move:
    """An installation that cards move into, and what was printed and written meanwhile."""

    directory: Path
    installation: Installation
    openbao: OpenBao
    secrets: list[str]
    printed: list[str]

    @property
    def url(self) -> str:
        return self.installation.database_url

    def card(self) -> tuple[TypedCard, str]:
        """A card and its customer, remembered for the search at the end."""
        card = fresh_typed_card()
        self.secrets += [card.pan, card.holder_name]
        return card, new_customer()

    def digits(self) -> str:
        """A valid number for where none belongs."""
        self.secrets.append(pan := fresh_digits())
        return pan

    def file(self, lines: Sequence[str] | bytes, name: str = "cards.csv") -> Path:
        """Lines below the header, or the whole file as bytes."""
        path = self.directory / name
        path.write_bytes(lines if isinstance(lines, bytes) else "\n".join((HEADER, *lines, "")).encode())
        path.chmod(0o600)
        return path

    def arguments(self, file: Path, *more: str, name: str = "first") -> list[str]:
        client = self.installation.ca.issue_client(uri_of("checkout"))
        return [
            *("import", str(file), "--name", name, "--address", f"localhost:{self.installation.servers[0].port}"),
            *("--certificate", str(client.cert_file), "--private-key", str(client.key_file)),
            *("--ca", str(self.installation.ca.ca_file), *more),
        ]

    def type(self, file: Path, *more: str, name: str = "first") -> tuple[int, Any, str]:
        """Exit code, facts and what stderr says."""
        return self.type_bare(*self.arguments(file, "--json", *more, name=name))

    def type_bare(self, *arguments: str) -> tuple[int, Any, str]:
        done = self.installation.command(*arguments)
        self.printed += [done.stdout, done.stderr]
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout, done.stderr

    def pay(self, customer: str, token: str) -> str:
        order = new_order()
        checkout, processor = self.installation.client("checkout"), self.installation.client("processor")
        request = grant_request(order=order, customer=customer, token=token)
        grant = checkout.checkout.IssueGrant(request, timeout=TIMEOUT).grant
        return str(processor.processor.Detokenize(redeem_request(grant, order), timeout=TIMEOUT).pan)

    def stored(self) -> dict[str, tuple[str, str]]:
        """Token and last four digits by customer."""
        found = rows(self.url, "SELECT customer_id, token, last4 FROM cards")
        assert len({customer for customer, _, _ in found}) == len(found), "a customer has a card twice"
        return {customer: (token, last4) for customer, token, last4 in found}


def line(typed: TypedCard, customer: str, /, **changes: str) -> str:
    facts = {
        "customer_id": customer,
        "pan": typed.pan,
        "exp_month": str(typed.month),
        "exp_year": str(typed.year),
        "holder_name": typed.holder_name,
        "terms_version": "2026-01",
        "terms_sha256": SHA256,
        "uses": "customer_initiated recurring",
        "channel": "web",
        "locale": "de-AT",
    }
    return ",".join((facts | changes).values())


def as_json(typed: TypedCard, customer: str, /, **changes: Any) -> str:
    names, values = HEADER.split(","), line(typed, customer).split(",")
    return json.dumps(dict(zip(names, values, strict=True)) | changes)


@pytest.fixture
def move(tmp_path: Path, openbao: OpenBao, database_url: str) -> Iterator[Move]:
    """Two servers on PostgreSQL, one on SQLite. At the end nothing that was printed or written shows a card."""
    with installed(tmp_path / "shop", openbao, database_url) as installation:
        installation.serve()
        yield (found := Move(tmp_path, installation, openbao, [], []))
    _nothing_secret(found)


def _nothing_secret(move: Move) -> None:
    for source in move.directory.glob("cards.*"):
        source.unlink()  # the one place where the numbers belong
    written = [path.read_text() for path in move.directory.glob("*.out")]
    logs = [server.log.read_text() for server in move.installation.servers]
    for text in (*move.printed, *written, *logs):
        assert [number for number, secret in enumerate(move.secrets) if secret in text] == []


def out(move: Move, name: str) -> Path:
    return move.directory / f"{name}.out"


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


# --- what is good ---------------------------------------------------------------------------------------------------


def test_a_file_moves_in_and_the_mapping_leads_to_cards_that_open(move: Move) -> None:
    cards = [move.card() for _ in range(450)]
    tokens = out(move, "tokens")

    code, facts, _ = move.type(move.file([line(*each) for each in cards]), "--tokens", str(tokens))

    assert (code, facts["stored"], facts["refused"]) == (OK, 450, 0)
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o600
    with tokens.open(newline="") as file:
        mapping = list(csv.DictReader(file))
    assert [int(each["line"]) for each in mapping] == list(range(2, 452))
    stored = move.stored()
    for (card, customer), each in zip(cards, mapping, strict=True):
        assert each["customer_id"] == customer
        assert (each["token"], each["last4"]) == stored[customer] == (each["token"], card.last4)
    assert move.pay(cards[7][1], mapping[7]["token"]) == cards[7][0].pan


def test_consent_is_recorded_as_the_line_says_with_the_vaults_own_time(move: Move) -> None:
    card, customer = move.card()
    began = datetime.now(UTC)
    until = as_json(card, customer, agreed_until="2099-01-02T03:04:05+02:00", uses=["recurring", "unscheduled"])

    code, _, err = move.type(move.file(until.encode(), "cards.jsonl"))

    assert code == OK, err
    checkout = move.installation.client("account").account
    [shown] = checkout.ListCards(account_pb2.ListCardsRequest(customer_id=customer), timeout=TIMEOUT).cards
    assert shown.consent.agreed_until.ToDatetime(UTC) == datetime(2099, 1, 2, 1, 4, 5, tzinfo=UTC)
    assert list(shown.consent.uses) == [2, 4]
    assert abs((shown.consent.agreed_at.ToDatetime(UTC) - began).total_seconds()) < 60


ODD_BUT_GOOD: dict[str, Callable[[list[str]], bytes]] = {
    "with a byte order mark": lambda lines: b"\xef\xbb\xbf" + "\n".join((HEADER, *lines)).encode(),
    "with CRLF": lambda lines: "\r\n".join((HEADER, *lines, "")).encode(),
    "with empty lines": lambda lines: "\n\n".join((HEADER, "", *lines, "  ", "")).encode(),
    "with every field quoted": lambda lines: "\n".join(
        ",".join(f'"{cell}"' for cell in each.split(",")) for each in (HEADER, *lines)
    ).encode(),
    "without an end of line": lambda lines: "\n".join((HEADER, *lines)).encode(),
    "with blanks around": lambda lines: "\n".join(each.replace(",", " , ") for each in (HEADER, *lines)).encode(),
}


@pytest.mark.parametrize("how", sorted(ODD_BUT_GOOD))
def test_a_file_may_be_written_in_every_usual_way(move: Move, how: str) -> None:
    cards = [move.card() for _ in range(3)]

    code, facts, err = move.type(move.file(ODD_BUT_GOOD[how]([line(*each) for each in cards])))

    assert (code, facts["stored"]) == (OK, 3), err
    assert {customer: last4 for customer, (_, last4) in move.stored().items()} == {
        customer: card.last4 for card, customer in cards
    }


# --- what is bad ----------------------------------------------------------------------------------------------------


def bad_lines(move: Move) -> dict[str, tuple[str | bytes, str]]:
    """Lines, each with the field at fault."""

    def one(**changes: str) -> str:
        return line(*move.card(), **changes)

    pan = move.digits()
    wrong = pan[:-1] + str((int(pan[-1]) + 1) % 10)
    return {
        "a wrong digit": (one(pan=wrong), "card.pan"),
        "spaces in the number": (one(pan=" ".join((pan[:4], pan[4:8], pan[8:12], pan[12:]))), "card.pan"),
        "no number": (one(pan=""), "pan"),
        "a number as customer": (one(customer_id=move.digits()), "customer_id"),
        "a number as name": (one(holder_name=move.digits()), "card.holder_name"),
        "a number as month": (one(exp_month=move.digits()), "exp_month"),
        "a number as year": (one(exp_year=move.digits()), "exp_year"),
        "a number as hash": (one(terms_sha256=move.digits()), "terms_sha256"),
        "a number as use": (one(uses=move.digits()), "uses"),
        "a number as channel": (one(channel=move.digits()), "channel"),
        "a number as locale": (one(locale=move.digits()), "consent.locale"),
        "a number as terms": (one(terms_version=move.digits()), "consent.terms_version"),
        "a past expiry": (one(exp_year="2020"), "card.expiry"),
        "a month too many": (one(exp_month="13"), "card.expiry.month"),
        "no consent": (one(terms_version="", terms_sha256="", uses="", channel=""), "terms_sha256"),
        "a column too few": (one().rpartition(",")[0], ""),
        "a column too many": (one() + ",more", ""),
        "a quote that does not end": ('"' + one(), ""),
        "a quote in the middle": (one(holder_name='"A"B'), ""),
        "a huge line": (one(holder_name="x" * 20_000), ""),
        "not UTF-8": (one().encode() + b"\xff\xfe", ""),
        "a zero byte": (one(holder_name="a\0b"), ""),
        "only a number": (move.digits(), ""),
    }


def test_every_bad_line_is_named_by_number_and_field_and_the_good_ones_are_stored(move: Move) -> None:
    bad = bad_lines(move)
    good = [move.card() for _ in range(len(bad))]
    raws = [HEADER.encode()]
    for (text, _), each in zip(bad.values(), good, strict=True):
        raws += [text if isinstance(text, bytes) else text.encode(), line(*each).encode()]
    refused = out(move, "refused")

    code, facts, err = move.type(move.file(b"\n".join(raws)), "--refused", str(refused))

    assert (code, facts["stored"], facts["refused"]) == (FAILED, len(good), len(bad)), err
    reported = lines_of(refused)
    assert {each["line"]: each["field"] for each in reported} == {
        2 + 2 * place: field for place, (_, field) in enumerate(bad.values())
    }
    assert {each["code"] for each in reported} == {"INVALID_ARGUMENT"}
    assert all(each["message"] for each in reported)
    assert stat.S_IMODE(refused.stat().st_mode) == 0o600
    assert set(move.stored()) == {customer for _, customer in good}


def test_every_bad_json_line_is_named_and_the_good_one_is_stored(move: Move) -> None:
    card, customer = move.card()
    lines = [
        as_json(*move.card(), cvc="123"),
        as_json(*move.card(), pan=int(move.digits())),
        as_json(*move.card(), uses=[1]),
        as_json(*move.card(), uses={}),
        as_json(*move.card(), exp_month=True),
        as_json(*move.card(), exp_month=1.5),
        as_json(*move.card(), agreed_until="2099-01-02"),
        as_json(*move.card(), agreed_until="2020-01-02T03:04:05Z"),
        as_json(*move.card(), holder_name="\ud800"),
        as_json(*move.card(), idempotency_key=move.digits()),
        '{"pan": "1", "pan": "2"}',
        "[" * 5000,
        "[]",
        "null",
        move.digits(),
        '{"exp_year": ' + "9" * 6000 + "}",
        as_json(*move.card())[:-5],
    ]
    refused = out(move, "refused")

    file = move.file("\n".join((*lines, as_json(card, customer))).encode(), "cards.jsonl")
    code, facts, err = move.type(file, "--refused", str(refused))

    assert (code, facts["stored"], facts["refused"]) == (FAILED, 1, len(lines)), err
    assert [each["line"] for each in lines_of(refused)] == list(range(1, len(lines) + 1))
    assert set(move.stored()) == {customer}


def test_a_dry_run_says_the_same_of_a_file_and_stores_nothing(move: Move) -> None:
    bad = [text for text, _ in bad_lines(move).values() if isinstance(text, str)]
    file = move.file([*bad, line(*move.card())])
    dry, wet = out(move, "dry"), out(move, "wet")

    code, facts, _ = move.type_bare(
        "import", str(file), "--name", "first", "--dry-run", "--json", "--refused", str(dry)
    )
    before = move.stored()
    move.type(file, "--refused", str(wet))

    assert (code, facts["checked"], facts["refused"], before) == (FAILED, 1, len(bad), {})
    assert lines_of(dry) == lines_of(wet)


def unfit_files(move: Move) -> dict[str, bytes]:
    good = line(*move.card())
    return {
        "no header": "\n".join((good, line(*move.card()))).encode(),
        "a header without numbers": f"{HEADER.replace('pan,', '')}\n{good}".encode(),
        "a column twice": f"{HEADER},pan\n{good}".encode(),
        "a security code": f"{HEADER},cvc\n{good},123".encode(),
        "semicolons": f"{HEADER}\n{good}".replace(",", ";").encode(),
        "UTF-16": f"{HEADER}\n{good}".encode("utf-16"),
        "UTF-16 without a mark": f"{HEADER}\n{good}".encode("utf-16-le"),
        "nothing": b"",
        "one huge line": b"x" * 100_000,
    }


def test_a_file_that_cannot_be_right_is_refused_as_a_whole(move: Move) -> None:
    for what, raw in unfit_files(move).items():
        code, _, err = move.type(move.file(raw))

        assert code == USAGE, what
        assert "cards.csv" in err, what
    assert move.stored() == {}


def test_files_are_not_written_over_and_mistakes_of_usage_end_with_2(move: Move) -> None:
    file = move.file([line(*move.card())])
    out(move, "there").write_text("precious")

    def code_of(*arguments: str) -> int:
        return move.type_bare(*arguments)[0]

    assert code_of(*move.arguments(file, "--refused", str(out(move, "there")))) == USAGE
    assert code_of(*move.arguments(file, "--tokens", str(out(move, "there")))) == USAGE
    assert code_of(*move.arguments(file, name=move.digits())) == USAGE
    assert code_of(*move.arguments(file, name="with blank")) == USAGE
    assert code_of("import", str(file), "--name", "first") == USAGE
    assert code_of(*move.arguments(move.directory / "absent.csv")) == USAGE
    assert code_of(*move.arguments(move.file([], "cards.txt"))) == USAGE
    assert out(move, "there").read_text() == "precious"
    assert move.stored() == {}


# --- once and again -------------------------------------------------------------------------------------------------


def test_a_second_run_gives_the_same_mapping_and_adds_nothing(move: Move) -> None:
    cards = [move.card() for _ in range(30)]
    # A customer's card twice in the file, and the same line twice.
    file = move.file([line(*each) for each in (*cards, *cards[:5])])
    first, second = out(move, "first"), out(move, "second")

    once = move.type(file, "--tokens", str(first))
    after_one = move.stored(), scalar(move.url, "SELECT count(*) FROM consents")
    twice = move.type(file, "--tokens", str(second))

    assert (once[0], twice[0]) == (OK, OK)
    assert once[1]["stored"] == twice[1]["stored"] == 35
    assert second.read_text() == first.read_text()
    assert (move.stored(), scalar(move.url, "SELECT count(*) FROM consents")) == after_one


def test_under_another_name_cards_keep_their_tokens(move: Move) -> None:
    file = move.file([line(*move.card()) for _ in range(10)])
    move.type(file)
    before = move.stored()

    code, _, _ = move.type(file, name="second")

    assert (code, move.stored()) == (OK, before)


def test_another_file_under_the_same_name_is_refused_line_by_line(move: Move) -> None:
    move.type(move.file([line(*move.card()) for _ in range(3)]))
    before = move.stored()
    refused = out(move, "refused")

    code, _, _ = move.type(move.file([line(*move.card()) for _ in range(3)]), "--refused", str(refused))

    assert code == FAILED
    assert {each["code"] for each in lines_of(refused)} == {"ALREADY_EXISTS"}
    assert move.stored() == before


def test_after_a_kill_in_the_middle_a_second_run_ends_as_one_run_would(move: Move) -> None:
    cards = [move.card() for _ in range(1500)]
    file = move.file([line(*each) for each in cards])
    killed = start(move, move.arguments(file, "--tokens", str(out(move, "killed"))))
    eventually(lambda: scalar(move.url, "SELECT count(*) FROM cards") > 200)

    killed.kill()
    _drain(move, killed)
    between = move.stored()
    code, facts, err = move.type(file, "--tokens", str(out(move, "tokens")))

    assert 200 < len(between) < 1500, "the kill came too late or too early"
    assert (code, facts["stored"]) == (OK, 1500), err
    stored = move.stored()
    assert between.items() <= stored.items()
    assert {customer: last4 for customer, (_, last4) in stored.items()} == {c: card.last4 for card, c in cards}
    assert scalar(move.url, "SELECT count(*) FROM consents") == 1500
    with out(move, "tokens").open(newline="") as mapping:
        assert {each["customer_id"]: each["token"] for each in csv.DictReader(mapping)} == {
            customer: token for customer, (token, _) in stored.items()
        }


def start(move: Move, arguments: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vault", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})


def _drain(move: Move, process: subprocess.Popen[str]) -> str:
    printed, err = process.communicate(timeout=60)
    move.printed += [printed, err]
    return err


def test_ctrl_c_stops_soon_and_says_that_it_may_go_on(move: Move) -> None:
    file = move.file([line(*move.card()) for _ in range(2000)])
    process = start(move, move.arguments(file))
    eventually(lambda: scalar(move.url, "SELECT count(*) FROM cards") > 0)

    process.send_signal(signal.SIGINT)
    err = _drain(move, process)

    assert process.returncode == INTERRUPTED
    assert "goes on safely" in err


def test_a_server_that_dies_and_comes_back_is_waited_for(move: Move) -> None:
    cards = [move.card() for _ in range(1200)]
    file = move.file([line(*each) for each in cards])
    server = move.installation.servers[0]
    process = start(move, move.arguments(file))
    eventually(lambda: scalar(move.url, "SELECT count(*) FROM cards") > 0)

    server.kill()
    time.sleep(0.5)
    move.installation.serve(server__listen=f"127.0.0.1:{server.port}")
    err = _drain(move, process)

    assert process.returncode == OK, err
    assert "trying again" in err
    assert set(move.stored()) == {customer for _, customer in cards}
    assert scalar(move.url, "SELECT count(*) FROM consents") == 1200


def test_nobody_at_the_address_and_a_client_of_another_role_end_soon(move: Move) -> None:
    file = move.file([line(*move.card())])
    arguments = move.arguments(file)
    account = move.installation.ca.issue_client(uri_of("account"))
    wrong_role = list(arguments)
    wrong_role[wrong_role.index("--certificate") + 1] = str(account.cert_file)
    wrong_role[wrong_role.index("--private-key") + 1] = str(account.key_file)

    role = move.type_bare(*wrong_role)
    move.installation.servers[0].stop()
    nobody = move.type_bare(*arguments)

    assert (role[0], nobody[0]) == (FAILED, FAILED)
    assert "PERMISSION_DENIED" in role[2]
    assert "does not answer" in nobody[2]
    assert move.stored() == {}


def test_while_vault_is_sealed_it_gives_up_after_a_time_and_a_second_run_stores_all(
    tmp_path: Path, database_url: str
) -> None:
    openbao = OpenBao(tmp_path / "openbao", storage="inmem", keep_root_token=True, log_raw=True)
    openbao.start()
    try:
        with installed(tmp_path / "shop", openbao, database_url) as installation:
            installation.serve()
            move = Move(tmp_path, installation, openbao, [], [])
            file = move.file([line(*move.card()) for _ in range(3)])
            seal(openbao)

            away = move.type(file, "--give-up-after", "2")
            openbao.unseal()
            back = move.type(file)

            assert (away[0], away[1]["stored"]) == (FAILED, 0)
            assert "gave up" in away[2]
            assert (back[0], back[1]["stored"]) == (OK, 3), back[2]
        _nothing_secret(move)
    finally:
        openbao.stop()
