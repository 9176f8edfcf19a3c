-- The calls that the carrier has to end.
--   hang_up is true     somebody asked for the end of the call (end_calls): whatever it does, it ends
--   otherwise           its batch is paused, stopped, held or over, or its contact was skipped, and the carrier queues it:
--                       it is withdrawn, unless it rings
-- A call that was given is not given again for 5 seconds: the dialer that took it may be gone, and the carrier away.
-- Two who ask at once get different ones.
-- Reads the open calls alone, of all batches. Takes no batch, since it changes nothing of what a batch's row guards, and
-- waits for nobody.
-- max_calls: 1 to 1000.
-- Raises PT401, PT403 (not a service or console), PT400 (a number out of range).
create or replace function private.list_calls_to_end(p_max_calls integer)
returns setof public.open_call
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now  timestamptz := clock_timestamp();
  v_call public.calls;
begin
  perform private.require_service();
  if p_max_calls is null or p_max_calls not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'max_calls must be 1 to 1000',
      detail = '{"code": "max_calls_out_of_range"}';
  end if;

  for v_call in
    select c.*
      from public.calls c
     where c.status in ('in_progress', 'unknown')
       and (c.hang_up or c.carrier_queued)
       and (c.end_asked_at is null or c.end_asked_at <= v_now - interval '5 seconds')
       and (c.hang_up or c.is_last or exists (
             select from public.call_batches b
              where b.agency_id = c.agency_id and b.id = c.batch_id
                and (b.status in ('paused', 'stopped', 'completed', 'failed', 'cancelled') or private.is_held(b, v_now))))
     order by c.end_asked_at nulls first
     limit p_max_calls
       for no key update skip locked
  loop
    update public.calls c
       set end_asked_at = v_now
     where c.agency_id = v_call.agency_id and c.batch_id = v_call.batch_id and c.id = v_call.id;
    return next private.open_call(v_call, v_now);
  end loop;
end;
$$;

revoke execute on function private.list_calls_to_end(integer) from public;
grant  execute on function private.list_calls_to_end(integer) to service_role, lastcall_admin;
comment on function private.list_calls_to_end(integer) is 'public.list_calls_to_end.';

create or replace function public.list_calls_to_end(max_calls integer default 20)
returns setof public.open_call
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select * from private.list_calls_to_end(max_calls)
$$;

revoke execute on function public.list_calls_to_end(integer) from public, anon, authenticated;
grant  execute on function public.list_calls_to_end(integer) to service_role, lastcall_admin;
comment on function public.list_calls_to_end(integer) is 'The calls that the carrier has to end.';
