-- Put the user's agency and role into each access token, as the claims agency_id and user_role, for clients to read.
-- The core believes neither: a token outlives a change of its user's row, and the row decides.
-- No part of the core: an operator runs it, in the SQL editor or by psql -f, and turns the hook on: on a hosted project
-- under Authentication > Hooks, with the CLI in supabase/config.toml ([auth.hook.custom_access_token]).
-- To end it: turn the hook off first, then drop function private.custom_access_token_hook(jsonb);
do $$
begin
  if to_regrole('supabase_auth_admin') is null then
    raise exception 'supabase_auth_admin is missing: tokens are not made by Supabase Auth here';
  end if;
  if to_regprocedure('private.current_actor()') is null then
    raise exception 'the core is missing' using hint = 'supabase db push, or lastcall migrate';
  end if;
end;
$$;

-- event: an object with user_id and claims, from Supabase Auth, which puts the claims of the answer into the token.
-- A user without a row in users, or of no agency, gets the claims as they were. Raises nothing of its own: nobody is
-- kept from signing in.
create or replace function private.custom_access_token_hook(event jsonb)
returns jsonb
language sql stable
security definer  -- Supabase Auth may read nothing of the core
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    (select jsonb_set(event, '{claims}',
              (event -> 'claims') || jsonb_build_object('agency_id', u.agency_id, 'user_role', u.role))
       from public.users u
      where u.id = (event ->> 'user_id')::uuid and u.agency_id is not null),
    event)
$$;

revoke execute on function private.custom_access_token_hook(jsonb) from public, anon, authenticated, service_role;
grant  execute on function private.custom_access_token_hook(jsonb) to supabase_auth_admin;
grant  usage on schema private to supabase_auth_admin;
comment on function private.custom_access_token_hook(jsonb) is 'Supabase Auth''s custom access token hook: agency_id and user_role as claims.';
