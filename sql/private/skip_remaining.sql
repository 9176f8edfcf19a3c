-- Skip what was not called yet of a locked batch, and nothing else: pending, scheduled and
-- queued contacts become skipped, leases end. p_notes goes into outcome_notes.
-- Returns how many were skipped. The caller holds the batch's lock and sets its counters.
create or replace function private.skip_remaining(p_agency_id uuid, p_batch_id uuid, p_notes text)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- Whether to read the batch by its key or the whole table depends on its share of the table.
set plan_cache_mode = force_custom_plan
as $$
declare
  v_skipped integer;
begin
  delete from public.calls c
   where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.status = 'queued';
  update public.campaign_contacts c
     set status = 'skipped',
         outcome_notes = p_notes
   where c.agency_id = p_agency_id and c.batch_id = p_batch_id
     and c.status in ('pending', 'scheduled', 'queued');
  get diagnostics v_skipped = row_count;
  return v_skipped;
end;
$$;

revoke execute on function private.skip_remaining(uuid, uuid, text) from public;
comment on function private.skip_remaining(uuid, uuid, text) is 'Skip the contacts of a locked batch that were not called yet.';
