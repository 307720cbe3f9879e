#!/bin/sh
# Makes what is random, once, and the folders, each for the user of the container that reads it. Run as root, beside this
# file; safe to run again: nothing that exists is changed. Certificates are yours to put there (see README.md).
set -eu
cd "$(dirname "$0")"
umask 077

CARDVAULT=10001 POSTGRES=999 OPENBAO=100

# secret NAME USER: 32 random bytes in hex, readable by that user alone.
secret() {
    [ -e "secrets/$1" ] || {
        head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' > "secrets/$1"
        chown "$2" "secrets/$1"
    }
}

# copy NAME OTHER USER: not by cp -n, which some call a failure where there is nothing to do.
copy() {
    [ -e "secrets/$2" ] || cp "secrets/$1" "secrets/$2"
    chown "$3" "secrets/$2"
}

# folder PATH USER
folder() {
    mkdir -p "$1"
    chmod 700 "$1"
    chown "$2" "$1"
}

mkdir -p secrets
chmod 711 secrets # each file in it has an owner of its own
for role in owner intake account release operator auditor; do
    # One copy for whom it lets in, one for the service that sets it.
    secret "database_$role" "$CARDVAULT"
    copy "database_$role" "set_database_$role" "$POSTGRES"
done
secret postgres_superuser "$POSTGRES"
[ -e secrets/postgres_passfile ] || {
    printf 'postgres:5432:cardvault:postgres:%s\n' "$(cat secrets/postgres_superuser)" > secrets/postgres_passfile
    chown "$POSTGRES" secrets/postgres_passfile
}
secret openbao_admin_password "$OPENBAO"
[ -e secrets/openbao_seal_key ] || {
    head -c 32 /dev/urandom > secrets/openbao_seal_key # 32 raw bytes: whoever loses it loses every card
    chown "$OPENBAO" secrets/openbao_seal_key
}
secret setup_token "$CARDVAULT"
copy setup_token openbao_setup_token "$OPENBAO"

folder logins "$CARDVAULT"
for login in intake release operator checkpointer; do
    # Docker would make what it is to mount as root's, and the set-up could not write there.
    folder "logins/$login" "$CARDVAULT"
done
folder audit "$CARDVAULT"
echo "prepared; README.md lists the certificates that must be in secrets/ before the first start"
