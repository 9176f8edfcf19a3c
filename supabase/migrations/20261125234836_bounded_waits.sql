-- Who is in the way of this is not made to wait for long: it gives up, and is run again.
set local lock_timeout = '500ms';

-- file: schema/webhook_queue.sql 79dcf26e879be4536c4be6e8647af20424237cea22dd534cc42c82817f34592f
comment on column public.webhook_queue.event_id is 'Its webhook-id, unless the signature does not cover it, or else the carrier''s call id and the event type.';

-- file: private/lock_batch.sql ca33dda0c4845cea525f6a9525010b07c803bad303026254fe11a00e037e3a85
-- The longest wait for a batch: the session's lock_timeout if it has one, or else 2 seconds for the service and 10 for people.
create or replace function private.longest_wait()
returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when current_setting('lock_timeout') <> '0' then current_setting('lock_timeout')
              when current_setting('role', true) = 'service_role' then '2s'
              else '10s' end
$$;

revoke execute on function private.longest_wait() from public;
comment on function private.longest_wait() is 'The longest wait for a batch that another request holds.';

-- Refuse a batch that another request holds. The detail names the procedure that the holder called last (held_by) and the
-- age of the holder's transaction (held_seconds), where pg_locks and pg_stat_activity tell them. Of the holder's query it
-- tells nothing else.
-- Raises PT503.
create or replace function private.refuse_busy(p_agency_id uuid, p_batch_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_xmax   xid;
  v_xids   xid[];
  v_holder record;
begin
  select b.xmax into v_xmax
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  begin
    -- A holder that had to wait itself left its transaction as a member of a multixact.
    v_xids := array(select m.xid from pg_get_multixact_members(v_xmax) m);
  exception when others then
    v_xids := array[v_xmax];  -- no multixact, but the transaction itself
  end;
  select (select p.proname
            from pg_proc p
            join pg_proc q on q.proname = p.proname and q.pronamespace = 'private'::regnamespace
           where p.pronamespace = 'public'::regnamespace and strpos(a.query, p.proname) > 0
           order by strpos(a.query, p.proname)
           limit 1) as procedure,
         floor(extract(epoch from clock_timestamp() - a.xact_start))::integer as seconds
    into v_holder
    from pg_locks l
    join pg_stat_activity a on a.pid = l.pid
   where l.locktype = 'transactionid' and l.granted and l.transactionid = any (v_xids)
   limit 1;
  raise sqlstate 'PT503' using message = 'Another request holds this batch; try again',
    detail = jsonb_strip_nulls(jsonb_build_object(
      'code', 'batch_busy', 'retry_after', 2, 'held_by', v_holder.procedure, 'held_seconds', v_holder.seconds))::text;
end;
$$;

revoke execute on function private.refuse_busy(uuid, uuid) from public;
comment on function private.refuse_busy(uuid, uuid) is 'Refuse a batch that another request holds.';

-- The batch, locked until the transaction ends. Everyone who changes a batch or its contacts
-- comes through here (claimers take the same lock with skip locked) before they look at
-- anything else of it: one lock, one order, no deadlock, and a status that holds. What is changed under
-- it is on disk when the reply is out, even where the database is set not to wait for that.
-- The wait for another request is bounded (private.longest_wait).
-- Raises PT404, PT503 (another request holds the batch), 40001 (changed meanwhile, at a stricter isolation).
create or replace function private.lock_batch(p_agency_id uuid, p_batch_id uuid)
returns public.call_batches
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
  v_batch        public.call_batches;
begin
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  -- First without the subtransaction that a refusal needs: an update under a subtransaction's lock makes a multixact.
  if current_setting('transaction_isolation') = 'read committed' then
    select b.* into v_batch
      from public.call_batches b
     where b.agency_id = p_agency_id and b.id = p_batch_id
       for no key update skip locked;
    if found then
      return v_batch;
    end if;
  end if;

  begin
    perform set_config('lock_timeout', private.longest_wait(), true);
    select b.* into v_batch
      from public.call_batches b
     where b.agency_id = p_agency_id and b.id = p_batch_id
       for no key update;
    if not found then
      raise sqlstate 'PT404' using message = 'Batch not found',
        detail = '{"code": "batch_not_found"}';
    end if;
    perform set_config('lock_timeout', v_lock_timeout, true);
  exception
    when lock_not_available then
      perform private.refuse_busy(p_agency_id, p_batch_id);
    when serialization_failure then
      raise sqlstate '40001' using message = sqlerrm,
        hint = 'Run it at isolation level read committed';
  end;
  return v_batch;
end;
$$;

revoke execute on function private.lock_batch(uuid, uuid) from public;
comment on function private.lock_batch(uuid, uuid) is 'The batch, locked; the first step of every change.';

-- file: private/awaits_contacts.sql 26d4ed8e80a1ff3442039e91760593b956c0a6b1a57014fdaed5516536ebd18d
-- Whether contacts of a batch are still to come: none was ever there, or an import into it has not finished.
create or replace function private.awaits_contacts(p_agency_id uuid, p_batch_id uuid)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
begin
  return exists (select from public.batch_imports i
                  where i.agency_id = p_agency_id and i.batch_id = p_batch_id and i.finished_at is null)
      or not exists (select from public.campaign_contacts c
                      where c.agency_id = p_agency_id and c.batch_id = p_batch_id);
end;
$$;

revoke execute on function private.awaits_contacts(uuid, uuid) from public;
comment on function private.awaits_contacts(uuid, uuid) is 'Whether contacts of a batch are still to come.';

-- file: api/current_agency.sql 67137c486b3a5c6955bff1163b7ffe61f38470c8ae237685fe7cf53d516a2f5b
-- The agency of the signed-in user, or null. The functions share their database connections among agencies by it.
create or replace function public.current_agency()
returns uuid
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.current_agency_id()
$$;

revoke execute on function public.current_agency() from public, anon, service_role;
grant  execute on function public.current_agency() to authenticated;
comment on function public.current_agency() is 'The agency of the signed-in user.';

-- file: api/create_batch.sql b438eda2a9e4cf4d7f7ea55d0d56889bebea7933e74ffb64809e1b0cb543a484
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

-- file: api/add_contacts.sql 5396c4b550d44ae0950449f349bf8bc18e08dd1228bb95652812081d04aebb3b
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
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.add_contacts(private.find_batch_agency(batch_id), batch_id, contacts, idempotency_key)
$$;

revoke execute on function public.add_contacts(uuid, jsonb, text) from public, anon;
grant  execute on function public.add_contacts(uuid, jsonb, text) to authenticated, service_role, lastcall_admin;
comment on function public.add_contacts(uuid, jsonb, text) is 'Add contacts to a call batch, at the end of its dial order.';

-- file: api/begin_import.sql 6d9d029436deac09395f50d21819d7df4d364a102f35b648aa521f48f5dfd544
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
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
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

-- file: api/import_contacts.sql 90159b5d3e7822fbf1f0e2cb1b6f1577b69ca108c0a4487e5c879cc810541156
-- Import the next rows of a file (see private.check_rows), in the order of the file. Valid ones become contacts (see
-- private.insert_valid_contacts); invalid ones are kept in import_errors, and keep no other from being imported. Rows that are
-- done are passed over: sent twice, they count once. Under the batch's lock, so that none slips into a batch that
-- is being cancelled, nor behind the claim cursor.
-- Returns private.import_progress. Raises PT401, PT403 (of no agency; not an owner or admin), PT404 (no such batch or import
-- of the agency), PT400 (not such rows; batch completed or cancelled).
create or replace function private.import_contacts(
  p_agency_id uuid, p_batch_id uuid, p_import_id uuid, p_rows jsonb)
returns json
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_errors_kept constant integer := 100000;
  v_batch    public.call_batches;
  v_import   public.batch_imports;
  v_numbers  integer[];
  v_phones   text[];
  v_errors   text[];
  v_valid    jsonb;
  v_last_row integer;
  v_contacts private.inserted_contacts := (0, 0, 0);
begin
  perform private.require_admin(p_agency_id);
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_import := private.find_import(p_agency_id, p_batch_id, p_import_id);
  if v_import.finished_at is not null then
    return private.import_progress(v_import);
  end if;
  if v_batch.status in ('completed', 'cancelled') then
    raise sqlstate 'PT400' using message = format('Batch is already %s', v_batch.status),
      detail = format('{"code": "batch_already_%s"}', v_batch.status);
  end if;

  select array_agg(r.row_number) filter (where r.error is not null),
         array_agg(left(r.contact ->> 'phone_number', 50)) filter (where r.error is not null),
         array_agg(r.error) filter (where r.error is not null),
         jsonb_agg(r.contact order by r.row_number) filter (where r.error is null),
         max(r.row_number)
    into v_numbers, v_phones, v_errors, v_valid, v_last_row
    from private.check_rows(p_rows) r
   where r.row_number > v_import.last_row;
  if v_last_row is null then
    return private.import_progress(v_import);
  end if;

  insert into public.import_errors (agency_id, import_id, row_number, phone_number, error)
  select p_agency_id, p_import_id, e.row_number, e.phone_number, e.error
    from unnest(v_numbers, v_phones, v_errors) as e (row_number, phone_number, error)
   order by e.row_number
   limit greatest(v_errors_kept - v_import.invalid, 0);
  if v_valid is not null then
    v_contacts := private.insert_valid_contacts(v_batch, v_valid, v_import.max_attempts);
  end if;
  update public.batch_imports i
     set last_row = v_last_row,
         added = i.added + v_contacts.added,
         duplicates = i.duplicates + v_contacts.duplicates,
         do_not_call = i.do_not_call + v_contacts.do_not_call,
         invalid = i.invalid + coalesce(cardinality(v_numbers), 0)
   where i.agency_id = p_agency_id and i.id = p_import_id
  returning i.* into v_import;
  update public.call_batches b
     set total_contacts = b.total_contacts + v_contacts.added,
         next_claim_at = least(b.next_claim_at, clock_timestamp())
   where b.agency_id = p_agency_id and b.id = p_batch_id and v_contacts.added > 0;
  return private.import_progress(v_import);
end;
$$;

revoke execute on function private.import_contacts(uuid, uuid, uuid, jsonb) from public;
grant  execute on function private.import_contacts(uuid, uuid, uuid, jsonb) to authenticated, service_role, lastcall_admin;
comment on function private.import_contacts(uuid, uuid, uuid, jsonb) is 'public.import_contacts, for a batch of a known agency.';

create or replace function public.import_contacts(
  batch_id uuid default null, import_id uuid default null, rows jsonb default null)
returns json
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.import_contacts(private.find_batch_agency(batch_id), batch_id, import_id, $3)
$$;

revoke execute on function public.import_contacts(uuid, uuid, jsonb) from public, anon;
grant  execute on function public.import_contacts(uuid, uuid, jsonb) to authenticated, service_role, lastcall_admin;
comment on function public.import_contacts(uuid, uuid, jsonb) is 'Import the next rows of a file into a call batch.';

-- file: api/finish_import.sql 4ed085e033a8044ca3f8f4c0f72032a91b5a690320059eea706c98d8ffaa9703
-- Finish an import whose rows are all there. The batch that it made is dialed from the next run of process_batches on, or
-- from its scheduled_for on, unless somebody resumed or paused it meanwhile. Left without any contact it stays
-- paused, says so in error_message, and the answer is no success (code no_contacts).
-- Returns the answer to the import; once more: the same. Raises PT401, PT403 (of no agency; not an owner or admin), PT404 (no
-- such batch or import of the agency), PT400 (batch completed or cancelled meanwhile).
-- Contract: uploadCSV, for the keys of batch.
create or replace function private.finish_import(p_agency_id uuid, p_batch_id uuid, p_import_id uuid)
returns jsonb
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.require_admin(p_agency_id);
  v_batch    public.call_batches;
  v_after    public.call_batches;
  v_import   public.batch_imports;
  v_is_empty boolean;
begin
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_import := private.find_import(p_agency_id, p_batch_id, p_import_id);
  if v_import.answer is not null then
    return v_import.answer;
  end if;
  if v_batch.status in ('completed', 'cancelled') then
    raise sqlstate 'PT400' using message = format('Batch is already %s', v_batch.status),
      detail = format('{"code": "batch_already_%s"}', v_batch.status);
  end if;

  v_is_empty := v_import.held_at is not null and v_batch.total_contacts = 0;
  v_after := v_batch;
  if v_import.held_at is not null then
    update public.call_batches b
       set status = case when b.status <> 'paused' or b.paused_at <> v_import.held_at or v_is_empty then b.status
                         when b.scheduled_for is null then 'pending'
                         else 'scheduled' end::public.batch_status,
           paused_at = case when b.paused_at <> v_import.held_at or v_is_empty then b.paused_at end,
           error_message = case when v_is_empty then 'No contact of the imported file can be called' end
     where b.agency_id = p_agency_id and b.id = p_batch_id
    returning b.* into v_after;
  end if;

  v_import.answer := jsonb_build_object(
    'success', not v_is_empty,
    'batch_id', v_after.id,
    'import_id', v_import.id,
    'created', v_import.held_at is not null,
    'status', v_after.status,
    'total_contacts', v_after.total_contacts,
    'added', v_import.added,
    'duplicates', v_import.duplicates,
    'do_not_call', v_import.do_not_call,
    'invalid', v_import.invalid,
    'error_count', v_import.invalid,
    'errors', (
      select coalesce(jsonb_agg(jsonb_build_object('row', e.row_number, 'phone_number', e.phone_number, 'error', e.error)
                                order by e.row_number), '[]')
        from (select r.*
                from public.import_errors r
               where r.agency_id = p_agency_id and r.import_id = p_import_id
               order by r.row_number
               limit 100) e),
    'batch', jsonb_build_object(
      '_id', coalesce(v_after.external_id, v_after.id::text),
      'batchName', v_after.name,
      'callingNumbers', coalesce(v_after.calling_numbers, array_remove(array[v_after.from_number], null)),
      'totalCalls', v_after.total_contacts))
    || case when v_is_empty then jsonb_build_object('error', v_after.error_message, 'code', 'no_contacts') else '{}' end;
  update public.batch_imports i
     set finished_at = clock_timestamp(),
         answer = v_import.answer
   where i.agency_id = p_agency_id and i.id = p_import_id;
  perform private.record_event(p_agency_id, v_batch, v_actor, 'finish_import', v_after.status, v_import.added);
  return v_import.answer;
end;
$$;

revoke execute on function private.finish_import(uuid, uuid, uuid) from public;
grant  execute on function private.finish_import(uuid, uuid, uuid) to authenticated, service_role, lastcall_admin;
comment on function private.finish_import(uuid, uuid, uuid) is 'public.finish_import, for a batch of a known agency.';

create or replace function public.finish_import(batch_id uuid default null, import_id uuid default null)
returns jsonb
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.finish_import(private.find_batch_agency(batch_id), batch_id, import_id)
$$;

revoke execute on function public.finish_import(uuid, uuid) from public, anon;
grant  execute on function public.finish_import(uuid, uuid) to authenticated, service_role, lastcall_admin;
comment on function public.finish_import(uuid, uuid) is 'Finish an import whose rows are all there.';

-- file: api/start_batch.sql f343da50183bd8b06170dd241c59057c550d2bf3d2cec30bce9625a1da8f0e38
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

-- file: api/retry_batch.sql 4c1a55217503a94cfc58fa85c9e629a346270dab5601c22776cb9a5191fa3977
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
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.retry_batch(
    private.find_batch_agency(batch_id), batch_id, outcomes, scheduled_for, idempotency_key, reason)
$$;

revoke execute on function public.retry_batch(uuid, text[], timestamptz, text, text) from public, anon;
grant  execute on function public.retry_batch(uuid, text[], timestamptz, text, text) to authenticated, service_role, lastcall_admin;
comment on function public.retry_batch(uuid, text[], timestamptz, text, text) is
  'Dial the failed contacts of a call batch again, as a new batch.';

-- file: api/cancel_batch.sql f82cb4ae51151dbadb5a24db36ed694bb96cd0db6062ce1f08c9f4ee43cdee5f
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
    'Batch cancelled. In-progress calls will complete but no new calls will be initiated.'::text);
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

