create type public.cancel_batch_result as (
  success          boolean,
  batch_id         uuid,
  status           public.batch_status,
  contacts_skipped integer,
  message          text,
  calls_in_progress integer,  -- let through by start_call and not over
  calls_starting    integer   -- of these, how many can still start (see public.batch_silence)
);

-- Cancel a batch: contacts not yet called are skipped. Calls in progress finish, or end at once with p_end_calls.
-- Irreversible. With p_end_calls, a cancelled batch whose calls are in progress can be cancelled again.
-- When it has committed, start_call lets no contact of the batch through any more.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such batch
-- of the agency), PT400 (already completed or cancelled), PT409 (idempotency key reused).
-- Contract: calls-batch-cancel.
create or replace function private.cancel_batch(
  p_agency_id uuid, p_batch_id uuid, p_idempotency_key text, p_reason text, p_end_calls boolean)
returns public.cancel_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor   private.actor := private.require_admin(p_agency_id);
  v_batch   public.call_batches;
  v_request jsonb := jsonb_build_object(
    'procedure', 'cancel_batch', 'batch_id', p_batch_id, 'reason', p_reason, 'actor', v_actor.id)
    || case when p_end_calls then '{"end_calls": true}' else '{}' end::jsonb;
  v_answer  jsonb;
  v_result  public.cancel_batch_result;
begin
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  if v_batch.status = 'completed'
     or v_batch.status = 'cancelled' and not (p_end_calls and v_batch.in_progress > 0) then
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
  end if;

  v_result := row(true, v_batch.id, 'cancelled'::public.batch_status,
    case when v_batch.status = 'cancelled' then 0
         else private.skip_remaining(p_agency_id, p_batch_id, 'Batch cancelled') end,
    case when p_end_calls then 'Batch cancelled. In-progress calls are being ended and no new calls will be initiated.'
         else 'Batch cancelled. In-progress calls will complete but no new calls will be initiated.' end,
    v_batch.in_progress, private.count_starting(v_batch));
  update public.call_batches b
     set status = 'cancelled',
         queued = 0,
         skipped = b.skipped + v_result.contacts_skipped,
         completed_at = case when b.status = 'cancelled' then b.completed_at else clock_timestamp() end,
         error_message = 'Cancelled by user'
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  perform private.record_event(p_agency_id, v_batch, v_actor, 'cancel', 'cancelled', v_result.contacts_skipped,
    p_reason => p_reason, p_idempotency_key => p_idempotency_key,
    p_request => v_request, p_response => to_jsonb(v_result));
  if p_end_calls then
    v_batch.status := v_result.status;
    perform private.hang_up_calls(p_agency_id, v_batch, v_actor, p_reason);
  end if;
  return v_result;
end;
$$;

revoke execute on function private.cancel_batch(uuid, uuid, text, text, boolean) from public;
grant  execute on function private.cancel_batch(uuid, uuid, text, text, boolean) to authenticated, service_role, lastcall_admin;
comment on function private.cancel_batch(uuid, uuid, text, text, boolean) is 'public.cancel_batch, for a batch of a known agency.';

-- The door to private.cancel_batch for users, services and consoles.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
-- end_calls: the carrier hangs up the calls in progress.
create or replace function public.cancel_batch(
  batch_id uuid default null, idempotency_key text default null, reason text default null,
  end_calls boolean default false)
returns public.cancel_batch_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.cancel_batch(private.find_batch_agency(batch_id), batch_id, idempotency_key, reason,
                              coalesce(end_calls, false))
$$;

revoke execute on function public.cancel_batch(uuid, text, text, boolean) from public, anon;
grant  execute on function public.cancel_batch(uuid, text, text, boolean) to authenticated, service_role, lastcall_admin;
comment on function public.cancel_batch(uuid, text, text, boolean) is
  'Cancel a call batch for good: remaining contacts are skipped, calls in progress finish.';
