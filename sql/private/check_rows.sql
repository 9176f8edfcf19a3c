-- The rows of a file as the procedures that import them take them: 1 to 10,000 objects, each a contact (see
-- private.check_contacts) with its row, a number; or with its row and an error, what kept it from being
-- read. Returns them with what is wrong with them. Raises PT400 (not such an array).
create or replace function private.check_rows(p_rows jsonb)
returns table (row_number integer, contact jsonb, error text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if jsonb_typeof(p_rows) is distinct from 'array' or jsonb_array_length(p_rows) not between 1 and 10000
     or exists (
       select from jsonb_array_elements(p_rows) as g (contact)
        where (jsonb_typeof(g.contact -> 'row') = 'number' and g.contact ->> 'row' ~ '^[1-9][0-9]{0,8}$') is not true) then
    raise sqlstate 'PT400' using message = 'rows must be an array of 1 to 10,000 objects, each with its row in the file',
      detail = '{"code": "rows_invalid"}';
  end if;
  return query
    select (g.contact ->> 'row')::integer, g.contact, coalesce(g.contact ->> 'error', e.error)
      from jsonb_array_elements(p_rows) with ordinality as g (contact, place)
      left join private.check_contacts(p_rows) e on e.place = g.place;
end;
$$;

revoke execute on function private.check_rows(jsonb) from public;
comment on function private.check_rows(jsonb) is 'The rows of a file, with what is wrong with them.';
