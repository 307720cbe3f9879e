"""Posts to Vault over connections that stay open: an answer is that of its own question, whole, or none at all."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

import pytest

from vault.domain.errors import KeyRefused, KeyRingUnavailable
from vault.embedded.openbao import OpenBao
from vault.embedded.pki import DevelopmentCa
from vault.keyring import wire
from vault.keyring.admin import Administrator
from vault.keyring.login import TokenFileLogin, VaultAddress
from vault.keyring.posts import Posts
from vault.keyring.session import VaultSession
from vault.keyring.setup import LoginName
from vault.keyring.transit import IntakeTransit
from vault.keyring.trouble import FOREIGN, translate
from vault.ports import KeyName, KeyToWrap

LOOK_UP = b"lookup-self"


FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"


def whole(number: int) -> bytes:
    """An answer that names its question."""
    body = json.dumps({"data": {"number": number}}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@dataclass
class Scripted:
    """A Vault that answers what it is told to: the body of each post says its number."""

    listener: socket.socket
    context: ssl.SSLContext
    address: VaultAddress
    token_file: Path
    answers: Callable[[int], bytes | None] = whole
    """By the question's number. None: it never answers. An empty one ends the connection."""
    afterwards: bytes = b""
    """What it sends after each answer, when nobody asked."""
    ends_after: bool = False
    refuses_logins: bool = False
    logins: int = 0
    connections: int = 0
    asked: list[int] = field(default_factory=list)
    """By what each connection was asked, in their order."""
    heads: list[bytes] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def serve(self) -> None:
        """Until the listener is closed."""
        with contextlib.suppress(OSError):
            while True:
                raw, _ = self.listener.accept()
                threading.Thread(target=self._speak, args=(raw,), daemon=True).start()

    def _speak(self, raw: socket.socket) -> None:
        with contextlib.suppress(OSError), raw, self.context.wrap_socket(raw, server_side=True) as stream:
            self.connections += 1
            reader = stream.makefile("rb")
            while head := _head(reader):
                content = reader.read(_length(head))
                if LOOK_UP in head:
                    self.logins += 1
                    if self.refuses_logins:
                        stream.sendall(FORBIDDEN)
                        continue
                    body = b'{"data": {"ttl": 0, "renewable": false}}'
                    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                    continue
                number = json.loads(content)["number"]
                self.heads.append(head)
                self.asked.append(number)
                answer = self.answers(number)
                if answer is None:
                    self.ended.wait()
                    return
                stream.sendall(answer)
                if self.afterwards:
                    time.sleep(0.05)
                    stream.sendall(self.afterwards)
                if self.ends_after or not answer:
                    return

    def posts(self, *, connections: int = 4) -> Posts:
        """What is tested."""
        return Posts(self.address, connections=connections)

    def session(self, *, connections: int = 4) -> VaultSession:
        """What is built on it."""
        return VaultSession(address=self.address, login=TokenFileLogin(path=self.token_file), connections=connections)


def _head(reader: BinaryIO) -> bytes:
    lines = b""
    while line := reader.readline():
        lines += line
        if line == b"\r\n":
            return lines
    return b""


def _length(head: bytes) -> int:
    found = [line.partition(b":")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return int(found[0]) if found else 0


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Scripted]:
    ca = DevelopmentCa.load_or_create(tmp_path / "ca")
    files = ca.issue_server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert_file, files.key_file)
    token_file = tmp_path / "token"
    token_file.write_text("made-up")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = VaultAddress(
            address=f"https://127.0.0.1:{listener.getsockname()[1]}",
            ca_file=ca.ca_file,
            timeout=timedelta(seconds=0.5),
        )
        server = Scripted(listener, context, address, token_file)
        thread = threading.Thread(target=server.serve)
        thread.start()
        yield server
        server.ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def ask(posts: Posts, number: int) -> object:
    """The number that the answer names."""
    answer = posts.post("transit/x", {"number": number}, token="made-up")
    assert isinstance(answer, dict)
    return answer["data"]["number"]


