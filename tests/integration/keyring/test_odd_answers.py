"""A Vault that answers nonsense: always trouble in our own words, never a refusal, never a leak, never a redirect."""

from __future__ import annotations

import json
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vault.domain.errors import KeyRingUnavailable
from vault.domain.grant import SealedKey
from vault.embedded.pki import DevelopmentCa
from vault.keyring.login import TokenFileLogin, VaultAddress
from vault.keyring.session import VaultSession
from vault.keyring.transit import IntakeTransit, ReleaseTransit
from vault.ports import KeyName, KeyToUnwrap, KeyToWrap

SECRET = "made-up-plaintext-that-must-not-get-out"
GOOD_WRAP = "vault:v1:" + "A" * 80
GOOD_HMAC = "vault:v1:" + "A" * 43 + "="


@dataclass
class FakeVault:
    """Answers every transit call with one status and body."""

    address: VaultAddress
    token_file: Path
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)

    def session(self) -> VaultSession:
        return VaultSession(address=self.address, login=TokenFileLogin(path=self.token_file))


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeVault]:
    ca = DevelopmentCa.load_or_create(tmp_path / "ca")
    files = ca.issue_server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            vault.seen.append(self.path)
            if "lookup-self" in self.path:
                status, body, headers = 200, b'{"data": {"ttl": 0, "renewable": false}}', {}
            else:
                status, body, headers = vault.status, vault.body, vault.headers
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Quiet."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert_file, files.key_file)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    token_file = tmp_path / "token"
    token_file.write_text("made-up")
    vault = FakeVault(
        VaultAddress(address=f"https://127.0.0.1:{server.server_address[1]}", ca_file=ca.ca_file), token_file
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield vault
    server.shutdown()
    thread.join()
    server.server_close()


def batch(*results: dict[str, object]) -> bytes:
    return json.dumps({"data": {"batch_results": list(results)}}).encode()


def errors(text: str) -> bytes:
    return json.dumps({"errors": [text], "data": {"batch_results": [{"plaintext": SECRET}]}}).encode()


ODD = {
    "HTML from a proxy": (502, b"<html>bad gateway</html>", "vault_unreachable"),
    "truncated JSON": (200, b'{"data": {"batch_res', "vault_odd_answer"),
    "JSON of another shape": (200, b"[1, 2]", "vault_odd_answer"),
    "an error of another shape": (500, b"[1, 2]", "vault_error"),
    "errors that are no texts": (400, b'{"errors": [1, 2]}', "vault_error"),
    "no content": (204, b"", "vault_odd_answer"),
    "no results": (200, b'{"data": {}}', "vault_odd_answer"),
    "too few results": (200, batch(), "vault_odd_answer"),
    "too many results": (200, batch({"ciphertext": GOOD_WRAP}, {"ciphertext": GOOD_WRAP}), "vault_odd_answer"),
    "an error inside": (200, batch({"ciphertext": GOOD_WRAP, "error": SECRET}), "vault_odd_answer"),
    "no ciphertext": (200, batch({"ciphertext": SECRET}), "vault_odd_answer"),
    "version nought": (200, batch({"ciphertext": GOOD_WRAP.replace("v1", "v0")}), "vault_odd_answer"),
    "bad request": (400, errors(SECRET), "vault_error"),
    "internal error": (500, errors(SECRET), "vault_error"),
    "sealed": (503, errors(SECRET), "vault_sealed"),
    "quota": (429, errors(SECRET), "vault_rate_limited"),
    "permission": (403, errors(SECRET), "vault_forbidden"),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_answer_to_a_wrap_is_trouble_without_vaults_words(case: str, fake: FakeVault) -> None:
    fake.status, fake.body, expected = ODD[case]

    with closing(fake.session()) as session:
        intake, key = IntakeTransit(session), KeyToWrap(os.urandom(32), os.urandom(32))
        with pytest.raises(KeyRingUnavailable) as caught:
            intake.protect(cards=[key], once=[], fingerprints=[])

    assert str(caught.value.reason) == expected
    assert SECRET not in repr(caught.value) + str(caught.value.args)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, errors(SECRET), "vault_error"),
        (400, errors("encryption key not found"), "vault_key_missing"),
        (400, errors("refused JSON input due to high complexity"), "vault_error"),
        (200, b'{"data": {"plaintext": 5}}', "vault_odd_answer"),
        (200, b'{"data": {"plaintext": "not base64!"}}', "vault_odd_answer"),
        (500, errors("cipher: message authentication failed"), "vault_error"),
    ],
)
def test_an_odd_answer_to_an_unwrap_raises_no_false_alarm(
    status: int, body: bytes, expected: str, fake: FakeVault
) -> None:
    fake.status, fake.body = status, body

    with closing(fake.session()) as session, closing(ReleaseTransit(session)) as release:
        (answer,) = release.unwrap([KeyToUnwrap(KeyName.CARDS, SealedKey(GOOD_WRAP), bytes(32))])

    assert isinstance(answer, KeyRingUnavailable)
    assert str(answer.reason) == expected
    assert (answer.__cause__, answer.__context__) == (None, None)


@pytest.mark.parametrize(
    "make_body",
    [
        lambda: batch({"hmac": GOOD_HMAC[:-2]}),
        lambda: batch({"hmac": GOOD_HMAC}, {"hmac": GOOD_HMAC.replace("v1", "v2")}),
        lambda: batch({"error": SECRET}, {"hmac": GOOD_HMAC}),
    ],
)
def test_an_odd_fingerprint_is_trouble(make_body: Callable[[], bytes], fake: FakeVault) -> None:
    body = json.loads(make_body())
    body["data"] |= {"latest_version": 1, "min_decryption_version": 1}
    fake.body = json.dumps(body).encode()

    with closing(fake.session()) as session, pytest.raises(KeyRingUnavailable, match="vault_odd_answer"):
        IntakeTransit(session).protect(cards=[], once=[], fingerprints=[bytes(32), bytes(32)])


def test_a_redirect_is_not_followed_with_the_token(fake: FakeVault) -> None:
    fake.status, fake.headers = 307, {"Location": f"{fake.address.address}/v1/elsewhere"}

    with closing(fake.session()) as session, pytest.raises(KeyRingUnavailable, match="vault_odd_answer"):
        session.write("encrypt/cardvault-cards", {})

    assert not any("elsewhere" in path for path in fake.seen)
