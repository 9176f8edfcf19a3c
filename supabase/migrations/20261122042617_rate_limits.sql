-- Who is in the way of this is not made to wait for long: it gives up, and is run again.
set local lock_timeout = '500ms';

-- file: schema/rate_limits.sql 5d057e0b917e3be9f2675b19b6b6b34ec48f01b24ce919cecb52eac3253e8752
-- How often a user may call the procedures that cost much. An operator changes a limit, for every process at
-- once: update private.rate_limits set max_requests = 600 where procedure = 'create_batch';
-- A procedure without a row has no limit. What ends dialing has none.
create table private.rate_limits (
  procedure    text primary key,
  max_requests integer not null check (max_requests > 0),
  period       interval not null default '1 minute' check (period > '0 seconds')
);

insert into private.rate_limits (procedure, max_requests) values
  ('create_batch', 60), ('add_contacts', 120), ('begin_import', 20), ('retry_batch', 60), ('start_batch', 120),
  ('export_contacts', 30);

-- The requests that count, as long as they do. Rows are added and not changed, so that no request of a user
-- waits for another one of the same user.
create table private.user_requests (
  agency_id uuid not null,
  user_id   uuid not null,
  procedure text not null,
  id        bigint generated always as identity,
  at        timestamptz not null default clock_timestamp(),
  primary key (agency_id, user_id, procedure, id)
);

grant select, insert, update, delete on table private.rate_limits to lastcall_admin;

comment on table private.rate_limits is 'How often a user may call the procedures that cost much.';
comment on table private.user_requests is 'The requests that count towards a limit, as long as they do.';

-- file: private/limit_requests.sql 60e433d8b34c732ce9e807abcc3c9ae6146adec12889ddd9e8f3e8647656debb
-- Count a request of a user to a procedure that costs much, unless it is one too many. Services and consoles have no
-- limit. What is refused later on, and undone, was not counted. Requests that have not committed do not see each
-- other, so that as many more may pass as there are connections.
-- Raises PT429, with the seconds after which the next one passes as retry_after.
create or replace function private.limit_requests(p_actor private.actor, p_procedure text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now    timestamptz := clock_timestamp();
  v_limit  private.rate_limits;
  v_oldest timestamptz;
begin
  if p_actor.kind <> 'user' then
    return;
  end if;
  select l.* into v_limit from private.rate_limits l where l.procedure = p_procedure;
  if not found then
    return;
  end if;

  select r.at into v_oldest
    from private.user_requests r
   where r.agency_id = p_actor.agency_id and r.user_id = p_actor.id and r.procedure = p_procedure
   order by r.id desc
  offset v_limit.max_requests - 1
   limit 1;
  if v_oldest > v_now - v_limit.period then
    raise sqlstate 'PT429' using message = 'Too many requests; try again later',
      detail = jsonb_build_object('code', 'rate_limited', 'retry_after',
        ceil(extract(epoch from v_oldest + v_limit.period - v_now)))::text;
  end if;

  -- Those that a request at the same time is about to delete are left to it.
  delete from private.user_requests r
   where r.agency_id = p_actor.agency_id and r.user_id = p_actor.id and r.procedure = p_procedure
     and r.id in (
       select o.id
         from private.user_requests o
        where o.agency_id = p_actor.agency_id and o.user_id = p_actor.id and o.procedure = p_procedure
          and o.at <= v_now - v_limit.period
          for update skip locked);
  insert into private.user_requests (agency_id, user_id, procedure, at)
  values (p_actor.agency_id, p_actor.id, p_procedure, v_now);
end;
$$;

revoke execute on function private.limit_requests(private.actor, text) from public;
comment on function private.limit_requests(private.actor, text) is 'Count a request of a user, unless it is one too many.';

-- file: api/create_batch.sql b4ce023d7dda427ce2c0c3eb1985e6fec6927b2523cfe2e2d69efdd6129c81a5
-- Which agency an agent is of, before a procedure for that agency runs: a user's own agency, whatever
-- the id; for a service or a console, the agency of that agent. Raises PT401, PT400 (no id), PT404.
create or replace function private.find_agent_agency(p_agent_mapping_id uuid)
returns uuid
language plpgsql stable
security definer  -- looks at agents of every agency for a service or a console
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor     private.actor := private.current_actor();
  v_agency_id uuid;
begin
  if v_actor.kind = 'user' then
    return v_actor.agency_id;
  end if;
  if p_agent_mapping_id is null then
    raise sqlstate 'PT400' using message = 'agent_mapping_id is required',
      detail = '{"code": "agent_mapping_id_required"}';
  end if;
  select m.agency_id into v_agency_id from public.agent_mappings m where m.id = p_agent_mapping_id;
  if not found then
    raise sqlstate 'PT404' using message = 'Agent not found',
      detail = '{"code": "agent_not_found"}';
  end if;
  return v_agency_id;
end;
$$;

revoke execute on function private.find_agent_agency(uuid) from public;
grant  execute on function private.find_agent_agency(uuid) to authenticated, service_role, lastcall_admin;
comment on function private.find_agent_agency(uuid) is 'Which agency an agent is of.';

-- Create a batch with its first 1 to 10,000 contacts (see private.insert_contacts): it is dialed from the next run
-- of process_batches on, or from its scheduled_for on. p_batch: the columns of the batch that the caller gives, the
-- others null; p_contacts: a JSON array. All or nothing.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such agent, campaign or
-- user in the agency), PT400 (a setting out of range; not an active number of the agency; invalid contacts,
-- or none left to call), PT409 (idempotency key reused; external id taken), PT429 (too many requests).
-- Contract: calls-batch-create.
create or replace function private.create_batch(
  p_agency_id uuid, p_batch public.call_batches, p_contacts jsonb, p_idempotency_key text)
