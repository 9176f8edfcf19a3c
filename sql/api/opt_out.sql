create type public.opt_out_result as (
  success           boolean,
  phone_number      text,
  added             boolean,  -- false: the number was on the do-not-call list before
  batches           integer,  -- with contacts skipped, or a call in progress, to the number
  contacts_skipped  integer,
  calls_in_progress integer,  -- to the number, let through by start_call and not over: these finish
  calls_starting    integer   -- of these, how many can still start (see public.batch_silence)
);

-- Never call a number again for an agency: put it on the do-not-call list, and skip its contacts in every batch of the
-- agency. A call in progress to the number finishes, and is the last one. A repeat is a success: it skips what
-- was brought in since, and keeps the first source and reason.
-- When it has committed, start_call lets no call to the number through any more.
-- Any user of the agency may do this. p_agency_id: see private.find_agency; for a service or a console never null.
-- Raises PT401 (not signed in), PT403 (of no agency), PT404 (no such agency, or not the user's), PT400 (not an E.164 number;
-- no agency), PT503 (another request holds one of the batches), 0A000 (a stricter isolation than read committed).
create or replace function private.opt_out(p_agency_id uuid, p_phone_number text, p_source text, p_reason text)
returns public.opt_out_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_actor     private.actor := private.current_actor();
  v_agency_id uuid := private.find_agency(p_agency_id);
  v_batch_id  uuid;
  v_batch     public.call_batches;
  v_filter    private.contact_filter;
  v_contacts  private.skipped_contacts;
  v_result    public.opt_out_result;
begin
  if v_agency_id is null then
    raise sqlstate 'PT400' using message = 'agency_id is required',
      detail = '{"code": "agency_id_required"}';
  end if;
  if (p_phone_number ~ '^\+[1-9][0-9]{6,14}$') is not true then
    raise sqlstate 'PT400' using message = 'phone_number must be an E.164 number, such as +14155550123',
      detail = '{"code": "phone_number_invalid"}';
  end if;

  perform private.close_contacts(v_agency_id);
  insert into public.do_not_call (agency_id, phone_number, reason, source, added_by)
  values (v_agency_id, p_phone_number, p_reason, p_source, v_actor.id)
      on conflict (agency_id, phone_number) do nothing;
  v_result := row(true, p_phone_number, found, 0, 0, 0, 0);

  for v_batch_id in
    select distinct c.batch_id
      from public.campaign_contacts c
     where c.phone_number = p_phone_number and c.agency_id = v_agency_id
       and c.status in ('pending', 'scheduled', 'queued', 'in_progress')
     order by c.batch_id
  loop
    v_batch := private.lock_batch(v_agency_id, v_batch_id);
    continue when v_batch.status in ('completed', 'cancelled');
    v_filter.contact_ids := array(
      select c.id
        from public.campaign_contacts c
       where (c.phone_number, c.agency_id, c.batch_id) >= (p_phone_number, v_agency_id, v_batch_id)
         and (c.phone_number, c.agency_id, c.batch_id) <= (p_phone_number, v_agency_id, v_batch_id));
    v_contacts := private.skip_selected(v_batch, v_filter, 'do_not_call', 'Opted out');
    continue when v_contacts.skipped = 0 and v_contacts.in_progress = 0;
    perform private.record_event(v_agency_id, v_batch, v_actor, 'opt_out', v_batch.status, v_contacts.skipped,
      p_reason => p_reason);
    v_result.batches := v_result.batches + 1;
    v_result.contacts_skipped := v_result.contacts_skipped + v_contacts.skipped;
    v_result.calls_in_progress := v_result.calls_in_progress + v_contacts.in_progress;
    v_result.calls_starting := v_result.calls_starting + v_contacts.starting;
  end loop;
  return v_result;
end;
$$;

revoke execute on function private.opt_out(uuid, text, text, text) from public;
grant  execute on function private.opt_out(uuid, text, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.opt_out(uuid, text, text, text) is 'public.opt_out.';

-- The door to private.opt_out for users, services and consoles.
-- phone_number: E.164. source: where the person said no. reason: kept on the do-not-call list and in the audit trail.
-- agency_id: a user may leave it out.
create or replace function public.opt_out(
  phone_number text default null, source text default null, reason text default null, agency_id uuid default null)
returns public.opt_out_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.opt_out(agency_id, phone_number, source, reason)
$$;

revoke execute on function public.opt_out(text, text, text, uuid) from public, anon;
grant  execute on function public.opt_out(text, text, text, uuid) to authenticated, service_role, lastcall_admin;
comment on function public.opt_out(text, text, text, uuid) is
  'Never call a number again for an agency, in whichever batch.';
