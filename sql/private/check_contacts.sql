-- Check contacts: the place (from 1) of each that is not an object with phone_number (E.164, required);
-- first_name, last_name, email, company, title (text of at most 500 characters); timezone; custom_data (object of at most
-- 64 kB, 32 levels and numbers to 1e308); max_attempts (1 to 99); due_at (a time before which it is not called). p_contacts: a JSON array.
create or replace function private.check_contacts(p_contacts jsonb)
returns table (place bigint, error text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_timezones text[];
begin
  v_timezones := array(
    select distinct g.contact ->> 'timezone'
      from jsonb_array_elements(p_contacts) as g (contact)
     where jsonb_typeof(g.contact -> 'timezone') = 'string');
  v_timezones := array(select t.name from unnest(v_timezones) as t (name) where private.is_timezone(t.name));

  return query
    select w.place, w.error
      from (
        select g.place,
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
                 -- PostgreSQL holds larger ones, but a dialer's JSON reader may not: its claims would all fail.
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
     where w.error is not null;
end;
$$;

revoke execute on function private.check_contacts(jsonb) from public;
comment on function private.check_contacts(jsonb) is 'Check contacts, and list their faults.';
