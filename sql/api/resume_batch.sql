create type public.resume_batch_result as (
  success  boolean,
  batch_id uuid,
  status   public.batch_status,
  message  text
);

-- Go on with a paused or stopped batch: it is scheduled again when its time is still to come, or else
-- processing at once. A batch that was ended early goes on with what was added since. A batch that a hold reaches is held.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such batch
-- of the agency), PT400 (neither paused nor stopped), PT409 (idempotency key reused), PT503 (a hold is being placed).
-- Contract: calls-batch-resume, from stopped too.
create or replace function private.resume_batch(
  p_agency_id uuid, p_batch_id uuid, p_idempotency_key text, p_reason text)
returns public.resume_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor   private.actor := private.require_admin(p_agency_id);
  v_batch   public.call_batches;
  v_mark    private.hold_mark;
  v_now     timestamptz;
  v_request jsonb := jsonb_build_object(
    'procedure', 'resume_batch', 'batch_id', p_batch_id, 'reason', p_reason, 'actor', v_actor.id);
  v_answer  jsonb;
  v_result  public.resume_batch_result;
begin
  perform private.admit_live(p_agency_id);
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  if v_batch.status not in ('paused', 'stopped') then
    perform private.refuse_status(
      format('Only a paused or stopped batch can be resumed; this one is %s', v_batch.status),
      'batch_not_resumable');
  end if;

  v_mark := private.find_mark(v_batch);
  if v_batch.scheduled_for > v_now then
    v_result := row(true, v_batch.id, 'scheduled'::public.batch_status,
      'Batch scheduled to resume at ' || to_char(v_batch.scheduled_for at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'));
  else
    v_result := row(true, v_batch.id, 'processing'::public.batch_status,
      case when v_mark.is_held then 'Batch resumed. A hold reaches it: no call starts until the hold is lifted.'
           else 'Batch resumed. The processor will start making calls on the next run.' end);
  end if;
  update public.call_batches b
     set status = v_result.status,
         paused_at = null,
         stopped_at = null,
         started_at = case when v_result.status = 'processing' then coalesce(b.started_at, v_now) else b.started_at end,
         skip_remaining = false,
         is_held = v_mark.is_held,
         held_until = v_mark.held_until,
         next_claim_at = v_now
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  perform private.record_event(p_agency_id, v_batch, v_actor, 'resume', v_result.status, 0,
    p_reason => p_reason, p_idempotency_key => p_idempotency_key,
    p_request => v_request, p_response => to_jsonb(v_result));
  return v_result;
end;
$$;

revoke execute on function private.resume_batch(uuid, uuid, text, text) from public;
grant  execute on function private.resume_batch(uuid, uuid, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.resume_batch(uuid, uuid, text, text) is 'public.resume_batch, for a batch of a known agency.';

-- The door to private.resume_batch for users, services and consoles.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
create or replace function public.resume_batch(
  batch_id uuid default null, idempotency_key text default null, reason text default null)
returns public.resume_batch_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.resume_batch(private.find_batch_agency(batch_id), batch_id, idempotency_key, reason)
$$;

revoke execute on function public.resume_batch(uuid, text, text) from public, anon;
grant  execute on function public.resume_batch(uuid, text, text) to authenticated, service_role, lastcall_admin;
comment on function public.resume_batch(uuid, text, text) is
  'Go on with a paused or stopped call batch.';
