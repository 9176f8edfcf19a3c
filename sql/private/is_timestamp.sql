-- Whether this text is a time with a date, such as 2025-01-15T10:30:00Z.
create or replace function private.is_timestamp(p_text text)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_text !~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}' then
    return false;
  end if;
  perform p_text::timestamptz;
  return true;
exception when data_exception then  -- such as the 31st of June
  return false;
end;
$$;

revoke execute on function private.is_timestamp(text) from public;
comment on function private.is_timestamp(text) is 'Whether this is a time with a date.';
