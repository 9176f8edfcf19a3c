-- Who is in the way of this is not made to wait for long: it gives up, and is run again.
set local lock_timeout = '500ms';

-- file: private/broadcast_status.sql 26ea71e8bfdc5c22f0463ff09d589b60d05a8f968af0e0b90d21cd8ae7fe1959
-- Tell whoever watches the agency's batches that one changed its status: where the database is a Supabase
-- project's, a private Realtime broadcast to the channel agency:<agency's id>, event batch_status. It is sent when
-- the transaction commits, or not at all. Elsewhere nothing happens.
-- Never raises: a change is not undone because nobody could be told of it. A warning says so.
create or replace function private.broadcast_status(
  p_agency_id uuid, p_batch_id uuid, p_action text,
  p_from_status public.batch_status, p_to_status public.batch_status, p_contacts integer)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_send regprocedure := to_regprocedure('realtime.send(jsonb,text,text,boolean)');
begin
  if v_send is null then
    return;
  end if;
  begin
    -- Dynamic, since no other database knows the function.
    execute format('select %s($1, ''batch_status'', $2, true)', v_send::oid::regproc)
      using jsonb_build_object('batch_id', p_batch_id, 'action', p_action, 'from_status', p_from_status,
                               'to_status', p_to_status, 'contacts', p_contacts,
                               'at', private.iso_timestamp(clock_timestamp())),
            'agency:' || p_agency_id;
  exception when others then
    raise warning 'status of batch % was not broadcast: %', p_batch_id, sqlerrm;
  end;
end;
$$;

revoke execute on function private.broadcast_status(
  uuid, uuid, text, public.batch_status, public.batch_status, integer) from public;
comment on function private.broadcast_status(
  uuid, uuid, text, public.batch_status, public.batch_status, integer)
  is 'Tell whoever watches the agency''s batches of a change of status.';

-- file: private/record_event.sql 17e5d629231fe9adfcbbb7a3350d0dd2516790b2786b146e1e5f9bd39b73c639
-- Write what was done to a batch into the audit trail, in the transaction that did it, and broadcast a change of
-- its status. p_batch is the batch as it was before.
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
