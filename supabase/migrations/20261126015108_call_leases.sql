-- Who is in the way of this is not made to wait for long: it gives up, and is run again.
set local lock_timeout = '500ms';

-- file: schema/calls.sql 84cd03bb1ef1fce72e44f990f3396e3bc29a214765b2f71f225dc80180b77ee3
alter table public.calls add column lease uuid;
alter table public.calls add column place_by timestamptz;
comment on column public.calls.lease is
  'Random, one for each claim: with the id, the name of the call. Null: claimed before leases had names.';
comment on column public.calls.place_by is
  'Until when the request for the call may leave for the carrier. Null: not started, or started before calls had it.';

-- file: private/lock_batch.sql 5734c55d53233fdd32d96352bd0711b359b1da136ede9d1e60799ad6245eff8e
-- The longest wait for a batch: the session's lock_timeout if it has one, or else 10 seconds for people and
-- 1 for the service, whose calls must be placed within seconds.
create or replace function private.longest_wait()
returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when current_setting('lock_timeout') <> '0' then current_setting('lock_timeout')
              when current_setting('role', true) = 'service_role' then '1s'
              else '10s' end
$$;

revoke execute on function private.longest_wait() from public;
comment on function private.longest_wait() is 'The longest wait for a batch that another request holds.';

