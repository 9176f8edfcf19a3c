-- A user's batches, newest first, as stop-calling's product shows them.
-- p_user_id: UUID or external id. p_page: from 1. p_page_size: 1 to 100. p_search: part of the name, or a
-- queue_status (active while being dialed, or else the batch's status).
-- Returns {"batches": [...], "pagination": {"total", "page", "limit", "totalPages"}}, from the counters.
-- callsPicked: taken from the queue and called; callsCompleted: called with success.
-- Raises PT401, PT400 (no user id; a number out of range), PT403 (of no agency; neither that user nor an
-- owner or admin), PT404 (no such user; no batch at all).
-- Contract: GET /api/call/batches/{userId}; an owner or admin may look at any user of the agency.
create or replace function private.list_user_batches(
  p_user_id text, p_page integer, p_page_size integer, p_search text)
returns json
language plpgsql stable
security definer  -- looks at users, and for a service or a console at every agency
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_actor   private.actor := private.current_actor();
  v_users   uuid[];
  v_total   integer;
  v_batches json;
begin
  if coalesce(p_user_id, '') = '' then
    raise sqlstate 'PT400' using message = 'userId is required',
      detail = '{"code": "user_id_required"}';
  end if;
  if p_page is null or p_page < 1 or p_page_size is null or p_page_size not between 1 and 100 then
    raise sqlstate 'PT400' using message = 'page must be at least 1 and limit 1 to 100',
      detail = '{"code": "page_out_of_range"}';
  end if;
  if v_actor.kind = 'user' and v_actor.agency_id is null then
    raise sqlstate 'PT403' using message = 'User is not associated with an agency',
      detail = '{"code": "no_agency"}';
  end if;
  v_users := private.find_users(v_actor, p_user_id);

  with mine as (
    select b.*,
           case when b.status = 'processing' then 'active' else b.status::text end as queue_status,
           row_number() over (order by b.created_at desc, b.id) as place
      from public.call_batches b
     where (v_actor.agency_id is null or b.agency_id = v_actor.agency_id)
       and b.user_id = any (v_users)),
  found as (
    select m.*, row_number() over (order by m.place) as found_place
      from mine m
     where coalesce(p_search, '') = ''
        or strpos(lower(m.name), lower(p_search)) > 0
        or m.queue_status = lower(p_search))
  select count(*)::integer,
         coalesce(json_agg(
           json_build_object(
             '_id', coalesce(f.external_id, f.id::text),
             'batchName', f.name,
             'totalCalls', f.total_contacts,
             'callsPicked', f.in_progress + f.completed + f.failed,
             'callsCompleted', f.completed,
             'queue_status', f.queue_status,
             'createdAt', private.iso_timestamp(f.created_at),
             'updatedAt', private.iso_timestamp(greatest(
               f.created_at, f.started_at, f.paused_at, f.stopped_at, f.completed_at, f.last_claimed_at)))
           order by f.found_place)
           filter (where f.found_place > (p_page - 1)::bigint * p_page_size
                     and f.found_place <= p_page::bigint * p_page_size), '[]')
    into v_total, v_batches
    from found f;
  if v_total = 0 then
    raise sqlstate 'PT404' using message = 'No batches found',
      detail = '{"code": "batch_not_found"}';
  end if;

  return json_build_object(
    'batches', v_batches,
    'pagination', json_build_object(
      'total', v_total,
      'page', p_page,
      'limit', p_page_size,
      'totalPages', (v_total + p_page_size - 1) / p_page_size));
end;
$$;

revoke execute on function private.list_user_batches(text, integer, integer, text) from public;
grant  execute on function private.list_user_batches(text, integer, integer, text) to authenticated, service_role, lastcall_admin;
comment on function private.list_user_batches(text, integer, integer, text) is 'public.list_user_batches.';

create or replace function public.list_user_batches(
  user_id text default null, page integer default 1, page_size integer default 10, search text default null)
returns json
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.list_user_batches(user_id, page, page_size, search)
$$;

revoke execute on function public.list_user_batches(text, integer, integer, text) from public, anon;
grant  execute on function public.list_user_batches(text, integer, integer, text) to authenticated, service_role, lastcall_admin;
comment on function public.list_user_batches(text, integer, integer, text) is
  'A user''s call batches with their progress, newest first.';
