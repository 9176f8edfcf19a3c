-- This migration holds up nobody for long: when it must wait for a lock, it gives up, and is run again.
set local lock_timeout = '500ms';

-- file: schema/do_not_call.sql a5ba07d4ee5dac69d1545d93bd97ca63a6872ff994b4e116b57a2aa331974143
alter table public.do_not_call
  add column source   text,
  add column added_by uuid;
comment on column public.do_not_call.source is 'Where the person said no: a call, an e-mail, a register.';
comment on column public.do_not_call.added_by is 'The user who added the number by opt_out.';

-- file: schema/call_batches.sql eb40369328649077bd1ed1acdb6a98c85972b984ccd35056e1813f1ff5d19d7e
alter table public.call_batches
  add column is_held    boolean not null default false,
  add column held_until timestamptz;
comment on column public.call_batches.is_held is 'A hold reaches the batch, until held_until. Right while it is processing: whatever begins or resumes it looks again.';
comment on column public.call_batches.held_until is 'When the last of its holds ends by itself; null: a person lifts it.';

-- file: schema/calls.sql 216c3206535521a4a28f37262d5882971e302923361ca7c45c3fe95c503f3ec6
alter table public.calls add column is_last boolean not null default false;
comment on column public.calls.is_last is 'Its contact is not called again, however the call ends: it was skipped meanwhile.';

-- file: schema/holds.sql d9340bdf9cfe1d94e1425c3548e6d2b28ddf6c6a161ae307f5ece6457ace4c80
-- What must not be called, until somebody lifts the hold or it ends by itself: the batches of an agency that match every
-- given one of campaign, agent and caller number, or with no agency the batches of all. One row is the whole history of
-- a hold. The batches that it reaches are marked (call_batches.is_held), so that start_call asks nothing new.
create table public.holds (
  id               uuid primary key default gen_random_uuid(),
  agency_id        uuid references public.agencies (id) on delete cascade,
  campaign_id      uuid,
  agent_mapping_id uuid,
  from_number      text,
  until            timestamptz,
  reason           text,
  created_at       timestamptz not null default clock_timestamp(),
  created_by       uuid,
  created_by_role  text not null,
  lifted_at        timestamptz,
  lifted_by        uuid,
  lifted_by_role   text,
  lift_reason      text,
  idempotency_key  text,
  request          jsonb,
  response         jsonb,
  check (num_nonnulls(campaign_id, agent_mapping_id, from_number) <= 1),
  check (agency_id is not null or num_nonnulls(campaign_id, agent_mapping_id, from_number) = 0),
  foreign key (agency_id, campaign_id) references public.campaigns (agency_id, id) on delete cascade,
  foreign key (agency_id, agent_mapping_id) references public.agent_mappings (agency_id, id) on delete cascade
);

-- The holds that count. Few, however long the history is.
create index holds_active on public.holds (agency_id) where lifted_at is null;
-- The history of an agency, newest first.
create index holds_agency on public.holds (agency_id, created_at);
-- A key names one hold of the agency.
create unique index holds_idempotency_key on public.holds (agency_id, idempotency_key) nulls not distinct
  where idempotency_key is not null;

comment on table public.holds is 'What must not be called, until it is lifted.';
comment on column public.holds.agency_id is 'Null: the batches of every agency.';
comment on column public.holds.until is 'When the hold ends by itself; null: never.';
comment on column public.holds.created_by_role is 'The database role that placed the hold.';
comment on column public.holds.request is 'With an idempotency key: what was asked, to know a repeat from another request.';
comment on column public.holds.response is 'With an idempotency key: what was answered, to answer a repeat.';

-- file: schema/admissions.sql cf614dd68243cf618db5ac736d7d411f4ae39f246da353415eaf3db957e0ba92
-- Rows that are locked and tell nothing. Each keeps two kinds of transactions apart, so that neither misses what
-- the other one is about to commit.

-- For holds of every agency: private.admit_live. A hold of one agency locks the agency's row in agencies.
create table private.live_admission (
  id       boolean primary key default true check (id),
  last_use timestamptz not null default now()
);
insert into private.live_admission default values;

-- For opt-outs of an agency: private.admit_contacts.
create table private.contact_admissions (
  agency_id uuid primary key,
  last_use  timestamptz not null default now()
);

comment on table private.live_admission is 'What a hold of every agency, and whatever brings a batch to life, lock.';
comment on table private.contact_admissions is 'What an opt-out of an agency, and whatever adds contacts, lock.';
comment on column private.live_admission.last_use is 'Written by a hold, so that a stricter transaction notices it.';
comment on column private.contact_admissions.last_use is 'Written by an opt-out, so that a stricter transaction notices it.';

-- file: schema/access.sql 706766bca4d3fb832757ab3f3b1b7cbd2318a55ba95231439097402fa9bd9c28
revoke all on table public.holds from public, anon, authenticated, service_role, lastcall_admin;
grant select (id, agency_id, campaign_id, agent_mapping_id, from_number, until, reason, created_at, created_by,
              created_by_role, lifted_at, lifted_by, lifted_by_role, lift_reason)
  on table public.holds to authenticated, service_role;
grant select on table public.holds to lastcall_admin;
alter table public.holds enable row level security;
create policy own_agency on public.holds for select to authenticated
  using (agency_id = private.current_agency_id());
create policy every_agency on public.holds for select to lastcall_admin using (true);