-- Refuse a batch that another request holds. The detail names the procedure that the holder called last (held_by) and the
-- age of the holder's transaction (held_seconds), where pg_locks and pg_stat_activity tell them. Of the holder's query it
-- tells nothing else.
-- Raises PT503.
create or replace function private.refuse_busy(p_agency_id uuid, p_batch_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_xmax   xid;
  v_xids   xid[];
  v_holder record;
begin
  select b.xmax into v_xmax
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  begin
    -- A holder that had to wait itself left its transaction as a member of a multixact.
    v_xids := array(select m.xid from pg_get_multixact_members(v_xmax) m);
  exception when others then
    v_xids := array[v_xmax];  -- no multixact, but the transaction itself
  end;
  select (select p.proname
            from pg_proc p
            join pg_proc q on q.proname = p.proname and q.pronamespace = 'private'::regnamespace
           where p.pronamespace = 'public'::regnamespace and strpos(a.query, p.proname) > 0
           order by strpos(a.query, p.proname)
           limit 1) as procedure,
         floor(extract(epoch from clock_timestamp() - a.xact_start))::integer as seconds
    into v_holder
    from pg_locks l
    join pg_stat_activity a on a.pid = l.pid
   where l.locktype = 'transactionid' and l.granted and l.transactionid = any (v_xids)
   limit 1;
  raise sqlstate 'PT503' using message = 'Another request holds this batch; try again',
    detail = jsonb_strip_nulls(jsonb_build_object(
      'code', 'batch_busy', 'retry_after', 2, 'held_by', v_holder.procedure, 'held_seconds', v_holder.seconds))::text;
end;
$$;

revoke execute on function private.refuse_busy(uuid, uuid) from public;
comment on function private.refuse_busy(uuid, uuid) is 'Refuse a batch that another request holds.';

-- The batch, locked until the transaction ends. Everyone who changes a batch or its contacts
-- comes through here (claimers take the same lock with skip locked) before they look at
-- anything else of it: one lock, one order, no deadlock, and a status that holds. What is changed under
-- it is on disk when the reply is out, even where the database is set not to wait for that.
-- The wait for another request is bounded (private.longest_wait).
-- Raises PT404, PT503 (another request holds the batch), 40001 (changed meanwhile, at a stricter isolation).
create or replace function private.lock_batch(p_agency_id uuid, p_batch_id uuid)
returns public.call_batches
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
  v_batch        public.call_batches;
begin
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  -- First without the subtransaction that a refusal needs: an update under a subtransaction's lock makes a multixact.
  if current_setting('transaction_isolation') = 'read committed' then
    select b.* into v_batch
      from public.call_batches b
     where b.agency_id = p_agency_id and b.id = p_batch_id
       for no key update skip locked;
    if found then
      return v_batch;
    end if;
  end if;

  begin
    perform set_config('lock_timeout', private.longest_wait(), true);
    select b.* into v_batch
      from public.call_batches b
     where b.agency_id = p_agency_id and b.id = p_batch_id
       for no key update;
    if not found then
      raise sqlstate 'PT404' using message = 'Batch not found',
        detail = '{"code": "batch_not_found"}';
    end if;
    perform set_config('lock_timeout', v_lock_timeout, true);
  exception
    when lock_not_available then
      perform private.refuse_busy(p_agency_id, p_batch_id);
    when serialization_failure then
      raise sqlstate '40001' using message = sqlerrm,
        hint = 'Run it at isolation level read committed';
  end;
  return v_batch;
end;
$$;

revoke execute on function private.lock_batch(uuid, uuid) from public;
comment on function private.lock_batch(uuid, uuid) is 'The batch, locked; the first step of every change.';

-- file: private/names_calls.sql 550e632b0c3c6df48425d54bc3dd5e2437dd7f77f242b089d63fa361f26ef90c
-- Whether a JSON value is an array of objects that each name a call: by call_id, and by the lease of its claim.
-- lease: a UUID, or null for a call that was claimed before leases had names; it is never left out.
create or replace function private.names_calls(p_value jsonb)
returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_typeof(p_value) is not distinct from 'array' and not exists (
    select from jsonb_array_elements(case when jsonb_typeof(p_value) = 'array' then p_value end) as e (item)
     where jsonb_typeof(e.item) <> 'object'
        or jsonb_typeof(e.item -> 'call_id') is distinct from 'number'
        or e.item ->> 'call_id' !~ '^[0-9]{1,18}$'
        or coalesce(jsonb_typeof(e.item -> 'lease') <> 'null'
                    and e.item ->> 'lease' !~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$', true))
$$;

revoke execute on function private.names_calls(jsonb) from public;
comment on function private.names_calls(jsonb) is 'Whether each item of a JSON array names a call by id and lease.';

-- file: private/find_webhook_call.sql 4ab267ccd2183c6f7b357aa2939b0f0e5f1b5245f4bf0af289f4bf2f9ffa92e0
-- The call that a carrier's event is about, or null: of the agency that the event was delivered for, whatever
-- ids it names. In this order:
--   1. metadata.batch_id, metadata.call_id and metadata.lease, which the dialer gave the carrier. An event with a
--      lease is about that call or about none: ids come again after a crash, leases do not.
--   2. callId, as confirm_call or an earlier event noted it.
--   3. metadata.batch_id and metadata.call_id: a call that was claimed before leases had names.
--   4. metadata.batch_id and metadata.contact_id: the contact's latest call.
-- Null too for a call that start_call has not let through.
create or replace function private.find_webhook_call(p_agency_id uuid, p_payload jsonb)
returns public.calls
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_carrier_call_id constant text := p_payload #>> '{call,callId}';
  v_metadata        constant jsonb := p_payload #> '{call,metadata}';
  v_uuid            constant text := '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$';
  v_batch_id        uuid;
  v_call_id         bigint;
  v_lease           uuid;
  v_contact_id      bigint;
  v_call            public.calls;
begin
  -- As numbers or strings.
  v_batch_id := case when v_metadata ->> 'batch_id' ~ v_uuid then (v_metadata ->> 'batch_id')::uuid end;
  v_call_id := case when v_metadata ->> 'call_id' ~ '^[0-9]{1,18}$' then (v_metadata ->> 'call_id')::bigint end;
  v_lease := case when v_metadata ->> 'lease' ~ v_uuid then (v_metadata ->> 'lease')::uuid end;
  v_contact_id := case when v_metadata ->> 'contact_id' ~ '^[0-9]{1,18}$' then (v_metadata ->> 'contact_id')::bigint end;

  if v_metadata ->> 'lease' is null then
    select k.* into v_call
      from public.calls k
     where k.carrier_call_id = v_carrier_call_id and k.agency_id = p_agency_id
     limit 1;
    if found then
      return v_call;
    end if;
    if v_metadata ->> 'call_id' is null then
      select c.call_id, (
               select k.lease
                 from public.calls k
                where k.agency_id = p_agency_id and k.batch_id = v_batch_id and k.id = c.call_id)
        into v_call_id, v_lease
        from public.campaign_contacts c
       where c.agency_id = p_agency_id and c.batch_id = v_batch_id and c.id = v_contact_id;
    end if;
  elsif v_lease is null then
    return null;
  end if;
  select k.* into v_call
    from public.calls k
   where k.agency_id = p_agency_id and k.batch_id = v_batch_id and k.id = v_call_id
     and k.lease is not distinct from v_lease
     and k.started_at is not null;
  return v_call;
end;
$$;

revoke execute on function private.find_webhook_call(uuid, jsonb) from public;
comment on function private.find_webhook_call(uuid, jsonb) is 'The call that a carrier''s event is about.';

-- file: private/check_counters.sql 81707e6ebefbcba1fbbfa3b03a8718b95c7abf510d4bccf5cda730e46d500acd
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

-- file: dialer/claim_contacts.sql 5a9a6e2f161cf9f8c96143aee115511b1ac330a52e1c7519bec68200821eb87a
alter type public.claimed_contact add attribute lease uuid;

-- Claim the next contacts of one batch under a lease of p_lease_seconds, at most
-- p_max_contacts, and no more than the batch's max_concurrent and calls_per_minute leave
-- room for. First those that came back and are due, then the others in dial order; outside the
-- batch's calling hours only those that are due and have a time zone of their own.
-- Returns nothing, without waiting, when someone else holds the batch: claimers never queue
-- up in front of a cancel.
create or replace function private.claim_batch(
  p_agency_id uuid, p_batch_id uuid, p_max_contacts integer, p_lease_seconds integer)
returns setof public.claimed_contact
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- Plans that are right for any batch. What statistics suggest is not, when they are of an empty
-- table or do not know this batch: then each call would read all of it.
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_batch       public.call_batches;
  v_agent       public.agent_mappings;
  v_now         timestamptz;
  v_expires_at  timestamptz;
  -- One for the claim, since its calls are started together; a call is told apart by the id beside it.
  v_lease       constant uuid := gen_random_uuid();
  v_call_ids    constant regclass := pg_get_serial_sequence('public.calls', 'id')::regclass;
  v_opens_at    timestamptz;
  v_limit       integer;
  v_recent      timestamptz[];
  v_due         bigint[];
  v_turns       integer;
  v_in_turn     bigint[];
  v_first       bigint;
  v_last        bigint;
begin
  select b.* into v_batch
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id and b.status = 'processing'
     for no key update skip locked;
  if not found then
    return;
  end if;
  v_now := clock_timestamp();
  v_expires_at := v_now + make_interval(secs => p_lease_seconds);
  v_limit := greatest(least(p_max_contacts, v_batch.max_concurrent - v_batch.queued - v_batch.in_progress), 0);

  if v_batch.calls_per_minute is not null and v_limit > 0 then
    v_recent := array(
      select r.created_at
        from (select c.created_at
                from public.calls c
               where c.agency_id = p_agency_id and c.batch_id = p_batch_id
               order by c.agency_id desc, c.batch_id desc, c.id desc
               limit v_batch.calls_per_minute) r
       -- A call from a time to come is of a clock that stepped back.
       where r.created_at between v_now - interval '1 minute' and v_now + interval '1 minute'
       order by r.created_at);
    if cardinality(v_recent) >= v_batch.calls_per_minute then
      update public.call_batches b
         set next_claim_at = v_recent[1] + interval '1 minute'
       where b.agency_id = p_agency_id and b.id = p_batch_id;
      return;
    end if;
    v_limit := least(v_limit, v_batch.calls_per_minute - cardinality(v_recent));
  end if;
  if v_limit = 0 then
    return;
  end if;
  select a.* into v_agent
    from public.agent_mappings a
   where a.agency_id = p_agency_id and a.id = v_batch.agent_mapping_id;
  v_opens_at := private.next_calling_time(
    v_batch.calling_start, v_batch.calling_end, v_batch.allowed_days, v_batch.timezone, v_now);

  v_due := array(
    select c.id
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id
       and c.due_at <= v_now and c.status in ('pending', 'scheduled')
       and (v_opens_at = v_now or c.timezone is not null)
     order by c.due_at
     limit v_limit);
  v_turns := case when v_opens_at = v_now then v_limit - cardinality(v_due) else 0 end;
  v_in_turn := array(
    select c.id
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id > v_batch.claim_cursor
       and c.due_at is null and c.status in ('pending', 'scheduled')
     order by c.agency_id, c.batch_id, c.id
     limit v_turns);

  -- By runs of neighbouring ids, each a range of the primary key: "= any" and a join can be planned
  -- to read the whole batch.
  for v_first, v_last in
    select min(i.id), max(i.id)
      from (select u.id, u.id - row_number() over (order by u.id) as run
              from unnest(v_due || v_in_turn) as u (id)) i
     group by i.run
     order by 1
  loop
    return query
      with claimed as (
        update public.campaign_contacts c
           set status = 'queued',
               due_at = null
         where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id between v_first and v_last
        returning c.id, c.phone_number, (c.attempts + 1)::smallint as attempt),
      numbered as materialized (
        select nextval(v_call_ids) as call_id, n.*
          from (select * from claimed c order by c.id) n),
      leased as (
        insert into public.calls (
          agency_id, batch_id, id, contact_id, attempt, created_at, lease_expires_at, lease)
        select p_agency_id, p_batch_id, n.call_id, n.id, n.attempt, v_now, v_expires_at, v_lease
          from numbered n)
      select p_agency_id, p_batch_id, n.call_id, n.id, n.phone_number,
             coalesce(v_batch.calling_numbers[1 + n.call_id % cardinality(v_batch.calling_numbers)],
                      v_batch.from_number),
             v_batch.agent_mapping_id, n.attempt,
             coalesce((select jsonb_strip_nulls(jsonb_build_object(
                                'first_name', d.first_name, 'last_name', d.last_name, 'email', d.email,
                                'company', d.company, 'title', d.title)) || d.custom_data
                         from public.contact_data d
                        where d.agency_id = p_agency_id and d.batch_id = p_batch_id
                          and d.contact_id = n.id), '{}'),
             v_expires_at,
             v_agent.ultravox_agent_id, v_agent.max_duration_seconds, v_agent.recording_enabled,
             v_lease
        from numbered n
       order by n.call_id;
  end loop;

  update public.call_batches b
     set queued = b.queued + cardinality(v_due) + cardinality(v_in_turn),
         claim_cursor = coalesce(
           case when cardinality(v_in_turn) < v_turns then (
             -- None is left in turn: do not look through those that are due or done again.
             select c.id
               from public.campaign_contacts c
              where c.agency_id = p_agency_id and c.batch_id = p_batch_id
              order by c.agency_id desc, c.batch_id desc, c.id desc
              limit 1)
           else v_in_turn[cardinality(v_in_turn)] end, b.claim_cursor),
         last_claimed_at = v_now,
         -- All are claimed: nothing to look for until one is due, comes back, or the calling hours begin.
         next_claim_at = case
           when cardinality(v_due) + cardinality(v_in_turn) = v_limit then b.next_claim_at
           when v_opens_at = v_now then (
             select min(c.due_at)
               from public.campaign_contacts c
              where c.agency_id = p_agency_id and c.batch_id = p_batch_id
                and c.due_at is not null and c.status in ('pending', 'scheduled'))
           else least(v_opens_at, (
             select min(c.due_at)
               from public.campaign_contacts c
              where c.agency_id = p_agency_id and c.batch_id = p_batch_id
                and c.due_at is not null and c.timezone is not null and c.status in ('pending', 'scheduled')))
         end
   where b.agency_id = p_agency_id and b.id = p_batch_id;
end;
$$;

revoke execute on function private.claim_batch(uuid, uuid, integer, integer) from public;
comment on function private.claim_batch(uuid, uuid, integer, integer) is 'Claim the next contacts of one batch.';

-- Claim the next contacts to call, all of one batch: of the batches that have something to
-- claim, the one that was served longest ago, so that a huge batch takes turns with a small one.
-- max_contacts: 1 to 1000. lease_seconds: 1 to 3600; start_call must come before it ends.
-- batch_id: only this batch. Returns nothing when there is nothing to claim now.
-- Raises PT401, PT403 (not a service or console), PT400 (a number out of range).
create or replace function private.claim_contacts(p_max_contacts integer, p_lease_seconds integer, p_batch_id uuid)
returns setof public.claimed_contact
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now   timestamptz := clock_timestamp();
  v_batch record;
begin
  perform private.require_service();
  if pg_current_xact_id_if_assigned() is null then
    -- A claim that a crash takes back has done nothing: start_call lets no call through whose lease is
    -- gone, and its own commit, which is waited for, makes the lease durable with it. So nobody waits for the
    -- disk with the batch locked. The ids that it takes back come again, under another lease.
    -- Not in a transaction that has changed something before.
    perform set_config('synchronous_commit', 'off', true);
  end if;
  if p_max_contacts is null or p_max_contacts not between 1 and 1000
     or p_lease_seconds is null or p_lease_seconds not between 1 and 3600 then
    raise sqlstate 'PT400' using message = 'max_contacts must be 1 to 1000 and lease_seconds 1 to 3600',
      detail = '{"code": "claim_out_of_range"}';
  end if;

  for v_batch in
    select b.agency_id, b.id
      from public.call_batches b
     where b.status = 'processing'
       and b.next_claim_at <= v_now
       and (b.max_concurrent is null or b.queued + b.in_progress < b.max_concurrent)
       and (p_batch_id is null or b.id = p_batch_id)
     -- A claim at a time to come is of a clock that stepped back.
     order by case when b.last_claimed_at <= v_now + interval '1 minute' then b.last_claimed_at end nulls first,
              b.created_at
     limit 50  -- those that turn out to have reached their rate stay locked until the claim commits
  loop
    return query select * from private.claim_batch(v_batch.agency_id, v_batch.id, p_max_contacts, p_lease_seconds);
    exit when found;
  end loop;
end;
$$;

revoke execute on function private.claim_contacts(integer, integer, uuid) from public;
grant  execute on function private.claim_contacts(integer, integer, uuid) to service_role, lastcall_admin;
comment on function private.claim_contacts(integer, integer, uuid) is 'public.claim_contacts.';

create or replace function public.claim_contacts(
  max_contacts integer default 10, lease_seconds integer default 60, batch_id uuid default null)
returns setof public.claimed_contact
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select * from private.claim_contacts(max_contacts, lease_seconds, batch_id)
$$;

revoke execute on function public.claim_contacts(integer, integer, uuid) from public, anon, authenticated;
grant  execute on function public.claim_contacts(integer, integer, uuid) to service_role, lastcall_admin;
comment on function public.claim_contacts(integer, integer, uuid) is
  'Claim the next contacts to call, under a lease; batches take turns.';

-- file: dialer/start_call.sql d9ca82b7df499af40c08e2c506b82aa685804c4c37f8a0dfe17337f9e96188e4
-- A dialer of a release before leases starts no call.
-- squawk-ignore ban-drop-function
drop function if exists public.start_call(uuid, bigint[]);
-- squawk-ignore ban-drop-function
drop function if exists private.start_call(uuid, uuid, bigint[]);
create type public.started_calls as (
  started bigint[],   -- the calls to place
  unknown bigint[]    -- ids that name no call under this lease: given back, or taken back by a crash
);

-- When a number of the agency, with p_others calls in 24 hours beside it, may be called (p_now: at once).
create or replace function private.number_free_at(
  p_agency_id uuid, p_phone_number text, p_others integer, p_now timestamptz)
returns timestamptz
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_started_at timestamptz;
begin
  if p_others < 0 then
    return p_now + interval '24 hours';
  end if;
  select k.started_at into v_started_at
    from public.campaign_contacts c
   -- Fenced: by its index alone, not by the agency's key.
   cross join lateral (
     select k.agency_id, k.started_at from public.calls k where k.contact_id = c.id offset 0) k
   where c.agency_id = p_agency_id and c.phone_number = p_phone_number
     and k.agency_id = p_agency_id and k.started_at > p_now - interval '24 hours'
   order by k.started_at desc
   offset p_others
   limit 1;
  return coalesce(v_started_at + interval '24 hours', p_now);
end;
$$;

revoke execute on function private.number_free_at(uuid, text, integer, timestamptz) from public;
comment on function private.number_free_at(uuid, text, integer, timestamptz) is 'When a number may be called again.';

-- Those of a locked batch's leased calls that must not be placed now, and when they may be: outside the calling
-- hours of where the contact is, or a number that has had its most calls in 24 hours. due_at null: never, the
-- number is on the do-not-call list.
create or replace function private.find_withheld(
  p_batch public.call_batches, p_leased private.leased_call[], p_now timestamptz)
returns table (call_id bigint, contact_id bigint, due_at timestamptz)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
  if p_batch.max_calls_per_number is not null then
    -- Two batches that call the same number take turns here, in the order of the numbers, so that the
    -- second one counts the first one's call.
    insert into private.dialed_numbers as d (agency_id, phone_number)
    select p_batch.agency_id, l.phone_number
      from unnest(p_leased) l
     group by l.phone_number
     order by l.phone_number
        on conflict (agency_id, phone_number) do update set phone_number = excluded.phone_number;
  end if;

  return query
    select j.call_id, j.contact_id, case when not j.is_do_not_call then greatest(j.opens_at, j.free_at) end
      from (
        select l.call_id, l.contact_id,
               -- With limits: each by its key, and never by reading the whole list.
               coalesce((select true from public.do_not_call n
                          where n.agency_id = p_batch.agency_id and n.phone_number = l.phone_number
                          limit 1), false) as is_do_not_call,
               case when p_batch.calling_start is not null or p_batch.allowed_days is not null then
                 private.next_calling_time(p_batch.calling_start, p_batch.calling_end, p_batch.allowed_days,
                   coalesce(l.timezone, p_batch.timezone), p_now) end as opens_at,
               case when p_batch.max_calls_per_number is not null then
                 private.number_free_at(p_batch.agency_id, l.phone_number, p_batch.max_calls_per_number
                   - (row_number() over (partition by l.phone_number order by l.call_id))::integer, p_now) end as free_at
          from unnest(p_leased) l) j
     where j.is_do_not_call or greatest(j.opens_at, j.free_at) > p_now;
end;
$$;

revoke execute on function private.find_withheld(public.call_batches, private.leased_call[], timestamptz) from public;
comment on function private.find_withheld(public.call_batches, private.leased_call[], timestamptz) is
  'Leased calls that must not be placed now.';

-- The last gate before the carrier: of these calls of one claim, let those through that may be placed now,
-- and count the attempt. p_lease: as claim_contacts told it. A call passes while its batch is processing, its lease
-- runs, the number is not on the do-not-call list, the calling hours where the contact is have not ended, and the
-- number has calls left. The contact of a call that is withheld is skipped (do not call) or waits until it may be called.
-- p_place_within_seconds: counted by the caller from before it asked, the time in which a request must leave for the
-- carrier, or never leave. calls.place_by keeps the end of that time, counted from here and so never too early.
-- Returns the calls to place as started; a call that is not among them must not be placed.
-- Since cancel and stop hold the same lock, whatever has not passed when they commit never will.
-- Raises PT401, PT403 (not a service or console), PT404, PT400 (no lease; a time not from 0.1 to 60 seconds).
create or replace function private.start_call(
  p_agency_id uuid, p_batch_id uuid, p_call_ids bigint[], p_lease uuid, p_place_within_seconds double precision)
returns public.started_calls
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_batch       public.call_batches;
  v_now         timestamptz;
  v_result      public.started_calls;
  v_leased      private.leased_call[];
  v_withheld    record;
  v_skipped     integer := 0;
  v_delayed     integer := 0;
  v_due_at      timestamptz;
  v_call_ids    bigint[];
  v_contact_ids bigint[];
  v_first       bigint;
  v_last        bigint;
begin
  perform private.require_service();
  if p_lease is null then
    raise sqlstate 'PT400' using message = 'lease is required',
      detail = '{"code": "lease_required"}';
  end if;
  if p_place_within_seconds is null or p_place_within_seconds not between 0.1 and 60 then
    raise sqlstate 'PT400' using message = 'place_within_seconds must be from 0.1 to 60',
      detail = '{"code": "place_within_invalid"}';
  end if;
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  v_result.started := '{}';
  v_result.unknown := array(
    select u.id
      from (select distinct u.id from unnest(p_call_ids) as u (id)) u
     -- Each by its key: a join can be planned to read the whole batch.
      left join lateral (
       select true as is_known
         from public.calls k
        where k.agency_id = p_agency_id and k.batch_id = p_batch_id and k.id = u.id and k.lease = p_lease
        limit 1) k on true
     where k.is_known is null
     order by u.id);
  if v_batch.status <> 'processing' then
    return v_result;
  end if;

  v_leased := array(
    select (k.id, k.contact_id, c.phone_number, c.timezone)::private.leased_call
      from (select distinct u.id from unnest(p_call_ids) as u (id)) u
     cross join lateral (
       select k.id, k.contact_id
         from public.calls k
        where k.agency_id = p_agency_id and k.batch_id = p_batch_id and k.id = u.id and k.lease = p_lease
          -- As text: not by the index of open calls, which would read all leases of the batch.
          and k.status::text = 'queued' and k.lease_expires_at > v_now
        limit 1) k
     cross join lateral (
       select c.phone_number, c.timezone
         from public.campaign_contacts c
        where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = k.contact_id
        limit 1) c);
  for v_withheld in select w.* from private.find_withheld(v_batch, v_leased, v_now) w loop
    delete from public.calls c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_withheld.call_id;
    update public.campaign_contacts c
       set status = case when v_withheld.due_at is null then 'skipped'
                         when c.attempts > 0 then 'scheduled'
                         else 'pending' end::public.contact_status,
           due_at = v_withheld.due_at,
           outcome = case when v_withheld.due_at is null then 'do_not_call' else c.outcome end,
           outcome_notes = case when v_withheld.due_at is null then 'On the do-not-call list' else c.outcome_notes end
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_withheld.contact_id;
    v_skipped := v_skipped + (v_withheld.due_at is null)::integer;
    v_delayed := v_delayed + (v_withheld.due_at is not null)::integer;
    v_due_at := least(v_due_at, v_withheld.due_at);
  end loop;

  select min(u.id), max(u.id) into v_first, v_last from unnest(p_call_ids) as u (id);
  with started as (
    update public.calls c
       set status = 'in_progress',
           started_at = v_now,
           place_by = v_now + make_interval(secs => p_place_within_seconds)
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id
       -- The calls of one claim are neighbours in their batch.
       and c.id between v_first and v_last and c.id = any (p_call_ids) and c.lease = p_lease
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
     set queued = b.queued - coalesce(cardinality(v_call_ids), 0) - v_skipped - v_delayed,
         in_progress = b.in_progress + coalesce(cardinality(v_call_ids), 0),
         skipped = b.skipped + v_skipped,
         next_claim_at = case when v_delayed > 0 then least(b.next_claim_at, v_due_at) else b.next_claim_at end
   where b.agency_id = p_agency_id and b.id = p_batch_id
     and (v_call_ids is not null or v_skipped + v_delayed > 0);
  v_result.started := coalesce(v_call_ids, '{}');
  return v_result;
end;
$$;

revoke execute on function private.start_call(uuid, uuid, bigint[], uuid, double precision) from public;
grant  execute on function private.start_call(uuid, uuid, bigint[], uuid, double precision) to service_role, lastcall_admin;
comment on function private.start_call(uuid, uuid, bigint[], uuid, double precision) is 'public.start_call, for a batch of a known agency.';

-- The door to private.start_call. call_ids: as claimed, all of batch_id and of the claim with that lease.
create or replace function public.start_call(
  batch_id uuid, call_ids bigint[], lease uuid, place_within_seconds double precision default 2)
returns public.started_calls
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select * from private.start_call(private.find_batch_agency(batch_id), batch_id, call_ids, lease,
    place_within_seconds)
$$;

revoke execute on function public.start_call(uuid, bigint[], uuid, double precision) from public, anon, authenticated;
grant  execute on function public.start_call(uuid, bigint[], uuid, double precision) to service_role, lastcall_admin;
comment on function public.start_call(uuid, bigint[], uuid, double precision) is
  'The last gate before the carrier: returns the calls that may be placed now.';

-- file: dialer/confirm_call.sql 32d68d4324c37ad53031949e2c33724023c744c36b01abc4c0315eed4829cd61
-- squawk-ignore ban-drop-function
drop function if exists public.confirm_call(uuid, jsonb);
-- squawk-ignore ban-drop-function
drop function if exists private.confirm_call(uuid, uuid, jsonb);
-- squawk-ignore ban-drop-function
drop function if exists public.finish_call(uuid, jsonb);
-- squawk-ignore ban-drop-function
drop function if exists private.finish_call(uuid, uuid, jsonb);
create type public.reported_call as (call_id bigint, lease uuid, result text);

-- What became of a report about a call: changed; unchanged, since the call is over or not started; or unknown,
-- since no call has this id and this lease.

-- The result of a report that changed nothing.
create or replace function private.unchanged_or_unknown(
  p_agency_id uuid, p_batch_id uuid, p_call_id bigint, p_lease uuid)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
begin
  perform
    from public.calls c
   where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = p_call_id
     and c.lease is not distinct from p_lease;
  return case when found then 'unchanged' else 'unknown' end;
end;
$$;

revoke execute on function private.unchanged_or_unknown(uuid, uuid, bigint, uuid) from public;
comment on function private.unchanged_or_unknown(uuid, uuid, bigint, uuid) is 'The result of a report that changed nothing.';

-- Note that the carrier has these calls of one batch: its id of each, and that an unknown one is in progress.
-- p_confirmed: a JSON array of objects with call_id, lease and carrier_call_id (text).
-- Returns a row for each object, in their order: changed are the calls that were not over yet.
-- Raises PT401, PT403 (not a service or console), PT404, PT400 (not such an array).
create or replace function private.confirm_call(p_agency_id uuid, p_batch_id uuid, p_confirmed jsonb)
returns setof public.reported_call
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_confirmed record;
  v_result    text;
begin
  perform private.require_service();
  if not private.names_calls(p_confirmed) or exists (
       select from jsonb_array_elements(p_confirmed) as g (confirmed)
        where jsonb_typeof(g.confirmed -> 'carrier_call_id') is distinct from 'string') then
    raise sqlstate 'PT400' using message = 'confirmed must be an array of objects with a call_id, a lease and a carrier_call_id',
      detail = '{"code": "confirmed_invalid"}';
  end if;

  perform private.lock_batch(p_agency_id, p_batch_id);
  for v_confirmed in
    select r.call_id, r.lease, r.carrier_call_id
      from jsonb_to_recordset(p_confirmed) as r (call_id bigint, lease uuid, carrier_call_id text)
  loop
    update public.calls c
       set status = 'in_progress',
           carrier_call_id = coalesce(c.carrier_call_id, v_confirmed.carrier_call_id)
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_confirmed.call_id
       and c.lease is not distinct from v_confirmed.lease
       and c.status::text in ('in_progress', 'unknown');  -- as text: as in finish_call
    v_result := case when found then 'changed' else
      private.unchanged_or_unknown(p_agency_id, p_batch_id, v_confirmed.call_id, v_confirmed.lease) end;
    if v_result = 'unchanged' then
      -- The carrier has a call that was said not to be placed: check_counters finds it if its contact is called again.
      update public.calls c
         set carrier_call_id = v_confirmed.carrier_call_id
       where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_confirmed.call_id
         and c.lease is not distinct from v_confirmed.lease
         and c.status::text = 'failed' and c.outcome = 'not_placed' and c.carrier_call_id is null;
    end if;
    return next (v_confirmed.call_id, v_confirmed.lease, v_result)::public.reported_call;
  end loop;
end;
$$;

revoke execute on function private.confirm_call(uuid, uuid, jsonb) from public;
grant  execute on function private.confirm_call(uuid, uuid, jsonb) to service_role, lastcall_admin;
comment on function private.confirm_call(uuid, uuid, jsonb) is 'public.confirm_call, for a batch of a known agency.';

-- The door to private.confirm_call. confirmed: all of batch_id.
create or replace function public.confirm_call(batch_id uuid, confirmed jsonb)
returns setof public.reported_call
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select * from private.confirm_call(private.find_batch_agency(batch_id), batch_id, confirmed)
$$;

revoke execute on function public.confirm_call(uuid, jsonb) from public, anon, authenticated;
grant  execute on function public.confirm_call(uuid, jsonb) to service_role, lastcall_admin;
comment on function public.confirm_call(uuid, jsonb) is 'Note that the carrier has these calls.';

-- file: dialer/finish_call.sql 00b9839787f51cf829d5c2249430ef4f54c51c76956397885e39c4ef25458de2
-- Record the results of calls of one batch, in a group: one change of the batch's counters.
-- p_results: a JSON array of objects with call_id, lease, status (completed, failed, unknown or missing) and,
-- where known, outcome, duration_seconds, carrier_call_id, notes, counted. A failed call with attempts left
-- puts its contact back, due after the batch's retry delay, unless its outcome is not one to try
-- again after, or the batch is over (cancelled, or ended early): then the contact is failed.
-- A failed call with counted false was no attempt, since the carrier took no calls: the contact keeps the
-- attempts it had and, unless the batch is over, goes back whatever the outcome.
-- A call is unknown when nobody could tell whether the carrier got it. It stays in progress until the carrier
-- tells its end or that there was no such call; it is never placed again before.
-- A call is missing when the carrier was asked, by carrier_call_id if that was known, and has no such call. One that it
-- never confirmed was not placed: it failed, outcome not_placed. One that it had is completed, outcome lost: nobody is
-- called again because of it. One that it confirmed since it was asked is left as it is.
-- A result for a call that is not in progress (told twice, never started) changes nothing.
-- Returns a row for each object, in their order.
-- Raises PT401, PT403 (not a service or console), PT404, PT400 (not such an array).
create or replace function private.finish_call(p_agency_id uuid, p_batch_id uuid, p_results jsonb)
returns setof public.reported_call
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_batch     public.call_batches;
  v_now       timestamptz;
  v_retry_at  timestamptz;
  v_result    record;
  v_call      public.calls;
  v_contact   public.contact_status;
  v_completed integer := 0;
  v_failed    integer := 0;
  v_retried   integer := 0;
begin
  perform private.require_service();
  if not private.names_calls(p_results) or exists (
       select from jsonb_array_elements(p_results) as r (result)
        where jsonb_typeof(r.result -> 'status') is distinct from 'string'
           or r.result ->> 'status' not in ('completed', 'failed', 'unknown', 'missing')
           or jsonb_typeof(r.result -> 'duration_seconds') not in ('number', 'null')
           or jsonb_typeof(r.result -> 'counted') not in ('boolean', 'null')) then
    raise sqlstate 'PT400' using message = 'results must be an array of objects with a call_id, a lease, a status completed, failed, unknown or missing, numbers as durations, and counted true or false',
      detail = '{"code": "results_invalid"}';
  end if;

  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  v_retry_at := v_now + make_interval(secs => v_batch.retry_delay_seconds);
  for v_result in
    select r.call_id, r.lease, r.carrier_call_id, r.notes,
           r.status = 'missing' as is_missing,
           case when r.status <> 'missing' then r.status
                when r.carrier_call_id is null then 'failed'
                else 'completed' end::public.call_status as status,
           case when r.status <> 'missing' then r.outcome
                when r.carrier_call_id is null then 'not_placed'
                else 'lost' end as outcome,
           r.status = 'failed' and not coalesce(r.counted, true) as is_no_attempt,
           case when r.duration_seconds is not null
             then least(greatest(round(r.duration_seconds), 0), 2147483647)::integer end as duration_seconds
      from jsonb_to_recordset(p_results) as r (
        call_id bigint, lease uuid, status text, outcome text, duration_seconds numeric,
        carrier_call_id text, notes text, counted boolean)
  loop
    update public.calls c
       set status = v_result.status,
           ended_at = case when v_result.status <> 'unknown' then v_now end,
           outcome = v_result.outcome,
           duration_seconds = v_result.duration_seconds,
           carrier_call_id = coalesce(v_result.carrier_call_id, c.carrier_call_id)
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_result.call_id
       and c.lease is not distinct from v_result.lease
       -- As text: not by the index of open calls, which would read all those of the batch.
       and c.status::text in ('in_progress', 'unknown') and c.status <> v_result.status
       and (not v_result.is_missing or c.carrier_call_id is not distinct from v_result.carrier_call_id)
    returning c.* into v_call;
    if not found then
      return next (v_result.call_id, v_result.lease, private.unchanged_or_unknown(
        p_agency_id, p_batch_id, v_result.call_id, v_result.lease))::public.reported_call;
      continue;
    end if;
    return next (v_result.call_id, v_result.lease, 'changed')::public.reported_call;
    continue when v_result.status = 'unknown';

    select case when v_result.status = 'completed' then 'completed'
                when v_batch.status <> 'cancelled' and not v_batch.skip_remaining
                 and (v_result.is_no_attempt
                      or c.attempts < c.max_attempts
                     and (v_batch.retry_outcomes is null or v_result.outcome = any (v_batch.retry_outcomes)))
                  then 'scheduled'
                else 'failed' end::public.contact_status
      into v_contact
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_call.contact_id;
    update public.campaign_contacts c
       set status = v_contact,
           attempts = c.attempts - v_result.is_no_attempt::integer,
           due_at = case when v_contact = 'scheduled' then v_retry_at end,
           completed_at = case when v_contact <> 'scheduled' then v_now end,
           outcome = v_result.outcome,
           outcome_notes = v_result.notes,
           duration_seconds = v_result.duration_seconds
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_call.contact_id;
    v_completed := v_completed + (v_contact = 'completed')::integer;
    v_failed := v_failed + (v_contact = 'failed')::integer;
    v_retried := v_retried + (v_contact = 'scheduled')::integer;
  end loop;

  update public.call_batches b
     set in_progress = b.in_progress - v_completed - v_failed - v_retried,
         completed = b.completed + v_completed,
         failed = b.failed + v_failed,
         next_claim_at = case when v_retried > 0 then least(b.next_claim_at, v_retry_at) else b.next_claim_at end
   where b.agency_id = p_agency_id and b.id = p_batch_id and v_completed + v_failed + v_retried > 0;
end;
$$;

revoke execute on function private.finish_call(uuid, uuid, jsonb) from public;
grant  execute on function private.finish_call(uuid, uuid, jsonb) to service_role, lastcall_admin;
comment on function private.finish_call(uuid, uuid, jsonb) is 'public.finish_call, for a batch of a known agency.';

-- The door to private.finish_call. results: all of batch_id.
create or replace function public.finish_call(batch_id uuid, results jsonb)
returns setof public.reported_call
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select * from private.finish_call(private.find_batch_agency(batch_id), batch_id, results)
$$;

revoke execute on function public.finish_call(uuid, jsonb) from public, anon, authenticated;
grant  execute on function public.finish_call(uuid, jsonb) to service_role, lastcall_admin;
comment on function public.finish_call(uuid, jsonb) is 'Record the results of calls of one batch.';

-- file: dialer/process_webhook_queue.sql 42fafe2476f9c73bf6574dce93e7f1472408e0c21df5ab03bb20878f45c9121d
alter type private.webhook_event add attribute lease uuid;

-- An event to apply: to which call, and what it says.
-- What became of it.

-- Apply events to the calls of one batch, in a group: one change of the batch's counters.
-- Returns what became of each, or null, without waiting, when someone else holds the batch.
--   call.started, call.joined   the carrier has the call: confirm_call
--   call.ended                  its result: finish_call, with its rules of when a contact is called again
--     joined is given           completed, outcome answered, its duration from joined to ended
--     endReason unjoined        failed, outcome no_answer
--     any other endReason       failed, outcome the reason: hangup, agent_hangup, timeout, connection_error, system_error
--     none                      failed, outcome unknown
-- The first result of a call counts. What comes when it is over changes nothing, nor does what is about another
-- call of the carrier than the one that it first reported.
create or replace function private.apply_webhooks(
  p_agency_id uuid, p_batch_id uuid, p_events private.webhook_event[])
returns private.webhook_outcome[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_confirmed bigint[];
  v_others    bigint[];
  v_results   jsonb;
  v_first     bigint[];
  v_finished  bigint[];
begin
  perform
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id
     for no key update skip locked;
  if not found then
    return null;
  end if;

  v_confirmed := array(
    select c.call_id
      from private.confirm_call(p_agency_id, p_batch_id, coalesce((
        select jsonb_agg(jsonb_build_object(
                 'call_id', e.call_id, 'lease', e.lease, 'carrier_call_id', e.call ->> 'callId'))
          from unnest(p_events) e
         where e.event_type in ('call.started', 'call.joined')), '[]')) c
     where c.result = 'changed');
  v_others := array(
    select e.id
      from unnest(p_events) e
     where e.call ->> 'callId' <> (
       select k.carrier_call_id
         from public.calls k
        where k.agency_id = p_agency_id and k.batch_id = p_batch_id and k.id = e.call_id));

  select array_agg(f.id),
         coalesce(jsonb_agg(jsonb_build_object(
           'call_id', f.call_id,
           'lease', f.lease,
           'carrier_call_id', f.call ->> 'callId',
           'status', case when f.joined is not null then 'completed' else 'failed' end,
           'outcome', case when f.joined is not null then 'answered'
                           when f.reason = 'unjoined' then 'no_answer'
                           else coalesce(f.reason, 'unknown') end,
           'duration_seconds', case when private.is_timestamp(f.joined) and private.is_timestamp(f.call ->> 'ended')
             then extract(epoch from (f.call ->> 'ended')::timestamptz - f.joined::timestamptz) end)), '[]')
    into v_first, v_results
    from (select distinct on (e.call_id) e.id, e.call_id, e.lease, e.call, nullif(e.call ->> 'joined', '') as joined,
                 nullif(left(e.call ->> 'endReason', 50), '') as reason
            from unnest(p_events) e
           where e.event_type = 'call.ended' and e.id <> all (v_others)
           order by e.call_id, e.id) f;
  v_finished := array(
    select f.call_id from private.finish_call(p_agency_id, p_batch_id, v_results) f where f.result = 'changed');

  return array(
    select case when e.id = any (v_others)
                then (e.id, 'ignored', 'No such call')::private.webhook_outcome
                when e.event_type <> 'call.ended' and e.call_id = any (v_confirmed)
                  or e.id = any (v_first) and e.call_id = any (v_finished)
                then (e.id, 'completed', null)::private.webhook_outcome
                else (e.id, 'ignored', 'The call was over already')::private.webhook_outcome end
      from unnest(p_events) e);
end;
$$;

revoke execute on function private.apply_webhooks(uuid, uuid, private.webhook_event[]) from public;
comment on function private.apply_webhooks(uuid, uuid, private.webhook_event[]) is 'Apply events to the calls of one batch.';

-- Apply what carriers reported and is due, oldest first, batch by batch. Run it every few seconds, and again while it
-- has processed some; safe when several run at once. p_max_events: 1 to 10,000.
-- An event of no call of the agency, or of one that is over, is ignored, so that late, repeated and reordered ones
-- do no harm. A batch whose events cannot be applied fails alone. They are tried again after 30 seconds, 2, 8 and 32
-- minutes, each by itself then, so that only what is wrong fails again; after max_attempts they are dead.
-- It never waits for a lock, so it is part of no deadlock: events and batches that someone else holds are left to a
-- later run, which counts as no attempt. It holds the batches that it has changed until it commits, and a cancel of
-- one waits for that: so it begins no further one after 50 milliseconds, and leaves the rest to the next run.
-- Returns {"processed": applied or ignored, "failed": ...}, or {"processed": 0} when nothing was due.
-- Raises PT401, PT403 (not a service or console), PT400 (a number out of range).
-- Contract: process-webhook-queue.
create or replace function private.process_webhook_queue(p_max_events integer)
returns jsonb
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now       constant timestamptz := clock_timestamp();
  v_until     timestamptz;
  v_group     record;
  v_event     private.webhook_event;
  v_outcomes  private.webhook_outcome[];
  v_outcome   private.webhook_outcome;
  v_failed    integer := 0;
  v_processed integer := 0;
begin
  perform private.require_service();
  if p_max_events is null or p_max_events not between 1 and 10000 then
    raise sqlstate 'PT400' using message = 'max_events must be 1 to 10000',
      detail = '{"code": "max_events_out_of_range"}';
  end if;

  for v_group in
    with due as materialized (
      select q.agency_id, q.id, q.event_type, q.payload, q.attempts
        from public.webhook_queue q
       where q.next_retry_at <= v_now
       order by q.next_retry_at
       limit p_max_events
         for update skip locked)
    select d.agency_id, c.batch_id,
           array_agg((d.id, d.event_type, c.id, d.payload -> 'call', c.lease)::private.webhook_event order by d.id) as events
      from due d
     cross join lateral private.find_webhook_call(d.agency_id, d.payload) c
     group by d.agency_id, c.batch_id, case when d.attempts > 0 then d.id end
     order by min(d.id)
  loop
    exit when clock_timestamp() > v_until;
    v_until := coalesce(v_until, clock_timestamp() + interval '50 milliseconds');
    if v_group.batch_id is null then
      v_outcomes := array(select (e.id, 'ignored', 'No such call')::private.webhook_outcome from unnest(v_group.events) e);
    else
      begin
        v_outcomes := private.apply_webhooks(v_group.agency_id, v_group.batch_id, v_group.events);
      exception when others then
        v_outcomes := array(
          select (e.id, 'failed', left(sqlerrm, 500))::private.webhook_outcome from unnest(v_group.events) e);
      end;
    end if;

    -- Each event by its key: a join can be planned to read the whole queue.
    if v_outcomes is null then
      foreach v_event in array v_group.events loop
        -- Held: put off, lest it stand in front of other batches' events for as long.
        update public.webhook_queue q
           set next_retry_at = v_now + interval '1 second'
         where q.agency_id = v_group.agency_id and q.id = v_event.id;
      end loop;
      continue;
    end if;
    foreach v_outcome in array v_outcomes loop
      update public.webhook_queue q
         set status = case when v_outcome.status = 'failed' and q.attempts + 1 >= q.max_attempts then 'dead'
                           else v_outcome.status end,
             attempts = q.attempts + 1,
             error_message = v_outcome.error_message,
             processed_at = v_now,
             next_retry_at = case when v_outcome.status = 'failed' and q.attempts + 1 < q.max_attempts
               then v_now + interval '30 seconds' * 4 ^ q.attempts end
       where q.agency_id = v_group.agency_id and q.id = v_outcome.id;
      v_failed := v_failed + (v_outcome.status = 'failed')::integer;
    end loop;
    v_processed := v_processed + cardinality(v_outcomes);
  end loop;
  return case when v_processed = 0 then jsonb_build_object('processed', 0)
              else jsonb_build_object('processed', v_processed - v_failed, 'failed', v_failed) end;
end;
$$;

revoke execute on function private.process_webhook_queue(integer) from public;
grant  execute on function private.process_webhook_queue(integer) to service_role, lastcall_admin;
comment on function private.process_webhook_queue(integer) is 'public.process_webhook_queue.';

create or replace function public.process_webhook_queue(max_events integer default 200)
returns jsonb
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.process_webhook_queue(max_events)
$$;

revoke execute on function public.process_webhook_queue(integer) from public, anon, authenticated;
grant  execute on function public.process_webhook_queue(integer) to service_role, lastcall_admin;
comment on function public.process_webhook_queue(integer) is 'Apply what carriers reported.';

-- file: dialer/list_open_calls.sql da000e4e2cc8cd2f68b3f5c05f1904b1a8d110ef802687f89544d3790c5773f0
alter type public.open_call add attribute lease uuid;

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
    return next (v_call.agency_id, v_call.batch_id, v_call.id, v_call.contact_id, v_call.status,
                 v_call.carrier_call_id, extract(epoch from v_now - v_call.started_at), v_call.lease)::public.open_call;
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
