-- The caller.
create type private.actor as (
  kind      text,              -- user, service or console
  id        uuid,              -- the user; of a service or a console, whom its token names, if any
  agency_id uuid,              -- null for service and console: they act on every agency
  role      public.user_role,  -- null for service and console
  db_role   text
);

-- The user whom the request's token names (claim sub), or null. Set by the functions and by
-- PostgREST after they verified the token; nothing else may be believed of it.
create or replace function private.token_user_id()
returns uuid
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when s.sub ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$' then s.sub::uuid end
    from (select nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub') as s (sub)
$$;

revoke execute on function private.token_user_id() from public;
comment on function private.token_user_id() is 'The user whom the request''s token names.';

-- The caller by the database role that the session acts as, which holds inside security
-- definer functions too: service_role is a service, a member of lastcall_admin a console,
-- anyone else a user by the token's claims. Raises PT401 (no user named by the claims). A user without
-- a row in users, or without an agency, comes back with agency_id null.
create or replace function private.current_actor()
returns private.actor
language plpgsql stable
security definer  -- reads users, whoever asks
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor private.actor;
begin
  v_actor.db_role := coalesce(nullif(current_setting('role', true), 'none'), session_user);
  v_actor.id := private.token_user_id();

  if v_actor.db_role = 'service_role' then
    v_actor.kind := 'service';
  elsif pg_catalog.pg_has_role(v_actor.db_role, 'lastcall_admin', 'usage') then
    v_actor.kind := 'console';
  elsif v_actor.id is null then
    raise sqlstate 'PT401' using message = 'Not signed in',
      detail = '{"code": "not_signed_in"}';
  else
    v_actor.kind := 'user';
    select u.agency_id, u.role into v_actor.agency_id, v_actor.role
      from public.users u
     where u.id = v_actor.id;
  end if;
  return v_actor;
end;
$$;

revoke execute on function private.current_actor() from public;
comment on function private.current_actor() is 'The caller: a user, a service or a console.';

-- The agency whose rows the caller may read, for row-level security: null for none.
create or replace function private.current_agency_id()
returns uuid
language sql stable
security definer  -- a policy on users cannot read users
set search_path = pg_catalog, pg_temp
as $$
  select u.agency_id from public.users u where u.id = private.token_user_id()
$$;

revoke execute on function private.current_agency_id() from public;
grant  execute on function private.current_agency_id() to authenticated;
comment on function private.current_agency_id() is 'The agency whose rows the caller may read.';
