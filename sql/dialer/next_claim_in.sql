-- In how many seconds something may be claimable: 0 at once, null as long as no call ends and no batch
-- starts. At 0 a claim still gets nothing while others hold the batches: then wait a little. Seconds, and no
-- time, since the dialer's clock need not be the database's.
-- Raises PT401, PT403 (not a service or console).
create or replace function private.next_claim_in()
returns double precision
language plpgsql stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  perform private.require_service();
  return (
    select greatest(extract(epoch from greatest(b.next_claim_at, h.until) - v_now)::double precision, 0)
      from public.call_batches b
     cross join lateral (select case when b.is_held then b.held_until end as until) h
     where b.status = 'processing' and b.next_claim_at is not null
       and (b.max_concurrent is null or b.queued + b.in_progress < b.max_concurrent)
       and (not b.is_held or b.held_until is not null)
     order by greatest(b.next_claim_at, h.until)
     limit 1);
end;
$$;

revoke execute on function private.next_claim_in() from public;
grant  execute on function private.next_claim_in() to service_role, lastcall_admin;
comment on function private.next_claim_in() is 'public.next_claim_in.';

create or replace function public.next_claim_in()
returns double precision
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.next_claim_in()
$$;

revoke execute on function public.next_claim_in() from public, anon, authenticated;
grant  execute on function public.next_claim_in() to service_role, lastcall_admin;
comment on function public.next_claim_in() is 'In how many seconds something may be claimable.';
