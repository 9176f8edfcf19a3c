-- Whether contacts of a batch are still to come: none was ever there, or an import into it has not finished.
create or replace function private.awaits_contacts(p_agency_id uuid, p_batch_id uuid)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
begin
  return exists (select from public.batch_imports i
                  where i.agency_id = p_agency_id and i.batch_id = p_batch_id and i.finished_at is null)
      or not exists (select from public.campaign_contacts c
                      where c.agency_id = p_agency_id and c.batch_id = p_batch_id);
end;
$$;

revoke execute on function private.awaits_contacts(uuid, uuid) from public;
comment on function private.awaits_contacts(uuid, uuid) is 'Whether contacts of a batch are still to come.';
