"""SQL: tables, queries and migrations. SQLAlchemy is imported here and nowhere else."""

from vault.store.columns import Engine
from vault.store.engine import Limits
from vault.store.refusal import DatabaseRefused
from vault.store.schema import current, head, upgrade
from vault.store.sql_store import SqlStore

__all__ = ["DatabaseRefused", "Engine", "Limits", "SqlStore", "current", "head", "upgrade"]
