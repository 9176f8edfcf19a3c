-- The start or end of calling hours, such as {"start": "09:00", "end": "17:00"}; null hours have none.
-- Raises PT400 (not such hours, or both the same).
create or replace function private.calling_time(p_calling_hours jsonb, p_key text)
returns time
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_time constant text := '^([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?$';
begin
  if p_calling_hours is not null and (
       jsonb_typeof(p_calling_hours) <> 'object'
       or p_calling_hours ->> 'start' is null or p_calling_hours ->> 'start' !~ v_time
       or p_calling_hours ->> 'end' is null or p_calling_hours ->> 'end' !~ v_time
       or p_calling_hours ->> 'start' = p_calling_hours ->> 'end') then
    raise sqlstate 'PT400' using message = 'calling_hours must have a start and another end, such as {"start": "09:00", "end": "17:00"}',
      detail = '{"code": "calling_hours_invalid"}';
  end if;
  return (p_calling_hours ->> p_key)::time;
end;
$$;

revoke execute on function private.calling_time(jsonb, text) from public;
grant  execute on function private.calling_time(jsonb, text) to authenticated, service_role, lastcall_admin;
comment on function private.calling_time(jsonb, text) is 'The start or end of calling hours.';
