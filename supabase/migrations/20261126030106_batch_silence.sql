-- Who is in the way of this is not made to wait for long: it gives up, and is run again.
set local lock_timeout = '500ms';

-- file: schema/call_batches.sql d99e36f9c2025ae0b690297c17fe379345042b9e5148bdb548061bcbbe9551aa
alter table public.call_batches add column place_by timestamptz;
comment on column public.call_batches.place_by is 'When the last request of its calls so far could leave for the carrier.';

-- file: private/count_starting.sql 4bace5d28ae5243990172337153199386fd5295d6bfe01afd9aaa4160cd27a8d
-- How many calls of a batch can still start at the carrier: start_call let them through, the carrier is not known to
-- have them, and their place-by time is not over. p_batch: as it is now.
create or replace function private.count_starting(p_batch public.call_batches)
returns integer
language sql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
  select case when p_batch.place_by > clock_timestamp() then (
    select count(*)::integer
      from public.calls c
     where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id
       and c.status in ('in_progress', 'unknown') and c.carrier_call_id is null
       and c.place_by > clock_timestamp()) else 0 end
$$;

revoke execute on function private.count_starting(public.call_batches) from public;
comment on function private.count_starting(public.call_batches) is 'The calls that can still start at the carrier.';

-- file: api/cancel_batch.sql a397ec703cf9736adca7c9640f2f444c126699da2350bf3bcb85c527d626d2b6
alter type public.cancel_batch_result
  add attribute calls_in_progress integer,
  add attribute calls_starting integer;

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
    raise sqlstate 'PT400' using message = format('Batch is already %s', v_batch.status),
      detail = format('{"code": "batch_already_%s"}', v_batch.status);
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

-- file: api/stop_batch.sql 033c11858b68849286304fca1e693462b2a5a41ddb494846b0466a9000ce69cb
alter type public.stop_batch_result add attribute calls_starting integer;

-- Stop a batch: no further call starts, the call queue is emptied, calls in progress finish.
-- Contacts stay, and the batch can be resumed; with p_skip_remaining those not yet
-- called are skipped. Stopping a stopped batch again is a success, and reads no contacts unless the counters tell of
-- some to release or skip. The batch and user come from private.find_user_batch and are checked again here.
-- Raises PT401, PT403 (of no agency; neither the user nor an owner or admin), PT404 (no such batch of
-- the user), PT400 (already completed, cancelled or failed), PT409 (idempotency key reused).
-- Contract: stop-calling.
create or replace function private.stop_batch(
  p_agency_id uuid, p_batch_id uuid, p_user_id uuid, p_given_id text, p_skip_remaining boolean,
  p_idempotency_key text, p_reason text)
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
    'skip_remaining', p_skip_remaining, 'reason', p_reason, 'actor', v_actor.id);
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
    raise sqlstate 'PT400' using message = format('Batch is already %s', v_batch.status),
      detail = format('{"code": "batch_already_%s"}', v_batch.status);
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
  return v_result;
end;
$$;