returns public.create_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.require_admin(p_agency_id);
  v_request  jsonb := jsonb_build_object(
    'procedure', 'create_batch', 'batch', to_jsonb(p_batch), 'actor', v_actor.id,
    'contacts', encode(sha256(convert_to(p_contacts::text, 'UTF8')), 'hex'));
  v_answer   jsonb;
  v_agent    public.agent_mappings;
  v_batch    public.call_batches;
  v_contacts private.inserted_contacts;
  v_result   public.create_batch_result;
begin
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  perform private.limit_requests(v_actor, 'create_batch');

  v_batch := private.check_batch(p_agency_id, p_batch, v_actor);
  select m.* into v_agent
    from public.agent_mappings m
   where m.agency_id = p_agency_id and m.id = v_batch.agent_mapping_id;

  begin
    insert into public.call_batches select v_batch.*;
    v_contacts := private.insert_contacts(v_batch, p_contacts);
    if v_contacts.added = 0 then
      raise sqlstate 'PT400' using message = 'No contact is left to call: every number is on the do-not-call list',
        detail = jsonb_build_object('code', 'no_contacts', 'do_not_call', v_contacts.do_not_call)::text;
    end if;
    update public.call_batches b
       set total_contacts = v_contacts.added
     where b.agency_id = p_agency_id and b.id = v_batch.id;

    v_result := row(v_batch.id, v_batch.status, v_contacts.added, v_agent.id, v_agent.ultravox_agent_name,
      v_batch.from_number, v_contacts.duplicates, v_contacts.do_not_call);
    v_batch.status := null;  -- it came from nowhere
    perform private.record_event(p_agency_id, v_batch, v_actor, 'create', v_result.status, v_contacts.added,
      p_idempotency_key => p_idempotency_key, p_request => v_request, p_response => to_jsonb(v_result));
  exception
    when unique_violation then
      raise sqlstate 'PT409' using message = 'Another batch of the agency has this id or external_id',
        detail = '{"code": "batch_id_taken"}';
    when sqlstate 'PT409' then
      -- Of two equal requests at once, the second one waited for the first one's answer.
      v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
      return jsonb_populate_record(v_result, v_answer);
  end;
  return v_result;
end;
$$;

revoke execute on function private.create_batch(uuid, public.call_batches, jsonb, text) from public;
grant  execute on function private.create_batch(uuid, public.call_batches, jsonb, text) to authenticated, service_role, lastcall_admin;
comment on function private.create_batch(uuid, public.call_batches, jsonb, text) is 'public.create_batch, for a known agency.';