def trouble(posts: Posts, number: int = 0) -> str:
    """In our own words."""
    try:
        ask(posts, number)
    except FOREIGN as e:
        found = translate(e)
        return "refused" if isinstance(found, KeyRefused) else found.reason
    pytest.fail("it was answered")


def test_a_connection_serves_one_post_after_the_other(scripted: Scripted) -> None:
    with closing(scripted.posts()) as posts:
        assert [ask(posts, number) for number in range(20)] == list(range(20))

    assert scripted.connections == 1


BODY = b'{"data": {"number": 7}}'
CHUNKS = b"9\r\n" + BODY[:9] + b"\r\ne\r\n" + BODY[9:] + b"\r\n0\r\n\r\n"
FORMS = {
    "in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "after interim answers": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + whole(7),
    "at the end of the connection": b"HTTP/1.1 200 OK\r\n\r\n" + BODY,
    "from HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 23\r\n\r\n" + BODY,
    "with a goodbye": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 23\r\n\r\n" + BODY,
}


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_is_read_in_whatever_form_http_allows(form: str, scripted: Scripted) -> None:
    scripted.answers = lambda _: FORMS[form]
    scripted.ends_after = form == "at the end of the connection"

    with closing(scripted.posts()) as posts:
        assert [ask(posts, number) for number in range(3)] == [7, 7, 7]

    assert scripted.connections == (1 if form in ("in chunks", "after interim answers") else 3)


CUT_OFF = {
    "before its head": b"",
    "within its head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "within its body": whole(7)[:-1],
    "within its chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n17\r\n" + BODY + b"\r\n",
    "with two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 23\r\nContent-Length: 9\r\n\r\n" + BODY,
    "after an interim answer": b"HTTP/1.1 100 Continue\r\n\r\n",
    "not in HTTP": b"220 mail.example ESMTP\r\n",
    "in another protocol": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
}


@pytest.mark.parametrize("form", CUT_OFF)
def test_an_answer_that_is_cut_off_or_none_is_never_taken_for_one(form: str, scripted: Scripted) -> None:
    scripted.answers, scripted.ends_after = (lambda _: CUT_OFF[form]), True

    with closing(scripted.posts(connections=1)) as posts:
        assert trouble(posts) == "vault_unreachable"
        scripted.answers, scripted.ends_after = whole, False
        assert ask(posts, 3) == 3


@pytest.mark.parametrize("how", ["together with the answer", "later"])
def test_what_nobody_asked_for_never_becomes_the_next_answer(how: str, scripted: Scripted) -> None:
    if how == "later":
        scripted.afterwards = whole(666)
    else:
        scripted.answers = lambda number: whole(number) + whole(666)

    with closing(scripted.posts(connections=1)) as posts:
        found = []
        for number in range(3):
            found.append(ask(posts, number))
            time.sleep(0.2)

    assert found == [0, 1, 2]
    assert scripted.connections == 3


def test_an_answer_that_nobody_waited_for_is_not_the_next_ones(scripted: Scripted) -> None:
    def slowly(number: int) -> bytes | None:
        time.sleep(0.2 if number == 666 else 0)
        return None if number == 667 else whole(number)

    scripted.answers = slowly
    with closing(scripted.posts(connections=1)) as posts:
        assert ask(posts, 0) == 0  # with it TLS's own tickets are read
        sent = posts.begin("transit/x", {"number": 666}, token="made-up")
        assert sent is not None
        sent.abandon()
        assert ask(posts, 1) == 1

        assert trouble(posts, 667) == "vault_timeout"
        assert ask(posts, 2) == 2

    assert scripted.connections == 3


def test_a_connection_that_vault_ended_meanwhile_is_replaced_before_anything_is_sent_on_it(scripted: Scripted) -> None:
    scripted.ends_after = True

    with closing(scripted.posts(connections=1)) as posts:
        for number in range(3):
            assert ask(posts, number) == number
            time.sleep(0.1)

    assert scripted.asked == [0, 1, 2]


