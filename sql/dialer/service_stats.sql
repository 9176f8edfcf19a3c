create type public.service_stat as (name text, label text, value double precision);

-- How the service is doing, as numbers for an operator and for /metrics:
--   batches                  by status, those that are not over
--   batches_ended            by status, those that ended in the last 24 hours
--   contacts                 by status, of batches that are not over, by their counters; scheduled ones count as pending
--   open_calls               by status: leases (queued), calls in progress, calls that nobody could tell of (unknown)
--   unknown_calls            by how long ago they were started: under_5m, under_1h, over_1h
--   oldest_call_seconds      by status: since start_call let the oldest open one through
--   webhooks                 by status: pending, failed (to be tried again), dead; counted to 10,000, of those due first
--   oldest_webhook_seconds   by status: since the oldest of these came
--   calls_started_after_end  must be 0. cancel: of the 100 batches cancelled last, stop: of the 100 stopped last that
--                            still are, in 24 hours: calls among the newest 200 of each that started later than that.
--                            What was claimed after the end is the newest of its batch, hence among them.
--   unbalanced_batches       must be 0: batches not over, ended in the last 24 hours or with open calls, whose counters
--                            cannot be right: one is negative, they add up to more than the total, or queued and in
--                            progress are not as many as there are open calls. private.check_counters() reads the
--                            contacts, too.
--   synchronous_standbys     required: how many each commit waits for. 0: a failover to a standby loses the last answers.
--                            attached: how many are there; left out where the owner of the core may not see standbys.
--                            With fewer than required, no change is answered.
-- Every number is there, also where it is 0. Reads the batches that it tells of and the calls that are open, and
-- neither contacts nor the history, however long that is; takes no lock.
-- Raises PT401, PT403 (not a service or console).
create or replace function private.service_stats()
returns setof public.service_stat
language plpgsql stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
set enable_bitmapscan = off  -- or all calls of a batch would be sorted to find the newest
as $$
declare
  v_now   timestamptz := clock_timestamp();
  v_since timestamptz := v_now - interval '24 hours';
