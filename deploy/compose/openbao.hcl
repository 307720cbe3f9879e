# OpenBao for one host: durable storage, a seal that opens by itself, TLS 1.3, an audit log, and a first token for the
# set-up that may do what deploy/vault/setup.hcl says. There is no root token: it is revoked before anybody sees it.
#
# The seal's key lies in a file on the same host, so whoever has that file and the volume has every key. A shop of its
# own takes a Vault or OpenBao beside cardvault, sealed by an HSM or a cloud KMS, and leaves this service out.

storage "raft" {
  path    = "/openbao/file"
  node_id = "one"
}

seal "static" {
  current_key_id = "1"
  current_key    = "file:///run/secrets/openbao_seal_key"
}

listener "tcp" {
  address         = "0.0.0.0:8200"
  tls_cert_file   = "/run/secrets/openbao_certificate"
  tls_key_file    = "/run/secrets/openbao_private_key"
  tls_min_version = "tls13"

  # One batch of 200 items, and a little more: caps what one call can guess (hmac) or wrap.
  max_request_json_strings = 1000
}

# Every request and answer, secrets hashed (PCI DSS 10.2.1). Ship it to another host.
audit "file" "log" {
  options = {
    file_path = "/openbao/logs/audit.log"
    mode      = "0600"
  }
}

# Once, at the very first start.
initialize "cardvault" {
  request "policy" {
    operation = "update"
    path      = "sys/policies/acl/cardvault-setup"
    data = {
      policy = {
        eval_type   = "string"
        eval_source = "file"
        path        = "/run/secrets/openbao_setup_policy"
      }
    }
  }

  # Good for a day, in which the service `vault-setup` must have run. Later changes need a token that a person makes.
  request "setup-token" {
    operation = "update"
    path      = "auth/token/create-orphan"
    data = {
      id = {
        eval_type   = "string"
        eval_source = "file"
        path        = "/run/secrets/openbao_setup_token"
      }
      policies          = ["cardvault-setup"]
      no_default_policy = true
      ttl               = "24h"
      explicit_max_ttl  = "24h"
      renewable         = false
    }
  }
}

# A person's way in, for snapshots and for later set-ups: exchange it for your own (OIDC, certificates) soon.
initialize "administrator" {
  request "userpass" {
    operation = "update"
    path      = "sys/auth/userpass"
    data = {
      type = "userpass"
    }
  }

  request "policy" {
    operation = "update"
    path      = "sys/policies/acl/administrator"
    data = {
      policy = "path \"*\" { capabilities = [\"create\", \"read\", \"update\", \"delete\", \"list\", \"patch\", \"scan\", \"sudo\"] }"
    }
  }

  request "person" {
    operation = "update"
    path      = "auth/userpass/users/administrator"
    data = {
      password = {
        eval_type   = "string"
        eval_source = "file"
        path        = "/run/secrets/openbao_admin_password"
      }
      token_policies = ["administrator"]
      token_ttl      = "1h"
      token_max_ttl  = "1h"
    }
  }
}

api_addr     = "https://openbao:8200"
cluster_addr = "https://openbao:8201"
log_level    = "info"