-- The door to private.create_batch for users, services and consoles.
-- agent_mapping_id, campaign_id, from_number: of the agency; contacts: see private.insert_contacts.
-- calls_per_minute: 1 to 60. max_concurrent: 1 to 100. scheduled_for: null is at once. mode: immediate or scheduled,
-- if given, must agree with scheduled_for. user_id: the user of the agency whose batch it is, by default the caller.
-- calling_numbers: more numbers of the agency, called from in turn.
-- retry_delay_seconds: 0 to 604800 until a failed call is tried again; retry_outcomes: only after these.
-- calling_hours: {"start": "09:00", "end": "17:00"}; allowed_days: 0 (Sunday) to 6; both in timezone, or in the
-- contact's own. max_calls_per_number: in any 24 hours, with the agency's other batches, 1 to 100.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
create or replace function public.create_batch(
  agent_mapping_id uuid default null, from_number text default null, campaign_id uuid default null,
  contacts jsonb default null, calls_per_minute integer default 30, max_concurrent integer default 10,
  scheduled_for timestamptz default null, mode public.batch_mode default null,
  name text default null, external_id text default null, user_id uuid default null,
  calling_numbers text[] default null, retry_delay_seconds integer default 60, retry_outcomes text[] default null,
  calling_hours jsonb default null, allowed_days integer[] default null, timezone text default null,
  max_calls_per_number integer default null, idempotency_key text default null)
returns public.create_batch_result
language plpgsql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_batch public.call_batches;
begin
  v_batch.agent_mapping_id := agent_mapping_id;
  v_batch.from_number := from_number;
  v_batch.campaign_id := campaign_id;
  v_batch.calls_per_minute := calls_per_minute;
  v_batch.max_concurrent := max_concurrent;
  v_batch.scheduled_for := scheduled_for;
  v_batch.mode := mode;
  v_batch.name := name;
  v_batch.external_id := external_id;
  v_batch.user_id := user_id;
  v_batch.calling_numbers := calling_numbers;
  v_batch.retry_delay_seconds := retry_delay_seconds;
  v_batch.retry_outcomes := retry_outcomes;
  v_batch.calling_start := private.calling_time(calling_hours, 'start');
  v_batch.calling_end := private.calling_time(calling_hours, 'end');
  v_batch.allowed_days := allowed_days;
  v_batch.timezone := timezone;
  v_batch.max_calls_per_number := max_calls_per_number;
  return private.create_batch(private.find_agent_agency(agent_mapping_id), v_batch, contacts, idempotency_key);
end;
$$;

revoke execute on function public.create_batch(
  uuid, text, uuid, jsonb, integer, integer, timestamptz, public.batch_mode, text, text, uuid, text[], integer,
  text[], jsonb, integer[], text, integer, text) from public, anon;
grant  execute on function public.create_batch(
  uuid, text, uuid, jsonb, integer, integer, timestamptz, public.batch_mode, text, text, uuid, text[], integer,
  text[], jsonb, integer[], text, integer, text) to authenticated, service_role, lastcall_admin;
comment on function public.create_batch(
  uuid, text, uuid, jsonb, integer, integer, timestamptz, public.batch_mode, text, text, uuid, text[], integer,
  text[], jsonb, integer[], text, integer, text) is
  'Create a call batch with its first contacts.';

-- file: api/add_contacts.sql beb6c523caeae6cc704149c7ad4f82ee2625263c740bbc2d664993988ad0ecd8
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
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  perform private.limit_requests(v_actor, 'add_contacts');
  if v_batch.status in ('completed', 'cancelled') then
    raise sqlstate 'PT400' using message = format('Batch is already %s', v_batch.status),
      detail = format('{"code": "batch_already_%s"}', v_batch.status);
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
as $$
  select private.add_contacts(private.find_batch_agency(batch_id), batch_id, contacts, idempotency_key)
$$;

revoke execute on function public.add_contacts(uuid, jsonb, text) from public, anon;
grant  execute on function public.add_contacts(uuid, jsonb, text) to authenticated, service_role, lastcall_admin;
comment on function public.add_contacts(uuid, jsonb, text) is 'Add contacts to a call batch, at the end of its dial order.';

-- file: api/begin_import.sql 832fffecd053bde7b4d4953d5c3b25fca0c1520af205a559ab54356766af9523
-- Begin to import a file: into the batch p_batch.id, or into a new batch of the settings p_batch, which stays paused
-- until finish_import, so that it is not dialed while half of it is there. The rows follow by import_contacts.
-- An import of the same file into the same batch that has not finished is gone on with. p_file_hash: the
-- SHA-256 of the file, in hex. p_max_attempts: of contacts that do not say.
-- Returns private.import_progress. Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no
-- such batch, agent, campaign or user in the agency), PT400 (a setting out of range, or given for a batch that is there;
-- batch completed or cancelled; no hash), PT409 (idempotency key reused; external id taken).
create or replace function private.begin_import(
  p_agency_id uuid, p_batch public.call_batches, p_max_attempts integer, p_file_hash text, p_idempotency_key text)
