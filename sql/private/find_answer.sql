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
