-- Add contacts to a batch, at the end of its dial order. p_contacts: a JSON array of objects
-- with phone_number (required), custom_data (object), max_attempts (default 3) and due_at
-- (not before this time). Returns how many were added. Under the batch's lock, so that none
-- slips into a batch that is being cancelled, nor behind the claim cursor.
-- Raises PT401, PT403 (not a service or console), PT404, PT400 (not such an array; batch
-- completed or cancelled).
create or replace function private.add_contacts(p_agency_id uuid, p_batch_id uuid, p_contacts jsonb)
returns integer
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor private.actor := private.require_service();
  v_batch public.call_batches;
  v_now   timestamptz;
  v_added integer;
begin
  if jsonb_typeof(p_contacts) is distinct from 'array' or exists (
       select from jsonb_array_elements(p_contacts) as g (contact)
        where jsonb_typeof(g.contact) <> 'object'
           or jsonb_typeof(g.contact -> 'phone_number') is distinct from 'string'
           or jsonb_typeof(g.contact -> 'custom_data') not in ('object', 'null')
           or g.contact ->> 'max_attempts' !~ '^[1-9]\d{0,3}$'
           or g.contact ->> 'due_at' !~ '^\d{4}-\d\d-\d\d[T ]\d\d:\d\d') then
    raise sqlstate 'PT400' using message = 'contacts must be an array of objects with a phone_number and, if given, custom_data (object), max_attempts (1 to 9999), due_at (ISO 8601)',
      detail = '{"code": "contacts_invalid"}';
  end if;

  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  if v_batch.status in ('completed', 'cancelled') then
    raise sqlstate 'PT400' using message = format('Batch is already %s', v_batch.status),
      detail = format('{"code": "batch_already_%s"}', v_batch.status);
  end if;

  begin
    -- Numbered before the insert, so that each one's data finds it.
    with given as materialized (
      select nextval(pg_get_serial_sequence('public.campaign_contacts', 'id')) as id, g.contact
        from jsonb_array_elements(p_contacts) with ordinality as g (contact, place)
       order by g.place),
    added as (
      insert into public.campaign_contacts (agency_id, batch_id, id, phone_number, max_attempts, status, due_at)
      select p_agency_id, p_batch_id, g.id, g.contact ->> 'phone_number',
             coalesce((g.contact ->> 'max_attempts')::smallint, 3),
             case when g.contact ->> 'due_at' is null then 'pending' else 'scheduled' end::public.contact_status,
             (g.contact ->> 'due_at')::timestamptz
        from given g),
    added_data as (
      insert into public.contact_data (agency_id, batch_id, contact_id, custom_data)
      select p_agency_id, p_batch_id, g.id, g.contact -> 'custom_data'
        from given g
       where jsonb_typeof(g.contact -> 'custom_data') = 'object' and g.contact -> 'custom_data' <> '{}')
    select count(*)::integer into v_added from given;
  exception when data_exception then  -- a time that is none, such as the 31st of June
    raise sqlstate 'PT400' using message = 'due_at must be a time', detail = '{"code": "contacts_invalid"}';
  end;

  update public.call_batches b
     set total_contacts = b.total_contacts + v_added,
         next_claim_at = least(b.next_claim_at, v_now)
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  perform private.record_event(p_agency_id, v_batch, v_actor, 'add_contacts', v_batch.status, v_added);
  return v_added;
end;
$$;

revoke execute on function private.add_contacts(uuid, uuid, jsonb) from public;
grant  execute on function private.add_contacts(uuid, uuid, jsonb) to service_role, lastcall_admin;
comment on function private.add_contacts(uuid, uuid, jsonb) is 'public.add_contacts, for a batch of a known agency.';

create or replace function public.add_contacts(batch_id uuid, contacts jsonb)
returns integer
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.add_contacts(private.find_batch_agency(batch_id), batch_id, contacts)
$$;

revoke execute on function public.add_contacts(uuid, jsonb) from public, anon, authenticated;
grant  execute on function public.add_contacts(uuid, jsonb) to service_role, lastcall_admin;
comment on function public.add_contacts(uuid, jsonb) is 'Add contacts to a batch, at the end of its dial order.';
