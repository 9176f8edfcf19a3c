-- An event to apply: to which call, and what it says.
create type private.webhook_event as (id bigint, event_type text, call_id bigint, call jsonb, lease uuid);
-- The result of one event.
create type private.webhook_outcome as (id bigint, status public.webhook_status, error_message text);

-- Apply events to the calls of one batch, in a group: one change of the batch's counters.
-- Returns what became of each, or null, without waiting, when someone else holds the batch.
--   call.started, call.joined   the carrier dials the call: confirm_call
--   call.ended                  its result: finish_call, with its rules of when a contact is called again
--     joined is given           completed, outcome answered, its duration from joined to ended
--     endReason unjoined        failed, outcome no_answer
--     any other endReason       failed, outcome the reason: hangup, agent_hangup, timeout, connection_error, system_error
--     none                      failed, outcome unknown
-- The first result of a call counts. An event after the end of the call changes nothing, nor does an event of another
-- carrier call than the first that was reported.
create or replace function private.apply_webhooks(
  p_agency_id uuid, p_batch_id uuid, p_events private.webhook_event[])
returns private.webhook_outcome[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_confirmed bigint[];
  v_others    bigint[];
  v_results   jsonb;
  v_first     bigint[];
  v_finished  bigint[];
begin
  perform
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id
     for no key update skip locked;
  if not found then
    return null;
  end if;

  v_confirmed := array(
    select c.call_id
      from private.confirm_call(p_agency_id, p_batch_id, coalesce((
        select jsonb_agg(jsonb_build_object(
                 'call_id', e.call_id, 'lease', e.lease, 'carrier_call_id', e.call ->> 'callId'))
          from unnest(p_events) e
         where e.event_type in ('call.started', 'call.joined')), '[]')) c
     where c.result = 'changed');
  v_others := array(
    select e.id
      from unnest(p_events) e
     where e.call ->> 'callId' <> (
       select k.carrier_call_id
         from public.calls k
        where k.agency_id = p_agency_id and k.batch_id = p_batch_id and k.id = e.call_id));

  select array_agg(f.id),
         coalesce(jsonb_agg(jsonb_build_object(
           'call_id', f.call_id,
           'lease', f.lease,
           'carrier_call_id', f.call ->> 'callId',
           'status', case when f.joined is not null then 'completed' else 'failed' end,
           'outcome', case when f.joined is not null then 'answered'
                           when f.reason = 'unjoined' then 'no_answer'
                           else coalesce(f.reason, 'unknown') end,
           'duration_seconds', case when private.is_timestamp(f.joined) and private.is_timestamp(f.call ->> 'ended')
             then extract(epoch from (f.call ->> 'ended')::timestamptz - f.joined::timestamptz) end)), '[]')
    into v_first, v_results
    from (select distinct on (e.call_id) e.id, e.call_id, e.lease, e.call, nullif(e.call ->> 'joined', '') as joined,
                 nullif(left(e.call ->> 'endReason', 50), '') as reason
            from unnest(p_events) e
           where e.event_type = 'call.ended' and e.id <> all (v_others)
           order by e.call_id, e.id) f;
  v_finished := array(
    select f.call_id from private.finish_call(p_agency_id, p_batch_id, v_results) f where f.result = 'changed');

  return array(
    select case when e.id = any (v_others)
                then (e.id, 'ignored', 'No such call')::private.webhook_outcome
                when e.event_type <> 'call.ended' and e.call_id = any (v_confirmed)
                  or e.id = any (v_first) and e.call_id = any (v_finished)
                then (e.id, 'completed', null)::private.webhook_outcome
                else (e.id, 'ignored', 'The call was over already')::private.webhook_outcome end
      from unnest(p_events) e);
end;
$$;

revoke execute on function private.apply_webhooks(uuid, uuid, private.webhook_event[]) from public;
comment on function private.apply_webhooks(uuid, uuid, private.webhook_event[]) is 'Apply events to the calls of one batch.';

-- Apply what carriers reported and is due, oldest first, batch by batch. Run it every few seconds, and again while it
-- has processed some; safe when several run at once. p_max_events: 1 to 10,000.
-- An event of no call of the agency, or of one that is over, is ignored, so that late, repeated and reordered ones
-- do no harm. A batch whose events cannot be applied fails alone. They are tried again after 30 seconds, 2, 8 and 32
-- minutes, each by itself then, so that only what is wrong fails again; after max_attempts they are dead.
-- It never waits for a lock, so it is part of no deadlock: events and batches that someone else holds are left to a
-- later run, which counts as no attempt. It holds the batches that it has changed until it commits, and a cancel of
-- one waits for that: so it begins no further one after 50 milliseconds, and leaves the rest to the next run.
-- Returns {"processed": applied or ignored, "failed": ...}, or {"processed": 0} when nothing was due.
-- Raises PT401, PT403 (not a service or console), PT400 (a number out of range).
-- Contract: process-webhook-queue.
create or replace function private.process_webhook_queue(p_max_events integer)
returns jsonb
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now       constant timestamptz := clock_timestamp();
  v_until     timestamptz;
  v_group     record;
  v_event     private.webhook_event;
  v_outcomes  private.webhook_outcome[];
  v_outcome   private.webhook_outcome;
  v_failed    integer := 0;
  v_processed integer := 0;
begin
  perform private.require_service();
  if p_max_events is null or p_max_events not between 1 and 10000 then
    raise sqlstate 'PT400' using message = 'max_events must be 1 to 10000',
      detail = '{"code": "max_events_out_of_range"}';
  end if;

  for v_group in
    with due as materialized (
      select q.agency_id, q.id, q.event_type, q.payload, q.attempts
        from public.webhook_queue q
       where q.next_retry_at <= v_now
       order by q.next_retry_at
       limit p_max_events
         for update skip locked)
    select d.agency_id, c.batch_id,
           array_agg((d.id, d.event_type, c.id, d.payload -> 'call', c.lease)::private.webhook_event order by d.id) as events
      from due d
     cross join lateral private.find_webhook_call(d.agency_id, d.payload) c
     group by d.agency_id, c.batch_id, case when d.attempts > 0 then d.id end
     order by min(d.id)
  loop
    exit when clock_timestamp() > v_until;
    v_until := coalesce(v_until, clock_timestamp() + interval '50 milliseconds');
    if v_group.batch_id is null then
      v_outcomes := array(select (e.id, 'ignored', 'No such call')::private.webhook_outcome from unnest(v_group.events) e);
    else
      begin
        v_outcomes := private.apply_webhooks(v_group.agency_id, v_group.batch_id, v_group.events);
      exception when others then
        v_outcomes := array(
          select (e.id, 'failed', left(sqlerrm, 500))::private.webhook_outcome from unnest(v_group.events) e);
      end;
    end if;

    -- Each event by its key: a join can be planned to read the whole queue.
    if v_outcomes is null then
      foreach v_event in array v_group.events loop
        -- Held: put off, lest it stand in front of other batches' events for as long.
        update public.webhook_queue q
           set next_retry_at = v_now + interval '1 second'
         where q.agency_id = v_group.agency_id and q.id = v_event.id;
      end loop;
      continue;
    end if;
    foreach v_outcome in array v_outcomes loop
      update public.webhook_queue q
         set status = case when v_outcome.status = 'failed' and q.attempts + 1 >= q.max_attempts then 'dead'
                           else v_outcome.status end,
             attempts = q.attempts + 1,
             error_message = v_outcome.error_message,
             processed_at = v_now,
             next_retry_at = case when v_outcome.status = 'failed' and q.attempts + 1 < q.max_attempts
               then v_now + interval '30 seconds' * 4 ^ q.attempts end
       where q.agency_id = v_group.agency_id and q.id = v_outcome.id;
      v_failed := v_failed + (v_outcome.status = 'failed')::integer;
    end loop;
    v_processed := v_processed + cardinality(v_outcomes);
  end loop;
  return case when v_processed = 0 then jsonb_build_object('processed', 0)
              else jsonb_build_object('processed', v_processed - v_failed, 'failed', v_failed) end;
end;
$$;

revoke execute on function private.process_webhook_queue(integer) from public;
grant  execute on function private.process_webhook_queue(integer) to service_role, lastcall_admin;
comment on function private.process_webhook_queue(integer) is 'public.process_webhook_queue.';

create or replace function public.process_webhook_queue(max_events integer default 200)
returns jsonb
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.process_webhook_queue(max_events)
$$;

revoke execute on function public.process_webhook_queue(integer) from public, anon, authenticated;
grant  execute on function public.process_webhook_queue(integer) to service_role, lastcall_admin;
comment on function public.process_webhook_queue(integer) is 'Apply what carriers reported.';