-- file: api/stop_batch.sql 99c48c69472eff930094f387cddf1aa9fd81321b9488f2977f071f4bdd7da544
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

  v_result := row(p_given_id, 'stopped'::public.batch_status, 0, 0, v_batch.in_progress);
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

-- file: api/pause_batch.sql 075ba9f95a2409bf9b18cb5bc590728e0c6f89cebbf1b89086d1c0aee2ed23b8
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
    'Batch paused. In-progress calls will continue until they complete.'::text);
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

-- file: api/resume_batch.sql c1db78bac74ddf50406a3345008bf4acb3f9bbbe5a9a78602102132fb90a2aa6
-- Go on with a paused or stopped batch: it is scheduled again when its time is still to come, or else
-- processing at once. A batch that was ended early goes on with what was added since.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such batch
-- of the agency), PT400 (neither paused nor stopped), PT409 (idempotency key reused).
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
  v_now     timestamptz;
  v_request jsonb := jsonb_build_object(
    'procedure', 'resume_batch', 'batch_id', p_batch_id, 'reason', p_reason, 'actor', v_actor.id);
  v_answer  jsonb;
  v_result  public.resume_batch_result;
begin
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  if v_batch.status not in ('paused', 'stopped') then
    raise sqlstate 'PT400' using message = format('Only a paused or stopped batch can be resumed; this one is %s', v_batch.status),
      detail = '{"code": "batch_not_resumable"}';
  end if;

  if v_batch.scheduled_for > v_now then
    v_result := row(true, v_batch.id, 'scheduled'::public.batch_status,
      'Batch scheduled to resume at ' || to_char(v_batch.scheduled_for at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'));
  else
    v_result := row(true, v_batch.id, 'processing'::public.batch_status,
      'Batch resumed. The processor will start making calls on the next run.'::text);
  end if;
  update public.call_batches b
     set status = v_result.status,
         paused_at = null,
         stopped_at = null,
         started_at = case when v_result.status = 'processing' then coalesce(b.started_at, v_now) else b.started_at end,
         skip_remaining = false,
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

-- file: api/rotate_webhook_secret.sql 3ef553943fc5fa018e226844d83899a7f33c2bcef72b34ed0f41ed33770c81b2
-- Give an agency a new webhook secret, the first one too. It is shown this once. Those before it stay valid for
-- p_grace (0 to 30 days), time to hand the new one to the carrier: no event is refused meanwhile.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such agency, or not the
-- user's), PT400 (no agency named; grace out of range).
create or replace function private.rotate_webhook_secret(p_agency_id uuid, p_grace interval)
returns public.rotate_webhook_secret_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_agency_id uuid := private.find_admin_agency(p_agency_id);
  v_secret    text := private.new_webhook_secret();
  v_now       timestamptz;
begin
  if v_agency_id is null then
    raise sqlstate 'PT400' using message = 'agency_id is required',
      detail = '{"code": "agency_id_required"}';
  end if;
  if p_grace is null or p_grace not between interval '0' and interval '30 days' then
    raise sqlstate 'PT400' using message = 'grace must be 0 to 30 days',
      detail = '{"code": "grace_out_of_range"}';
  end if;

  -- Of two at once, the second one sees the first one's secret.
  perform from public.agencies a where a.id = v_agency_id for no key update;
  v_now := clock_timestamp();
  delete from private.webhook_secrets s
   where s.agency_id = v_agency_id and s.expires_at <= v_now;
  update private.webhook_secrets s
     set expires_at = least(s.expires_at, v_now + p_grace)
   where s.agency_id = v_agency_id;
  insert into private.webhook_secrets (agency_id, secret) values (v_agency_id, v_secret);
  return row(true, v_agency_id, v_secret);
end;
$$;

revoke execute on function private.rotate_webhook_secret(uuid, interval) from public;
grant  execute on function private.rotate_webhook_secret(uuid, interval) to authenticated, service_role, lastcall_admin;
comment on function private.rotate_webhook_secret(uuid, interval) is 'public.rotate_webhook_secret.';

-- agency_id: a user may leave it out.
create or replace function public.rotate_webhook_secret(agency_id uuid default null, grace interval default '1 day')
returns public.rotate_webhook_secret_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.rotate_webhook_secret(agency_id, grace)
$$;

revoke execute on function public.rotate_webhook_secret(uuid, interval) from public, anon;
grant  execute on function public.rotate_webhook_secret(uuid, interval) to authenticated, service_role, lastcall_admin;
comment on function public.rotate_webhook_secret(uuid, interval) is
  'Give an agency a new webhook secret, shown this once; the former ones stay valid for a while.';

-- file: api/ingest_webhook.sql 9bde8747f89812ce122574c744836d6db9825e3ad228da06ad085849ccdfefb8
-- Store what a carrier reports, once, and answer at once: process_webhook_queue applies it.
-- p_body: to the byte as it came, for the signature is over it. p_headers: a JSON object, names in lower case.
-- An event that is told again gets the same answer again. Its id is webhook-id, or else made of the body: Ultravox's
-- signature does not cover that header, so that a replay could name another id, or the id of an event to come. One of a type that is not known is stored as ignored:
-- carriers give up endpoints that refuse.
-- This is the one procedure for callers without a token. One who cannot show a secret of the agency changes nothing
-- and learns nothing, not even whether there is such an agency.
-- Raises PT413 (a body over 256 KiB), PT401 (see verify_webhook), PT400 (no such event).
-- Contract: webhook-ingest.
create or replace function private.ingest_webhook(
  p_agency_id uuid, p_body text, p_headers jsonb, p_path_secret text)
returns public.ingest_webhook_result
language plpgsql volatile
security definer  -- the caller may read and write nothing
set search_path = pg_catalog, pg_temp
as $$
declare
  v_payload         jsonb;
  v_event_type      text;
  v_carrier_call_id text;
  v_event_id        text;
  v_is_known        boolean;
begin
  if octet_length(p_body) > 262144 then
    raise sqlstate 'PT413' using message = 'Body must have at most 262144 bytes',
      detail = '{"code": "body_too_large"}';
  end if;
  if not private.verify_webhook(p_agency_id, p_body, p_headers, p_path_secret) then
    raise sqlstate 'PT401' using message = 'Invalid webhook signature or secret',
      detail = '{"code": "webhook_unauthorized"}';
  end if;

  begin
    v_payload := p_body::jsonb;
  exception when data_exception or statement_too_complex then
    null;  -- no event, below
  end;
  v_event_type := case when jsonb_typeof(v_payload -> 'event') = 'string' then v_payload ->> 'event' end;
  v_is_known := v_event_type in ('call.started', 'call.joined', 'call.ended');
  v_carrier_call_id := case when jsonb_typeof(v_payload #> '{call,callId}') = 'string' then v_payload #>> '{call,callId}' end;
  v_event_id := coalesce(case when p_headers ->> 'webhook-signature' is not null
                                or p_headers ->> 'x-ultravox-webhook-signature' is null  -- as in verify_webhook
                              then p_headers ->> 'webhook-id' end,
                         v_carrier_call_id || ' ' || v_event_type,
                         encode(sha256(convert_to(p_body, 'UTF8')), 'hex'));
  if coalesce(length(v_event_type) not between 1 and 50, true)
     or length(v_event_id) not between 1 and 400
     or v_is_known and (coalesce(length(v_carrier_call_id) not between 1 and 255, true)
                        or jsonb_typeof(v_payload #> '{call,created}') is distinct from 'string') then
    raise sqlstate 'PT400' using
      message = 'Body must be a webhook event: event, and call with callId and created',
      detail = '{"code": "webhook_invalid"}';
  end if;

  insert into public.webhook_queue (
    agency_id, event_id, event_type, payload, status, error_message, processed_at, next_retry_at)
  values (
    p_agency_id, v_event_id, v_event_type, v_payload,
    case when v_is_known then 'pending' else 'ignored' end::public.webhook_status,
    case when not v_is_known then 'Not an event to apply' end,
    case when not v_is_known then clock_timestamp() end,
    case when v_is_known then clock_timestamp() end)
  on conflict (agency_id, event_id) do nothing;
  return row(true, v_event_id);
end;
$$;

revoke execute on function private.ingest_webhook(uuid, text, jsonb, text) from public;
grant  execute on function private.ingest_webhook(uuid, text, jsonb, text) to anon, service_role, lastcall_admin;
comment on function private.ingest_webhook(uuid, text, jsonb, text) is 'public.ingest_webhook.';

create or replace function public.ingest_webhook(
  agency_id uuid, body text, headers jsonb default '{}', path_secret text default null)
returns public.ingest_webhook_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.ingest_webhook(agency_id, body, headers, path_secret)
$$;

revoke execute on function public.ingest_webhook(uuid, text, jsonb, text) from public, authenticated;
grant  execute on function public.ingest_webhook(uuid, text, jsonb, text) to anon, service_role, lastcall_admin;
comment on function public.ingest_webhook(uuid, text, jsonb, text) is 'Store what a carrier reports, if it is signed.';

-- file: api/replay_webhooks.sql 96db3d07c1d0ffcf49ecc19801bf743ea42f6c1e2e29ae9faccf380a8dcfbcc3
-- Have dead events applied again, as if they had just come in: of an agency, and of p_ids where given.
-- Those that are not dead stay as they are, so that it can be repeated. Returns how many were dead.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such agency, or not the
-- user's), PT400 (neither an agency nor ids).
create or replace function private.replay_webhooks(p_agency_id uuid, p_ids bigint[])
returns integer
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_agency_id uuid := private.find_admin_agency(p_agency_id);
  v_replayed  integer;
begin
  if v_agency_id is null and p_ids is null then
    raise sqlstate 'PT400' using message = 'agency_id or ids is required',
      detail = '{"code": "agency_id_required"}';
  end if;
  update public.webhook_queue q
     set status = 'pending',
         attempts = 0,
         error_message = null,
         processed_at = null,
         next_retry_at = clock_timestamp()
   where q.status = 'dead' and (v_agency_id is null or q.agency_id = v_agency_id)
     and (p_ids is null or q.id = any (p_ids));
  get diagnostics v_replayed = row_count;
  return v_replayed;
end;
$$;

revoke execute on function private.replay_webhooks(uuid, bigint[]) from public;
grant  execute on function private.replay_webhooks(uuid, bigint[]) to authenticated, service_role, lastcall_admin;
comment on function private.replay_webhooks(uuid, bigint[]) is 'public.replay_webhooks.';

-- agency_id: a user may leave it out.
create or replace function public.replay_webhooks(agency_id uuid default null, ids bigint[] default null)
returns integer
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.replay_webhooks(agency_id, ids)
$$;

revoke execute on function public.replay_webhooks(uuid, bigint[]) from public, anon;
grant  execute on function public.replay_webhooks(uuid, bigint[]) to authenticated, service_role, lastcall_admin;
comment on function public.replay_webhooks(uuid, bigint[]) is 'Have dead webhook events applied again.';

-- file: dialer/claim_contacts.sql 5e04368a0f521386cd3024bc685525bdbc63c4fedee2800233f82322ef0bedce
-- Claim the next contacts of one batch under a lease of p_lease_seconds, at most
-- p_max_contacts, and no more than the batch's max_concurrent and calls_per_minute leave
-- room for. First those that came back and are due, then the others in dial order; outside the
-- batch's calling hours only those that are due and have a time zone of their own.
-- Returns nothing, without waiting, when someone else holds the batch: claimers never queue
-- up in front of a cancel.
create or replace function private.claim_batch(
  p_agency_id uuid, p_batch_id uuid, p_max_contacts integer, p_lease_seconds integer)
returns setof public.claimed_contact
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- Plans that are right for any batch. What statistics suggest is not, when they are of an empty
-- table or do not know this batch: then each call would read all of it.
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_batch       public.call_batches;
  v_agent       public.agent_mappings;
  v_now         timestamptz;
  v_expires_at  timestamptz;
  v_call_ids    constant regclass := pg_get_serial_sequence('public.calls', 'id')::regclass;
  v_opens_at    timestamptz;
  v_limit       integer;
  v_recent      timestamptz[];
  v_due         bigint[];
  v_turns       integer;
  v_in_turn     bigint[];
  v_first       bigint;
  v_last        bigint;
begin
  select b.* into v_batch
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id and b.status = 'processing'
     for no key update skip locked;
  if not found then
    return;
  end if;
  v_now := clock_timestamp();
  v_expires_at := v_now + make_interval(secs => p_lease_seconds);
  v_limit := greatest(least(p_max_contacts, v_batch.max_concurrent - v_batch.queued - v_batch.in_progress), 0);

  if v_batch.calls_per_minute is not null and v_limit > 0 then
    v_recent := array(
      select r.created_at
        from (select c.created_at
                from public.calls c
               where c.agency_id = p_agency_id and c.batch_id = p_batch_id
               order by c.agency_id desc, c.batch_id desc, c.id desc
               limit v_batch.calls_per_minute) r
       -- A call from a time to come is of a clock that stepped back.
       where r.created_at between v_now - interval '1 minute' and v_now + interval '1 minute'
       order by r.created_at);
    if cardinality(v_recent) >= v_batch.calls_per_minute then
      update public.call_batches b
         set next_claim_at = v_recent[1] + interval '1 minute'
       where b.agency_id = p_agency_id and b.id = p_batch_id;
      return;
    end if;
    v_limit := least(v_limit, v_batch.calls_per_minute - cardinality(v_recent));
  end if;
  if v_limit = 0 then
    return;
  end if;
  select a.* into v_agent
    from public.agent_mappings a
   where a.agency_id = p_agency_id and a.id = v_batch.agent_mapping_id;
  v_opens_at := private.next_calling_time(
    v_batch.calling_start, v_batch.calling_end, v_batch.allowed_days, v_batch.timezone, v_now);

  v_due := array(
    select c.id
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id
       and c.due_at <= v_now and c.status in ('pending', 'scheduled')
       and (v_opens_at = v_now or c.timezone is not null)
     order by c.due_at
     limit v_limit);
  v_turns := case when v_opens_at = v_now then v_limit - cardinality(v_due) else 0 end;
  v_in_turn := array(
    select c.id
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id > v_batch.claim_cursor
       and c.due_at is null and c.status in ('pending', 'scheduled')
     order by c.agency_id, c.batch_id, c.id
     limit v_turns);

  -- By runs of neighbouring ids, each a range of the primary key: "= any" and a join can be planned
  -- to read the whole batch.
  for v_first, v_last in
    select min(i.id), max(i.id)
      from (select u.id, u.id - row_number() over (order by u.id) as run
              from unnest(v_due || v_in_turn) as u (id)) i
     group by i.run
     order by 1
  loop
    return query
      with claimed as (
        update public.campaign_contacts c
           set status = 'queued',
               due_at = null
         where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id between v_first and v_last
        returning c.id, c.phone_number, (c.attempts + 1)::smallint as attempt),
      numbered as materialized (
        select nextval(v_call_ids) as call_id, n.*
          from (select * from claimed c order by c.id) n),
      leased as (
        insert into public.calls (agency_id, batch_id, id, contact_id, attempt, created_at, lease_expires_at)
        select p_agency_id, p_batch_id, n.call_id, n.id, n.attempt, v_now, v_expires_at
          from numbered n)
      select p_agency_id, p_batch_id, n.call_id, n.id, n.phone_number,
             coalesce(v_batch.calling_numbers[1 + n.call_id % cardinality(v_batch.calling_numbers)],
                      v_batch.from_number),
             v_batch.agent_mapping_id, n.attempt,
             coalesce((select jsonb_strip_nulls(jsonb_build_object(
                                'first_name', d.first_name, 'last_name', d.last_name, 'email', d.email,
                                'company', d.company, 'title', d.title)) || d.custom_data
                         from public.contact_data d
                        where d.agency_id = p_agency_id and d.batch_id = p_batch_id
                          and d.contact_id = n.id), '{}'),
             v_expires_at,
             v_agent.ultravox_agent_id, v_agent.max_duration_seconds, v_agent.recording_enabled
        from numbered n
       order by n.call_id;
  end loop;

  update public.call_batches b
     set queued = b.queued + cardinality(v_due) + cardinality(v_in_turn),
         claim_cursor = coalesce(
           case when cardinality(v_in_turn) < v_turns then (
             -- None is left in turn: do not look through those that are due or done again.
             select c.id
               from public.campaign_contacts c
              where c.agency_id = p_agency_id and c.batch_id = p_batch_id
              order by c.agency_id desc, c.batch_id desc, c.id desc
              limit 1)
           else v_in_turn[cardinality(v_in_turn)] end, b.claim_cursor),
         last_claimed_at = v_now,
         -- All are claimed: nothing to look for until one is due, comes back, or the calling hours begin.
         next_claim_at = case
           when cardinality(v_due) + cardinality(v_in_turn) = v_limit then b.next_claim_at
           when v_opens_at = v_now then (
             select min(c.due_at)
               from public.campaign_contacts c
              where c.agency_id = p_agency_id and c.batch_id = p_batch_id
                and c.due_at is not null and c.status in ('pending', 'scheduled'))
           else least(v_opens_at, (
             select min(c.due_at)
               from public.campaign_contacts c
              where c.agency_id = p_agency_id and c.batch_id = p_batch_id
                and c.due_at is not null and c.timezone is not null and c.status in ('pending', 'scheduled')))
         end
   where b.agency_id = p_agency_id and b.id = p_batch_id;
end;
$$;

revoke execute on function private.claim_batch(uuid, uuid, integer, integer) from public;
comment on function private.claim_batch(uuid, uuid, integer, integer) is 'Claim the next contacts of one batch.';

-- Claim the next contacts to call, all of one batch: of the batches that have something to
-- claim, the one that was served longest ago, so that a huge batch takes turns with a small one.
-- max_contacts: 1 to 1000. lease_seconds: 1 to 3600; start_call must come before it ends.
-- batch_id: only this batch. Returns nothing when there is nothing to claim now.
-- Raises PT401, PT403 (not a service or console), PT400 (a number out of range).
create or replace function private.claim_contacts(p_max_contacts integer, p_lease_seconds integer, p_batch_id uuid)
returns setof public.claimed_contact
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now   timestamptz := clock_timestamp();
  v_batch record;
begin
  perform private.require_service();
  if pg_current_xact_id_if_assigned() is null then
    -- A claim that a crash takes back has done nothing: start_call lets no call through whose lease is
    -- gone, and its own commit, which is waited for, makes the lease durable with it. So nobody waits for the
    -- disk with the batch locked. Not in a transaction that has changed something before.
    perform set_config('synchronous_commit', 'off', true);
  end if;
  if p_max_contacts is null or p_max_contacts not between 1 and 1000
     or p_lease_seconds is null or p_lease_seconds not between 1 and 3600 then
    raise sqlstate 'PT400' using message = 'max_contacts must be 1 to 1000 and lease_seconds 1 to 3600',
      detail = '{"code": "claim_out_of_range"}';
  end if;

  for v_batch in
    select b.agency_id, b.id
      from public.call_batches b
     where b.status = 'processing'
       and b.next_claim_at <= v_now
       and (b.max_concurrent is null or b.queued + b.in_progress < b.max_concurrent)
       and (p_batch_id is null or b.id = p_batch_id)
     -- A claim at a time to come is of a clock that stepped back.
     order by case when b.last_claimed_at <= v_now + interval '1 minute' then b.last_claimed_at end nulls first,
              b.created_at
     limit 50  -- those that turn out to have reached their rate stay locked until the claim commits
  loop
    return query select * from private.claim_batch(v_batch.agency_id, v_batch.id, p_max_contacts, p_lease_seconds);
    exit when found;
  end loop;
end;
$$;

revoke execute on function private.claim_contacts(integer, integer, uuid) from public;
grant  execute on function private.claim_contacts(integer, integer, uuid) to service_role, lastcall_admin;
comment on function private.claim_contacts(integer, integer, uuid) is 'public.claim_contacts.';

create or replace function public.claim_contacts(
  max_contacts integer default 10, lease_seconds integer default 60, batch_id uuid default null)
returns setof public.claimed_contact
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select * from private.claim_contacts(max_contacts, lease_seconds, batch_id)
$$;

revoke execute on function public.claim_contacts(integer, integer, uuid) from public, anon, authenticated;
grant  execute on function public.claim_contacts(integer, integer, uuid) to service_role, lastcall_admin;
comment on function public.claim_contacts(integer, integer, uuid) is
  'Claim the next contacts to call, under a lease; batches take turns.';

-- file: dialer/start_call.sql afbebceb6574c31742e7feda2b5e6672922dc10c36599cbeb91a32fe327deb23
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

-- The last gate before the carrier: of these calls, let those through that may be placed now,
-- and count the attempt. A call passes while its batch is processing, its lease runs, the number is not on
-- the do-not-call list, the calling hours where the contact is have not ended, and the number has
-- calls left. The contact of a call that is withheld is skipped (do not call) or waits until it may be called.
-- Returns the ids of the calls to place; a call that is not among them must not be placed.
-- Since cancel and stop hold the same lock, whatever has not passed when they commit never will.
-- Raises PT401, PT403 (not a service or console), PT404.
create or replace function private.start_call(p_agency_id uuid, p_batch_id uuid, p_call_ids bigint[])
returns setof bigint
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_batch       public.call_batches;
  v_now         timestamptz;
  v_leased      private.leased_call[];
  v_withheld    record;
  v_skipped     integer := 0;
  v_delayed     integer := 0;
  v_due_at      timestamptz;
  v_call_ids    bigint[];
  v_contact_ids bigint[];
  v_first       bigint;
  v_last        bigint;
begin
  perform private.require_service();
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  if v_batch.status <> 'processing' then
    return;
  end if;

  v_leased := array(
    select (k.id, k.contact_id, c.phone_number, c.timezone)::private.leased_call
      from (select distinct u.id from unnest(p_call_ids) as u (id)) u
     -- Each by its key: a join can be planned to read the whole batch.
     cross join lateral (
       select k.id, k.contact_id
         from public.calls k
        where k.agency_id = p_agency_id and k.batch_id = p_batch_id and k.id = u.id
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
           started_at = v_now
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id
       -- The calls of one claim are neighbours in their batch.
       and c.id between v_first and v_last and c.id = any (p_call_ids)
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
         next_claim_at = case when v_delayed > 0 then least(b.next_claim_at, v_due_at) else b.next_claim_at end
   where b.agency_id = p_agency_id and b.id = p_batch_id
     and (v_call_ids is not null or v_skipped + v_delayed > 0);
  return query select unnest(v_call_ids);
end;
$$;

revoke execute on function private.start_call(uuid, uuid, bigint[]) from public;
grant  execute on function private.start_call(uuid, uuid, bigint[]) to service_role, lastcall_admin;
comment on function private.start_call(uuid, uuid, bigint[]) is 'public.start_call, for a batch of a known agency.';

-- The door to private.start_call. call_ids: as claimed, all of batch_id.
create or replace function public.start_call(batch_id uuid, call_ids bigint[])
returns setof bigint
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.start_call(private.find_batch_agency(batch_id), batch_id, call_ids)
$$;

revoke execute on function public.start_call(uuid, bigint[]) from public, anon, authenticated;
grant  execute on function public.start_call(uuid, bigint[]) to service_role, lastcall_admin;
comment on function public.start_call(uuid, bigint[]) is
  'The last gate before the carrier: returns the calls that may be placed now.';

-- file: dialer/confirm_call.sql c6233eb1c8defaff0d04d548546b959503fba5a096ef5af8ee35c374a016df81
-- Note that the carrier has these calls of one batch: its id of each, and that an unknown one is in progress.
-- p_confirmed: a JSON array of objects with call_id and carrier_call_id (text).
-- Returns the ids of the calls that were not over yet.
-- Raises PT401, PT403 (not a service or console), PT404, PT400 (not such an array).
create or replace function private.confirm_call(p_agency_id uuid, p_batch_id uuid, p_confirmed jsonb)
returns setof bigint
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_confirmed record;
begin
  perform private.require_service();
  if jsonb_typeof(p_confirmed) is distinct from 'array' or exists (
       select from jsonb_array_elements(p_confirmed) as g (confirmed)
        where jsonb_typeof(g.confirmed) <> 'object'
           or jsonb_typeof(g.confirmed -> 'call_id') is distinct from 'number'
           or g.confirmed ->> 'call_id' !~ '^[0-9]{1,18}$'
           or jsonb_typeof(g.confirmed -> 'carrier_call_id') is distinct from 'string') then
    raise sqlstate 'PT400' using message = 'confirmed must be an array of objects with a call_id and a carrier_call_id',
      detail = '{"code": "confirmed_invalid"}';
  end if;

  perform private.lock_batch(p_agency_id, p_batch_id);
  for v_confirmed in
    select r.call_id, r.carrier_call_id from jsonb_to_recordset(p_confirmed) as r (call_id bigint, carrier_call_id text)
  loop
    return query
      update public.calls c
         set status = 'in_progress',
             carrier_call_id = coalesce(c.carrier_call_id, v_confirmed.carrier_call_id)
       where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_confirmed.call_id
         and c.status::text in ('in_progress', 'unknown')  -- as text: as in finish_call
      returning c.id;
  end loop;
end;
$$;

revoke execute on function private.confirm_call(uuid, uuid, jsonb) from public;
grant  execute on function private.confirm_call(uuid, uuid, jsonb) to service_role, lastcall_admin;
comment on function private.confirm_call(uuid, uuid, jsonb) is 'public.confirm_call, for a batch of a known agency.';

-- The door to private.confirm_call. confirmed: all of batch_id.
create or replace function public.confirm_call(batch_id uuid, confirmed jsonb)
returns setof bigint
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.confirm_call(private.find_batch_agency(batch_id), batch_id, confirmed)
$$;

revoke execute on function public.confirm_call(uuid, jsonb) from public, anon, authenticated;
grant  execute on function public.confirm_call(uuid, jsonb) to service_role, lastcall_admin;
comment on function public.confirm_call(uuid, jsonb) is 'Note that the carrier has these calls.';

-- file: dialer/finish_call.sql aee15bb5252d6270ea2783d5533fcc4ee9f4214ef91648ee0cfa42134b83d6c4
-- Record the results of calls of one batch, in a group: one change of the batch's counters.
-- p_results: a JSON array of objects with call_id, status (completed, failed, unknown or missing) and,
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
-- A result for a call that is not in progress (told twice, never started) changes nothing.
-- Returns the ids of the calls that it changed.
-- Raises PT401, PT403 (not a service or console), PT404, PT400 (not such an array).
create or replace function private.finish_call(p_agency_id uuid, p_batch_id uuid, p_results jsonb)
returns setof bigint
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
begin
  perform private.require_service();
  if jsonb_typeof(p_results) is distinct from 'array' or exists (
       select from jsonb_array_elements(p_results) as r (result)
        where jsonb_typeof(r.result) <> 'object'
           or jsonb_typeof(r.result -> 'call_id') is distinct from 'number'
           or r.result ->> 'call_id' !~ '^[0-9]{1,18}$'
           or jsonb_typeof(r.result -> 'status') is distinct from 'string'
           or r.result ->> 'status' not in ('completed', 'failed', 'unknown', 'missing')
           or jsonb_typeof(r.result -> 'duration_seconds') not in ('number', 'null')
           or jsonb_typeof(r.result -> 'counted') not in ('boolean', 'null')) then
    raise sqlstate 'PT400' using message = 'results must be an array of objects with a call_id, a status completed, failed, unknown or missing, numbers as durations, and counted true or false',
      detail = '{"code": "results_invalid"}';
  end if;

  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  v_retry_at := v_now + make_interval(secs => v_batch.retry_delay_seconds);
  for v_result in
    select r.call_id, r.carrier_call_id, r.notes,
           r.status = 'missing' as is_missing,
           case when r.status <> 'missing' then r.status
                when r.carrier_call_id is null then 'failed'
                else 'completed' end::public.call_status as status,
           case when r.status <> 'missing' then r.outcome
                when r.carrier_call_id is null then 'not_placed'
                else 'lost' end as outcome,
           r.status = 'failed' and not coalesce(r.counted, true) as is_no_attempt,
           case when r.duration_seconds is not null
             then least(greatest(round(r.duration_seconds), 0), 2147483647)::integer end as duration_seconds
      from jsonb_to_recordset(p_results) as r (
        call_id bigint, status text, outcome text, duration_seconds numeric,
        carrier_call_id text, notes text, counted boolean)
  loop
    update public.calls c
       set status = v_result.status,
           ended_at = case when v_result.status <> 'unknown' then v_now end,
           outcome = v_result.outcome,
           duration_seconds = v_result.duration_seconds,
           carrier_call_id = coalesce(v_result.carrier_call_id, c.carrier_call_id)
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_result.call_id
       -- As text: not by the index of open calls, which would read all those of the batch.
       and c.status::text in ('in_progress', 'unknown') and c.status <> v_result.status
       and (not v_result.is_missing or c.carrier_call_id is not distinct from v_result.carrier_call_id)
    returning c.* into v_call;
    continue when not found;
    return next v_result.call_id;
    continue when v_result.status = 'unknown';

    select case when v_result.status = 'completed' then 'completed'
                when v_batch.status <> 'cancelled' and not v_batch.skip_remaining
                 and (v_result.is_no_attempt
                      or c.attempts < c.max_attempts
                     and (v_batch.retry_outcomes is null or v_result.outcome = any (v_batch.retry_outcomes)))
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
           outcome = v_result.outcome,
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
         next_claim_at = case when v_retried > 0 then least(b.next_claim_at, v_retry_at) else b.next_claim_at end
   where b.agency_id = p_agency_id and b.id = p_batch_id and v_completed + v_failed + v_retried > 0;
end;
$$;

revoke execute on function private.finish_call(uuid, uuid, jsonb) from public;
grant  execute on function private.finish_call(uuid, uuid, jsonb) to service_role, lastcall_admin;
comment on function private.finish_call(uuid, uuid, jsonb) is 'public.finish_call, for a batch of a known agency.';

-- The door to private.finish_call. results: all of batch_id.
create or replace function public.finish_call(batch_id uuid, results jsonb)
returns setof bigint
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.finish_call(private.find_batch_agency(batch_id), batch_id, results)
$$;

revoke execute on function public.finish_call(uuid, jsonb) from public, anon, authenticated;
grant  execute on function public.finish_call(uuid, jsonb) to service_role, lastcall_admin;
comment on function public.finish_call(uuid, jsonb) is 'Record the results of calls of one batch.';

-- file: dialer/release_expired_leases.sql 041817eda063c910cd3273d2a77da41f42a4e40b547f846d3460d8188cc5ca12
-- Give back the contacts of one batch that a dialer claimed and did not start in time, and
-- queued contacts that no lease holds. Returns how many.
-- Without waiting: a batch that someone else holds is left for the next time.
create or replace function private.release_batch_leases(p_agency_id uuid, p_batch_id uuid)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch    public.call_batches;
  v_now      timestamptz;
  v_leases   integer;
  v_released integer;
begin
  select b.* into v_batch
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id
     for no key update skip locked;
  if not found then
    return 0;
  end if;
  v_now := clock_timestamp();

  select count(*)::integer into v_leases
    from public.calls c
   where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.status = 'queued';
  v_released := private.release_queued(p_agency_id, p_batch_id, v_batch.claim_cursor,
    case when v_leases = 0 then 'infinity' else v_now end);
  if v_released > 0 or v_leases = 0 then
    update public.call_batches b
       -- Without a lease none is queued any more, whatever was counted: do not come back for it.
       set queued = case when v_leases = 0 then 0 else b.queued - v_released end,
           next_claim_at = least(b.next_claim_at, v_now)
     where b.agency_id = p_agency_id and b.id = p_batch_id;
  end if;
  return v_released;
end;
$$;

revoke execute on function private.release_batch_leases(uuid, uuid) from public;
comment on function private.release_batch_leases(uuid, uuid) is 'Give back what one batch''s dialers did not start in time.';

-- Give back the contacts whose dialer let their lease run out, of at most 10 batches a run (these
-- stay locked until it commits): run it every few seconds, and again while it returns more than 0.
-- Returns how many contacts went back. Raises PT401, PT403 (not a service or console).
create or replace function private.release_expired_leases()
returns integer
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now      timestamptz := clock_timestamp();
  v_batch    record;
  v_released integer := 0;
begin
  perform private.require_service();
  for v_batch in
    select b.agency_id, b.id
      from public.call_batches b
     where b.status = 'processing' and b.queued > 0
       and (exists (select from public.calls c
                     where c.agency_id = b.agency_id and c.batch_id = b.id
                       and c.status = 'queued' and c.lease_expires_at <= v_now)
            or not exists (select from public.calls c
                            where c.agency_id = b.agency_id and c.batch_id = b.id and c.status = 'queued'))
     limit 10
  loop
    v_released := v_released + private.release_batch_leases(v_batch.agency_id, v_batch.id);
  end loop;
  return v_released;
end;
$$;

revoke execute on function private.release_expired_leases() from public;
grant  execute on function private.release_expired_leases() to service_role, lastcall_admin;
comment on function private.release_expired_leases() is 'public.release_expired_leases.';

create or replace function public.release_expired_leases()
returns integer
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.release_expired_leases()
$$;

revoke execute on function public.release_expired_leases() from public, anon, authenticated;
grant  execute on function public.release_expired_leases() to service_role, lastcall_admin;
comment on function public.release_expired_leases() is 'Give back contacts that were claimed and not started in time.';

-- file: dialer/process_batches.sql d433c96452e28e2f157ea0892423cda85d84a14a7680e80ba57c5cc6f595d332
-- Whether a batch being dialed seems to have nothing left to call: by its counters, or since the
-- last claim found nothing and nothing came back.
create or replace function private.has_nothing_left(p_batch public.call_batches)
returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select p_batch.status = 'processing' and p_batch.queued <= 0 and p_batch.in_progress <= 0
     and (p_batch.completed + p_batch.failed + p_batch.skipped >= p_batch.total_contacts
          or p_batch.next_claim_at is null)
$$;

revoke execute on function private.has_nothing_left(public.call_batches) from public;
comment on function private.has_nothing_left(public.call_batches) is 'Whether a batch being dialed seems to have nothing left to call.';

-- Complete a processing batch that has nothing left to call. The counters say when to look; the
-- contacts decide. A batch that awaits contacts is not over. One that neither the claim cursor nor a due time would find (it came in
-- by a plain insert, behind the cursor) is put back within reach. Returns whether it completed.
-- Reads the contacts before it takes the batch, so that nobody waits for the reading, and does
-- not wait itself: a batch that someone else holds is left for the next time.
create or replace function private.complete_batch(p_agency_id uuid, p_batch_id uuid, p_actor private.actor)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch public.call_batches;
  v_total integer;
  v_open  bigint;
begin
  select b.total_contacts into v_total
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  select min(c.id) into v_open
    from public.campaign_contacts c
   where c.agency_id = p_agency_id and c.batch_id = p_batch_id
     and c.status in ('pending', 'scheduled', 'queued', 'in_progress');

  select b.* into v_batch
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id and private.has_nothing_left(b)
     and b.total_contacts = v_total  -- none was added meanwhile
     for no key update skip locked;
  -- A statement of its own: it sees an import that began before the batch was taken.
  if not found or private.awaits_contacts(p_agency_id, p_batch_id) then
    return false;
  end if;
  if v_open is not null then
    update public.call_batches b
       set claim_cursor = least(b.claim_cursor, v_open - 1),
           next_claim_at = clock_timestamp()
     where b.agency_id = p_agency_id and b.id = p_batch_id;
    return false;
  end if;

  update public.call_batches b
     set status = 'completed',
         completed_at = clock_timestamp()
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  perform private.record_event(p_agency_id, v_batch, p_actor, 'complete', 'completed', 0);
  return true;
end;
$$;

revoke execute on function private.complete_batch(uuid, uuid, private.actor) from public;
comment on function private.complete_batch(uuid, uuid, private.actor) is 'Complete a batch that has nothing left to call.';

-- Move batches along: those with nothing left to call are completed; those that are due
-- (pending or scheduled, with contacts, and scheduled_for past or null) start processing,
-- oldest first. Those that wait for their next_claim_at are claimed of every 10 minutes all the same: a clock that
-- stepped back leaves times that nothing waits for. Run it every few seconds; safe when two run at once.
-- max_batches: the most that one run completes, the most that it wakes, and the most that it starts, 1 to 1000.
-- Raises PT401, PT403 (not a service or console), PT400 (a number out of range).
create or replace function private.process_batches(p_max_batches integer)
returns public.process_batches_result
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor  private.actor := private.require_service();
  v_now    timestamptz := clock_timestamp();
  v_result public.process_batches_result := (0, 0);
  v_live   record;
  v_batch  public.call_batches;
begin
  if p_max_batches is null or p_max_batches not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'max_batches must be 1 to 1000',
      detail = '{"code": "max_batches_out_of_range"}';
  end if;

  for v_live in
    select b.agency_id, b.id
      from public.call_batches b
     where b.status = 'processing' and private.has_nothing_left(b)
       and not private.awaits_contacts(b.agency_id, b.id)
     limit p_max_batches
  loop
    v_result.batches_completed := v_result.batches_completed
      + private.complete_batch(v_live.agency_id, v_live.id, v_actor)::integer;
  end loop;

  -- From here on, since these stay locked until the run commits.
  for v_live in
    select b.agency_id, b.id
      from public.call_batches b
     where b.status = 'processing' and b.next_claim_at > v_now
       -- The time of the last claim may be of the clock that stepped back.
       and (b.last_claimed_at between v_now - interval '10 minutes' and v_now + interval '1 minute') is not true
     limit p_max_batches
       for no key update skip locked
  loop
    update public.call_batches b
       set next_claim_at = v_now
     where b.agency_id = v_live.agency_id and b.id = v_live.id;
  end loop;
  for v_batch in
    select b.*
      from public.call_batches b
     where b.status in ('pending', 'scheduled') and coalesce(b.scheduled_for, '-infinity') <= v_now
       and exists (select from public.campaign_contacts c where c.agency_id = b.agency_id and c.batch_id = b.id)
     order by b.created_at
     limit p_max_batches
       for no key update skip locked
  loop
    update public.call_batches b
       set status = 'processing',
           started_at = coalesce(b.started_at, v_now)
     where b.agency_id = v_batch.agency_id and b.id = v_batch.id;
    perform private.record_event(v_batch.agency_id, v_batch, v_actor, 'process', 'processing', 0);
    v_result.batches_started := v_result.batches_started + 1;
  end loop;
  return v_result;
end;
$$;

revoke execute on function private.process_batches(integer) from public;
grant  execute on function private.process_batches(integer) to service_role, lastcall_admin;
comment on function private.process_batches(integer) is 'public.process_batches.';

create or replace function public.process_batches(max_batches integer default 100)
returns public.process_batches_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.process_batches(max_batches)
$$;

revoke execute on function public.process_batches(integer) from public, anon, authenticated;
grant  execute on function public.process_batches(integer) to service_role, lastcall_admin;
comment on function public.process_batches(integer) is
  'Start the batches that are due, complete those that have nothing left to call.';

-- file: private/waiting_for.sql cdcbc00e6c69562acbda21b4d33c47592b91d528454d08bcea9917841de44e06
-- Why no call of a batch may start at p_now, and the earliest time at which one may, where that is known.
-- Both null: it dials, or is over. Of several reasons the first:
--   contacts          none were added yet, or those that are there are done and an import has not finished
--   scheduled_for     its time is still to come
--   process           the next run of process_batches, which starts it, or completes it
--   resume            it is paused or stopped
--   results           none is left to claim; those queued and in progress may come back
--   calling_hours     outside its hours and days, and no contact with a time zone of its own is due
--   max_concurrent    as many are queued or in progress
--   calls_per_minute  as many calls were claimed in the last 60 seconds
--   retry             whoever is left waits for a time of the own: a retry, another due time, a number's limit
-- Reads calls_per_minute calls, and 1,000 due contacts, at most.
create or replace function private.waiting_for(p_batch public.call_batches, p_now timestamptz)
returns private.waiting
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_opens_at timestamptz := p_now;
  v_is_due   boolean;
  v_free_at  timestamptz;
begin
  if p_batch.status in ('paused', 'stopped') then
    return ('resume', null)::private.waiting;
  elsif p_batch.status in ('pending', 'scheduled') then
    return case when p_batch.scheduled_for > p_now then ('scheduled_for', p_batch.scheduled_for)::private.waiting
                when p_batch.total_contacts = 0 then ('contacts', null)::private.waiting
                else ('process', null)::private.waiting end;
  elsif p_batch.status <> 'processing' then
    return (null, null)::private.waiting;
  elsif private.has_nothing_left(p_batch) then
    return (case when private.awaits_contacts(p_batch.agency_id, p_batch.id) then 'contacts' else 'process' end,
            null)::private.waiting;
  elsif p_batch.next_claim_at is null
     or p_batch.queued + p_batch.in_progress + p_batch.completed + p_batch.failed + p_batch.skipped
        >= p_batch.total_contacts then
    return ('results', null)::private.waiting;
  end if;

  if p_batch.calling_start is not null or p_batch.allowed_days is not null then
    v_opens_at := private.next_calling_time(
      p_batch.calling_start, p_batch.calling_end, p_batch.allowed_days, p_batch.timezone, p_now);
  end if;
  if v_opens_at is distinct from p_now then
    if p_batch.next_claim_at > p_now then
      -- The last claim found none to call before next_claim_at, in whichever time zone.
      if v_opens_at is null or p_batch.next_claim_at <= v_opens_at then
        return ('calling_hours', p_batch.next_claim_at)::private.waiting;
      end if;
      return ('retry', p_batch.next_claim_at)::private.waiting;
    end if;
    select true into v_is_due
      from (select c.timezone, c.status
              from public.campaign_contacts c
             where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id and c.due_at <= p_now
             order by c.due_at
             limit 1000) c
     where c.timezone is not null and c.status in ('pending', 'scheduled')
     limit 1;
    if v_is_due is null then
      return ('calling_hours', v_opens_at)::private.waiting;
    end if;
  end if;

  if p_batch.queued + p_batch.in_progress >= p_batch.max_concurrent then
    return ('max_concurrent', null)::private.waiting;
  end if;
  select c.created_at + interval '1 minute' into v_free_at
    from public.calls c
   where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id
     and p_batch.calls_per_minute is not null
   order by c.agency_id desc, c.batch_id desc, c.id desc
  offset p_batch.calls_per_minute - 1
   limit 1;
  if v_free_at > p_now and v_free_at <= p_now + interval '2 minutes' then  -- as in claim_batch
    return ('calls_per_minute', v_free_at)::private.waiting;
  elsif p_batch.next_claim_at > p_now then
    return ('retry', p_batch.next_claim_at)::private.waiting;
  end if;
  return (null, null)::private.waiting;
end;
$$;

revoke execute on function private.waiting_for(public.call_batches, timestamptz) from public;
comment on function private.waiting_for(public.call_batches, timestamptz) is 'Why no call of a batch may start now.';

-- file: api/export_contacts.sql 279955047149de82c35294406f5e03a503ec41d00b552dcd7eb0e91e35bf956e
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
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.export_contacts(private.find_batch_agency(batch_id), batch_id, after, max_rows, contact_status)
$$;

revoke execute on function public.export_contacts(uuid, text, integer, public.contact_status) from public, anon;
grant  execute on function public.export_contacts(uuid, text, integer, public.contact_status) to authenticated, service_role, lastcall_admin;
comment on function public.export_contacts(uuid, text, integer, public.contact_status) is
  'The next contacts of a call batch, for an export in pages.';

-- file: dialer/process_webhook_queue.sql 409af2f16094e5e167ac669fac38e68466dbf14246a6b0b3805e4fda84ca25f2
-- An event to apply: to which call, and what it says.
-- What became of it.
-- Apply events to the calls of one batch, in a group: one change of the batch's counters.
-- Returns what became of each, or null, without waiting, when someone else holds the batch.
--   call.started, call.joined   the carrier has the call: confirm_call
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
    select private.confirm_call(p_agency_id, p_batch_id, coalesce((
      select jsonb_agg(jsonb_build_object('call_id', e.call_id, 'carrier_call_id', e.call ->> 'callId'))
        from unnest(p_events) e
       where e.event_type in ('call.started', 'call.joined')), '[]')));
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
           'carrier_call_id', f.call ->> 'callId',
           'status', case when f.joined is not null then 'completed' else 'failed' end,
           'outcome', case when f.joined is not null then 'answered'
                           when f.reason = 'unjoined' then 'no_answer'
                           else coalesce(f.reason, 'unknown') end,
           'duration_seconds', case when private.is_timestamp(f.joined) and private.is_timestamp(f.call ->> 'ended')
             then extract(epoch from (f.call ->> 'ended')::timestamptz - f.joined::timestamptz) end)), '[]')
    into v_first, v_results
    from (select distinct on (e.call_id) e.id, e.call_id, e.call, nullif(e.call ->> 'joined', '') as joined,
                 nullif(left(e.call ->> 'endReason', 50), '') as reason
            from unnest(p_events) e
           where e.event_type = 'call.ended' and e.id <> all (v_others)
           order by e.call_id, e.id) f;
  v_finished := array(select private.finish_call(p_agency_id, p_batch_id, v_results));

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
           array_agg((d.id, d.event_type, c.id, d.payload -> 'call')::private.webhook_event order by d.id) as events
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

-- file: dialer/purge_webhook_queue.sql 2192162255f80c5968cb8cf94a2c92ef9c9163bac62d26067b2c77e460365843
-- Throw away events that are done with (completed or ignored) since p_older_than, at most p_max_rows (1 to 100,000) a
-- run: run it daily, and again while it returns as many. Dead ones stay until they are replayed. An event that is told
-- again after that is stored again, and ignored: its call is over.
-- Raises PT401, PT403 (not a service or console), PT400 (out of range).
create or replace function private.purge_webhook_queue(p_older_than interval, p_max_rows integer)
returns integer
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before timestamptz := clock_timestamp() - p_older_than;
  v_purged integer;
begin
  perform private.require_service();
  if p_older_than is null or p_older_than < interval '1 hour'
     or p_max_rows is null or p_max_rows not between 1 and 100000 then
    raise sqlstate 'PT400' using message = 'older_than must be at least an hour and max_rows 1 to 100000',
      detail = '{"code": "purge_out_of_range"}';
  end if;
  delete from public.webhook_queue q
   using (select d.agency_id, d.id
            from public.webhook_queue d
           where d.status in ('completed', 'ignored') and d.processed_at < v_before
           limit p_max_rows
             for update skip locked) d
   where q.agency_id = d.agency_id and q.id = d.id;
  get diagnostics v_purged = row_count;
  return v_purged;
end;
$$;

revoke execute on function private.purge_webhook_queue(interval, integer) from public;
grant  execute on function private.purge_webhook_queue(interval, integer) to service_role, lastcall_admin;
comment on function private.purge_webhook_queue(interval, integer) is 'public.purge_webhook_queue.';

create or replace function public.purge_webhook_queue(
  older_than interval default '30 days', max_rows integer default 10000)
returns integer
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.purge_webhook_queue(older_than, max_rows)
$$;

revoke execute on function public.purge_webhook_queue(interval, integer) from public, anon, authenticated;
grant  execute on function public.purge_webhook_queue(interval, integer) to service_role, lastcall_admin;
comment on function public.purge_webhook_queue(interval, integer) is 'Throw away webhook events that are done with.';

-- file: dialer/list_open_calls.sql 0eafc69403ea1e7ccbc95afd4408bab0e1cc712a5b48a78658119a63c912eeb9
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
    return next (v_call.agency_id, v_call.batch_id, v_call.id, v_call.contact_id, v_call.status,
                 v_call.carrier_call_id, extract(epoch from v_now - v_call.started_at))::public.open_call;
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
