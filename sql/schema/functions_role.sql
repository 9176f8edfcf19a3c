-- lastcall_functions: the role that the functions log in as. It owns nothing and inherits nothing: a connection
-- that forgets to become anon, authenticated or service_role can read no table and call no procedure, and it can
-- become no other. It cannot log in until it has a password: `\password lastcall_functions`.
-- Roles are the cluster's and in no dump of a database, so `lastcall migrate` runs this file every time. Safe to
-- repeat by any owner of a database, also by two migrations at once. It never fails: what the owner may not do
-- is a warning that says what to run.
do $$
begin
  if not exists (select from pg_catalog.pg_roles where rolname = 'lastcall_functions') then
    create role lastcall_functions login noinherit;
    -- The functions set a limit of their own for each call. This is for what sets none.
    alter role lastcall_functions set statement_timeout = '1min';
    alter role lastcall_functions set idle_in_transaction_session_timeout = '1min';
  end if;
exception
  when duplicate_object or unique_violation then
    null;  -- another migration of this cluster was faster
  when insufficient_privilege then
    raise warning 'the role lastcall_functions is missing, and % may not create it', current_user
      using hint = 'As a superuser: create role lastcall_functions login noinherit;'
                   ' grant anon, authenticated, service_role to lastcall_functions;';
end;
$$;

do $$
declare
  v_role    text;
  v_refused text[] := '{}';
begin
  if not exists (select from pg_catalog.pg_roles where rolname = 'lastcall_functions') then
    return;
  end if;
  foreach v_role in array array['anon', 'authenticated', 'service_role'] loop
    begin
      if not pg_catalog.pg_has_role('lastcall_functions', v_role, 'member') then
        execute format('grant %I to lastcall_functions', v_role);
      end if;
    exception
      when unique_violation then
        null;  -- another migration of this cluster was faster
      when insufficient_privilege then
        v_refused := v_refused || v_role;
    end;
  end loop;
  if v_refused <> '{}' then
    -- From PostgreSQL 16 on, whoever grants a role needs the admin option on it.
    raise warning 'lastcall_functions cannot become %: % may not grant them',
        array_to_string(v_refused, ', '), current_user
      using hint = format('As a superuser, or with the admin option on them: grant %s to lastcall_functions;',
                          array_to_string(v_refused, ', '));
  end if;
end;
$$;
