create type private.waiting as (waiting_for text, waiting_until timestamptz);

-- Why no call of a batch may start at p_now, and the earliest time at which one may, where that is known.
-- Both null: it dials, or is over. If there are several reasons, the first of these:
--   contacts          none were added yet, or those that are there are done and an import has not finished
--   scheduled_for     its time is still to come
--   process           the next run of process_batches, which starts it, or completes it
--   resume            it is paused or stopped
--   results           none is left to claim; those queued and in progress may come back
--   hold              a hold reaches it
--   calling_hours     outside its hours and days, and no contact with a time zone of its own is due
--   max_concurrent    as many are queued or in progress
--   calls_per_minute  as many calls were claimed in the last 60 seconds
--   retry             whoever is left waits for a time of the own: a retry, another due time, a number's limit
-- Reads calls_per_minute calls, and 1,000 due contacts, at most.
create or replace function private.waiting_for(p_batch public.call_batches, p_now timestamptz)
returns private.waiting
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_opens_at timestamptz := p_now;
  v_is_due   boolean;
  v_free_at  timestamptz;
begin
  if p_batch.status in ('paused', 'stopped') then
    return ('resume', null)::private.waiting;
  elsif p_batch.status in ('pending', 'scheduled') then
    return case when p_batch.scheduled_for > p_now then ('scheduled_for', p_batch.scheduled_for)::private.waiting
                when p_batch.total_contacts = 0 then ('contacts', null)::private.waiting
                else ('process', null)::private.waiting end;
  elsif p_batch.status <> 'processing' then
    return (null, null)::private.waiting;
  elsif private.has_nothing_left(p_batch) then
    return (case when private.awaits_contacts(p_batch.agency_id, p_batch.id) then 'contacts' else 'process' end,
            null)::private.waiting;
  elsif p_batch.next_claim_at is null
     or p_batch.queued + p_batch.in_progress + p_batch.completed + p_batch.failed + p_batch.skipped
        >= p_batch.total_contacts then
    return ('results', null)::private.waiting;
  elsif private.is_held(p_batch, p_now) then
    return ('hold', p_batch.held_until)::private.waiting;
  end if;

  if p_batch.calling_start is not null or p_batch.allowed_days is not null then
    v_opens_at := private.next_calling_time(
      p_batch.calling_start, p_batch.calling_end, p_batch.allowed_days, p_batch.timezone, p_now);
  end if;
  if v_opens_at is distinct from p_now then
    if p_batch.next_claim_at > p_now then
      -- The last claim found none to call before next_claim_at, in whichever time zone.
      if v_opens_at is null or p_batch.next_claim_at <= v_opens_at then
        return ('calling_hours', p_batch.next_claim_at)::private.waiting;
      end if;
      return ('retry', p_batch.next_claim_at)::private.waiting;
    end if;
    select true into v_is_due
      from (select c.timezone, c.status
              from public.campaign_contacts c
             where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id and c.due_at <= p_now
             order by c.due_at
             limit 1000) c
     where c.timezone is not null and c.status in ('pending', 'scheduled')
     limit 1;
    if v_is_due is null then
      return ('calling_hours', v_opens_at)::private.waiting;
    end if;
  end if;

  if p_batch.queued + p_batch.in_progress >= p_batch.max_concurrent then
    return ('max_concurrent', null)::private.waiting;
  end if;
  select c.created_at + interval '1 minute' into v_free_at
    from public.calls c
   where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id
     and p_batch.calls_per_minute is not null
   order by c.agency_id desc, c.batch_id desc, c.id desc
  offset p_batch.calls_per_minute - 1
   limit 1;
  if v_free_at > p_now and v_free_at <= p_now + interval '2 minutes' then  -- as in claim_batch
    return ('calls_per_minute', v_free_at)::private.waiting;
  elsif p_batch.next_claim_at > p_now then
    return ('retry', p_batch.next_claim_at)::private.waiting;
  end if;
  return (null, null)::private.waiting;
end;
$$;

revoke execute on function private.waiting_for(public.call_batches, timestamptz) from public;
comment on function private.waiting_for(public.call_batches, timestamptz) is 'Why no call of a batch may start now.';
