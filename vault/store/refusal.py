"""The error for a database that must not be used at all."""

from __future__ import annotations


class DatabaseRefused(Exception):
    """A database that cannot be used as it is. The text says what to mend and holds no secret."""
