-- The agency that the caller means: a user's own; for a service or a console the one that is named, or null, every one.
-- Raises PT401 (not signed in), PT403 (of no agency), PT404 (no such agency, or not the user's).
create or replace function private.find_agency(p_agency_id uuid)
returns uuid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor private.actor := private.current_actor();
begin
  if v_actor.kind = 'user' and v_actor.agency_id is null then
    raise sqlstate 'PT403' using message = 'User is not associated with an agency',
      detail = '{"code": "no_agency"}';
  end if;
  if p_agency_id <> v_actor.agency_id
     or p_agency_id is not null and not exists (select from public.agencies a where a.id = p_agency_id) then
    raise sqlstate 'PT404' using message = 'Agency not found',
      detail = '{"code": "agency_not_found"}';
  end if;
  return coalesce(p_agency_id, v_actor.agency_id);
end;
$$;

revoke execute on function private.find_agency(uuid) from public;
comment on function private.find_agency(uuid) is 'The agency that the caller means.';

-- The same for a caller who must be an owner or admin of the agency, a service or a console.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such agency, or not the user's).
create or replace function private.find_admin_agency(p_agency_id uuid)
returns uuid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor private.actor := private.current_actor();
begin
  if not (v_actor.kind = 'user' and v_actor.agency_id is null) and not private.is_agency_admin(v_actor) then
    raise sqlstate 'PT403' using message = 'User role must be agency_owner or agency_admin',
      detail = '{"code": "role_not_allowed"}';
  end if;
  return private.find_agency(p_agency_id);
end;
$$;

revoke execute on function private.find_admin_agency(uuid) from public;
comment on function private.find_admin_agency(uuid) is 'The agency that the caller means and may act for.';
