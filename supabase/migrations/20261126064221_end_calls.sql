-- This migration holds up nobody for long: when it must wait for a lock, it gives up, and is run again.
set local lock_timeout = '500ms';

-- file: schema/call_batches.sql a1d7a67b7f294560b93871b771a4502fe7eeed48bd7c7700bc52cab070d75740
comment on column public.call_batches.place_by is
  'When the last of its calls so far could start: its request could leave, or it left the carrier''s queue.';

-- file: schema/calls.sql 01200cf158466a1cadad3d4a09447f46e112bf42a065bb5f0ec656a96003b236
alter table public.calls
  add column carrier_queued boolean not null default false,
  add column hang_up        boolean not null default false,
  add column end_asked_at   timestamptz;
comment on column public.calls.carrier_queued is
  'The carrier has accepted the call and was not heard to dial it yet.';
comment on column public.calls.hang_up is 'Somebody asked for the end of the call, whatever it does.';
comment on column public.calls.end_asked_at is 'When list_calls_to_end last gave the call.';

-- file: private/hang_up_calls.sql 4723618dda352b0fc412fa47c5f1519819540e34f8a7d880a3fe3244a10b0436
-- Ask for the end of the calls in progress of a locked batch, and write that into the audit trail: list_calls_to_end tells
-- the dialers. p_batch: as it is now.
create or replace function private.hang_up_calls(
  p_agency_id uuid, p_batch public.call_batches, p_actor private.actor, p_reason text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_calls integer;
begin
  update public.calls c
     set hang_up = true,
         end_asked_at = null
   where c.agency_id = p_agency_id and c.batch_id = p_batch.id
     and c.status in ('in_progress', 'unknown') and not c.hang_up;
  get diagnostics v_calls = row_count;
  perform private.record_event(p_agency_id, p_batch, p_actor, 'end_calls', p_batch.status, v_calls, p_reason => p_reason);
end;
$$;

revoke execute on function private.hang_up_calls(uuid, public.call_batches, private.actor, text) from public;
comment on function private.hang_up_calls(uuid, public.call_batches, private.actor, text) is
  'Ask for the end of the calls in progress of a batch.';

-- file: private/count_starting.sql bceaff83875859b91c8818d4f7f5e625a2de75752866cf56d25dbfba764de22d
-- How many calls of a batch can still start: start_call let them through, and either the carrier is not known to have
-- them and their place-by time is not over, or the carrier queues them. p_batch: as it is now.
create or replace function private.count_starting(p_batch public.call_batches)
returns integer
language sql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
  select case when p_batch.in_progress > 0 then (
    select count(*)::integer
      from public.calls c
     where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id
       and c.status in ('in_progress', 'unknown')
       and (c.carrier_call_id is null and c.place_by > clock_timestamp() or c.carrier_queued)) else 0 end
$$;

revoke execute on function private.count_starting(public.call_batches) from public;
comment on function private.count_starting(public.call_batches) is 'The calls that can still start.';

-- file: api/cancel_batch.sql 85b399bc9f1418c54cda2ad7276b64dc9db3d07e7f9a37de2d2804a2d55fbe18
-- squawk-ignore ban-drop-function
drop function public.cancel_batch(uuid, text, text);
-- squawk-ignore ban-drop-function
drop function private.cancel_batch(uuid, uuid, text, text);

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

-- file: api/stop_batch.sql 69888b06d44effbe300684ea2aea80339b054efce1d496bbe6069bba62fc5131
-- squawk-ignore ban-drop-function
drop function public.stop_batch(text, text, boolean, text, text);
-- squawk-ignore ban-drop-function
drop function private.stop_batch(uuid, uuid, uuid, text, boolean, text, text);

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

-- file: api/pause_batch.sql 81df13186397a90955c09f6255ec6ddd3d1e1cc71b8f2d87f8c5fe44880a72e8

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

-- file: api/batch_silence.sql 8c04b11415645b5cc846f965c2c862b274e83f3c23ab9dedfcae764335948df6

-- Whether calls of a batch can still start, and which are in progress.
-- A batch is silent when it is paused, stopped or over and none of its calls is starting. silent_since is the later of
-- two times, neither of them ahead: when the batch was ended, and when the last of its calls could start.
-- p_batch_id: a UUID, or with p_user_id or for services an external id (see private.find_user_batch).
-- Raises PT401, PT403 (of no agency; neither that user nor an owner or admin), PT404 (no such batch of the agency, or
-- of the user), PT400 (an id is missing).
create or replace function private.batch_silence(p_batch_id text, p_user_id text)
returns public.batch_silence_result
language plpgsql stable
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_uuid   constant text := '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$';
  v_target private.user_batch;
  v_batch  public.call_batches;
  v_result public.batch_silence_result;
begin
  if coalesce(p_batch_id, '') = '' then
    raise sqlstate 'PT400' using message = 'batch_id is required',
      detail = '{"code": "batch_id_required"}';
  elsif p_user_id is null and p_batch_id ~ v_uuid then
    v_target := row(private.find_batch_agency(p_batch_id::uuid), p_batch_id::uuid, null::uuid);
  else
    v_target := private.find_user_batch(p_batch_id, p_user_id);
  end if;
  perform private.require_actor(v_target.agency_id);
  select b.* into v_batch
    from public.call_batches b
   where b.agency_id = v_target.agency_id and b.id = v_target.batch_id;
  if not found then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  end if;

  v_result.batch_id := p_batch_id;
  v_result.status := v_batch.status;
  v_result.calls_starting := private.count_starting(v_batch);
  v_result.calls_in_progress := v_batch.in_progress;
  v_result.is_silent := v_result.calls_starting = 0
    and v_batch.status in ('paused', 'stopped', 'completed', 'failed', 'cancelled');
  v_result.silent_by := case when v_result.calls_starting > 0 and v_batch.place_by > clock_timestamp() and not exists (
      select from public.calls c
       where c.agency_id = v_batch.agency_id and c.batch_id = v_batch.id
         and c.status in ('in_progress', 'unknown') and c.carrier_queued) then v_batch.place_by end;
  v_result.silent_since := case when v_result.is_silent then least(clock_timestamp(), greatest(
    case v_batch.status when 'paused' then v_batch.paused_at
                        when 'stopped' then v_batch.stopped_at
                        else v_batch.completed_at end,
    v_batch.place_by)) end;
  return v_result;
end;
$$;

revoke execute on function private.batch_silence(text, text) from public;
grant  execute on function private.batch_silence(text, text) to authenticated, service_role, lastcall_admin;
comment on function private.batch_silence(text, text) is 'public.batch_silence.';

-- The door to private.batch_silence for users, services and consoles.
create or replace function public.batch_silence(batch_id text default null, user_id text default null)
returns public.batch_silence_result
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.batch_silence(batch_id, user_id)
$$;

revoke execute on function public.batch_silence(text, text) from public, anon;
grant  execute on function public.batch_silence(text, text) to authenticated, service_role, lastcall_admin;
comment on function public.batch_silence(text, text) is
  'Whether calls of a batch can still start, since when not, and which are in progress.';

-- file: dialer/confirm_call.sql 02ea3cb8dc195fc5b70421c0ee1363b704a8a5a37773b915dc8daba4fe133f4f
-- The result of a report about a call: changed; unchanged, since the call is over or not started; or unknown,
-- since no call has this id and this lease.

-- The result of a report that changed nothing.
create or replace function private.unchanged_or_unknown(
  p_agency_id uuid, p_batch_id uuid, p_call_id bigint, p_lease uuid)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
begin
  perform
    from public.calls c
   where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = p_call_id
     and c.lease is not distinct from p_lease;
  return case when found then 'unchanged' else 'unknown' end;
end;
$$;

revoke execute on function private.unchanged_or_unknown(uuid, uuid, bigint, uuid) from public;
comment on function private.unchanged_or_unknown(uuid, uuid, bigint, uuid) is 'The result of a report that changed nothing.';

-- Note that the carrier has these calls of one batch: its id of each, and that an unknown one is in progress.
-- p_confirmed: a JSON array of objects with call_id, lease, carrier_call_id (text) and, where the carrier queues the call
-- and has not dialed it yet, carrier_queued true. A call that was dialed is never queued again.
-- Returns a row for each object, in their order: changed are the calls that were not over yet.
-- Raises PT401, PT403 (not a service or console), PT404, PT400 (not such an array).
create or replace function private.confirm_call(p_agency_id uuid, p_batch_id uuid, p_confirmed jsonb)
returns setof public.reported_call
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_confirmed record;
  v_result    text;
  v_place_by  timestamptz;
  v_last      timestamptz;
begin
  perform private.require_service();
  if not private.names_calls(p_confirmed) or exists (
       select from jsonb_array_elements(p_confirmed) as g (confirmed)
        where jsonb_typeof(g.confirmed -> 'carrier_call_id') is distinct from 'string'
           or jsonb_typeof(g.confirmed -> 'carrier_queued') not in ('boolean', 'null')) then
    raise sqlstate 'PT400' using message = 'confirmed must be an array of objects with a call_id, a lease, a carrier_call_id, and carrier_queued true or false',
      detail = '{"code": "confirmed_invalid"}';
  end if;

  perform private.lock_batch(p_agency_id, p_batch_id);
  for v_confirmed in
    select r.call_id, r.lease, r.carrier_call_id, coalesce(r.carrier_queued, false) as carrier_queued
      from jsonb_to_recordset(p_confirmed) as r (
        call_id bigint, lease uuid, carrier_call_id text, carrier_queued boolean)
  loop
    update public.calls c
       set status = 'in_progress',
           carrier_call_id = coalesce(c.carrier_call_id, v_confirmed.carrier_call_id),
           carrier_queued = v_confirmed.carrier_queued and (c.carrier_queued or c.carrier_call_id is null),
           place_by = case when c.carrier_queued and not v_confirmed.carrier_queued then clock_timestamp() else c.place_by end
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_confirmed.call_id
       and c.lease is not distinct from v_confirmed.lease
       and c.status::text in ('in_progress', 'unknown')  -- as text: as in finish_call
    returning c.place_by into v_place_by;
    v_last := greatest(v_last, v_place_by);
    v_result := case when found then 'changed' else
      private.unchanged_or_unknown(p_agency_id, p_batch_id, v_confirmed.call_id, v_confirmed.lease) end;
    if v_result = 'unchanged' then
      -- The carrier has a call that was said not to be placed: check_counters finds it if its contact is called again.
      update public.calls c
         set carrier_call_id = v_confirmed.carrier_call_id
       where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_confirmed.call_id
         and c.lease is not distinct from v_confirmed.lease
         and c.status::text = 'failed' and c.outcome = 'not_placed' and c.carrier_call_id is null;
    end if;
    return next (v_confirmed.call_id, v_confirmed.lease, v_result)::public.reported_call;
  end loop;

  update public.call_batches b
     set place_by = v_last
   where b.agency_id = p_agency_id and b.id = p_batch_id and b.place_by < v_last;
end;
$$;

revoke execute on function private.confirm_call(uuid, uuid, jsonb) from public;
grant  execute on function private.confirm_call(uuid, uuid, jsonb) to service_role, lastcall_admin;
comment on function private.confirm_call(uuid, uuid, jsonb) is 'public.confirm_call, for a batch of a known agency.';

-- The door to private.confirm_call. confirmed: all of batch_id.
create or replace function public.confirm_call(batch_id uuid, confirmed jsonb)
returns setof public.reported_call
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select * from private.confirm_call(private.find_batch_agency(batch_id), batch_id, confirmed)
$$;

revoke execute on function public.confirm_call(uuid, jsonb) from public, anon, authenticated;
grant  execute on function public.confirm_call(uuid, jsonb) to service_role, lastcall_admin;
comment on function public.confirm_call(uuid, jsonb) is 'Note that the carrier has these calls.';

-- file: dialer/finish_call.sql f7bfa75e3423d12406aedddfcfe4639e42f1845f1922d1baa226d1627aa64068
-- Record the results of calls of one batch, in a group: one change of the batch's counters.
-- p_results: a JSON array of objects with call_id, lease, status (completed, failed, unknown or missing) and,
-- where known, outcome, duration_seconds, carrier_call_id, notes, counted. A failed call with attempts left
-- puts its contact back, due after the batch's retry delay, unless its outcome is not one to try
-- again after, or the batch is over (cancelled, or ended early): then the contact is failed.
-- A failed call with counted false was no attempt, since the carrier took no calls: the contact keeps the
-- attempts it had and, unless the batch is over, goes back whatever the outcome.
-- A call is unknown when nobody could tell whether the carrier got it. It stays in progress until the carrier
-- tells its end or that there was no such call; it is never placed again before.
-- A call is missing when the carrier was asked, by carrier_call_id if that was known, and has no such call. One that it
-- never confirmed was not placed: it failed, outcome not_placed. One that it had is completed, outcome lost: nobody is
-- called again because of it. One that it confirmed since it was asked is left as it is.
-- A call that the carrier withdrew from its queue (outcome withdrawn) was no attempt either. The outcome of a call that
-- list_calls_to_end gave because somebody asked for its end is hung_up, if the carrier dialed it.
-- A result for a call that is not in progress (told twice, never started) changes nothing.
-- Returns a row for each object, in their order.
-- Raises PT401, PT403 (not a service or console), PT404, PT400 (not such an array).
create or replace function private.finish_call(p_agency_id uuid, p_batch_id uuid, p_results jsonb)
returns setof public.reported_call
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_batch     public.call_batches;
  v_now       timestamptz;
  v_retry_at  timestamptz;
  v_result    record;
  v_call      public.calls;
  v_contact   public.contact_status;
  v_completed integer := 0;
  v_failed    integer := 0;
  v_retried   integer := 0;
  v_last      timestamptz;
begin
  perform private.require_service();
  if not private.names_calls(p_results) or exists (
       select from jsonb_array_elements(p_results) as r (result)
        where jsonb_typeof(r.result -> 'status') is distinct from 'string'
           or r.result ->> 'status' not in ('completed', 'failed', 'unknown', 'missing')
           or jsonb_typeof(r.result -> 'duration_seconds') not in ('number', 'null')
           or jsonb_typeof(r.result -> 'counted') not in ('boolean', 'null')) then
    raise sqlstate 'PT400' using message = 'results must be an array of objects with a call_id, a lease, a status completed, failed, unknown or missing, numbers as durations, and counted true or false',
      detail = '{"code": "results_invalid"}';
  end if;

  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  v_retry_at := v_now + make_interval(secs => v_batch.retry_delay_seconds);
  for v_result in
    select r.call_id, r.lease, r.carrier_call_id, r.notes,
           r.status = 'missing' as is_missing,
           case when r.status <> 'missing' then r.status
                when r.carrier_call_id is null then 'failed'
                else 'completed' end::public.call_status as status,
           case when r.status <> 'missing' then r.outcome
                when r.carrier_call_id is null then 'not_placed'
                else 'lost' end as outcome,
           r.status = 'failed' and (coalesce(r.outcome = 'withdrawn', false) or not coalesce(r.counted, true)) as is_no_attempt,
           r.status in ('completed', 'failed') and r.carrier_call_id is not null
             and r.outcome is distinct from 'withdrawn' as was_dialed,
           case when r.duration_seconds is not null
             then least(greatest(round(r.duration_seconds), 0), 2147483647)::integer end as duration_seconds
      from jsonb_to_recordset(p_results) as r (
        call_id bigint, lease uuid, status text, outcome text, duration_seconds numeric,
        carrier_call_id text, notes text, counted boolean)
  loop
    update public.calls c
       set status = v_result.status,
           ended_at = case when v_result.status <> 'unknown' then v_now end,
           outcome = case when v_result.was_dialed and c.hang_up and c.end_asked_at is not null then 'hung_up'
                          else v_result.outcome end,
           duration_seconds = v_result.duration_seconds,
           place_by = case when c.carrier_queued and v_result.status <> 'unknown' then v_now else c.place_by end,
           carrier_queued = c.carrier_queued and v_result.status = 'unknown',
           carrier_call_id = coalesce(v_result.carrier_call_id, c.carrier_call_id)
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_result.call_id
       and c.lease is not distinct from v_result.lease
       -- As text: not by the index of open calls, which would read all those of the batch.
       and c.status::text in ('in_progress', 'unknown') and c.status <> v_result.status
       and (not v_result.is_missing or c.carrier_call_id is not distinct from v_result.carrier_call_id)
    returning c.* into v_call;
    if not found then
      return next (v_result.call_id, v_result.lease, private.unchanged_or_unknown(
        p_agency_id, p_batch_id, v_result.call_id, v_result.lease))::public.reported_call;
      continue;
    end if;
    return next (v_result.call_id, v_result.lease, 'changed')::public.reported_call;
    continue when v_result.status = 'unknown';
    v_last := greatest(v_last, v_call.place_by);

    select case when v_result.status = 'completed' then 'completed'
                when v_batch.status <> 'cancelled' and not v_batch.skip_remaining
                 and (v_result.is_no_attempt
                      or c.attempts < c.max_attempts
                     and (v_batch.retry_outcomes is null or v_call.outcome = any (v_batch.retry_outcomes)))
                  then 'scheduled'
                else 'failed' end::public.contact_status
      into v_contact
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_call.contact_id;
    update public.campaign_contacts c
       set status = v_contact,
           attempts = c.attempts - v_result.is_no_attempt::integer,
           due_at = case when v_contact = 'scheduled' then v_retry_at end,
           completed_at = case when v_contact <> 'scheduled' then v_now end,
           outcome = v_call.outcome,
           outcome_notes = v_result.notes,
           duration_seconds = v_result.duration_seconds
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_call.contact_id;
    v_completed := v_completed + (v_contact = 'completed')::integer;
    v_failed := v_failed + (v_contact = 'failed')::integer;
    v_retried := v_retried + (v_contact = 'scheduled')::integer;
  end loop;

  update public.call_batches b
     set in_progress = b.in_progress - v_completed - v_failed - v_retried,
         completed = b.completed + v_completed,
         failed = b.failed + v_failed,
         place_by = greatest(b.place_by, v_last),
         next_claim_at = case when v_retried > 0 then least(b.next_claim_at, v_retry_at) else b.next_claim_at end
   where b.agency_id = p_agency_id and b.id = p_batch_id and v_completed + v_failed + v_retried > 0;
end;
$$;

revoke execute on function private.finish_call(uuid, uuid, jsonb) from public;
grant  execute on function private.finish_call(uuid, uuid, jsonb) to service_role, lastcall_admin;
comment on function private.finish_call(uuid, uuid, jsonb) is 'public.finish_call, for a batch of a known agency.';

-- The door to private.finish_call. results: all of batch_id.
create or replace function public.finish_call(batch_id uuid, results jsonb)
returns setof public.reported_call
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select * from private.finish_call(private.find_batch_agency(batch_id), batch_id, results)
$$;

revoke execute on function public.finish_call(uuid, jsonb) from public, anon, authenticated;
grant  execute on function public.finish_call(uuid, jsonb) to service_role, lastcall_admin;
comment on function public.finish_call(uuid, jsonb) is 'Record the results of calls of one batch.';

-- file: dialer/process_webhook_queue.sql e58d67a042a78d048dd4e7840298911f74f4469d8607fed263cd07a1d2a79b72
-- An event to apply: to which call, and what it says.
-- The result of one event.

-- Apply events to the calls of one batch, in a group: one change of the batch's counters.
-- Returns what became of each, or null, without waiting, when someone else holds the batch.
--   call.started, call.joined   the carrier dials the call: confirm_call
--   call.ended                  its result: finish_call, with its rules of when a contact is called again
--     joined is given           completed, outcome answered, its duration from joined to ended
--     endReason unjoined        failed, outcome no_answer
--     any other endReason       failed, outcome the reason: hangup, agent_hangup, timeout, connection_error, system_error
--     none                      failed, outcome unknown
-- The first result of a call counts. What comes when it is over changes nothing, nor does what is about another
-- call of the carrier than the one that it first reported.
create or replace function private.apply_webhooks(
  p_agency_id uuid, p_batch_id uuid, p_events private.webhook_event[])
returns private.webhook_outcome[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_confirmed bigint[];
  v_others    bigint[];
  v_results   jsonb;
  v_first     bigint[];
  v_finished  bigint[];
begin
  perform
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id
     for no key update skip locked;
  if not found then
    return null;
  end if;

  v_confirmed := array(
    select c.call_id
      from private.confirm_call(p_agency_id, p_batch_id, coalesce((
        select jsonb_agg(jsonb_build_object(
                 'call_id', e.call_id, 'lease', e.lease, 'carrier_call_id', e.call ->> 'callId'))
          from unnest(p_events) e
         where e.event_type in ('call.started', 'call.joined')), '[]')) c
     where c.result = 'changed');
  v_others := array(
    select e.id
      from unnest(p_events) e
     where e.call ->> 'callId' <> (
       select k.carrier_call_id
         from public.calls k
        where k.agency_id = p_agency_id and k.batch_id = p_batch_id and k.id = e.call_id));

  select array_agg(f.id),
         coalesce(jsonb_agg(jsonb_build_object(
           'call_id', f.call_id,
           'lease', f.lease,
           'carrier_call_id', f.call ->> 'callId',
           'status', case when f.joined is not null then 'completed' else 'failed' end,
           'outcome', case when f.joined is not null then 'answered'
                           when f.reason = 'unjoined' then 'no_answer'
                           else coalesce(f.reason, 'unknown') end,
           'duration_seconds', case when private.is_timestamp(f.joined) and private.is_timestamp(f.call ->> 'ended')
             then extract(epoch from (f.call ->> 'ended')::timestamptz - f.joined::timestamptz) end)), '[]')
    into v_first, v_results
    from (select distinct on (e.call_id) e.id, e.call_id, e.lease, e.call, nullif(e.call ->> 'joined', '') as joined,
                 nullif(left(e.call ->> 'endReason', 50), '') as reason
            from unnest(p_events) e
           where e.event_type = 'call.ended' and e.id <> all (v_others)
           order by e.call_id, e.id) f;
  v_finished := array(
    select f.call_id from private.finish_call(p_agency_id, p_batch_id, v_results) f where f.result = 'changed');

  return array(
    select case when e.id = any (v_others)
                then (e.id, 'ignored', 'No such call')::private.webhook_outcome
                when e.event_type <> 'call.ended' and e.call_id = any (v_confirmed)
                  or e.id = any (v_first) and e.call_id = any (v_finished)
                then (e.id, 'completed', null)::private.webhook_outcome
                else (e.id, 'ignored', 'The call was over already')::private.webhook_outcome end
      from unnest(p_events) e);
end;
$$;

revoke execute on function private.apply_webhooks(uuid, uuid, private.webhook_event[]) from public;
comment on function private.apply_webhooks(uuid, uuid, private.webhook_event[]) is 'Apply events to the calls of one batch.';

-- Apply what carriers reported and is due, oldest first, batch by batch. Run it every few seconds, and again while it
-- has processed some; safe when several run at once. p_max_events: 1 to 10,000.
-- An event of no call of the agency, or of one that is over, is ignored, so that late, repeated and reordered ones
-- do no harm. A batch whose events cannot be applied fails alone. They are tried again after 30 seconds, 2, 8 and 32
-- minutes, each by itself then, so that only what is wrong fails again; after max_attempts they are dead.
-- It never waits for a lock, so it is part of no deadlock: events and batches that someone else holds are left to a
-- later run, which counts as no attempt. It holds the batches that it has changed until it commits, and a cancel of
-- one waits for that: so it begins no further one after 50 milliseconds, and leaves the rest to the next run.
-- Returns {"processed": applied or ignored, "failed": ...}, or {"processed": 0} when nothing was due.
-- Raises PT401, PT403 (not a service or console), PT400 (a number out of range).
-- Contract: process-webhook-queue.
create or replace function private.process_webhook_queue(p_max_events integer)
returns jsonb
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now       constant timestamptz := clock_timestamp();
  v_until     timestamptz;
  v_group     record;
  v_event     private.webhook_event;
  v_outcomes  private.webhook_outcome[];
  v_outcome   private.webhook_outcome;
  v_failed    integer := 0;
  v_processed integer := 0;
begin
  perform private.require_service();
  if p_max_events is null or p_max_events not between 1 and 10000 then
    raise sqlstate 'PT400' using message = 'max_events must be 1 to 10000',
      detail = '{"code": "max_events_out_of_range"}';
  end if;

  for v_group in
    with due as materialized (
      select q.agency_id, q.id, q.event_type, q.payload, q.attempts
        from public.webhook_queue q
       where q.next_retry_at <= v_now
       order by q.next_retry_at
       limit p_max_events
         for update skip locked)
    select d.agency_id, c.batch_id,
           array_agg((d.id, d.event_type, c.id, d.payload -> 'call', c.lease)::private.webhook_event order by d.id) as events
      from due d
     cross join lateral private.find_webhook_call(d.agency_id, d.payload) c
     group by d.agency_id, c.batch_id, case when d.attempts > 0 then d.id end
     order by min(d.id)
  loop
    exit when clock_timestamp() > v_until;
    v_until := coalesce(v_until, clock_timestamp() + interval '50 milliseconds');
    if v_group.batch_id is null then
      v_outcomes := array(select (e.id, 'ignored', 'No such call')::private.webhook_outcome from unnest(v_group.events) e);
    else
      begin
        v_outcomes := private.apply_webhooks(v_group.agency_id, v_group.batch_id, v_group.events);
      exception when others then
        v_outcomes := array(
          select (e.id, 'failed', left(sqlerrm, 500))::private.webhook_outcome from unnest(v_group.events) e);
      end;
    end if;

    -- Each event by its key: a join can be planned to read the whole queue.
    if v_outcomes is null then
      foreach v_event in array v_group.events loop
        -- Held: put off, lest it stand in front of other batches' events for as long.
        update public.webhook_queue q
           set next_retry_at = v_now + interval '1 second'
         where q.agency_id = v_group.agency_id and q.id = v_event.id;
      end loop;
      continue;
    end if;
    foreach v_outcome in array v_outcomes loop
      update public.webhook_queue q
         set status = case when v_outcome.status = 'failed' and q.attempts + 1 >= q.max_attempts then 'dead'
                           else v_outcome.status end,
             attempts = q.attempts + 1,
             error_message = v_outcome.error_message,
             processed_at = v_now,
             next_retry_at = case when v_outcome.status = 'failed' and q.attempts + 1 < q.max_attempts
               then v_now + interval '30 seconds' * 4 ^ q.attempts end
       where q.agency_id = v_group.agency_id and q.id = v_outcome.id;
      v_failed := v_failed + (v_outcome.status = 'failed')::integer;
    end loop;
    v_processed := v_processed + cardinality(v_outcomes);
  end loop;
  return case when v_processed = 0 then jsonb_build_object('processed', 0)
              else jsonb_build_object('processed', v_processed - v_failed, 'failed', v_failed) end;
end;
$$;

revoke execute on function private.process_webhook_queue(integer) from public;
grant  execute on function private.process_webhook_queue(integer) to service_role, lastcall_admin;
comment on function private.process_webhook_queue(integer) is 'public.process_webhook_queue.';

create or replace function public.process_webhook_queue(max_events integer default 200)
returns jsonb
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.process_webhook_queue(max_events)
$$;

revoke execute on function public.process_webhook_queue(integer) from public, anon, authenticated;
grant  execute on function public.process_webhook_queue(integer) to service_role, lastcall_admin;
comment on function public.process_webhook_queue(integer) is 'Apply what carriers reported.';

-- file: dialer/list_open_calls.sql 8c247d2f9b242b9c7497ca0324ea24df354f06a2e5c50a2899aa257fbcfe20b0
alter type public.open_call
  add attribute carrier_queued boolean,
  add attribute hang_up boolean;

-- A call, as dialers are told it.
create or replace function private.open_call(p_call public.calls, p_now timestamptz)
returns public.open_call
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select (p_call.agency_id, p_call.batch_id, p_call.id, p_call.contact_id, p_call.status, p_call.carrier_call_id,
          extract(epoch from p_now - p_call.started_at), p_call.lease, p_call.carrier_queued, p_call.hang_up)::public.open_call
$$;

revoke execute on function private.open_call(public.calls, timestamptz) from public;
comment on function private.open_call(public.calls, timestamptz) is 'A call, as dialers are told it.';

-- The calls to ask the carrier about: those that are unknown, and those in progress for longer than
-- older_than_seconds or than their agent lets a call last. A call that was given is not given again for
-- older_than_seconds, and those not asked about for the longest come first: every call has its turn, and two
-- who ask at once get different ones.
-- Reads the open calls alone, of all batches, whatever became of the batch. Takes no batch, since it changes
-- nothing of what a batch's row guards, and waits for nobody.
-- older_than_seconds: 1 to 86400. max_calls: 1 to 1000.
-- Raises PT401, PT403 (not a service or console), PT400 (a number out of range).
create or replace function private.list_open_calls(p_older_than_seconds integer, p_max_calls integer)
returns setof public.open_call
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now        timestamptz := clock_timestamp();
  v_older_than interval;
  v_call       public.calls;
begin
  perform private.require_service();
  if p_older_than_seconds is null or p_older_than_seconds not between 1 and 86400
     or p_max_calls is null or p_max_calls not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'older_than_seconds must be 1 to 86400 and max_calls 1 to 1000',
      detail = '{"code": "open_calls_out_of_range"}';
  end if;
  v_older_than := make_interval(secs => p_older_than_seconds);

  for v_call in
    select c.*
      from public.calls c
     where c.status in ('in_progress', 'unknown')
       and (c.checked_at is null or c.checked_at <= v_now - v_older_than)
       and (c.status = 'unknown'
            or c.started_at <= v_now - v_older_than
            or c.started_at <= v_now - (
              select make_interval(secs => a.max_duration_seconds)
                from public.call_batches b
                join public.agent_mappings a on a.agency_id = b.agency_id and a.id = b.agent_mapping_id
               where b.agency_id = c.agency_id and b.id = c.batch_id))
     order by coalesce(c.checked_at, c.started_at)
     limit p_max_calls
       for no key update skip locked
  loop
    update public.calls c
       set checked_at = v_now
     where c.agency_id = v_call.agency_id and c.batch_id = v_call.batch_id and c.id = v_call.id;
    return next private.open_call(v_call, v_now);
  end loop;
end;
$$;

revoke execute on function private.list_open_calls(integer, integer) from public;
grant  execute on function private.list_open_calls(integer, integer) to service_role, lastcall_admin;
comment on function private.list_open_calls(integer, integer) is 'public.list_open_calls.';

create or replace function public.list_open_calls(older_than_seconds integer default 300, max_calls integer default 20)
returns setof public.open_call
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select * from private.list_open_calls(older_than_seconds, max_calls)
$$;

revoke execute on function public.list_open_calls(integer, integer) from public, anon, authenticated;
grant  execute on function public.list_open_calls(integer, integer) to service_role, lastcall_admin;
comment on function public.list_open_calls(integer, integer) is 'The calls to ask the carrier about, each in its turn.';

-- file: dialer/list_calls_to_end.sql cf6948237e6c479350151c5b3b2e148e09f74ab6fe877420145b4f106415d5d6
-- The calls that the carrier has to end.
--   hang_up is true     somebody asked for the end of the call (end_calls): whatever it does, it ends
--   otherwise           its batch is paused, stopped or over and the carrier queues it: it is withdrawn, unless it rings
-- A call that was given is not given again for 5 seconds: the dialer that took it may be gone, and the carrier away.
-- Two who ask at once get different ones.
-- Reads the open calls alone, of all batches. Takes no batch, since it changes nothing of what a batch's row guards, and
-- waits for nobody.
-- max_calls: 1 to 1000.
-- Raises PT401, PT403 (not a service or console), PT400 (a number out of range).
create or replace function private.list_calls_to_end(p_max_calls integer)
returns setof public.open_call
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now  timestamptz := clock_timestamp();
  v_call public.calls;
begin
  perform private.require_service();
  if p_max_calls is null or p_max_calls not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'max_calls must be 1 to 1000',
      detail = '{"code": "max_calls_out_of_range"}';
  end if;

  for v_call in
    select c.*
      from public.calls c
     where c.status in ('in_progress', 'unknown')
       and (c.hang_up or c.carrier_queued)
       and (c.end_asked_at is null or c.end_asked_at <= v_now - interval '5 seconds')
       and (c.hang_up or exists (
             select from public.call_batches b
              where b.agency_id = c.agency_id and b.id = c.batch_id
                and b.status in ('paused', 'stopped', 'completed', 'failed', 'cancelled')))
     order by c.end_asked_at nulls first
     limit p_max_calls
       for no key update skip locked
  loop
    update public.calls c
       set end_asked_at = v_now
     where c.agency_id = v_call.agency_id and c.batch_id = v_call.batch_id and c.id = v_call.id;
    return next private.open_call(v_call, v_now);
  end loop;
end;
$$;

revoke execute on function private.list_calls_to_end(integer) from public;
grant  execute on function private.list_calls_to_end(integer) to service_role, lastcall_admin;
comment on function private.list_calls_to_end(integer) is 'public.list_calls_to_end.';

create or replace function public.list_calls_to_end(max_calls integer default 20)
returns setof public.open_call
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select * from private.list_calls_to_end(max_calls)
$$;

revoke execute on function public.list_calls_to_end(integer) from public, anon, authenticated;
grant  execute on function public.list_calls_to_end(integer) to service_role, lastcall_admin;
comment on function public.list_calls_to_end(integer) is 'The calls that the carrier has to end.';
