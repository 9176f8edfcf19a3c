-- The last gate before the carrier: of these calls, let those through that may be placed now,
-- and count the attempt. A call passes while its batch is processing and its lease runs.
-- Returns the ids of the calls to place; a call that is not among them must not be placed.
-- Since cancel and stop hold the same lock, whatever has not passed when they commit never will.
-- Raises PT401, PT403 (not a service or console), PT404.
create or replace function private.start_call(p_agency_id uuid, p_batch_id uuid, p_call_ids bigint[])
returns setof bigint
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_batch       public.call_batches;
  v_now         timestamptz;
  v_call_ids    bigint[];
  v_contact_ids bigint[];
  v_first       bigint;
  v_last        bigint;
begin
  perform private.require_service();
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  if v_batch.status <> 'processing' then
    return;
  end if;

  select min(u.id), max(u.id) into v_first, v_last from unnest(p_call_ids) as u (id);
  with started as (
    update public.calls c
       set status = 'in_progress',
           started_at = v_now
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id
       -- The calls of one claim are neighbours in their batch.
       and c.id between v_first and v_last and c.id = any (p_call_ids)
       -- As text: not by the index on leases, which would read all leases of the batch.
       and c.status::text = 'queued' and c.lease_expires_at > v_now
    returning c.id, c.contact_id)
  select array_agg(s.id order by s.id), array_agg(s.contact_id order by s.id)
    into v_call_ids, v_contact_ids
    from started s;

  for v_first, v_last in
    select min(i.id), max(i.id)
      from (select u.id, u.id - row_number() over (order by u.id) as run
              from unnest(v_contact_ids) as u (id)) i
     group by i.run
  loop
    update public.campaign_contacts c
       set status = 'in_progress',
           attempts = c.attempts + 1,
           call_id = v_call_ids[array_position(v_contact_ids, c.id)],
           last_attempt_at = v_now
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id between v_first and v_last;
  end loop;

  update public.call_batches b
     set queued = b.queued - cardinality(v_call_ids),
         in_progress = b.in_progress + cardinality(v_call_ids)
   where b.agency_id = p_agency_id and b.id = p_batch_id and v_call_ids is not null;
  return query select unnest(v_call_ids);
end;
$$;

revoke execute on function private.start_call(uuid, uuid, bigint[]) from public;
grant  execute on function private.start_call(uuid, uuid, bigint[]) to service_role, lastcall_admin;
comment on function private.start_call(uuid, uuid, bigint[]) is 'public.start_call, for a batch of a known agency.';

-- The door to private.start_call. call_ids: as claimed, all of batch_id.
create or replace function public.start_call(batch_id uuid, call_ids bigint[])
returns setof bigint
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.start_call(private.find_batch_agency(batch_id), batch_id, call_ids)
$$;

revoke execute on function public.start_call(uuid, bigint[]) from public, anon, authenticated;
grant  execute on function public.start_call(uuid, bigint[]) to service_role, lastcall_admin;
comment on function public.start_call(uuid, bigint[]) is
  'The last gate before the carrier: returns the calls that may be placed now.';
