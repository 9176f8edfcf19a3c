-- A time as JSON APIs write it: UTC, with milliseconds and Z, whatever the session's time zone.
create or replace function private.iso_timestamp(p_time timestamptz)
returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select to_char(p_time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
$$;

revoke execute on function private.iso_timestamp(timestamptz) from public;
comment on function private.iso_timestamp(timestamptz) is 'A time as JSON APIs write it.';
