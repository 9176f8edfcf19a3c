-- A batch as every one begins, with the settings of p_batch: nothing of what became of that one, waiting for its time.
create or replace function private.fresh_batch(p_batch public.call_batches, p_scheduled_for timestamptz)
returns public.call_batches
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch public.call_batches := p_batch;
begin
  v_batch.id := gen_random_uuid();
  v_batch.scheduled_for := p_scheduled_for;
  v_batch.mode := case when p_scheduled_for is null then 'immediate' else 'scheduled' end::public.batch_mode;
  v_batch.status := case when p_scheduled_for is null then 'pending' else 'scheduled' end::public.batch_status;
  v_batch.total_contacts := 0;
  v_batch.queued := 0;
  v_batch.in_progress := 0;
  v_batch.completed := 0;
  v_batch.failed := 0;
  v_batch.skipped := 0;
  v_batch.started_at := null;
  v_batch.paused_at := null;
  v_batch.stopped_at := null;
  v_batch.completed_at := null;
  v_batch.error_message := null;
  v_batch.skip_remaining := false;
  v_batch.claim_cursor := 0;
  v_batch.created_at := clock_timestamp();
  v_batch.next_claim_at := v_batch.created_at;
  v_batch.last_claimed_at := null;
  v_batch.is_held := false;
  v_batch.held_until := null;
  return v_batch;
end;
$$;

revoke execute on function private.fresh_batch(public.call_batches, timestamptz) from public;
comment on function private.fresh_batch(public.call_batches, timestamptz) is 'A batch as every one begins.';
