create type public.retry_batch_result as (
  batch_id       uuid,
  status         public.batch_status,
  total_contacts integer,
  retry_of       uuid,
  do_not_call    integer  -- left out: on the agency's do-not-call list since
);

-- Dial the failed contacts of a batch again: a new batch of them, with the settings of the old one, which
-- stays as it is. A contact that an earlier retry took is not taken twice.
-- p_outcomes: only contacts whose last call had one of these; null: all. p_scheduled_for: null is at once.
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
  perform private.admit_contacts(p_agency_id);
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
