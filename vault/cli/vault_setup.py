"""`cardvault vault setup`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import typer

from vault.config_file import is_exposed
from vault.hardening import harden


def run(
    *, address: str, ca_file: Path, admin_token_file: Path, out: Path | None, mount: str, dry_run: bool, as_json: bool
) -> int:
    """Bring a Vault to where the server can use it. Exit 0: done, or nothing to do; 2: refused."""
    from vault.embedded.files import policies_dir
    from vault.keyring.admin import Administrator
    from vault.keyring.login import VaultAddress
    from vault.keyring.setup import (
        LoginName,
        SetupRefused,
        changes,
        configure,
        hints,
        issue_secret_id,
        login_files,
        write_login_files,
    )

    try:
        token = _admin_token(admin_token_file, ca_file)
        place = VaultAddress(address=address, ca_file=ca_file, mount=mount)
    except (OSError, ValueError) as e:
        return _refuse([str(e)], as_json=as_json)
    with closing(Administrator(place, token=token)) as admin:
        try:
            due = [change.what for change in changes(admin.client, mount=mount, policies_dir=policies_dir())]
            missing = [] if out is None else [n for n in LoginName if not login_files(out / n).exist()]
            due += [f"issue credentials for {name} into {out}/{name}/" for name in missing]
            if due and not dry_run:
                role_ids = configure(admin.client, mount=mount, policies_dir=policies_dir())
                for name in missing:
                    assert out is not None, "nothing is missing otherwise"
                    secret_id = issue_secret_id(admin.client, name.role)
                    write_login_files(out / name, role_id=role_ids[name], secret_id=secret_id)
            notes = hints(admin.client)
        except SetupRefused as e:
            return _refuse(e.problems, as_json=as_json)
    if as_json:
        typer.echo(json.dumps({"dry_run": dry_run, "changes": due, "hints": notes}, indent=2))
        return 0
    for change in due:
        typer.echo(f"{'would ' if dry_run else ''}{change}")
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    if not due:
        typer.echo("nothing to do")
    elif not dry_run:
        typer.echo("done; give each process only the login that it needs")
    return 0


def _refuse(problems: Sequence[str], *, as_json: bool) -> int:
    if as_json:
        typer.echo(json.dumps({"refused": list(problems)}, indent=2))
    typer.echo("cardvault vault setup: refused", err=True)
    for problem in problems:
        typer.echo(f"  - {problem}", err=True)
    return 2


def renew(*, login: str, address: str, ca_file: Path, admin_token_file: Path, out: Path, dry_run: bool) -> int:
    """Make one login anew. Exit 0: done; 2: refused."""
    from vault.keyring.admin import Administrator
    from vault.keyring.login import VaultAddress
    from vault.keyring.setup import LoginName, SetupRefused, renew_login, write_login_files

    try:
        name = LoginName(login)
    except ValueError:
        typer.echo(f"cardvault vault renew-login: there is no login of that name ({', '.join(LoginName)})", err=True)
        return 2
    if dry_run:
        typer.echo(f"would make login {name} anew, void its credentials, and write new ones into {out / name}/")
        return 0
    try:
        token = _admin_token(admin_token_file, ca_file)
        place = VaultAddress(address=address, ca_file=ca_file)
        with closing(Administrator(place, token=token)) as admin:
            role_id, secret_id = renew_login(admin.client, name)
    except (OSError, ValueError) as e:
        typer.echo(f"cardvault vault renew-login: {e}", err=True)
        return 2
    except SetupRefused as e:
        for problem in e.problems:
            typer.echo(f"  - {problem}", err=True)
        return 2
    write_login_files(out / name, role_id=role_id, secret_id=secret_id)
    typer.echo(f"login {name}: made anew; what was issued before is void; new credentials are in {out / name}/")
    return 0


def _admin_token(file: Path, ca_file: Path) -> str:
    """Raises `ValueError` in words for files that will not do."""
    for option, path in (("--admin-token-file", file), ("--ca-file", ca_file)):
        if not path.is_file():
            raise ValueError(f"{option}: no such file: {path}")
    if is_exposed(file):
        raise ValueError(f"--admin-token-file: others may read it: chmod 600 {file}")
    harden()
    return file.read_text(encoding="utf-8").strip()
