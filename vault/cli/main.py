"""The command `cardvault`. Subcommands import what they need when they run, so that help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="cardvault",
    help="A vault for payment cards: tokens, recorded consent, single-use grants.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
database = typer.Typer(name="db", help="The database's schema.", no_args_is_help=True)
vault = typer.Typer(name="vault", help="Set-up of HashiCorp Vault or OpenBao.", no_args_is_help=True)
app.add_typer(database)
app.add_typer(vault)

Config = Annotated[Path, typer.Option("--config", "-c", help="The TOML file.", metavar="FILE")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
State = Annotated[Path, typer.Option("--state", help="Where the state is kept.", metavar="DIR")]


@app.command()
def serve(
    config: Config,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="List every problem of the file and stop: exit 0 if none, else 2.")
    ] = False,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and exit 0. Exit 2: refused to start."""
    from vault.cli import serve as command

    raise typer.Exit(command.check(config) if check_config else command.run(config))


@app.command()
def dev(state: State = Path(".cardvault")) -> None:
    """A whole stack for development: OpenBao, SQLite, a CA with a certificate for each role, and the server.

    Keeps its state across restarts. Ctrl-C stops it.
    """
    from vault.cli import dev as command

    raise typer.Exit(command.run(state))


@app.command()
def demo() -> None:
    """Walk the main job on a scratch stack, step by step. Exit 0 only if every step did what it should."""
    from vault.cli import demo as command

    raise typer.Exit(command.run())


@app.command()
def doctor(config: Config, as_json: Json = False) -> None:
    """Look at a deployment: file, certificates, database, Vault, process.

    Exit 0: well; 1: warnings; 2: unfit to serve.
    """
    from vault.cli import doctor as command

    raise typer.Exit(command.run(config, as_json=as_json))


@database.command()
def upgrade(
    config: Config,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Bring the schema to this release's. Safe to run twice, also from several hosts at once."""
    from vault.cli import database as command

    raise typer.Exit(command.upgrade(config, dry_run=dry_run))


@database.command()
def status(config: Config, as_json: Json = False) -> None:
    """Say which schema the database has. Exit 0: this release's; 1: another."""
    from vault.cli import database as command

    raise typer.Exit(command.status(config, as_json=as_json))


@vault.command("setup")
def vault_setup(
    address: Annotated[str, typer.Option(help="https://host:port of Vault or OpenBao.")],
    ca_file: Annotated[Path, typer.Option(help="CA of its certificate.")],
    admin_token_file: Annotated[Path, typer.Option(help="File with a token that may set it up (mode 0600).")],
    out: Annotated[Path, typer.Option(help="Folder for role_id and secret_id files, one folder for each login.")],
    mount: Annotated[str, typer.Option(help="Where the transit engine is, or is to be, mounted.")] = "transit",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Make keys, policies and logins in Vault as cardvault needs them. Safe to run twice."""
    from vault.cli import vault_setup as command

    raise typer.Exit(
        command.run(
            address=address, ca_file=ca_file, admin_token_file=admin_token_file, out=out, mount=mount, dry_run=dry_run
        )
    )


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(installed("cardvault"))


def main() -> None:
    """Entry point."""
    app()
