-- Who is in the way of this is not made to wait for long: it gives up, and is run again.
set local lock_timeout = '500ms';

-- file: private/commit_durably.sql c4cdeb0e3e726189fe0725da1b4b03532f2f04e2d6ddba5d4f8908f6be8d940d
-- Make the commit of this transaction wait for the disk and, where synchronous_standby_names is set, for the synchronous
-- standby's disk: an answer must outlast a failover. A stronger remote_apply stays.
-- Every promise to a caller comes through here, mostly by lock_batch and record_event.
create or replace function private.commit_durably()
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('synchronous_commit') in ('off', 'local', 'remote_write') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
end;
$$;

revoke execute on function private.commit_durably() from public;
comment on function private.commit_durably() is 'Make the commit of this transaction wait for disk and standby.';

-- The same for a transaction that repeats an answer and may change nothing. PostgreSQL waits only for a transaction
-- that wrote to the log: an empty message is enough.
create or replace function private.commit_repeat_durably()
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  perform private.commit_durably();
  perform pg_logical_emit_message(true, 'lastcall', '');
end;
$$;

revoke execute on function private.commit_repeat_durably() from public;
comment on function private.commit_repeat_durably() is 'Make the commit of a repeated answer wait for disk and standby.';

-- file: private/lock_batch.sql 53bfb9443a0a21ad34aa7e43974e6d89f9a6112663201b30ba6e043f0fa5acfb
-- The longest wait for a batch: the session's lock_timeout if it has one, or else 10 seconds for people and
-- 1 for the service, whose calls must be placed within seconds.
create or replace function private.longest_wait()
returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when current_setting('lock_timeout') <> '0' then current_setting('lock_timeout')
              when current_setting('role', true) = 'service_role' then '1s'
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
-- anything else of it: one lock, one order, no deadlock, and a status that holds.
-- The commit is durable, whatever the database's synchronous_commit is.
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
  perform private.commit_durably();
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

-- file: private/synchronous_standbys.sql 5df6a8821a1f96e257541f403ab49b4c17d6d91b3210551b760ac8ca40dd2151
-- How many synchronous standbys each commit waits for: 0 without synchronous_standby_names.
create or replace function private.required_standbys()
returns integer
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when s.names = '' then 0
              -- ANY 2 (a, b, c), FIRST 2 (a, b, c) or 2 (a, b, c); a mere list means 1.
              else coalesce(substring(s.names from '^\s*(?:[[:alpha:]]+\s+)?([0-9]+)\s*\(')::integer, 1) end
    from (select current_setting('synchronous_standby_names')) as s (names)
$$;

revoke execute on function private.required_standbys() from public;
comment on function private.required_standbys() is 'How many synchronous standbys each commit waits for.';

-- How many synchronous standbys have the log up to p_lsn on disk. Null where the owner of the core may not see the
-- standbys: `grant pg_read_all_stats` to the owner then.
create or replace function private.count_standbys(p_lsn pg_lsn)
returns integer
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select case when pg_has_role('pg_read_all_stats', 'usage') then (
           select count(*)::integer
             from pg_stat_get_wal_senders() w
            where w.sync_state in ('sync', 'quorum') and w.flush_lsn >= p_lsn) end
$$;

revoke execute on function private.count_standbys(pg_lsn) from public;
comment on function private.count_standbys(pg_lsn) is 'How many synchronous standbys have the log up to a position.';

