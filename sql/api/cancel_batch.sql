create type public.cancel_batch_result as (
  success          boolean,
  batch_id         uuid,
  status           public.batch_status,
  contacts_skipped integer,
  message          text,
  calls_in_progress integer,  -- let through by start_call and not over: these finish
  calls_starting    integer   -- of these, how many the carrier may get only now (see public.batch_silence)
);

-- Cancel a batch: contacts not yet called are skipped, calls in progress finish. Irreversible.
-- When it has committed, start_call lets no contact of the batch through any more.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such batch
-- of the agency), PT400 (already completed or cancelled), PT409 (idempotency key reused).
-- Contract: calls-batch-cancel.
create or replace function private.cancel_batch(
  p_agency_id uuid, p_batch_id uuid, p_idempotency_key text, p_reason text)
returns public.cancel_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor   private.actor := private.require_admin(p_agency_id);
  v_batch   public.call_batches;
  v_request jsonb := jsonb_build_object(
    'procedure', 'cancel_batch', 'batch_id', p_batch_id, 'reason', p_reason, 'actor', v_actor.id);
  v_answer  jsonb;
  v_result  public.cancel_batch_result;
begin
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  if v_batch.status in ('completed', 'cancelled') then
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
  end if;

  v_result := row(true, v_batch.id, 'cancelled'::public.batch_status,
    private.skip_remaining(p_agency_id, p_batch_id, 'Batch cancelled'),
    'Batch cancelled. In-progress calls will complete but no new calls will be initiated.'::text,
    v_batch.in_progress, private.count_starting(v_batch));
  update public.call_batches b
     set status = 'cancelled',
         queued = 0,
         skipped = b.skipped + v_result.contacts_skipped,
         completed_at = clock_timestamp(),
         error_message = 'Cancelled by user'
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  perform private.record_event(p_agency_id, v_batch, v_actor, 'cancel', 'cancelled', v_result.contacts_skipped,
    p_reason => p_reason, p_idempotency_key => p_idempotency_key,
    p_request => v_request, p_response => to_jsonb(v_result));
  return v_result;
end;
$$;

revoke execute on function private.cancel_batch(uuid, uuid, text, text) from public;
grant  execute on function private.cancel_batch(uuid, uuid, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.cancel_batch(uuid, uuid, text, text) is 'public.cancel_batch, for a batch of a known agency.';

-- The door to private.cancel_batch for users, services and consoles.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
create or replace function public.cancel_batch(
  batch_id uuid default null, idempotency_key text default null, reason text default null)
returns public.cancel_batch_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.cancel_batch(private.find_batch_agency(batch_id), batch_id, idempotency_key, reason)
$$;

revoke execute on function public.cancel_batch(uuid, text, text) from public, anon;
grant  execute on function public.cancel_batch(uuid, text, text) to authenticated, service_role, lastcall_admin;
comment on function public.cancel_batch(uuid, text, text) is
  'Cancel a call batch for good: remaining contacts are skipped, calls in progress finish.';
