create type public.add_contacts_result as (
  success        boolean,
  batch_id       uuid,
  added          integer,
  duplicates     integer,  -- left out: the batch has the number already
  do_not_call    integer,  -- left out: on the agency's do-not-call list
  total_contacts integer
);

-- Add 1 to 10,000 contacts to a batch, at the end of its dial order (see private.insert_contacts). Under
-- the batch's lock, so that none slips into a batch that is being cancelled, nor behind the claim cursor.
-- Raises PT401, PT403 (of no agency; not an owner or admin), PT404 (no such batch of the agency), PT400
-- (invalid contacts; batch completed or cancelled), PT409 (idempotency key reused), PT429 (too many requests).
create or replace function private.add_contacts(
  p_agency_id uuid, p_batch_id uuid, p_contacts jsonb, p_idempotency_key text)
returns public.add_contacts_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.require_admin(p_agency_id);
  v_request  jsonb := jsonb_build_object(
    'procedure', 'add_contacts', 'batch_id', p_batch_id, 'actor', v_actor.id,
    'contacts', encode(sha256(convert_to(p_contacts::text, 'UTF8')), 'hex'));
  v_answer   jsonb;
  v_batch    public.call_batches;
  v_contacts private.inserted_contacts;
  v_result   public.add_contacts_result;
begin
  perform private.admit_contacts(p_agency_id);
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  perform private.limit_requests(v_actor, 'add_contacts');
  if v_batch.status in ('completed', 'cancelled') then
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
  end if;

  v_contacts := private.insert_contacts(v_batch, p_contacts);
  update public.call_batches b
     set total_contacts = b.total_contacts + v_contacts.added,
         next_claim_at = least(b.next_claim_at, clock_timestamp())
   where b.agency_id = p_agency_id and b.id = p_batch_id and v_contacts.added > 0;
  v_result := row(true, p_batch_id, v_contacts.added, v_contacts.duplicates, v_contacts.do_not_call,
    v_batch.total_contacts + v_contacts.added);
  perform private.record_event(p_agency_id, v_batch, v_actor, 'add_contacts', v_batch.status, v_contacts.added,
    p_idempotency_key => p_idempotency_key, p_request => v_request, p_response => to_jsonb(v_result));
  return v_result;
end;
$$;

revoke execute on function private.add_contacts(uuid, uuid, jsonb, text) from public;
grant  execute on function private.add_contacts(uuid, uuid, jsonb, text) to authenticated, service_role, lastcall_admin;
comment on function private.add_contacts(uuid, uuid, jsonb, text) is 'public.add_contacts, for a batch of a known agency.';

-- The door to private.add_contacts for users, services and consoles.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
create or replace function public.add_contacts(
  batch_id uuid default null, contacts jsonb default null, idempotency_key text default null)
returns public.add_contacts_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.add_contacts(private.find_batch_agency(batch_id), batch_id, contacts, idempotency_key)
$$;

revoke execute on function public.add_contacts(uuid, jsonb, text) from public, anon;
grant  execute on function public.add_contacts(uuid, jsonb, text) to authenticated, service_role, lastcall_admin;
comment on function public.add_contacts(uuid, jsonb, text) is 'Add contacts to a call batch, at the end of its dial order.';
