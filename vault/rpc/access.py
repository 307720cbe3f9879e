"""The policy: read from the descriptors, denying by default, complete or no server (PCI DSS 7.2.1, 7.3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from vault.domain.caller import Role
from vault.v1 import access_pb2, account_pb2, checkout_pb2, processor_pb2

SERVICES: Mapping[str, ServiceDescriptor] = {
    "checkout": checkout_pb2.DESCRIPTOR.services_by_name["CheckoutService"],
    "account": account_pb2.DESCRIPTOR.services_by_name["AccountService"],
    "processor": processor_pb2.DESCRIPTOR.services_by_name["ProcessorService"],
}
"""Every service of the contract under the name that the configuration gives it."""


class PolicyGap(Exception):
    """The contract does not say who may call something; the server must not start."""

    def __init__(self, gaps: Sequence[str]) -> None:
        super().__init__("; ".join(gaps))
        self.gaps = tuple(gaps)


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may call one RPC, and its name in the audit log."""

    roles: frozenset[Role]
    event: str


def read_rules(services: Sequence[ServiceDescriptor]) -> Mapping[str, Rule]:
    """The rule of each RPC by path, as in `/vault.v1.CheckoutService/Tokenize`. Raises `PolicyGap` naming every gap."""
    rules: dict[str, Rule] = {}
    gaps: list[str] = []
    for service in services:
        for method in service.methods:
            problem = _problem_with(method)
            if problem is not None:
                gaps.append(f"{method.full_name}: {problem}")
                continue
            access = method.GetOptions().Extensions[access_pb2.access]
            rules[path_of(method)] = Rule(frozenset(Role(role) for role in access.roles), access.event)
    if gaps:
        raise PolicyGap(gaps)
    return rules


def path_of(method: MethodDescriptor) -> str:
    """The path by which gRPC calls it."""
    return f"/{method.containing_service.full_name}/{method.name}"


def _problem_with(method: MethodDescriptor) -> str | None:
    options = method.GetOptions()
    if not options.HasExtension(access_pb2.access):
        return "has no option (access)"
    access = options.Extensions[access_pb2.access]
    if not access.roles:
        return "names no role"
    if access_pb2.ROLE_UNSPECIFIED in access.roles or not set(access.roles) <= {int(role) for role in Role}:
        return "names an unknown role"
    if not access.event:
        return "names no event"
    return None
