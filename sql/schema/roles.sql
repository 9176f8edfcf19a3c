-- lastcall_admin: who may act on every agency's batches from a SQL console. Being an admin is
-- a membership, never the mere absence of a token: `grant lastcall_admin to alice;`
-- Whoever applies the core is a member.
do $$
begin
  if not exists (select from pg_catalog.pg_roles where rolname = 'lastcall_admin') then
    create role lastcall_admin nologin;
  end if;
exception when duplicate_object or unique_violation then
  null;  -- roles belong to the cluster: another database's migration was faster
end;
$$;

do $$
begin
  if not pg_catalog.pg_has_role(current_user, 'lastcall_admin', 'usage') then
    grant lastcall_admin to current_user;
  end if;
exception when insufficient_privilege then
  raise exception 'another owner made lastcall_admin in this cluster: have a superuser grant it to %', current_user;
end;
$$;
grant usage on schema public to lastcall_admin;

-- The core. Nothing in it is exposed by PostgREST; each function names who may execute it, and
-- its search_path with pg_temp last: where that is not named, PostgreSQL looks for types in
-- the caller's temporary schema first, and a domain made there would run the caller's code as
-- the definer.
create schema if not exists private;
revoke all on schema private from public;
grant usage on schema private to anon, authenticated, service_role, lastcall_admin;
