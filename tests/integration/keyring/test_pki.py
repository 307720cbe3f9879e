"""The development CA."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from vault.embedded.pki import CertificateFiles, DevelopmentCa, Subject

URI = "spiffe://shop.example/checkout"


def load(files: CertificateFiles) -> x509.Certificate:
    return x509.load_pem_x509_certificate(files.cert_file.read_bytes())


def uris(files: CertificateFiles) -> list[str]:
    names = load(files).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def test_a_client_certificate_has_one_uri_and_verifies(tmp_path: Path) -> None:
    ca = DevelopmentCa.load_or_create(tmp_path)

    files = ca.issue_client(URI)

    verifier = PolicyBuilder().store(Store([x509.load_pem_x509_certificate(ca.ca_file.read_bytes())]))
    verified = verifier.build_client_verifier().verify(load(files), [])
    assert verified.subjects == [x509.UniformResourceIdentifier(URI)]
    assert files.key_file.stat().st_mode & 0o777 == 0o600
    assert files.cert_file.name == "checkout.pem"


def test_a_server_certificate_is_for_loopback(tmp_path: Path) -> None:
    ca = DevelopmentCa.load_or_create(tmp_path)

    files = ca.issue_server()

    roots = Store([x509.load_pem_x509_certificate(ca.ca_file.read_bytes())])
    PolicyBuilder().store(roots).build_server_verifier(x509.DNSName("localhost")).verify(load(files), [])


def test_certificates_are_kept_until_a_third_of_their_life_is_left(tmp_path: Path) -> None:
    ca = DevelopmentCa.load_or_create(tmp_path)
    first = load(ca.issue_client(URI))
    again = load(DevelopmentCa.load_or_create(tmp_path).issue_client(URI))
    ca.issue("checkout", Subject(uris=(URI,)), not_before=datetime.now(UTC) - timedelta(days=21))
    renewed = load(ca.issue_client(URI))

    assert first == again
    assert renewed.not_valid_after_utc > datetime.now(UTC) + timedelta(days=29)


def test_certificates_of_a_former_authority_or_another_name_are_not_kept(tmp_path: Path) -> None:
    ca = DevelopmentCa.load_or_create(tmp_path)
    first = load(ca.issue_client(URI))
    other_name = ca.issue_client("spiffe://other.example/checkout")
    assert uris(other_name) == ["spiffe://other.example/checkout"]
    kept = load(other_name)

    (tmp_path / "ca.key").unlink()
    renewed = DevelopmentCa.load_or_create(tmp_path).issue_client("spiffe://other.example/checkout")

    assert load(renewed) not in (first, kept)


def test_odd_certificates_can_be_made_for_tests(tmp_path: Path) -> None:
    ca = DevelopmentCa.load_or_create(tmp_path)

    two = ca.issue("two", Subject(uris=(URI, URI + "2")))
    named = ca.issue("named", Subject(common_name="checkout"))
    expired = ca.issue(
        "expired",
        Subject(uris=(URI,)),
        not_before=datetime.now(UTC) - timedelta(days=2),
        lifetime=timedelta(days=1),
    )

    assert uris(two) == [URI, URI + "2"]
    assert load(named).subject.rfc4514_string() == "CN=checkout"
    assert load(expired).not_valid_after_utc < datetime.now(UTC)
