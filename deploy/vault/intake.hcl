# Login `intake`: the processes that take cards in (checkout, account).
#
# They may wrap data keys and fingerprint cards. They may not unwrap: whoever takes such a process over
# sees the cards that pass through from then on, and none of those already stored.
#
# `update` without `create`: encrypting under a key that does not exist must fail, never make the key.
# The set-up writes another mount's name in place of `transit/` where one is configured.

path "transit/encrypt/cardvault-cards" {
  capabilities = ["update"]
}

path "transit/encrypt/cardvault-once" {
  capabilities = ["update"]
}

# SHA-256 alone: a fingerprint made with another hash would never be found again.
path "transit/hmac/cardvault-fingerprint/sha2-256" {
  capabilities = ["update"]
}

# Versions (a card is looked for under every fingerprint version in use) and the flags checked at start.
# Reading a key shows no key material.
path "transit/keys/cardvault-cards" {
  capabilities = ["read"]
}

path "transit/keys/cardvault-once" {
  capabilities = ["read"]
}

path "transit/keys/cardvault-fingerprint" {
  capabilities = ["read"]
}

# The role's tokens do not carry the default policy, so a token's care for itself is granted here.
path "auth/token/renew-self" {
  capabilities = ["update"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}
