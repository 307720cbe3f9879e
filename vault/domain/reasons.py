"""Every reason that an error of ours can have: short words of this project, never a caller's.

Metrics and traces are labelled with them, so the list is closed; a test finds a reason in the code that it lacks.
"""

from __future__ import annotations

OTHER = "other"
"""Stands for whatever is not in the list."""

DEADLINE = "deadline"
UNEXPECTED = "unexpected"
"""An exception that is none of ours; the log knows where it came from."""

REASONS = frozenset(
    {
        # who asks
        *("no_single_uri", "role", "tls_version", "unmapped_identity"),
        # what is asked
        *("invalid_field", "malformed_cns", "malformed_evt", "malformed_grant", "malformed_oid"),
        *("malformed_one_time_token", "malformed_req", "malformed_tok"),
        *("idempotency_key_reused", "one_time_token_used"),
        # cards, consents, grants
        *("answer_erased", "answer_not_comparable", "card_expired", "card_gone", "card_pending"),
        *("consent_ended", "consent_missing", "consent_not_covering"),
        *("foreign_tenant", "grant_expired", "grant_revoked", "grant_unused", "grant_used", "impossible_lifetime"),
        *("one_time_token_expired", "one_time_token_for_merchant", "one_time_token_gone", "one_time_token_unfit"),
        *("other_outcome", "unknown_grant", "wrong_amount", "wrong_order", "wrong_processor"),
        *("key_refused", "seal_broken"),
        # limits and time
        *("calls_in_flight", "calls_in_flight_of_client", "queue_full", "server_stopping", "too_many_rounds"),
        *("deadline_before_claim", "deadline_in_queue", DEADLINE, UNEXPECTED),
        # Vault
        *("key_flags", "key_version_retired", "vault_canary_refused", "vault_error", "vault_forbidden"),
        *("vault_key_missing", "vault_key_version_retired", "vault_login_file", "vault_no_canary", "vault_odd_answer"),
        *("vault_rate_limited", "vault_sealed", "vault_session_closed", "vault_timeout", "vault_unreachable"),
        # the database and the log
        *("busy", "commit_unknown", "database_error", "database_full", "database_locked", "database_readonly"),
        *("database_pooled", "database_unreachable", "lock_lost", "row_unreadable"),
        *("audit_log_inconsistent", "audit_log_moved", "audit_log_shrank", "audit_signature_odd", "audit_unavailable"),
    }
)
"""What a call, a trip to Vault or a transaction of a server may end with."""

OPERATOR_REASONS = frozenset(
    {
        *("audit_copy_bad", "audit_copy_empty", "audit_copy_unsigned", "audit_log_foreign", "canary_refused"),
        *("database_in_use", "database_no_room", "not_sqlite"),
        *("card_does_not_open", "snapshot_unconfirmed", "version_needed", "version_reborn", "version_retired"),
        "version_unknown",
    }
)
"""Of commands; no server has them."""


def known(reason: str) -> str:
    """The reason, if it is one of ours; nothing for no reason."""
    return reason if reason in REASONS or not reason else OTHER
