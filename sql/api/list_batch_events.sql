-- The audit trail of a batch, oldest first; never idempotency keys, nor what was asked and answered under them.
-- p_page_size: 1 to 200. p_after: the next_cursor of the page before.
-- Returns {"events": [...], "pagination": {"limit", "has_more", "next_cursor"}}.
-- Raises PT401, PT403 (of no agency), PT404 (no such batch of the agency), PT400 (a number out of range;
-- not a cursor).
create or replace function private.list_batch_events(
  p_agency_id uuid, p_batch_id uuid, p_page_size integer, p_after text)
returns json
language plpgsql stable
security definer  -- for a service or a console, looks at every agency
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_after  bigint;
  v_events json;
  v_next   text;
begin
  perform private.require_actor(p_agency_id);
  if p_page_size is null or p_page_size not between 1 and 200 then
    raise sqlstate 'PT400' using message = 'limit must be 1 to 200',
      detail = '{"code": "page_out_of_range"}';
  end if;
  if p_after !~ '^[0-9]{1,18}$' then
    raise sqlstate 'PT400' using message = 'Not a cursor that was given out',
      detail = '{"code": "cursor_invalid"}';
  end if;
  if not exists (select from public.call_batches b where b.agency_id = p_agency_id and b.id = p_batch_id) then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  end if;
  v_after := coalesce(p_after::bigint, 0);

  select coalesce(json_agg(
           json_build_object(
             'id', e.id::text,
             'created_at', private.iso_timestamp(e.created_at),
             'action', e.action,
             'actor_kind', e.actor_kind,
             'actor_id', e.actor_id,
             'actor_role', e.actor_role,
             'on_behalf_of', e.on_behalf_of,
             'from_status', e.from_status,
             'to_status', e.to_status,
             'contacts', e.contacts,
             'reason', e.reason,
             'request_id', e.request_id)
           order by e.id)
           filter (where e.place <= p_page_size), '[]'),
         case when count(*) > p_page_size then (max(e.id) filter (where e.place = p_page_size))::text end
    into v_events, v_next
    from (select e.*, row_number() over (order by e.id) as place
            from (select e.*
                    from public.batch_events e
                   where e.agency_id = p_agency_id and e.batch_id = p_batch_id and e.id > v_after
                   order by e.agency_id, e.batch_id, e.id
                   limit p_page_size + 1) e) e;
  return json_build_object(
    'events', v_events,
    'pagination', json_build_object(
      'limit', p_page_size,
      'has_more', v_next is not null,
      'next_cursor', v_next));
end;
$$;

revoke execute on function private.list_batch_events(uuid, uuid, integer, text) from public;
grant  execute on function private.list_batch_events(uuid, uuid, integer, text) to authenticated, service_role, lastcall_admin;
comment on function private.list_batch_events(uuid, uuid, integer, text) is 'public.list_batch_events, for a batch of a known agency.';

create or replace function public.list_batch_events(
  batch_id uuid default null, page_size integer default 50, after text default null)
returns json
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.list_batch_events(private.find_batch_agency(batch_id), batch_id, page_size, after)
$$;

revoke execute on function public.list_batch_events(uuid, integer, text) from public, anon;
grant  execute on function public.list_batch_events(uuid, integer, text) to authenticated, service_role, lastcall_admin;
comment on function public.list_batch_events(uuid, integer, text) is 'The audit trail of a call batch, oldest first.';
