-- Ask for the end of the calls in progress of a locked batch, and write that into the audit trail: list_calls_to_end tells
-- the dialers. p_batch: as it is now.
create or replace function private.hang_up_calls(
  p_agency_id uuid, p_batch public.call_batches, p_actor private.actor, p_reason text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_calls integer;
begin
  update public.calls c
     set hang_up = true,
         end_asked_at = null
   where c.agency_id = p_agency_id and c.batch_id = p_batch.id
     and c.status in ('in_progress', 'unknown') and not c.hang_up;
  get diagnostics v_calls = row_count;
  perform private.record_event(p_agency_id, p_batch, p_actor, 'end_calls', p_batch.status, v_calls, p_reason => p_reason);
end;
$$;

revoke execute on function private.hang_up_calls(uuid, public.call_batches, private.actor, text) from public;
comment on function private.hang_up_calls(uuid, public.call_batches, private.actor, text) is
  'Ask for the end of the calls in progress of a batch.';
