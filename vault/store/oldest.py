"""The oldest version of a key under which a wrap may still be stored: a fence against calls that slept.

Vault lets nobody use a retired version, but a wrap made before may still be on its way into the database, in a process
that was stopped in between. Who retires a version raises the fence first; whoever commits later than that is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, bindparam, case, cast, select, text

from vault.domain.errors import StoreUnavailable
from vault.domain.grant import SealedKey
from vault.ports import KeyName
from vault.store.columns import identifier
from vault.store.link import Link
from vault.store.tables import settings

OLDEST = "oldest."
"""Settings with the oldest version that may be stored, by key."""

_WANTED = bindparam("wanted", type_=identifier())
# Cast only where it is a number, in whatever order conditions are looked at. The row itself is found, and so locked,
# only where it refuses; but the lock on the table, which comes before the look, lasts until the transaction ends.
_NUMBER = case((settings.c.name == _WANTED, cast(settings.c.value, BigInteger())), else_=0)
REFUSAL = (
    select(settings.c.name)
    .where(settings.c.name == _WANTED, bindparam("lowest", type_=BigInteger()) < _NUMBER)
    .with_for_update(read=True)
)
"""The setting's name where one of the wraps that `fence` was asked about is refused."""
_WAIT_FOR_WRITERS = text("LOCK TABLE settings IN EXCLUSIVE MODE")


def fence(name: KeyName, keys: Sequence[SealedKey]) -> dict[str, Any]:
    """Parameters of `REFUSAL`."""
    return {"wanted": OLDEST + name, "lowest": min(key.kek_version for key in keys)}


def refuse_retired(link: Link, name: KeyName, keys: Sequence[SealedKey]) -> None:
    """Raise `StoreUnavailable` if one of these wraps is under a version that was retired: wrap anew and repeat."""
    if keys:
        heed(link, link.plain(REFUSAL, fence(name, keys)))


def heed(link: Link, refusals: Sequence[Any]) -> None:
    """Raise `StoreUnavailable` if there is one: then nothing of this transaction may stay."""
    if refusals:
        link.failed = True
        raise StoreUnavailable("key_version_retired")


def wait_for_writers(link: Link, setting: str) -> None:
    """Before the fence is changed: let those end who looked at it. Readers and backups are not waited for."""
    if setting.startswith(OLDEST) and link.locks_rows:
        link.count(_WAIT_FOR_WRITERS)
