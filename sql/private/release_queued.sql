-- Take leases of a locked batch away: those that expired by p_expired_at, or all of them
-- (infinity, which also frees queued contacts that no lease holds). Their contacts go back to
-- where they were (pending, or scheduled when called before) and can be claimed at once; no
-- dialer can start them under the old lease. Returns how many contacts went back.
-- The caller holds the batch's lock and sets its counters.
create or replace function private.release_queued(
  p_agency_id uuid, p_batch_id uuid, p_claim_cursor bigint, p_expired_at timestamptz)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now         timestamptz := clock_timestamp();
  v_contact_ids bigint[];
  v_first       bigint;
  v_last        bigint;
  v_count       integer;
  v_released    integer := 0;
begin
  with ended as (
    delete from public.calls c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id
       and c.status = 'queued' and c.lease_expires_at <= p_expired_at
    returning c.contact_id)
  select array_agg(e.contact_id) into v_contact_ids from ended e;

  for v_first, v_last in
    select min(i.id), max(i.id)
      from (select u.id, u.id - row_number() over (order by u.id) as run
              from unnest(v_contact_ids) as u (id)) i
     where p_expired_at < 'infinity'
     group by i.run
    union all
    select 0, 9223372036854775807  -- every id
     where p_expired_at = 'infinity'
  loop
    update public.campaign_contacts c
       set status = case when c.attempts > 0 then 'scheduled' else 'pending' end::public.contact_status,
           -- Behind the cursor only a due time is found again.
           due_at = case when c.id <= p_claim_cursor then v_now else c.due_at end
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id between v_first and v_last
       and c.status = 'queued';
    get diagnostics v_count = row_count;
    v_released := v_released + v_count;
  end loop;
  return v_released;
end;
$$;

revoke execute on function private.release_queued(uuid, uuid, bigint, timestamptz) from public;
comment on function private.release_queued(uuid, uuid, bigint, timestamptz) is 'Take leases of a locked batch away; their contacts go back.';
