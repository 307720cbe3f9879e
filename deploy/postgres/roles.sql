-- Database roles of least privilege for cardvault on PostgreSQL (PCI DSS 7.2.5, 7.2.6).
--
--   owner     owns the schema: `cardvault db upgrade`, and nothing else
--   app       servers: no change of the consent ledger or the audit log, no DDL
--   operator  `cardvault keys`, `tenants`, `retention`: can neither store a card nor issue a grant
--   auditor   reads consent ledger and audit log, which records that and nothing else; no card, no key, no ciphertext
--
-- Run it as a superuser (or as a role with CREATEROLE that owns the database) in cardvault's database, which is for
-- cardvault alone: before the first `cardvault db upgrade`, and again after each. Running it again changes nothing that
-- is as it should be, and takes back what was granted beyond it.
--
--   psql -X -v ON_ERROR_STOP=1 -d cardvault -f roles.sql
--   psql -X -v ON_ERROR_STOP=1 -v app=shop_vault -v owner=shop_owner -d cardvault -f roles.sql    other names
--
-- It sets no passwords: `\password cardvault_app`, or certificates, or whatever pg_hba.conf asks for.

\set ON_ERROR_STOP on
\if :{?owner}
\else
  \set owner cardvault_owner
\endif
\if :{?app}
\else
  \set app cardvault_app
\endif
\if :{?operator}
\else
  \set operator cardvault_operator
\endif
\if :{?auditor}
\else
  \set auditor cardvault_auditor
\endif

BEGIN;

CREATE TEMPORARY TABLE wanted_roles ON COMMIT DROP AS
SELECT * FROM (VALUES ('owner', :'owner'), ('app', :'app'), ('operator', :'operator'), ('auditor', :'auditor'))
    AS roles (duty, name);

-- One line for each table: what each role may do there. A table that does not exist (yet) is passed over.
CREATE TEMPORARY TABLE wanted_grants ON COMMIT DROP AS
SELECT * FROM (VALUES
    --  table               app                               operator                          auditor
    ('alembic_version',   'SELECT',                         'SELECT',                         ''),
    ('settings',          'SELECT, INSERT, UPDATE, DELETE', 'SELECT, INSERT, UPDATE, DELETE', ''),
    ('consents',          'SELECT, INSERT',                 'SELECT, INSERT',                 'SELECT'),
    ('cards',             'SELECT, INSERT, UPDATE, DELETE', 'SELECT, UPDATE, DELETE',         ''),
    ('card_secrets',      'SELECT, INSERT, UPDATE, DELETE', 'SELECT, UPDATE, DELETE',         ''),
    ('once_keys',         'SELECT, INSERT, UPDATE, DELETE', 'SELECT, UPDATE, DELETE',         ''),
    ('grants',            'SELECT, INSERT, UPDATE, DELETE', 'SELECT, UPDATE, DELETE',         ''),
    ('idempotency',       'SELECT, INSERT, UPDATE, DELETE', 'SELECT, UPDATE, DELETE',         ''),
    ('erasures',          'SELECT, INSERT',                 'SELECT, INSERT',                 ''),
    ('audit_events',      'SELECT, INSERT',                 'SELECT, INSERT',                 'SELECT, INSERT'),
    ('audit_queue',       'SELECT, DELETE',                 'SELECT, DELETE',                 'SELECT'),
    ('audit_leaves',      'SELECT, INSERT',                 'SELECT, INSERT',                 'SELECT'),
    ('audit_nodes',       'SELECT, INSERT',                 'SELECT, INSERT',                 'SELECT'),
    ('audit_head',        'SELECT, UPDATE',                 'SELECT, UPDATE',                 'SELECT'),
    ('audit_checkpoints', 'SELECT, INSERT',                 'SELECT, INSERT',                 'SELECT')
) AS grants (name, app, operator, auditor);

DO $$
DECLARE
    role record;
    made record;
    relation record;
    owner text := (SELECT name FROM wanted_roles WHERE duty = 'owner');
    owner_id oid;
