-- Every batch whose counters do not say what its contacts are, and every batch with doubled calls: no row means
-- that the books balance. p_batch_id: only this batch. Reads all contacts and calls: for tests and for admins.
-- doubled_calls, which must be 0: calls that another call of their contact followed, though they had not failed, or
-- had failed as not_placed and the carrier had them.
create or replace function private.check_counters(p_batch_id uuid default null)
returns table (agency_id uuid, batch_id uuid, counter text, stored bigint, counted bigint)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select b.agency_id, b.id, v.counter, v.stored, v.counted
    from public.call_batches b
    left join (
      select c.agency_id, c.batch_id,
             count(*) as total,
             count(*) filter (where c.status = 'queued') as queued,
             count(*) filter (where c.status = 'in_progress') as in_progress,
             count(*) filter (where c.status = 'completed') as completed,
             count(*) filter (where c.status = 'failed') as failed,
             count(*) filter (where c.status = 'skipped') as skipped
        from public.campaign_contacts c
       where p_batch_id is null or c.batch_id = p_batch_id
       group by c.agency_id, c.batch_id) n
      on n.agency_id = b.agency_id and n.batch_id = b.id
   cross join lateral (
     values ('total_contacts', b.total_contacts, coalesce(n.total, 0)),
            ('queued', b.queued, coalesce(n.queued, 0)),
            ('in_progress', b.in_progress, coalesce(n.in_progress, 0)),
            ('completed', b.completed, coalesce(n.completed, 0)),
            ('failed', b.failed, coalesce(n.failed, 0)),
            ('skipped', b.skipped, coalesce(n.skipped, 0))) as v (counter, stored, counted)
   where (p_batch_id is null or b.id = p_batch_id) and v.stored <> v.counted
   union all
  select k.agency_id, k.batch_id, 'doubled_calls', 0, count(*)
    from (
      select c.agency_id, c.batch_id, c.status, c.outcome, c.carrier_call_id,
             lead(c.id) over (partition by c.agency_id, c.batch_id, c.contact_id order by c.id) as next_id
        from public.calls c
       where p_batch_id is null or c.batch_id = p_batch_id) k
   where k.next_id is not null
     and (k.status <> 'failed' or k.outcome = 'not_placed' and k.carrier_call_id is not null)
   group by k.agency_id, k.batch_id
$$;

revoke execute on function private.check_counters(uuid) from public;
grant  execute on function private.check_counters(uuid) to service_role, lastcall_admin;
comment on function private.check_counters(uuid) is
  'Batches whose counters do not add up or that have doubled calls; no row: the books balance.';
