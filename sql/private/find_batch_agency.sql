-- Which agency's batch is meant, before the procedure that locks it runs: a user's own agency,
-- whatever the id; for a service or a console, the agency of the batch with that UUID.
-- Raises PT401, PT400 (no id, or agencies share it), PT403 (of no agency), PT404.
create or replace function private.find_batch_agency(p_batch_id uuid)
returns uuid
language plpgsql stable
security definer  -- looks at batches of every agency for a service or a console
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.current_actor();
  v_agencies uuid[];
begin
  if p_batch_id is null then
    raise sqlstate 'PT400' using message = 'batch_id is required',
      detail = '{"code": "batch_id_required"}';
  end if;
  if v_actor.kind = 'user' then
    return v_actor.agency_id;
  end if;

  v_agencies := array(select b.agency_id from public.call_batches b where b.id = p_batch_id limit 2);
  if cardinality(v_agencies) = 0 then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  elsif cardinality(v_agencies) > 1 then
    raise sqlstate 'PT400' using message = 'Several agencies have a batch with this id',
      detail = '{"code": "batch_id_ambiguous"}';
  end if;
  return v_agencies[1];
end;
$$;

revoke execute on function private.find_batch_agency(uuid) from public;
grant  execute on function private.find_batch_agency(uuid) to authenticated, service_role, lastcall_admin;
comment on function private.find_batch_agency(uuid) is 'Which agency''s batch is meant.';
