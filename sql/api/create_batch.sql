create type public.create_batch_result as (
  batch_id         uuid,
  status           public.batch_status,
  total_contacts   integer,
  agent_mapping_id uuid,
  agent_name       text,
  from_number      text,
  duplicates       integer,  -- left out: the number came before in the same request
  do_not_call      integer   -- left out: on the agency's do-not-call list
);

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

  perform private.admit_contacts(p_agency_id);
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
      -- The second of two equal requests at once has waited for the answer of the first.
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
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
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