returns json
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor   private.actor := private.require_admin(p_agency_id);
  v_request jsonb := jsonb_build_object(
    'procedure', 'begin_import', 'batch', to_jsonb(p_batch), 'max_attempts', p_max_attempts, 'file_hash', p_file_hash,
    'actor', v_actor.id);
  v_answer  jsonb;
  v_batch   public.call_batches;
  v_import  public.batch_imports;
begin
  if (p_file_hash ~ '^[0-9a-f]{64}$') is not true then
    raise sqlstate 'PT400' using message = 'file_hash must be the SHA-256 of the file',
      detail = '{"code": "file_hash_invalid"}';
  end if;
  if (p_max_attempts between 1 and 99) is not true then
    raise sqlstate 'PT400' using message = 'max_attempts must be 1 to 99',
      detail = '{"code": "max_attempts_invalid"}';
  end if;
  if p_batch.id is not null then
    if jsonb_strip_nulls(to_jsonb(p_batch) - 'id') <> '{}' then
      raise sqlstate 'PT400' using message = 'With a batch_id the batch keeps its settings: give none',
        detail = '{"code": "settings_not_allowed"}';
    end if;
    v_batch := private.lock_batch(p_agency_id, p_batch.id);
  end if;
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return private.import_progress(private.find_import(
      p_agency_id, (v_answer ->> 'batch_id')::uuid, (v_answer ->> 'import_id')::uuid));
  end if;
  perform private.limit_requests(v_actor, 'begin_import');

  if p_batch.id is null then
    v_batch := private.check_batch(p_agency_id, p_batch, v_actor);
    v_batch.status := 'paused';
    v_batch.paused_at := v_batch.created_at;
    v_batch.error_message := 'The import of its contacts has not finished';
    v_import.held_at := v_batch.paused_at;
  elsif v_batch.status in ('completed', 'cancelled') then
    raise sqlstate 'PT400' using message = format('Batch is already %s', v_batch.status),
      detail = format('{"code": "batch_already_%s"}', v_batch.status);
  else
    select i.* into v_import
      from public.batch_imports i
     where i.agency_id = p_agency_id and i.batch_id = v_batch.id and i.file_hash = p_file_hash
       and i.max_attempts = p_max_attempts and i.finished_at is null
     order by i.created_at
     limit 1;
  end if;

  begin
    if p_batch.id is null then
      insert into public.call_batches select v_batch.*;
    end if;
    if v_import.id is null then
      insert into public.batch_imports (agency_id, batch_id, file_hash, max_attempts, held_at)
      values (p_agency_id, v_batch.id, p_file_hash, p_max_attempts, v_import.held_at)
      returning * into v_import;
    end if;
    v_answer := jsonb_build_object('batch_id', v_batch.id, 'import_id', v_import.id);
    if p_batch.id is null then
      v_batch.status := null;  -- it came from nowhere
    end if;
    perform private.record_event(p_agency_id, v_batch, v_actor, 'begin_import', coalesce(v_batch.status, 'paused'), 0,
      p_idempotency_key => p_idempotency_key, p_request => v_request, p_response => v_answer);
  exception
    when unique_violation then
      raise sqlstate 'PT409' using message = 'Another batch of the agency has this id or external_id',
        detail = '{"code": "batch_id_taken"}';
    when sqlstate 'PT409' then
      -- Of two equal requests at once, the second one waited for the first one's answer.
      v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
      v_import := private.find_import(
        p_agency_id, (v_answer ->> 'batch_id')::uuid, (v_answer ->> 'import_id')::uuid);
  end;
  return private.import_progress(v_import);
end;
$$;

