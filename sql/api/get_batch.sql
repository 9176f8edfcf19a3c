-- A batch (see private.describe_batch), its calls in progress or unknown (the first 100), and a page of its
-- contacts in dial order (see private.read_contacts).
-- p_status: only contacts of this status. p_limit: 1 to 200. p_offset: 0 to 10,000; p_after, the
-- next_cursor of the page before, goes further.
-- Returns {"batch", "live_calls": [...], "contacts": [...], "contact_pagination": {"total", "limit", "offset",
-- "has_more", "next_cursor"}}. total comes from the counters. These do not tell pending from scheduled
-- contacts: where only one of the two is asked for, they are counted in a batch of up to
-- private.max_contacts_read() contacts, and total is null in a larger one.
-- Raises PT401, PT403 (of no agency), PT404 (no such batch of the agency), PT400 (a number out of range;
-- not a cursor).
-- Contract: calls-batch-get.
create or replace function private.get_batch(
  p_agency_id uuid, p_batch_id uuid, p_status public.contact_status, p_limit integer, p_offset integer, p_after text)
returns json
language plpgsql stable
security definer  -- for a service or a console, looks at every agency
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_max        constant integer := private.max_contacts_read();
  v_batch      public.call_batches;
  v_waiting    integer;
  v_total      integer;
  v_live_calls json;
  v_page       private.contacts_page;
begin
  perform private.require_actor(p_agency_id);
  if p_limit is null or p_limit not between 1 and 200 or p_offset is null or p_offset not between 0 and 10000 then
    raise sqlstate 'PT400' using
      message = 'contact_limit must be 1 to 200 and contact_offset 0 to 10,000; contact_after goes further',
      detail = '{"code": "page_out_of_range"}';
  end if;
  select b.* into v_batch from public.call_batches b where b.agency_id = p_agency_id and b.id = p_batch_id;
  if not found then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  end if;

  v_waiting := v_batch.total_contacts - v_batch.queued - v_batch.in_progress
    - v_batch.completed - v_batch.failed - v_batch.skipped;
  v_total := case
    when p_status is null then v_batch.total_contacts
    when p_status = 'queued' then v_batch.queued
    when p_status = 'in_progress' then v_batch.in_progress
    when p_status = 'completed' then v_batch.completed
    when p_status = 'failed' then v_batch.failed
    when p_status = 'skipped' then v_batch.skipped
    when v_waiting <= 0 then 0
    when v_batch.total_contacts <= v_max then (
      select count(*)::integer
        from (select c.status
                from public.campaign_contacts c
               where c.agency_id = p_agency_id and c.batch_id = p_batch_id
               limit v_max) c
       where c.status = p_status) end;

  -- Each status by itself: so the index has them in order.
  select coalesce(json_agg(json_build_object(
           'call_id', l.id::text,
           'contact_id', l.contact_id::text,
           'phone_number', (select c.phone_number
                              from public.campaign_contacts c
                             where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = l.contact_id
                             limit 1),
           'status', l.status,
           'started_at', private.iso_timestamp(l.started_at),
           'carrier_call_id', l.carrier_call_id)), '[]')
    into v_live_calls
    from ((select k.*
             from public.calls k
            where k.agency_id = p_agency_id and k.batch_id = p_batch_id and k.status = 'unknown'
            order by k.lease_expires_at
            limit 100)
          union all
          (select k.*
             from public.calls k
            where k.agency_id = p_agency_id and k.batch_id = p_batch_id and k.status = 'in_progress'
            order by k.lease_expires_at
            limit 100)
          limit 100) l;

  v_page := private.read_contacts(p_agency_id, p_batch_id, p_status, p_after, p_limit, p_offset);
  return json_build_object(
    'batch', private.describe_batch(v_batch, clock_timestamp()),
    'live_calls', v_live_calls,
    'contacts', v_page.contacts,
    'contact_pagination', json_build_object(
      'total', v_total,
      'limit', p_limit,
      'offset', p_offset,
      'has_more', v_page.next_cursor is not null,
      'next_cursor', v_page.next_cursor));
end;
$$;

revoke execute on function private.get_batch(uuid, uuid, public.contact_status, integer, integer, text) from public;
grant  execute on function private.get_batch(uuid, uuid, public.contact_status, integer, integer, text) to authenticated, service_role, lastcall_admin;
comment on function private.get_batch(uuid, uuid, public.contact_status, integer, integer, text) is
  'public.get_batch, for a batch of a known agency.';

create or replace function public.get_batch(
  batch_id uuid default null, contact_status public.contact_status default null, contact_limit integer default 50,
  contact_offset integer default 0, contact_after text default null)
returns json
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.get_batch(
    private.find_batch_agency(batch_id), batch_id, contact_status, contact_limit, contact_offset, contact_after)
$$;

revoke execute on function public.get_batch(uuid, public.contact_status, integer, integer, text) from public, anon;
grant  execute on function public.get_batch(uuid, public.contact_status, integer, integer, text) to authenticated, service_role, lastcall_admin;
comment on function public.get_batch(uuid, public.contact_status, integer, integer, text) is
  'A call batch, its calls in progress and a page of its contacts.';
