"""Whether a stored card opens: what it is tied to, and a look inside of which nothing is kept."""

from __future__ import annotations

from vault.cleanroom import open_sealed
from vault.domain.binding import Binding, stored_card_binding
from vault.domain.errors import BrokenSeal
from vault.ports_operator import StoredSecret, StoredWrap


def binding_of(wrap: StoredWrap, *, environment: str) -> Binding:
    """What a stored card is tied to."""
    return stored_card_binding(
        environment=environment,
        tenant=wrap.card.tenant,
        customer=wrap.customer,
        token=wrap.card.token,
        consent=wrap.consent,
        record_version=wrap.record_version,
    )


def opens(secret: StoredSecret, data_key: bytes, binding: Binding) -> bool:
    """Whether a card opens with a data key; nothing of it is kept."""
    try:
        open_sealed(secret.ciphertext, data_key=data_key, binding=binding)
    except BrokenSeal:
        return False
    return True
