-- An import of a locked batch. Raises PT404.
create or replace function private.find_import(p_agency_id uuid, p_batch_id uuid, p_import_id uuid)
returns public.batch_imports
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_import public.batch_imports;
begin
  select i.* into v_import
    from public.batch_imports i
   where i.agency_id = p_agency_id and i.id = p_import_id and i.batch_id = p_batch_id;
  if not found then
    raise sqlstate 'PT404' using message = 'Import not found',
      detail = '{"code": "import_not_found"}';
  end if;
  return v_import;
end;
$$;

revoke execute on function private.find_import(uuid, uuid, uuid) from public;
comment on function private.find_import(uuid, uuid, uuid) is 'An import of a locked batch.';
