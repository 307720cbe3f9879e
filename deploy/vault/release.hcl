# Login `release`: the processes that serve the payment processor.
#
# They may unwrap one data key a call and nothing else, so that each card released leaves its own line in
# Vault's audit log, and a stolen token cannot open the table in bulk. They cannot wrap: what they hold
# cannot be used to put cards in.
#
# The set-up writes another mount's name in place of `transit/` where one is configured.

# An empty list denies the parameter whatever its value: also a batch of one, and a null batch.
path "transit/decrypt/cardvault-cards" {
  capabilities = ["update"]
  denied_parameters = {
    "batch_input" = []
  }
}

path "transit/decrypt/cardvault-once" {
  capabilities = ["update"]
  denied_parameters = {
    "batch_input" = []
  }
}

# The flags checked at start. Reading a key shows no key material.
path "transit/keys/cardvault-cards" {
  capabilities = ["read"]
}

path "transit/keys/cardvault-once" {
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
