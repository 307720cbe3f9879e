"""Who may call what, over real mutual TLS: the protos' table, row by row, and every odd certificate."""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from tests.integration.rpc.conftest import Shop
from tests.support.answers import Refusal, Rows, raw_call, refusal_of, rows_of
from tests.support.http2 import unary_call
from tests.support.installation import Client, Installation, channel_to, uri_of
from tests.support.requests import TIMEOUT
from vault.domain.caller import Role
from vault.embedded.pki import CertificateFiles, DevelopmentCa, Subject
from vault.rpc.access import SERVICES, PolicyGap, path_of, read_rules
from vault.rpc.door import Door, Limits
from vault.rpc.identity import Identities
from vault.rpc.server import READY, Server, TlsFiles
from vault.system import SystemEntropy
from vault.v1 import access_pb2, account_pb2, checkout_pb2, processor_pb2

METHODS: tuple[MethodDescriptor, ...] = tuple(m for service in SERVICES.values() for m in service.methods)
LIST_CARDS = "/vault.v1.AccountService/ListCards"
TOKENIZE = "/vault.v1.CheckoutService/Tokenize"
DETOKENIZE = "/vault.v1.ProcessorService/Detokenize"
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

NO_MESSAGE = b"\xff\xff\xff"
"""Bytes that no protobuf parser takes."""


def access_of(method: MethodDescriptor) -> access_pb2.Access:
    rule: access_pb2.Access = method.GetOptions().Extensions[access_pb2.access]
    return rule


def roles_of(method: MethodDescriptor) -> set[Role]:
    return {Role(role) for role in access_of(method).roles}


ALLOWED = [(m, role) for m in METHODS for role in Role if role in roles_of(m)]
DENIED = [(m, role) for m in METHODS for role in Role if role not in roles_of(m)]


def named(pair: object) -> str:
    return pair.name if isinstance(pair, MethodDescriptor | Role) else str(pair)


@pytest.fixture
def rows(shop: Shop) -> Iterator[Rows]:
    with rows_of(shop.installation.database_url) as found:
        yield found


def channel_of(shop: Shop, role: Role) -> grpc.Channel:
    client: Client = {Role.CHECKOUT: shop.checkout, Role.ACCOUNT: shop.account, Role.PROCESSOR: shop.processor}[role]
    return client.channel


def handshake_fails(installation: Installation, files: CertificateFiles | None) -> bool:
    refusal = raw_call(installation.client_with(files).channel, LIST_CARDS, b"")
    return refusal is not None and refusal.code is UNAVAILABLE and not refusal.error_id


# --- the matrix -----------------------------------------------------------------------------------------------------


def test_the_matrix_covers_every_service_of_the_contract() -> None:
    files = (access_pb2, account_pb2, checkout_pb2, processor_pb2)
    declared = {s.full_name for module in files for s in module.DESCRIPTOR.services_by_name.values()}

    assert declared == {service.full_name for service in SERVICES.values()}
    assert len(ALLOWED) + len(DENIED) == len(METHODS) * len(Role)
    assert {role for _, role in ALLOWED} == set(Role)


@pytest.mark.parametrize(("method", "role"), DENIED, ids=named)
def test_a_role_that_is_not_named_is_refused_before_anything_is_parsed(
    shop: Shop, rows: Rows, method: MethodDescriptor, role: Role
) -> None:
    refusal = raw_call(channel_of(shop, role), path_of(method), NO_MESSAGE)

    assert refusal is not None
    assert (refusal.code, refusal.text, refusal.fields) == (PERMISSION_DENIED, "refused", ())
    assert set(refusal.metadata) == {"cardvault-error-id"}
    [event] = rows.events(refusal.error_id)
    assert (event["event"], event["outcome"], event["reason"]) == (access_of(method).event, "refused", "role")
    assert (event["actor"], event["role"]) == (uri_of(role.label), role.label)


