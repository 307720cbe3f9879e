"""A signed report on a rotation, for whoever must show that it was done: who, when, why, and that nothing was lost.

The statement is JSON with sorted keys; the signature (ed25519, RFC 8032) covers its exact bytes, so a file and a public
key are all that checking takes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from vault.ports import KeyName
from vault.ports_operator import CardKey, OperatorKeys, Selection, Signer
from vault.usecases.operating import PAGE, OperatorWorld
from vault.usecases.rewrap import BEFORE, RUN
from vault.usecases.rotate import ROTATION, older_than, rows_by_version

FORMAT = "cardvault key rotation certificate v1"
WAITING = "cards_under_older_versions"
"""Field of the statement: not 0 while the rewrap to the newest version is unfinished."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is handed on, and what it must not hide."""

    text: str
    """JSON."""
    version: int
    waiting: int
    """Cards that are still wrapped under older versions; the statement says so as well."""


class IssueCertificate:
    """The use case."""

    def __init__(self, *, world: OperatorWorld, keys: OperatorKeys, signer: Signer) -> None:
        self._world = world
        self._keys = keys
        self._signer = signer

    def __call__(self) -> Certificate:
        """The certificate of the newest version of `cardvault-cards`.

        Raises `KeyRingUnavailable`, `StoreUnavailable`.
        """
        facts = self._facts()
        statement = json.dumps(facts, sort_keys=True, indent=2)
        version, signature = self._signer.sign(statement.encode())
        text = json.dumps(
            {
                "statement": statement,
                "signature": base64.b64encode(signature).decode("ascii"),
                "key": str(KeyName.AUDIT),
                "key_version": version,
                "public_key": base64.b64encode(self._signer.public_keys()[version]).decode("ascii"),
            },
            indent=2,
        )
        return Certificate(text, facts["version"], facts[WAITING])

    def _facts(self) -> dict[str, Any]:
        name = KeyName.CARDS
        versions = self._keys.versions(name)
        with self._world.store.reading() as tx:
            rotation = tx.setting(f"{ROTATION}{name}.{versions.latest}")
            before = tx.setting(f"{BEFORE}{versions.latest}")
            runs = tx.settings(f"{RUN}{versions.latest}.")
            former = tx.count_previous_wraps()
        rows = rows_by_version(self._world, name)
        waiting = older_than(versions.latest, rows)
        cards, digest = self._digest()
        return {
            "format": FORMAT,
            "environment": self._world.environment,
            "issued_at": self._world.clock.now().isoformat(),
            "key": str(name),
            "version": versions.latest,
            "min_decryption_version": versions.min_decryption,
            "min_available_version": versions.min_available,
            "rotation": json.loads(rotation) if rotation is not None else None,
            "cards_by_version_before": json.loads(before) if before is not None else None,
            "cards_by_version_after": {str(v): n for v, n in rows.items()},
            "rewrap_finished": not waiting,
            WAITING: waiting,
            "former_wraps_kept": {str(v): n for v, n in former.items()},
            "rewrap_runs": {name.rsplit(".", 1)[-1]: json.loads(facts) for name, facts in runs.items()},
            "cards": cards,
            "wraps_sha256": digest,
        }

    def _digest(self) -> tuple[int, str]:
        """Count of cards, and one digest over every card's name, record version and wrap, in the walk's order."""
        total, digest = 0, hashlib.sha256()
        after: CardKey | None = None
        while True:
            with self._world.store.reading() as tx:
                page = tx.secrets(Selection(), after=after, limit=PAGE)
            for secret in page:
                wrap = secret.wrap
                line = (wrap.card.tenant, wrap.card.token, wrap.record_version, wrap.key.wrapped)
                digest.update(json.dumps(line).encode() + b"\n")
            if not page:
                return total, digest.hexdigest()
            total += len(page)
            after = page[-1].wrap.card