def test_a_silent_vault_is_waited_for_once_whatever_was_asked_together(scripted: Scripted) -> None:
    scripted.answers = lambda _: None

    with closing(scripted.session()) as session:
        began = time.monotonic()
        found = session.write_all([("x", {"number": number}) for number in range(6)])
        waited = time.monotonic() - began

    assert [getattr(each, "reason", each) for each in found] == ["vault_timeout"] * 6
    assert waited < 2 * scripted.address.timeout.total_seconds()


def test_where_repeats_are_met_with_silence_the_first_is_waited_for_alone(scripted: Scripted) -> None:
    met: set[int] = set()

    def answers(number: int) -> bytes | None:
        if number in met:
            return None
        met.add(number)
        return b""

    scripted.answers = answers
    with closing(scripted.session(connections=8)) as session:
        began = time.monotonic()
        found = session.write_all([("x", {"number": number}) for number in range(6)])
        waited = time.monotonic() - began

    assert [getattr(each, "reason", each) for each in found] == ["vault_timeout"] + ["vault_unreachable"] * 5
    assert waited < 2 * scripted.address.timeout.total_seconds()


def test_a_login_that_fails_fails_once_for_all_that_were_sent_together(scripted: Scripted) -> None:
    with closing(scripted.session(connections=8)) as session:
        session.write("x", {"number": 0})
        held = session._current()
        session._held = replace(held, since=held.since - 10)
        scripted.refuses_logins, scripted.answers, scripted.logins = True, (lambda _: FORBIDDEN), 0
        found = session.write_all([("x", {"number": number}) for number in range(6)])

    assert [getattr(each, "reason", each) for each in found] == ["vault_forbidden"] * 6
    assert scripted.logins == 1


def test_ctrl_c_in_the_middle_of_an_answer_is_no_trouble_of_vaults(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_self: object, _part: bytes) -> None:
        raise KeyboardInterrupt

    with closing(scripted.session(connections=1)) as session:
        session.write("x", {"number": 0})
        with monkeypatch.context() as patch:
            patch.setattr("vault.keyring.posts._Answer.on_body", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.write_all([("x", {"number": 1})])
        assert session.write("x", {"number": 2}) == {"number": 2}

    assert scripted.asked == [0, 1, 2]


def test_the_secrets_of_a_connection_are_written_to_no_file(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))

    with closing(scripted.posts()) as posts:
        assert ask(posts, 1) == 1

    assert not (tmp_path / "keys").exists()


def test_writes_share_the_way_and_each_gets_its_own_answer_in_order(scripted: Scripted) -> None:
    def slowly(number: int) -> bytes:
        time.sleep(0.05 * (6 - number))
        return whole(number)

    scripted.answers = slowly
    with closing(scripted.session(connections=6)) as session:
        session.write("x", {"number": 0})
        began = time.monotonic()
        found = session.write_all([("x", {"number": number}) for number in range(1, 7)])
        waited = time.monotonic() - began

    assert found == [{"number": number} for number in range(1, 7)]
    assert waited < 0.6, "one after the other they take 0.75"


def test_one_failure_is_its_own(scripted: Scripted) -> None:
    scripted.answers = lambda number: (
        whole(number) if number != 1 else b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n"
    )

    with closing(scripted.session()) as session:
        found = session.write_all([("x", {"number": number}) for number in range(3)])

    assert [getattr(each, "reason", each) for each in found] == [{"number": 0}, "vault_rate_limited", {"number": 2}]


def test_fewer_connections_than_writes_make_them_wait_and_no_two_threads_for_each_other(scripted: Scripted) -> None:
    def write_three(first: int) -> list[object]:
        return list(session.write_all([("x", {"number": first + more}) for more in range(3)]))

    with closing(scripted.session(connections=2)) as session, ThreadPoolExecutor(6) as threads:
        found = list(threads.map(write_three, range(0, 180, 3)))

    assert found == [[{"number": first + more} for more in range(3)] for first in range(0, 180, 3)]
    assert scripted.connections <= 2 + 1, "and that of the login"


def test_a_broken_connection_costs_one_more_try(scripted: Scripted) -> None:
    lost = {1, 2}

    def answers(number: int) -> bytes:
        if number in lost:
            lost.discard(number)
            return b""
        return whole(number)

    scripted.answers = answers
    with closing(scripted.session()) as session:
        found = session.write_all([("x", {"number": number}) for number in range(4)])

    assert found == [{"number": number} for number in range(4)]


