create type private.leased_call as (call_id bigint, contact_id bigint, phone_number text, timezone text);
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

-- The leased calls of a locked batch that must not be placed now, and when they may be: it is outside the calling
-- hours at the contact's place, or the number has had its most calls in 24 hours. due_at null: never, the
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
-- and count the attempt. p_lease: as claim_contacts told it. A call passes while its batch is processing and not held, its
-- lease runs, the number is not on the do-not-call list, the calling hours where the contact is have not ended, and the
-- number has calls left. The contact of a call that is withheld is skipped (do not call) or waits until it may be called.
-- p_place_within_seconds: counted by the caller from before it asked, the time in which a request must leave for the
-- carrier, or never leave. calls.place_by keeps the end of that time, counted from here and so never too early.
-- Returns the calls to place as started; a call that is not among them must not be placed.
-- Since cancel, stop and holds take the same lock, whatever has not passed when they commit never will.
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
  v_place_by    timestamptz;
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
  v_place_by := v_now + make_interval(secs => p_place_within_seconds);
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
  if v_batch.status <> 'processing' or private.is_held(v_batch, v_now) then
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
           place_by = v_place_by
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
         place_by = case when v_call_ids is null then b.place_by else greatest(b.place_by, v_place_by) end,
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