revoke execute on function private.begin_import(uuid, public.call_batches, integer, text, text) from public;
grant  execute on function private.begin_import(uuid, public.call_batches, integer, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.begin_import(uuid, public.call_batches, integer, text, text) is 'public.begin_import, for a known agency.';

-- The door to private.begin_import for users, services and consoles. batch_id: import into this batch; or else into a new
-- one of the other arguments, as public.create_batch has them; from_number is by default the first of calling_numbers.
-- idempotency_key: a repeat with the same key and arguments goes on with the import.
create or replace function public.begin_import(
  batch_id uuid default null, file_hash text default null, max_attempts integer default null,
  agent_mapping_id uuid default null, from_number text default null, campaign_id uuid default null,
  calls_per_minute integer default null, max_concurrent integer default null,
  scheduled_for timestamptz default null, mode public.batch_mode default null,
  name text default null, external_id text default null, user_id uuid default null,
  calling_numbers text[] default null, retry_delay_seconds integer default null, retry_outcomes text[] default null,
  calling_hours jsonb default null, allowed_days integer[] default null, timezone text default null,
  max_calls_per_number integer default null, idempotency_key text default null)
returns json
language plpgsql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_is_new constant boolean := batch_id is null;
  v_batch  public.call_batches;
begin
  v_batch.id := batch_id;
  v_batch.agent_mapping_id := agent_mapping_id;
  v_batch.from_number := coalesce(from_number, calling_numbers[1]);
  v_batch.campaign_id := campaign_id;
  v_batch.calls_per_minute := coalesce(calls_per_minute, case when v_is_new then 30 end);
  v_batch.max_concurrent := coalesce(max_concurrent, case when v_is_new then 10 end);
  v_batch.scheduled_for := scheduled_for;
  v_batch.mode := mode;
  v_batch.name := name;
  v_batch.external_id := external_id;
  v_batch.user_id := user_id;
  v_batch.calling_numbers := calling_numbers;
  v_batch.retry_delay_seconds := coalesce(retry_delay_seconds, case when v_is_new then 60 end);
  v_batch.retry_outcomes := retry_outcomes;
  v_batch.calling_start := private.calling_time(calling_hours, 'start');
  v_batch.calling_end := private.calling_time(calling_hours, 'end');
  v_batch.allowed_days := allowed_days;
  v_batch.timezone := timezone;
  v_batch.max_calls_per_number := max_calls_per_number;
  return private.begin_import(
    case when v_is_new then private.find_agent_agency(agent_mapping_id) else private.find_batch_agency(batch_id) end,
    v_batch, coalesce(max_attempts, 3), file_hash, idempotency_key);
end;
$$;

revoke execute on function public.begin_import(
  uuid, text, integer, uuid, text, uuid, integer, integer, timestamptz, public.batch_mode, text, text, uuid, text[],
  integer, text[], jsonb, integer[], text, integer, text) from public, anon;
grant  execute on function public.begin_import(
  uuid, text, integer, uuid, text, uuid, integer, integer, timestamptz, public.batch_mode, text, text, uuid, text[],
  integer, text[], jsonb, integer[], text, integer, text) to authenticated, service_role, lastcall_admin;
comment on function public.begin_import(
  uuid, text, integer, uuid, text, uuid, integer, integer, timestamptz, public.batch_mode, text, text, uuid, text[],
  integer, text[], jsonb, integer[], text, integer, text) is
  'Begin to import a file of contacts into a call batch, a new one or one that is there.';

-- file: api/start_batch.sql 7a811a41a372b0a7b64baee87338b9c2f19e86b4a6b5c0ff1dc4b6429c5e9ed0
-- Start a batch now: one that waits for its time, or that is paused or stopped. Starting one that is being
-- dialed is a success. With p_call_data (a JSON array of 1 to 10,000 objects with phoneNumber; their other keys are told to the
-- agent), these are called instead of the stored contacts that were not called yet, which are skipped; with
-- p_calling_numbers, from these numbers of the agency.
-- The batch and user come from private.find_user_batch and are checked again here.
-- Raises PT401, PT403 (of no agency; neither the user nor an owner or admin), PT404 (no such batch of the user),
-- PT400 (completed, cancelled or failed; invalid contacts; not an active number), PT409 (idempotency key reused),
-- PT429 (too many requests).
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
  v_result   public.start_batch_result;
begin
  if not private.is_agency_admin(v_actor) and p_user_id is distinct from v_actor.id then
    raise sqlstate 'PT403' using message = 'Only the user, or an owner or admin of the agency, may do this',
      detail = '{"code": "role_not_allowed"}';
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
    raise sqlstate 'PT400' using message = format('Batch is already %s', v_batch.status),
      detail = format('{"code": "batch_already_%s"}', v_batch.status);
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
  update public.call_batches b
     set status = 'processing',
         queued = case when p_call_data is null then b.queued else 0 end,
         skipped = b.skipped + v_replaced,
         total_contacts = b.total_contacts + v_contacts.added,
         calling_numbers = coalesce(p_calling_numbers, b.calling_numbers),
         mode = 'immediate',
         scheduled_for = null,
         started_at = coalesce(b.started_at, v_now),
         paused_at = null,
         stopped_at = null,
         skip_remaining = false,
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
as $$
  select private.start_batch(
           t.agency_id, t.batch_id, t.user_id, $1, call_data, calling_numbers, idempotency_key, reason)
    from private.find_user_batch($1, $2) t
$$;

revoke execute on function public.start_batch(text, text, jsonb, text[], text, text) from public, anon;
grant  execute on function public.start_batch(text, text, jsonb, text[], text, text) to authenticated, service_role, lastcall_admin;
comment on function public.start_batch(text, text, jsonb, text[], text, text) is
  'Start a call batch now, from waiting, paused or stopped.';

-- file: api/retry_batch.sql 4a3d283d3cdced5afcb7a0b17844765ad0633dc07883d90029921c0c451ed299
-- Dial the failed contacts of a batch again: a new batch of them, with the settings of the old one, which
-- stays as it is. What an earlier retry of the same batch took is not taken twice. p_outcomes: only those whose last call had one of these; null: all. p_scheduled_for: null is at once.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such batch of the agency),
-- PT400 (no contact failed so, or all were taken), PT409 (idempotency key reused), PT429 (too many requests).
create or replace function private.retry_batch(
  p_agency_id uuid, p_batch_id uuid, p_outcomes text[], p_scheduled_for timestamptz,
  p_idempotency_key text, p_reason text)
