"""What is for sale."""

from __future__ import annotations

from dataclasses import dataclass

CURRENCY = "EUR"


@dataclass(frozen=True, slots=True)
class Product:
    """One thing."""

    sku: str
    name: str
    text: str
    minor_units: int
    art: str
    """Name of its drawing in `static/`."""


PRODUCTS = {
    product.sku: product
    for product in (
        Product("kettle", "Morning kettle", "Brushed steel, one litre, quiet enough for thin walls.", 4900, "kettle"),
        Product("cups", "Two cups", "Stoneware from a small kiln. No two are quite alike.", 2450, "cups"),
        Product("lamp", "Reading lamp", "Warm light, a long arm, and a switch you find in the dark.", 7900, "lamp"),
        Product("notebook", "Unlucky notebook", "Its price ends in 13 cents: the bank says no.", 1313, "notebook"),
    )
}


@dataclass(frozen=True, slots=True)
class Line:
    """So many of one thing."""

    product: Product
    quantity: int

    @property
    def minor_units(self) -> int:
        """What they cost together."""
        return self.product.minor_units * self.quantity


def total(lines: tuple[Line, ...]) -> int:
    """In minor units."""
    return sum(line.minor_units for line in lines)


def money(minor_units: int) -> str:
    """As people write it."""
    return f"€{minor_units // 100:,}.{minor_units % 100:02}"
