"""The audit log as a Merkle tree: a queue of committed events that a trigger fills, leaves, nodes, head, checkpoints.

A server of the release before works on beside this one: its events come into the queue as well. All events that are
there already are queued in the order of their time.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_APPEND_ONLY = ("audit_leaves", "audit_nodes", "audit_checkpoints")


def upgrade() -> None:
    _create_tables()
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    head = sa.table("audit_head", sa.column("id"), sa.column("size"), sa.column("frontier", sa.LargeBinary()))
    op.execute(head.insert().values(id=1, size=0, frontier=b""))
    for table in _APPEND_ONLY:
        _refuse_changes(table, is_sqlite=is_sqlite)
    _queue_every_event(is_sqlite=is_sqlite)
    op.execute(
        "INSERT INTO audit_queue (tenant_id, event_id) "
        "SELECT tenant_id, event_id FROM audit_events ORDER BY occurred_at, tenant_id, event_id"
    )


def _identifier() -> sa.types.TypeEngine[Any]:
    return sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _time() -> sa.types.TypeEngine[Any]:
    """Microseconds since 1970 on SQLite."""
    return sa.BigInteger().with_variant(sa.DateTime(timezone=True), "postgresql")


def _tenant() -> sa.Column[Any]:
    return sa.Column("tenant_id", _identifier(), nullable=False, comment="shop or partner portal that owns the row")


def _create_tables() -> None:
    op.create_table(
        "audit_queue",
        sa.Column(
            "arrival",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            comment="order of arrival",
        ),
        _tenant(),
        sa.Column("event_id", _identifier(), nullable=False, comment="event that waits for its place in the log"),
        sa.PrimaryKeyConstraint("arrival"),
        comment="Events that are committed and not yet in the log; a trigger adds each",
    )
    op.create_table(
        "audit_leaves",
        sa.Column(
            "leaf_index", sa.BigInteger(), nullable=False, autoincrement=False, comment="place in the log, from 0"
        ),
        _tenant(),
        sa.Column("event_id", _identifier(), nullable=False, comment="event at this place"),
        sa.Column("leaf_hash", sa.LargeBinary(), nullable=False, comment="RFC 6962 hash of the event's canonical form"),
        sa.PrimaryKeyConstraint("leaf_index"),
        sa.UniqueConstraint("tenant_id", "event_id"),
        comment="The log's order; append-only",
    )
    op.create_table(
        "audit_nodes",
        sa.Column(
            "level",
            sa.SmallInteger(),
            nullable=False,
            autoincrement=False,
            comment="8, 16, 24: leaves below are 2^level",
        ),
        sa.Column(
            "node_index", sa.BigInteger(), nullable=False, autoincrement=False, comment="place in the level, from 0"
        ),
        sa.Column("node_hash", sa.LargeBinary(), nullable=False, comment="RFC 6962 hash over the leaves below"),
        sa.PrimaryKeyConstraint("level", "node_index"),
        comment="Hashes over complete parts of the log, so that proofs are quick; append-only",
    )
    op.create_table(
        "audit_head",
        sa.Column("id", sa.SmallInteger(), nullable=False, autoincrement=False, comment="1: there is one row"),
        sa.Column(
            "size", sa.BigInteger(), nullable=False, autoincrement=False, comment="how many events are in the log"
        ),
        sa.Column(
            "frontier", sa.LargeBinary(), nullable=False, comment="hashes of the complete parts at its right edge"
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.CheckConstraint("id = 1", name="one"),
        comment="Where the log ends; each append is decided by this row",
    )
    op.create_table(
        "audit_checkpoints",
        sa.Column("size", sa.BigInteger(), nullable=False, autoincrement=False, comment="how many events it covers"),
        sa.Column("root", sa.LargeBinary(), nullable=False, comment="Merkle tree hash of them"),
        sa.Column("note", sa.Text(), nullable=False, comment="the signed checkpoint (C2SP signed-note)"),
        sa.Column("signed_at", _time(), nullable=False, comment="when it was signed"),
        sa.PrimaryKeyConstraint("size"),
        comment="Signed statements of the log's size and root; append-only",
    )


def _queue_every_event(*, is_sqlite: bool) -> None:
    """By a trigger, so that no way of adding an event passes the queue by.

    It works with its owner's rights: who may add an event need not be allowed to touch the queue.
    """
    if is_sqlite:
        op.execute(
            "CREATE TRIGGER audit_events_queued AFTER INSERT ON audit_events BEGIN "
            "INSERT INTO audit_queue (tenant_id, event_id) VALUES (NEW.tenant_id, NEW.event_id); END"
        )
        return
    op.execute(
        "CREATE FUNCTION audit_events_queued() RETURNS trigger LANGUAGE plpgsql "
        "SECURITY DEFINER SET search_path FROM CURRENT AS "
        "$$ BEGIN INSERT INTO audit_queue (tenant_id, event_id) SELECT tenant_id, event_id FROM added; "
        "RETURN NULL; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_events_queued AFTER INSERT ON audit_events REFERENCING NEW TABLE AS added "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_events_queued()"
    )
    # Rows come and go all the time: do not wait until a fifth of them is dead.
    op.execute("ALTER TABLE audit_queue SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000)")


def _refuse_changes(table: str, *, is_sqlite: bool) -> None:
    """Rows of this table can be added and nothing else, whoever asks."""
    if is_sqlite:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} is append-only' USING ERRCODE = 'restrict_violation'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()"
    )
