create type public.skip_contacts_result as (
  success           boolean,
  batch_id          uuid,
  status            public.batch_status,
  contacts_skipped  integer,
  calls_in_progress integer,  -- calls to selected contacts, let through by start_call and not over
  calls_starting    integer,  -- of these, how many can still start (see public.batch_silence)
  dry_run           boolean
);

-- The contacts that a request names by their ids, by a filter, or by both: see public.skip_contacts.
-- Raises PT400 (neither given; not such ids; not such a filter).
create or replace function private.read_filter(p_contact_ids text[], p_filter jsonb)
returns private.contact_filter
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_statuses constant text[] := array['pending', 'scheduled', 'queued', 'in_progress'];
  v_invalid  text;
  v_result   private.contact_filter;
begin
  if p_contact_ids is null and p_filter is null then
    raise sqlstate 'PT400' using message = 'contact_ids or filter is required',
      detail = '{"code": "contacts_required"}';
  end if;
  if cardinality(p_contact_ids) not between 1 and 10000
     or exists (select from unnest(p_contact_ids) as u (id) where (u.id ~ '^[0-9]{1,18}$') is not true) then
    raise sqlstate 'PT400' using message = 'contact_ids must be 1 to 10,000 ids of contacts',
      detail = '{"code": "contact_ids_invalid"}';
  end if;

  v_invalid := case
    when jsonb_typeof(p_filter) <> 'object' or p_filter = '{}'
      or p_filter - array['status', 'min_attempts', 'max_attempts', 'custom_data'] <> '{}'
      then 'filter must name at least one of status, min_attempts, max_attempts and custom_data, and nothing else'
    when not coalesce(jsonb_typeof(p_filter -> 'status') = 'array' and p_filter -> 'status' <> '[]'
                      and p_filter -> 'status' <@ to_jsonb(v_statuses), not p_filter ? 'status')
      then 'filter.status must be a list of pending, scheduled, queued and in_progress'
    when exists (
      select from unnest(array['min_attempts', 'max_attempts']) as a (name)
       where p_filter ? a.name
         and (jsonb_typeof(p_filter -> a.name) <> 'number' or p_filter ->> a.name !~ '^[0-9]{1,5}$'))
      then 'filter.min_attempts and filter.max_attempts must be whole numbers from 0 to 99999'
    when not coalesce(jsonb_typeof(p_filter -> 'custom_data') = 'object' and p_filter -> 'custom_data' <> '{}',
                      not p_filter ? 'custom_data')
      then 'filter.custom_data must be an object of columns and values'
    when exists (
      select from jsonb_each(case when jsonb_typeof(p_filter -> 'custom_data') = 'object'
                                  then p_filter -> 'custom_data' end) as f (name, value)
       where jsonb_typeof(f.value) not in ('string', 'number', 'boolean'))
      then 'filter.custom_data must have strings, numbers or booleans as values'
  end;
  if v_invalid is not null then
    raise sqlstate 'PT400' using message = v_invalid,
      detail = '{"code": "filter_invalid"}';
  end if;

  v_result.contact_ids := p_contact_ids::bigint[];
  v_result.statuses := case when p_filter ? 'status' then array(
    select s.status::public.contact_status from jsonb_array_elements_text(p_filter -> 'status') as s (status)) end;
  v_result.min_attempts := (p_filter ->> 'min_attempts')::integer;
  v_result.max_attempts := (p_filter ->> 'max_attempts')::integer;
  v_result.custom_data := p_filter -> 'custom_data';
  return v_result;
end;
$$;

revoke execute on function private.read_filter(text[], jsonb) from public;
comment on function private.read_filter(text[], jsonb) is 'The contacts that a request names.';

