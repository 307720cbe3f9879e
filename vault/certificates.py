"""When certificates end. What is in them is checked elsewhere."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path


def first_to_end(path: Path) -> datetime:
    """When the first of a PEM file's certificates ends, UTC. Raises `OSError`, and `ValueError` if it holds none."""
    from cryptography import x509

    return min(each.not_valid_after_utc for each in x509.load_pem_x509_certificates(path.read_bytes()))
