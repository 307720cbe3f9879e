"""Writes `docs/api.md` from the protos, comments and all; with `--check` only says whether it is up to date."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from vault.v1 import access_pb2

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PAGE = ROOT / "docs" / "api.md"
FILES = ("checkout", "account", "processor", "cards", "access")

_HEAD = """# API reference

Made from `protos/vault/v1` by `make generate`; edit the comments there. How the calls belong together is in
[integration.md](integration.md), what errors mean in the [README](../README.md).
"""

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    _Field.TYPE_STRING: "string",
    _Field.TYPE_BYTES: "bytes",
    _Field.TYPE_BOOL: "bool",
    _Field.TYPE_INT32: "int32",
    _Field.TYPE_INT64: "int64",
    _Field.TYPE_UINT32: "uint32",
    _Field.TYPE_UINT64: "uint64",
}
_FILE_SERVICE, _FILE_MESSAGE, _FILE_ENUM = 6, 4, 5
_SERVICE_METHOD, _MESSAGE_FIELD, _ENUM_VALUE = 2, 2, 2


class Source:
    """One proto file with its comments by path."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self.file = file
        self._comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}

    def said(self, *path: int) -> str:
        """The comment before an element, on one line."""
        return " ".join(self._comments.get(path, "").split())


def sources() -> Sequence[Source]:
    """The contract's files, in the order of the page."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "set"
        arguments = ["protoc", f"--proto_path={PROTOS}", f"--proto_path={resources.files('grpc_tools') / '_proto'}"]
        arguments += ["--include_source_info", f"--descriptor_set_out={out}"]
        if protoc.main([*arguments, *(str(PROTOS / "vault" / "v1" / f"{name}.proto") for name in FILES)]) != 0:
            sys.exit("protoc failed")
        found = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    by_name = {Path(file.name).stem: Source(file) for file in found.file}
    return [by_name[name] for name in FILES]


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(line for source in sources() for line in _file(source))]).rstrip() + "\n"


def _file(source: Source) -> Iterator[str]:
    for number, service in enumerate(source.file.service):
        yield from (f"## {service.name}", "", source.said(_FILE_SERVICE, number), "")
        for place, method in enumerate(service.method):
            yield from _method(source, method, (_FILE_SERVICE, number, _SERVICE_METHOD, place))
    if not source.file.service:
        yield from (f"## {Path(source.file.name).name}", "")
    for number, message in enumerate(source.file.message_type):
        yield from _message(source, message, (_FILE_MESSAGE, number))
    for number, enum in enumerate(source.file.enum_type):
        path = (_FILE_ENUM, number)
        yield from (f"### {enum.name}", "", source.said(*path), "", "| value | | |", "|---|---|---|")
        for place, value in enumerate(enum.value):
            yield f"| `{value.name}` | {value.number} | {_cell(source.said(*path, _ENUM_VALUE, place))} |"
        yield ""


def _method(source: Source, method: descriptor_pb2.MethodDescriptorProto, path: Sequence[int]) -> Iterator[str]:
    rule = method.options.Extensions[access_pb2.access]
    roles = ", ".join(access_pb2.Role.Name(role).removeprefix("ROLE_").lower() for role in rule.roles)
    yield from (f"### {method.name}", "", source.said(*path), "")
    yield f"Role {roles}; event `{rule.event}`. {_linked(method.input_type)} → {_linked(method.output_type)}"
    yield ""


def _message(source: Source, message: descriptor_pb2.DescriptorProto, path: Sequence[int]) -> Iterator[str]:
    yield from (f"### {message.name}", "", source.said(*path), "")
    if message.field:
        yield from ("| field | type | |", "|---|---|---|")
    for place, field in enumerate(message.field):
        said = _cell(source.said(*path, _MESSAGE_FIELD, place))
        secret = " *Secret: never log it.*" if field.options.debug_redact else ""
        yield f"| `{field.name}` ({field.number}) | {_type(message, field)} | {said}{secret} |"
    if message.field:
        yield ""
    if message.reserved_name:
        names = ", ".join(f"`{name}`" for name in message.reserved_name)
        yield from (f"Reserved, so that it can never be added: {names}.", "")


def _type(message: descriptor_pb2.DescriptorProto, field: descriptor_pb2.FieldDescriptorProto) -> str:
    kind = _SCALARS.get(field.type) or _linked(field.type_name)
    if field.HasField("oneof_index") and not field.proto3_optional:
        kind += f", one of `{message.oneof_decl[field.oneof_index].name}`"
    if field.proto3_optional:
        kind = f"optional {kind}"
    return f"repeated {kind}" if field.label == _Field.LABEL_REPEATED else kind


def _linked(full: str) -> str:
    name = full.rpartition(".")[2]
    return f"[{name}](#{name.lower()})" if full.startswith(".vault.v1.") else name


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    fresh = page()
    if not parser.parse_args().check:
        PAGE.write_text(fresh, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != fresh:
        sys.exit("out of date, run `make generate`: docs/api.md")


if __name__ == "__main__":
    main()