-- Skip some contacts of a batch for good: see public.skip_contacts. With p_dry_run nothing changes, and nobody waits.
-- When it has committed, start_call lets no selected contact through any more.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such batch
-- of the agency), PT400 (no contacts named; not such contacts; already completed or cancelled), PT409 (idempotency key
-- reused), PT503 (another request holds the batch).
create or replace function private.skip_contacts(
  p_agency_id uuid, p_batch_id uuid, p_contact_ids text[], p_filter jsonb, p_dry_run boolean,
  p_idempotency_key text, p_reason text)
returns public.skip_contacts_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.require_admin(p_agency_id);
  v_filter   private.contact_filter := private.read_filter(p_contact_ids, p_filter);
  v_request  jsonb := jsonb_build_object(
    'procedure', 'skip_contacts', 'batch_id', p_batch_id, 'filter', p_filter, 'reason', p_reason, 'actor', v_actor.id,
    'contact_ids', encode(sha256(convert_to(p_contact_ids::text, 'UTF8')), 'hex'));
  v_batch    public.call_batches;
  v_answer   jsonb;
  v_contacts private.skipped_contacts;
  v_result   public.skip_contacts_result;
begin
  if p_dry_run then
    select b.* into v_batch
      from public.call_batches b
     where b.agency_id = p_agency_id and b.id = p_batch_id;
    if not found then
      raise sqlstate 'PT404' using message = 'Batch not found',
        detail = '{"code": "batch_not_found"}';
    end if;
  else
    v_batch := private.lock_batch(p_agency_id, p_batch_id);
    v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
    if v_answer is not null then
      return jsonb_populate_record(v_result, v_answer);
    end if;
  end if;
  if v_batch.status in ('completed', 'cancelled') then
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
  end if;

  if p_dry_run then
    v_contacts := private.count_selected(v_batch, v_filter);
  else
    v_contacts := private.skip_selected(v_batch, v_filter, null, 'Skipped by request');
  end if;
  v_result := row(true, v_batch.id, v_batch.status, v_contacts.skipped, v_contacts.in_progress, v_contacts.starting,
    p_dry_run);
  if not p_dry_run then
    perform private.record_event(p_agency_id, v_batch, v_actor, 'skip_contacts', v_batch.status, v_contacts.skipped,
      p_reason => p_reason, p_idempotency_key => p_idempotency_key,
      p_request => v_request, p_response => to_jsonb(v_result));
  end if;
  return v_result;
end;
$$;

revoke execute on function private.skip_contacts(uuid, uuid, text[], jsonb, boolean, text, text) from public;
grant  execute on function private.skip_contacts(uuid, uuid, text[], jsonb, boolean, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.skip_contacts(uuid, uuid, text[], jsonb, boolean, text, text) is 'public.skip_contacts, for a batch of a known agency.';

-- The door to private.skip_contacts for users, services and consoles. Skips the contacts that meet both, or the one given:
-- contact_ids: 1 to 10,000 ids.
-- filter: {"status": ["pending", "scheduled", "queued", "in_progress"], "min_attempts": 1, "max_attempts": 2,
-- "custom_data": {"column": "value"}}, at least one of them. Values are compared as text.
-- A call in progress to such a contact finishes, and is its last.
-- dry_run: count, and change nothing.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
create or replace function public.skip_contacts(
  batch_id uuid default null, contact_ids text[] default null, filter jsonb default null, dry_run boolean default false,
  idempotency_key text default null, reason text default null)
returns public.skip_contacts_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.skip_contacts(
    private.find_batch_agency(batch_id), batch_id, contact_ids, filter, coalesce(dry_run, false), idempotency_key, reason)
$$;

revoke execute on function public.skip_contacts(uuid, text[], jsonb, boolean, text, text) from public, anon;
grant  execute on function public.skip_contacts(uuid, text[], jsonb, boolean, text, text) to authenticated, service_role, lastcall_admin;
comment on function public.skip_contacts(uuid, text[], jsonb, boolean, text, text) is
  'Skip some contacts of a call batch for good, by their ids or by a filter.';