returns public.retry_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_actor   private.actor := private.require_admin(p_agency_id);
  v_request jsonb := jsonb_build_object(
    'procedure', 'retry_batch', 'batch_id', p_batch_id, 'outcomes', p_outcomes, 'scheduled_for', p_scheduled_for,
    'reason', p_reason, 'actor', v_actor.id);
  v_answer  jsonb;
  v_batch   public.call_batches;
  v_retry   public.call_batches;
  v_failed  integer;
  v_added   integer;
  v_result  public.retry_batch_result;
begin
  -- Held, so that of two retries at once the second one sees the first one's.
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  perform private.limit_requests(v_actor, 'retry_batch');

  v_retry := private.fresh_batch(v_batch, p_scheduled_for);
  v_retry.external_id := null;
  v_retry.retry_of := p_batch_id;
  insert into public.call_batches select v_retry.*;

  with failed as materialized (
    select c.id as old_id, c.phone_number, c.timezone, c.max_attempts,
           coalesce((select true from public.do_not_call n
                      where n.agency_id = p_agency_id and n.phone_number = c.phone_number
                      limit 1), false) as is_do_not_call
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.status = 'failed'
       and (p_outcomes is null or c.outcome = any (p_outcomes))
       and not exists (select from public.campaign_contacts r
                         join public.call_batches b on b.agency_id = r.agency_id and b.id = r.batch_id
                        where r.agency_id = p_agency_id and r.phone_number = c.phone_number
                          and b.retry_of = p_batch_id)),
  numbered as materialized (
    select nextval(pg_get_serial_sequence('public.campaign_contacts', 'id')) as id, f.*
      from (select * from failed where not is_do_not_call order by old_id) f),
  added as (
    insert into public.campaign_contacts (agency_id, batch_id, id, phone_number, timezone, max_attempts, due_at)
    select p_agency_id, v_retry.id, n.id, n.phone_number, n.timezone, n.max_attempts,
           case when n.timezone is not null and (v_retry.calling_start is not null or v_retry.allowed_days is not null)
             then v_retry.created_at end
      from numbered n),
  added_data as (
    insert into public.contact_data (
      agency_id, batch_id, contact_id, first_name, last_name, email, company, title, custom_data)
    select d.agency_id, v_retry.id, n.id, d.first_name, d.last_name, d.email, d.company, d.title, d.custom_data
      from numbered n
      join public.contact_data d on d.agency_id = p_agency_id and d.batch_id = p_batch_id and d.contact_id = n.old_id)
  select count(*)::integer, (count(*) filter (where not f.is_do_not_call))::integer
    into v_failed, v_added from failed f;
  if v_added = 0 then
    raise sqlstate 'PT400' using message = 'The batch has no failed contact that can be called again',
      detail = '{"code": "no_contacts"}';
  end if;
  update public.call_batches b
     set total_contacts = v_added
   where b.agency_id = p_agency_id and b.id = v_retry.id;

  v_result := row(v_retry.id, v_retry.status, v_added, p_batch_id, v_failed - v_added);
  perform private.record_event(p_agency_id, v_batch, v_actor, 'retry', v_batch.status, v_added,
    p_reason => p_reason, p_idempotency_key => p_idempotency_key,
    p_request => v_request, p_response => to_jsonb(v_result));
  v_retry.status := null;  -- it came from nowhere
  perform private.record_event(p_agency_id, v_retry, v_actor, 'create', v_result.status, v_added, p_reason => p_reason);
  return v_result;
