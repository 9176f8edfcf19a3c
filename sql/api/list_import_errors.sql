-- The invalid rows of an import in the order of the file, from after p_after_row on, at most 10,000.
-- Returns {"errors": [...]}, objects with row, phone_number and error.
-- Raises PT401, PT403 (of no agency), PT404 (no such import of the agency), PT400 (no id).
create or replace function private.list_import_errors(p_import_id uuid, p_after_row integer)
returns json
language plpgsql stable
security definer  -- looks, for a service or a console, at every agency
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_actor     private.actor := private.current_actor();
  v_agency_id uuid;
begin
  if p_import_id is null then
    raise sqlstate 'PT400' using message = 'import_id is required',
      detail = '{"code": "import_id_required"}';
  end if;
  if v_actor.kind = 'user' and v_actor.agency_id is null then
    raise sqlstate 'PT403' using message = 'User is not associated with an agency',
      detail = '{"code": "no_agency"}';
  end if;
  select i.agency_id into v_agency_id
    from public.batch_imports i
   where i.id = p_import_id and (v_actor.agency_id is null or i.agency_id = v_actor.agency_id);
  if not found then
    raise sqlstate 'PT404' using message = 'Import not found',
      detail = '{"code": "import_not_found"}';
  end if;
  return (
    select json_build_object('errors', coalesce(
             json_agg(json_build_object('row', e.row_number, 'phone_number', e.phone_number, 'error', e.error)
                      order by e.row_number), '[]'))
      from (select r.*
              from public.import_errors r
             where r.agency_id = v_agency_id and r.import_id = p_import_id and r.row_number > p_after_row
             order by r.row_number
             limit 10000) e);
end;
$$;

revoke execute on function private.list_import_errors(uuid, integer) from public;
grant  execute on function private.list_import_errors(uuid, integer) to authenticated, service_role, lastcall_admin;
comment on function private.list_import_errors(uuid, integer) is 'public.list_import_errors.';

create or replace function public.list_import_errors(import_id uuid default null, after_row integer default 0)
returns json
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.list_import_errors(import_id, after_row)
$$;

revoke execute on function public.list_import_errors(uuid, integer) from public, anon;
grant  execute on function public.list_import_errors(uuid, integer) to authenticated, service_role, lastcall_admin;
comment on function public.list_import_errors(uuid, integer) is 'The invalid rows of an imported file.';
