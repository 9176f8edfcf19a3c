create type public.claimed_contact as (
  agency_id        uuid,
  batch_id         uuid,
  call_id          bigint,
  contact_id       bigint,
  phone_number     text,
  from_number      text,
  agent_mapping_id uuid,
  attempt          smallint,
  custom_data      jsonb,     -- with first_name, last_name, email, company and title, where known
  lease_expires_at timestamptz,
  ultravox_agent_id    text,  -- of the batch's agent, as the next two; null: the batch has none
  max_duration_seconds integer,
  recording_enabled    boolean,
  lease            uuid       -- of this claim; start_call, confirm_call and finish_call ask for it
);

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
-- Plans that are right for any batch. Statistics of an empty table, or without this batch, suggest a plan that reads
-- the whole batch for each call.
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
  if v_batch.last_claimed_at is null then
    -- A batch that came in being dialed, by a plain insert: nobody looked at the holds.
    select m.is_held, m.held_until into v_batch.is_held, v_batch.held_until from private.find_mark(v_batch) m;
    update public.call_batches b
       set is_held = v_batch.is_held,
           held_until = v_batch.held_until
     where b.agency_id = p_agency_id and b.id = p_batch_id and v_batch.is_held;
  end if;
  if private.is_held(v_batch, v_now) then
    return;
  end if;
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
             -- No contact is left in turn: do not read the contacts that are due or done a second time.
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
       and not (b.is_held and coalesce(b.held_until > v_now, true))
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
