# What the token needs that `cardvault vault setup` works under: no root.
#
#   bao policy write cardvault-setup setup.hcl
#   bao token create -policy=cardvault-setup -no-default-policy -orphan -ttl=15m -field=token > admin-token
#
# Whoever may write policies and logins can write a policy that allows everything, this one too, and log in with it: so in
# the wrong hands this token is worth a root token. Make it for one run, let it expire. As it is, it can read no card,
# unwrap no key, and neither change nor delete a key that exists (no path ends in `config`).
#
# For another mount than transit/, or another AppRole mount, change the names here.

path "sys/mounts" {
  capabilities = ["read"]
}

path "sys/mounts/transit" {
  capabilities = ["create", "update"]
}

path "sys/auth" {
  capabilities = ["read"]
}

path "sys/auth/approle" {
  capabilities = ["create", "update", "sudo"]
}

# To say whether there is an audit device; the set-up makes none.
path "sys/audit" {
  capabilities = ["read", "sudo"]
}

path "sys/policies/acl/cardvault-*" {
  capabilities = ["create", "update", "read"]
}

path "sys/policy/cardvault-*" {
  capabilities = ["create", "update", "read"]
}

# The roles, their role ids and fresh secret ids.
path "auth/approle/role/cardvault-*" {
  capabilities = ["create", "update", "read"]
}

path "transit/config/keys" {
  capabilities = ["create", "update", "read"]
}

path "transit/keys/cardvault-cards" {
  capabilities = ["create", "update", "read"]
}

path "transit/keys/cardvault-once" {
  capabilities = ["create", "update", "read"]
}

path "transit/keys/cardvault-fingerprint" {
  capabilities = ["create", "update", "read"]
}

path "transit/keys/cardvault-audit" {
  capabilities = ["create", "update", "read"]
}

# The embedded default ends its own token when it is done.
path "auth/token/revoke-self" {
  capabilities = ["update"]
}
