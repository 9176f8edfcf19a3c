-- The users whom p_user_id, a UUID or an external id, means to this caller: of the own agency for a
-- user, of any for a service or a console. A user who is neither one of them nor an owner or admin
-- is refused, and learns nothing of who exists. Raises PT403, PT404 (there is none).
create or replace function private.find_users(p_actor private.actor, p_user_id text)
returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan  -- by the agency's index for a user, without it for the others
as $$
declare
  v_uuid  constant text := '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$';
  v_users uuid[] := array(
    select u.id
      from public.users u
     where (p_actor.agency_id is null or u.agency_id = p_actor.agency_id)
       and (u.external_id = p_user_id
            or u.id = case when p_user_id ~ v_uuid then p_user_id::uuid end));
begin
  if not private.is_agency_admin(p_actor) and v_users <> array[p_actor.id] then
    raise sqlstate 'PT403' using message = 'Only the user, or an owner or admin of the agency, may do this',
      detail = '{"code": "role_not_allowed"}';
  end if;
  if cardinality(v_users) = 0 then
    raise sqlstate 'PT404' using message = 'User not found',
      detail = '{"code": "user_not_found"}';
  end if;
  return v_users;
end;
$$;

revoke execute on function private.find_users(private.actor, text) from public;
comment on function private.find_users(private.actor, text) is 'The users whom an id means to this caller.';
