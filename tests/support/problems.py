"""Refusals as values, for tests of what is refused and what the refusal says."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

from vault.domain.errors import InvalidField

P = ParamSpec("P")


def problem_of(parse: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> InvalidField | None:
    """The `InvalidField` that this call raises, or None if it raises none."""
    try:
        parse(*args, **kwargs)
    except InvalidField as e:
        return e
    return None
