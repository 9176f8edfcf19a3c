-- Import the next rows of a file (see private.check_rows), in the order of the file. Valid ones become contacts (see
-- private.insert_valid_contacts); invalid ones are kept in import_errors, and keep no other from being imported. Rows that are
-- done are passed over: sent twice, they count once. Under the batch's lock, so that none slips into a batch that
-- is being cancelled, nor behind the claim cursor.
-- Returns private.import_progress. Raises PT401, PT403 (of no agency; not an owner or admin), PT404 (no such batch or import
-- of the agency), PT400 (not such rows; batch completed or cancelled).
create or replace function private.import_contacts(
  p_agency_id uuid, p_batch_id uuid, p_import_id uuid, p_rows jsonb)
returns json
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_errors_kept constant integer := 100000;
  v_batch    public.call_batches;
  v_import   public.batch_imports;
  v_numbers  integer[];
  v_phones   text[];
  v_errors   text[];
  v_valid    jsonb;
  v_last_row integer;
  v_contacts private.inserted_contacts := (0, 0, 0);
begin
  perform private.require_admin(p_agency_id);
  perform private.admit_contacts(p_agency_id);
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_import := private.find_import(p_agency_id, p_batch_id, p_import_id);
  if v_import.finished_at is not null then
    return private.import_progress(v_import);
  end if;
  if v_batch.status in ('completed', 'cancelled') then
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
  end if;

  select array_agg(r.row_number) filter (where r.error is not null),
         array_agg(left(r.contact ->> 'phone_number', 50)) filter (where r.error is not null),
         array_agg(r.error) filter (where r.error is not null),
         jsonb_agg(r.contact order by r.row_number) filter (where r.error is null),
         max(r.row_number)
    into v_numbers, v_phones, v_errors, v_valid, v_last_row
    from private.check_rows(p_rows) r
   where r.row_number > v_import.last_row;
  if v_last_row is null then
    return private.import_progress(v_import);
  end if;

  insert into public.import_errors (agency_id, import_id, row_number, phone_number, error)
  select p_agency_id, p_import_id, e.row_number, e.phone_number, e.error
    from unnest(v_numbers, v_phones, v_errors) as e (row_number, phone_number, error)
   order by e.row_number
   limit greatest(v_errors_kept - v_import.invalid, 0);
  if v_valid is not null then
    v_contacts := private.insert_valid_contacts(v_batch, v_valid, v_import.max_attempts);
  end if;
  update public.batch_imports i
     set last_row = v_last_row,
         added = i.added + v_contacts.added,
         duplicates = i.duplicates + v_contacts.duplicates,
         do_not_call = i.do_not_call + v_contacts.do_not_call,
         invalid = i.invalid + coalesce(cardinality(v_numbers), 0)
   where i.agency_id = p_agency_id and i.id = p_import_id
  returning i.* into v_import;
  update public.call_batches b
     set total_contacts = b.total_contacts + v_contacts.added,
         next_claim_at = least(b.next_claim_at, clock_timestamp())
   where b.agency_id = p_agency_id and b.id = p_batch_id and v_contacts.added > 0;
  return private.import_progress(v_import);
end;
$$;

revoke execute on function private.import_contacts(uuid, uuid, uuid, jsonb) from public;
grant  execute on function private.import_contacts(uuid, uuid, uuid, jsonb) to authenticated, service_role, lastcall_admin;
comment on function private.import_contacts(uuid, uuid, uuid, jsonb) is 'public.import_contacts, for a batch of a known agency.';

create or replace function public.import_contacts(
  batch_id uuid default null, import_id uuid default null, rows jsonb default null)
returns json
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.import_contacts(private.find_batch_agency(batch_id), batch_id, import_id, $3)
$$;

revoke execute on function public.import_contacts(uuid, uuid, jsonb) from public, anon;
grant  execute on function public.import_contacts(uuid, uuid, jsonb) to authenticated, service_role, lastcall_admin;
comment on function public.import_contacts(uuid, uuid, jsonb) is 'Import the next rows of a file into a call batch.';
