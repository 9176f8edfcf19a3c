create type public.ingest_webhook_result as (success boolean, event_id text);

-- Store what a carrier reports, once, and answer at once: process_webhook_queue applies it.
-- p_body: to the byte as it came, for the signature is over it. p_headers: a JSON object, names in lower case.
-- A repeated event gets the same answer. Its id is webhook-id, or else made of the body: Ultravox's
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
