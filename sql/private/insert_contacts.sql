create type private.inserted_contacts as (added integer, duplicates integer, do_not_call integer);

-- Append contacts to a locked batch, in the order given. p_contacts: a JSON array of 1 to 10,000
-- objects with phone_number (E.164, required); first_name, last_name, email, company, title
-- (text of at most 500 characters); timezone; custom_data (object of at
-- most 64 kB, 32 levels and numbers to 1e308); max_attempts (1 to 99,
-- default 3); due_at (not before this time). All or none: a contact that is not such an object refuses
-- them all. A number that the batch has already (the first one is kept; one that was
-- skipped may come again) or that the agency must not call is left out, and counted.
-- Raises PT400 (contacts_invalid; detail: errors, the first 100 with index and error, error_count).
-- The caller holds the batch's lock.
create or replace function private.insert_contacts(p_batch public.call_batches, p_contacts jsonb)
returns private.inserted_contacts
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now       timestamptz := clock_timestamp();
  v_timezones text[];
  v_errors    jsonb;
  v_count     integer;
  v_result    private.inserted_contacts;
begin
  if jsonb_typeof(p_contacts) is distinct from 'array' or jsonb_array_length(p_contacts) not between 1 and 10000 then
    raise sqlstate 'PT400' using message = 'contacts must be an array of 1 to 10,000 objects',
      detail = '{"code": "contacts_invalid"}';
  end if;

  v_timezones := array(
    select distinct g.contact ->> 'timezone'
      from jsonb_array_elements(p_contacts) as g (contact)
     where jsonb_typeof(g.contact -> 'timezone') = 'string');
  v_timezones := array(select t.name from unnest(v_timezones) as t (name) where private.is_timezone(t.name));

  select count(*)::integer, jsonb_agg(jsonb_build_object('index', e.index, 'error', e.error) order by e.index)
                     filter (where e.place <= 100)
    into v_count, v_errors
    from (
      select w.index, w.error, row_number() over (order by w.index) as place
        from (
          select g.place - 1 as index,
                 case
                   when jsonb_typeof(g.contact) <> 'object' then 'must be an object'
                   when g.contact ->> 'phone_number' is null then 'phone_number is required'
                   when jsonb_typeof(g.contact -> 'phone_number') <> 'string'
                     or g.contact ->> 'phone_number' !~ '^\+[1-9][0-9]{6,14}$'
                     then 'phone_number must be in E.164 form, such as +15551234567'
                   when jsonb_typeof(g.contact -> 'timezone') <> 'null'
                     and g.contact ->> 'timezone' <> all (v_timezones)
                     then 'timezone is not known'
                   when jsonb_typeof(g.contact -> 'custom_data') not in ('object', 'null')
                     then 'custom_data must be an object'
                   -- What PostgreSQL holds, and a dialer's JSON reader may not: then it could claim nothing else either.
                   when octet_length((g.contact -> 'custom_data')::text) > 65536
                     then 'custom_data must have at most 64 kB'
                   when jsonb_path_exists(g.contact -> 'custom_data',
                          'strict $.** ? (@.type() == "number" && (@ > 1e308 || @ < -1e308))')
                     then 'custom_data must hold no number beyond 1e308'
                   when jsonb_path_exists(g.contact -> 'custom_data',
                          '$.**{32 to last} ? (@.type() == "object" || @.type() == "array")')
                     then 'custom_data must be nested at most 32 deep'
                   when jsonb_typeof(g.contact -> 'max_attempts') not in ('number', 'null')
                     or g.contact ->> 'max_attempts' !~ '^[1-9][0-9]?$'
                     then 'max_attempts must be a whole number from 1 to 99'
                   when jsonb_typeof(g.contact -> 'due_at') not in ('string', 'null')
                     or not private.is_timestamp(g.contact ->> 'due_at')
                     then 'due_at must be a time in ISO 8601'
                   else (
                     select min(t.name) || ' must be a string of at most 500 characters'
                       from unnest(array['first_name', 'last_name', 'email', 'company', 'title']) as t (name)
                      where jsonb_typeof(g.contact -> t.name) not in ('string', 'null')
                         or length(g.contact ->> t.name) > 500)
                 end as error
            from jsonb_array_elements(p_contacts) with ordinality as g (contact, place)) w
       where w.error is not null) e;
  if v_count > 0 then
    raise sqlstate 'PT400' using
      message = format('%s of %s contacts are invalid', v_count, jsonb_array_length(p_contacts)),
      detail = jsonb_build_object('code', 'contacts_invalid', 'error_count', v_count, 'errors', v_errors)::text;
  end if;

  with given as materialized (
    select g.place, g.contact ->> 'phone_number' as phone_number, g.contact,
           -- With limits: each by its key, and never by reading the whole batch or list.
           row_number() over (partition by g.contact ->> 'phone_number' order by g.place) > 1
             or coalesce((select true from public.campaign_contacts c
                           where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id
                             and c.phone_number = g.contact ->> 'phone_number' and c.status <> 'skipped'
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
           coalesce((n.contact ->> 'max_attempts')::smallint, 3),
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

revoke execute on function private.insert_contacts(public.call_batches, jsonb) from public;
comment on function private.insert_contacts(public.call_batches, jsonb) is 'Append contacts to a locked batch.';
