create type private.inserted_contacts as (added integer, duplicates integer, do_not_call integer);

-- Append valid contacts (see private.check_contacts) to a locked batch, in the order given. A number that the batch has
-- already (the first one is kept; one that was skipped may come again) or that the agency must not call is
-- left out, and counted. p_max_attempts: of contacts that do not say.
-- The caller holds the batch's lock.
create or replace function private.insert_valid_contacts(
  p_batch public.call_batches, p_contacts jsonb, p_max_attempts smallint)
returns private.inserted_contacts
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now    timestamptz := clock_timestamp();
  v_result private.inserted_contacts;
begin
  with given as materialized (
    select g.place, g.contact ->> 'phone_number' as phone_number, g.contact,
           -- With limits: each by its key, and never by reading the whole batch or list.
           row_number() over (partition by g.contact ->> 'phone_number' order by g.place) > 1
             -- As rows: by the index of numbers, and by no other that would read the whole batch for each number.
             or coalesce((select true from public.campaign_contacts c
                           where (c.phone_number, c.agency_id, c.batch_id)
                                 >= (g.contact ->> 'phone_number', p_batch.agency_id, p_batch.id)
                             and (c.phone_number, c.agency_id, c.batch_id)
                                 <= (g.contact ->> 'phone_number', p_batch.agency_id, p_batch.id)
                             and c.status <> 'skipped'
                           limit 1), false) as is_duplicate,
           coalesce((select true from public.do_not_call n
                      where n.agency_id = p_batch.agency_id and n.phone_number = g.contact ->> 'phone_number'
                      limit 1), false) as is_do_not_call
      from jsonb_array_elements(p_contacts) with ordinality as g (contact, place)),
  -- Numbered before the insert, so that each one's data finds it.
  numbered as materialized (
    select nextval(pg_get_serial_sequence('public.campaign_contacts', 'id')) as id, n.*
      from (select g.* from given g where not g.is_duplicate and not g.is_do_not_call order by g.place) n),
  added as (
    insert into public.campaign_contacts (
      agency_id, batch_id, id, phone_number, timezone, max_attempts, status, due_at)
    select p_batch.agency_id, p_batch.id, n.id, n.phone_number, n.contact ->> 'timezone',
           coalesce((n.contact ->> 'max_attempts')::smallint, p_max_attempts),
           case when n.contact ->> 'due_at' is null then 'pending' else 'scheduled' end::public.contact_status,
           -- A contact with hours of its own is not called in its turn, but when it is due.
           coalesce((n.contact ->> 'due_at')::timestamptz,
                    case when n.contact ->> 'timezone' is not null
                          and (p_batch.calling_start is not null or p_batch.allowed_days is not null) then v_now end)
      from numbered n),
  added_data as (
    insert into public.contact_data (
      agency_id, batch_id, contact_id, first_name, last_name, email, company, title, custom_data)
    select p_batch.agency_id, p_batch.id, n.id, n.contact ->> 'first_name', n.contact ->> 'last_name',
           n.contact ->> 'email', n.contact ->> 'company', n.contact ->> 'title',
           coalesce(nullif(n.contact -> 'custom_data', 'null'), '{}')
      from numbered n
     where n.contact ?| array['first_name', 'last_name', 'email', 'company', 'title', 'custom_data'])
  select (select count(*) from numbered)::integer,
         (count(*) filter (where g.is_duplicate and not g.is_do_not_call))::integer,
         (count(*) filter (where g.is_do_not_call))::integer
    into v_result
    from given g;
  return v_result;
end;
$$;

revoke execute on function private.insert_valid_contacts(public.call_batches, jsonb, smallint) from public;
comment on function private.insert_valid_contacts(public.call_batches, jsonb, smallint) is 'Append valid contacts to a locked batch.';

-- Append contacts to a locked batch, in the order given. p_contacts: a JSON array of 1 to 10,000 contacts (see
-- private.check_contacts). All or none: an invalid one refuses them all.
-- Raises PT400 (contacts_invalid; detail: errors, the first 100 with index and error, error_count).
-- The caller holds the batch's lock.
create or replace function private.insert_contacts(p_batch public.call_batches, p_contacts jsonb)
returns private.inserted_contacts
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_errors jsonb;
  v_count  integer;
begin
  if jsonb_typeof(p_contacts) is distinct from 'array' or jsonb_array_length(p_contacts) not between 1 and 10000 then
    raise sqlstate 'PT400' using message = 'contacts must be an array of 1 to 10,000 objects',
      detail = '{"code": "contacts_invalid"}';
  end if;
  select count(*)::integer,
         jsonb_agg(jsonb_build_object('index', w.place - 1, 'error', w.error) order by w.place) filter (where w.nth <= 100)
    into v_count, v_errors
    from (select e.place, e.error, row_number() over (order by e.place) as nth
            from private.check_contacts(p_contacts) e) w;
  if v_count > 0 then
    raise sqlstate 'PT400' using
      message = format('%s of %s contacts are invalid', v_count, jsonb_array_length(p_contacts)),
      detail = jsonb_build_object('code', 'contacts_invalid', 'error_count', v_count, 'errors', v_errors)::text;
  end if;
  return private.insert_valid_contacts(p_batch, p_contacts, 3::smallint);
end;
$$;

revoke execute on function private.insert_contacts(public.call_batches, jsonb) from public;
comment on function private.insert_contacts(public.call_batches, jsonb) is 'Append contacts to a locked batch.';
