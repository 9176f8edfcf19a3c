create type public.process_batches_result as (batches_started integer, batches_completed integer);

-- Complete a processing batch that has nothing left to call. The counters say when to look; the
-- contacts decide. One that neither the claim cursor nor a due time would find (it came in
-- by a plain insert, behind the cursor) is put back within reach. Returns whether it completed.
-- Without waiting: a batch that someone else holds is left for the next time.
create or replace function private.complete_batch(p_agency_id uuid, p_batch_id uuid, p_actor private.actor)
returns boolean
language plpgsql volatile
set search_path = ''
as $$
declare
  v_batch public.call_batches;
  v_open  bigint;
begin
  select b.* into v_batch
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id and b.status = 'processing'
     for no key update skip locked;
  if not found then
    return false;
  end if;

  if exists (select from public.campaign_contacts c
              where c.agency_id = p_agency_id and c.batch_id = p_batch_id
                and (c.status in ('queued', 'in_progress')
                     or c.status in ('pending', 'scheduled') and c.due_at is not null)) then
    return false;
  end if;
  select min(c.id) into v_open
    from public.campaign_contacts c
   where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.status in ('pending', 'scheduled');
  if v_open is not null then
    update public.call_batches b
       set claim_cursor = v_open - 1,
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

-- Move batches along: those that are due (pending or scheduled, with contacts, and
-- scheduled_for past or null) start processing, oldest first; those with nothing left to call
-- are completed. Run it every few seconds; safe when two run at once.
-- max_batches: the most that one run starts. Raises PT401, PT403 (not a service or console).
create or replace function private.process_batches(p_max_batches integer)
returns public.process_batches_result
language plpgsql volatile
security definer
set search_path = ''
as $$
declare
  v_actor  private.actor := private.require_service();
  v_now    timestamptz := clock_timestamp();
  v_result public.process_batches_result := (0, 0);
  v_live   record;
  v_batch  public.call_batches;
begin
  for v_batch in
    select b.*
      from public.call_batches b
     where b.status in ('pending', 'scheduled') and coalesce(b.scheduled_for, '-infinity') <= v_now
       and exists (select from public.campaign_contacts c where c.agency_id = b.agency_id and c.batch_id = b.id)
     order by b.created_at
     limit p_max_batches
       for no key update skip locked
  loop
    update public.call_batches b
       set status = 'processing',
           started_at = coalesce(b.started_at, v_now)
     where b.agency_id = v_batch.agency_id and b.id = v_batch.id;
    perform private.record_event(v_batch.agency_id, v_batch, v_actor, 'process', 'processing', 0);
    v_result.batches_started := v_result.batches_started + 1;
  end loop;

  for v_live in
    select b.agency_id, b.id
      from public.call_batches b
     where b.status = 'processing' and b.queued <= 0 and b.in_progress <= 0
       -- Nothing left by the counters, or nothing found by the last claim.
       and (b.completed + b.failed + b.skipped >= b.total_contacts or b.next_claim_at is null)
  loop
    v_result.batches_completed := v_result.batches_completed
      + private.complete_batch(v_live.agency_id, v_live.id, v_actor)::integer;
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
set search_path = ''
as $$
  select private.process_batches(max_batches)
$$;

revoke execute on function public.process_batches(integer) from public, anon, authenticated;
grant  execute on function public.process_batches(integer) to service_role, lastcall_admin;
comment on function public.process_batches(integer) is
  'Start the batches that are due, complete those that have nothing left to call.';
