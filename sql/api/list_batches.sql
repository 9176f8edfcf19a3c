-- The agency's batches, newest first, each as private.describe_batch shows it. A service or a console sees every
-- agency's, or those of p_agency_id.
-- p_status, p_campaign_id: only these. p_page_size: 1 to 100. p_offset: how many to pass over.
-- p_after: the next_cursor of the page before; unlike an offset it holds its place while batches are created.
-- Returns {"batches": [...], "pagination": {"total", "limit", "offset", "has_more", "next_cursor"}}; total
-- counts batches before the cursor too.
-- Raises PT401, PT400 (a number out of range; not a cursor), PT403 (of no agency).
-- Contract: calls-batch-list.
create or replace function private.list_batches(
  p_agency_id uuid, p_status public.batch_status, p_campaign_id uuid, p_page_size integer, p_offset integer, p_after text)
returns json
language plpgsql stable
security definer  -- for a service or a console, looks at every agency
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan  -- by the agency's index for a user, without it for the others
as $$
declare
  v_uuid   constant text := '[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}';
  v_actor  private.actor := private.current_actor();
  v_now    timestamptz := clock_timestamp();
  v_after  text[] := regexp_match(p_after, format('^(-?[0-9]{1,17})\.(%s)\.(%s)$', v_uuid, v_uuid));
  v_shown  json;
  v_total  integer;
  v_next   text;
begin
  if p_page_size is null or p_page_size not between 1 and 100 or p_offset is null or p_offset < 0 then
    raise sqlstate 'PT400' using message = 'limit must be 1 to 100 and offset at least 0',
      detail = '{"code": "page_out_of_range"}';
  end if;
  if p_after is not null and v_after is null then
    raise sqlstate 'PT400' using message = 'Not a cursor that was given out',
      detail = '{"code": "cursor_invalid"}';
  end if;
  if v_actor.kind = 'user' and v_actor.agency_id is null then
    raise sqlstate 'PT403' using message = 'User is not associated with an agency',
      detail = '{"code": "no_agency"}';
  end if;

  with found as (
    select b.agency_id, b.id, b.created_at
      from public.call_batches b
     where (v_actor.agency_id is null or b.agency_id = v_actor.agency_id)
       and (p_agency_id is null or b.agency_id = p_agency_id)
       and (p_status is null or b.status = p_status)
       and (p_campaign_id is null or b.campaign_id = p_campaign_id)),
  page as (
    select f.agency_id, f.id,
           format('%s.%s.%s', (extract(epoch from f.created_at) * 1000000)::bigint, f.id, f.agency_id) as cursor,
           row_number() over (order by f.created_at desc, f.id desc, f.agency_id desc) - p_offset as place
      from found f
     where v_after is null
        or (f.created_at, f.id, f.agency_id)
           < (timestamptz 'epoch' + v_after[1]::bigint * interval '1 microsecond', v_after[2]::uuid, v_after[3]::uuid)
     order by f.created_at desc, f.id desc, f.agency_id desc
    offset p_offset
     limit p_page_size + 1)
  select (select count(*)::integer from found),
         coalesce(json_agg(private.describe_batch(b, v_now) order by p.place)
                    filter (where p.place <= p_page_size), '[]'),
         case when count(*) > p_page_size then max(p.cursor) filter (where p.place = p_page_size) end
    into v_total, v_shown, v_next
    from page p
    join public.call_batches b on b.agency_id = p.agency_id and b.id = p.id;

  return json_build_object(
    'batches', v_shown,
    'pagination', json_build_object(
      'total', v_total,
      'limit', p_page_size,
      'offset', p_offset,
      'has_more', v_next is not null,
      'next_cursor', v_next));
end;
$$;

revoke execute on function private.list_batches(uuid, public.batch_status, uuid, integer, integer, text) from public;
grant  execute on function private.list_batches(uuid, public.batch_status, uuid, integer, integer, text) to authenticated, service_role, lastcall_admin;
comment on function private.list_batches(uuid, public.batch_status, uuid, integer, integer, text) is 'public.list_batches.';

create or replace function public.list_batches(
  status public.batch_status default null, campaign_id uuid default null, page_size integer default 25,
  page_offset integer default 0, after text default null, agency_id uuid default null)
returns json
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.list_batches(agency_id, status, campaign_id, page_size, page_offset, after)
$$;

revoke execute on function public.list_batches(public.batch_status, uuid, integer, integer, text, uuid) from public, anon;
grant  execute on function public.list_batches(public.batch_status, uuid, integer, integer, text, uuid) to authenticated, service_role, lastcall_admin;
comment on function public.list_batches(public.batch_status, uuid, integer, integer, text, uuid) is
  'The agency''s call batches with their progress and what they wait for, newest first.';
