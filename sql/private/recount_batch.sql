-- Set a batch's counters to what its contacts are: the repair for what check_counters finds.
-- Returns the batch as it stands then. Raises PT401, PT403 (not a service or console), PT404.
create or replace function private.recount_batch(p_batch_id uuid)
returns public.call_batches
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor     private.actor := private.require_service();
  v_agency_id uuid := private.find_batch_agency(p_batch_id);
  v_batch     public.call_batches := private.lock_batch(v_agency_id, p_batch_id);
  v_recounted public.call_batches;
begin
  update public.call_batches b
     set total_contacts = n.total,
         queued = n.queued,
         in_progress = n.in_progress,
         completed = n.completed,
         failed = n.failed,
         skipped = n.skipped
    from (select count(*) as total,
                 count(*) filter (where c.status = 'queued') as queued,
                 count(*) filter (where c.status = 'in_progress') as in_progress,
                 count(*) filter (where c.status = 'completed') as completed,
                 count(*) filter (where c.status = 'failed') as failed,
                 count(*) filter (where c.status = 'skipped') as skipped
            from public.campaign_contacts c
           where c.agency_id = v_agency_id and c.batch_id = p_batch_id) n
   where b.agency_id = v_agency_id and b.id = p_batch_id
  returning b.* into v_recounted;
  perform private.record_event(v_agency_id, v_batch, v_actor, 'recount', v_batch.status, v_recounted.total_contacts);
  return v_recounted;
end;
$$;

revoke execute on function private.recount_batch(uuid) from public;
grant  execute on function private.recount_batch(uuid) to service_role, lastcall_admin;
comment on function private.recount_batch(uuid) is 'Set a batch''s counters to what its contacts are.';
