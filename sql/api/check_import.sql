-- Check rows of a file (see private.check_rows), and change nothing. An import that takes all rows or none begins with
-- this check. Without rows it only checks that the caller may import.
-- Returns {"invalid": how many, "errors": the first 100, with row, phone_number and error}.
-- Raises PT401, PT403 (of no agency; not an owner or admin), PT400 (not such rows).
create or replace function private.check_import(p_rows jsonb)
returns json
language plpgsql stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_result json;
begin
  perform private.require_admin((private.current_actor()).agency_id);
  if p_rows is null then
    return json_build_object('invalid', 0, 'errors', json_build_array());
  end if;
  select json_build_object(
           'invalid', count(*),
           'errors', coalesce(
             json_agg(json_build_object('row', w.row_number, 'phone_number', left(w.contact ->> 'phone_number', 50),
                                        'error', w.error) order by w.row_number)
             filter (where w.nth <= 100), '[]'))
    into v_result
    from (select r.*, row_number() over (order by r.row_number) as nth
            from private.check_rows(p_rows) r
           where r.error is not null) w;
  return v_result;
end;
$$;

revoke execute on function private.check_import(jsonb) from public;
grant  execute on function private.check_import(jsonb) to authenticated, service_role, lastcall_admin;
comment on function private.check_import(jsonb) is 'public.check_import.';

create or replace function public.check_import(rows jsonb default null)
returns json
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.check_import($1)
$$;

revoke execute on function public.check_import(jsonb) from public, anon;
grant  execute on function public.check_import(jsonb) to authenticated, service_role, lastcall_admin;
comment on function public.check_import(jsonb) is 'Check rows of a file, and change nothing.';
