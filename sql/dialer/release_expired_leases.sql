-- Give back the contacts of one batch that a dialer claimed and did not start in time, and
-- queued contacts that no lease holds. Returns how many.
-- Without waiting: a batch that someone else holds is left for the next time.
create or replace function private.release_batch_leases(p_agency_id uuid, p_batch_id uuid)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch    public.call_batches;
  v_now      timestamptz;
  v_leases   integer;
  v_released integer;
begin
  select b.* into v_batch
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id
     for no key update skip locked;
  if not found then
    return 0;
  end if;
  v_now := clock_timestamp();

  select count(*)::integer into v_leases
    from public.calls c
   where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.status = 'queued';
  v_released := private.release_queued(p_agency_id, p_batch_id, v_batch.claim_cursor,
    case when v_leases = 0 then 'infinity' else v_now end);
  if v_released > 0 or v_leases = 0 then
    update public.call_batches b
       -- Without a lease none is queued any more, whatever was counted: do not come back for it.
       set queued = case when v_leases = 0 then 0 else b.queued - v_released end,
           next_claim_at = least(b.next_claim_at, v_now)
     where b.agency_id = p_agency_id and b.id = p_batch_id;
  end if;
  return v_released;
end;
$$;

revoke execute on function private.release_batch_leases(uuid, uuid) from public;
comment on function private.release_batch_leases(uuid, uuid) is 'Give back what one batch''s dialers did not start in time.';

-- Give back the contacts whose dialer let their lease run out, of at most 10 batches a run (these
-- stay locked until it commits): run it every few seconds, and again while it returns more than 0.
-- Returns how many contacts went back. Raises PT401, PT403 (not a service or console).
create or replace function private.release_expired_leases()
returns integer
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now      timestamptz := clock_timestamp();
  v_batch    record;
  v_released integer := 0;
begin
  perform private.require_service();
  for v_batch in
    select b.agency_id, b.id
      from public.call_batches b
     where b.status = 'processing' and b.queued > 0
       and (exists (select from public.calls c
                     where c.agency_id = b.agency_id and c.batch_id = b.id
                       and c.status = 'queued' and c.lease_expires_at <= v_now)
            or not exists (select from public.calls c
                            where c.agency_id = b.agency_id and c.batch_id = b.id and c.status = 'queued'))
     limit 10
  loop
    v_released := v_released + private.release_batch_leases(v_batch.agency_id, v_batch.id);
  end loop;
  return v_released;
end;
$$;

revoke execute on function private.release_expired_leases() from public;
grant  execute on function private.release_expired_leases() to service_role, lastcall_admin;
comment on function private.release_expired_leases() is 'public.release_expired_leases.';

create or replace function public.release_expired_leases()
returns integer
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.release_expired_leases()
$$;

revoke execute on function public.release_expired_leases() from public, anon, authenticated;
grant  execute on function public.release_expired_leases() to service_role, lastcall_admin;
comment on function public.release_expired_leases() is 'Give back contacts that were claimed and not started in time.';
