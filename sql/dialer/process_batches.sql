create type public.process_batches_result as (batches_started integer, batches_completed integer);

-- Whether a batch being dialed seems to have nothing left to call: by its counters, or since the
-- last claim found nothing and nothing came back.
create or replace function private.has_nothing_left(p_batch public.call_batches)
returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select p_batch.status = 'processing' and p_batch.queued <= 0 and p_batch.in_progress <= 0
     and (p_batch.completed + p_batch.failed + p_batch.skipped >= p_batch.total_contacts
          or p_batch.next_claim_at is null)
$$;

revoke execute on function private.has_nothing_left(public.call_batches) from public;
comment on function private.has_nothing_left(public.call_batches) is 'Whether a batch being dialed seems to have nothing left to call.';

-- Complete a processing batch that has nothing left to call. The counters say when to look; the
-- contacts decide. A batch that awaits contacts is not over. One that neither the claim cursor nor a due time would find (it came in
-- by a plain insert, behind the cursor) is put back within reach. Returns whether it completed.
-- Reads the contacts before it takes the batch, so that nobody waits for the reading, and does
-- not wait itself: a batch that someone else holds is left for the next time.
create or replace function private.complete_batch(p_agency_id uuid, p_batch_id uuid, p_actor private.actor)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch public.call_batches;
  v_total integer;
  v_open  bigint;
begin
  select b.total_contacts into v_total
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  select min(c.id) into v_open
    from public.campaign_contacts c
   where c.agency_id = p_agency_id and c.batch_id = p_batch_id
     and c.status in ('pending', 'scheduled', 'queued', 'in_progress');

  select b.* into v_batch
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id and private.has_nothing_left(b)
     and b.total_contacts = v_total  -- none was added meanwhile
     for no key update skip locked;
  -- A statement of its own: it sees an import that began before the batch was taken.
  if not found or private.awaits_contacts(p_agency_id, p_batch_id) then
    return false;
  end if;
  if v_open is not null then
    update public.call_batches b
       set claim_cursor = least(b.claim_cursor, v_open - 1),
           next_claim_at = clock_timestamp()
     where b.agency_id = p_agency_id and b.id = p_batch_id;
    return false;
  end if;

  update public.call_batches b
     set status = 'completed',
         completed_at = clock_timestamp()
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  perform private.record_event(p_agency_id, v_batch, p_actor, 'complete', 'completed', 0);
  return true;
end;
$$;

revoke execute on function private.complete_batch(uuid, uuid, private.actor) from public;
comment on function private.complete_batch(uuid, uuid, private.actor) is 'Complete a batch that has nothing left to call.';

-- Move batches along: those with nothing left to call are completed; those that are due
-- (pending or scheduled, with contacts, and scheduled_for past or null) start processing,
-- oldest first; one that a hold reaches is held. A batch that waits for its next_claim_at is woken every 10 minutes all the
-- same: a clock that stepped back leaves times in the future. Run it every few seconds; safe when two run at once.
-- max_batches: the most that one run completes, the most that it wakes, and the most that it starts, 1 to 1000.
-- Raises PT401, PT403 (not a service or console), PT400 (a number out of range).
create or replace function private.process_batches(p_max_batches integer)
returns public.process_batches_result
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor  private.actor := private.require_service();
  v_now    timestamptz := clock_timestamp();
  v_result public.process_batches_result := (0, 0);
  v_live   record;
  v_batch  public.call_batches;
  v_mark   private.hold_mark;
begin
  if p_max_batches is null or p_max_batches not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'max_batches must be 1 to 1000',
      detail = '{"code": "max_batches_out_of_range"}';
  end if;

  for v_live in
    select b.agency_id, b.id
      from public.call_batches b
     where b.status = 'processing' and private.has_nothing_left(b)
       and not private.awaits_contacts(b.agency_id, b.id)
     limit p_max_batches
  loop
    v_result.batches_completed := v_result.batches_completed
      + private.complete_batch(v_live.agency_id, v_live.id, v_actor)::integer;
  end loop;

  -- From here on, since these stay locked until the run commits.
  for v_live in
    select b.agency_id, b.id
      from public.call_batches b
     where b.status = 'processing' and b.next_claim_at > v_now
       -- The time of the last claim may be of the clock that stepped back.
       and (b.last_claimed_at between v_now - interval '10 minutes' and v_now + interval '1 minute') is not true
     limit p_max_batches
       for no key update skip locked
  loop
    update public.call_batches b
       set next_claim_at = v_now
     where b.agency_id = v_live.agency_id and b.id = v_live.id;
  end loop;
  -- While a hold is being placed, the batches that it could reach are left for the next run.
  perform from private.live_admission l for share skip locked;
  if not found then
    return v_result;
  end if;
  for v_batch in
    select b.*
      from public.call_batches b
      join public.agencies a on a.id = b.agency_id
     where b.status in ('pending', 'scheduled') and coalesce(b.scheduled_for, '-infinity') <= v_now
       and exists (select from public.campaign_contacts c where c.agency_id = b.agency_id and c.batch_id = b.id)
     order by b.created_at
     limit p_max_batches
       for no key update of b skip locked
       for share of a skip locked
  loop
    v_mark := private.find_mark(v_batch);
    update public.call_batches b
       set status = 'processing',
           started_at = coalesce(b.started_at, v_now),
           is_held = v_mark.is_held,
           held_until = v_mark.held_until
     where b.agency_id = v_batch.agency_id and b.id = v_batch.id;
    perform private.record_event(v_batch.agency_id, v_batch, v_actor, 'process', 'processing', 0);
    v_result.batches_started := v_result.batches_started + 1;
  end loop;
  return v_result;
end;
$$;

revoke execute on function private.process_batches(integer) from public;
grant  execute on function private.process_batches(integer) to service_role, lastcall_admin;
comment on function private.process_batches(integer) is 'public.process_batches.';

create or replace function public.process_batches(max_batches integer default 100)
returns public.process_batches_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.process_batches(max_batches)
$$;

revoke execute on function public.process_batches(integer) from public, anon, authenticated;
grant  execute on function public.process_batches(integer) to service_role, lastcall_admin;
comment on function public.process_batches(integer) is
  'Start the batches that are due, complete those that have nothing left to call.';
