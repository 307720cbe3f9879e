# Login `operator`: the people who rotate keys, at a terminal, never a network service.
#
# They may rotate, rewrap, retire and trim. They can make cards unreadable, which backups of Vault undo,
# but they can read none: no decrypt, no export, no backup (PCI DSS 3.6.1, 7.2.5).
#
# `config` takes the version bounds alone. Without that list an operator could make a key exportable, or
# deletable, for good.
#
# The set-up writes another mount's name in place of `transit/` where one is configured.

path "transit/rewrap/cardvault-cards" {
  capabilities = ["update"]
}

path "transit/rewrap/cardvault-once" {
  capabilities = ["update"]
}

path "transit/keys/cardvault-cards" {
  capabilities = ["read"]
}

path "transit/keys/cardvault-cards/rotate" {
  capabilities = ["update"]
}

path "transit/keys/cardvault-cards/config" {
  capabilities = ["update"]
  allowed_parameters = {
    "min_decryption_version" = []
    "min_encryption_version" = []
  }
}

path "transit/keys/cardvault-cards/trim" {
  capabilities = ["update"]
}

path "transit/keys/cardvault-once" {
  capabilities = ["read"]
}

path "transit/keys/cardvault-once/rotate" {
  capabilities = ["update"]
}

path "transit/keys/cardvault-once/config" {
  capabilities = ["update"]
  allowed_parameters = {
    "min_decryption_version" = []
    "min_encryption_version" = []
  }
}

path "transit/keys/cardvault-once/trim" {
  capabilities = ["update"]
}

path "transit/keys/cardvault-fingerprint" {
  capabilities = ["read"]
}

path "transit/keys/cardvault-fingerprint/rotate" {
  capabilities = ["update"]
}

path "transit/keys/cardvault-fingerprint/config" {
  capabilities = ["update"]
  allowed_parameters = {
    "min_decryption_version" = []
    "min_encryption_version" = []
  }
}

path "transit/keys/cardvault-fingerprint/trim" {
  capabilities = ["update"]
}

path "transit/keys/cardvault-audit" {
  capabilities = ["read"]
}

path "transit/keys/cardvault-audit/rotate" {
  capabilities = ["update"]
}

path "transit/keys/cardvault-audit/config" {
  capabilities = ["update"]
  allowed_parameters = {
    "min_decryption_version" = []
    "min_encryption_version" = []
  }
}

path "transit/keys/cardvault-audit/trim" {
  capabilities = ["update"]
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