begin
  perform private.require_service();

  -- One statement: what it compares is of one moment.
  return query
    with batch as materialized (
      select b.* from public.call_batches b where b.status in ('pending', 'scheduled', 'processing')
       union all
      select b.* from public.call_batches b where b.status in ('paused', 'stopped')
       union all
      select b.* from public.call_batches b
       where b.completed_at > v_since and b.status in ('completed', 'failed', 'cancelled')),
    running as (
      select b.* from batch b where b.status not in ('completed', 'failed', 'cancelled')),
    open_call as materialized (
      select c.agency_id, c.batch_id, c.status, extract(epoch from v_now - c.started_at)::double precision as age
        from public.calls c
       where c.status in ('queued', 'in_progress', 'unknown')),
    webhook as materialized (
      (select q.status, extract(epoch from v_now - q.created_at)::double precision as age
         from public.webhook_queue q
        where q.next_retry_at is not null
        order by q.next_retry_at
        limit 10000)
       union all
      (select q.status, extract(epoch from v_now - q.created_at)::double precision
         from public.webhook_queue q
        where q.status = 'dead'
        order by q.agency_id, q.id
        limit 10000)),
    ended as (
      (select 'cancel' as how, b.agency_id, b.id, b.completed_at as at
         from batch b
        where b.status = 'cancelled'
        order by b.completed_at desc
        limit 100)
       union all
      (select 'stop', b.agency_id, b.id, b.stopped_at
         from batch b
        where b.status = 'stopped' and b.stopped_at > v_since
        order by b.stopped_at desc
        limit 100)),
    late_call as (
      select e.how
        from ended e
       -- As in claim_batch: backwards by the key.
       cross join lateral (
         select c.started_at
           from public.calls c
          where c.agency_id = e.agency_id and c.batch_id = e.id
          order by c.agency_id desc, c.batch_id desc, c.id desc
          limit 200) c
       where c.started_at > e.at),
    counted as (
      select o.agency_id, o.batch_id,
             count(*) filter (where o.status = 'queued') as queued,
             count(*) filter (where o.status <> 'queued') as in_progress
        from open_call o
       group by o.agency_id, o.batch_id),
    booked as (
      select b.agency_id, b.id, b.total_contacts, b.queued, b.in_progress, b.completed, b.failed, b.skipped
        from batch b
       union
      select b.agency_id, b.id, b.total_contacts, b.queued, b.in_progress, b.completed, b.failed, b.skipped
        from counted n
       cross join lateral (
         select b.* from public.call_batches b where b.agency_id = n.agency_id and b.id = n.batch_id limit 1) b)

    select 'batches', s.status::text, count(b.id)::double precision
      from unnest('{pending,scheduled,processing,paused,stopped}'::public.batch_status[]) as s (status)
      left join running b on b.status = s.status
     group by s.status
     union all
    select 'batches_ended', s.status::text, count(b.id)::double precision
      from unnest('{completed,failed,cancelled}'::public.batch_status[]) as s (status)
      left join batch b on b.status = s.status
     group by s.status
     union all
    select 'contacts', s.status, coalesce(sum(v.contacts), 0)::double precision
      from (values ('pending'), ('queued'), ('in_progress'), ('completed'), ('failed'), ('skipped')) as s (status)
      left join (
        select c.status, c.contacts
          from running b
         cross join lateral (
           values ('pending', b.total_contacts - b.queued - b.in_progress - b.completed - b.failed - b.skipped),
                  ('queued', b.queued), ('in_progress', b.in_progress), ('completed', b.completed),
                  ('failed', b.failed), ('skipped', b.skipped)) as c (status, contacts)) v on v.status = s.status
     group by s.status
     union all
    select 'open_calls', s.status::text, count(o.batch_id)::double precision
      from unnest('{queued,in_progress,unknown}'::public.call_status[]) as s (status)
      left join open_call o on o.status = s.status
     group by s.status
     union all
    select 'unknown_calls', g.label, count(o.batch_id)::double precision
      from (values ('under_5m', '-infinity'::double precision, 300::double precision), ('under_1h', 300, 3600),
                   ('over_1h', 3600, 'infinity')) as g (label, low, high)
      left join open_call o on o.status = 'unknown' and o.age >= g.low and o.age < g.high
     group by g.label
     union all
    select 'oldest_call_seconds', s.status::text, greatest(coalesce(max(o.age), 0), 0)
      from unnest('{in_progress,unknown}'::public.call_status[]) as s (status)
      left join open_call o on o.status = s.status
     group by s.status
     union all
    select w.name, s.status::text,
           case w.name when 'webhooks' then count(q.status) else greatest(coalesce(max(q.age), 0), 0) end
      from unnest('{pending,failed,dead}'::public.webhook_status[]) as s (status)
     cross join (values ('webhooks'), ('oldest_webhook_seconds')) as w (name)
      left join webhook q on q.status = s.status
     group by w.name, s.status
     union all
    select 'calls_started_after_end', e.how, count(l.how)::double precision
      from (values ('cancel'), ('stop')) as e (how)
      left join late_call l on l.how = e.how
     group by e.how
     union all
    select 'unbalanced_batches', '', count(*)::double precision
      from booked b
      left join counted n on n.agency_id = b.agency_id and n.batch_id = b.id
     where least(b.queued, b.in_progress, b.completed, b.failed, b.skipped) < 0
        or b.queued + b.in_progress + b.completed + b.failed + b.skipped > b.total_contacts
        or b.queued <> coalesce(n.queued, 0) or b.in_progress <> coalesce(n.in_progress, 0)
     union all
    select 'synchronous_standbys', s.label, s.value
      from (values ('required', private.required_standbys()), ('attached', private.count_standbys('0/0'))) as s (label, value)
     where s.value is not null;
end;
$$;

revoke execute on function private.service_stats() from public;
grant  execute on function private.service_stats() to service_role, lastcall_admin;
comment on function private.service_stats() is 'public.service_stats.';

create or replace function public.service_stats()
returns setof public.service_stat
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select * from private.service_stats()
$$;

revoke execute on function public.service_stats() from public, anon, authenticated;
grant  execute on function public.service_stats() to service_role, lastcall_admin;
comment on function public.service_stats() is 'How the service is doing, as numbers: for an operator and for /metrics.';
