-- How many calls of a batch can still start: start_call let them through, and either the carrier is not known to have
-- them and their place-by time is not over, or the carrier queues them. p_batch: as it is now.
create or replace function private.count_starting(p_batch public.call_batches)
returns integer
language sql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
  select case when p_batch.in_progress > 0 then (
    select count(*)::integer
      from public.calls c
     where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id
       and c.status in ('in_progress', 'unknown')
       and (c.carrier_call_id is null and c.place_by > clock_timestamp() or c.carrier_queued)) else 0 end
$$;

revoke execute on function private.count_starting(public.call_batches) from public;
comment on function private.count_starting(public.call_batches) is 'The calls that can still start.';
