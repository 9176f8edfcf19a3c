-- A batch as calls-batch-list and calls-batch-get show it: the contract's keys, then our own. From the
-- batch's row and its counters, never by counting contacts.
create or replace function private.describe_batch(p_batch public.call_batches, p_now timestamptz)
returns json
language sql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off  -- as in claim_batch
as $$
  select json_build_object(
           'id', s.id,
           'agency_id', s.agency_id,
           'campaign_id', s.campaign_id,
           'campaign_name', s.campaign_name,
           'agent_mapping_id', s.agent_mapping_id,
           'agent_name', s.agent_name,
           'from_number', s.from_number,
           'status', s.status,
           'total_contacts', s.total_contacts,
           'queued', s.queued,
           'in_progress', s.in_progress,
           'completed', s.completed,
           'failed', s.failed,
           'skipped', s.skipped,
           'progress_percentage', s.progress_percentage,
           'remaining_count', s.remaining_count,
           'calls_per_minute', s.calls_per_minute,
           'max_concurrent', s.max_concurrent,
           'scheduled_for', private.iso_timestamp(s.scheduled_for),
           'created_at', private.iso_timestamp(s.created_at),
           'started_at', private.iso_timestamp(s.started_at),
           'external_id', s.external_id,
           'name', s.name,
           'user_id', s.user_id,
           'mode', p_batch.mode,
           'retry_of', s.retry_of,
           'waiting_for', w.waiting_for,
           'waiting_until', private.iso_timestamp(w.waiting_until),
           'paused_at', private.iso_timestamp(s.paused_at),
           'stopped_at', private.iso_timestamp(s.stopped_at),
           'completed_at', private.iso_timestamp(s.completed_at),
           'error_message', s.error_message,
           'calling_numbers', p_batch.calling_numbers,
           'timezone', p_batch.timezone,
           'calling_hours', case when p_batch.calling_start is not null then json_build_object(
             'start', to_char(p_batch.calling_start, 'HH24:MI:SS'), 'end', to_char(p_batch.calling_end, 'HH24:MI:SS')) end,
           'allowed_days', p_batch.allowed_days,
           'max_calls_per_number', p_batch.max_calls_per_number,
           'retry_delay_seconds', p_batch.retry_delay_seconds,
           'retry_outcomes', p_batch.retry_outcomes)
    from public.v_call_batch_summary s
   cross join private.waiting_for(p_batch, p_now) w
   where s.agency_id = p_batch.agency_id and s.id = p_batch.id
$$;

revoke execute on function private.describe_batch(public.call_batches, timestamptz) from public;
comment on function private.describe_batch(public.call_batches, timestamptz) is 'A batch as the functions show it.';
