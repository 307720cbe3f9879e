"""The canary: one wrapped random key in the database, by which a process proves that this Vault is the right one.

Processes that wrap leave it, processes that unwrap open it. A rotation takes it along like a card: it is rewrapped
inside Vault, never made anew, because a fresh one would open in any Vault.
"""

from __future__ import annotations

import hashlib

from vault.domain.errors import KeyRefused
from vault.domain.grant import SealedKey
from vault.ports import KeyName, KeyToUnwrap, Reader
from vault.ports_operator import OperatorKeys
from vault.usecases.operating import Operator, OperatorWorld

SETTING = "canary.cardvault-cards"
_FORMER = "canary.cardvault-cards.former"


def canary_of(tx: Reader, *, environment: str) -> KeyToUnwrap | None:
    """The canary, if a process that wraps has left one."""
    known = tx.setting(SETTING)
    return KeyToUnwrap(KeyName.CARDS, SealedKey(known), context_of(environment)) if known is not None else None


def context_of(environment: str) -> bytes:
    """What it is bound to (32 bytes)."""
    return hashlib.sha256(b"cardvault.canary.v1" + environment.encode()).digest()


def version_of_canary(world: OperatorWorld) -> int | None:
    """The version of `cardvault-cards` that it is wrapped under."""
    with world.store.reading() as tx:
        canary = canary_of(tx, environment=world.environment)
    return canary.key.kek_version if canary is not None else None


def rewrap_canary(world: OperatorWorld, keys: OperatorKeys, operator: Operator, *, version: int) -> None:
    """Take it along to a newer version. Raises `KeyRingUnavailable`; a refusal leaves it, and readiness will say so."""
    with world.store.reading() as tx:
        canary = canary_of(tx, environment=world.environment)
    if canary is None or canary.key.kek_version >= version:
        return
    (fresh,) = keys.rewrap([canary])
    if isinstance(fresh, KeyRefused):
        return
    with world.store.writing() as tx:
        if tx.setting(SETTING) == canary.key.wrapped:
            tx.put_setting(_FORMER, canary.key.wrapped)
            tx.put_setting(SETTING, fresh.wrapped)
            tx.append_events([world.event(operator, "canary.rewrapped", target=KeyName.CARDS, version=version)])


def recover_canary(world: OperatorWorld, operator: Operator, *, oldest: int, latest: int) -> bool:
    """Exchange it for its former wrap where Vault cannot open the current one and can open that."""
    with world.store.writing() as tx:
        current, former = tx.setting(SETTING), tx.setting(_FORMER)
        if current is None or former is None or oldest <= SealedKey(current).kek_version <= latest:
            return False
        if not oldest <= SealedKey(former).kek_version <= latest:
            return False
        tx.put_setting(SETTING, former)
        tx.put_setting(_FORMER, current)
        tx.append_events([world.event(operator, "canary.restored", target=KeyName.CARDS)])
    return True
