-- A secret that nobody has, in the form of Standard Webhooks: whsec_ and 32 bytes in base64.
-- gen_random_uuid() draws 122 bits from the system's secure random source; the digest of three of them
-- gathers 256 bits of it evenly, without the fixed bits of a UUID.
create or replace function private.new_webhook_secret()
returns text
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select 'whsec_' || encode(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
                                   || uuid_send(gen_random_uuid())), 'base64')
$$;

revoke execute on function private.new_webhook_secret() from public;
comment on function private.new_webhook_secret() is 'A webhook secret that nobody has.';
