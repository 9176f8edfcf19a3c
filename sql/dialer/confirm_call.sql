-- The result of a report about a call: changed; unchanged, since the call is over or not started; or unknown,
-- since no call has this id and this lease.
create type public.reported_call as (call_id bigint, lease uuid, result text);

-- The result of a report that changed nothing.
create or replace function private.unchanged_or_unknown(
  p_agency_id uuid, p_batch_id uuid, p_call_id bigint, p_lease uuid)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
begin
  perform
    from public.calls c
   where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = p_call_id
     and c.lease is not distinct from p_lease;
  return case when found then 'unchanged' else 'unknown' end;
end;
$$;

revoke execute on function private.unchanged_or_unknown(uuid, uuid, bigint, uuid) from public;
comment on function private.unchanged_or_unknown(uuid, uuid, bigint, uuid) is 'The result of a report that changed nothing.';

-- Note that the carrier has these calls of one batch: its id of each, and that an unknown one is in progress.
-- p_confirmed: a JSON array of objects with call_id, lease, carrier_call_id (text) and, where the carrier queues the call
-- and has not dialed it yet, carrier_queued true. A call that was dialed is never queued again.
-- Returns a row for each object, in their order: changed are the calls that were not over yet.
-- Raises PT401, PT403 (not a service or console), PT404, PT400 (not such an array).
create or replace function private.confirm_call(p_agency_id uuid, p_batch_id uuid, p_confirmed jsonb)
returns setof public.reported_call
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_confirmed record;
  v_result    text;
  v_place_by  timestamptz;
  v_last      timestamptz;
begin
  perform private.require_service();
  if not private.names_calls(p_confirmed) or exists (
       select from jsonb_array_elements(p_confirmed) as g (confirmed)
        where jsonb_typeof(g.confirmed -> 'carrier_call_id') is distinct from 'string'
           or jsonb_typeof(g.confirmed -> 'carrier_queued') not in ('boolean', 'null')) then
    raise sqlstate 'PT400' using message = 'confirmed must be an array of objects with a call_id, a lease, a carrier_call_id, and carrier_queued true or false',
      detail = '{"code": "confirmed_invalid"}';
  end if;

  perform private.lock_batch(p_agency_id, p_batch_id);
  for v_confirmed in
    select r.call_id, r.lease, r.carrier_call_id, coalesce(r.carrier_queued, false) as carrier_queued
      from jsonb_to_recordset(p_confirmed) as r (
        call_id bigint, lease uuid, carrier_call_id text, carrier_queued boolean)
  loop
    update public.calls c
       set status = 'in_progress',
           carrier_call_id = coalesce(c.carrier_call_id, v_confirmed.carrier_call_id),
           carrier_queued = v_confirmed.carrier_queued and (c.carrier_queued or c.carrier_call_id is null),
           place_by = case when c.carrier_queued and not v_confirmed.carrier_queued then clock_timestamp() else c.place_by end
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_confirmed.call_id
       and c.lease is not distinct from v_confirmed.lease
       and c.status::text in ('in_progress', 'unknown')  -- as text: as in finish_call
    returning c.place_by into v_place_by;
    v_last := greatest(v_last, v_place_by);
    v_result := case when found then 'changed' else
      private.unchanged_or_unknown(p_agency_id, p_batch_id, v_confirmed.call_id, v_confirmed.lease) end;
    if v_result = 'unchanged' then
      -- The carrier has a call that was said not to be placed: check_counters finds it if its contact is called again.
      update public.calls c
         set carrier_call_id = v_confirmed.carrier_call_id
       where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_confirmed.call_id
         and c.lease is not distinct from v_confirmed.lease
         and c.status::text = 'failed' and c.outcome = 'not_placed' and c.carrier_call_id is null;
    end if;
    return next (v_confirmed.call_id, v_confirmed.lease, v_result)::public.reported_call;
  end loop;

  update public.call_batches b
     set place_by = v_last
   where b.agency_id = p_agency_id and b.id = p_batch_id and b.place_by < v_last;
end;
$$;

revoke execute on function private.confirm_call(uuid, uuid, jsonb) from public;
grant  execute on function private.confirm_call(uuid, uuid, jsonb) to service_role, lastcall_admin;
comment on function private.confirm_call(uuid, uuid, jsonb) is 'public.confirm_call, for a batch of a known agency.';

-- The door to private.confirm_call. confirmed: all of batch_id.
create or replace function public.confirm_call(batch_id uuid, confirmed jsonb)
returns setof public.reported_call
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select * from private.confirm_call(private.find_batch_agency(batch_id), batch_id, confirmed)
$$;

revoke execute on function public.confirm_call(uuid, jsonb) from public, anon, authenticated;
grant  execute on function public.confirm_call(uuid, jsonb) to service_role, lastcall_admin;
comment on function public.confirm_call(uuid, jsonb) is 'Note that the carrier has these calls.';
