"""Alembic's home: `env.py` and the revisions, run by `vault.store.schema`."""
