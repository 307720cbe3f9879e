"""The command `cardvault`. Subcommands import what they need when they run, so that help is quick."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vault.cli.manual import PAGES

_GROUPS = ("db", "tenants", "consent", "vault", "keys", "audit", "restore", "retention")
# Given as values, typer need not load pydantic to look at what is none, for the help of every command.
_OFF = {"help": False, "install_completion": False, "show_completion": False}

app = typer.Typer(
    name="cardvault",
    help="A vault for payment cards: tokens, recorded consent, single-use grants.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    # Plain text: quick, the same on a terminal, in a pipe and in the README.
    rich_markup_mode=None,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "default_map": {**_OFF, **dict.fromkeys(_GROUPS, _OFF)},
    },
    epilog="`cardvault COMMAND --help` says what a command changes, its exit codes and how it is typed.",
)


def _group(name: str, text: str) -> typer.Typer:
    group = typer.Typer(name=name, help=text, no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(group)
    return group


database = _group("db", "The database's schema.")
tenants = _group("tenants", "Shops that leave.")
consent = _group("consent", "The ledger of customers' consents.")
vault = _group("vault", "Set-up of HashiCorp Vault or OpenBao.")
keys = _group("keys", "Rotation of keys, safe beside running servers.")
audit = _group("audit", "The audit log: verify, prove, read, keep.")
restore = _group("restore", "After the database was restored from a backup.")
retention = _group("retention", "Nothing is kept longer than it may be: show it, prove it.")

Reason = Annotated[str, typer.Option("--reason", help="Why; stands in the audit log.", metavar="TEXT")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
MaxRate = Annotated[float | None, typer.Option("--max-rate", help="Cards a second at most.", min=0.1)]
GiveUp = Annotated[
    float, typer.Option("--give-up-after", help="Seconds to wait for Vault or the database to come back.", min=0)
]
Tenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant's cards.")]
Since = Annotated[datetime | None, typer.Option("--since", help="Only cards first stored at or after.")]
Until = Annotated[datetime | None, typer.Option("--until", help="Only cards first stored before.")]
Key = Annotated[str, typer.Option("--key", help="cards, once, fingerprint or audit (or the transit key's whole name).")]
Config = Annotated[Path, typer.Option("--config", "-c", help="The TOML file.", metavar="FILE")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
State = Annotated[Path, typer.Option("--state", help="Where the state is kept.", metavar="DIR")]


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def cardvault(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A vault for payment cards: tokens, recorded consent, single-use grants."""


