"""Whether a command line that a document or a manifest shows is one that `cardvault` knows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import typer.main

from vault.cli.main import app


@cache
def _root() -> Any:
    return typer.main.get_command(app)


def problem_with(arguments: Sequence[str], *, whole: bool = True) -> str | None:
    """What is wrong with the words after `cardvault`, None if nothing is; `whole`: with every required option."""
    command = _root()
    words = list(arguments)
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            return "names no command" if whole else None
        name = words.pop(0)
        below = command.commands.get(name)
        if below is None:
            return f"there is no command {name}"
        command = below
    known = {text: option for option in command.params for text in (*option.opts, *option.secondary_opts)}
    given = set()
    for word in words:
        text = word.split("=", 1)[0]
        if text.startswith("--") or (len(text) == 2 and text.startswith("-")):
            if text not in known:
                return f"{command.name} has no option {text}"
            given.add(known[text])
    missing = [p.opts[0] for p in command.params if p.param_type_name == "option" and p.required and p not in given]
    return f"{command.name} needs {', '.join(missing)}" if whole and missing else None
