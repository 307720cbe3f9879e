"""The shop's own database: visits, baskets, orders, receipts. No column is for a card number, and none gets one."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from examples.storefront.shop.catalogue import PRODUCTS, Line
from vault.client import Card, ErasureReceipt, InclusionProof, Tokenized

_SCHEMA = """
CREATE TABLE IF NOT EXISTS visits (id TEXT PRIMARY KEY, customer TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS baskets (
    visit TEXT NOT NULL, sku TEXT NOT NULL, quantity INTEGER NOT NULL CHECK (quantity BETWEEN 1 AND 9),
    PRIMARY KEY (visit, sku)
) STRICT;
CREATE TABLE IF NOT EXISTS orders (
    id TEXT PRIMARY KEY,
    customer TEXT NOT NULL,
    placed_at TEXT NOT NULL,
    lines TEXT NOT NULL,
    minor_units INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'placed' CHECK (state IN ('placed', 'approved', 'declined', 'abandoned')),
    round INTEGER NOT NULL DEFAULT 1,
    brand TEXT NOT NULL,
    last4 TEXT NOT NULL CHECK (length(last4) = 4),
    how TEXT NOT NULL CHECK (how IN ('stored', 'kept', 'once')),
    token TEXT,
    trouble TEXT NOT NULL DEFAULT '',
    settled_at TEXT,
    network_transaction_id TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX IF NOT EXISTS orders_of ON orders (customer, placed_at);
CREATE TABLE IF NOT EXISTS receipts (
    event_id TEXT PRIMARY KEY, customer TEXT NOT NULL, erased_at TEXT NOT NULL, what TEXT NOT NULL, token TEXT,
    cards INTEGER NOT NULL, grants_revoked INTEGER NOT NULL, idempotency_key TEXT NOT NULL, proof TEXT NOT NULL
) STRICT;
"""


class State(StrEnum):
    """Of an order."""

    PLACED = "placed"
    """Not paid, as far as anybody knows."""
    APPROVED = "approved"
    DECLINED = "declined"
    ABANDONED = "abandoned"
    """Never paid and never will be."""


class How(StrEnum):
    """How a card came to pay an order."""

    STORED = "stored"
    """Chosen from those that were kept."""
    KEPT = "kept"
    """Typed in, and kept from then on."""
    ONCE = "once"
    """Typed in, for this order alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An order as its customer may see it."""

    id: str
    customer: str
    placed_at: datetime
    lines: tuple[Line, ...]
    minor_units: int
    state: State
    round: int
    """Counts the grants that were used up; part of the idempotency key of the next."""
    brand: str
    last4: str
    how: How
    token: str | None
    trouble: str
    """Why the last try did not end; a word of `sentences.TROUBLES`."""
    settled_at: datetime | None
    network_transaction_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """That something was erased."""

    event_id: str
    customer: str
    erased_at: datetime
    what: str
    token: str | None
    """Of the one card; None: it was all of them."""
    cards: int
    grants_revoked: int
    idempotency_key: str
    proof: str
    """Where it stands in the vault's signed log; empty until the log covers it."""


class Database:
    """All statements, short enough to be made on the event loop."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """End."""
        self._db.close()

    # --- visits and baskets ---

    def customer_of(self, visit: str) -> str | None:
        """Who is signed in."""
        row = self._db.execute("SELECT customer FROM visits WHERE id = ?", (visit,)).fetchone()
        return None if row is None else str(row["customer"])

    def sign_in(self, visit: str, customer: str, *, before: str) -> None:
        """The basket of the visit `before` comes along."""
        self._db.execute("INSERT INTO visits VALUES (?, ?)", (visit, customer))
        self._db.execute("UPDATE baskets SET visit = ? WHERE visit = ?", (visit, before))

    def sign_out(self, visit: str) -> None:
        """The visit is over."""
        self._db.execute("DELETE FROM visits WHERE id = ?", (visit,))
        self._db.execute("DELETE FROM baskets WHERE visit = ?", (visit,))

    def basket(self, visit: str) -> tuple[Line, ...]:
        """What is in it."""
        rows = self._db.execute("SELECT sku, quantity FROM baskets WHERE visit = ? ORDER BY sku", (visit,))
        return tuple(Line(PRODUCTS[row["sku"]], row["quantity"]) for row in rows if row["sku"] in PRODUCTS)

    def put(self, visit: str, sku: str, quantity: int) -> None:
        """So many of it and no more; none takes it out."""
        self._db.execute("DELETE FROM baskets WHERE visit = ? AND sku = ?", (visit, sku))
        if quantity > 0:
            self._db.execute("INSERT INTO baskets VALUES (?, ?, ?)", (visit, sku, min(quantity, 9)))

    # --- orders ---

    def place(
        self, order: str, visit: str, customer: str, lines: tuple[Line, ...], card: Card | Tokenized, *, how: How
    ) -> bool:
        """Turn the basket into an order. False: that order is there already."""
        stored = card.card if isinstance(card, Tokenized) else card
        made = self._db.execute(
            "INSERT INTO orders (id, customer, placed_at, lines, minor_units, brand, last4, how, token)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (
                order,
                customer,
                _now(),
                json.dumps({line.product.sku: line.quantity for line in lines}),
                sum(line.minor_units for line in lines),
                card.brand.label if card.brand is not None else "Card",
                card.last4,
                how,
                stored.token if stored is not None else None,
            ),
        )
        if made.rowcount:
            self._db.execute("DELETE FROM baskets WHERE visit = ?", (visit,))
        return bool(made.rowcount)

    def order(self, order: str) -> Order | None:
        """One of anybody's."""
        row = self._db.execute("SELECT * FROM orders WHERE id = ?", (order,)).fetchone()
        return None if row is None else _order(row)

    def orders(self, customer: str) -> tuple[Order, ...]:
        """The latest hundred, newest first."""
        rows = self._db.execute(
            "SELECT * FROM orders WHERE customer = ? AND state <> 'abandoned' ORDER BY placed_at DESC LIMIT 100",
            (customer,),
        )
        return tuple(_order(row) for row in rows)

    def settle(self, order: str, state: State, network_transaction_id: str) -> None:
        """The processor's answer, for good."""
        self._db.execute(
            "UPDATE orders SET state = ?, network_transaction_id = ?, settled_at = ?, trouble = ''"
            " WHERE id = ? AND state = 'placed'",
            (state, network_transaction_id, _now(), order),
        )

    def trouble(self, order: str, trouble: str) -> None:
        """It is still not paid."""
        self._db.execute("UPDATE orders SET trouble = ? WHERE id = ?", (trouble, order))

    def next_round(self, order: str) -> int:
        """The grant of this round is used up or gone."""
        row = self._db.execute("UPDATE orders SET round = round + 1 WHERE id = ? RETURNING round", (order,)).fetchone()
        return int(row["round"])

    # --- receipts ---

    def keep_receipt(self, customer: str, receipt: ErasureReceipt, *, what: str, token: str | None) -> None:
        """Write it down, or what is new about it."""
        self._db.execute(
            "INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET proof = excluded.proof",
            (
                receipt.event_id,
                customer,
                receipt.erased_at.isoformat(),
                what,
                token,
                receipt.cards,
                receipt.grants_revoked,
                receipt.idempotency_key,
                _place(receipt.proof),
            ),
        )

    def receipts(self, customer: str) -> tuple[Receipt, ...]:
        """Newest first."""
        rows = self._db.execute(
            "SELECT * FROM receipts WHERE customer = ? ORDER BY erased_at DESC LIMIT 20", (customer,)
        )
        return tuple(_receipt(row) for row in rows)


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _place(proof: InclusionProof | None) -> str:
    return "" if proof is None else f"entry {proof.leaf_index + 1} of {proof.tree_size}"


def _order(row: sqlite3.Row) -> Order:
    quantities: dict[str, int] = json.loads(row["lines"])
    return Order(
        id=row["id"],
        customer=row["customer"],
        placed_at=datetime.fromisoformat(row["placed_at"]),
        lines=tuple(Line(PRODUCTS[sku], quantity) for sku, quantity in quantities.items() if sku in PRODUCTS),
        minor_units=int(row["minor_units"]),
        state=State(row["state"]),
        round=int(row["round"]),
        brand=row["brand"],
        last4=row["last4"],
        how=How(row["how"]),
        token=row["token"],
        trouble=row["trouble"],
        settled_at=datetime.fromisoformat(row["settled_at"]) if row["settled_at"] else None,
        network_transaction_id=row["network_transaction_id"],
    )


def _receipt(row: sqlite3.Row) -> Receipt:
    return Receipt(**{**dict(row), "erased_at": datetime.fromisoformat(row["erased_at"])})
