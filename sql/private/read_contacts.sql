create type private.contacts_page as (contacts json, next_cursor text);

-- The most contacts of a batch that one request looks through; more than the 10,000 of calls-batch-create.
create or replace function private.max_contacts_read()
returns integer
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select 20000
$$;

revoke execute on function private.max_contacts_read() from public;
comment on function private.max_contacts_read() is 'The most contacts of a batch that one request looks through.';

-- The contacts of a batch after the cursor p_after (null: from the first one), in dial order, without the
-- first p_offset, at most p_limit; p_status: only those. next_cursor: where to go on; null at the end.
-- Looks through at most private.max_contacts_read() contacts, and for the others leads on by
-- next_cursor: with p_status a page may be short, or empty, before the end.
-- Raises PT400 (not a cursor).
create or replace function private.read_contacts(
  p_agency_id uuid, p_batch_id uuid, p_status public.contact_status, p_after text, p_limit integer, p_offset integer)
returns private.contacts_page
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_max   constant integer := private.max_contacts_read();
  v_after bigint;
  v_found integer;
  v_next  bigint;
  v_page  private.contacts_page;
begin
  if p_after !~ '^[0-9]{1,18}$' then
    raise sqlstate 'PT400' using message = 'Not a cursor that was given out',
      detail = '{"code": "cursor_invalid"}';
  end if;
  v_after := coalesce(p_after::bigint, 0);

  select count(*)::integer, max(f.id) filter (where f.place = p_limit),
         coalesce(json_agg(
           json_build_object(
             'id', f.id::text,
             'phone_number', f.phone_number,
             'first_name', d.first_name,
             'last_name', d.last_name,
             'email', d.email,
             'company', d.company,
             'title', d.title,
             'status', f.status,
             'call_id', f.call_id::text,
             'attempts', f.attempts,
             'max_attempts', f.max_attempts,
             'outcome', f.outcome,
             'duration_seconds', f.duration_seconds,
             'outcome_notes', f.outcome_notes,
             'last_attempt_at', private.iso_timestamp(f.last_attempt_at),
             'completed_at', private.iso_timestamp(f.completed_at),
             'custom_data', coalesce(d.custom_data, '{}'),
             'do_not_call', coalesce((select true from public.do_not_call n
                                       where n.agency_id = p_agency_id and n.phone_number = f.phone_number
                                       limit 1), false),
             'timezone', f.timezone,
             'created_at', private.iso_timestamp(f.created_at))
           order by f.place)
           filter (where f.place <= p_limit), '[]')
    into v_found, v_next, v_page.contacts
    from (select c.*, row_number() over (order by c.id) as place
            from (select c.*
                    from (select c.*
                            from public.campaign_contacts c
                           where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id > v_after
                           order by c.agency_id, c.batch_id, c.id
                           limit v_max) c
                   where p_status is null or c.status = p_status
                   order by c.id
                  offset p_offset
                   limit p_limit + 1) c) f
    -- With a limit: each by its key, and never by reading the whole batch.
    left join lateral (
      select d.*
        from public.contact_data d
       where d.agency_id = p_agency_id and d.batch_id = p_batch_id and d.contact_id = f.id
       limit 1) d on true;

  if v_found <= p_limit then
    -- Not more than were asked for: the end, unless it stopped looking before it.
    select c.id into v_next
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id > v_after
     order by c.agency_id, c.batch_id, c.id
    offset v_max - 1
     limit 1;
  end if;
  v_page.next_cursor := v_next::text;
  return v_page;
end;
$$;

revoke execute on function private.read_contacts(uuid, uuid, public.contact_status, text, integer, integer) from public;
comment on function private.read_contacts(uuid, uuid, public.contact_status, text, integer, integer) is
  'A page of a batch''s contacts.';
