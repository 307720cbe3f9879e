"""`cardvault data-map`."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from vault.domain.data_map import DATA_MAP


def show(*, as_json: bool) -> int:
    """Print what every column holds and how long."""
    if as_json:
        typer.echo(json.dumps([asdict(column) for column in DATA_MAP], indent=2))
        return 0
    width = max(len(column.name) for column in DATA_MAP)
    table = ""
    for column in DATA_MAP:
        if column.table != table:
            table = column.table
            typer.echo(f"\n{table}: {column.longest_life}\n  ended by: {column.ended_by}")
        personal = "personal" if column.personal else ""
        typer.echo(f"  {column.name:<{width}}  {column.data_class:<16}  {personal}".rstrip())
    return 0