-- file: private/refuse_status.sql 667133ccf62c778cd02d546cd5de4b978145b48c97c0a827e2732e3de30dd51f
-- Refuse a request because of a locked batch's status, once the synchronous standby has the status.
-- PostgreSQL shows a change, and lets go of its row, only when the standby has the change. Three events show a change
-- earlier: its wait is cancelled, its connection is terminated, the primary restarts. A failover undoes such a change.
-- A refusal commits nothing that could wait, so this function asks the standbys, for at most 2 seconds.
-- Raises PT400 (with p_message and p_code), PT503 (the standby has not confirmed the status).
create or replace function private.refuse_status(p_message text, p_code text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_required constant integer := private.required_standbys();
  v_lsn      constant pg_lsn := pg_current_wal_flush_lsn();  -- a visible commit is in the flushed log
  v_until    constant timestamptz := clock_timestamp() + interval '2 seconds';
  v_standbys integer;
begin
  while v_required > 0 loop
    v_standbys := private.count_standbys(v_lsn);
    exit when v_standbys >= v_required;
    if v_standbys is null or clock_timestamp() > v_until then
      raise sqlstate 'PT503' using
        message = case when v_standbys is null
                       then 'The synchronous standby cannot be seen: grant pg_read_all_stats to the owner of the procedures'
                       else 'The synchronous standby has not confirmed the status of the batch; try again' end,
        detail = '{"code": "not_confirmed", "retry_after": 2}';
    end if;
    perform pg_sleep(0.005);
  end loop;
  raise sqlstate 'PT400' using message = p_message, detail = jsonb_build_object('code', p_code)::text;
end;
$$;

revoke execute on function private.refuse_status(text, text) from public;
comment on function private.refuse_status(text, text) is 'Refuse a request because of the batch''s status, once that is durable.';

-- file: private/record_event.sql 4204fd88b9f166a1f76f52cd0538e337162f32775a68edfa1db42707f5e400aa
-- Write what was done to a batch into the audit trail, in the transaction that did it, and broadcast a change of
-- its status. p_batch is the batch as it was before. The commit is durable.
-- p_response is kept only with an idempotency key. Raises PT409 (the key already named another
-- request of the agency; the transaction is undone).
create or replace function private.record_event(
  p_agency_id uuid, p_batch public.call_batches, p_actor private.actor, p_action text,
  p_to_status public.batch_status, p_contacts integer,
  p_on_behalf_of uuid default null, p_reason text default null,
  p_idempotency_key text default null, p_request jsonb default null, p_response jsonb default null)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  perform private.commit_durably();
  insert into public.batch_events (
    agency_id, batch_id, action, actor_kind, actor_id, actor_role, on_behalf_of,
    from_status, to_status, contacts, reason, request_id, idempotency_key, request, response)
  values (
    p_agency_id, p_batch.id, p_action, p_actor.kind, p_actor.id, p_actor.db_role, p_on_behalf_of,
    p_batch.status, p_to_status, p_contacts, p_reason,
    left(nullif(current_setting('request.headers', true), '')::jsonb ->> 'x-request-id', 200),
    p_idempotency_key,
    case when p_idempotency_key is not null then p_request end,
    case when p_idempotency_key is not null then p_response end)
  -- Waits for a concurrent holder of the key to end.
  on conflict (agency_id, idempotency_key) where idempotency_key is not null do nothing;
  if not found then
    raise sqlstate 'PT409' using message = 'Idempotency-Key was used for another request',
      detail = '{"code": "idempotency_key_reused"}';
  end if;
  if p_batch.status is distinct from p_to_status then
    perform private.broadcast_status(p_agency_id, p_batch.id, p_action, p_batch.status, p_to_status, p_contacts);
  end if;
end;
$$;

revoke execute on function private.record_event(
  uuid, public.call_batches, private.actor, text, public.batch_status, integer, uuid, text, text, jsonb, jsonb)
  from public;
comment on function private.record_event(
  uuid, public.call_batches, private.actor, text, public.batch_status, integer, uuid, text, text, jsonb, jsonb)
  is 'Append to the audit trail.';

-- file: private/find_answer.sql 126c3c55cdc6ae8fd1e7f5e7781053fa13d8635bf437bd92208df3f3ec8256a9
-- The answer that this request got before under its idempotency key, or null: then do it.
-- Call it in a statement of its own with the batch locked: then of two equal requests at once
-- the second finds the first one's answer. The commit of a repeated answer is as durable as that of the first.
-- Raises PT400 (key too long), PT409 (the key named another request).
create or replace function private.find_answer(p_agency_id uuid, p_idempotency_key text, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_event record;
begin
  if p_idempotency_key is null then
    return null;
  end if;
  if length(p_idempotency_key) not between 1 and 255 then
    raise sqlstate 'PT400' using message = 'Idempotency-Key must have 1 to 255 characters',
      detail = '{"code": "idempotency_key_invalid"}';
  end if;
  select e.request, e.response into v_event
    from public.batch_events e
   where e.agency_id = p_agency_id and e.idempotency_key = p_idempotency_key;
  if found and v_event.request is distinct from p_request then
    raise sqlstate 'PT409' using message = 'Idempotency-Key was used for another request',
      detail = '{"code": "idempotency_key_reused"}';
  end if;
  if v_event.response is not null then
    perform private.commit_repeat_durably();
  end if;
  return v_event.response;
end;
$$;

revoke execute on function private.find_answer(uuid, text, jsonb) from public;
comment on function private.find_answer(uuid, text, jsonb) is 'The first answer to a repeated request.';

-- file: api/add_contacts.sql 88ebb8af9558572b4622e8c24859ab7fc492dd20991dee298c1e1d2d1df848d3

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
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
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

-- file: api/begin_import.sql ce76fbfeea35d60e211b123ac657fb28335ecc0278171c0383b1482853a6d33d
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

-- file: api/import_contacts.sql 99be77da25e953ae12b059a248483cb7e1ef2fb3936db8c25121019b2d528dbe
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
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
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

-- file: api/finish_import.sql 069401796249f1ab115d1d455bf3bb02b7174ecb26f1edc494998a94279018cc
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
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
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

-- file: api/start_batch.sql 9605f2eca6766d35c79dda2a1b79aab5025f614fb54f80322b2fc0f968a6c908

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
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
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

-- file: api/cancel_batch.sql 81b7dcdf9a7e5316bdb81e4f0bf7ec116ae7b63381c2e654df72104592880a4c

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

-- file: api/stop_batch.sql 5b3ae534eb276029d24633be3a56893cfce1b39025fec6c09a5cb2d070d30e39

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

-- file: api/pause_batch.sql 1834f6e7a2982c9010253e906ffb12a5ddf09a45ae39adc90794458f27304136

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

-- file: api/resume_batch.sql aa0cfc6c5fbe7ad12ec4a8fbb800ed769fbb957fbed5706467de668020930775

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
    perform private.refuse_status(
      format('Only a paused or stopped batch can be resumed; this one is %s', v_batch.status),
      'batch_not_resumable');
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

-- file: api/rotate_webhook_secret.sql 9d15b27f181140ae3cf50ec085db17eaf8f5833a1b9b65f4611cf08ba164a13c

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

  perform private.commit_durably();  -- the carrier signs with a secret that was shown
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

-- file: api/ingest_webhook.sql e17234a717dcf4d2d72d8c800ff779de990513fad1de2e033e663538a2608c15

-- Store what a carrier reports, once, and answer at once: process_webhook_queue applies it.
-- p_body: to the byte as it came, for the signature is over it. p_headers: a JSON object, names in lower case.
-- An event that is told again gets the same answer again. Its id is webhook-id, or else made of the body: Ultravox's
-- signature does not cover that header, so that a replay could name another id, or the id of an event to come.
-- A carrier forgets an event that was answered, so the answer is durable.
-- One of a type that is not known is stored as ignored: carriers give up endpoints that refuse.
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

  perform private.commit_durably();
  insert into public.webhook_queue (
    agency_id, event_id, event_type, payload, status, error_message, processed_at, next_retry_at)
  values (
    p_agency_id, v_event_id, v_event_type, v_payload,
    case when v_is_known then 'pending' else 'ignored' end::public.webhook_status,
    case when not v_is_known then 'Not an event to apply' end,
    case when not v_is_known then clock_timestamp() end,
    case when v_is_known then clock_timestamp() end)
  on conflict (agency_id, event_id) do nothing;
  if not found then
    perform private.commit_repeat_durably();
  end if;
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

-- file: api/replay_webhooks.sql e48b36315462094ac95a4a19c86b00c18abb70924ef85074559a305873a02b32
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
  perform private.commit_durably();
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

-- file: dialer/service_stats.sql 8ba7f725dedda4417863a382e0ce444ed50d9708446d48e933439edd3c67fd8e

-- How the service is doing, as numbers for an operator and for /metrics:
--   batches                  by status, those that are not over
--   batches_ended            by status, those that ended in the last 24 hours
--   contacts                 by status, of batches that are not over, by their counters; scheduled ones count as pending
--   open_calls               by status: leases (queued), calls in progress, calls that nobody could tell of (unknown)
--   unknown_calls            by how long ago they were started: under_5m, under_1h, over_1h
--   oldest_call_seconds      by status: since start_call let the oldest open one through
--   webhooks                 by status: pending, failed (to be tried again), dead; counted to 10,000, of those due first
--   oldest_webhook_seconds   by status: since the oldest of these came
--   calls_started_after_end  must be 0. cancel: of the 100 batches cancelled last, stop: of the 100 stopped last that
--                            still are, in 24 hours: calls among the newest 200 of each that started later than that.
--                            What was claimed after the end is the newest of its batch, hence among them.
--   unbalanced_batches       must be 0: batches not over, ended in the last 24 hours or with open calls, whose counters
--                            cannot be right: one is negative, they add up to more than the total, or queued and in
--                            progress are not as many as there are open calls. private.check_counters() reads the
--                            contacts, too.
--   synchronous_standbys     required: how many each commit waits for. 0: a failover to a standby loses the last answers.
--                            attached: how many are there; left out where the owner of the core may not see standbys.
--                            With fewer than required, no change is answered.
-- Every number is there, also where it is 0. Reads the batches that it tells of and the calls that are open, and
-- neither contacts nor the history, however long that is; takes no lock.
-- Raises PT401, PT403 (not a service or console).
create or replace function private.service_stats()
returns setof public.service_stat
language plpgsql stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
set enable_bitmapscan = off  -- or all calls of a batch would be sorted to find the newest
as $$
declare
  v_now   timestamptz := clock_timestamp();
  v_since timestamptz := v_now - interval '24 hours';
begin
  perform private.require_service();

  -- One statement: what it compares is of one moment.
  return query
    with batch as materialized (
      select b.* from public.call_batches b where b.status in ('pending', 'scheduled', 'processing')
       union all
      select b.* from public.call_batches b where b.status in ('paused', 'stopped')
       union all
      select b.* from public.call_batches b
       where b.completed_at > v_since and b.status in ('completed', 'failed', 'cancelled')),
    running as (
      select b.* from batch b where b.status not in ('completed', 'failed', 'cancelled')),
    open_call as materialized (
      select c.agency_id, c.batch_id, c.status, extract(epoch from v_now - c.started_at)::double precision as age
        from public.calls c
       where c.status in ('queued', 'in_progress', 'unknown')),
    webhook as materialized (
      (select q.status, extract(epoch from v_now - q.created_at)::double precision as age
         from public.webhook_queue q
        where q.next_retry_at is not null
        order by q.next_retry_at
        limit 10000)
       union all
      (select q.status, extract(epoch from v_now - q.created_at)::double precision
         from public.webhook_queue q
        where q.status = 'dead'
        order by q.agency_id, q.id
        limit 10000)),
    ended as (
      (select 'cancel' as how, b.agency_id, b.id, b.completed_at as at
         from batch b
        where b.status = 'cancelled'
        order by b.completed_at desc
        limit 100)
       union all
      (select 'stop', b.agency_id, b.id, b.stopped_at
         from batch b
        where b.status = 'stopped' and b.stopped_at > v_since
        order by b.stopped_at desc
        limit 100)),
    late_call as (
      select e.how
        from ended e
       -- As in claim_batch: backwards by the key.
       cross join lateral (
         select c.started_at
           from public.calls c
          where c.agency_id = e.agency_id and c.batch_id = e.id
          order by c.agency_id desc, c.batch_id desc, c.id desc
          limit 200) c
       where c.started_at > e.at),
    counted as (
      select o.agency_id, o.batch_id,
             count(*) filter (where o.status = 'queued') as queued,
             count(*) filter (where o.status <> 'queued') as in_progress
        from open_call o
       group by o.agency_id, o.batch_id),
    booked as (
      select b.agency_id, b.id, b.total_contacts, b.queued, b.in_progress, b.completed, b.failed, b.skipped
        from batch b
       union
      select b.agency_id, b.id, b.total_contacts, b.queued, b.in_progress, b.completed, b.failed, b.skipped
        from counted n
       cross join lateral (
         select b.* from public.call_batches b where b.agency_id = n.agency_id and b.id = n.batch_id limit 1) b)

    select 'batches', s.status::text, count(b.id)::double precision
      from unnest('{pending,scheduled,processing,paused,stopped}'::public.batch_status[]) as s (status)
      left join running b on b.status = s.status
     group by s.status
     union all
    select 'batches_ended', s.status::text, count(b.id)::double precision
      from unnest('{completed,failed,cancelled}'::public.batch_status[]) as s (status)
      left join batch b on b.status = s.status
     group by s.status
     union all
    select 'contacts', s.status, coalesce(sum(v.contacts), 0)::double precision
      from (values ('pending'), ('queued'), ('in_progress'), ('completed'), ('failed'), ('skipped')) as s (status)
      left join (
        select c.status, c.contacts
          from running b
         cross join lateral (
           values ('pending', b.total_contacts - b.queued - b.in_progress - b.completed - b.failed - b.skipped),
                  ('queued', b.queued), ('in_progress', b.in_progress), ('completed', b.completed),
                  ('failed', b.failed), ('skipped', b.skipped)) as c (status, contacts)) v on v.status = s.status
     group by s.status
     union all
    select 'open_calls', s.status::text, count(o.batch_id)::double precision
      from unnest('{queued,in_progress,unknown}'::public.call_status[]) as s (status)
      left join open_call o on o.status = s.status
     group by s.status
     union all
    select 'unknown_calls', g.label, count(o.batch_id)::double precision
      from (values ('under_5m', '-infinity'::double precision, 300::double precision), ('under_1h', 300, 3600),
                   ('over_1h', 3600, 'infinity')) as g (label, low, high)
      left join open_call o on o.status = 'unknown' and o.age >= g.low and o.age < g.high
     group by g.label
     union all
    select 'oldest_call_seconds', s.status::text, greatest(coalesce(max(o.age), 0), 0)
      from unnest('{in_progress,unknown}'::public.call_status[]) as s (status)
      left join open_call o on o.status = s.status
     group by s.status
     union all
    select w.name, s.status::text,
           case w.name when 'webhooks' then count(q.status) else greatest(coalesce(max(q.age), 0), 0) end
      from unnest('{pending,failed,dead}'::public.webhook_status[]) as s (status)
     cross join (values ('webhooks'), ('oldest_webhook_seconds')) as w (name)
      left join webhook q on q.status = s.status
     group by w.name, s.status
     union all
    select 'calls_started_after_end', e.how, count(l.how)::double precision
      from (values ('cancel'), ('stop')) as e (how)
      left join late_call l on l.how = e.how
     group by e.how
     union all
    select 'unbalanced_batches', '', count(*)::double precision
      from booked b
      left join counted n on n.agency_id = b.agency_id and n.batch_id = b.id
     where least(b.queued, b.in_progress, b.completed, b.failed, b.skipped) < 0
        or b.queued + b.in_progress + b.completed + b.failed + b.skipped > b.total_contacts
        or b.queued <> coalesce(n.queued, 0) or b.in_progress <> coalesce(n.in_progress, 0)
     union all
    select 'synchronous_standbys', s.label, s.value
      from (values ('required', private.required_standbys()), ('attached', private.count_standbys('0/0'))) as s (label, value)
     where s.value is not null;
end;
$$;

revoke execute on function private.service_stats() from public;
grant  execute on function private.service_stats() to service_role, lastcall_admin;
comment on function private.service_stats() is 'public.service_stats.';

create or replace function public.service_stats()
returns setof public.service_stat
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select * from private.service_stats()
$$;

revoke execute on function public.service_stats() from public, anon, authenticated;
grant  execute on function public.service_stats() to service_role, lastcall_admin;
comment on function public.service_stats() is 'How the service is doing, as numbers: for an operator and for /metrics.';
