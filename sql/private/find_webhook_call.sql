-- The call that a carrier's event is about, or null: of the agency that the event was delivered for, whatever
-- ids it names. In this order:
--   1. metadata.batch_id, metadata.call_id and metadata.lease, which the dialer gave the carrier. An event with a
--      lease is about that call or about none: ids come again after a crash, leases do not.
--   2. callId, as confirm_call or an earlier event noted it.
--   3. metadata.batch_id and metadata.call_id: a call that was claimed before leases had names.
--   4. metadata.batch_id and metadata.contact_id: the contact's latest call.
-- Null too for a call that start_call has not let through.
create or replace function private.find_webhook_call(p_agency_id uuid, p_payload jsonb)
returns public.calls
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_carrier_call_id constant text := p_payload #>> '{call,callId}';
  v_metadata        constant jsonb := p_payload #> '{call,metadata}';
  v_uuid            constant text := '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$';
  v_batch_id        uuid;
  v_call_id         bigint;
  v_lease           uuid;
  v_contact_id      bigint;
  v_call            public.calls;
begin
  -- As numbers or strings.
  v_batch_id := case when v_metadata ->> 'batch_id' ~ v_uuid then (v_metadata ->> 'batch_id')::uuid end;
  v_call_id := case when v_metadata ->> 'call_id' ~ '^[0-9]{1,18}$' then (v_metadata ->> 'call_id')::bigint end;
  v_lease := case when v_metadata ->> 'lease' ~ v_uuid then (v_metadata ->> 'lease')::uuid end;
  v_contact_id := case when v_metadata ->> 'contact_id' ~ '^[0-9]{1,18}$' then (v_metadata ->> 'contact_id')::bigint end;

  if v_metadata ->> 'lease' is null then
    select k.* into v_call
      from public.calls k
     where k.carrier_call_id = v_carrier_call_id and k.agency_id = p_agency_id
     limit 1;
    if found then
      return v_call;
    end if;
    if v_metadata ->> 'call_id' is null then
      select c.call_id, (
               select k.lease
                 from public.calls k
                where k.agency_id = p_agency_id and k.batch_id = v_batch_id and k.id = c.call_id)
        into v_call_id, v_lease
        from public.campaign_contacts c
       where c.agency_id = p_agency_id and c.batch_id = v_batch_id and c.id = v_contact_id;
    end if;
  elsif v_lease is null then
    return null;
  end if;
  select k.* into v_call
    from public.calls k
   where k.agency_id = p_agency_id and k.batch_id = v_batch_id and k.id = v_call_id
     and k.lease is not distinct from v_lease
     and k.started_at is not null;
  return v_call;
end;
$$;

revoke execute on function private.find_webhook_call(uuid, jsonb) from public;
comment on function private.find_webhook_call(uuid, jsonb) is 'The call that a carrier''s event is about.';
