"""A look at a few cards from everywhere before something is destroyed for good: what does not open may need it."""

from __future__ import annotations

from collections.abc import Sequence

from vault.domain import letters
from vault.domain.errors import KeyRefused, KeyRingUnavailable, PreconditionFailed
from vault.domain.ids import RANDOM_BYTES, SHARED_BYTES, TenantId, Token
from vault.ports import Entropy, KeyName, KeyToUnwrap, ReleaseKeys
from vault.ports_operator import CardKey, OperatorReader, Selection, StoredSecret
from vault.usecases.operating import OperatorWorld
from vault.usecases.proof import binding_of, opens

PLACES = 20
"""Where the walk over all cards is looked into; more where there are more tenants, as each gets one."""
MOST_PLACES = 200
"""Of more tenants than this, so many are drawn."""
CARDS_EACH = 5
"""Cards that are opened at each place."""

FINGERPRINT_BYTES = 32
"""HMAC-SHA-256."""

_RANGE: int = 256**FINGERPRINT_BYTES


def refuse_if_one_does_not_open(world: OperatorWorld, release: ReleaseKeys) -> None:
    """Open up to 1000 cards, 100 where there are few tenants; raise `PreconditionFailed` if one does not.

    Fingerprints are as good as random, so equal parts of their range hold about as many cards each, and neighbours have
    nothing in common: one place is drawn in every part, and one card more by its token. Finding the tenants
    costs one short query each.

    Raises `KeyRingUnavailable`, `StoreUnavailable`.
    """
    sample = _sample(world)
    bindings = [binding_of(secret.wrap, environment=world.environment) for secret in sample]
    keys = release.unwrap(
        [
            KeyToUnwrap(KeyName.CARDS, secret.wrap.key, binding.wrap_context())
            for secret, binding in zip(sample, bindings, strict=True)
        ]
    )
    for secret, binding, key in zip(sample, bindings, keys, strict=True):
        if isinstance(key, KeyRingUnavailable):
            raise key
        if isinstance(key, KeyRefused) or not opens(secret, key, binding):
            raise PreconditionFailed(
                "card_does_not_open",
                message="not every card opens: run `cardvault keys verify`; nothing was destroyed",
            )


def _sample(world: OperatorWorld) -> list[StoredSecret]:
    found: dict[CardKey, StoredSecret] = {}
    with world.store.reading() as tx:
        tenants = _some(_tenants(tx), world.entropy)
        parts = max(1, -(-PLACES // max(1, len(tenants))))
        for tenant in tenants:
            for part in range(parts):
                place = _place_in(part, parts, world.entropy)
                page = tx.secrets_by_fingerprint(tenant, least=place, limit=CARDS_EACH - 1)
                # Beyond the tenant's last card there is its first one.
                page = page or tx.secrets_by_fingerprint(tenant, least=b"", limit=CARDS_EACH - 1)
                found |= {secret.wrap.card: secret for secret in (*page, *_by_token(tx, tenant, world.entropy))}
    return list(found.values())


def _by_token(tx: OperatorReader, tenant: TenantId, entropy: Entropy) -> Sequence[StoredSecret]:
    """One more card: who can write fingerprints, which are bound to nothing, must not choose all that is looked at."""
    anywhere = Token.drawn(entropy.bytes(SHARED_BYTES), entropy.bytes(RANDOM_BYTES))
    found = _next(tx, tenant, anywhere) or _next(tx, tenant, Token(""))
    if not found:
        return found
    # Not always the first of those that were stored together: somewhere among them.
    shared = found[0].wrap.card.token[: len(Token.prefix) + 2 * SHARED_BYTES]
    return _next(tx, tenant, Token(shared + letters.encode(entropy.bytes(RANDOM_BYTES)))) or found


def _next(tx: OperatorReader, tenant: TenantId, token: Token) -> Sequence[StoredSecret]:
    return tx.secrets(Selection(tenant=tenant), after=CardKey(tenant, token), limit=1)


def _tenants(tx: OperatorReader) -> list[TenantId]:
    """Everybody who has a card."""
    tenants: list[TenantId] = []
    after: CardKey | None = None
    while page := tx.secrets(Selection(), after=after, limit=1):
        tenants.append(page[0].wrap.card.tenant)
        # Behind whatever is called a token there, and before every other shop.
        after = CardKey(TenantId(tenants[-1] + "\x01"), Token(""))
    return tenants


def _some(tenants: list[TenantId], entropy: Entropy) -> list[TenantId]:
    if len(tenants) <= MOST_PLACES:
        return tenants
    drawn = {tenant: entropy.bytes(RANDOM_BYTES) for tenant in tenants}
    return sorted(tenants, key=lambda tenant: drawn[tenant])[:MOST_PLACES]


def _place_in(part: int, parts: int, entropy: Entropy) -> bytes:
    """A random position in one of so many equal parts of all fingerprints."""
    begin, end = part * _RANGE // parts, (part + 1) * _RANGE // parts
    offset = int.from_bytes(entropy.bytes(FINGERPRINT_BYTES)) % (end - begin)
    return (begin + offset).to_bytes(FINGERPRINT_BYTES)
