"""The contract: who may call what, where a card number may stand, and that every part of it is explained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor, MethodDescriptor
from grpc_tools import protoc

from vault.domain.brand import Brand
from vault.domain.caller import Role
from vault.domain.card import CardState
from vault.domain.consent import CardUse, ConsentChannel
from vault.v1 import access_pb2, account_pb2, cards_pb2, checkout_pb2, processor_pb2

PROTOS = Path(__file__).resolve().parents[2] / "protos"
FILES: tuple[FileDescriptor, ...] = tuple(
    module.DESCRIPTOR for module in (access_pb2, account_pb2, cards_pb2, checkout_pb2, processor_pb2)
)
METHODS: tuple[MethodDescriptor, ...] = tuple(
    method for file in FILES for service in file.services_by_name.values() for method in service.methods
)
MESSAGES: tuple[Descriptor, ...] = tuple(m for file in FILES for m in file.message_types_by_name.values())
ENUMS: tuple[EnumDescriptor, ...] = tuple(e for file in FILES for e in file.enum_types_by_name.values())
FIELDS: tuple[FieldDescriptor, ...] = tuple(field for message in MESSAGES for field in message.fields)

SECRET_FIELDS = {"pan", "security_code", "holder_name", "grant", "one_time_token"}
FORBIDDEN_WORDS = re.compile(r"cvc|cvv|csc|track|pin_block|\bpin\b|bin|first6|magstripe|emv|iin")


def _reachable(message: Descriptor) -> Iterator[FieldDescriptor]:
    """All fields of a message and of the messages in it, each message once."""
    waiting, seen = [message], set()
    while waiting:
        current = waiting.pop()
        if current.full_name in seen:
            continue
        seen.add(current.full_name)
        yield from current.fields
        waiting += [field.message_type for field in current.fields if field.message_type is not None]


def _owner(field: FieldDescriptor) -> str:
    assert field.containing_type is not None, "every field stands in a message"
    return str(field.containing_type.name)


def _access(method: MethodDescriptor) -> access_pb2.Access:
    rule: access_pb2.Access = method.GetOptions().Extensions[access_pb2.access]
    return rule


def _is_redacted(field: FieldDescriptor) -> bool:
    return bool(field.GetOptions().debug_redact)


# --- access ---


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.full_name)
def test_every_rpc_says_who_may_call_it_and_what_the_audit_log_calls_it(method: MethodDescriptor) -> None:
    assert method.GetOptions().HasExtension(access_pb2.access)
    rule = _access(method)

    assert len(rule.roles) == len(set(rule.roles)) >= 1
    assert set(rule.roles) <= {int(role) for role in Role}
    assert re.fullmatch(r"[a-z]+\.[a-z_]+", rule.event)


def test_no_two_rpcs_share_an_event() -> None:
    events = [_access(method).event for method in METHODS]

    assert len(set(events)) == len(events)


def test_every_service_is_called_by_one_role() -> None:
    roles = {method.containing_service.name: {Role(r) for r in _access(method).roles} for method in METHODS}

    assert roles == {
        "CheckoutService": {Role.CHECKOUT},
        "AccountService": {Role.ACCOUNT},
        "ProcessorService": {Role.PROCESSOR},
    }
    assert all(len(_access(method).roles) == 1 for method in METHODS)


def test_every_rpc_is_unary() -> None:
    assert [m.full_name for m in METHODS if m.client_streaming or m.server_streaming] == []


def test_every_rpc_has_a_request_and_a_response_of_its_own() -> None:
    names = {m.name: (m.input_type.name, m.output_type.name) for m in METHODS}

    wrong = {name: pair for name, pair in names.items() if pair != (f"{name}Request", f"{name}Response")}

    assert wrong == {}
    assert len(names) == len(METHODS)


# --- where secrets may stand ---


def test_a_card_number_goes_out_in_one_response_of_one_rpc() -> None:
    holding = {m.full_name for m in METHODS if any(f.name == "pan" for f in _reachable(m.output_type))}

    assert holding == {"vault.v1.ProcessorService.Detokenize"}


def test_a_response_holds_at_most_one_card_number() -> None:
    fields = [f for f in FIELDS if f.name == "pan"]

    assert {_owner(f) for f in fields} == {"CardInput", "DetokenizeResponse"}
    assert [f.full_name for f in fields if f.is_repeated] == []


def test_a_released_card_is_never_nested_in_anything() -> None:
    holders = [
        f.full_name for f in FIELDS if f.message_type is not None and f.message_type.name == "DetokenizeResponse"
    ]

    assert holders == []


def test_a_security_code_stands_in_two_messages() -> None:
    assert {_owner(f) for f in FIELDS if f.name == "security_code"} == {"CardInput", "DetokenizeResponse"}


def test_a_typed_card_stands_in_requests_only() -> None:
    outgoing = {
        f.full_name
        for m in METHODS
        for f in _reachable(m.output_type)
        if f.message_type is not None and f.message_type.name == "CardInput"
    }

    assert outgoing == set()


def test_every_field_that_can_hold_a_secret_is_redacted() -> None:
    bare = {f.full_name for f in FIELDS if f.name in SECRET_FIELDS and not _is_redacted(f)}

    assert bare == set()


def test_nothing_else_has_the_name_of_sensitive_data() -> None:
    named = [f.full_name for f in FIELDS if FORBIDDEN_WORDS.search(f.name)]

    assert named == []


def test_the_shown_card_reserves_the_names_it_must_never_have() -> None:
    card = descriptor_pb2.DescriptorProto()
    cards_pb2.Card.DESCRIPTOR.CopyToProto(card)

    assert {"pan", "cvc", "cvv", "security_code", "track_data", "pin_block"} <= set(card.reserved_name)


def test_no_request_names_a_tenant() -> None:
    named = {f.full_name for m in METHODS for f in _reachable(m.input_type) if "tenant" in f.name}

    assert named == set()


# --- enums ---


@pytest.mark.parametrize("enum", ENUMS, ids=lambda e: e.full_name)
def test_zero_means_unspecified(enum: EnumDescriptor) -> None:
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()

    assert enum.values_by_number[0].name == f"{prefix}_UNSPECIFIED"
    assert all(value.name.startswith(prefix + "_") for value in enum.values)
    assert len(enum.values) == len(enum.values_by_number)


@pytest.mark.parametrize("domain", [Role, Brand, CardUse, ConsentChannel, CardState], ids=lambda e: e.__name__)
def test_the_enums_of_domain_and_contract_are_the_same(domain: type[IntEnum]) -> None:
    enum = next(e for e in ENUMS if e.name == domain.__name__)
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"

    contract = {value.name.removeprefix(prefix): value.number for value in enum.values if value.number != 0}

    assert contract == {member.name: member.value for member in domain}


# --- comments ---


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[descriptor_pb2.FileDescriptorProto, ...]:
    """The descriptors with the comments of the .proto files."""
    out = tmp_path_factory.mktemp("protos") / "set"
    well_known = Path(protoc.__file__).parent / "_proto"
    names = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))

    arguments = [f"--proto_path={PROTOS}", f"--proto_path={well_known}", "--include_source_info"]
    assert protoc.main(["protoc", *arguments, f"--descriptor_set_out={out}", *names]) == 0

    return tuple(descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file)


def _explained(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and source path of everything that needs a comment."""
    yield file.name, (2,)  # the package line
    for s, service in enumerate(file.service):
        yield service.name, (6, s)
        yield from ((f"{service.name}.{m.name}", (6, s, 2, i)) for i, m in enumerate(service.method))
    for e, enum in enumerate(file.enum_type):
        yield enum.name, (5, e)
        yield from ((f"{enum.name}.{v.name}", (5, e, 2, i)) for i, v in enumerate(enum.value))
    for n, extension in enumerate(file.extension):
        yield extension.name, (7, n)
    waiting = [(message, (4, m)) for m, message in enumerate(file.message_type)]
    while waiting:
        message, path = waiting.pop()
        yield message.name, path
        yield from ((f"{message.name}.{f.name}", (*path, 2, i)) for i, f in enumerate(message.field))
        yield from ((f"{message.name}.{o.name}", (*path, 8, i)) for i, o in enumerate(message.oneof_decl))
        for i, enum in enumerate(message.enum_type):
            yield enum.name, (*path, 4, i)
        waiting += [(nested, (*path, 3, i)) for i, nested in enumerate(message.nested_type)]  # type: ignore[misc]


def test_everything_in_the_contract_is_explained(sources: tuple[descriptor_pb2.FileDescriptorProto, ...]) -> None:
    missing = []
    for file in sources:
        comments = {tuple(at.path): at.leading_comments.strip() for at in file.source_code_info.location}
        missing += [f"{file.name}: {name}" for name, path in _explained(file) if not comments.get(path)]

    assert missing == []
