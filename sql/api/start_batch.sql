create type public.start_batch_result as (
  batch_id           text,                 -- as it was given
  status             public.batch_status,
  contacts_added     integer,              -- with call_data
  duplicates         integer,
  do_not_call        integer,
  contacts_replaced  integer               -- with call_data: skipped instead
);

-- Start a batch now: one that waits for its time, or that is paused or stopped. Starting one that is being
-- dialed is a success. A batch that a hold reaches is held. With p_call_data (a JSON array of 1 to 10,000 objects with phoneNumber; their other keys are told to the
-- agent), these are called instead of the stored contacts that were not called yet, which are skipped; with
-- p_calling_numbers, from these numbers of the agency.
-- The batch and user come from private.find_user_batch and are checked again here.
-- Raises PT401, PT403 (of no agency; neither the user nor an owner or admin), PT404 (no such batch of the user),
-- PT400 (completed, cancelled or failed; invalid contacts; not an active number), PT409 (idempotency key reused),
-- PT429 (too many requests), PT503 (a hold is being placed).
-- Contract: start-calling, from stopped too.
create or replace function private.start_batch(
  p_agency_id uuid, p_batch_id uuid, p_user_id uuid, p_given_id text, p_call_data jsonb, p_calling_numbers text[],
  p_idempotency_key text, p_reason text)
returns public.start_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.require_actor(p_agency_id);
  v_batch    public.call_batches;
  v_request  jsonb := jsonb_build_object(
    'procedure', 'start_batch', 'given_id', p_given_id, 'batch_id', p_batch_id, 'user_id', p_user_id,
    'call_data', encode(sha256(convert_to(p_call_data::text, 'UTF8')), 'hex'), 'calling_numbers', p_calling_numbers,
    'reason', p_reason, 'actor', v_actor.id);
  v_answer   jsonb;
  v_now      timestamptz;
  v_contacts private.inserted_contacts := (0, 0, 0);
  v_replaced integer := 0;
  v_mark     private.hold_mark;
  v_result   public.start_batch_result;
begin
  if not private.is_agency_admin(v_actor) and p_user_id is distinct from v_actor.id then
    raise sqlstate 'PT403' using message = 'Only the user, or an owner or admin of the agency, may do this',
      detail = '{"code": "role_not_allowed"}';
  end if;

  perform private.admit_live(p_agency_id);
  if p_call_data is not null then
    perform private.admit_contacts(p_agency_id);
  end if;
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  if p_user_id is not null and v_batch.user_id is distinct from p_user_id then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  end if;
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  perform private.limit_requests(v_actor, 'start_batch');
  if v_batch.status in ('completed', 'cancelled', 'failed') then
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
  end if;
  perform private.check_numbers(p_agency_id, p_calling_numbers);

  if p_call_data is not null then
    v_replaced := private.skip_remaining(p_agency_id, p_batch_id, 'Replaced');
    v_contacts := private.insert_contacts(v_batch, case when jsonb_typeof(p_call_data) = 'array' then (
      select jsonb_agg(case when jsonb_typeof(d.call) = 'object' then jsonb_build_object(
                         'phone_number', d.call -> 'phoneNumber', 'custom_data', d.call - 'phoneNumber')
                       else d.call end order by d.place)
        from jsonb_array_elements(p_call_data) with ordinality as d (call, place)) end);
  end if;
  v_batch.calling_numbers := coalesce(p_calling_numbers, v_batch.calling_numbers);
  v_mark := private.find_mark(v_batch);
  update public.call_batches b
     set status = 'processing',
         queued = case when p_call_data is null then b.queued else 0 end,
         skipped = b.skipped + v_replaced,
         total_contacts = b.total_contacts + v_contacts.added,
         calling_numbers = v_batch.calling_numbers,
         mode = 'immediate',
         scheduled_for = null,
         started_at = coalesce(b.started_at, v_now),
         paused_at = null,
         stopped_at = null,
         skip_remaining = false,
         is_held = v_mark.is_held,
         held_until = v_mark.held_until,
         next_claim_at = case when b.status = 'processing' then least(b.next_claim_at, v_now) else v_now end
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  v_result := row(p_given_id, 'processing'::public.batch_status,
    v_contacts.added, v_contacts.duplicates, v_contacts.do_not_call, v_replaced);
  perform private.record_event(p_agency_id, v_batch, v_actor, 'start', 'processing', v_contacts.added + v_replaced,
    p_on_behalf_of => p_user_id, p_reason => p_reason, p_idempotency_key => p_idempotency_key,
    p_request => v_request, p_response => to_jsonb(v_result));
  return v_result;
end;
$$;

revoke execute on function private.start_batch(uuid, uuid, uuid, text, jsonb, text[], text, text) from public;
grant  execute on function private.start_batch(uuid, uuid, uuid, text, jsonb, text[], text, text) to authenticated, service_role, lastcall_admin;
comment on function private.start_batch(uuid, uuid, uuid, text, jsonb, text[], text, text) is 'public.start_batch, for a batch and user of a known agency.';

-- The door to private.start_batch for users, services and consoles; these two may leave the user out.
-- batch_id, user_id: UUIDs or external ids. call_data: called instead of what is stored.
-- calling_numbers: E.164, active numbers of the agency, called from in turn.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
create or replace function public.start_batch(
  batch_id text default null, user_id text default null, call_data jsonb default null, calling_numbers text[] default null,
  idempotency_key text default null, reason text default null)
returns public.start_batch_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.start_batch(
           t.agency_id, t.batch_id, t.user_id, $1, call_data, calling_numbers, idempotency_key, reason)
    from private.find_user_batch($1, $2) t
$$;

revoke execute on function public.start_batch(text, text, jsonb, text[], text, text) from public, anon;
grant  execute on function public.start_batch(text, text, jsonb, text[], text, text) to authenticated, service_role, lastcall_admin;
comment on function public.start_batch(text, text, jsonb, text[], text, text) is
  'Start a call batch now, from waiting, paused or stopped.';
