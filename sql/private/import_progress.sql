-- How far an import is; p_answer: what was answered when it finished, or null while there is more to do.
create or replace function private.import_progress(p_import public.batch_imports)
returns json
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select json_build_object(
    'batch_id', p_import.batch_id, 'import_id', p_import.id, 'last_row', p_import.last_row,
    'added', p_import.added, 'duplicates', p_import.duplicates, 'do_not_call', p_import.do_not_call,
    'invalid', p_import.invalid, 'answer', p_import.answer)
$$;

revoke execute on function private.import_progress(public.batch_imports) from public;
comment on function private.import_progress(public.batch_imports) is 'How far an import is.';
