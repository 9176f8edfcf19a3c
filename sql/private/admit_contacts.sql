-- Let the transaction add contacts to batches of an agency, until it ends: no opt-out slips in between its look at the
-- do-not-call list and its commit. Call it before the batch is locked. Many do so at once.
-- Raises PT503 (an opt-out takes too long), 40001 (an opt-out meanwhile, at a stricter isolation).
create or replace function private.admit_contacts(p_agency_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
begin
  perform set_config('lock_timeout', private.longest_wait(), true);
  perform from private.contact_admissions a where a.agency_id = p_agency_id for share;
  if not found then
    -- The first one of the agency.
    insert into private.contact_admissions (agency_id) values (p_agency_id) on conflict do nothing;
    perform from private.contact_admissions a where a.agency_id = p_agency_id for share;
  end if;
  perform set_config('lock_timeout', v_lock_timeout, true);
exception
  when lock_not_available then
    raise sqlstate 'PT503' using message = 'Another request holds what this one needs; try again',
      detail = '{"code": "agency_busy", "retry_after": 2}';
end;
$$;

revoke execute on function private.admit_contacts(uuid) from public;
comment on function private.admit_contacts(uuid) is 'Let the transaction add contacts to batches of an agency.';

-- Let nobody add contacts to batches of an agency until the transaction ends, and wait for those who are about to.
-- Raises PT503 (another request takes too long), 0A000 (a stricter isolation than read committed).
create or replace function private.close_contacts(p_agency_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
begin
  perform private.require_read_committed();
  perform private.commit_durably();
  perform set_config('lock_timeout', private.longest_wait(), true);
  insert into private.contact_admissions as a (agency_id)
  values (p_agency_id)
      on conflict (agency_id) do update set last_use = clock_timestamp();
  perform set_config('lock_timeout', v_lock_timeout, true);
exception
  when lock_not_available then
    raise sqlstate 'PT503' using message = 'Another request holds what this one needs; try again',
      detail = '{"code": "agency_busy", "retry_after": 2}';
end;
$$;

revoke execute on function private.close_contacts(uuid) from public;
comment on function private.close_contacts(uuid) is 'Let nobody add contacts to batches of an agency until the transaction ends.';
