create type public.open_call as (
  agency_id       uuid,
  batch_id        uuid,
  call_id         bigint,
  contact_id      bigint,
  status          public.call_status,
  carrier_call_id text,
  age_seconds     double precision,  -- since start_call let it through
  lease           uuid,              -- null: claimed before leases had names
  carrier_queued  boolean,           -- the carrier was not heard to dial it yet
  hang_up         boolean            -- somebody asked for its end
);

-- A call, as dialers are told it.
create or replace function private.open_call(p_call public.calls, p_now timestamptz)
returns public.open_call
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select (p_call.agency_id, p_call.batch_id, p_call.id, p_call.contact_id, p_call.status, p_call.carrier_call_id,
          extract(epoch from p_now - p_call.started_at), p_call.lease, p_call.carrier_queued, p_call.hang_up)::public.open_call
$$;

revoke execute on function private.open_call(public.calls, timestamptz) from public;
comment on function private.open_call(public.calls, timestamptz) is 'A call, as dialers are told it.';

-- The calls to ask the carrier about: those that are unknown, and those in progress for longer than
-- older_than_seconds or than their agent lets a call last. A call that was given is not given again for
-- older_than_seconds, and those not asked about for the longest come first: every call has its turn, and two
-- who ask at once get different ones.
-- Reads the open calls alone, of all batches, whatever became of the batch. Takes no batch, since it changes
-- nothing of what a batch's row guards, and waits for nobody.
-- older_than_seconds: 1 to 86400. max_calls: 1 to 1000.
-- Raises PT401, PT403 (not a service or console), PT400 (a number out of range).
create or replace function private.list_open_calls(p_older_than_seconds integer, p_max_calls integer)
returns setof public.open_call
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now        timestamptz := clock_timestamp();
  v_older_than interval;
  v_call       public.calls;
begin
  perform private.require_service();
  if p_older_than_seconds is null or p_older_than_seconds not between 1 and 86400
     or p_max_calls is null or p_max_calls not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'older_than_seconds must be 1 to 86400 and max_calls 1 to 1000',
      detail = '{"code": "open_calls_out_of_range"}';
  end if;
  v_older_than := make_interval(secs => p_older_than_seconds);

  for v_call in
    select c.*
      from public.calls c
     where c.status in ('in_progress', 'unknown')
       and (c.checked_at is null or c.checked_at <= v_now - v_older_than)
       and (c.status = 'unknown'
            or c.started_at <= v_now - v_older_than
            or c.started_at <= v_now - (
              select make_interval(secs => a.max_duration_seconds)
                from public.call_batches b
                join public.agent_mappings a on a.agency_id = b.agency_id and a.id = b.agent_mapping_id
               where b.agency_id = c.agency_id and b.id = c.batch_id))
     order by coalesce(c.checked_at, c.started_at)
     limit p_max_calls
       for no key update skip locked
  loop
    update public.calls c
       set checked_at = v_now
     where c.agency_id = v_call.agency_id and c.batch_id = v_call.batch_id and c.id = v_call.id;
    return next private.open_call(v_call, v_now);
  end loop;
end;
$$;

revoke execute on function private.list_open_calls(integer, integer) from public;
grant  execute on function private.list_open_calls(integer, integer) to service_role, lastcall_admin;
comment on function private.list_open_calls(integer, integer) is 'public.list_open_calls.';

create or replace function public.list_open_calls(older_than_seconds integer default 300, max_calls integer default 20)
returns setof public.open_call
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select * from private.list_open_calls(older_than_seconds, max_calls)
$$;

revoke execute on function public.list_open_calls(integer, integer) from public, anon, authenticated;
grant  execute on function public.list_open_calls(integer, integer) to service_role, lastcall_admin;
comment on function public.list_open_calls(integer, integer) is 'The calls to ask the carrier about, each in its turn.';
