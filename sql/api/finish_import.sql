-- Finish an import whose rows are all there. The batch that it made is dialed from the next run of process_batches on, or
-- from its scheduled_for on, unless somebody resumed or paused it meanwhile. Left without any contact it stays
-- paused, says so in error_message, and the answer is no success (code no_contacts).
-- Returns the answer to the import; once more: the same. Raises PT401, PT403 (of no agency; not an owner or admin), PT404 (no
-- such batch or import of the agency), PT400 (batch completed or cancelled meanwhile).
-- Contract: uploadCSV, for the keys of batch.
create or replace function private.finish_import(p_agency_id uuid, p_batch_id uuid, p_import_id uuid)
returns jsonb
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.require_admin(p_agency_id);
  v_batch    public.call_batches;
  v_after    public.call_batches;
  v_import   public.batch_imports;
  v_is_empty boolean;
begin
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_import := private.find_import(p_agency_id, p_batch_id, p_import_id);
  if v_import.answer is not null then
    return v_import.answer;
  end if;
  if v_batch.status in ('completed', 'cancelled') then
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
  end if;

  v_is_empty := v_import.held_at is not null and v_batch.total_contacts = 0;
  v_after := v_batch;
  if v_import.held_at is not null then
    update public.call_batches b
       set status = case when b.status <> 'paused' or b.paused_at <> v_import.held_at or v_is_empty then b.status
                         when b.scheduled_for is null then 'pending'
                         else 'scheduled' end::public.batch_status,
           paused_at = case when b.paused_at <> v_import.held_at or v_is_empty then b.paused_at end,
           error_message = case when v_is_empty then 'No contact of the imported file can be called' end
     where b.agency_id = p_agency_id and b.id = p_batch_id
    returning b.* into v_after;
  end if;

  v_import.answer := jsonb_build_object(
    'success', not v_is_empty,
    'batch_id', v_after.id,
    'import_id', v_import.id,
    'created', v_import.held_at is not null,
    'status', v_after.status,
    'total_contacts', v_after.total_contacts,
    'added', v_import.added,
    'duplicates', v_import.duplicates,
    'do_not_call', v_import.do_not_call,
    'invalid', v_import.invalid,
    'error_count', v_import.invalid,
    'errors', (
      select coalesce(jsonb_agg(jsonb_build_object('row', e.row_number, 'phone_number', e.phone_number, 'error', e.error)
                                order by e.row_number), '[]')
        from (select r.*
                from public.import_errors r
               where r.agency_id = p_agency_id and r.import_id = p_import_id
               order by r.row_number
               limit 100) e),
    'batch', jsonb_build_object(
      '_id', coalesce(v_after.external_id, v_after.id::text),
      'batchName', v_after.name,
      'callingNumbers', coalesce(v_after.calling_numbers, array_remove(array[v_after.from_number], null)),
      'totalCalls', v_after.total_contacts))
    || case when v_is_empty then jsonb_build_object('error', v_after.error_message, 'code', 'no_contacts') else '{}' end;
  update public.batch_imports i
     set finished_at = clock_timestamp(),
         answer = v_import.answer
   where i.agency_id = p_agency_id and i.id = p_import_id;
  perform private.record_event(p_agency_id, v_batch, v_actor, 'finish_import', v_after.status, v_import.added);
  return v_import.answer;
end;
$$;

revoke execute on function private.finish_import(uuid, uuid, uuid) from public;
grant  execute on function private.finish_import(uuid, uuid, uuid) to authenticated, service_role, lastcall_admin;
comment on function private.finish_import(uuid, uuid, uuid) is 'public.finish_import, for a batch of a known agency.';

create or replace function public.finish_import(batch_id uuid default null, import_id uuid default null)
returns jsonb
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.finish_import(private.find_batch_agency(batch_id), batch_id, import_id)
$$;

revoke execute on function public.finish_import(uuid, uuid) from public, anon;
grant  execute on function public.finish_import(uuid, uuid) to authenticated, service_role, lastcall_admin;
comment on function public.finish_import(uuid, uuid) is 'Finish an import whose rows are all there.';
