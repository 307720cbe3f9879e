"""`cardvault db`."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from vault.config import CommonSettings
from vault.config_file import ConfigProblems, load_for_operator
from vault.domain.errors import StoreUnavailable
from vault.store import DatabaseRefused, schema


def upgrade(config: Path, *, dry_run: bool) -> int:
    """Bring the schema to this release's."""
    settings = _settings(config)
    if settings is None:
        return 2
    try:
        current, wanted = _versions(settings)
        if current == wanted:
            typer.echo(f"schema {wanted}: nothing to do")
        elif dry_run:
            typer.echo(f"would go from schema {current or 'none'} to {wanted}")
        else:
            schema.upgrade(settings.database_url())
            typer.echo(f"schema {current or 'none'} -> {wanted}")
    except (StoreUnavailable, DatabaseRefused) as e:
        typer.echo(f"database: {e}", err=True)
        return 2
    return 0


def status(config: Path, *, as_json: bool) -> int:
    """Say which schema the database has."""
    settings = _settings(config)
    if settings is None:
        return 2
    try:
        current, wanted = _versions(settings)
    except (StoreUnavailable, DatabaseRefused) as e:
        typer.echo(f"database: {e}", err=True)
        return 2
    if as_json:
        typer.echo(json.dumps({"schema": current, "wanted": wanted}))
    else:
        typer.echo(f"schema {current or 'none'}; this release wants {wanted}")
    return 0 if current == wanted else 1


def _versions(settings: CommonSettings) -> tuple[str | None, str]:
    try:
        return schema.current(settings.database_url()), schema.head()
    except StoreUnavailable:
        if (file := settings.sqlite_file()) is not None and not file.exists():
            return None, schema.head()
        raise


def _settings(config: Path) -> CommonSettings | None:
    try:
        return load_for_operator(config)
    except ConfigProblems as e:
        for problem in e.problems:
            typer.echo(f"  - {problem}", err=True)
        return None
