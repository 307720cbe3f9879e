#!/bin/sh
# Vault roles by which pods log in: one for each service account, each with one policy and no other.
#
# Once, before the first `kubectl apply`, after `cardvault vault setup` (without --out: nobody needs a secret id), with a
# token that may write auth/jwt. Safe to run again. BAO=vault for HashiCorp's command.
#
# Vault's auth method `jwt` checks the signature of a pod's projected token with the cluster's public keys, so Vault
# needs no way into the cluster and no token of it. Enable and configure it first, in one of two ways:
#
#   bao auth enable jwt
#   bao write auth/jwt/config oidc_discovery_url=https://ISSUER      where Vault can reach the cluster's issuer
#   bao write auth/jwt/config jwt_validation_pubkeys=@sa.pub bound_issuer=https://ISSUER      where it cannot
set -eu

BAO="${BAO:-bao}"
MOUNT="${MOUNT:-jwt}"
NAMESPACE="${NAMESPACE:-cardvault}"
AUDIENCE="${AUDIENCE:-cardvault-vault}" # as in the pods' projected tokens, so that no other token of theirs will do

role() { # role SERVICE_ACCOUNT POLICY
    "$BAO" write "auth/$MOUNT/role/$1" \
        role_type=jwt \
        user_claim=sub \
        bound_audiences="$AUDIENCE" \
        bound_subject="system:serviceaccount:$NAMESPACE:$1" \
        token_policies="$2" \
        token_no_default_policy=true \
        token_ttl=1h \
        token_max_ttl=24h
}

role cardvault-intake cardvault-intake
role cardvault-release cardvault-release
role cardvault-account cardvault-checkpointer
role cardvault-operator cardvault-operator
