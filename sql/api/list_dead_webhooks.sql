-- Events that failed for the last time, newest first: of an agency, or of all.
-- p_max_events: 1 to 1000. Raises PT401, PT403 (of no agency; not an owner or admin), PT404 (no such agency, or not the
-- user's), PT400 (a number out of range).
create or replace function private.list_dead_webhooks(p_agency_id uuid, p_max_events integer)
returns setof public.webhook_queue
language plpgsql stable
security definer  -- for a service or a console, events of every agency
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_agency_id uuid := private.find_admin_agency(p_agency_id);
begin
  if p_max_events is null or p_max_events not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'max_events must be 1 to 1000',
      detail = '{"code": "max_events_out_of_range"}';
  end if;
  return query
    select q.*
      from public.webhook_queue q
     where q.status = 'dead' and (v_agency_id is null or q.agency_id = v_agency_id)
     order by q.id desc
     limit p_max_events;
end;
$$;

revoke execute on function private.list_dead_webhooks(uuid, integer) from public;
grant  execute on function private.list_dead_webhooks(uuid, integer) to authenticated, service_role, lastcall_admin;
comment on function private.list_dead_webhooks(uuid, integer) is 'public.list_dead_webhooks.';

-- agency_id: a user may leave it out.
create or replace function public.list_dead_webhooks(agency_id uuid default null, max_events integer default 100)
returns setof public.webhook_queue
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select * from private.list_dead_webhooks(agency_id, max_events)
$$;

revoke execute on function public.list_dead_webhooks(uuid, integer) from public, anon;
grant  execute on function public.list_dead_webhooks(uuid, integer) to authenticated, service_role, lastcall_admin;
comment on function public.list_dead_webhooks(uuid, integer) is 'Webhook events that failed for the last time.';
