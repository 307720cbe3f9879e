"""A client's certificate changes on disk while it is in use."""

from __future__ import annotations

import asyncio
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.integration.client.conftest import Way
from tests.integration.client.test_calls import ADA, CONSENT
from tests.support.installation import eventually
from tests.support.proxy import Proxy, proxy_to
from tests.support.raw import rows
from vault.client import AsyncCheckout, Checkout, Options, TlsFiles, Unavailable
from vault.embedded.pki import CertificateFiles, DevelopmentCa, Subject
from vault.testing import CardVault, Shop, fresh_card

AT_ONCE = Options(look_for_certificates=timedelta(0))


@dataclass
class Disk:
    """Where one client's files lie, and how they are renewed."""

    tls: TlsFiles
    ca: DevelopmentCa
    uri: str

    def renew(self, ca: DevelopmentCa | None = None) -> str:
        """Replace certificate and key, each atomically; the new one's thumbprint."""
        fresh = (ca or self.ca).issue("renewed", Subject(uris=(self.uri,)))
        self._put(fresh)
        certificate = x509.load_pem_x509_certificate(fresh.cert_file.read_bytes())
        return certificate.fingerprint(hashes.SHA256()).hex()

    def _put(self, fresh: CertificateFiles) -> None:
        for source, target in ((fresh.key_file, self.tls.private_key), (fresh.cert_file, self.tls.certificate)):
            beside = Path(f"{target}.new")
            shutil.copy(source, beside)
            beside.replace(target)


@pytest.fixture
def disk(cardvault: Shop, cardvault_server: CardVault, tmp_path: Path) -> Disk:
    issued = cardvault.tls("checkout")
    uris = x509.load_pem_x509_certificate(Path(issued.certificate).read_bytes()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    tls = TlsFiles(ca=issued.ca, certificate=tmp_path / "client.pem", private_key=tmp_path / "client.key")
    shutil.copy(issued.certificate, tls.certificate)
    shutil.copy(issued.private_key, tls.private_key)
    ca = DevelopmentCa.load_or_create(cardvault_server.directory / "pki")
    return Disk(tls, ca, uris.value.get_values_for_type(x509.UniformResourceIdentifier)[0])


def thumbprints(vault: CardVault, tenant: str) -> list[str]:
    """The certificates with which a shop stored cards, in order."""
    url = f"sqlite:///{vault.directory / 'cardvault.sqlite'}"
    sql = f"SELECT actor_certificate FROM audit_events WHERE tenant_id = '{tenant}' AND event = 'card.tokenized'"
    return [found for (found,) in rows(url, f"{sql} ORDER BY occurred_at")]


def test_a_renewed_certificate_is_used_from_the_next_call_on(
    way: Way, cardvault: Shop, cardvault_server: CardVault, disk: Disk
) -> None:
    with proxy_to(cardvault.address) as proxy:
        checkout = way.client(cardvault, "checkout", address=proxy.address, tls=disk.tls, options=AT_ONCE)
        checkout.tokenize(fresh_card(), customer=ADA, consent=CONSENT)
        checkout.tokenize(fresh_card(), customer=ADA, consent=CONSENT)

        renewed = disk.renew()
        checkout.tokenize(fresh_card(), customer=ADA, consent=CONSENT)

        first, second, third = thumbprints(cardvault_server, cardvault.tenant)
        assert first == second != third == renewed
        assert proxy.connections == 2
        eventually(lambda: proxy.open_connections == 1)


def test_a_call_on_the_former_connection_ends_in_peace(
    cardvault: Shop, cardvault_server: CardVault, disk: Disk
) -> None:
    with (
        proxy_to(cardvault.address) as proxy,
        Checkout(proxy.address, disk.tls, AT_ONCE) as checkout,
        ThreadPoolExecutor(2) as pool,
    ):
        checkout.wait_ready()
        proxy.hold()
        asked = pool.submit(lambda: checkout.tokenize(fresh_card(), customer=ADA, consent=CONSENT))
        eventually(lambda: len(thumbprints(cardvault_server, cardvault.tenant)) == 1)

        renewed = disk.renew()
        other = pool.submit(lambda: checkout.tokenize(fresh_card(), customer=ADA, consent=CONSENT))
        eventually(lambda: proxy.connections == 2)
        assert proxy.open_connections == 2
        proxy.release()

        assert asked.result(timeout=10).card
        assert other.result(timeout=10).card
        first, second = thumbprints(cardvault_server, cardvault.tenant)
        assert first != second == renewed
        eventually(lambda: proxy.open_connections == 1)


def test_an_awaited_call_on_the_former_connection_ends_in_peace(
    cardvault: Shop, cardvault_server: CardVault, disk: Disk
) -> None:
    async def main(proxy: Proxy) -> None:
        async with AsyncCheckout(proxy.address, disk.tls, AT_ONCE) as checkout:
            await checkout.wait_ready()
            proxy.hold()
            asked = asyncio.ensure_future(checkout.tokenize(fresh_card(), customer=ADA, consent=CONSENT))
            await asyncio.to_thread(eventually, lambda: thumbprints(cardvault_server, cardvault.tenant))

            renewed = disk.renew()
            other = asyncio.ensure_future(checkout.tokenize(fresh_card(), customer=ADA, consent=CONSENT))
            await asyncio.to_thread(eventually, lambda: proxy.connections == 2)
            assert proxy.open_connections == 2
            proxy.release()

            assert (await asked).card
            assert (await other).card
            first, second = thumbprints(cardvault_server, cardvault.tenant)
            assert first != second == renewed
            await asyncio.to_thread(eventually, lambda: proxy.open_connections == 1)

    with proxy_to(cardvault.address) as proxy:
        asyncio.run(asyncio.wait_for(main(proxy), 20))


def test_files_of_an_authority_that_nobody_trusts_are_used_too_and_get_nowhere(
    way: Way, cardvault: Shop, disk: Disk, tmp_path: Path
) -> None:
    checkout = way.client(cardvault, "checkout", tls=disk.tls, options=AT_ONCE)
    checkout.tokenize(fresh_card(), order="o")

    disk.renew(DevelopmentCa.load_or_create(tmp_path / "foreign"))

    with pytest.raises(Unavailable):
        checkout.tokenize(fresh_card(), order="o", deadline=timedelta(seconds=1))
    disk.renew()
    assert checkout.tokenize(fresh_card(), order="o").one_time_token


def test_half_of_a_pair_does_not_stop_a_client(way: Way, cardvault: Shop, disk: Disk) -> None:
    checkout = way.client(cardvault, "checkout", tls=disk.tls, options=AT_ONCE)
    checkout.tokenize(fresh_card(), order="o")
    half = disk.ca.issue("half", Subject(uris=(disk.uri,)))

    shutil.copy(half.key_file, disk.tls.private_key)

    assert checkout.tokenize(fresh_card(), order="o").one_time_token


def test_the_default_looks_every_second(way: Way, cardvault: Shop, cardvault_server: CardVault, disk: Disk) -> None:
    checkout = way.client(cardvault, "checkout", tls=disk.tls)
    checkout.tokenize(fresh_card(), customer=ADA, consent=CONSENT)

    renewed = disk.renew()
    time.sleep(1.1)
    checkout.tokenize(fresh_card(), customer=ADA, consent=CONSENT)

    assert thumbprints(cardvault_server, cardvault.tenant)[-1] == renewed
