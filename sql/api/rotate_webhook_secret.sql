create type public.rotate_webhook_secret_result as (
  success        boolean,
  agency_id      uuid,
  webhook_secret text
);

-- Give an agency a new webhook secret, the first one too. It is shown this once. Earlier secrets stay valid for
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
  -- The second of two rotations at once sees the secret of the first.
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