@app.command()
def serve(
    config: Config,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="Processes that share the port, on PostgreSQL. Default: as the file says, or 1."
        ),
    ] = None,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="List every problem of the file and stop: exit 0 if none, else 2.")
    ] = False,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and exit 0."""
    from vault.cli import serve as command

    raise typer.Exit(command.check(config, workers) if check_config else command.run(config, workers))


@app.command()
def dev(state: State = Path(".cardvault")) -> None:
    """A whole stack for development: OpenBao, SQLite, a CA with a certificate for each role, and the server.

    Keeps its state across restarts. Ctrl-C stops it.
    """
    from vault.cli import dev as command

    raise typer.Exit(command.run(state))


@app.command()
def demo() -> None:
    """Walk the main job on a scratch stack, step by step."""
    from vault.cli import demo as command

    raise typer.Exit(command.run())


@app.command()
def doctor(config: Config, as_json: Json = False) -> None:
    """Look at a deployment: file, certificates, database, Vault, process."""
    from vault.cli import doctor as command

    raise typer.Exit(command.run(config, as_json=as_json))


@app.command("status")
def overview(config: Config, as_json: Json = False) -> None:
    """The whole installation on one screen, and what to do next.

    Server, Vault and its logins, keys, cards, audit log, retention, certificates: each is looked at by itself, so
    it also works while Vault or the database is down.
    """
    from vault.cli import status as command

    raise typer.Exit(command.run(config, as_json=as_json))


@app.command()
def health(
    address: Annotated[str, typer.Option(help="HOST:PORT of the server.")],
    certificate: Annotated[Path, typer.Option(help="A client certificate; it needs no role.", metavar="FILE")],
    private_key: Annotated[Path, typer.Option(help="Its key.", metavar="FILE")],
    ca: Annotated[Path, typer.Option(help="CA of the server's certificate.", metavar="FILE")],
    server_name: Annotated[
        str | None, typer.Option(help="The name in the server's certificate, where --address is another one.")
    ] = None,
    service: Annotated[
        str, typer.Option(help="ready: it can do its work; live: it is up, whatever else is down; or a service's name.")
    ] = "ready",
    timeout: Annotated[float, typer.Option(help="Seconds.", min=0.1, max=60)] = 5,
) -> None:
    """Ask a server how it is, over grpc.health.v1, for probes."""
    from vault.cli import health as command

    raise typer.Exit(
        command.run(
            address=address,
            certificate=certificate,
            private_key=private_key,
            ca=ca,
            server_name=server_name,
            service=service,
            timeout=timeout,
        )
    )


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
    """Say which schema the database has."""
    from vault.cli import database as command

    raise typer.Exit(command.status(config, as_json=as_json))


@vault.command("setup")
def vault_setup(
    address: Annotated[str, typer.Option(help="https://host:port of Vault or OpenBao.")],
    ca_file: Annotated[Path, typer.Option(help="CA of its certificate.")],
    admin_token_file: Annotated[Path, typer.Option(help="File with a token that may set it up (mode 0600).")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for role_id and secret_id files, one folder for each login; without it none is made."
        ),
    ] = None,
    mount: Annotated[str, typer.Option(help="Where the transit engine is, or is to be, mounted.")] = "transit",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make keys, policies and logins in Vault as cardvault needs them, and put right what was changed since.

    Safe to run twice: what is as it should be is not written again. Exit 0: done, or nothing to do; 2: refused, as
    where a key is exportable. The policy deploy/vault/setup.hcl is all that the token needs.
    """
    from vault.cli import vault_setup as command

    raise typer.Exit(
        command.run(
            address=address,
            ca_file=ca_file,
            admin_token_file=admin_token_file,
            out=out,
            mount=mount,
            dry_run=dry_run,
            as_json=as_json,
        )
    )


@keys.command("status")
def keys_status(config: Config, as_json: Json = False) -> None:
    """Every key with versions, age, what still needs which version, unfinished work, and a canary wrap and unwrap."""
    from vault.cli import key_status as command

    raise typer.Exit(command.status(config, as_json=as_json))


