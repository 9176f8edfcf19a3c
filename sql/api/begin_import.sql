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
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
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
      -- The second of two equal requests at once has waited for the answer of the first.
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
