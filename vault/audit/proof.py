"""Proofs that an event is in the log, and that one checkpoint continues another, as files that stand for themselves."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

from vault.audit import leaf
from vault.audit.checkpoint import BadCheckpoint, Checkpoint, VerifierKey, opened, read
from vault.audit.merkle import BadProof, Tree, check_consistency, leaf_hash, root_from_inclusion
from vault.audit.sequencer import INCONSISTENT
from vault.domain.audit import AuditEvent, InclusionProof
from vault.domain.errors import StoreUnavailable
from vault.domain.ids import EventId, TenantId
from vault.ports_audit import LogStore

EVENT_FORMAT = "cardvault inclusion proof v1"
CONSISTENCY_FORMAT = "cardvault consistency proof v1"


def prove(store: LogStore, event_id: EventId, tenant: TenantId | None = None) -> InclusionProof | None:
    """The proof under the newest checkpoint; None where no checkpoint covers the event yet, or there is none such.

    Raises `StoreUnavailable`, also if stored hashes are missing.
    """
    with store.reading() as tx:
        found, newest = tx.place_of(event_id, tenant), tx.newest_checkpoint()
        if found is None or newest is None or found[0] >= newest.size:
            return None
        index, event = found
        try:
            path = tuple(Tree(tx.log_nodes).inclusion(index, newest.size))
        except BadProof:
            raise StoreUnavailable(INCONSISTENT) from None
    return InclusionProof(leaf.encode(event), index, newest.size, path, newest.note)


def check(proof: InclusionProof, keys: Sequence[VerifierKey]) -> AuditEvent:
    """The event that a proof shows. Raises `BadProof`, `BadCheckpoint`, `BadLeaf`."""
    checkpoint = opened(proof.checkpoint, keys)
    if checkpoint.size != proof.size:
        raise BadProof("the checkpoint is of another size")
    if root_from_inclusion(leaf_hash(proof.leaf), proof.index, proof.size, proof.path) != checkpoint.root:
        raise BadProof("the event is not in the log that was signed")
    return leaf.decode(proof.leaf)


def to_json(proof: InclusionProof) -> str:
    """As a file."""
    return json.dumps(
        {
            "format": EVENT_FORMAT,
            "event": proof.leaf.decode("ascii"),
            "index": proof.index,
            "size": proof.size,
            "path": [_b64(each) for each in proof.path],
            "checkpoint": proof.checkpoint,
        },
        indent=2,
    )


def from_json(text: str) -> InclusionProof:
    """What `to_json` wrote. Raises `BadProof`."""
    try:
        facts: Any = json.loads(text)
        if facts["format"] != EVENT_FORMAT:
            raise ValueError
        return InclusionProof(
            leaf=facts["event"].encode("ascii"),
            index=int(facts["index"]),
            size=int(facts["size"]),
            path=tuple(base64.b64decode(each, validate=True) for each in facts["path"]),
            checkpoint=str(facts["checkpoint"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, binascii.Error):
        raise BadProof("is not an inclusion proof of cardvault") from None


def prove_consistency(store: LogStore, old: str, new: str) -> str:
    """A file that shows that the log of one checkpoint continues that of another, smaller one.

    Raises `BadCheckpoint`, `BadProof`, `StoreUnavailable`.
    """
    older, newer = read(old), read(new)
    with store.reading() as tx:
        if newer.size > tx.log_head().size:
            raise BadProof("the log in the database is shorter than the newer checkpoint")
        path = Tree(tx.log_nodes).consistency(older.size, newer.size)
    return json.dumps(
        {"format": CONSISTENCY_FORMAT, "old": old, "new": new, "path": [_b64(each) for each in path]}, indent=2
    )


def check_consistency_file(text: str, keys: Sequence[VerifierKey]) -> tuple[Checkpoint, Checkpoint]:
    """The two checkpoints that a file connects. Raises `BadProof`, `BadCheckpoint`."""
    try:
        facts: Any = json.loads(text)
        if facts["format"] != CONSISTENCY_FORMAT:
            raise ValueError
        path = [base64.b64decode(each, validate=True) for each in facts["path"]]
        notes = str(facts["old"]), str(facts["new"])
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise BadProof("is not a consistency proof of cardvault") from None
    older, newer = opened(notes[0], keys), opened(notes[1], keys)
    if older.origin != newer.origin:
        raise BadCheckpoint("is of another log than the second")
    check_consistency(older.size, older.root, newer.size, newer.root, path)
    return older, newer


def format_of(text: str) -> str:
    """Which kind of proof a file says it is; empty if none."""
    try:
        facts: Any = json.loads(text)
        return str(facts["format"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
