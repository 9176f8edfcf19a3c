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

-- Count the contacts that private.skip_selected would skip now.
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
  'Count the contacts that private.skip_selected would skip.';