-- file: private/admit_live.sql 157d1c0c2e5672d230709d42e551bd468c0a92514d222ed4c4e2ff09f109fa1f
-- Let the transaction bring batches of an agency to life, until it ends: no hold slips in between its look at the holds and
-- its commit. Call it before the batch is locked. Many do so at once; a hold waits for them, and they for it.
-- Raises PT503 (a hold is being placed or lifted, for too long), 40001 (meanwhile, at a stricter isolation).
create or replace function private.admit_live(p_agency_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
begin
  perform set_config('lock_timeout', private.longest_wait(), true);
  perform from private.live_admission l for share;
  perform from public.agencies a where a.id = p_agency_id for share;
  perform set_config('lock_timeout', v_lock_timeout, true);
exception
  when lock_not_available then
    raise sqlstate 'PT503' using message = 'Another request holds what this one needs; try again',
      detail = '{"code": "agency_busy", "retry_after": 2}';
end;
$$;

revoke execute on function private.admit_live(uuid) from public;
comment on function private.admit_live(uuid) is 'Let the transaction bring batches of an agency to life.';

-- Let nobody bring batches of an agency (null: of any agency) to life until the transaction ends, and wait for those who
-- are about to. Holds of the agency take turns here.
-- Raises PT503 (another request takes too long), 40001 (meanwhile, at a stricter isolation).
create or replace function private.close_live(p_agency_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
begin
  perform private.commit_durably();
  perform set_config('lock_timeout', private.longest_wait(), true);
  -- Updates, though nothing changes: at a stricter isolation, whoever had looked at the holds before fails.
  if p_agency_id is null then
    update private.live_admission l set last_use = clock_timestamp();
  else
    update public.agencies a set name = a.name where a.id = p_agency_id;
  end if;
  perform set_config('lock_timeout', v_lock_timeout, true);
exception
  when lock_not_available then
    raise sqlstate 'PT503' using message = 'Another request holds what this one needs; try again',
      detail = '{"code": "agency_busy", "retry_after": 2}';
end;
$$;

revoke execute on function private.close_live(uuid) from public;
comment on function private.close_live(uuid) is 'Let nobody bring batches of an agency to life until the transaction ends.';

-- file: private/admit_contacts.sql c9ae2e40704617e187e606203afba6ada7020ab10a7c9f2ea817208ff0b20fad
-- Let the transaction add contacts to batches of an agency, until it ends: no opt-out slips in between its look at the
-- do-not-call list and its commit. Call it before the batch is locked. Many do so at once.
-- Raises PT503 (an opt-out takes too long), 40001 (an opt-out meanwhile, at a stricter isolation).
create or replace function private.admit_contacts(p_agency_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
begin
  perform set_config('lock_timeout', private.longest_wait(), true);
  perform from private.contact_admissions a where a.agency_id = p_agency_id for share;
  if not found then
    -- The first one of the agency.
    insert into private.contact_admissions (agency_id) values (p_agency_id) on conflict do nothing;
    perform from private.contact_admissions a where a.agency_id = p_agency_id for share;
  end if;
  perform set_config('lock_timeout', v_lock_timeout, true);
exception
  when lock_not_available then
    raise sqlstate 'PT503' using message = 'Another request holds what this one needs; try again',
      detail = '{"code": "agency_busy", "retry_after": 2}';
end;
$$;

revoke execute on function private.admit_contacts(uuid) from public;
comment on function private.admit_contacts(uuid) is 'Let the transaction add contacts to batches of an agency.';

-- Let nobody add contacts to batches of an agency until the transaction ends, and wait for those who are about to.
-- Raises PT503 (another request takes too long), 40001 (another opt-out meanwhile, at a stricter isolation).
create or replace function private.close_contacts(p_agency_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
begin
  perform private.commit_durably();
  perform set_config('lock_timeout', private.longest_wait(), true);
  insert into private.contact_admissions as a (agency_id)
  values (p_agency_id)
      on conflict (agency_id) do update set last_use = clock_timestamp();
  perform set_config('lock_timeout', v_lock_timeout, true);
exception
  when lock_not_available then
    raise sqlstate 'PT503' using message = 'Another request holds what this one needs; try again',
      detail = '{"code": "agency_busy", "retry_after": 2}';
end;
$$;

revoke execute on function private.close_contacts(uuid) from public;
comment on function private.close_contacts(uuid) is 'Let nobody add contacts to batches of an agency until the transaction ends.';

-- file: private/id_ranges.sql c44aa61138acca95b4f7bb5ca7254b6d0fc13f7f6496eca0b1db5ad22ad22fc1
-- Ids as ranges of neighbours, in ascending order; null: one range of every id. Each is a range of the primary key:
-- "= any" and a join can be planned to read the whole batch.
create or replace function private.id_ranges(p_ids bigint[])
returns table (first_id bigint, last_id bigint)
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select min(i.id), max(i.id)
    from (select u.id, u.id - row_number() over (order by u.id) as run
            from (select distinct u.id from unnest(p_ids) as u (id)) u) i
   where p_ids is not null
   group by i.run
   union all
  select 0, 9223372036854775807
   where p_ids is null
   order by 1
$$;

revoke execute on function private.id_ranges(bigint[]) from public;
comment on function private.id_ranges(bigint[]) is 'Ids as ranges of neighbours; null: one range of every id.';

-- file: private/skip_selected.sql 5dd1be9add9276e72ce0c58f25400a1d0a491012554781a8941b9c0ef19c5e31
-- Which contacts of a batch a request means. A null field does not matter; a contact meets all the others.
create type private.contact_filter as (
  contact_ids  bigint[],
  statuses     public.contact_status[],
  min_attempts integer,
  max_attempts integer,
  custom_data  jsonb   -- columns and their values, as strings
);

-- Whether a contact meets a filter, its ids apart.
-- A column is one of custom_data, or first_name, last_name, email, company or title.
create or replace function private.meets_filter(p_contact public.campaign_contacts, p_filter private.contact_filter)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_data public.contact_data;
begin
  if p_contact.status <> all (p_filter.statuses)
     or p_contact.attempts < p_filter.min_attempts
     or p_contact.attempts > p_filter.max_attempts then
    return false;
  end if;
  if p_filter.custom_data is null then
    return true;
  end if;
  select d.* into v_data
    from public.contact_data d
   where d.agency_id = p_contact.agency_id and d.batch_id = p_contact.batch_id and d.contact_id = p_contact.id;
  return not exists (
    select from jsonb_each_text(p_filter.custom_data) as f (name, value)
     where coalesce(
             v_data.custom_data ->> f.name,
             case f.name when 'first_name' then v_data.first_name
                         when 'last_name' then v_data.last_name
                         when 'email' then v_data.email
                         when 'company' then v_data.company
                         when 'title' then v_data.title end) is distinct from f.value);
end;
$$;

revoke execute on function private.meets_filter(public.campaign_contacts, private.contact_filter) from public;
comment on function private.meets_filter(public.campaign_contacts, private.contact_filter) is
  'Whether a contact meets a filter, its ids apart.';

create type private.skipped_contacts as (
  skipped     integer,
  in_progress integer,  -- of the selected contacts, those with a call in progress: it finishes, and is the last one
  starting    integer   -- of these calls, how many can still start (see public.batch_silence)
);

-- Skip the selected contacts of a locked batch for good: pending, scheduled and queued ones become skipped, their leases
-- end. A call in progress to a selected contact finishes; the contact is not called again, however the call ends.
-- p_outcome and p_notes go into the contact's outcome and outcome_notes.
-- The caller holds the batch's lock. Sets the batch's counters.
create or replace function private.skip_selected(
  p_batch public.call_batches, p_filter private.contact_filter, p_outcome text, p_notes text)
returns private.skipped_contacts
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_call   record;
  v_first  bigint;
  v_last   bigint;
  v_count  integer;
  v_queued integer := 0;
  v_result private.skipped_contacts := (0, 0, 0);
begin
  for v_call in
    select k.id, k.status, k.carrier_call_id is null and k.place_by > clock_timestamp() or k.carrier_queued as is_starting
      from public.calls k
     cross join lateral (
       select c.*
         from public.campaign_contacts c
        where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id and c.id = k.contact_id
        limit 1) c
     where k.agency_id = p_batch.agency_id and k.batch_id = p_batch.id
       and k.status in ('queued', 'in_progress', 'unknown')
       and (p_filter.contact_ids is null or k.contact_id = any (p_filter.contact_ids))
       and private.meets_filter(c, p_filter)
  loop
    if v_call.status = 'queued' then
      delete from public.calls k
       where k.agency_id = p_batch.agency_id and k.batch_id = p_batch.id and k.id = v_call.id;
    else
      update public.calls k
         set is_last = true
       where k.agency_id = p_batch.agency_id and k.batch_id = p_batch.id and k.id = v_call.id;
      v_result.in_progress := v_result.in_progress + 1;
      v_result.starting := v_result.starting + coalesce(v_call.is_starting, false)::integer;
    end if;
  end loop;

  if p_batch.queued > 0 then
    select count(*)::integer into v_queued
      from private.id_ranges(p_filter.contact_ids) r
     cross join lateral (
       select
         from public.campaign_contacts c
        where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id and c.id between r.first_id and r.last_id
          and c.status = 'queued'
          and private.meets_filter(c, p_filter)) c;
  end if;
  for v_first, v_last in select r.first_id, r.last_id from private.id_ranges(p_filter.contact_ids) r loop
    update public.campaign_contacts c
       set status = 'skipped',
           outcome = coalesce(p_outcome, c.outcome),
           outcome_notes = p_notes
     where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id and c.id between v_first and v_last
       and c.status in ('pending', 'scheduled', 'queued')
       and private.meets_filter(c, p_filter);
    get diagnostics v_count = row_count;
    v_result.skipped := v_result.skipped + v_count;
  end loop;
  update public.call_batches b
     set queued = b.queued - v_queued,
         skipped = b.skipped + v_result.skipped
   where b.agency_id = p_batch.agency_id and b.id = p_batch.id and v_result.skipped > 0;
  return v_result;
end;
$$;

revoke execute on function private.skip_selected(public.call_batches, private.contact_filter, text, text) from public;
comment on function private.skip_selected(public.call_batches, private.contact_filter, text, text) is
  'Skip the selected contacts of a locked batch for good.';

-- What private.skip_selected would do to the batch as it is now.
create or replace function private.count_selected(p_batch public.call_batches, p_filter private.contact_filter)
returns private.skipped_contacts
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_result private.skipped_contacts;
begin
  select (count(*) filter (where c.status <> 'in_progress'))::integer,
         (count(*) filter (where c.status = 'in_progress'))::integer
    into v_result.skipped, v_result.in_progress
    from private.id_ranges(p_filter.contact_ids) r
   cross join lateral (
     select c.status
       from public.campaign_contacts c
      where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id and c.id between r.first_id and r.last_id
        and c.status in ('pending', 'scheduled', 'queued', 'in_progress')
        and private.meets_filter(c, p_filter)) c;
  select count(*)::integer into v_result.starting
    from public.calls k
   cross join lateral (
     select c.*
       from public.campaign_contacts c
      where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id and c.id = k.contact_id
      limit 1) c
   where k.agency_id = p_batch.agency_id and k.batch_id = p_batch.id and k.status in ('in_progress', 'unknown')
     and (k.carrier_call_id is null and k.place_by > clock_timestamp() or k.carrier_queued)
     and (p_filter.contact_ids is null or k.contact_id = any (p_filter.contact_ids))
     and private.meets_filter(c, p_filter);
  return v_result;
end;
$$;

revoke execute on function private.count_selected(public.call_batches, private.contact_filter) from public;
comment on function private.count_selected(public.call_batches, private.contact_filter) is
  'What private.skip_selected would do to a batch.';

-- file: private/mark_held.sql 0057d40720a5c718f4e0d86560379d4127883a151339922140ec05cd9efa0333
create type private.hold_mark as (is_held boolean, held_until timestamptz);

-- Whether a hold reaches a batch, by its scope alone. A batch that calls from several numbers is held whole.
create or replace function private.hold_reaches(p_hold public.holds, p_batch public.call_batches)
returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(p_hold.agency_id = p_batch.agency_id, true)
     and (p_hold.campaign_id is null or p_hold.campaign_id is not distinct from p_batch.campaign_id)
     and (p_hold.agent_mapping_id is null or p_hold.agent_mapping_id is not distinct from p_batch.agent_mapping_id)
     and (p_hold.from_number is null or p_hold.from_number is not distinct from p_batch.from_number
          or coalesce(p_hold.from_number = any (p_batch.calling_numbers), false))
$$;

revoke execute on function private.hold_reaches(public.holds, public.call_batches) from public;
comment on function private.hold_reaches(public.holds, public.call_batches) is 'Whether a hold reaches a batch.';

-- Whether a hold counts.
create or replace function private.is_active(p_hold public.holds)
returns boolean
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select p_hold.lifted_at is null and coalesce(p_hold.until > clock_timestamp(), true)
$$;

revoke execute on function private.is_active(public.holds) from public;
comment on function private.is_active(public.holds) is 'Whether a hold counts.';

-- Whether a batch is held, by its mark.
create or replace function private.is_held(p_batch public.call_batches, p_now timestamptz)
returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select p_batch.is_held and coalesce(p_batch.held_until > p_now, true)
$$;

revoke execute on function private.is_held(public.call_batches, timestamptz) from public;
comment on function private.is_held(public.call_batches, timestamptz) is 'Whether a batch is held, by its mark.';

-- The mark that a batch must have by the holds of this moment. Whoever brings the batch to life has called
-- private.admit_live before.
create or replace function private.find_mark(p_batch public.call_batches)
returns private.hold_mark
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(bool_or(true), false), case when bool_and(h.until is not null) then max(h.until) end
    from public.holds h
   where h.lifted_at is null and (h.agency_id = p_batch.agency_id or h.agency_id is null)
     and private.is_active(h)
     and private.hold_reaches(h, p_batch)
$$;

revoke execute on function private.find_mark(public.call_batches) from public;
comment on function private.find_mark(public.call_batches) is 'The mark that a batch must have by the holds of this moment.';

-- Since when a held batch is held: the first of the holds that reach it.
create or replace function private.held_since(p_batch public.call_batches)
returns timestamptz
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select min(h.created_at)
    from public.holds h
   where (h.agency_id = p_batch.agency_id or h.agency_id is null)
     and private.is_active(h)
     and private.hold_reaches(h, p_batch)
$$;

revoke execute on function private.held_since(public.call_batches) from public;
comment on function private.held_since(public.call_batches) is 'Since when a held batch is held.';

create type private.reached_batches as (
  batches     integer,  -- being dialed
  in_progress integer,  -- their calls that start_call let through and that are not over
  starting    integer,  -- of these, how many can still start (see public.batch_silence)
  held        integer   -- how many of the batches are marked
);

-- What a hold reaches: the batches being dialed, as they are now.
create or replace function private.count_reached(p_hold public.holds)
returns private.reached_batches
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select count(*), coalesce(sum(b.in_progress), 0), coalesce(sum(private.count_starting(b)), 0),
         count(*) filter (where private.is_held(b, clock_timestamp()))
    from public.call_batches b
   where b.status = 'processing' and (p_hold.agency_id is null or b.agency_id = p_hold.agency_id)
     and private.hold_reaches(p_hold, b)
$$;

revoke execute on function private.count_reached(public.holds) from public;
comment on function private.count_reached(public.holds) is 'What a hold reaches.';

-- Lock the batches being dialed that a hold reaches, in the one order of all who lock several, and give each the mark
-- that the holds of this moment ask for. None can begin meanwhile: the caller has called private.close_live.
-- Raises PT503 (another request holds one of the batches).
create or replace function private.mark_held(p_hold public.holds)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
  v_batch        record;
begin
  begin
    perform set_config('lock_timeout', private.longest_wait(), true);
    -- private.hold_reaches written out: a call for each batch would take longer than the locks.
    perform
       from public.call_batches b
      where b.status = 'processing' and (p_hold.agency_id is null or b.agency_id = p_hold.agency_id)
        and (p_hold.campaign_id is null or b.campaign_id = p_hold.campaign_id)
        and (p_hold.agent_mapping_id is null or b.agent_mapping_id = p_hold.agent_mapping_id)
        and (p_hold.from_number is null or b.from_number = p_hold.from_number
             or p_hold.from_number = any (b.calling_numbers))
      order by b.agency_id, b.id
        for no key update;
    perform set_config('lock_timeout', v_lock_timeout, true);
  exception
    when lock_not_available then
      for v_batch in
        select b.agency_id, b.id
          from public.call_batches b
         where b.status = 'processing' and (p_hold.agency_id is null or b.agency_id = p_hold.agency_id)
           and private.hold_reaches(p_hold, b)
         order by b.agency_id, b.id
      loop
        perform
           from public.call_batches b
          where b.agency_id = v_batch.agency_id and b.id = v_batch.id
            for no key update skip locked;
        if not found then
          perform private.refuse_busy(v_batch.agency_id, v_batch.id);
        end if;
      end loop;
      -- It was let go meanwhile.
      raise sqlstate 'PT503' using message = 'Another request holds what this one needs; try again',
        detail = '{"code": "agency_busy", "retry_after": 2}';
  end;
  -- A statement of its own: it sees what the batches became before they were locked.
  update public.call_batches b
     set (is_held, held_until) = (select m.is_held, m.held_until from private.find_mark(b) m)
   where b.status = 'processing' and (p_hold.agency_id is null or b.agency_id = p_hold.agency_id)
     and private.hold_reaches(p_hold, b);
end;
$$;

revoke execute on function private.mark_held(public.holds) from public;
comment on function private.mark_held(public.holds) is 'Give the batches that a hold reaches their marks.';

-- file: private/fresh_batch.sql da72dced592490029f1a9670c526577347cc421217d9ca9e3468238c249e0c86
-- A batch as every one begins, with the settings of p_batch: nothing of what became of that one, waiting for its time.
create or replace function private.fresh_batch(p_batch public.call_batches, p_scheduled_for timestamptz)
returns public.call_batches
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch public.call_batches := p_batch;
begin
  v_batch.id := gen_random_uuid();
  v_batch.scheduled_for := p_scheduled_for;
  v_batch.mode := case when p_scheduled_for is null then 'immediate' else 'scheduled' end::public.batch_mode;
  v_batch.status := case when p_scheduled_for is null then 'pending' else 'scheduled' end::public.batch_status;
  v_batch.total_contacts := 0;
  v_batch.queued := 0;
  v_batch.in_progress := 0;
  v_batch.completed := 0;
  v_batch.failed := 0;
  v_batch.skipped := 0;
  v_batch.started_at := null;
  v_batch.paused_at := null;
  v_batch.stopped_at := null;
  v_batch.completed_at := null;
  v_batch.error_message := null;
  v_batch.skip_remaining := false;
  v_batch.claim_cursor := 0;
  v_batch.created_at := clock_timestamp();
  v_batch.next_claim_at := v_batch.created_at;
  v_batch.last_claimed_at := null;
  v_batch.is_held := false;
  v_batch.held_until := null;
  return v_batch;
end;
$$;

revoke execute on function private.fresh_batch(public.call_batches, timestamptz) from public;
comment on function private.fresh_batch(public.call_batches, timestamptz) is 'A batch as every one begins.';

-- file: private/find_admin_agency.sql a56f8d460e9e1c1e6fdc041c65c42562716866ffa79464f9f1f4c62c5ee08317
-- The agency that the caller means: a user's own; for a service or a console the one that is named, or null, every one.
-- Raises PT401 (not signed in), PT403 (of no agency), PT404 (no such agency, or not the user's).
create or replace function private.find_agency(p_agency_id uuid)
returns uuid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor private.actor := private.current_actor();
begin
  if v_actor.kind = 'user' and v_actor.agency_id is null then
    raise sqlstate 'PT403' using message = 'User is not associated with an agency',
      detail = '{"code": "no_agency"}';
  end if;
  if p_agency_id <> v_actor.agency_id
     or p_agency_id is not null and not exists (select from public.agencies a where a.id = p_agency_id) then
    raise sqlstate 'PT404' using message = 'Agency not found',
      detail = '{"code": "agency_not_found"}';
  end if;
  return coalesce(p_agency_id, v_actor.agency_id);
end;
$$;

revoke execute on function private.find_agency(uuid) from public;
comment on function private.find_agency(uuid) is 'The agency that the caller means.';

-- The same for a caller who must be an owner or admin of the agency, a service or a console.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such agency, or not the user's).
create or replace function private.find_admin_agency(p_agency_id uuid)
returns uuid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor private.actor := private.current_actor();
begin
  if not (v_actor.kind = 'user' and v_actor.agency_id is null) and not private.is_agency_admin(v_actor) then
    raise sqlstate 'PT403' using message = 'User role must be agency_owner or agency_admin',
      detail = '{"code": "role_not_allowed"}';
  end if;
  return private.find_agency(p_agency_id);
end;
$$;

revoke execute on function private.find_admin_agency(uuid) from public;
comment on function private.find_admin_agency(uuid) is 'The agency that the caller means and may act for.';

-- file: api/create_batch.sql 90ca42a09fe5026096885e65202f9648c47cedf630f5c33e7ac0152eb4f44d29
-- Which agency an agent is of, before a procedure for that agency runs: a user's own agency, whatever
-- the id; for a service or a console, the agency of that agent. Raises PT401, PT400 (no id), PT404.
create or replace function private.find_agent_agency(p_agent_mapping_id uuid)
returns uuid
language plpgsql stable
security definer  -- looks at agents of every agency for a service or a console
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor     private.actor := private.current_actor();
  v_agency_id uuid;
begin
  if v_actor.kind = 'user' then
    return v_actor.agency_id;
  end if;
  if p_agent_mapping_id is null then
    raise sqlstate 'PT400' using message = 'agent_mapping_id is required',
      detail = '{"code": "agent_mapping_id_required"}';
  end if;
  select m.agency_id into v_agency_id from public.agent_mappings m where m.id = p_agent_mapping_id;
  if not found then
    raise sqlstate 'PT404' using message = 'Agent not found',
      detail = '{"code": "agent_not_found"}';
  end if;
  return v_agency_id;
end;
$$;

revoke execute on function private.find_agent_agency(uuid) from public;
grant  execute on function private.find_agent_agency(uuid) to authenticated, service_role, lastcall_admin;
comment on function private.find_agent_agency(uuid) is 'Which agency an agent is of.';

-- Create a batch with its first 1 to 10,000 contacts (see private.insert_contacts): it is dialed from the next run
-- of process_batches on, or from its scheduled_for on. p_batch: the columns of the batch that the caller gives, the
-- others null; p_contacts: a JSON array. All or nothing.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such agent, campaign or
-- user in the agency), PT400 (a setting out of range; not an active number of the agency; invalid contacts,
-- or none left to call), PT409 (idempotency key reused; external id taken), PT429 (too many requests).
-- Contract: calls-batch-create.
create or replace function private.create_batch(
  p_agency_id uuid, p_batch public.call_batches, p_contacts jsonb, p_idempotency_key text)
returns public.create_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.require_admin(p_agency_id);
  v_request  jsonb := jsonb_build_object(
    'procedure', 'create_batch', 'batch', to_jsonb(p_batch), 'actor', v_actor.id,
    'contacts', encode(sha256(convert_to(p_contacts::text, 'UTF8')), 'hex'));
  v_answer   jsonb;
  v_agent    public.agent_mappings;
  v_batch    public.call_batches;
  v_contacts private.inserted_contacts;
  v_result   public.create_batch_result;
begin
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  perform private.limit_requests(v_actor, 'create_batch');

  perform private.admit_contacts(p_agency_id);
  v_batch := private.check_batch(p_agency_id, p_batch, v_actor);
  select m.* into v_agent
    from public.agent_mappings m
   where m.agency_id = p_agency_id and m.id = v_batch.agent_mapping_id;

  begin
    insert into public.call_batches select v_batch.*;
    v_contacts := private.insert_contacts(v_batch, p_contacts);
    if v_contacts.added = 0 then
      raise sqlstate 'PT400' using message = 'No contact is left to call: every number is on the do-not-call list',
        detail = jsonb_build_object('code', 'no_contacts', 'do_not_call', v_contacts.do_not_call)::text;
    end if;
    update public.call_batches b
       set total_contacts = v_contacts.added
     where b.agency_id = p_agency_id and b.id = v_batch.id;

    v_result := row(v_batch.id, v_batch.status, v_contacts.added, v_agent.id, v_agent.ultravox_agent_name,
      v_batch.from_number, v_contacts.duplicates, v_contacts.do_not_call);
    v_batch.status := null;  -- it came from nowhere
    perform private.record_event(p_agency_id, v_batch, v_actor, 'create', v_result.status, v_contacts.added,
      p_idempotency_key => p_idempotency_key, p_request => v_request, p_response => to_jsonb(v_result));
  exception
    when unique_violation then
      raise sqlstate 'PT409' using message = 'Another batch of the agency has this id or external_id',
        detail = '{"code": "batch_id_taken"}';
    when sqlstate 'PT409' then
      -- Of two equal requests at once, the second one waited for the first one's answer.
      v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
      return jsonb_populate_record(v_result, v_answer);
  end;
  return v_result;
end;
$$;

revoke execute on function private.create_batch(uuid, public.call_batches, jsonb, text) from public;
grant  execute on function private.create_batch(uuid, public.call_batches, jsonb, text) to authenticated, service_role, lastcall_admin;
comment on function private.create_batch(uuid, public.call_batches, jsonb, text) is 'public.create_batch, for a known agency.';

-- The door to private.create_batch for users, services and consoles.
-- agent_mapping_id, campaign_id, from_number: of the agency; contacts: see private.insert_contacts.
-- calls_per_minute: 1 to 60. max_concurrent: 1 to 100. scheduled_for: null is at once. mode: immediate or scheduled,
-- if given, must agree with scheduled_for. user_id: the user of the agency whose batch it is, by default the caller.
-- calling_numbers: more numbers of the agency, called from in turn.
-- retry_delay_seconds: 0 to 604800 until a failed call is tried again; retry_outcomes: only after these.
-- calling_hours: {"start": "09:00", "end": "17:00"}; allowed_days: 0 (Sunday) to 6; both in timezone, or in the
-- contact's own. max_calls_per_number: in any 24 hours, with the agency's other batches, 1 to 100.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
create or replace function public.create_batch(
  agent_mapping_id uuid default null, from_number text default null, campaign_id uuid default null,
  contacts jsonb default null, calls_per_minute integer default 30, max_concurrent integer default 10,
  scheduled_for timestamptz default null, mode public.batch_mode default null,
  name text default null, external_id text default null, user_id uuid default null,
  calling_numbers text[] default null, retry_delay_seconds integer default 60, retry_outcomes text[] default null,
  calling_hours jsonb default null, allowed_days integer[] default null, timezone text default null,
  max_calls_per_number integer default null, idempotency_key text default null)
returns public.create_batch_result
language plpgsql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
#variable_conflict use_variable
declare
  v_batch public.call_batches;
begin
  v_batch.agent_mapping_id := agent_mapping_id;
  v_batch.from_number := from_number;
  v_batch.campaign_id := campaign_id;
  v_batch.calls_per_minute := calls_per_minute;
  v_batch.max_concurrent := max_concurrent;
  v_batch.scheduled_for := scheduled_for;
  v_batch.mode := mode;
  v_batch.name := name;
  v_batch.external_id := external_id;
  v_batch.user_id := user_id;
  v_batch.calling_numbers := calling_numbers;
  v_batch.retry_delay_seconds := retry_delay_seconds;
  v_batch.retry_outcomes := retry_outcomes;
  v_batch.calling_start := private.calling_time(calling_hours, 'start');
  v_batch.calling_end := private.calling_time(calling_hours, 'end');
  v_batch.allowed_days := allowed_days;
  v_batch.timezone := timezone;
  v_batch.max_calls_per_number := max_calls_per_number;
  return private.create_batch(private.find_agent_agency(agent_mapping_id), v_batch, contacts, idempotency_key);
end;
$$;

revoke execute on function public.create_batch(
  uuid, text, uuid, jsonb, integer, integer, timestamptz, public.batch_mode, text, text, uuid, text[], integer,
  text[], jsonb, integer[], text, integer, text) from public, anon;
grant  execute on function public.create_batch(
  uuid, text, uuid, jsonb, integer, integer, timestamptz, public.batch_mode, text, text, uuid, text[], integer,
  text[], jsonb, integer[], text, integer, text) to authenticated, service_role, lastcall_admin;
comment on function public.create_batch(
  uuid, text, uuid, jsonb, integer, integer, timestamptz, public.batch_mode, text, text, uuid, text[], integer,
  text[], jsonb, integer[], text, integer, text) is
  'Create a call batch with its first contacts.';

-- file: api/add_contacts.sql 39081145a125d598d6dae606946a6d69220f4964df1f73d2e09206cbdd09c3e9
-- Add 1 to 10,000 contacts to a batch, at the end of its dial order (see private.insert_contacts). Under
-- the batch's lock, so that none slips into a batch that is being cancelled, nor behind the claim cursor.
-- Raises PT401, PT403 (of no agency; not an owner or admin), PT404 (no such batch of the agency), PT400
-- (invalid contacts; batch completed or cancelled), PT409 (idempotency key reused), PT429 (too many requests).
create or replace function private.add_contacts(
  p_agency_id uuid, p_batch_id uuid, p_contacts jsonb, p_idempotency_key text)
returns public.add_contacts_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.require_admin(p_agency_id);
  v_request  jsonb := jsonb_build_object(
    'procedure', 'add_contacts', 'batch_id', p_batch_id, 'actor', v_actor.id,
    'contacts', encode(sha256(convert_to(p_contacts::text, 'UTF8')), 'hex'));
  v_answer   jsonb;
  v_batch    public.call_batches;
  v_contacts private.inserted_contacts;
  v_result   public.add_contacts_result;
begin
  perform private.admit_contacts(p_agency_id);
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  perform private.limit_requests(v_actor, 'add_contacts');
  if v_batch.status in ('completed', 'cancelled') then
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
  end if;

  v_contacts := private.insert_contacts(v_batch, p_contacts);
  update public.call_batches b
     set total_contacts = b.total_contacts + v_contacts.added,
         next_claim_at = least(b.next_claim_at, clock_timestamp())
   where b.agency_id = p_agency_id and b.id = p_batch_id and v_contacts.added > 0;
  v_result := row(true, p_batch_id, v_contacts.added, v_contacts.duplicates, v_contacts.do_not_call,
    v_batch.total_contacts + v_contacts.added);
  perform private.record_event(p_agency_id, v_batch, v_actor, 'add_contacts', v_batch.status, v_contacts.added,
    p_idempotency_key => p_idempotency_key, p_request => v_request, p_response => to_jsonb(v_result));
  return v_result;
end;
$$;

revoke execute on function private.add_contacts(uuid, uuid, jsonb, text) from public;
grant  execute on function private.add_contacts(uuid, uuid, jsonb, text) to authenticated, service_role, lastcall_admin;
comment on function private.add_contacts(uuid, uuid, jsonb, text) is 'public.add_contacts, for a batch of a known agency.';

-- The door to private.add_contacts for users, services and consoles.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
create or replace function public.add_contacts(
  batch_id uuid default null, contacts jsonb default null, idempotency_key text default null)
returns public.add_contacts_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.add_contacts(private.find_batch_agency(batch_id), batch_id, contacts, idempotency_key)
$$;

revoke execute on function public.add_contacts(uuid, jsonb, text) from public, anon;
grant  execute on function public.add_contacts(uuid, jsonb, text) to authenticated, service_role, lastcall_admin;
comment on function public.add_contacts(uuid, jsonb, text) is 'Add contacts to a call batch, at the end of its dial order.';

-- file: api/import_contacts.sql cfb86d981fb5ec6539641c9c7645dbaa9cad248d5ace6324c50362ad39859de0
-- Import the next rows of a file (see private.check_rows), in the order of the file. Valid ones become contacts (see
-- private.insert_valid_contacts); invalid ones are kept in import_errors, and keep no other from being imported. Rows that are
-- done are passed over: sent twice, they count once. Under the batch's lock, so that none slips into a batch that
-- is being cancelled, nor behind the claim cursor.
-- Returns private.import_progress. Raises PT401, PT403 (of no agency; not an owner or admin), PT404 (no such batch or import
-- of the agency), PT400 (not such rows; batch completed or cancelled).
create or replace function private.import_contacts(
  p_agency_id uuid, p_batch_id uuid, p_import_id uuid, p_rows jsonb)
returns json
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_errors_kept constant integer := 100000;
  v_batch    public.call_batches;
  v_import   public.batch_imports;
  v_numbers  integer[];
  v_phones   text[];
  v_errors   text[];
  v_valid    jsonb;
  v_last_row integer;
  v_contacts private.inserted_contacts := (0, 0, 0);
begin
  perform private.require_admin(p_agency_id);
  perform private.admit_contacts(p_agency_id);
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_import := private.find_import(p_agency_id, p_batch_id, p_import_id);
  if v_import.finished_at is not null then
    return private.import_progress(v_import);
  end if;
  if v_batch.status in ('completed', 'cancelled') then
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
  end if;

  select array_agg(r.row_number) filter (where r.error is not null),
         array_agg(left(r.contact ->> 'phone_number', 50)) filter (where r.error is not null),
         array_agg(r.error) filter (where r.error is not null),
         jsonb_agg(r.contact order by r.row_number) filter (where r.error is null),
         max(r.row_number)
    into v_numbers, v_phones, v_errors, v_valid, v_last_row
    from private.check_rows(p_rows) r
   where r.row_number > v_import.last_row;
  if v_last_row is null then
    return private.import_progress(v_import);
  end if;

  insert into public.import_errors (agency_id, import_id, row_number, phone_number, error)
  select p_agency_id, p_import_id, e.row_number, e.phone_number, e.error
    from unnest(v_numbers, v_phones, v_errors) as e (row_number, phone_number, error)
   order by e.row_number
   limit greatest(v_errors_kept - v_import.invalid, 0);
  if v_valid is not null then
    v_contacts := private.insert_valid_contacts(v_batch, v_valid, v_import.max_attempts);
  end if;
  update public.batch_imports i
     set last_row = v_last_row,
         added = i.added + v_contacts.added,
         duplicates = i.duplicates + v_contacts.duplicates,
         do_not_call = i.do_not_call + v_contacts.do_not_call,
         invalid = i.invalid + coalesce(cardinality(v_numbers), 0)
   where i.agency_id = p_agency_id and i.id = p_import_id
  returning i.* into v_import;
  update public.call_batches b
     set total_contacts = b.total_contacts + v_contacts.added,
         next_claim_at = least(b.next_claim_at, clock_timestamp())
   where b.agency_id = p_agency_id and b.id = p_batch_id and v_contacts.added > 0;
  return private.import_progress(v_import);
end;
$$;

revoke execute on function private.import_contacts(uuid, uuid, uuid, jsonb) from public;
grant  execute on function private.import_contacts(uuid, uuid, uuid, jsonb) to authenticated, service_role, lastcall_admin;
comment on function private.import_contacts(uuid, uuid, uuid, jsonb) is 'public.import_contacts, for a batch of a known agency.';

create or replace function public.import_contacts(
  batch_id uuid default null, import_id uuid default null, rows jsonb default null)
returns json
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.import_contacts(private.find_batch_agency(batch_id), batch_id, import_id, $3)
$$;

revoke execute on function public.import_contacts(uuid, uuid, jsonb) from public, anon;
grant  execute on function public.import_contacts(uuid, uuid, jsonb) to authenticated, service_role, lastcall_admin;
comment on function public.import_contacts(uuid, uuid, jsonb) is 'Import the next rows of a file into a call batch.';

-- file: api/start_batch.sql ab54f262659942a927a1814c1cdad860b2eafb6c814584ba90d0a2caebb6b6c1
-- Start a batch now: one that waits for its time, or that is paused or stopped. Starting one that is being
-- dialed is a success. A batch that a hold reaches is held. With p_call_data (a JSON array of 1 to 10,000 objects with phoneNumber; their other keys are told to the
-- agent), these are called instead of the stored contacts that were not called yet, which are skipped; with
-- p_calling_numbers, from these numbers of the agency.
-- The batch and user come from private.find_user_batch and are checked again here.
-- Raises PT401, PT403 (of no agency; neither the user nor an owner or admin), PT404 (no such batch of the user),
-- PT400 (completed, cancelled or failed; invalid contacts; not an active number), PT409 (idempotency key reused),
-- PT429 (too many requests), PT503 (a hold is being placed).
-- Contract: start-calling, from stopped too.
create or replace function private.start_batch(
  p_agency_id uuid, p_batch_id uuid, p_user_id uuid, p_given_id text, p_call_data jsonb, p_calling_numbers text[],
  p_idempotency_key text, p_reason text)
returns public.start_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.require_actor(p_agency_id);
  v_batch    public.call_batches;
  v_request  jsonb := jsonb_build_object(
    'procedure', 'start_batch', 'given_id', p_given_id, 'batch_id', p_batch_id, 'user_id', p_user_id,
    'call_data', encode(sha256(convert_to(p_call_data::text, 'UTF8')), 'hex'), 'calling_numbers', p_calling_numbers,
    'reason', p_reason, 'actor', v_actor.id);
  v_answer   jsonb;
  v_now      timestamptz;
  v_contacts private.inserted_contacts := (0, 0, 0);
  v_replaced integer := 0;
  v_mark     private.hold_mark;
  v_result   public.start_batch_result;
begin
  if not private.is_agency_admin(v_actor) and p_user_id is distinct from v_actor.id then
    raise sqlstate 'PT403' using message = 'Only the user, or an owner or admin of the agency, may do this',
      detail = '{"code": "role_not_allowed"}';
  end if;

  perform private.admit_live(p_agency_id);
  if p_call_data is not null then
    perform private.admit_contacts(p_agency_id);
  end if;
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  if p_user_id is not null and v_batch.user_id is distinct from p_user_id then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  end if;
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  perform private.limit_requests(v_actor, 'start_batch');
  if v_batch.status in ('completed', 'cancelled', 'failed') then
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
  end if;
  perform private.check_numbers(p_agency_id, p_calling_numbers);

  if p_call_data is not null then
    v_replaced := private.skip_remaining(p_agency_id, p_batch_id, 'Replaced');
    v_contacts := private.insert_contacts(v_batch, case when jsonb_typeof(p_call_data) = 'array' then (
      select jsonb_agg(case when jsonb_typeof(d.call) = 'object' then jsonb_build_object(
                         'phone_number', d.call -> 'phoneNumber', 'custom_data', d.call - 'phoneNumber')
                       else d.call end order by d.place)
        from jsonb_array_elements(p_call_data) with ordinality as d (call, place)) end);
  end if;
  v_batch.calling_numbers := coalesce(p_calling_numbers, v_batch.calling_numbers);
  v_mark := private.find_mark(v_batch);
  update public.call_batches b
     set status = 'processing',
         queued = case when p_call_data is null then b.queued else 0 end,
         skipped = b.skipped + v_replaced,
         total_contacts = b.total_contacts + v_contacts.added,
         calling_numbers = v_batch.calling_numbers,
         mode = 'immediate',
         scheduled_for = null,
         started_at = coalesce(b.started_at, v_now),
         paused_at = null,
         stopped_at = null,
         skip_remaining = false,
         is_held = v_mark.is_held,
         held_until = v_mark.held_until,
         next_claim_at = case when b.status = 'processing' then least(b.next_claim_at, v_now) else v_now end
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  v_result := row(p_given_id, 'processing'::public.batch_status,
    v_contacts.added, v_contacts.duplicates, v_contacts.do_not_call, v_replaced);
  perform private.record_event(p_agency_id, v_batch, v_actor, 'start', 'processing', v_contacts.added + v_replaced,
    p_on_behalf_of => p_user_id, p_reason => p_reason, p_idempotency_key => p_idempotency_key,
    p_request => v_request, p_response => to_jsonb(v_result));
  return v_result;
end;
$$;

revoke execute on function private.start_batch(uuid, uuid, uuid, text, jsonb, text[], text, text) from public;
grant  execute on function private.start_batch(uuid, uuid, uuid, text, jsonb, text[], text, text) to authenticated, service_role, lastcall_admin;
comment on function private.start_batch(uuid, uuid, uuid, text, jsonb, text[], text, text) is 'public.start_batch, for a batch and user of a known agency.';

-- The door to private.start_batch for users, services and consoles; these two may leave the user out.
-- batch_id, user_id: UUIDs or external ids. call_data: called instead of what is stored.
-- calling_numbers: E.164, active numbers of the agency, called from in turn.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
create or replace function public.start_batch(
  batch_id text default null, user_id text default null, call_data jsonb default null, calling_numbers text[] default null,
  idempotency_key text default null, reason text default null)
returns public.start_batch_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.start_batch(
           t.agency_id, t.batch_id, t.user_id, $1, call_data, calling_numbers, idempotency_key, reason)
    from private.find_user_batch($1, $2) t
$$;

revoke execute on function public.start_batch(text, text, jsonb, text[], text, text) from public, anon;
grant  execute on function public.start_batch(text, text, jsonb, text[], text, text) to authenticated, service_role, lastcall_admin;
comment on function public.start_batch(text, text, jsonb, text[], text, text) is
  'Start a call batch now, from waiting, paused or stopped.';

-- file: api/retry_batch.sql 4102d9713bec00bdb34207d6e09b41a42f76d0d326f5e14e34ec5018b85a179f
-- Dial the failed contacts of a batch again: a new batch of them, with the settings of the old one, which
-- stays as it is. What an earlier retry of the same batch took is not taken twice. p_outcomes: only those whose last call had one of these; null: all. p_scheduled_for: null is at once.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such batch of the agency),
-- PT400 (no contact failed so, or all were taken), PT409 (idempotency key reused), PT429 (too many requests).
create or replace function private.retry_batch(
  p_agency_id uuid, p_batch_id uuid, p_outcomes text[], p_scheduled_for timestamptz,
  p_idempotency_key text, p_reason text)
returns public.retry_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_actor   private.actor := private.require_admin(p_agency_id);
  v_request jsonb := jsonb_build_object(
    'procedure', 'retry_batch', 'batch_id', p_batch_id, 'outcomes', p_outcomes, 'scheduled_for', p_scheduled_for,
    'reason', p_reason, 'actor', v_actor.id);
  v_answer  jsonb;
  v_batch   public.call_batches;
  v_retry   public.call_batches;
  v_failed  integer;
  v_added   integer;
  v_result  public.retry_batch_result;
begin
  perform private.admit_contacts(p_agency_id);
  -- Held, so that of two retries at once the second one sees the first one's.
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  perform private.limit_requests(v_actor, 'retry_batch');

  v_retry := private.fresh_batch(v_batch, p_scheduled_for);
  v_retry.external_id := null;
  v_retry.retry_of := p_batch_id;
  insert into public.call_batches select v_retry.*;

  with failed as materialized (
    select c.id as old_id, c.phone_number, c.timezone, c.max_attempts,
           coalesce((select true from public.do_not_call n
                      where n.agency_id = p_agency_id and n.phone_number = c.phone_number
                      limit 1), false) as is_do_not_call
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.status = 'failed'
       and (p_outcomes is null or c.outcome = any (p_outcomes))
       and not exists (select from public.campaign_contacts r
                         join public.call_batches b on b.agency_id = r.agency_id and b.id = r.batch_id
                        where r.agency_id = p_agency_id and r.phone_number = c.phone_number
                          and b.retry_of = p_batch_id)),
  numbered as materialized (
    select nextval(pg_get_serial_sequence('public.campaign_contacts', 'id')) as id, f.*
      from (select * from failed where not is_do_not_call order by old_id) f),
  added as (
    insert into public.campaign_contacts (agency_id, batch_id, id, phone_number, timezone, max_attempts, due_at)
    select p_agency_id, v_retry.id, n.id, n.phone_number, n.timezone, n.max_attempts,
           case when n.timezone is not null and (v_retry.calling_start is not null or v_retry.allowed_days is not null)
             then v_retry.created_at end
      from numbered n),
  added_data as (
    insert into public.contact_data (
      agency_id, batch_id, contact_id, first_name, last_name, email, company, title, custom_data)
    select d.agency_id, v_retry.id, n.id, d.first_name, d.last_name, d.email, d.company, d.title, d.custom_data
      from numbered n
      join public.contact_data d on d.agency_id = p_agency_id and d.batch_id = p_batch_id and d.contact_id = n.old_id)
  select count(*)::integer, (count(*) filter (where not f.is_do_not_call))::integer
    into v_failed, v_added from failed f;
  if v_added = 0 then
    raise sqlstate 'PT400' using message = 'The batch has no failed contact that can be called again',
      detail = '{"code": "no_contacts"}';
  end if;
  update public.call_batches b
     set total_contacts = v_added
   where b.agency_id = p_agency_id and b.id = v_retry.id;

  v_result := row(v_retry.id, v_retry.status, v_added, p_batch_id, v_failed - v_added);
  perform private.record_event(p_agency_id, v_batch, v_actor, 'retry', v_batch.status, v_added,
    p_reason => p_reason, p_idempotency_key => p_idempotency_key,
    p_request => v_request, p_response => to_jsonb(v_result));
  v_retry.status := null;  -- it came from nowhere
  perform private.record_event(p_agency_id, v_retry, v_actor, 'create', v_result.status, v_added, p_reason => p_reason);
  return v_result;
end;
$$;

revoke execute on function private.retry_batch(uuid, uuid, text[], timestamptz, text, text) from public;
grant  execute on function private.retry_batch(uuid, uuid, text[], timestamptz, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.retry_batch(uuid, uuid, text[], timestamptz, text, text) is 'public.retry_batch, for a batch of a known agency.';

-- The door to private.retry_batch for users, services and consoles.
-- outcomes: only contacts whose last call had one of these. scheduled_for: null is at once.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
create or replace function public.retry_batch(
  batch_id uuid default null, outcomes text[] default null, scheduled_for timestamptz default null,
  idempotency_key text default null, reason text default null)
returns public.retry_batch_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.retry_batch(
    private.find_batch_agency(batch_id), batch_id, outcomes, scheduled_for, idempotency_key, reason)
$$;

revoke execute on function public.retry_batch(uuid, text[], timestamptz, text, text) from public, anon;
grant  execute on function public.retry_batch(uuid, text[], timestamptz, text, text) to authenticated, service_role, lastcall_admin;
comment on function public.retry_batch(uuid, text[], timestamptz, text, text) is
  'Dial the failed contacts of a call batch again, as a new batch.';

-- file: api/skip_contacts.sql 2e1c3aaf69265d44cf2a23add771e879a8ab9f3416b8f38ce50604b3931b8198
create type public.skip_contacts_result as (
  success           boolean,
  batch_id          uuid,
  status            public.batch_status,
  contacts_skipped  integer,
  calls_in_progress integer,  -- calls to selected contacts, let through by start_call and not over
  calls_starting    integer,  -- of these, how many can still start (see public.batch_silence)
  dry_run           boolean
);

-- The contacts that a request names by their ids, by a filter, or by both: see public.skip_contacts.
-- Raises PT400 (neither given; not such ids; not such a filter).
create or replace function private.read_filter(p_contact_ids text[], p_filter jsonb)
returns private.contact_filter
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_statuses constant text[] := array['pending', 'scheduled', 'queued', 'in_progress'];
  v_invalid  text;
  v_result   private.contact_filter;
begin
  if p_contact_ids is null and p_filter is null then
    raise sqlstate 'PT400' using message = 'contact_ids or filter is required',
      detail = '{"code": "contacts_required"}';
  end if;
  if cardinality(p_contact_ids) not between 1 and 10000
     or exists (select from unnest(p_contact_ids) as u (id) where (u.id ~ '^[0-9]{1,18}$') is not true) then
    raise sqlstate 'PT400' using message = 'contact_ids must be 1 to 10,000 ids of contacts',
      detail = '{"code": "contact_ids_invalid"}';
  end if;

  v_invalid := case
    when jsonb_typeof(p_filter) <> 'object' or p_filter = '{}'
      or p_filter - array['status', 'min_attempts', 'max_attempts', 'custom_data'] <> '{}'
      then 'filter must name at least one of status, min_attempts, max_attempts and custom_data, and nothing else'
    when not coalesce(jsonb_typeof(p_filter -> 'status') = 'array' and p_filter -> 'status' <> '[]'
                      and p_filter -> 'status' <@ to_jsonb(v_statuses), not p_filter ? 'status')
      then 'filter.status must be a list of pending, scheduled, queued and in_progress'
    when exists (
      select from unnest(array['min_attempts', 'max_attempts']) as a (name)
       where p_filter ? a.name
         and (jsonb_typeof(p_filter -> a.name) <> 'number' or p_filter ->> a.name !~ '^[0-9]{1,5}$'))
      then 'filter.min_attempts and filter.max_attempts must be whole numbers from 0 to 99999'
    when not coalesce(jsonb_typeof(p_filter -> 'custom_data') = 'object' and p_filter -> 'custom_data' <> '{}',
                      not p_filter ? 'custom_data')
      then 'filter.custom_data must be an object of columns and values'
    when exists (
      select from jsonb_each(case when jsonb_typeof(p_filter -> 'custom_data') = 'object'
                                  then p_filter -> 'custom_data' end) as f (name, value)
       where jsonb_typeof(f.value) not in ('string', 'number', 'boolean'))
      then 'filter.custom_data must have strings, numbers or booleans as values'
  end;
  if v_invalid is not null then
    raise sqlstate 'PT400' using message = v_invalid,
      detail = '{"code": "filter_invalid"}';
  end if;

  v_result.contact_ids := p_contact_ids::bigint[];
  v_result.statuses := case when p_filter ? 'status' then array(
    select s.status::public.contact_status from jsonb_array_elements_text(p_filter -> 'status') as s (status)) end;
  v_result.min_attempts := (p_filter ->> 'min_attempts')::integer;
  v_result.max_attempts := (p_filter ->> 'max_attempts')::integer;
  v_result.custom_data := p_filter -> 'custom_data';
  return v_result;
end;
$$;

revoke execute on function private.read_filter(text[], jsonb) from public;
comment on function private.read_filter(text[], jsonb) is 'The contacts that a request names.';

-- Skip some contacts of a batch for good: see public.skip_contacts. With p_dry_run nothing changes, and nobody waits.
-- When it has committed, start_call lets no selected contact through any more.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such batch
-- of the agency), PT400 (no contacts named; not such contacts; already completed or cancelled), PT409 (idempotency key
-- reused), PT503 (another request holds the batch).
create or replace function private.skip_contacts(
  p_agency_id uuid, p_batch_id uuid, p_contact_ids text[], p_filter jsonb, p_dry_run boolean,
  p_idempotency_key text, p_reason text)
returns public.skip_contacts_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.require_admin(p_agency_id);
  v_filter   private.contact_filter := private.read_filter(p_contact_ids, p_filter);
  v_request  jsonb := jsonb_build_object(
    'procedure', 'skip_contacts', 'batch_id', p_batch_id, 'filter', p_filter, 'reason', p_reason, 'actor', v_actor.id,
    'contact_ids', encode(sha256(convert_to(p_contact_ids::text, 'UTF8')), 'hex'));
  v_batch    public.call_batches;
  v_answer   jsonb;
  v_contacts private.skipped_contacts;
  v_result   public.skip_contacts_result;
begin
  if p_dry_run then
    select b.* into v_batch
      from public.call_batches b
     where b.agency_id = p_agency_id and b.id = p_batch_id;
    if not found then
      raise sqlstate 'PT404' using message = 'Batch not found',
        detail = '{"code": "batch_not_found"}';
    end if;
  else
    v_batch := private.lock_batch(p_agency_id, p_batch_id);
    v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
    if v_answer is not null then
      return jsonb_populate_record(v_result, v_answer);
    end if;
  end if;
  if v_batch.status in ('completed', 'cancelled') then
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
  end if;

  if p_dry_run then
    v_contacts := private.count_selected(v_batch, v_filter);
  else
    v_contacts := private.skip_selected(v_batch, v_filter, null, 'Skipped by request');
  end if;
  v_result := row(true, v_batch.id, v_batch.status, v_contacts.skipped, v_contacts.in_progress, v_contacts.starting,
    p_dry_run);
  if not p_dry_run then
    perform private.record_event(p_agency_id, v_batch, v_actor, 'skip_contacts', v_batch.status, v_contacts.skipped,
      p_reason => p_reason, p_idempotency_key => p_idempotency_key,
      p_request => v_request, p_response => to_jsonb(v_result));
  end if;
  return v_result;
end;
$$;

revoke execute on function private.skip_contacts(uuid, uuid, text[], jsonb, boolean, text, text) from public;
grant  execute on function private.skip_contacts(uuid, uuid, text[], jsonb, boolean, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.skip_contacts(uuid, uuid, text[], jsonb, boolean, text, text) is 'public.skip_contacts, for a batch of a known agency.';

-- The door to private.skip_contacts for users, services and consoles. Skips the contacts that meet both, or the one given:
-- contact_ids: 1 to 10,000 ids.
-- filter: {"status": ["pending", "scheduled", "queued", "in_progress"], "min_attempts": 1, "max_attempts": 2,
-- "custom_data": {"column": "value"}}, at least one of them. Values are compared as text.
-- A call in progress to such a contact finishes, and is its last.
-- dry_run: count, and change nothing.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
create or replace function public.skip_contacts(
  batch_id uuid default null, contact_ids text[] default null, filter jsonb default null, dry_run boolean default false,
  idempotency_key text default null, reason text default null)
returns public.skip_contacts_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.skip_contacts(
    private.find_batch_agency(batch_id), batch_id, contact_ids, filter, coalesce(dry_run, false), idempotency_key, reason)
$$;

revoke execute on function public.skip_contacts(uuid, text[], jsonb, boolean, text, text) from public, anon;
grant  execute on function public.skip_contacts(uuid, text[], jsonb, boolean, text, text) to authenticated, service_role, lastcall_admin;
comment on function public.skip_contacts(uuid, text[], jsonb, boolean, text, text) is
  'Skip some contacts of a call batch for good, by their ids or by a filter.';

-- file: api/opt_out.sql 3414e6ff8ac715c5d7179e6b055353cd7e252be13b12e7ccbcbcfc5ce6f89060
create type public.opt_out_result as (
  success           boolean,
  phone_number      text,
  added             boolean,  -- false: the number was on the do-not-call list before
  batches           integer,  -- with contacts skipped, or a call in progress, to the number
  contacts_skipped  integer,
  calls_in_progress integer,  -- to the number, let through by start_call and not over: these finish
  calls_starting    integer   -- of these, how many can still start (see public.batch_silence)
);

-- Never call a number again for an agency: put it on the do-not-call list, and skip its contacts in every batch of the
-- agency. A call in progress to the number finishes, and is the last one. A repeat is a success: it skips what
-- was brought in since, and keeps the first source and reason.
-- When it has committed, start_call lets no call to the number through any more.
-- Any user of the agency may do this. p_agency_id: see private.find_agency; for a service or a console never null.
-- Raises PT401 (not signed in), PT403 (of no agency), PT404 (no such agency, or not the user's), PT400 (not an E.164 number;
-- no agency), PT503 (another request holds one of the batches).
create or replace function private.opt_out(p_agency_id uuid, p_phone_number text, p_source text, p_reason text)
returns public.opt_out_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_actor     private.actor := private.current_actor();
  v_agency_id uuid := private.find_agency(p_agency_id);
  v_batch_id  uuid;
  v_batch     public.call_batches;
  v_filter    private.contact_filter;
  v_contacts  private.skipped_contacts;
  v_result    public.opt_out_result;
begin
  if v_agency_id is null then
    raise sqlstate 'PT400' using message = 'agency_id is required',
      detail = '{"code": "agency_id_required"}';
  end if;
  if (p_phone_number ~ '^\+[1-9][0-9]{6,14}$') is not true then
    raise sqlstate 'PT400' using message = 'phone_number must be an E.164 number, such as +14155550123',
      detail = '{"code": "phone_number_invalid"}';
  end if;

  perform private.close_contacts(v_agency_id);
  insert into public.do_not_call (agency_id, phone_number, reason, source, added_by)
  values (v_agency_id, p_phone_number, p_reason, p_source, v_actor.id)
      on conflict (agency_id, phone_number) do nothing;
  v_result := row(true, p_phone_number, found, 0, 0, 0, 0);

  for v_batch_id in
    select distinct c.batch_id
      from public.campaign_contacts c
     where c.phone_number = p_phone_number and c.agency_id = v_agency_id
       and c.status in ('pending', 'scheduled', 'queued', 'in_progress')
     order by c.batch_id
  loop
    v_batch := private.lock_batch(v_agency_id, v_batch_id);
    continue when v_batch.status in ('completed', 'cancelled');
    v_filter.contact_ids := array(
      select c.id
        from public.campaign_contacts c
       where (c.phone_number, c.agency_id, c.batch_id) >= (p_phone_number, v_agency_id, v_batch_id)
         and (c.phone_number, c.agency_id, c.batch_id) <= (p_phone_number, v_agency_id, v_batch_id));
    v_contacts := private.skip_selected(v_batch, v_filter, 'do_not_call', 'Opted out');
    continue when v_contacts.skipped = 0 and v_contacts.in_progress = 0;
    perform private.record_event(v_agency_id, v_batch, v_actor, 'opt_out', v_batch.status, v_contacts.skipped,
      p_reason => p_reason);
    v_result.batches := v_result.batches + 1;
    v_result.contacts_skipped := v_result.contacts_skipped + v_contacts.skipped;
    v_result.calls_in_progress := v_result.calls_in_progress + v_contacts.in_progress;
    v_result.calls_starting := v_result.calls_starting + v_contacts.starting;
  end loop;
  return v_result;
end;
$$;

revoke execute on function private.opt_out(uuid, text, text, text) from public;
grant  execute on function private.opt_out(uuid, text, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.opt_out(uuid, text, text, text) is 'public.opt_out.';

-- The door to private.opt_out for users, services and consoles.
-- phone_number: E.164. source: where the person said no. reason: kept on the do-not-call list and in the audit trail.
-- agency_id: a user may leave it out.
create or replace function public.opt_out(
  phone_number text default null, source text default null, reason text default null, agency_id uuid default null)
returns public.opt_out_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.opt_out(agency_id, phone_number, source, reason)
$$;

revoke execute on function public.opt_out(text, text, text, uuid) from public, anon;
grant  execute on function public.opt_out(text, text, text, uuid) to authenticated, service_role, lastcall_admin;
comment on function public.opt_out(text, text, text, uuid) is
  'Never call a number again for an agency, in whichever batch.';

-- file: api/hold_calls.sql a0cada87b2e481fe7614161f48ecb75bd6b647a765ae09a4cee7761727335131
create type public.hold_calls_result as (
  success           boolean,
  hold_id           uuid,                     -- null: it was a dry run
  scope             text,                     -- campaign, agent, caller_number, agency or everything
  until             timestamptz,              -- when the hold ends by itself
  batches           integer,                  -- being dialed now, and held
  calls_in_progress integer,                  -- of these batches, let through by start_call and not over: these finish
  calls_starting    integer,                  -- of these, how many can still start (see public.batch_silence)
  dry_run           boolean
);

-- The scope of a hold in a word.
create or replace function private.hold_scope(p_hold public.holds)
returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case when p_hold.agency_id is null then 'everything'
              when p_hold.campaign_id is not null then 'campaign'
              when p_hold.agent_mapping_id is not null then 'agent'
              when p_hold.from_number is not null then 'caller_number'
              else 'agency' end
$$;

revoke execute on function private.hold_scope(public.holds) from public;
comment on function private.hold_scope(public.holds) is 'The scope of a hold in a word.';

-- Check that what a hold names is of its agency.
-- Raises PT404 (no such campaign, agent or caller number).
create or replace function private.check_hold(p_hold public.holds)
returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_hold.campaign_id is not null and not exists (
       select from public.campaigns c where c.agency_id = p_hold.agency_id and c.id = p_hold.campaign_id) then
    raise sqlstate 'PT404' using message = 'Campaign not found',
      detail = '{"code": "campaign_not_found"}';
  end if;
  if p_hold.agent_mapping_id is not null and not exists (
       select from public.agent_mappings m where m.agency_id = p_hold.agency_id and m.id = p_hold.agent_mapping_id) then
    raise sqlstate 'PT404' using message = 'Agent not found',
      detail = '{"code": "agent_not_found"}';
  end if;
  -- A number that was given up may still be a batch's.
  if p_hold.from_number is not null
     and not exists (
       select from public.agency_phone_numbers n
        where n.agency_id = p_hold.agency_id and n.phone_number = p_hold.from_number)
     and not exists (
       select from public.call_batches b where b.agency_id = p_hold.agency_id and private.hold_reaches(p_hold, b)) then
    raise sqlstate 'PT404' using message = 'Caller number not found',
      detail = '{"code": "from_number_not_found"}';
  end if;
end;
$$;

revoke execute on function private.check_hold(public.holds) from public;
comment on function private.check_hold(public.holds) is 'Check that what a hold names is of its agency.';

-- Hold calls: see public.hold_calls. p_scopes: how many scopes were given. p_hold: agency, scope, until, reason and key.
-- With p_dry_run nothing changes, and nobody waits.
-- When it has committed, start_call lets no call of a batch in the scope through any more.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin; everything, for a user), PT404 (no such agency,
-- campaign, agent or number), PT400 (not exactly one scope; no agency; an end that has passed), PT409 (idempotency key
-- reused), PT503 (another request holds one of the batches).
create or replace function private.hold_calls(
  p_hold public.holds, p_scopes integer, p_everything boolean, p_dry_run boolean)
returns public.hold_calls_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor   private.actor := private.current_actor();
  v_hold    public.holds := p_hold;
  v_first   public.holds;
  v_reached private.reached_batches;
  v_result  public.hold_calls_result;
begin
  v_hold.agency_id := private.find_admin_agency(p_hold.agency_id);
  if p_scopes <> 1 then
    raise sqlstate 'PT400' using message = 'Give one of campaign_id, agent_mapping_id, from_number, whole_agency and everything',
      detail = '{"code": "scope_required"}';
  end if;
  if p_everything then
    if v_actor.kind = 'user' then
      raise sqlstate 'PT403' using message = 'Only a service or a console may hold the calls of every agency',
        detail = '{"code": "service_only"}';
    end if;
    v_hold.agency_id := null;
  elsif v_hold.agency_id is null then
    raise sqlstate 'PT400' using message = 'agency_id is required',
      detail = '{"code": "agency_id_required"}';
  end if;
  if (v_hold.until > clock_timestamp() and v_hold.until < 'infinity') is false then
    raise sqlstate 'PT400' using message = 'until must be a time to come',
      detail = '{"code": "until_invalid"}';
  end if;
  if length(v_hold.idempotency_key) not between 1 and 255 then
    raise sqlstate 'PT400' using message = 'Idempotency-Key must have 1 to 255 characters',
      detail = '{"code": "idempotency_key_invalid"}';
  end if;
  perform private.check_hold(v_hold);

  if p_dry_run then
    v_reached := private.count_reached(v_hold);
    return row(true, null, private.hold_scope(v_hold), v_hold.until, v_reached.batches, v_reached.in_progress,
      v_reached.starting, true)::public.hold_calls_result;
  end if;

  v_hold.request := jsonb_build_object(
    'scope', private.hold_scope(v_hold), 'campaign_id', v_hold.campaign_id, 'agent_mapping_id', v_hold.agent_mapping_id,
    'from_number', v_hold.from_number, 'until', v_hold.until, 'reason', v_hold.reason, 'actor', v_actor.id);
  perform private.close_live(v_hold.agency_id);
  select h.* into v_first
    from public.holds h
   where h.agency_id is not distinct from v_hold.agency_id and h.idempotency_key = v_hold.idempotency_key;
  if found then
    if v_first.request is distinct from v_hold.request then
      raise sqlstate 'PT409' using message = 'Idempotency-Key was used for another request',
        detail = '{"code": "idempotency_key_reused"}';
    end if;
    return jsonb_populate_record(v_result, v_first.response);
  end if;

  v_hold.id := gen_random_uuid();
  v_hold.created_at := clock_timestamp();
  v_hold.created_by := v_actor.id;
  v_hold.created_by_role := v_actor.db_role;
  insert into public.holds select v_hold.*;
  perform private.mark_held(v_hold);
  v_reached := private.count_reached(v_hold);
  v_result := row(true, v_hold.id, private.hold_scope(v_hold), v_hold.until, v_reached.batches, v_reached.in_progress,
    v_reached.starting, false);
  update public.holds h
     set response = to_jsonb(v_result)
   where h.id = v_hold.id and h.idempotency_key is not null;
  return v_result;
end;
$$;

revoke execute on function private.hold_calls(public.holds, integer, boolean, boolean) from public;
grant  execute on function private.hold_calls(public.holds, integer, boolean, boolean) to authenticated, service_role, lastcall_admin;
comment on function private.hold_calls(public.holds, integer, boolean, boolean) is 'public.hold_calls.';

-- The door to private.hold_calls for users, services and consoles. Give one scope:
-- campaign_id, agent_mapping_id: the batches of a campaign or an agent.
-- from_number: the batches that call from this number, E.164, alone or among others.
-- whole_agency: the batches of the agency. everything: those of every agency; for services and consoles.
-- The hold reaches batches that begin, resume or are created later, too. Calls in progress finish.
-- agency_id: a user may leave it out. until: when the hold ends by itself; null: it is lifted by lift_hold.
-- reason: kept with the hold. dry_run: count, and change nothing.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
create or replace function public.hold_calls(
  campaign_id uuid default null, agent_mapping_id uuid default null, from_number text default null,
  whole_agency boolean default false, everything boolean default false, agency_id uuid default null,
  until timestamptz default null, reason text default null, dry_run boolean default false,
  idempotency_key text default null)
returns public.hold_calls_result
language plpgsql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batches
as $$
#variable_conflict use_variable
declare
  v_hold public.holds;
begin
  v_hold.agency_id := agency_id;
  v_hold.campaign_id := campaign_id;
  v_hold.agent_mapping_id := agent_mapping_id;
  v_hold.from_number := from_number;
  v_hold.until := until;
  v_hold.reason := reason;
  v_hold.idempotency_key := idempotency_key;
  return private.hold_calls(
    v_hold,
    num_nonnulls(campaign_id, agent_mapping_id, from_number, nullif(whole_agency, false), nullif(everything, false)),
    coalesce(everything, false), coalesce(dry_run, false));
end;
$$;

revoke execute on function public.hold_calls(
  uuid, uuid, text, boolean, boolean, uuid, timestamptz, text, boolean, text) from public, anon;
grant  execute on function public.hold_calls(
  uuid, uuid, text, boolean, boolean, uuid, timestamptz, text, boolean, text) to authenticated, service_role, lastcall_admin;
comment on function public.hold_calls(
  uuid, uuid, text, boolean, boolean, uuid, timestamptz, text, boolean, text) is
  'Hold the calls of a campaign, an agent, a caller number or an agency until the hold is lifted.';

-- file: api/lift_hold.sql 0c325e84faf2a8964bf806d9a173424609a338efa3b4f8af28edef0025ddea2b
create type public.lift_hold_result as (
  success      boolean,
  hold_id      uuid,
  lifted_at    timestamptz,
  batches      integer,  -- being dialed, in the scope of the hold
  batches_held integer   -- of these, how many another hold keeps held
);

-- Lift a hold: the batches in its scope go on as they were, unless another hold reaches them. Lifting a lifted hold again is
-- a success, and changes nothing.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin; a hold of every agency, for a user), PT404 (no
-- such hold of the agency), PT400 (no hold_id), PT503 (another request holds one of the batches).
create or replace function private.lift_hold(p_hold_id uuid, p_reason text)
returns public.lift_hold_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor     private.actor := private.current_actor();
  v_agency_id uuid := private.find_admin_agency(null);
  v_hold      public.holds;
  v_reached   private.reached_batches;
begin
  if p_hold_id is null then
    raise sqlstate 'PT400' using message = 'hold_id is required',
      detail = '{"code": "hold_id_required"}';
  end if;
  select h.* into v_hold
    from public.holds h
   where h.id = p_hold_id and (v_agency_id is null or h.agency_id = v_agency_id or h.agency_id is null);
  if not found then
    raise sqlstate 'PT404' using message = 'Hold not found',
      detail = '{"code": "hold_not_found"}';
  end if;
  if v_hold.agency_id is null and v_actor.kind = 'user' then
    raise sqlstate 'PT403' using message = 'Only a service or a console may lift a hold of every agency',
      detail = '{"code": "service_only"}';
  end if;

  perform private.close_live(v_hold.agency_id);
  update public.holds h
     set lifted_at = clock_timestamp(),
         lifted_by = v_actor.id,
         lifted_by_role = v_actor.db_role,
         lift_reason = p_reason
   where h.id = p_hold_id and h.lifted_at is null;
  if found then
    perform private.mark_held(v_hold);
  end if;
  select h.* into v_hold from public.holds h where h.id = p_hold_id;
  v_reached := private.count_reached(v_hold);
  return row(true, v_hold.id, v_hold.lifted_at, v_reached.batches, v_reached.held)::public.lift_hold_result;
end;
$$;

revoke execute on function private.lift_hold(uuid, text) from public;
grant  execute on function private.lift_hold(uuid, text) to authenticated, service_role, lastcall_admin;
comment on function private.lift_hold(uuid, text) is 'public.lift_hold.';

-- The door to private.lift_hold for users, services and consoles. reason: kept with the hold.
create or replace function public.lift_hold(hold_id uuid default null, reason text default null)
returns public.lift_hold_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batches
as $$
  select private.lift_hold(hold_id, reason)
$$;

revoke execute on function public.lift_hold(uuid, text) from public, anon;
grant  execute on function public.lift_hold(uuid, text) to authenticated, service_role, lastcall_admin;
comment on function public.lift_hold(uuid, text) is 'Lift a hold: its batches go on as they were.';

-- file: api/list_holds.sql 9a1cb1fd8b146e6da5ac3a4dd656e2a1c9b7049731947958fc12640164821119
-- The holds that reach an agency, newest first, those of every agency included: their reason and who placed them is for
-- services and consoles alone. p_agency_id null: for a service or a console the holds of all.
-- p_include_lifted: with those that were lifted or have ended. p_max_holds: 1 to 1000.
-- Returns {"holds": [...]}. Raises PT401 (not signed in), PT403 (of no agency), PT404 (no such agency, or not the user's),
-- PT400 (a number out of range).
create or replace function private.list_holds(p_agency_id uuid, p_include_lifted boolean, p_max_holds integer)
returns json
language plpgsql stable
security definer  -- for a service or a console, holds of every agency
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_actor     private.actor := private.current_actor();
  v_agency_id uuid := private.find_agency(p_agency_id);
begin
  if p_max_holds is null or p_max_holds not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'max_holds must be 1 to 1000',
      detail = '{"code": "max_holds_out_of_range"}';
  end if;
  return json_build_object('holds', coalesce((
    select json_agg(
             json_build_object(
               'id', h.id,
               'scope', private.hold_scope(h),
               'agency_id', h.agency_id,
               'campaign_id', h.campaign_id,
               'campaign_name', c.name,
               'agent_mapping_id', h.agent_mapping_id,
               'agent_name', m.ultravox_agent_name,
               'from_number', h.from_number,
               'is_active', private.is_active(h),
               'batches', case when private.is_active(h) then (
                 select count(*)
                   from public.call_batches b
                  where b.status = 'processing' and (v_agency_id is null or b.agency_id = v_agency_id)
                    and private.hold_reaches(h, b)) else 0 end,
               'until', private.iso_timestamp(h.until),
               'reason', case when not s.is_secret then h.reason end,
               'created_at', private.iso_timestamp(h.created_at),
               'created_by', case when not s.is_secret then h.created_by end,
               'lifted_at', private.iso_timestamp(h.lifted_at),
               'lifted_by', case when not s.is_secret then h.lifted_by end,
               'lift_reason', case when not s.is_secret then h.lift_reason end)
             order by h.created_at desc, h.id)
      from (select h.*
              from public.holds h
             where (v_agency_id is null or h.agency_id = v_agency_id or h.agency_id is null)
               and (p_include_lifted or private.is_active(h))
             order by h.created_at desc, h.id
             limit p_max_holds) l
      join public.holds h on h.id = l.id
     cross join lateral (select h.agency_id is null and v_actor.kind = 'user' as is_secret) s
      left join public.campaigns c on c.agency_id = h.agency_id and c.id = h.campaign_id
      left join public.agent_mappings m on m.agency_id = h.agency_id and m.id = h.agent_mapping_id), '[]'));
end;
$$;

revoke execute on function private.list_holds(uuid, boolean, integer) from public;
grant  execute on function private.list_holds(uuid, boolean, integer) to authenticated, service_role, lastcall_admin;
comment on function private.list_holds(uuid, boolean, integer) is 'public.list_holds.';

-- The door to private.list_holds for users, services and consoles. agency_id: a user may leave it out.
-- include_lifted: with the holds that were lifted or have ended.
create or replace function public.list_holds(
  agency_id uuid default null, include_lifted boolean default false, max_holds integer default 100)
returns json
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.list_holds(agency_id, coalesce(include_lifted, false), max_holds)
$$;

revoke execute on function public.list_holds(uuid, boolean, integer) from public, anon;
grant  execute on function public.list_holds(uuid, boolean, integer) to authenticated, service_role, lastcall_admin;
comment on function public.list_holds(uuid, boolean, integer) is 'The holds that reach an agency.';

-- file: api/batch_silence.sql ea0db1aba5f1248286d9aefbd5313715420052ad8ed89de9f01b396026970753
-- Whether calls of a batch can still start, and which are in progress.
-- A batch is silent when it is paused, stopped, held or over and none of its calls is starting. silent_since is the later
-- of two times, neither of them ahead: when the batch was ended or held, and when the last of its calls could start.
-- p_batch_id: a UUID, or with p_user_id or for services an external id (see private.find_user_batch).
-- Raises PT401, PT403 (of no agency; neither that user nor an owner or admin), PT404 (no such batch of the agency, or
-- of the user), PT400 (an id is missing).
create or replace function private.batch_silence(p_batch_id text, p_user_id text)
returns public.batch_silence_result
language plpgsql stable
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_uuid   constant text := '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$';
  v_target private.user_batch;
  v_batch  public.call_batches;
  v_is_held boolean;
  v_result public.batch_silence_result;
begin
  if coalesce(p_batch_id, '') = '' then
    raise sqlstate 'PT400' using message = 'batch_id is required',
      detail = '{"code": "batch_id_required"}';
  elsif p_user_id is null and p_batch_id ~ v_uuid then
    v_target := row(private.find_batch_agency(p_batch_id::uuid), p_batch_id::uuid, null::uuid);
  else
    v_target := private.find_user_batch(p_batch_id, p_user_id);
  end if;
  perform private.require_actor(v_target.agency_id);
  select b.* into v_batch
    from public.call_batches b
   where b.agency_id = v_target.agency_id and b.id = v_target.batch_id;
  if not found then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  end if;

  v_result.batch_id := p_batch_id;
  v_result.status := v_batch.status;
  v_result.calls_starting := private.count_starting(v_batch);
  v_result.calls_in_progress := v_batch.in_progress;
  v_is_held := v_batch.status = 'processing' and private.is_held(v_batch, clock_timestamp());
  v_result.is_silent := v_result.calls_starting = 0
    and (v_is_held or v_batch.status in ('paused', 'stopped', 'completed', 'failed', 'cancelled'));
  v_result.silent_by := case when v_result.calls_starting > 0 and v_batch.place_by > clock_timestamp() and not exists (
      select from public.calls c
       where c.agency_id = v_batch.agency_id and c.batch_id = v_batch.id
         and c.status in ('in_progress', 'unknown') and c.carrier_queued) then v_batch.place_by end;
  v_result.silent_since := case when v_result.is_silent then least(clock_timestamp(), greatest(
    case when v_is_held then private.held_since(v_batch)
         when v_batch.status = 'paused' then v_batch.paused_at
         when v_batch.status = 'stopped' then v_batch.stopped_at
         else v_batch.completed_at end,
    v_batch.place_by)) end;
  return v_result;
end;
$$;

revoke execute on function private.batch_silence(text, text) from public;
grant  execute on function private.batch_silence(text, text) to authenticated, service_role, lastcall_admin;
comment on function private.batch_silence(text, text) is 'public.batch_silence.';

-- The door to private.batch_silence for users, services and consoles.
create or replace function public.batch_silence(batch_id text default null, user_id text default null)
returns public.batch_silence_result
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.batch_silence(batch_id, user_id)
$$;

revoke execute on function public.batch_silence(text, text) from public, anon;
grant  execute on function public.batch_silence(text, text) to authenticated, service_role, lastcall_admin;
comment on function public.batch_silence(text, text) is
  'Whether calls of a batch can still start, since when not, and which are in progress.';

-- file: api/resume_batch.sql 3d0d71218332267c28c2d8a026495964518bf11ee2752d10133c38b0bd6c8e92
-- Go on with a paused or stopped batch: it is scheduled again when its time is still to come, or else
-- processing at once. A batch that was ended early goes on with what was added since. A batch that a hold reaches is held.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such batch
-- of the agency), PT400 (neither paused nor stopped), PT409 (idempotency key reused), PT503 (a hold is being placed).
-- Contract: calls-batch-resume, from stopped too.
create or replace function private.resume_batch(
  p_agency_id uuid, p_batch_id uuid, p_idempotency_key text, p_reason text)
returns public.resume_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor   private.actor := private.require_admin(p_agency_id);
  v_batch   public.call_batches;
  v_mark    private.hold_mark;
  v_now     timestamptz;
  v_request jsonb := jsonb_build_object(
    'procedure', 'resume_batch', 'batch_id', p_batch_id, 'reason', p_reason, 'actor', v_actor.id);
  v_answer  jsonb;
  v_result  public.resume_batch_result;
begin
  perform private.admit_live(p_agency_id);
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  if v_batch.status not in ('paused', 'stopped') then
    perform private.refuse_status(
      format('Only a paused or stopped batch can be resumed; this one is %s', v_batch.status),
      'batch_not_resumable');
  end if;

  v_mark := private.find_mark(v_batch);
  if v_batch.scheduled_for > v_now then
    v_result := row(true, v_batch.id, 'scheduled'::public.batch_status,
      'Batch scheduled to resume at ' || to_char(v_batch.scheduled_for at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'));
  else
    v_result := row(true, v_batch.id, 'processing'::public.batch_status,
      case when v_mark.is_held then 'Batch resumed. A hold reaches it: no call starts until the hold is lifted.'
           else 'Batch resumed. The processor will start making calls on the next run.' end);
  end if;
  update public.call_batches b
     set status = v_result.status,
         paused_at = null,
         stopped_at = null,
         started_at = case when v_result.status = 'processing' then coalesce(b.started_at, v_now) else b.started_at end,
         skip_remaining = false,
         is_held = v_mark.is_held,
         held_until = v_mark.held_until,
         next_claim_at = v_now
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  perform private.record_event(p_agency_id, v_batch, v_actor, 'resume', v_result.status, 0,
    p_reason => p_reason, p_idempotency_key => p_idempotency_key,
    p_request => v_request, p_response => to_jsonb(v_result));
  return v_result;
end;
$$;

revoke execute on function private.resume_batch(uuid, uuid, text, text) from public;
grant  execute on function private.resume_batch(uuid, uuid, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.resume_batch(uuid, uuid, text, text) is 'public.resume_batch, for a batch of a known agency.';

-- The door to private.resume_batch for users, services and consoles.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
create or replace function public.resume_batch(
  batch_id uuid default null, idempotency_key text default null, reason text default null)
returns public.resume_batch_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.resume_batch(private.find_batch_agency(batch_id), batch_id, idempotency_key, reason)
$$;

revoke execute on function public.resume_batch(uuid, text, text) from public, anon;
grant  execute on function public.resume_batch(uuid, text, text) to authenticated, service_role, lastcall_admin;
comment on function public.resume_batch(uuid, text, text) is
  'Go on with a paused or stopped call batch.';

-- file: dialer/claim_contacts.sql cd2802d6966ca631d3d59a15220ebc46c2185b1c4b62029c776c51ea8a08db9c
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

-- file: dialer/start_call.sql 4bad70b4e92c0362f7aab8c58e0935362027bace6be98928e064769bb793ddb9
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

-- file: dialer/finish_call.sql aa92944a6441ee4eeb5d170ee4e715a8e28aef2bcddceb2d5ae407f2535db7fc
-- Record the results of calls of one batch, in a group: one change of the batch's counters.
-- p_results: a JSON array of objects with call_id, lease, status (completed, failed, unknown or missing) and,
-- where known, outcome, duration_seconds, carrier_call_id, notes, counted. A failed call with attempts left
-- puts its contact back, due after the batch's retry delay, unless its outcome is not one to try
-- again after, the batch is over (cancelled, or ended early), or the contact was skipped meanwhile: then the contact is failed.
-- A failed call with counted false was no attempt, since the carrier took no calls: the contact keeps the
-- attempts it had and, unless the batch is over or the contact was skipped, goes back whatever the outcome.
-- A call is unknown when nobody could tell whether the carrier got it. It stays in progress until the carrier
-- tells its end or that there was no such call; it is never placed again before.
-- A call is missing when the carrier was asked, by carrier_call_id if that was known, and has no such call. One that it
-- never confirmed was not placed: it failed, outcome not_placed. One that it had is completed, outcome lost: nobody is
-- called again because of it. One that it confirmed since it was asked is left as it is.
-- A call that the carrier withdrew from its queue (outcome withdrawn) was no attempt either. The outcome of a call that
-- list_calls_to_end gave because somebody asked for its end is hung_up, if the carrier dialed it.
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
  v_last      timestamptz;
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
           r.status = 'failed' and (coalesce(r.outcome = 'withdrawn', false) or not coalesce(r.counted, true)) as is_no_attempt,
           r.status in ('completed', 'failed') and r.carrier_call_id is not null
             and r.outcome is distinct from 'withdrawn' as was_dialed,
           case when r.duration_seconds is not null
             then least(greatest(round(r.duration_seconds), 0), 2147483647)::integer end as duration_seconds
      from jsonb_to_recordset(p_results) as r (
        call_id bigint, lease uuid, status text, outcome text, duration_seconds numeric,
        carrier_call_id text, notes text, counted boolean)
  loop
    update public.calls c
       set status = v_result.status,
           ended_at = case when v_result.status <> 'unknown' then v_now end,
           outcome = case when v_result.was_dialed and c.hang_up and c.end_asked_at is not null then 'hung_up'
                          else v_result.outcome end,
           duration_seconds = v_result.duration_seconds,
           place_by = case when c.carrier_queued and v_result.status <> 'unknown' then v_now else c.place_by end,
           carrier_queued = c.carrier_queued and v_result.status = 'unknown',
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
    v_last := greatest(v_last, v_call.place_by);

    select case when v_result.status = 'completed' then 'completed'
                when v_batch.status <> 'cancelled' and not v_batch.skip_remaining and not v_call.is_last
                 and (v_result.is_no_attempt
                      or c.attempts < c.max_attempts
                     and (v_batch.retry_outcomes is null or v_call.outcome = any (v_batch.retry_outcomes)))
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
           outcome = v_call.outcome,
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
         place_by = greatest(b.place_by, v_last),
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

-- file: dialer/process_batches.sql c3dbc79b34e972f878dd14fd3520aa07d4163bc91352736166117deb96f9df72
-- Whether a batch being dialed seems to have nothing left to call: by its counters, or since the
-- last claim found nothing and nothing came back.
create or replace function private.has_nothing_left(p_batch public.call_batches)
returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select p_batch.status = 'processing' and p_batch.queued <= 0 and p_batch.in_progress <= 0
     and (p_batch.completed + p_batch.failed + p_batch.skipped >= p_batch.total_contacts
          or p_batch.next_claim_at is null)
$$;

revoke execute on function private.has_nothing_left(public.call_batches) from public;
comment on function private.has_nothing_left(public.call_batches) is 'Whether a batch being dialed seems to have nothing left to call.';

-- Complete a processing batch that has nothing left to call. The counters say when to look; the
-- contacts decide. A batch that awaits contacts is not over. One that neither the claim cursor nor a due time would find (it came in
-- by a plain insert, behind the cursor) is put back within reach. Returns whether it completed.
-- Reads the contacts before it takes the batch, so that nobody waits for the reading, and does
-- not wait itself: a batch that someone else holds is left for the next time.
create or replace function private.complete_batch(p_agency_id uuid, p_batch_id uuid, p_actor private.actor)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch public.call_batches;
  v_total integer;
  v_open  bigint;
begin
  select b.total_contacts into v_total
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  select min(c.id) into v_open
    from public.campaign_contacts c
   where c.agency_id = p_agency_id and c.batch_id = p_batch_id
     and c.status in ('pending', 'scheduled', 'queued', 'in_progress');

  select b.* into v_batch
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id and private.has_nothing_left(b)
     and b.total_contacts = v_total  -- none was added meanwhile
     for no key update skip locked;
  -- A statement of its own: it sees an import that began before the batch was taken.
  if not found or private.awaits_contacts(p_agency_id, p_batch_id) then
    return false;
  end if;
  if v_open is not null then
    update public.call_batches b
       set claim_cursor = least(b.claim_cursor, v_open - 1),
           next_claim_at = clock_timestamp()
     where b.agency_id = p_agency_id and b.id = p_batch_id;
    return false;
  end if;

  update public.call_batches b
     set status = 'completed',
         completed_at = clock_timestamp()
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  perform private.record_event(p_agency_id, v_batch, p_actor, 'complete', 'completed', 0);
  return true;
end;
$$;

revoke execute on function private.complete_batch(uuid, uuid, private.actor) from public;
comment on function private.complete_batch(uuid, uuid, private.actor) is 'Complete a batch that has nothing left to call.';

-- Move batches along: those with nothing left to call are completed; those that are due
-- (pending or scheduled, with contacts, and scheduled_for past or null) start processing,
-- oldest first; one that a hold reaches is held. Those that wait for their next_claim_at are claimed of every 10 minutes all the same: a clock that
-- stepped back leaves times that nothing waits for. Run it every few seconds; safe when two run at once.
-- max_batches: the most that one run completes, the most that it wakes, and the most that it starts, 1 to 1000.
-- Raises PT401, PT403 (not a service or console), PT400 (a number out of range).
create or replace function private.process_batches(p_max_batches integer)
returns public.process_batches_result
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor  private.actor := private.require_service();
  v_now    timestamptz := clock_timestamp();
  v_result public.process_batches_result := (0, 0);
  v_live   record;
  v_batch  public.call_batches;
  v_mark   private.hold_mark;
begin
  if p_max_batches is null or p_max_batches not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'max_batches must be 1 to 1000',
      detail = '{"code": "max_batches_out_of_range"}';
  end if;

  for v_live in
    select b.agency_id, b.id
      from public.call_batches b
     where b.status = 'processing' and private.has_nothing_left(b)
       and not private.awaits_contacts(b.agency_id, b.id)
     limit p_max_batches
  loop
    v_result.batches_completed := v_result.batches_completed
      + private.complete_batch(v_live.agency_id, v_live.id, v_actor)::integer;
  end loop;

  -- From here on, since these stay locked until the run commits.
  for v_live in
    select b.agency_id, b.id
      from public.call_batches b
     where b.status = 'processing' and b.next_claim_at > v_now
       -- The time of the last claim may be of the clock that stepped back.
       and (b.last_claimed_at between v_now - interval '10 minutes' and v_now + interval '1 minute') is not true
     limit p_max_batches
       for no key update skip locked
  loop
    update public.call_batches b
       set next_claim_at = v_now
     where b.agency_id = v_live.agency_id and b.id = v_live.id;
  end loop;
  -- While a hold is being placed, the batches that it could reach are left for the next run.
  perform from private.live_admission l for share skip locked;
  if not found then
    return v_result;
  end if;
  for v_batch in
    select b.*
      from public.call_batches b
      join public.agencies a on a.id = b.agency_id
     where b.status in ('pending', 'scheduled') and coalesce(b.scheduled_for, '-infinity') <= v_now
       and exists (select from public.campaign_contacts c where c.agency_id = b.agency_id and c.batch_id = b.id)
     order by b.created_at
     limit p_max_batches
       for no key update of b skip locked
       for share of a skip locked
  loop
    v_mark := private.find_mark(v_batch);
    update public.call_batches b
       set status = 'processing',
           started_at = coalesce(b.started_at, v_now),
           is_held = v_mark.is_held,
           held_until = v_mark.held_until
     where b.agency_id = v_batch.agency_id and b.id = v_batch.id;
    perform private.record_event(v_batch.agency_id, v_batch, v_actor, 'process', 'processing', 0);
    v_result.batches_started := v_result.batches_started + 1;
  end loop;
  return v_result;
end;
$$;

revoke execute on function private.process_batches(integer) from public;
grant  execute on function private.process_batches(integer) to service_role, lastcall_admin;
comment on function private.process_batches(integer) is 'public.process_batches.';

create or replace function public.process_batches(max_batches integer default 100)
returns public.process_batches_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.process_batches(max_batches)
$$;

revoke execute on function public.process_batches(integer) from public, anon, authenticated;
grant  execute on function public.process_batches(integer) to service_role, lastcall_admin;
comment on function public.process_batches(integer) is
  'Start the batches that are due, complete those that have nothing left to call.';

-- file: private/waiting_for.sql 40f36f832cbc6bd613e5c0066bc944e71a255e2e7ff98729769d9913ea36bb49
-- Why no call of a batch may start at p_now, and the earliest time at which one may, where that is known.
-- Both null: it dials, or is over. Of several reasons the first:
--   contacts          none were added yet, or those that are there are done and an import has not finished
--   scheduled_for     its time is still to come
--   process           the next run of process_batches, which starts it, or completes it
--   resume            it is paused or stopped
--   results           none is left to claim; those queued and in progress may come back
--   hold              a hold reaches it
--   calling_hours     outside its hours and days, and no contact with a time zone of its own is due
--   max_concurrent    as many are queued or in progress
--   calls_per_minute  as many calls were claimed in the last 60 seconds
--   retry             whoever is left waits for a time of the own: a retry, another due time, a number's limit
-- Reads calls_per_minute calls, and 1,000 due contacts, at most.
create or replace function private.waiting_for(p_batch public.call_batches, p_now timestamptz)
returns private.waiting
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_opens_at timestamptz := p_now;
  v_is_due   boolean;
  v_free_at  timestamptz;
begin
  if p_batch.status in ('paused', 'stopped') then
    return ('resume', null)::private.waiting;
  elsif p_batch.status in ('pending', 'scheduled') then
    return case when p_batch.scheduled_for > p_now then ('scheduled_for', p_batch.scheduled_for)::private.waiting
                when p_batch.total_contacts = 0 then ('contacts', null)::private.waiting
                else ('process', null)::private.waiting end;
  elsif p_batch.status <> 'processing' then
    return (null, null)::private.waiting;
  elsif private.has_nothing_left(p_batch) then
    return (case when private.awaits_contacts(p_batch.agency_id, p_batch.id) then 'contacts' else 'process' end,
            null)::private.waiting;
  elsif p_batch.next_claim_at is null
     or p_batch.queued + p_batch.in_progress + p_batch.completed + p_batch.failed + p_batch.skipped
        >= p_batch.total_contacts then
    return ('results', null)::private.waiting;
  elsif private.is_held(p_batch, p_now) then
    return ('hold', p_batch.held_until)::private.waiting;
  end if;

  if p_batch.calling_start is not null or p_batch.allowed_days is not null then
    v_opens_at := private.next_calling_time(
      p_batch.calling_start, p_batch.calling_end, p_batch.allowed_days, p_batch.timezone, p_now);
  end if;
  if v_opens_at is distinct from p_now then
    if p_batch.next_claim_at > p_now then
      -- The last claim found none to call before next_claim_at, in whichever time zone.
      if v_opens_at is null or p_batch.next_claim_at <= v_opens_at then
        return ('calling_hours', p_batch.next_claim_at)::private.waiting;
      end if;
      return ('retry', p_batch.next_claim_at)::private.waiting;
    end if;
    select true into v_is_due
      from (select c.timezone, c.status
              from public.campaign_contacts c
             where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id and c.due_at <= p_now
             order by c.due_at
             limit 1000) c
     where c.timezone is not null and c.status in ('pending', 'scheduled')
     limit 1;
    if v_is_due is null then
      return ('calling_hours', v_opens_at)::private.waiting;
    end if;
  end if;

  if p_batch.queued + p_batch.in_progress >= p_batch.max_concurrent then
    return ('max_concurrent', null)::private.waiting;
  end if;
  select c.created_at + interval '1 minute' into v_free_at
    from public.calls c
   where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id
     and p_batch.calls_per_minute is not null
   order by c.agency_id desc, c.batch_id desc, c.id desc
  offset p_batch.calls_per_minute - 1
   limit 1;
  if v_free_at > p_now and v_free_at <= p_now + interval '2 minutes' then  -- as in claim_batch
    return ('calls_per_minute', v_free_at)::private.waiting;
  elsif p_batch.next_claim_at > p_now then
    return ('retry', p_batch.next_claim_at)::private.waiting;
  end if;
  return (null, null)::private.waiting;
end;
$$;

revoke execute on function private.waiting_for(public.call_batches, timestamptz) from public;
comment on function private.waiting_for(public.call_batches, timestamptz) is 'Why no call of a batch may start now.';

-- file: dialer/next_claim_in.sql d7e5bf6b07f76ae165dea7e2412a898339d8b6fd1efe2d287ff83b4ccaac145f
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

-- file: dialer/list_calls_to_end.sql d8f73fdac041e3c2be078b7cdc7a59c3fc4cc1fd103181157de4e873696b9368
-- The calls that the carrier has to end.
--   hang_up is true     somebody asked for the end of the call (end_calls): whatever it does, it ends
--   otherwise           its batch is paused, stopped, held or over, or its contact was skipped, and the carrier queues it:
--                       it is withdrawn, unless it rings
-- A call that was given is not given again for 5 seconds: the dialer that took it may be gone, and the carrier away.
-- Two who ask at once get different ones.
-- Reads the open calls alone, of all batches. Takes no batch, since it changes nothing of what a batch's row guards, and
-- waits for nobody.
-- max_calls: 1 to 1000.
-- Raises PT401, PT403 (not a service or console), PT400 (a number out of range).
create or replace function private.list_calls_to_end(p_max_calls integer)
returns setof public.open_call
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now  timestamptz := clock_timestamp();
  v_call public.calls;
begin
  perform private.require_service();
  if p_max_calls is null or p_max_calls not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'max_calls must be 1 to 1000',
      detail = '{"code": "max_calls_out_of_range"}';
  end if;

  for v_call in
    select c.*
      from public.calls c
     where c.status in ('in_progress', 'unknown')
       and (c.hang_up or c.carrier_queued)
       and (c.end_asked_at is null or c.end_asked_at <= v_now - interval '5 seconds')
       and (c.hang_up or c.is_last or exists (
             select from public.call_batches b
              where b.agency_id = c.agency_id and b.id = c.batch_id
                and (b.status in ('paused', 'stopped', 'completed', 'failed', 'cancelled') or private.is_held(b, v_now))))
     order by c.end_asked_at nulls first
     limit p_max_calls
       for no key update skip locked
  loop
    update public.calls c
       set end_asked_at = v_now
     where c.agency_id = v_call.agency_id and c.batch_id = v_call.batch_id and c.id = v_call.id;
    return next private.open_call(v_call, v_now);
  end loop;
end;
$$;

revoke execute on function private.list_calls_to_end(integer) from public;
grant  execute on function private.list_calls_to_end(integer) to service_role, lastcall_admin;
comment on function private.list_calls_to_end(integer) is 'public.list_calls_to_end.';

create or replace function public.list_calls_to_end(max_calls integer default 20)
returns setof public.open_call
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select * from private.list_calls_to_end(max_calls)
$$;

revoke execute on function public.list_calls_to_end(integer) from public, anon, authenticated;
grant  execute on function public.list_calls_to_end(integer) to service_role, lastcall_admin;
comment on function public.list_calls_to_end(integer) is 'The calls that the carrier has to end.';
