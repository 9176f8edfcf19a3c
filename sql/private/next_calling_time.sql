-- The earliest time from p_at on at which calls may start: p_at itself within the calling hours of an
-- allowed day, where p_timezone is (null: UTC). Hours that end before they begin go through
-- midnight, and belong to the day on which they begin. Null hours or days: all of them.
-- Null when there is no such time (no day is allowed).
create or replace function private.next_calling_time(
  p_start time, p_end time, p_days smallint[], p_timezone text, p_at timestamptz)
returns timestamptz
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select min(greatest(p_at, h.opens))
    from (select (p_at at time zone coalesce(p_timezone, 'UTC'))::date + i as day
            from generate_series(-1, 8) as i) d
   cross join lateral (
     select (d.day + coalesce(p_start, '00:00')) at time zone coalesce(p_timezone, 'UTC') as opens,
            (d.day + coalesce(p_end, '24:00')
               + case when p_end <= p_start then interval '1 day' else interval '0' end)
              at time zone coalesce(p_timezone, 'UTC') as closes) h
   where h.closes > p_at and (p_days is null or extract(dow from d.day)::smallint = any (p_days))
$$;

revoke execute on function private.next_calling_time(time, time, smallint[], text, timestamptz) from public;
comment on function private.next_calling_time(time, time, smallint[], text, timestamptz) is
  'The earliest time from which calls may start.';

-- Whether PostgreSQL knows a time zone, by its name (America/New_York) or abbreviation (EST).
create or replace function private.is_timezone(p_timezone text)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  -- PostgreSQL also takes an offset or a rule for a timezone; here these are more likely a slip.
  if p_timezone !~ '^[A-Za-z][A-Za-z0-9_+/-]{1,63}$' then
    return false;
  end if;
  perform now() at time zone p_timezone;
  return true;
exception when invalid_parameter_value then
  return false;
end;
$$;

revoke execute on function private.is_timezone(text) from public;
comment on function private.is_timezone(text) is 'Whether this is a time zone.';
