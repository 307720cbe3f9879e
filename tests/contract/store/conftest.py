"""Every test here also looks at how SQLite carries out what was asked of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import plans

OF_REQUESTS = {
    "test_cards",
    "test_consents",
    "test_erasure",
    "test_grants",
    "test_idempotency",
    "test_outcomes",
    "test_races",
}
_MAY_READ_ALL = (
    "SELECT count(",
    # Sweeps and walks take so many at a time.
    "LIMIT",
    # The plan of the foreign key's check, which is skipped unless one is violated at that moment.
    "INSERT INTO consents",
)


@pytest.fixture(autouse=True)
def no_request_reads_a_whole_table(request: pytest.FixtureRequest) -> Iterator[None]:
    """With a million cards each such statement would take a second."""
    if request.path.stem not in OF_REQUESTS:
        yield
        return
    with plans.watched() as found:
        yield
    slow = {
        statement: troubles
        for statement, troubles in found.items()
        if troubles and not any(words in statement for words in _MAY_READ_ALL)
    }

    assert slow == {}
