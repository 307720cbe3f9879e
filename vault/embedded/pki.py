"""A development CA: server and client certificates for loopback, re-issued before they run out.

Its private key lies in a file beside everything it protects, so it proves nothing outside one developer's machine.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vault.keyring.files import make_private_dir, write_private

CA_LIFETIME = timedelta(days=3650)
LIFETIME = timedelta(days=30)
_SKEW = timedelta(minutes=5)
"""How far two clocks may differ."""


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """A certificate, its private key (mode 0600) and the authority that vouches for it; all PEM."""

    cert_file: Path
    key_file: Path
    ca_file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a certificate says of its holder."""

    uris: Sequence[str] = ()
    dns: Sequence[str] = ()
    ips: Sequence[str] = ()
    common_name: str = ""
    server: bool = False
    """Whether it is for servers; for clients otherwise."""

    def alternative_names(self) -> list[x509.GeneralName]:
        """The SAN entries, in this order: URIs, DNS names, addresses."""
        return [
            *(x509.UniformResourceIdentifier(uri) for uri in self.uris),
            *(x509.DNSName(name) for name in self.dns),
            *(x509.IPAddress(ipaddress.ip_address(ip)) for ip in self.ips),
        ]


class DevelopmentCa:
    """Issues certificates into one directory."""

    def __init__(self, directory: Path, *, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.directory = directory
        self.ca_file = directory / "ca.pem"
        self._certificate = certificate
        self._key = key

    @classmethod
    def load_or_create(cls, directory: Path) -> DevelopmentCa:
        """The CA kept in `directory`, made anew if there is none or little of its life is left."""
        make_private_dir(directory)
        cert_file, key_file = directory / "ca.pem", directory / "ca.key"
        if cert_file.is_file() and key_file.is_file():
            certificate = x509.load_pem_x509_certificate(cert_file.read_bytes())
            key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
            if isinstance(key, ec.EllipticCurvePrivateKey) and _has_life_left(certificate):
                return cls(directory, certificate=certificate, key=key)
        certificate, key = _make_ca()
        # The key first: a crash in between leaves a pair that does not match the old certificate's leaves, and
        # those are then issued anew.
        write_private(key_file, _pem(key))
        write_private(cert_file, certificate.public_bytes(serialization.Encoding.PEM))
        return cls(directory, certificate=certificate, key=key)

    def issue_server(
        self, name: str = "server", *, dns: Sequence[str] = ("localhost",), ips: Sequence[str] = ("127.0.0.1",)
    ) -> CertificateFiles:
        """A server's certificate; the one on disk while it fits and two thirds of its life are not over."""
        return self._keep(name, Subject(dns=dns, ips=ips, server=True), LIFETIME)

    def issue_client(self, spiffe_uri: str, lifetime: timedelta = LIFETIME, *, name: str = "") -> CertificateFiles:
        """A client's certificate with a single URI SAN; the file is called after the last part of the URI."""
        return self._keep(name or spiffe_uri.rsplit("/", 1)[-1], Subject(uris=(spiffe_uri,)), lifetime)

    def issue(
        self,
        name: str,
        subject: Subject,
        *,
        lifetime: timedelta = LIFETIME,
        not_before: datetime | None = None,
    ) -> CertificateFiles:
        """A fresh certificate for any subject whatever, so that tests can show that odd ones are refused."""
        begin = not_before or datetime.now(UTC) - _SKEW
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.SERVER_AUTH if subject.server else ExtendedKeyUsageOID.CLIENT_AUTH
        names = [x509.NameAttribute(NameOID.COMMON_NAME, subject.common_name)] if subject.common_name else []
        builder = (
            _builder(x509.Name(names), self._certificate.subject, key.public_key(), begin, begin + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if alternatives := subject.alternative_names():
            # RFC 5280: critical where the subject is empty.
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=not names)
        certificate = builder.sign(self._key, hashes.SHA256())
        files = self._files(name)
        write_private(files.key_file, _pem(key))
        write_private(files.cert_file, certificate.public_bytes(serialization.Encoding.PEM))
        return files

    def _keep(self, name: str, subject: Subject, lifetime: timedelta) -> CertificateFiles:
        files = self._files(name)
        if files.cert_file.is_file() and files.key_file.is_file() and self._is_good(files.cert_file, subject):
            return files
        return self.issue(name, subject, lifetime=lifetime)

    def _files(self, name: str) -> CertificateFiles:
        if not name or "/" in name or name.startswith((".", "ca.")):
            raise ValueError("a certificate's name must be a plain file name")
        return CertificateFiles(self.directory / f"{name}.pem", self.directory / f"{name}.key", self.ca_file)

    def _is_good(self, cert_file: Path, subject: Subject) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(cert_file.read_bytes())
            certificate.verify_directly_issued_by(self._certificate)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        return list(names) == subject.alternative_names() and _has_life_left(certificate)


def _make_ca() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cardvault development CA")])
    begin = datetime.now(UTC) - _SKEW
    certificate = (
        _builder(name, name, key.public_key(), begin, begin + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _has_life_left(certificate: x509.Certificate) -> bool:
    end, begin = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    return (end - datetime.now(UTC)) * 3 > end - begin


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
