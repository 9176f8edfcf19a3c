create type public.pause_batch_result as (
  success   boolean,
  batch_id  uuid,
  status    public.batch_status,
  paused_at timestamptz,
  message   text,
  calls_in_progress integer,  -- let through by start_call and not over: these finish
  calls_starting    integer   -- of these, how many can still start (see public.batch_silence)
);

-- Pause a batch: no further call starts, calls in progress finish, and resume_batch goes on where it
-- was. Leased contacts go back to where they were: no dialer can start them.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such batch
-- of the agency), PT400 (neither processing nor scheduled), PT409 (idempotency key reused).
-- Contract: calls-batch-pause.
create or replace function private.pause_batch(
  p_agency_id uuid, p_batch_id uuid, p_idempotency_key text, p_reason text)
returns public.pause_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.require_admin(p_agency_id);
  v_batch    public.call_batches;
  v_request  jsonb := jsonb_build_object(
    'procedure', 'pause_batch', 'batch_id', p_batch_id, 'reason', p_reason, 'actor', v_actor.id);
  v_answer   jsonb;
  v_released integer;
  v_result   public.pause_batch_result;
begin
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  if v_batch.status not in ('processing', 'scheduled') then
    perform private.refuse_status(
      format('Only a processing or scheduled batch can be paused; this one is %s', v_batch.status),
      'batch_not_pausable');
  end if;

  v_released := private.release_queued(p_agency_id, p_batch_id, v_batch.claim_cursor, 'infinity');
  v_result := row(true, v_batch.id, 'paused'::public.batch_status, clock_timestamp(),
    'Batch paused. In-progress calls will continue until they complete.'::text,
    v_batch.in_progress, private.count_starting(v_batch));
  update public.call_batches b
     set status = 'paused',
         queued = 0,
         paused_at = v_result.paused_at
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  perform private.record_event(p_agency_id, v_batch, v_actor, 'pause', 'paused', v_released,
    p_reason => p_reason, p_idempotency_key => p_idempotency_key,
    p_request => v_request, p_response => to_jsonb(v_result));
  return v_result;
end;
$$;

revoke execute on function private.pause_batch(uuid, uuid, text, text) from public;
grant  execute on function private.pause_batch(uuid, uuid, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.pause_batch(uuid, uuid, text, text) is 'public.pause_batch, for a batch of a known agency.';

-- The door to private.pause_batch for users, services and consoles.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
create or replace function public.pause_batch(
  batch_id uuid default null, idempotency_key text default null, reason text default null)
returns public.pause_batch_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.pause_batch(private.find_batch_agency(batch_id), batch_id, idempotency_key, reason)
$$;

revoke execute on function public.pause_batch(uuid, text, text) from public, anon;
grant  execute on function public.pause_batch(uuid, text, text) to authenticated, service_role, lastcall_admin;
comment on function public.pause_batch(uuid, text, text) is
  'Pause a call batch: no further call starts, calls in progress finish; it can be resumed.';
