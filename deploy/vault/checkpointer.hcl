# Login `checkpointer`: the job that signs the audit log's size and Merkle root.
#
# It may sign with the audit key and touches no card key. Verification needs the public key alone, so
# there is no `verify` here: an auditor asks nobody.
#
# The set-up writes another mount's name in place of `transit/` where one is configured.

# Ed25519 hashes by itself; the path with a hash name behind it is therefore not granted.
path "transit/sign/cardvault-audit" {
  capabilities = ["update"]
}

# The public key and its version.
path "transit/keys/cardvault-audit" {
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
