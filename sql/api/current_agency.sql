-- The agency of the signed-in user, or null. The functions share their database connections among agencies by it.
create or replace function public.current_agency()
returns uuid
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.current_agency_id()
$$;

revoke execute on function public.current_agency() from public, anon, service_role;
grant  execute on function public.current_agency() to authenticated;
comment on function public.current_agency() is 'The agency of the signed-in user.';