BEGIN
    -- Two runs at once wait for each other.
    PERFORM pg_advisory_xact_lock(hashtext('cardvault.roles'));

    FOR role IN SELECT * FROM wanted_roles LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role.name) THEN
            EXECUTE format('CREATE ROLE %I', role.name);
        END IF;
        EXECUTE format('ALTER ROLE %I LOGIN NOCREATEDB NOCREATEROLE INHERIT', role.name);
        IF EXISTS (
            SELECT FROM pg_roles WHERE rolname = role.name AND (rolsuper OR rolreplication OR rolbypassrls)
        ) THEN
            RAISE EXCEPTION 'role % is more than it should be: superuser, replication or bypassrls', role.name;
        END IF;
    END LOOP;

    owner_id := (SELECT oid FROM pg_roles WHERE rolname = owner);

    -- A role that may become the owner may do what the owner may.
    IF EXISTS (
        SELECT FROM wanted_roles WHERE duty <> 'owner' AND pg_has_role(name::name, owner_id, 'MEMBER')
    ) THEN
        RAISE EXCEPTION 'a role of daily work is a member of %: revoke that', owner;
    END IF;

    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    REVOKE ALL ON SCHEMA public FROM PUBLIC;
    FOR role IN SELECT * FROM wanted_roles LOOP
        EXECUTE format('REVOKE ALL ON DATABASE %I FROM %I', current_database(), role.name);
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role.name);
        EXECUTE format('REVOKE ALL ON SCHEMA public FROM %I', role.name);
        EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', role.name);
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET search_path = public', role.name, current_database());
    END LOOP;
    EXECUTE format('GRANT CREATE ON SCHEMA public TO %I', owner);

    -- Tables and functions that someone else made, such as the one role of a first trial, become the owner's; not
    -- what belongs to an extension.
    FOR made IN
        SELECT c.oid::regclass AS name FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND c.relowner <> owner_id
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO %I', made.name, owner);
    END LOOP;
    FOR made IN
        SELECT p.oid::regprocedure AS name FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace AND p.proowner <> owner_id
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO %I', made.name, owner);
    END LOOP;

    -- Nothing but what stands above, also on tables that are not named there.
    FOR relation IN
        SELECT c.oid::regclass AS name, w.app, w.operator, w.auditor
        FROM pg_class c LEFT JOIN wanted_grants w ON w.name = c.relname
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC', relation.name);
        FOR role IN SELECT * FROM wanted_roles WHERE duty <> 'owner' LOOP
            EXECUTE format('REVOKE ALL ON %s FROM %I', relation.name, role.name);
        END LOOP;
        FOR role IN
            SELECT r.name, g.privileges
            FROM wanted_roles r JOIN (VALUES
                ('app', relation.app), ('operator', relation.operator), ('auditor', relation.auditor)
            ) AS g (duty, privileges) USING (duty)
            WHERE g.privileges <> ''
        LOOP
            EXECUTE format('GRANT %s ON %s TO %I', role.privileges, relation.name, role.name);
        END LOOP;
    END LOOP;

    -- An auditor adds events of having looked, and no others: an event that says "erased" or "released" has effects, after
    -- a restore or through its unique key, and one that no program can read holds up what reads it.
    IF to_regclass('public.audit_events') IS NOT NULL THEN
        CREATE OR REPLACE FUNCTION public.audit_events_of_auditor() RETURNS trigger LANGUAGE plpgsql AS $body$
        BEGIN
            IF NEW.event NOT IN ('audit.read', 'consent.shown') OR NEW.outcome <> 'ok' OR NEW.role <> 'operator'
                OR NEW.grant_sha256 IS NOT NULL OR NOT isfinite(NEW.occurred_at) OR NEW.occurred_at >= '9999-01-01Z'
                OR json_typeof(NEW.details::json) <> 'object'
            THEN
                RAISE EXCEPTION 'an auditor records looking and nothing else' USING ERRCODE = 'insufficient_privilege';
            END IF;
            RETURN NEW;
        END $body$;
        EXECUTE format('ALTER FUNCTION public.audit_events_of_auditor() OWNER TO %I', owner);
        EXECUTE format(
            'CREATE OR REPLACE TRIGGER audit_events_of_auditor BEFORE INSERT ON public.audit_events FOR EACH ROW '
            'WHEN (current_user = %L) EXECUTE FUNCTION public.audit_events_of_auditor()',
            (SELECT name FROM wanted_roles WHERE duty = 'auditor')
        );
    END IF;
END
$$;

COMMIT;
