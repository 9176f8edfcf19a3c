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