revoke execute on function private.stop_batch(uuid, uuid, uuid, text, boolean, text, text) from public;
grant  execute on function private.stop_batch(uuid, uuid, uuid, text, boolean, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.stop_batch(uuid, uuid, uuid, text, boolean, text, text) is 'public.stop_batch, for a batch and user of a known agency.';

-- The door to private.stop_batch for users, services and consoles; these two may leave the user out.
-- batch_id, user_id: UUIDs or external ids.
-- skip_remaining: end the batch early, its contacts not yet called become skipped.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
create or replace function public.stop_batch(
  batch_id text default null, user_id text default null, skip_remaining boolean default false,
  idempotency_key text default null, reason text default null)
returns public.stop_batch_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.stop_batch(
           t.agency_id, t.batch_id, t.user_id, $1, coalesce(skip_remaining, false), idempotency_key, reason)
    from private.find_user_batch($1, $2) t
$$;

revoke execute on function public.stop_batch(text, text, boolean, text, text) from public, anon;
grant  execute on function public.stop_batch(text, text, boolean, text, text) to authenticated, service_role, lastcall_admin;
grant  execute on function private.find_user_batch(text, text) to authenticated, service_role, lastcall_admin;
comment on function public.stop_batch(text, text, boolean, text, text) is
  'Stop a call batch: its queue is emptied, calls in progress finish; it can be resumed.';

-- file: api/pause_batch.sql e7e254ac352207016d0e2be050c79398c9382ec76927ddbd3dc528bfbb2c8d6a
alter type public.pause_batch_result
  add attribute calls_in_progress integer,
  add attribute calls_starting integer;

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
    raise sqlstate 'PT400' using message = format('Only a processing or scheduled batch can be paused; this one is %s', v_batch.status),
      detail = '{"code": "batch_not_pausable"}';
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

-- file: api/batch_silence.sql d44e5b19d74598890c0ae6c02bd4e791d325ecff807a6fd66bc89777402f5f82
create type public.batch_silence_result as (
  batch_id          text,                 -- as it was given
  status            public.batch_status,
  is_silent         boolean,              -- no call of the batch can start, at the gate or at the carrier
  silent_since      timestamptz,          -- since then at the latest; null: not silent
  silent_by         timestamptz,          -- when calls_starting will be 0 at the latest; null: no call is starting
  calls_starting    integer,              -- let through, not known to be at the carrier, and still in time to get there
  calls_in_progress integer               -- let through and not over, with those that are starting
);

-- Whether calls of a batch can still start, and which are in progress.
-- A batch is silent when it is paused, stopped or over and none of its calls is starting. silent_since is the later of
-- two times, neither of them ahead: when the batch was ended, and when its last request could leave for the carrier.
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
  v_result.silent_by := case when v_result.calls_starting > 0 then v_batch.place_by end;
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

-- file: dialer/start_call.sql f98a06fd96b91a953652f91578f66c098997fe9308d116e37fc8f01866983450

-- When a number of the agency, with p_others calls in 24 hours beside it, may be called (p_now: at once).
create or replace function private.number_free_at(
  p_agency_id uuid, p_phone_number text, p_others integer, p_now timestamptz)
returns timestamptz
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_started_at timestamptz;
begin
  if p_others < 0 then
    return p_now + interval '24 hours';
  end if;
  select k.started_at into v_started_at
    from public.campaign_contacts c
   -- Fenced: by its index alone, not by the agency's key.
   cross join lateral (
     select k.agency_id, k.started_at from public.calls k where k.contact_id = c.id offset 0) k
   where c.agency_id = p_agency_id and c.phone_number = p_phone_number
     and k.agency_id = p_agency_id and k.started_at > p_now - interval '24 hours'
   order by k.started_at desc
   offset p_others
   limit 1;
  return coalesce(v_started_at + interval '24 hours', p_now);
end;
$$;

revoke execute on function private.number_free_at(uuid, text, integer, timestamptz) from public;
comment on function private.number_free_at(uuid, text, integer, timestamptz) is 'When a number may be called again.';

-- Those of a locked batch's leased calls that must not be placed now, and when they may be: outside the calling
-- hours of where the contact is, or a number that has had its most calls in 24 hours. due_at null: never, the
-- number is on the do-not-call list.
create or replace function private.find_withheld(
  p_batch public.call_batches, p_leased private.leased_call[], p_now timestamptz)
returns table (call_id bigint, contact_id bigint, due_at timestamptz)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
  if p_batch.max_calls_per_number is not null then
    -- Two batches that call the same number take turns here, in the order of the numbers, so that the
    -- second one counts the first one's call.
    insert into private.dialed_numbers as d (agency_id, phone_number)
    select p_batch.agency_id, l.phone_number
      from unnest(p_leased) l
     group by l.phone_number
     order by l.phone_number
        on conflict (agency_id, phone_number) do update set phone_number = excluded.phone_number;
  end if;

  return query
    select j.call_id, j.contact_id, case when not j.is_do_not_call then greatest(j.opens_at, j.free_at) end
      from (
        select l.call_id, l.contact_id,
               -- With limits: each by its key, and never by reading the whole list.
               coalesce((select true from public.do_not_call n
                          where n.agency_id = p_batch.agency_id and n.phone_number = l.phone_number
                          limit 1), false) as is_do_not_call,
               case when p_batch.calling_start is not null or p_batch.allowed_days is not null then
                 private.next_calling_time(p_batch.calling_start, p_batch.calling_end, p_batch.allowed_days,
                   coalesce(l.timezone, p_batch.timezone), p_now) end as opens_at,
               case when p_batch.max_calls_per_number is not null then
                 private.number_free_at(p_batch.agency_id, l.phone_number, p_batch.max_calls_per_number
                   - (row_number() over (partition by l.phone_number order by l.call_id))::integer, p_now) end as free_at
          from unnest(p_leased) l) j
     where j.is_do_not_call or greatest(j.opens_at, j.free_at) > p_now;
end;
$$;

revoke execute on function private.find_withheld(public.call_batches, private.leased_call[], timestamptz) from public;
comment on function private.find_withheld(public.call_batches, private.leased_call[], timestamptz) is
  'Leased calls that must not be placed now.';

-- The last gate before the carrier: of these calls of one claim, let those through that may be placed now,
-- and count the attempt. p_lease: as claim_contacts told it. A call passes while its batch is processing, its lease
-- runs, the number is not on the do-not-call list, the calling hours where the contact is have not ended, and the
-- number has calls left. The contact of a call that is withheld is skipped (do not call) or waits until it may be called.
-- p_place_within_seconds: counted by the caller from before it asked, the time in which a request must leave for the
-- carrier, or never leave. calls.place_by keeps the end of that time, counted from here and so never too early.
-- Returns the calls to place as started; a call that is not among them must not be placed.
-- Since cancel and stop hold the same lock, whatever has not passed when they commit never will.
-- Raises PT401, PT403 (not a service or console), PT404, PT400 (no lease; a time not from 0.1 to 60 seconds).
create or replace function private.start_call(
  p_agency_id uuid, p_batch_id uuid, p_call_ids bigint[], p_lease uuid, p_place_within_seconds double precision)
returns public.started_calls
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_batch       public.call_batches;
  v_now         timestamptz;
  v_result      public.started_calls;
  v_leased      private.leased_call[];
  v_withheld    record;
  v_skipped     integer := 0;
  v_delayed     integer := 0;
  v_due_at      timestamptz;
  v_call_ids    bigint[];
  v_contact_ids bigint[];
  v_first       bigint;
  v_last        bigint;
  v_place_by    timestamptz;
begin
  perform private.require_service();
  if p_lease is null then
    raise sqlstate 'PT400' using message = 'lease is required',
      detail = '{"code": "lease_required"}';
  end if;
  if p_place_within_seconds is null or p_place_within_seconds not between 0.1 and 60 then
    raise sqlstate 'PT400' using message = 'place_within_seconds must be from 0.1 to 60',
      detail = '{"code": "place_within_invalid"}';
  end if;
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  v_place_by := v_now + make_interval(secs => p_place_within_seconds);
  v_result.started := '{}';
  v_result.unknown := array(
    select u.id
      from (select distinct u.id from unnest(p_call_ids) as u (id)) u
     -- Each by its key: a join can be planned to read the whole batch.
      left join lateral (
       select true as is_known
         from public.calls k
        where k.agency_id = p_agency_id and k.batch_id = p_batch_id and k.id = u.id and k.lease = p_lease
        limit 1) k on true
     where k.is_known is null
     order by u.id);
  if v_batch.status <> 'processing' then
    return v_result;
  end if;

  v_leased := array(
    select (k.id, k.contact_id, c.phone_number, c.timezone)::private.leased_call
      from (select distinct u.id from unnest(p_call_ids) as u (id)) u
     cross join lateral (
       select k.id, k.contact_id
         from public.calls k
        where k.agency_id = p_agency_id and k.batch_id = p_batch_id and k.id = u.id and k.lease = p_lease
          -- As text: not by the index of open calls, which would read all leases of the batch.
          and k.status::text = 'queued' and k.lease_expires_at > v_now
        limit 1) k
     cross join lateral (
       select c.phone_number, c.timezone
         from public.campaign_contacts c
        where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = k.contact_id
        limit 1) c);
  for v_withheld in select w.* from private.find_withheld(v_batch, v_leased, v_now) w loop
    delete from public.calls c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_withheld.call_id;
    update public.campaign_contacts c
       set status = case when v_withheld.due_at is null then 'skipped'
                         when c.attempts > 0 then 'scheduled'
                         else 'pending' end::public.contact_status,
           due_at = v_withheld.due_at,
           outcome = case when v_withheld.due_at is null then 'do_not_call' else c.outcome end,
           outcome_notes = case when v_withheld.due_at is null then 'On the do-not-call list' else c.outcome_notes end
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_withheld.contact_id;
    v_skipped := v_skipped + (v_withheld.due_at is null)::integer;
    v_delayed := v_delayed + (v_withheld.due_at is not null)::integer;
    v_due_at := least(v_due_at, v_withheld.due_at);
  end loop;

  select min(u.id), max(u.id) into v_first, v_last from unnest(p_call_ids) as u (id);
  with started as (
    update public.calls c
       set status = 'in_progress',
           started_at = v_now,
           place_by = v_place_by
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id
       -- The calls of one claim are neighbours in their batch.
       and c.id between v_first and v_last and c.id = any (p_call_ids) and c.lease = p_lease
       and c.status::text = 'queued' and c.lease_expires_at > v_now
    returning c.id, c.contact_id)
  select array_agg(s.id order by s.id), array_agg(s.contact_id order by s.id)
    into v_call_ids, v_contact_ids
    from started s;

  for v_first, v_last in
    select min(i.id), max(i.id)
      from (select u.id, u.id - row_number() over (order by u.id) as run
              from unnest(v_contact_ids) as u (id)) i
     group by i.run
  loop
    update public.campaign_contacts c
       set status = 'in_progress',
           attempts = c.attempts + 1,
           call_id = v_call_ids[array_position(v_contact_ids, c.id)],
           last_attempt_at = v_now
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id between v_first and v_last;
  end loop;

  update public.call_batches b
     set queued = b.queued - coalesce(cardinality(v_call_ids), 0) - v_skipped - v_delayed,
         in_progress = b.in_progress + coalesce(cardinality(v_call_ids), 0),
         skipped = b.skipped + v_skipped,
         place_by = case when v_call_ids is null then b.place_by else greatest(b.place_by, v_place_by) end,
         next_claim_at = case when v_delayed > 0 then least(b.next_claim_at, v_due_at) else b.next_claim_at end
   where b.agency_id = p_agency_id and b.id = p_batch_id
     and (v_call_ids is not null or v_skipped + v_delayed > 0);
  v_result.started := coalesce(v_call_ids, '{}');
  return v_result;
end;
$$;

revoke execute on function private.start_call(uuid, uuid, bigint[], uuid, double precision) from public;
grant  execute on function private.start_call(uuid, uuid, bigint[], uuid, double precision) to service_role, lastcall_admin;
comment on function private.start_call(uuid, uuid, bigint[], uuid, double precision) is 'public.start_call, for a batch of a known agency.';

-- The door to private.start_call. call_ids: as claimed, all of batch_id and of the claim with that lease.
create or replace function public.start_call(
  batch_id uuid, call_ids bigint[], lease uuid, place_within_seconds double precision default 2)
returns public.started_calls
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select * from private.start_call(private.find_batch_agency(batch_id), batch_id, call_ids, lease,
    place_within_seconds)
$$;

revoke execute on function public.start_call(uuid, bigint[], uuid, double precision) from public, anon, authenticated;
grant  execute on function public.start_call(uuid, bigint[], uuid, double precision) to service_role, lastcall_admin;
comment on function public.start_call(uuid, bigint[], uuid, double precision) is
  'The last gate before the carrier: returns the calls that may be placed now.';
