-- A batch's contacts and the calls to each, in pages, as stop-calling's product shows them.
-- p_batch_id: UUID or external id. p_page: from 1. p_page_size: 1 to 100; p_page * p_page_size up to
-- private.max_contacts_read(). p_call_status: only contacts of this status. p_search: part of the phone number, or of
-- the name in any case. p_sort_by: createdAt (upload order), phoneNumber or callStatus, in a batch of up to
-- private.max_contacts_read() contacts; in a larger one createdAt alone.
-- A status or a search is looked for in the first private.max_contacts_read() contacts of that order; totalIsExact
-- says whether these are all, so that total counts them all.
-- Returns {"batchId", "batchName", "batchStatus", "page", "limit", "total", "totalPages", "totalIsExact", "data"}. In
-- data: _id, phoneNumber, callStatus, phoneLogs (the calls, oldest first) and createdAt beside what is known of
-- the contact, whose keys never replace these. Recordings and transcripts are not kept.
-- Raises PT401, PT400 (no batch id, or batches share it; a number out of range; not an order, or none of a batch so
-- large), PT403 (of no agency), PT404 (no such batch of the agency; another user's, and not an owner or admin).
-- Contract: GET /api/call/batch-details/{id}; an owner or admin may look at any batch of the agency.
create or replace function private.get_user_batch(
  p_batch_id text, p_page integer, p_page_size integer, p_call_status public.contact_status,
  p_search text, p_sort_by text, p_descending boolean)
returns json
language plpgsql stable
security definer  -- looks at batches of every agency for a service or a console
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan  -- by the agency's index for a user, without it for the others
set enable_seqscan = off  -- as in claim_batch
as $$
declare
  v_uuid    constant text := '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$';
  v_max     constant integer := private.max_contacts_read();
  v_actor   private.actor := private.current_actor();
  v_batches public.call_batches[];
  v_batch   public.call_batches;
  v_is_part boolean := p_call_status is not null or coalesce(p_search, '') <> '';
  v_read    integer := v_max;
  v_total   integer;
  v_data    json;
begin
  if coalesce(p_batch_id, '') = '' then
    raise sqlstate 'PT400' using message = 'batchId is required',
      detail = '{"code": "batch_id_required"}';
  end if;
  if p_page is null or p_page < 1 or p_page_size is null or p_page_size not between 1 and 100
     or p_page::bigint * p_page_size > v_max then
    raise sqlstate 'PT400' using
      message = format('page must be at least 1, limit 1 to 100, and both together reach at most %s', v_max),
      detail = '{"code": "page_out_of_range"}';
  end if;
  if p_sort_by is null or p_sort_by not in ('createdAt', 'phoneNumber', 'callStatus') then
    raise sqlstate 'PT400' using message = 'sortBy must be createdAt, phoneNumber or callStatus',
      detail = '{"code": "sort_invalid"}';
  end if;
  if v_actor.kind = 'user' and v_actor.agency_id is null then
    raise sqlstate 'PT403' using message = 'User is not associated with an agency',
      detail = '{"code": "no_agency"}';
  end if;

  v_batches := array(
    select b
      from public.call_batches b
     where (v_actor.agency_id is null or b.agency_id = v_actor.agency_id)
       and (b.external_id = p_batch_id
            or b.id = case when p_batch_id ~ v_uuid then p_batch_id::uuid end)
       and (private.is_agency_admin(v_actor) or b.user_id = v_actor.id)
     limit 2);
  if cardinality(v_batches) = 0 then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  elsif cardinality(v_batches) > 1 then
    raise sqlstate 'PT400' using message = 'Several batches have this id: give the UUID',
      detail = '{"code": "batch_id_ambiguous"}';
  end if;
  v_batch := v_batches[1];
  if p_sort_by <> 'createdAt' and v_batch.total_contacts > v_max then
    raise sqlstate 'PT400' using
      message = format('A batch of more than %s contacts can be sorted by createdAt alone', v_max),
      detail = '{"code": "sort_invalid"}';
  end if;
  if p_sort_by = 'createdAt' and not v_is_part then
    v_read := p_page * p_page_size;
  end if;

  with looked_at as (
    (select c.*
       from public.campaign_contacts c
      where c.agency_id = v_batch.agency_id and c.batch_id = v_batch.id and not coalesce(p_descending, false)
      order by c.agency_id, c.batch_id, c.id
      limit v_read)
    union all
    (select c.*
       from public.campaign_contacts c
      where c.agency_id = v_batch.agency_id and c.batch_id = v_batch.id and p_descending
      order by c.agency_id desc, c.batch_id desc, c.id desc
      limit v_read)),
  found as (
    select l.*,
           row_number() over (
             order by case when not coalesce(p_descending, false) then k.sort_key end,
                      case when p_descending then k.sort_key end desc,
                      case when p_descending then -l.id else l.id end) as place
      from looked_at l
     cross join lateral (
       select case p_sort_by when 'phoneNumber' then l.phone_number when 'callStatus' then l.status::text end as sort_key) k
     where (p_call_status is null or l.status = p_call_status)
       and (coalesce(p_search, '') = ''
            or strpos(l.phone_number, p_search) > 0
            or coalesce(strpos(lower((
                 select concat_ws(' ', d.first_name, d.last_name, d.custom_data ->> 'name')
                   from public.contact_data d
                  where d.agency_id = v_batch.agency_id and d.batch_id = v_batch.id and d.contact_id = l.id
                  limit 1)), lower(p_search)) > 0, false))),
  page as (
    select f.*
      from found f
     where f.place > (p_page - 1) * p_page_size and f.place <= p_page * p_page_size)
  select case when v_is_part then (select count(*)::integer from found) else v_batch.total_contacts end,
         coalesce(json_agg(
           coalesce((
             select jsonb_strip_nulls(jsonb_build_object(
                      'first_name', d.first_name, 'last_name', d.last_name, 'email', d.email,
                      'company', d.company, 'title', d.title)) || d.custom_data
               from public.contact_data d
              where d.agency_id = v_batch.agency_id and d.batch_id = v_batch.id and d.contact_id = p.id
              limit 1), '{}')
           || jsonb_build_object(
             '_id', p.id::text,
             'phoneNumber', p.phone_number,
             'callStatus', p.status,
             'phoneLogs', (
               select coalesce(jsonb_agg(
                        jsonb_build_object(
                          'callStatus', k.status,
                          'callDuration', k.duration_seconds,
                          'recordingUrl', null,
                          'transcript', null,
                          'createdAt', private.iso_timestamp(coalesce(k.started_at, k.created_at)))
                        order by k.id), '[]')
                 -- The batch outside: inside, it could be planned to read all of the batch's calls.
                 from (select k.* from public.calls k where k.contact_id = p.id offset 0) k
                where k.agency_id = v_batch.agency_id and k.batch_id = v_batch.id and k.status <> 'queued'),
             'createdAt', private.iso_timestamp(p.created_at))
           order by p.place), '[]')
    into v_total, v_data
    from page p;

  return json_build_object(
    'batchId', coalesce(v_batch.external_id, v_batch.id::text),
    'batchName', v_batch.name,
    'batchStatus', case when v_batch.status = 'processing' then 'active' else v_batch.status::text end,
    'page', p_page,
    'limit', p_page_size,
    'total', v_total,
    'totalPages', (v_total + p_page_size - 1) / p_page_size,
    'totalIsExact', not v_is_part or v_batch.total_contacts <= v_max,
    'data', v_data);
end;
$$;

revoke execute on function private.get_user_batch(
  text, integer, integer, public.contact_status, text, text, boolean) from public;
grant  execute on function private.get_user_batch(
  text, integer, integer, public.contact_status, text, text, boolean) to authenticated, service_role, lastcall_admin;
comment on function private.get_user_batch(text, integer, integer, public.contact_status, text, text, boolean) is
  'public.get_user_batch.';

create or replace function public.get_user_batch(
  batch_id text default null, page integer default 1, page_size integer default 10,
  call_status public.contact_status default null, search text default null,
  sort_by text default 'createdAt', descending boolean default false)
returns json
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.get_user_batch(batch_id, page, page_size, call_status, search, sort_by, descending)
$$;

revoke execute on function public.get_user_batch(
  text, integer, integer, public.contact_status, text, text, boolean) from public, anon;
grant  execute on function public.get_user_batch(
  text, integer, integer, public.contact_status, text, text, boolean) to authenticated, service_role, lastcall_admin;
comment on function public.get_user_batch(text, integer, integer, public.contact_status, text, text, boolean) is
  'A call batch''s contacts and the calls to each, in pages.';