end;
$$;

revoke execute on function private.retry_batch(uuid, uuid, text[], timestamptz, text, text) from public;
grant  execute on function private.retry_batch(uuid, uuid, text[], timestamptz, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.retry_batch(uuid, uuid, text[], timestamptz, text, text) is 'public.retry_batch, for a batch of a known agency.';

-- The door to private.retry_batch for users, services and consoles.
-- outcomes: only contacts whose last call had one of these. scheduled_for: null is at once.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
create or replace function public.retry_batch(
  batch_id uuid default null, outcomes text[] default null, scheduled_for timestamptz default null,
  idempotency_key text default null, reason text default null)
returns public.retry_batch_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.retry_batch(
    private.find_batch_agency(batch_id), batch_id, outcomes, scheduled_for, idempotency_key, reason)
$$;

revoke execute on function public.retry_batch(uuid, text[], timestamptz, text, text) from public, anon;
grant  execute on function public.retry_batch(uuid, text[], timestamptz, text, text) to authenticated, service_role, lastcall_admin;
comment on function public.retry_batch(uuid, text[], timestamptz, text, text) is
  'Dial the failed contacts of a call batch again, as a new batch.';

-- file: api/export_contacts.sql 5372b173fdf9dd9af382b52555d30fbfda4627721571d93afbca2dd2c4fa3b87
-- The next contacts of a batch in dial order, for an export in pages: p_after is the next_cursor of the page
-- before, null for the first. p_status: only these. p_max_rows: 1 to 1000.
-- Returns {"contacts": [...], "next_cursor"}; a page may be short before the end (see private.read_contacts).
-- Raises PT401, PT403 (of no agency), PT404 (no such batch of the agency), PT400 (a number out of range;
-- not a cursor), PT429 (too many requests for a first page).
create or replace function private.export_contacts(
  p_agency_id uuid, p_batch_id uuid, p_after text, p_max_rows integer, p_status public.contact_status)
returns json
language plpgsql volatile
security definer  -- for a service or a console, looks at every agency
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor private.actor := private.require_actor(p_agency_id);
begin
  if p_max_rows is null or p_max_rows not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'max_rows must be 1 to 1000',
      detail = '{"code": "page_out_of_range"}';
  end if;
  if not exists (select from public.call_batches b where b.agency_id = p_agency_id and b.id = p_batch_id) then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  end if;
  if p_after is null then
    perform private.limit_requests(v_actor, 'export_contacts');
  end if;
  return to_json(private.read_contacts(p_agency_id, p_batch_id, p_status, p_after, p_max_rows, 0));
end;
$$;

revoke execute on function private.export_contacts(uuid, uuid, text, integer, public.contact_status) from public;
grant  execute on function private.export_contacts(uuid, uuid, text, integer, public.contact_status) to authenticated, service_role, lastcall_admin;
comment on function private.export_contacts(uuid, uuid, text, integer, public.contact_status) is
  'public.export_contacts, for a batch of a known agency.';

create or replace function public.export_contacts(
  batch_id uuid default null, after text default null, max_rows integer default 1000,
  contact_status public.contact_status default null)
returns json
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.export_contacts(private.find_batch_agency(batch_id), batch_id, after, max_rows, contact_status)
$$;

revoke execute on function public.export_contacts(uuid, text, integer, public.contact_status) from public, anon;
grant  execute on function public.export_contacts(uuid, text, integer, public.contact_status) to authenticated, service_role, lastcall_admin;
comment on function public.export_contacts(uuid, text, integer, public.contact_status) is
  'The next contacts of a call batch, for an export in pages.';
