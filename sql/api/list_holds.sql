-- The holds that reach an agency, newest first, those of every agency included: their reason and who placed them is for
-- services and consoles alone. p_agency_id null: for a service or a console the holds of all.
-- p_include_lifted: with those that were lifted or have ended. p_max_holds: 1 to 1000.
-- Returns {"holds": [...]}. Raises PT401 (not signed in), PT403 (of no agency), PT404 (no such agency, or not the user's),
-- PT400 (a number out of range).
create or replace function private.list_holds(p_agency_id uuid, p_include_lifted boolean, p_max_holds integer)
returns json
language plpgsql stable
security definer  -- for a service or a console, holds of every agency
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_actor     private.actor := private.current_actor();
  v_agency_id uuid := private.find_agency(p_agency_id);
begin
  if p_max_holds is null or p_max_holds not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'max_holds must be 1 to 1000',
      detail = '{"code": "max_holds_out_of_range"}';
  end if;
  return json_build_object('holds', coalesce((
    select json_agg(
             json_build_object(
               'id', h.id,
               'scope', private.hold_scope(h),
               'agency_id', h.agency_id,
               'campaign_id', h.campaign_id,
               'campaign_name', c.name,
               'agent_mapping_id', h.agent_mapping_id,
               'agent_name', m.ultravox_agent_name,
               'from_number', h.from_number,
               'is_active', private.is_active(h),
               'batches', case when private.is_active(h) then (
                 select count(*)
                   from public.call_batches b
                  where b.status = 'processing' and (v_agency_id is null or b.agency_id = v_agency_id)
                    and private.hold_reaches(h, b)) else 0 end,
               'until', private.iso_timestamp(h.until),
               'reason', case when not s.is_secret then h.reason end,
               'created_at', private.iso_timestamp(h.created_at),
               'created_by', case when not s.is_secret then h.created_by end,
               'lifted_at', private.iso_timestamp(h.lifted_at),
               'lifted_by', case when not s.is_secret then h.lifted_by end,
               'lift_reason', case when not s.is_secret then h.lift_reason end)
             order by h.created_at desc, h.id)
      from (select h.*
              from public.holds h
             where (v_agency_id is null or h.agency_id = v_agency_id or h.agency_id is null)
               and (p_include_lifted or private.is_active(h))
             order by h.created_at desc, h.id
             limit p_max_holds) l
      join public.holds h on h.id = l.id
     cross join lateral (select h.agency_id is null and v_actor.kind = 'user' as is_secret) s
      left join public.campaigns c on c.agency_id = h.agency_id and c.id = h.campaign_id
      left join public.agent_mappings m on m.agency_id = h.agency_id and m.id = h.agent_mapping_id), '[]'));
end;
$$;

revoke execute on function private.list_holds(uuid, boolean, integer) from public;
grant  execute on function private.list_holds(uuid, boolean, integer) to authenticated, service_role, lastcall_admin;
comment on function private.list_holds(uuid, boolean, integer) is 'public.list_holds.';

-- The door to private.list_holds for users, services and consoles. agency_id: a user may leave it out.
-- include_lifted: with the holds that were lifted or have ended.
create or replace function public.list_holds(
  agency_id uuid default null, include_lifted boolean default false, max_holds integer default 100)
returns json
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.list_holds(agency_id, coalesce(include_lifted, false), max_holds)
$$;

revoke execute on function public.list_holds(uuid, boolean, integer) from public, anon;
grant  execute on function public.list_holds(uuid, boolean, integer) to authenticated, service_role, lastcall_admin;
comment on function public.list_holds(uuid, boolean, integer) is 'The holds that reach an agency.';
