"""Which certificates the client uses as files change under it, and what becomes of former channels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from vault.client.channels import Channels
from vault.client.options import Options, Pem, TlsFiles, UnusableCertificates
from vault.embedded.pki import CertificateFiles, DevelopmentCa, Subject

AT_ONCE = Options(look_for_certificates=timedelta(0))


@dataclass
class Disk:
    """A client's files, and a CA that renews them."""

    ca: DevelopmentCa
    files: CertificateFiles

    @property
    def tls(self) -> TlsFiles:
        return TlsFiles(ca=self.files.ca_file, certificate=self.files.cert_file, private_key=self.files.key_file)

    def renew(self) -> CertificateFiles:
        return self.ca.issue("client", Subject(uris=("spiffe://example.test/checkout",)))


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    ca = DevelopmentCa.load_or_create(tmp_path / "pki")
    return Disk(ca, ca.issue("client", Subject(uris=("spiffe://example.test/checkout",))))


def test_unchanged_files_keep_the_channel(disk: Disk) -> None:
    channels = Channels(disk.tls, AT_ONCE, lambda pem: pem)

    first, _ = channels.take()
    second, done = channels.take()

    assert (first is second, done) == (True, [])


def test_changed_files_make_a_new_channel_and_the_former_ends_with_its_last_call(disk: Disk) -> None:
    channels = Channels(disk.tls, AT_ONCE, lambda pem: pem)
    one, _ = channels.take()
    two, _ = channels.take()

    disk.renew()
    fresh, done = channels.take()

    assert done == []
    assert fresh.channel.certificate == disk.files.cert_file.read_bytes() != one.channel.certificate
    assert channels.give_back(one) == []
    assert channels.give_back(two) == [one.channel]
    assert channels.give_back(fresh) == []
    assert channels.close() == [fresh.channel]


def test_a_former_channel_without_calls_ends_at_once(disk: Disk) -> None:
    channels = Channels(disk.tls, AT_ONCE, lambda pem: pem)
    lease, _ = channels.take()
    channels.give_back(lease)

    disk.renew()

    assert channels.take()[1] == [lease.channel]


def test_half_of_a_new_pair_is_not_used(disk: Disk) -> None:
    channels = Channels(disk.tls, AT_ONCE, lambda pem: pem)
    first, _ = channels.take()
    key = disk.files.key_file.read_bytes()

    disk.renew()
    new_key = disk.files.key_file.read_bytes()
    disk.files.key_file.write_bytes(key)
    between, _ = channels.take()
    disk.files.key_file.write_bytes(new_key)
    after, _ = channels.take()

    assert between is first
    assert after.channel.private_key == new_key


@pytest.mark.parametrize("which", ["cert_file", "key_file", "ca_file"])
def test_a_file_that_is_gone_or_no_pem_is_not_used(disk: Disk, which: str) -> None:
    channels = Channels(disk.tls, AT_ONCE, lambda pem: pem)
    first, _ = channels.take()
    file: Path = getattr(disk.files, which)

    file.write_text("nothing of use")
    assert channels.take()[0] is first
    file.unlink()
    assert channels.take()[0] is first


def test_files_are_not_looked_at_for_each_call(disk: Disk) -> None:
    channels = Channels(disk.tls, Options(), lambda pem: pem)
    first, _ = channels.take()

    disk.renew()

    assert channels.take()[0] is first


@pytest.mark.parametrize("which", ["cert_file", "key_file", "ca_file"])
def test_a_client_with_files_of_no_use_is_not_made(disk: Disk, which: str) -> None:
    file: Path = getattr(disk.files, which)
    file.write_text("nothing of use")

    with pytest.raises(UnusableCertificates):
        Channels(disk.tls, AT_ONCE, lambda pem: pem)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        Channels(disk.tls, AT_ONCE, lambda pem: pem)


def test_a_key_of_another_certificate_is_refused(disk: Disk) -> None:
    other = disk.ca.issue("other", Subject(uris=("spiffe://example.test/other",)))
    files = TlsFiles(ca=disk.files.ca_file, certificate=disk.files.cert_file, private_key=other.key_file)

    with pytest.raises(UnusableCertificates, match="key values mismatch"):
        Channels(files, AT_ONCE, lambda pem: pem)


def test_a_closed_client_says_so(disk: Disk) -> None:
    channels = Channels(disk.tls, AT_ONCE, lambda pem: pem)

    channels.close()

    with pytest.raises(RuntimeError, match="closed"):
        channels.take()


def test_a_key_is_not_shown(disk: Disk) -> None:
    pem, _ = disk.tls.read()

    assert repr(pem) == "Pem(…)"
    assert isinstance(pem, Pem)


@pytest.mark.parametrize("is_used", [True, False])
def test_a_client_crosses_a_fork_only_unused(disk: Disk, is_used: bool) -> None:
    channels = Channels(disk.tls, AT_ONCE, lambda pem: pem)
    if is_used:
        channels.take()

    child = os.fork()
    if child == 0:
        try:
            channels.take()
        except RuntimeError:
            os._exit(7)
        os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (7 if is_used else 0)
