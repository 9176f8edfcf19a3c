-- The roles that Supabase provides and a plain Postgres lacks: the roles that PostgREST and the functions
-- act as, and "authenticator", the role that PostgREST logs in as: it owns nothing and inherits
-- nothing. Needs a superuser, once per cluster; safe to repeat by any owner of a database, also
-- by two migrations at once.
do $$
declare
  v_role record;
begin
  for v_role in
    select r.name, r.options
      from (values ('anon', 'nologin noinherit'),
                   ('authenticated', 'nologin noinherit'),
                   ('service_role', 'nologin noinherit bypassrls'),
                   ('authenticator', 'login noinherit')) as r (name, options)
     where not exists (select from pg_catalog.pg_roles where rolname = r.name)
  loop
    begin
      execute format('create role %I %s', v_role.name, v_role.options);
    exception when duplicate_object or unique_violation then
      null;  -- another migration of this cluster was faster
    end;
  end loop;
end;
$$;

do $$
declare
  v_role text;
begin
  foreach v_role in array array['anon', 'authenticated', 'service_role'] loop
    if not pg_catalog.pg_has_role('authenticator', v_role, 'member') then
      execute format('grant %I to authenticator', v_role);
    end if;
  end loop;
end;
$$;

grant usage on schema public to anon, authenticated, service_role;
