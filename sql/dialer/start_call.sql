-- The last gate before the carrier: of these calls, let those through that may be placed now,
-- and count the attempt. A call passes while its batch is processing and its lease runs.
-- Returns the ids of the calls to place; a call that is not among them must not be placed.
-- Since cancel and stop hold the same lock, whatever has not passed when they commit never will.
-- Raises PT401, PT403 (not a service or console), PT404.
create or replace function private.start_call(p_agency_id uuid, p_batch_id uuid, p_call_ids bigint[])
returns setof bigint
language plpgsql volatile
security definer
set search_path = ''
as $$
declare
  v_batch      public.call_batches;
  v_now        timestamptz;
  v_started    integer := 0;
  v_call_id    bigint;
  v_contact_id bigint;
begin
  perform private.require_service();
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  if v_batch.status <> 'processing' then
    return;
  end if;

  foreach v_call_id in array coalesce(p_call_ids, '{}') loop
    update public.calls c
       set status = 'in_progress',
           started_at = v_now
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_call_id
       and c.status = 'queued' and c.lease_expires_at > v_now
    returning c.contact_id into v_contact_id;
    continue when not found;

    update public.campaign_contacts c
       set status = 'in_progress',
           attempts = c.attempts + 1,
           call_id = v_call_id,
           last_attempt_at = v_now
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_contact_id;
    v_started := v_started + 1;
    return next v_call_id;
  end loop;

  update public.call_batches b
     set queued = b.queued - v_started,
         in_progress = b.in_progress + v_started
   where b.agency_id = p_agency_id and b.id = p_batch_id and v_started > 0;
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
set search_path = ''
as $$
  select private.start_call(private.find_batch_agency(batch_id), batch_id, call_ids)
$$;

revoke execute on function public.start_call(uuid, bigint[]) from public, anon, authenticated;
grant  execute on function public.start_call(uuid, bigint[]) to service_role, lastcall_admin;
comment on function public.start_call(uuid, bigint[]) is
  'The last gate before the carrier: returns the calls that may be placed now.';