@keys.command("rotate")
def keys_rotate(
    config: Config,
    reason: Reason,
    key: Key = "cards",
    again: Annotated[bool, typer.Option("--again", help="Also if the newest version is younger than an hour.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make exactly one new version of a key, whatever Vault answers. Safe to run again after it was cut off."""
    from vault.cli import keys as command

    raise typer.Exit(command.rotate(config, key=key, reason=reason, again=again, dry_run=dry_run, as_json=as_json))


@keys.command("rewrap")
def keys_rewrap(
    config: Config,
    reason: Reason,
    proof: Annotated[
        str, typer.Option("--verify", help="Open new wraps before they replace former ones: none, sample, all.")
    ] = "sample",
    max_rate: MaxRate = None,
    give_up_after: GiveUp = 600,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Move every card's wrapped data key to the newest version, inside Vault, without plaintext.

    Runs beside live traffic and beside another operator doing the same; run it again to resume. Former wraps are kept
    until `trim`. What Vault refuses is reported and left as it was.
    """
    from vault.cli import keys as command

    if proof not in ("none", "sample", "all"):
        raise typer.BadParameter("--verify must be none, sample or all")
    raise typer.Exit(
        command.rewrap(
            config,
            reason=reason,
            proof=proof,
            max_rate=max_rate,
            give_up_after=give_up_after,
            dry_run=dry_run,
            as_json=as_json,
        )
    )


@keys.command("retire")
def keys_retire(
    config: Config,
    reason: Reason,
    key: Key = "cards",
    settle: Annotated[
        float, typer.Option("--settle", help="Seconds to wait for calls under way; longer than any may take.", min=0)
    ] = 35,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Stop older versions of a key from being used. Refuses while one row needs them; reversible until `trim`."""
    from vault.cli import keys as command

    raise typer.Exit(command.retire(config, key=key, reason=reason, settle=settle, dry_run=dry_run, as_json=as_json))


@keys.command("unretire")
def keys_unretire(
    config: Config, reason: Reason, key: Key = "cards", dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Make retired versions of a key usable again, as far as they were not trimmed."""
    from vault.cli import keys as command

    raise typer.Exit(command.unretire(config, key=key, reason=reason, dry_run=dry_run, as_json=as_json))


@keys.command("trim")
def keys_trim(
    config: Config,
    reason: Reason,
    key: Key = "cards",
    snapshot_confirmed: Annotated[
        bool, typer.Option("--snapshot-confirmed", help="A Vault snapshot holding the newest version exists.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Destroy retired versions for good.

    Refuses unless --snapshot-confirmed: restoring a Vault snapshot older than the rotation would lose cards. Database
    backups older than the rewrap become unreadable, which is how an erased card disappears from backups as well.
    """
    from vault.cli import keys as command

    raise typer.Exit(
        command.trim(
            config,
            key=key,
            reason=reason,
            snapshot_confirmed=snapshot_confirmed,
            yes=yes,
            dry_run=dry_run,
            as_json=as_json,
        )
    )


@keys.command("rekey")
def keys_rekey(
    config: Config,
    reason: Reason,
    tenant: Tenant = None,
    since: Since = None,
    until: Until = None,
    max_rate: MaxRate = None,
    give_up_after: GiveUp = 600,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Give cards new data keys, new ciphertext and new fingerprints under the same tokens.

    The answer to an exposed data key or fingerprint key. Cards are due whose data key is older than the newest version
    of the key `cards`: rotate first. Needs the logins operator, intake and release. Run it again to resume.
    """
    from vault.cli import keys as command

    raise typer.Exit(
        command.rekey(
            config,
            reason=reason,
            tenant=tenant,
            since=since,
            until=until,
            max_rate=max_rate,
            give_up_after=give_up_after,
            dry_run=dry_run,
            as_json=as_json,
        )
    )


@keys.command("verify")
def keys_verify(
    config: Config,
    reason: Reason = "verification",
    tenant: Tenant = None,
    since: Since = None,
    until: Until = None,
    max_rate: MaxRate = None,
    give_up_after: GiveUp = 600,
    as_json: Json = False,
) -> None:
    """Open every card, printing none; check binding, fingerprint and display digits."""
    from vault.cli import keys as command

    raise typer.Exit(
        command.verify(
            config,
            reason=reason,
            tenant=tenant,
            since=since,
            until=until,
            max_rate=max_rate,
            give_up_after=give_up_after,
            as_json=as_json,
        )
    )


@keys.command("maintain")
def keys_maintain(config: Config, reason: Reason = "daily", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Rotate the one-time key once a day and destroy versions that no living one-time token needs. For a timer."""
    from vault.cli import keys as command

    raise typer.Exit(command.maintain(config, reason=reason, dry_run=dry_run, as_json=as_json))


@keys.command("recover")
def keys_recover(config: Config, reason: Reason, dry_run: DryRun = False, as_json: Json = False) -> None:
    """After another Vault snapshot was restored: exchange wraps that it cannot open for former ones that it can.

    Nothing is thrown away: when the newer snapshot is restored after all, the same command exchanges them back.
    """
    from vault.cli import keys as command

    raise typer.Exit(command.recover(config, reason=reason, dry_run=dry_run, as_json=as_json))


@keys.command("certificate")
def keys_certificate(
    config: Config, out: Annotated[Path, typer.Option("--out", help="Where to write it.", metavar="FILE")]
) -> None:
    """Write a signed report on the newest rotation: counts before and after, digests, failures, who, when, why."""
    from vault.cli import certificate as command

    raise typer.Exit(command.certificate(config, out=out))


@keys.command("check-certificate")
def keys_check_certificate(
    file: Annotated[Path, typer.Argument(help="The certificate.", metavar="FILE")],
    public_key: Annotated[str | None, typer.Option("--public-key", help="Base64, as Vault shows it.")] = None,
) -> None:
    """Check a certificate offline."""
    from vault.cli import certificate as command

    raise typer.Exit(command.check_certificate(file, public_key=public_key))


@vault.command("renew-login")
def vault_renew_login(
    login: Annotated[str, typer.Argument(help="intake, release, operator or checkpointer.")],
    address: Annotated[str, typer.Option(help="https://host:port of Vault or OpenBao.")],
    ca_file: Annotated[Path, typer.Option(help="CA of its certificate.")],
    admin_token_file: Annotated[Path, typer.Option(help="File with a token that may set it up (mode 0600).")],
    out: Annotated[Path, typer.Option(help="Folder of the logins, as given to `vault setup`.")],
    dry_run: DryRun = False,
) -> None:
    """Make a login anew and void whatever its thief may hold: role id, secret ids and tokens.

    The tokens of the other logins are revoked as well; their processes log in again by themselves.
    """
    from vault.cli import vault_setup as command

    raise typer.Exit(
        command.renew(
            login=login,
            address=address,
            ca_file=ca_file,
            admin_token_file=admin_token_file,
            out=out,
            dry_run=dry_run,
        )
    )


KeyFile = Annotated[
    Path | None,
    typer.Option("--key", help="Public keys, one a line, kept elsewhere; else Vault is asked.", metavar="FILE"),
]
ReadReason = Annotated[str, typer.Option("--reason", help="Why the log is read; stands in it.", metavar="TEXT")]
ProofOut = Annotated[Path | None, typer.Option("--out", help="Write it there instead of printing it.", metavar="FILE")]


@audit.command("verify")
def audit_verify(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The TOML file.", metavar="FILE")] = None,
    export: Annotated[
        Path | None, typer.Option("--export", help="Verify this folder offline instead.", metavar="DIR")
    ] = None,
    key: KeyFile = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option("--checkpoint", help="A checkpoint kept elsewhere; may be given often.", metavar="FILE"),
    ] = None,
    reason: ReadReason = "verification",
    as_json: Json = False,
) -> None:
    """Find any edit, insertion, removal, reordering or truncation.

    Every event is hashed anew and held against every signed checkpoint. Give a checkpoint that you kept yourself:
    then nobody can have cut the log off or exchanged the whole of it since.
    """
    from vault.cli import audit as command

    raise typer.Exit(
        command.verify(
            config, export=export, key_file=key, checkpoints=checkpoint or [], reason=reason, as_json=as_json
        )
    )


@audit.command("prove")
def audit_prove(
    config: Config,
    event: Annotated[str, typer.Argument(help="The event: evt_ and letters.")],
    out: ProofOut = None,
    reason: ReadReason = "proof",
    as_json: Json = False,
) -> None:
    """A file that shows to anybody with the public key that this event is in the signed log."""
    from vault.cli import audit as command

    raise typer.Exit(command.prove(config, event=event, out=out, reason=reason, as_json=as_json))


@audit.command("consistency")
def audit_consistency(
    config: Config,
    old: Annotated[Path, typer.Argument(help="The older checkpoint's file.")],
    new: Annotated[Path, typer.Argument(help="The newer checkpoint's file.")],
    out: ProofOut = None,
    reason: ReadReason = "proof",
) -> None:
    """A file that shows that the newer checkpoint's log is the older one's with events added, and nothing else."""
    from vault.cli import audit as command

    raise typer.Exit(command.consistency(config, old=old, new=new, out=out, reason=reason))


@audit.command("check-proof")
def audit_check_proof(
    file: Annotated[Path, typer.Argument(help="What `prove` or `consistency` wrote.")],
    key: Annotated[Path, typer.Option("--key", help="Public keys, one a line.", metavar="FILE")],
) -> None:
    """Check a proof offline."""
    from vault.cli import audit as command

    raise typer.Exit(command.check_proof(file, key_file=key))


@audit.command("tail")
def audit_tail(
    config: Config,
    count: Annotated[int, typer.Option("--count", "-n", help="How many of the newest.", min=1, max=100_000)] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    reason: ReadReason = "reading",
    as_json: Json = False,
) -> None:
    """Show the newest events, one a line; with --json in canonical form, as they are hashed."""
    from vault.cli import audit as command

    raise typer.Exit(command.tail(config, count=count, follow=follow, reason=reason, as_json=as_json))


@audit.command("report")
def audit_report(
    config: Config,
    since: Annotated[str, typer.Option("--since", help="How far back: 30m, 24h, 7d.")] = "24h",
    reason: ReadReason = "daily review",
    as_json: Json = False,
) -> None:
    """Refused redemptions, failed openings, peaks, identities never seen before."""
    from vault.cli import audit as command

    raise typer.Exit(command.report(config, since=since, reason=reason, as_json=as_json))


@audit.command("export")
def audit_export(
    config: Config,
    out: Annotated[Path, typer.Option("--out", help="The folder; one that was begun is gone on with.", metavar="DIR")],
    reason: ReadReason = "export",
    as_json: Json = False,
) -> None:
    """Write the whole log to a folder: events in segments, checkpoints, public keys. Run again to add what is new."""
    from vault.cli import audit as command

    raise typer.Exit(command.export(config, out=out, reason=reason, as_json=as_json))


@audit.command("checkpoint")
def audit_checkpoint(config: Config, out: ProofOut = None, as_json: Json = False) -> None:
    """Sign what is in the log now and print the newest checkpoint. Keep it where no administrator of cardvault is."""
    from vault.cli import audit as command

    raise typer.Exit(command.checkpoint(config, out=out, as_json=as_json))


@audit.command("keys")
def audit_keys(config: Config) -> None:
    """Print the public keys that sign checkpoints (C2SP verifier keys). Hand them to auditors once."""
    from vault.cli import audit as command

    raise typer.Exit(command.keys(config))


@audit.command("status")
def audit_status(config: Config, as_json: Json = False) -> None:
    """How many events are in the log, waiting, signed, copied, and how old that is."""
    from vault.cli import audit as command

    raise typer.Exit(command.status(config, as_json=as_json))


@restore.command("reconcile")
def restore_reconcile(
    config: Config,
    reason: Reason,
    copy: Annotated[
        Path | None,
        typer.Option("--from", help="The copy or an export of the log; else [audit] directory.", metavar="DIR"),
    ] = None,
    key: KeyFile = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Put back what the log's copy knows and a restored database forgot. Stop all servers first; safe to run twice.

    Erasures are carried out again, every open grant is revoked and every one-time token destroyed: some were used since
    the backup. The log goes on where it was, so every checkpoint ever signed still fits.
    """
    from vault.cli import restore as command

    raise typer.Exit(
        command.reconcile(config, copy=copy, key_file=key, reason=reason, yes=yes, dry_run=dry_run, as_json=as_json)
    )


@tenants.command("erase")
def tenants_erase(
    config: Config,
    tenant: Annotated[str, typer.Argument(help="The tenant.")],
    reason: Reason,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    max_rate: MaxRate = None,
    give_up_after: GiveUp = 600,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Erase every card of a tenant, with its open grants. Take the tenant's identities out of the servers' files first.

    Run it again to resume. Needs no login to Vault.
    """
    from vault.cli import tenants as command

    raise typer.Exit(
        command.erase(
            config,
            tenant=tenant,
            reason=reason,
            yes=yes,
            max_rate=max_rate,
            give_up_after=give_up_after,
            dry_run=dry_run,
            as_json=as_json,
        )
    )


@retention.command("plan")
def retention_plan(config: Config, as_json: Json = False) -> None:
    """Count by rule what a run would remove now, and within the next 30 days. Changes nothing."""
    from vault.cli import retention as command

    raise typer.Exit(command.plan(config, as_json=as_json))


@retention.command("run")
def retention_run(
    config: Config,
    max_rate: MaxRate = None,
    give_up_after: GiveUp = 600,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remove what is due. Run it again to resume. Needs no login to Vault."""
    from vault.cli import retention as command

    raise typer.Exit(
        command.run(config, max_rate=max_rate, give_up_after=give_up_after, dry_run=dry_run, as_json=as_json)
    )


@retention.command("verify")
def retention_verify(config: Config, as_json: Json = False) -> None:
    """Count what is overdue by more than a day, and record the result in the audit log."""
    from vault.cli import retention as command

    raise typer.Exit(command.verify(config, as_json=as_json))


@retention.command("compact")
def retention_compact(config: Config, reason: Reason, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Write an SQLite database's file anew, so that no remains of erased cards are in it.

    Servers do it by themselves up to 64 MiB. About 4 s for a million cards, in which nobody can write: calls that wait
    longer than 5 s for it are UNAVAILABLE and may be repeated. Needs as much memory, and
    free space beside it, as the file has. Not for PostgreSQL: see SECURITY.md. Needs no login to Vault.
    """
    from vault.cli import retention as command

    raise typer.Exit(command.compact(config, reason=reason, dry_run=dry_run, as_json=as_json))


@app.command("data-map")
def data_map(as_json: Json = False) -> None:
    """Every table and column: class, whether it is personal data, how long it may live, and what ends it."""
    from vault.cli import data_map as command

    raise typer.Exit(command.show(as_json=as_json))


@consent.command("show")
def consent_show(
    config: Config,
    customer: Annotated[str, typer.Argument(help="The shop's own name for the customer.")],
    tenant: Annotated[str, typer.Option("--tenant", help="The shop.")],
    reason: Reason,
    as_json: Json = False,
) -> None:
    """Show every consent and withdrawal of a customer, in order: the evidence for a dispute.

    Looking stands in the audit log. Needs no login to Vault.
    """
    from vault.cli import consent as command

    raise typer.Exit(command.show(config, tenant=tenant, customer=customer, reason=reason, as_json=as_json))


class Format(StrEnum):
    """How a file of cards is written."""

    CSV = "csv"
    JSONL = "jsonl"


@app.command("import")
def import_cards(
    file: Annotated[Path, typer.Argument(help="The cards, in UTF-8.", exists=True, dir_okay=False)],
    name: Annotated[
        str, typer.Option("--name", help="Of this import. A line's idempotency key is made of it and the line number.")
    ],
    address: Annotated[str | None, typer.Option("--address", help="host:port of the server.")] = None,
    certificate: Annotated[Path | None, typer.Option("--certificate", help="Of a client with role checkout.")] = None,
    private_key: Annotated[Path | None, typer.Option("--private-key", help="Of that certificate.")] = None,
    ca: Annotated[Path | None, typer.Option("--ca", help="CA of the server's certificate.")] = None,
    written_as: Annotated[
        Format | None, typer.Option("--format", help="If the file's name does not end in .csv or .jsonl.")
    ] = None,
    refused: Annotated[
        Path | None, typer.Option("--refused", help="New file for the lines that were refused, as JSON lines.")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option("--tokens", help="New file for line, customer_id, token, last4, as CSV.")
    ] = None,
    in_flight: Annotated[int, typer.Option("--in-flight", help="Calls at once.", min=1, max=16)] = 5,
    max_rate: MaxRate = None,
    give_up_after: Annotated[
        float, typer.Option("--give-up-after", help="Seconds to wait for the server to come back.", min=0)
    ] = 600,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check the file; calls no server.")] = False,
    as_json: Json = False,
) -> None:
    """Move cards in from another vault: a client of the server's BatchTokenize, up to 200 cards a call.

    Columns of the CSV's first line, or names in each line's JSON object: customer_id, pan, exp_month, exp_year,
    holder_name (optional), and the customer's consent, which must have been given before: terms_version,
    terms_sha256 (hex), uses (customer_initiated, recurring, instalment, unscheduled; separated by spaces or |),
    channel (web, app, phone, paper), locale, agreed_until (optional, 2030-12-31T23:59:59Z); idempotency_key
    (optional). One line is one card. The vault stamps the consent with its own time. Security codes are refused.

    Safe to run again with the same file and --name: for 24 hours the same answers, and at any time the same card of
    the same customer keeps its token. Correct refused lines in a new file with another --name. Afterwards the file
    still holds the card numbers: destroy it (shred -u).
    """
    from vault.cli import import_cards as command

    kind = written_as or {".csv": Format.CSV, ".jsonl": Format.JSONL}.get(file.suffix.lower())
    if kind is None:
        raise typer.BadParameter("give csv or jsonl", param_hint="--format")
    server = None
    if not dry_run:
        if address is None or certificate is None or private_key is None or ca is None:
            raise typer.BadParameter("needs --address, --certificate, --private-key and --ca, or --dry-run")
        server = command.Server(address=address, certificate=certificate, private_key=private_key, ca=ca)
    plan = command.Plan(
        file=file,
        is_csv=kind is Format.CSV,
        name=name,
        in_flight=in_flight,
        give_up_after=timedelta(seconds=give_up_after),
        max_rate=max_rate,
        refused=refused,
        tokens=tokens,
    )
    raise typer.Exit(command.run(plan, server, as_json=as_json))


@app.command()
def evidence(
    config: Config,
    out: Annotated[Path | None, typer.Option("--out", help="Write the signed report there.", metavar="FILE")] = None,
    reason: ReadReason = "periodic audit",
    as_json: Json = False,
) -> None:
    """One signed report for the periodic audit: who can release, keys and ages, what must be zero, the log, settings.

    Each line names the PCI DSS requirement it supports and the command that shows it. Give a server's file, so that it
    knows who may release. Needs the operator's and the checkpointer's login.
    """
    from vault.cli import evidence as command

    raise typer.Exit(command.gather(config, out=out, reason=reason, as_json=as_json))


@app.command("check-evidence")
def check_evidence(
    file: Annotated[Path, typer.Argument(help="What `evidence` wrote.")],
    public_key: Annotated[
        str | None, typer.Option("--public-key", help="The key of the log, base64; else the one inside the file.")
    ] = None,
) -> None:
    """Check such a report offline."""
    from vault.cli import evidence as command

    raise typer.Exit(command.check(file, public_key=public_key))


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(installed("cardvault"))


def _with_pages(group: typer.Typer, above: tuple[str, ...] = ()) -> None:
    """Give every command its page of the manual."""
    for command in group.registered_commands:
        assert command.callback is not None, "commands are functions"
        page = PAGES[" ".join((*above, command.name or command.callback.__name__))]
        command.short_help, command.epilog = page.short, page.epilog()
    for inner in group.registered_groups:
        assert inner.typer_instance is not None, "groups are made here"
        _with_pages(inner.typer_instance, (*above, str(inner.typer_instance.info.name)))


_with_pages(app)


def main() -> None:
    """Entry point. What nobody foresaw is told by its place alone: its text could hold a card number."""
    try:
        app()
    except Exception as error:  # noqa: BLE001 - the interpreter would print all of it
        from vault.telemetry import where

        typer.echo(f"cardvault: unexpected: {where(error)}", err=True)
        raise SystemExit(1) from None
