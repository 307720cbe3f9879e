#!/bin/sh
# Database roles and their passwords; runs in the service `roles`, before and after each upgrade. Safe to run again.
#
# The three servers have a role each. Their rights are the same ones (the role `app` of roles.sql): what keeps them apart
# is the password, the log of connections, and that one can be locked out without the others.
set -eu

sql() { psql -X -q -v ON_ERROR_STOP=1 "$@"; }

for app in cardvault_intake cardvault_account cardvault_release; do
    sql -v app="$app" -f /etc/cardvault/roles.sql
done

for role in owner intake account release operator auditor; do
    # Not on the command line, which others on the host can see, and in no log of statements that fail.
    sql -v role="cardvault_$role" -v file="/run/secrets/database_$role" <<'SQL'
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SET password_encryption = 'scram-sha-256';
\set password `cat :file`
ALTER ROLE :"role" PASSWORD :'password';
SQL
done
echo "roles: as they should be"
