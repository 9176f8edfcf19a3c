-- The next contacts of a batch in dial order, for an export in pages: p_after is the next_cursor of the page
-- before, null for the first. p_status: only these. p_max_rows: 1 to 1000.
-- Returns {"contacts": [...], "next_cursor"}; a page may be short before the end (see private.read_contacts).
-- Raises PT401, PT403 (of no agency), PT404 (no such batch of the agency), PT400 (a number out of range;
-- not a cursor), PT429 (too many requests for a first page).
create or replace function private.export_contacts(
  p_agency_id uuid, p_batch_id uuid, p_after text, p_max_rows integer, p_status public.contact_status)
returns json
language plpgsql volatile
security definer  -- for a service or a console, looks at every agency
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor private.actor := private.require_actor(p_agency_id);
begin
  if p_max_rows is null or p_max_rows not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'max_rows must be 1 to 1000',
      detail = '{"code": "page_out_of_range"}';
  end if;
  if not exists (select from public.call_batches b where b.agency_id = p_agency_id and b.id = p_batch_id) then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  end if;
  if p_after is null then
    perform private.limit_requests(v_actor, 'export_contacts');
  end if;
  return to_json(private.read_contacts(p_agency_id, p_batch_id, p_status, p_after, p_max_rows, 0));
end;
$$;

revoke execute on function private.export_contacts(uuid, uuid, text, integer, public.contact_status) from public;
grant  execute on function private.export_contacts(uuid, uuid, text, integer, public.contact_status) to authenticated, service_role, lastcall_admin;
comment on function private.export_contacts(uuid, uuid, text, integer, public.contact_status) is
  'public.export_contacts, for a batch of a known agency.';

create or replace function public.export_contacts(
  batch_id uuid default null, after text default null, max_rows integer default 1000,
  contact_status public.contact_status default null)
returns json
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.export_contacts(private.find_batch_agency(batch_id), batch_id, after, max_rows, contact_status)
$$;

revoke execute on function public.export_contacts(uuid, text, integer, public.contact_status) from public, anon;
grant  execute on function public.export_contacts(uuid, text, integer, public.contact_status) to authenticated, service_role, lastcall_admin;
comment on function public.export_contacts(uuid, text, integer, public.contact_status) is
  'The next contacts of a call batch, for an export in pages.';
