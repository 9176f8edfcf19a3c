-- Record the results of calls of one batch, in a group: one change of the batch's counters.
-- p_results: a JSON array of objects with call_id, lease, status (completed, failed, unknown or missing) and,
-- where known, outcome, duration_seconds, carrier_call_id, notes, counted. A failed call with attempts left
-- puts its contact back, due after the batch's retry delay, unless its outcome is not one to try
-- again after, the batch is over (cancelled, or ended early), or the contact was skipped meanwhile: then the contact is failed.
-- A failed call with counted false was no attempt, since the carrier took no calls: the contact keeps the
-- attempts it had and, unless the batch is over or the contact was skipped, goes back whatever the outcome.
-- A call is unknown when nobody could tell whether the carrier got it. It stays in progress until the carrier
-- tells its end or that there was no such call; it is never placed again before.
-- A call is missing when the carrier was asked, by carrier_call_id if that was known, and has no such call. One that it
-- never confirmed was not placed: it failed, outcome not_placed. One that it had is completed, outcome lost: nobody is
-- called again because of it. One that it confirmed since it was asked is left as it is.
-- A call that the carrier withdrew from its queue (outcome withdrawn) was no attempt either. The outcome of a call that
-- list_calls_to_end gave because somebody asked for its end is hung_up, if the carrier dialed it.
-- A result for a call that is not in progress (told twice, never started) changes nothing.
-- Returns a row for each object, in their order.
-- Raises PT401, PT403 (not a service or console), PT404, PT400 (not such an array).
create or replace function private.finish_call(p_agency_id uuid, p_batch_id uuid, p_results jsonb)
returns setof public.reported_call
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_batch     public.call_batches;
  v_now       timestamptz;
  v_retry_at  timestamptz;
  v_result    record;
  v_call      public.calls;
  v_contact   public.contact_status;
  v_completed integer := 0;
  v_failed    integer := 0;
  v_retried   integer := 0;
  v_last      timestamptz;
begin
  perform private.require_service();
  if not private.names_calls(p_results) or exists (
       select from jsonb_array_elements(p_results) as r (result)
        where jsonb_typeof(r.result -> 'status') is distinct from 'string'
           or r.result ->> 'status' not in ('completed', 'failed', 'unknown', 'missing')
           or jsonb_typeof(r.result -> 'duration_seconds') not in ('number', 'null')
           or jsonb_typeof(r.result -> 'counted') not in ('boolean', 'null')) then
    raise sqlstate 'PT400' using message = 'results must be an array of objects with a call_id, a lease, a status completed, failed, unknown or missing, numbers as durations, and counted true or false',
      detail = '{"code": "results_invalid"}';
  end if;

  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  v_retry_at := v_now + make_interval(secs => v_batch.retry_delay_seconds);
  for v_result in
    select r.call_id, r.lease, r.carrier_call_id, r.notes,
           r.status = 'missing' as is_missing,
           case when r.status <> 'missing' then r.status
                when r.carrier_call_id is null then 'failed'
                else 'completed' end::public.call_status as status,
           case when r.status <> 'missing' then r.outcome
                when r.carrier_call_id is null then 'not_placed'
                else 'lost' end as outcome,
           r.status = 'failed' and (coalesce(r.outcome = 'withdrawn', false) or not coalesce(r.counted, true)) as is_no_attempt,
           r.status in ('completed', 'failed') and r.carrier_call_id is not null
             and r.outcome is distinct from 'withdrawn' as was_dialed,
           case when r.duration_seconds is not null
             then least(greatest(round(r.duration_seconds), 0), 2147483647)::integer end as duration_seconds
      from jsonb_to_recordset(p_results) as r (
        call_id bigint, lease uuid, status text, outcome text, duration_seconds numeric,
        carrier_call_id text, notes text, counted boolean)
  loop
    update public.calls c
       set status = v_result.status,
           ended_at = case when v_result.status <> 'unknown' then v_now end,
           outcome = case when v_result.was_dialed and c.hang_up and c.end_asked_at is not null then 'hung_up'
                          else v_result.outcome end,
           duration_seconds = v_result.duration_seconds,
           place_by = case when c.carrier_queued and v_result.status <> 'unknown' then v_now else c.place_by end,
           carrier_queued = c.carrier_queued and v_result.status = 'unknown',
           carrier_call_id = coalesce(v_result.carrier_call_id, c.carrier_call_id)
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_result.call_id
       and c.lease is not distinct from v_result.lease
       -- As text: not by the index of open calls, which would read all those of the batch.
       and c.status::text in ('in_progress', 'unknown') and c.status <> v_result.status
       and (not v_result.is_missing or c.carrier_call_id is not distinct from v_result.carrier_call_id)
    returning c.* into v_call;
    if not found then
      return next (v_result.call_id, v_result.lease, private.unchanged_or_unknown(
        p_agency_id, p_batch_id, v_result.call_id, v_result.lease))::public.reported_call;
      continue;
    end if;
    return next (v_result.call_id, v_result.lease, 'changed')::public.reported_call;
    continue when v_result.status = 'unknown';
    v_last := greatest(v_last, v_call.place_by);

    select case when v_result.status = 'completed' then 'completed'
                when v_batch.status <> 'cancelled' and not v_batch.skip_remaining and not v_call.is_last
                 and (v_result.is_no_attempt
                      or c.attempts < c.max_attempts
                     and (v_batch.retry_outcomes is null or v_call.outcome = any (v_batch.retry_outcomes)))
                  then 'scheduled'
                else 'failed' end::public.contact_status
      into v_contact
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_call.contact_id;
    update public.campaign_contacts c
       set status = v_contact,
           attempts = c.attempts - v_result.is_no_attempt::integer,
           due_at = case when v_contact = 'scheduled' then v_retry_at end,
           completed_at = case when v_contact <> 'scheduled' then v_now end,
           outcome = v_call.outcome,
           outcome_notes = v_result.notes,
           duration_seconds = v_result.duration_seconds
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_call.contact_id;
    v_completed := v_completed + (v_contact = 'completed')::integer;
    v_failed := v_failed + (v_contact = 'failed')::integer;
    v_retried := v_retried + (v_contact = 'scheduled')::integer;
  end loop;

  update public.call_batches b
     set in_progress = b.in_progress - v_completed - v_failed - v_retried,
         completed = b.completed + v_completed,
         failed = b.failed + v_failed,
         place_by = greatest(b.place_by, v_last),
         next_claim_at = case when v_retried > 0 then least(b.next_claim_at, v_retry_at) else b.next_claim_at end
   where b.agency_id = p_agency_id and b.id = p_batch_id and v_completed + v_failed + v_retried > 0;
end;
$$;

revoke execute on function private.finish_call(uuid, uuid, jsonb) from public;
grant  execute on function private.finish_call(uuid, uuid, jsonb) to service_role, lastcall_admin;
comment on function private.finish_call(uuid, uuid, jsonb) is 'public.finish_call, for a batch of a known agency.';

-- The door to private.finish_call. results: all of batch_id.
create or replace function public.finish_call(batch_id uuid, results jsonb)
returns setof public.reported_call
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select * from private.finish_call(private.find_batch_agency(batch_id), batch_id, results)
$$;

revoke execute on function public.finish_call(uuid, jsonb) from public, anon, authenticated;
grant  execute on function public.finish_call(uuid, jsonb) to service_role, lastcall_admin;
comment on function public.finish_call(uuid, jsonb) is 'Record the results of calls of one batch.';