@pytest.mark.parametrize(("method", "role"), ALLOWED, ids=named)
def test_a_role_that_is_named_gets_as_far_as_its_request(shop: Shop, method: MethodDescriptor, role: Role) -> None:
    empty = GetMessageClass(method.input_type)().SerializeToString()

    refusal = raw_call(channel_of(shop, role), path_of(method), empty)
    garbled = raw_call(channel_of(shop, role), path_of(method), NO_MESSAGE)

    assert refusal is not None
    assert refusal.code in (INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert garbled is not None
    assert (garbled.code, garbled.fields) == (INVALID_ARGUMENT, ("request",))


@pytest.mark.parametrize("claim", ["role", "x-role", "x-spiffe-id", "authorization", "x-forwarded-client-cert"])
def test_a_role_claimed_in_metadata_counts_for_nothing(shop: Shop, claim: str) -> None:
    metadata = [(claim, uri_of("processor")), (claim, "processor")]

    refusal = raw_call(shop.checkout.channel, DETOKENIZE, b"", metadata=metadata)

    assert refusal is not None
    assert (refusal.code, refusal.text) == (PERMISSION_DENIED, "refused")


# --- certificates ---------------------------------------------------------------------------------------------------

CHECKOUT, ACCOUNT = uri_of("checkout"), uri_of("account")
STRANGERS = {
    "mapped to nobody": (Subject(uris=(uri_of("nobody"),)), "unmapped_identity"),
    "in another trust domain": (Subject(uris=("spiffe://elsewhere.localhost/account",)), "unmapped_identity"),
    "below a mapped one": (Subject(uris=(ACCOUNT + "/more",)), "unmapped_identity"),
    "in other letters": (Subject(uris=(uri_of("Account"),)), "unmapped_identity"),
    "a name only": (Subject(common_name=ACCOUNT), "no_single_uri"),
    "two of them": (Subject(uris=(ACCOUNT, CHECKOUT)), "no_single_uri"),
    "twice the same": (Subject(uris=(ACCOUNT, ACCOUNT)), "no_single_uri"),
    "a DNS name only": (Subject(dns=("account.test.localhost",), common_name="account"), "no_single_uri"),
    "an address of the web": (Subject(uris=("https://test.localhost/account",)), "no_single_uri"),
}


@pytest.mark.parametrize(("subject", "reason"), STRANGERS.values(), ids=STRANGERS)
def test_a_certificate_without_the_one_mapped_uri_is_refused(
    shop: Shop, rows: Rows, subject: Subject, reason: str
) -> None:
    files = shop.installation.ca.issue(f"stranger-{secrets.token_hex(4)}", subject)

    refusal = raw_call(shop.installation.client_with(files).channel, LIST_CARDS, NO_MESSAGE)

    assert refusal is not None
    assert (refusal.code, refusal.text) == (PERMISSION_DENIED, "refused")
    [event] = rows.events(refusal.error_id)
    assert (event["reason"], event["role"], event["tenant_id"]) == (reason, "", "")
    assert len(event["actor_certificate"]) == 64


def test_a_mapped_uri_among_other_kinds_of_names_is_enough(shop: Shop) -> None:
    subject = Subject(uris=(ACCOUNT,), dns=("pages.test.localhost",), common_name="checkout")
    files = shop.installation.ca.issue("several-kinds", subject)

    answer = shop.installation.client_with(files).account.ListCards(
        account_pb2.ListCardsRequest(customer_id="nobody"), timeout=TIMEOUT
    )

    assert list(answer.cards) == []


def test_without_a_certificate_the_handshake_fails(shop: Shop) -> None:
    assert handshake_fails(shop.installation, None)


def test_a_mapped_uri_from_another_authority_fails_at_the_handshake(shop: Shop, tmp_path: Path) -> None:
    other = DevelopmentCa.load_or_create(tmp_path / "other-pki")

    assert handshake_fails(shop.installation, other.issue_client(ACCOUNT))


def test_a_certificate_issued_by_a_clients_certificate_fails_at_the_handshake(shop: Shop, tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    mine = shop.installation.ca.issue("self-made-authority", Subject(uris=(CHECKOUT,)))
    certificate = x509.load_pem_x509_certificate(mine.cert_file.read_bytes())
    key = serialization.load_pem_private_key(mine.key_file.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    forged = DevelopmentCa(tmp_path, certificate=certificate, key=key).issue("forged", Subject(uris=(ACCOUNT,)))
    forged.cert_file.write_bytes(forged.cert_file.read_bytes() + mine.cert_file.read_bytes())

    assert handshake_fails(shop.installation, forged)


@pytest.mark.parametrize(
    ("begin", "accepted"),
    [(timedelta(minutes=-30), True), (timedelta(hours=-2), False), (timedelta(hours=1), False)],
    ids=["now", "over", "not begun"],
)
def test_a_certificate_counts_only_in_its_time(shop: Shop, begin: timedelta, *, accepted: bool) -> None:
    files = shop.installation.ca.issue(
        f"timed-{secrets.token_hex(4)}",
        Subject(uris=(ACCOUNT,)),
        lifetime=timedelta(hours=1),
        not_before=datetime.now(UTC) + begin,
    )

    assert handshake_fails(shop.installation, files) is not accepted


def test_there_is_no_plaintext_port(shop: Shop) -> None:
    with grpc.insecure_channel(f"localhost:{shop.installation.servers[0].port}") as channel:
        refusal = raw_call(channel, LIST_CARDS, b"")

    assert refusal is not None
    assert refusal.code is UNAVAILABLE


# --- TLS versions ---------------------------------------------------------------------------------------------------


def tls_client(installation: Installation, version: ssl.TLSVersion) -> ssl.SSLContext:
    files = installation.ca.issue_client(ACCOUNT)
    context = ssl.create_default_context(cafile=str(installation.ca.ca_file))
    context.load_cert_chain(files.cert_file, files.key_file)
    context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.parametrize("path", [LIST_CARDS, "/grpc.health.v1.Health/Check"])
def test_a_call_over_tls_1_2_is_refused(shop: Shop, rows: Rows, path: str) -> None:
    server = shop.installation.servers[0]

    version, answer = unary_call(server.port, tls_client(shop.installation, ssl.TLSVersion.TLSv1_2), path, b"")

    assert version == "TLSv1.2"
    assert (answer["grpc-status"], answer["grpc-message"]) == ("7", "refused")
    if path == LIST_CARDS:
        assert [event["reason"] for event in rows.events(answer["cardvault-error-id"])] == ["tls_version"]


def test_the_same_bytes_over_tls_1_3_are_heard(shop: Shop) -> None:
    server, context = shop.installation.servers[0], tls_client(shop.installation, ssl.TLSVersion.TLSv1_3)

    version, answer = unary_call(server.port, context, LIST_CARDS, b"")

    assert (version, answer["grpc-status"]) == ("TLSv1.3", "3")
    assert "customer_id" in answer["grpc-message"]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_nothing_below_tls_1_2_shakes_hands(shop: Shop) -> None:
    context = tls_client(shop.installation, ssl.TLSVersion.TLSv1_1)
    context.set_ciphers("ALL:@SECLEVEL=0")

    with pytest.raises(OSError):  # noqa: PT011 - whichever side gives up first
        unary_call(shop.installation.servers[0].port, context, LIST_CARDS, b"")


# --- what stands beside the contract --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*(role.label for role in Role), "nobody"])
def test_every_accepted_certificate_may_ask_for_health(shop: Shop, name: str) -> None:
    client = shop.installation.client(name)

    answers = {
        service: client.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT).status
        for service in ("", READY, *(s.full_name for s in SERVICES.values()))
    }

    assert set(answers.values()) == {health_pb2.HealthCheckResponse.SERVING}


def test_health_of_what_is_not_there_is_not_found_and_says_nothing(shop: Shop) -> None:
    request = health_pb2.HealthCheckRequest(service="postgresql")

    refusal = refusal_of(lambda: shop.account.health.Check(request, timeout=TIMEOUT))

    assert refusal is not None
    assert (refusal.code, refusal.text) == (grpc.StatusCode.NOT_FOUND, "")


def test_a_health_check_that_is_no_message_is_refused_like_any_other(shop: Shop) -> None:
    refusal = raw_call(shop.account.channel, "/grpc.health.v1.Health/Check", NO_MESSAGE)

    assert refusal is not None
    assert (refusal.code, refusal.fields) == (INVALID_ARGUMENT, ("request",))
    assert refusal.error_id


@pytest.mark.parametrize(
    "path",
    [
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.channelz.v1.Channelz/GetServers",
        "/vault.v1.ProcessorService/Reveal",
        "/vault.v1.AdminService/RotateKeys",
        "/vault.v1.processorservice/detokenize",
    ],
)
def test_what_the_contract_does_not_name_does_not_exist(shop: Shop, path: str) -> None:
    refusal = raw_call(shop.processor.channel, path, b"")

    assert refusal is not None
    assert refusal.code is UNIMPLEMENTED


# --- a policy with a gap --------------------------------------------------------------------------------------------


def service_with(name: str, options: dict[str, access_pb2.Access | None]) -> ServiceDescriptor:
    """A service of its own whose methods carry these rules."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"tests/{name}.proto",
        package=f"tests.{name}",
        syntax="proto3",
        dependency=[access_pb2.DESCRIPTOR.name, checkout_pb2.DESCRIPTOR.name],
    )
    service = file.service.add(name="GapService")
    kind = ".vault.v1.TokenizeRequest"
    for method_name, access in options.items():
        method = service.method.add(name=method_name, input_type=kind, output_type=kind)
        if access is not None:
            method.options.Extensions[access_pb2.access].CopyFrom(access)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName(f"tests.{name}.GapService")


def test_every_gap_of_a_policy_is_named() -> None:
    good = access_pb2.Access(roles=[access_pb2.ROLE_CHECKOUT], event="thing.done")
    service = service_with(
        "gaps",
        {
            "Good": good,
            "Without": None,
            "ForNobody": access_pb2.Access(event="thing.done"),
            "ForUnspecified": access_pb2.Access(roles=[access_pb2.ROLE_UNSPECIFIED], event="thing.done"),
            "ForUnknown": access_pb2.Access(
                roles=[access_pb2.ROLE_CHECKOUT, access_pb2.Role.ValueType(9)], event="x.y"
            ),
            "Unheard": access_pb2.Access(roles=[access_pb2.ROLE_CHECKOUT]),
        },
    )

    with pytest.raises(PolicyGap) as caught:
        read_rules([*SERVICES.values(), service])

    assert [gap.removeprefix("tests.gaps.GapService.") for gap in caught.value.gaps] == [
        "Without: has no option (access)",
        "ForNobody: names no role",
        "ForUnspecified: names an unknown role",
        "ForUnknown: names an unknown role",
        "Unheard: names no event",
    ]


def test_a_whole_policy_gives_a_rule_to_each_path() -> None:
    rules = read_rules(list(SERVICES.values()))

    assert set(rules) == {path_of(method) for method in METHODS}


def test_a_server_whose_servicer_lacks_an_rpc_is_not_built(tmp_path: Path) -> None:
    class OnlyDetokenize:
        async def Detokenize(self) -> None:  # noqa: N802 - the RPC's name
            """Never called."""

    files = DevelopmentCa.load_or_create(tmp_path / "pki").issue_server()

    async def nobody_records(_: object) -> None:
        """Never called."""

    async def build() -> None:
        door = Door(identities=Identities({}), limits=Limits(), entropy=SystemEntropy(), record_refusal=nobody_records)
        with ThreadPoolExecutor(1) as executor:
            Server(
                door=door,
                servicers={"processor": OnlyDetokenize()},
                tls=TlsFiles(certificate=files.cert_file, private_key=files.key_file, client_ca=files.ca_file),
                address="127.0.0.1:0",
                checks=[],
                executor=executor,
            )

    with pytest.raises(PolicyGap) as caught:
        asyncio.run(build())

    assert caught.value.gaps == ("vault.v1.ProcessorService.ReportOutcome: has no handler",)


def test_one_role_without_the_others_certificate_sees_the_same_refusal(shop: Shop) -> None:
    """A stranger learns nothing about what exists from how it is refused."""
    stranger = shop.installation.client("nobody").channel

    answers = [raw_call(stranger, path_of(method), b"") for method in METHODS]

    assert {_shape(answer) for answer in answers} == {(PERMISSION_DENIED, "refused", ("cardvault-error-id",))}


def _shape(refusal: Refusal | None) -> tuple[grpc.StatusCode, str, tuple[str, ...]] | None:
    return None if refusal is None else (refusal.code, refusal.text, tuple(sorted(refusal.metadata)))


def test_a_connection_without_a_certificate_gets_no_answer_even_to_a_health_check(shop: Shop) -> None:
    server = shop.installation.servers[0]
    with channel_to(server.port, None, ca_file=shop.installation.ca.ca_file) as channel:
        refusal = raw_call(channel, "/grpc.health.v1.Health/Check", b"")

    assert refusal is not None
    assert refusal.code is UNAVAILABLE
