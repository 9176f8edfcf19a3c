-- Let the transaction bring batches of an agency to life, until it ends: no hold slips in between its look at the holds and
-- its commit. Call it before the batch is locked. Many do so at once; a hold waits for them, and they for it.
-- Raises PT503 (a hold is being placed or lifted, for too long), 40001 (meanwhile, at a stricter isolation).
create or replace function private.admit_live(p_agency_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
begin
  perform set_config('lock_timeout', private.longest_wait(), true);
  perform from private.live_admission l for share;
  perform from public.agencies a where a.id = p_agency_id for share;
  perform set_config('lock_timeout', v_lock_timeout, true);
exception
  when lock_not_available then
    raise sqlstate 'PT503' using message = 'Another request holds what this one needs; try again',
      detail = '{"code": "agency_busy", "retry_after": 2}';
end;
$$;

revoke execute on function private.admit_live(uuid) from public;
comment on function private.admit_live(uuid) is 'Let the transaction bring batches of an agency to life.';

-- Let nobody bring batches of an agency (null: of any agency) to life until the transaction ends, and wait for those who
-- are about to. Holds of the agency take turns here.
-- Raises PT503 (another request takes too long), 0A000 (a stricter isolation than read committed).
create or replace function private.close_live(p_agency_id uuid)
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
  -- Updates, though nothing changes: at a stricter isolation, whoever had looked at the holds before fails.
  if p_agency_id is null then
    update private.live_admission l set last_use = clock_timestamp();
  else
    update public.agencies a set name = a.name where a.id = p_agency_id;
  end if;
  perform set_config('lock_timeout', v_lock_timeout, true);
exception
  when lock_not_available then
    raise sqlstate 'PT503' using message = 'Another request holds what this one needs; try again',
      detail = '{"code": "agency_busy", "retry_after": 2}';
end;
$$;

revoke execute on function private.close_live(uuid) from public;
comment on function private.close_live(uuid) is 'Let nobody bring batches of an agency to life until the transaction ends.';
