"""`cardvault keys certificate` and `check-certificate`: a signed report on the newest rotation."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import typer

from vault.app_operator import MissingLogin
from vault.cli.operating import EXIT_DUE, EXIT_FAILED, EXIT_OK, EXIT_USAGE, Terminal, ending, operating
from vault.usecases.certificate import FORMAT, WAITING, IssueCertificate


def certificate(config: Path, *, out: Path) -> int:
    """Write the signed report on the newest rotation."""
    terminal = Terminal(as_json=False)
    with operating(config) as tools:

        def command() -> int:
            signer = tools.signer()
            if signer is None:
                raise MissingLogin("checkpointer")
            made = IssueCertificate(world=tools.world, keys=tools.operator_keys(), signer=signer)()
            try:
                out.write_text(made.text + "\n", encoding="utf-8")
            except OSError as e:
                terminal.trouble(f"cannot write {out}: {e.strerror}")
                return EXIT_USAGE
            terminal.say(f"{out}: signed; check it with `cardvault keys check-certificate`")
            if made.waiting:
                terminal.trouble(_unfinished(made.waiting, f"version {made.version}; run `cardvault keys rewrap`"))
                return EXIT_DUE
            return EXIT_OK

        return ending(terminal, command)


def _unfinished(waiting: int, than: str) -> str:
    return f"warning: the rewrap is unfinished: {waiting} cards are under versions older than {than}"


def check_certificate(file: Path, *, public_key: str | None) -> int:
    """Check a certificate offline."""
    facts = signed_statement(file, public_key=public_key, form=FORMAT)
    if isinstance(facts, int):
        return facts
    if facts.get(WAITING):
        typer.echo(_unfinished(facts[WAITING], f"version {facts.get('version')}"), err=True)
    typer.echo(json.dumps(facts, indent=2))
    return EXIT_OK


def signed_statement(file: Path, *, public_key: str | None, form: str) -> dict[str, Any] | int:
    """What a signed report states, or the exit code where it is not to be believed; says why."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        statement, signature = document["statement"].encode(), base64.b64decode(document["signature"])
        key = base64.b64decode(public_key or document["public_key"])
        Ed25519PublicKey.from_public_bytes(key).verify(signature, statement)
        facts = json.loads(statement)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        typer.echo(f"{file}: cannot be read as a signed report", err=True)
        return EXIT_USAGE
    except InvalidSignature:
        typer.echo(f"{file}: the signature does not match: it was altered, or signed by another key", err=True)
        return EXIT_FAILED
    if not isinstance(facts, dict) or facts.get("format") != form:
        typer.echo(f"{file}: unknown format", err=True)
        return EXIT_USAGE
    if public_key is None:
        typer.echo("checked against the key inside the file; give --public-key to check who signed it", err=True)
    return facts
