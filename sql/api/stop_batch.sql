create type public.stop_batch_result as (
  batch_id          text,                 -- as it was given
  status            public.batch_status,
  contacts_released integer,              -- taken out of the call queue, to be called when resumed
  contacts_skipped  integer,              -- with skip_remaining
  calls_in_progress integer,              -- let through by start_call and not over
  calls_starting    integer               -- of these, how many can still start (see public.batch_silence)
);

-- Stop a batch: no further call starts, the call queue is emptied. Calls in progress finish, or end at once with
-- p_end_calls.
-- Contacts stay, and the batch can be resumed; with p_skip_remaining those not yet
-- called are skipped. Stopping a stopped batch again is a success, and reads no contacts unless the counters tell of
-- some to release or skip. The batch and user come from private.find_user_batch and are checked again here.
-- Raises PT401, PT403 (of no agency; neither the user nor an owner or admin), PT404 (no such batch of
-- the user), PT400 (already completed, cancelled or failed), PT409 (idempotency key reused).
-- Contract: stop-calling.
create or replace function private.stop_batch(
  p_agency_id uuid, p_batch_id uuid, p_user_id uuid, p_given_id text, p_skip_remaining boolean,
  p_idempotency_key text, p_reason text, p_end_calls boolean)
returns public.stop_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor   private.actor := private.require_actor(p_agency_id);
  v_batch   public.call_batches;
  v_request jsonb := jsonb_build_object(
    'procedure', 'stop_batch', 'given_id', p_given_id, 'batch_id', p_batch_id, 'user_id', p_user_id,
    'skip_remaining', p_skip_remaining, 'reason', p_reason, 'actor', v_actor.id)
    || case when p_end_calls then '{"end_calls": true}' else '{}' end::jsonb;
  v_answer  jsonb;
  v_result  public.stop_batch_result;
begin
  if not private.is_agency_admin(v_actor) and p_user_id is distinct from v_actor.id then
    raise sqlstate 'PT403' using message = 'Only the user, or an owner or admin of the agency, may do this',
      detail = '{"code": "role_not_allowed"}';
  end if;

  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  if p_user_id is not null and v_batch.user_id is distinct from p_user_id then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  end if;
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  if v_batch.status in ('completed', 'cancelled', 'failed') then
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
  end if;

  v_result := row(p_given_id, 'stopped'::public.batch_status, 0, 0, v_batch.in_progress,
    private.count_starting(v_batch));
  if v_batch.status = 'stopped' and v_batch.queued <= 0
     and (not p_skip_remaining
          or v_batch.skip_remaining
         and v_batch.in_progress + v_batch.completed + v_batch.failed + v_batch.skipped >= v_batch.total_contacts) then
    null;  -- none is left to release or skip
  elsif p_skip_remaining then
    v_result.contacts_skipped := private.skip_remaining(p_agency_id, p_batch_id, 'Batch stopped');
  else
    v_result.contacts_released := private.release_queued(p_agency_id, p_batch_id, v_batch.claim_cursor, 'infinity');
  end if;
  update public.call_batches b
     set status = 'stopped',
         queued = 0,
         skipped = b.skipped + v_result.contacts_skipped,
         skip_remaining = b.skip_remaining or p_skip_remaining,
         next_claim_at = clock_timestamp(),
         stopped_at = case when b.status = 'stopped' then b.stopped_at else clock_timestamp() end
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  perform private.record_event(p_agency_id, v_batch, v_actor, 'stop', 'stopped',
    v_result.contacts_skipped + v_result.contacts_released,
    p_on_behalf_of => p_user_id, p_reason => p_reason, p_idempotency_key => p_idempotency_key,
    p_request => v_request, p_response => to_jsonb(v_result));
  if p_end_calls then
    v_batch.status := v_result.status;
    perform private.hang_up_calls(p_agency_id, v_batch, v_actor, p_reason);
  end if;
  return v_result;
end;
$$;

revoke execute on function private.stop_batch(uuid, uuid, uuid, text, boolean, text, text, boolean) from public;
grant  execute on function private.stop_batch(uuid, uuid, uuid, text, boolean, text, text, boolean) to authenticated, service_role, lastcall_admin;
comment on function private.stop_batch(uuid, uuid, uuid, text, boolean, text, text, boolean) is 'public.stop_batch, for a batch and user of a known agency.';

-- The door to private.stop_batch for users, services and consoles; these two may leave the user out.
-- batch_id, user_id: UUIDs or external ids.
-- skip_remaining: end the batch early, its contacts not yet called become skipped.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
-- end_calls: the carrier hangs up the calls in progress.
create or replace function public.stop_batch(
  batch_id text default null, user_id text default null, skip_remaining boolean default false,
  idempotency_key text default null, reason text default null, end_calls boolean default false)
returns public.stop_batch_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.stop_batch(
           t.agency_id, t.batch_id, t.user_id, $1, coalesce(skip_remaining, false), idempotency_key, reason,
           coalesce(end_calls, false))
    from private.find_user_batch($1, $2) t
$$;

revoke execute on function public.stop_batch(text, text, boolean, text, text, boolean) from public, anon;
grant  execute on function public.stop_batch(text, text, boolean, text, text, boolean) to authenticated, service_role, lastcall_admin;
grant  execute on function private.find_user_batch(text, text) to authenticated, service_role, lastcall_admin;
comment on function public.stop_batch(text, text, boolean, text, text, boolean) is
  'Stop a call batch: its queue is emptied, calls in progress finish; it can be resumed.';
