-- Whether a delivery comes from who knows a secret of the agency. p_headers: a JSON object, names in lower case.
-- By the first of these that the sender shows, and by no other then:
--   1. Standard Webhooks: webhook-signature, "v1," and base64, several with spaces between; over
--      "<webhook-id>.<webhook-timestamp>.<body>", keyed with the decoded secret.
--   2. Ultravox: x-ultravox-webhook-signature, hex, several with commas between; over the body and
--      x-ultravox-webhook-timestamp (ISO 8601), keyed with the secret as it is written.
--   3. The secret itself.
-- Signatures are HMAC-SHA256, and good for 5 minutes before and after their time.
-- How long it takes tells nothing: every signature is compared with every secret's, an agency that is unknown
-- is given a secret that nobody has, and what is compared are digests with a fresh random prefix, of which
-- the sender can predict no byte.
create or replace function private.verify_webhook(
  p_agency_id uuid, p_body text, p_headers jsonb, p_path_secret text)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_now       constant timestamptz := clock_timestamp();
  v_nonce     constant text := gen_random_uuid()::text;
  v_nobodys   constant text := 'whsec_' || encode(sha256(convert_to(v_nonce, 'UTF8')), 'base64');
  v_standard  constant text := left(p_headers ->> 'webhook-signature', 4096);
  v_ultravox  constant text := left(p_headers ->> 'x-ultravox-webhook-signature', 4096);
  v_timestamp text;
  v_shown     text[];
  v_secrets   text[];
  v_secret    text;
  v_expected  text;
  v_is_timely boolean := true;
  v_is_known  boolean := false;
begin
  v_secrets := array(
    select s.secret
      from private.webhook_secrets s
     where s.agency_id = p_agency_id and coalesce(s.expires_at, 'infinity') > v_now);
  if cardinality(v_secrets) = 0 then
    v_secrets := array[v_nobodys];
  end if;
  if v_standard is not null then
    v_timestamp := p_headers ->> 'webhook-timestamp';
    v_shown := string_to_array(v_standard, ' ');
    v_is_timely := case when v_timestamp ~ '^[0-9]{1,12}$'
      then abs(extract(epoch from v_now) - v_timestamp::bigint) <= 300 end;
  elsif v_ultravox is not null then
    v_timestamp := p_headers ->> 'x-ultravox-webhook-timestamp';
    v_shown := string_to_array(replace(lower(v_ultravox), ' ', ''), ',');
    v_is_timely := case when private.is_timestamp(v_timestamp)
      then abs(extract(epoch from v_now - v_timestamp::timestamptz)) <= 300 end;
  else
    v_shown := array[p_path_secret];
  end if;

  foreach v_secret in array v_secrets loop
    v_expected := case
      when v_standard is not null then
        'v1,' || encode(private.hmac_sha256(
          decode(substr(v_secret, 7), 'base64'),  -- after whsec_
          convert_to((p_headers ->> 'webhook-id') || '.' || v_timestamp || '.' || p_body, 'UTF8')), 'base64')
      when v_ultravox is not null then
        encode(private.hmac_sha256(convert_to(v_secret, 'UTF8'), convert_to(p_body || v_timestamp, 'UTF8')), 'hex')
      else v_secret
    end;
    select bool_or(sha256(convert_to(v_nonce || s.shown, 'UTF8')) = sha256(convert_to(v_nonce || v_expected, 'UTF8')))
           or v_is_known
      into v_is_known
      from unnest(v_shown) as s (shown);
  end loop;
  return coalesce(v_is_known and v_is_timely, false);
end;
$$;

revoke execute on function private.verify_webhook(uuid, text, jsonb, text) from public;
comment on function private.verify_webhook(uuid, text, jsonb, text) is 'Whether a delivery comes from who knows a secret of the agency.';