def test_a_revoked_token_is_replaced_once_for_all_that_were_sent_with_it(openbao: OpenBao, root: Administrator) -> None:
    with closing(VaultSession(address=openbao.address, login=openbao.login(LoginName.INTAKE))) as session:
        intake = IntakeTransit(session)
        one = [KeyToWrap(bytes(32), bytes(32))]
        intake.protect(cards=one, once=one, fingerprints=[bytes(32)])
        first = session._current()
        root.client.auth.token.revoke(first.client.token)
        session._held = replace(first, since=first.since - 10)

        found = intake.protect(cards=one, once=one, fingerprints=[bytes(32)])

    assert (len(found.cards), len(found.once), len(found.fingerprints)) == (1, 1, 1)


def test_only_vaults_own_authority_is_believed_whatever_the_environment_says(
    scripted: Scripted, openbao: OpenBao, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(openbao.address.ca_file))
    monkeypatch.setenv("SSL_CERT_DIR", str(openbao.address.ca_file.parent))
    others = replace(openbao.address, ca_file=scripted.address.ca_file)

    with closing(Posts(others, connections=1)) as posts:
        assert trouble(posts) == "vault_unreachable"
    with closing(scripted.posts()) as posts:
        assert ask(posts, 5) == 5


def test_a_certificate_for_another_name_is_not_believed(scripted: Scripted, tmp_path: Path) -> None:
    files = DevelopmentCa.load_or_create(tmp_path / "ca").issue_server("other", dns=("vault.example",), ips=())
    scripted.context.load_cert_chain(files.cert_file, files.key_file)

    with closing(scripted.posts()) as posts:
        assert trouble(posts) == "vault_unreachable"

    assert scripted.asked == []


@pytest.mark.parametrize("token", ["made\r\nX-Vault-Namespace: other", "made\nup", "grün", "a\x00b"])
def test_a_token_cannot_add_a_line_to_the_head(token: str, scripted: Scripted) -> None:
    with closing(scripted.posts()) as posts, pytest.raises(ValueError, match="no header"):
        posts.post("transit/x", {"number": 1}, token=token)

    assert scripted.connections == 0


def test_a_path_cannot_add_a_line_to_the_head(scripted: Scripted) -> None:
    with closing(scripted.posts()) as posts:
        answer = posts.post("my transit\r\nX-Vault-Namespace: other/x", {"number": 1}, token="made-up")

    assert answer == {"data": {"number": 1}}
    assert scripted.heads[0].split(b"\r\n")[0] == (b"POST /v1/my%20transit%0D%0AX-Vault-Namespace:%20other/x HTTP/1.1")
    assert b"X-Vault-Namespace" not in scripted.heads[0].partition(b"\r\n")[2]


def test_a_large_post_goes_through_and_comes_back(openbao: OpenBao) -> None:
    keys = [KeyToWrap(bytes(32), bytes(32))] * 200
    with closing(VaultSession(address=openbao.address, login=openbao.login(LoginName.INTAKE))) as session:
        found = IntakeTransit(session).protect(cards=keys, once=keys, fingerprints=[bytes(32)] * 200)

    assert (len(found.cards), len(found.once), len(found.fingerprints)) == (200, 200, 200)


def test_nothing_is_sent_after_closing(scripted: Scripted) -> None:
    posts = scripted.posts()
    assert ask(posts, 1) == 1

    posts.close()

    assert trouble(posts) == "vault_unreachable"
    assert scripted.asked == [1]


def test_questions_do_not_show_what_they_carry() -> None:
    key = KeyToWrap(b"\x01" * 32, b"\x02" * 32)

    assert "plaintext" not in repr(wire.wrap(KeyName.CARDS, [key]))


def test_all_writes_fail_alike_without_a_token(scripted: Scripted) -> None:
    scripted.token_file.write_text("")

    with closing(scripted.session()) as session, pytest.raises(KeyRingUnavailable, match="vault_login_file"):
        session.write_all([("x", {"number": 1}), ("x", {"number": 2})])
