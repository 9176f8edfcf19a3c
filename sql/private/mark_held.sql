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

-- Count the batches in the scope of a hold that are being dialed now.
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
comment on function private.count_reached(public.holds) is 'Count the batches in the scope of a hold.';

-- Lock the batches being dialed that a hold reaches, in the one order of all who lock several, and give each the mark
-- that the holds of this moment ask for. No batch can begin meanwhile: the caller has called private.close_live.
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
