-- Progress of the batches that the reader may see, from the stored counters: never by
-- counting contacts. A skipped contact is done with: a cancelled batch ends at 100 %.
create view public.v_call_batch_summary with (security_invoker = true) as
select b.agency_id, b.id, b.user_id, b.external_id, b.name,
       b.campaign_id, c.name as campaign_name, b.agent_mapping_id, a.ultravox_agent_name as agent_name,
       b.from_number, b.status,
       b.total_contacts, b.queued, b.in_progress, b.completed, b.failed, b.skipped,
       coalesce(trunc(100.0 * (b.completed + b.failed + b.skipped) / nullif(b.total_contacts, 0), 1), 0)
         as progress_percentage,
       b.total_contacts - b.completed - b.failed - b.skipped as remaining_count,
       b.calls_per_minute, b.max_concurrent, b.retry_of,
       b.scheduled_for, b.created_at, b.started_at, b.paused_at, b.stopped_at, b.completed_at, b.error_message
  from public.call_batches b
  left join public.campaigns c on c.agency_id = b.agency_id and c.id = b.campaign_id
  left join public.agent_mappings a on a.agency_id = b.agency_id and a.id = b.agent_mapping_id;

comment on view public.v_call_batch_summary is 'Batches with progress_percentage and remaining_count.';
