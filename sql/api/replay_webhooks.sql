-- Have dead events applied again, as if they had just come in: of an agency, and of p_ids where given.
-- Events that are not dead stay as they are, so a repeat is harmless. Returns how many events were dead.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such agency, or not the
-- user's), PT400 (neither an agency nor ids).
create or replace function private.replay_webhooks(p_agency_id uuid, p_ids bigint[])
returns integer
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_agency_id uuid := private.find_admin_agency(p_agency_id);
  v_replayed  integer;
begin
  if v_agency_id is null and p_ids is null then
    raise sqlstate 'PT400' using message = 'agency_id or ids is required',
      detail = '{"code": "agency_id_required"}';
  end if;
  perform private.commit_durably();
  update public.webhook_queue q
     set status = 'pending',
         attempts = 0,
         error_message = null,
         processed_at = null,
         next_retry_at = clock_timestamp()
   where q.status = 'dead' and (v_agency_id is null or q.agency_id = v_agency_id)
     and (p_ids is null or q.id = any (p_ids));
  get diagnostics v_replayed = row_count;
  return v_replayed;
end;
$$;

revoke execute on function private.replay_webhooks(uuid, bigint[]) from public;
grant  execute on function private.replay_webhooks(uuid, bigint[]) to authenticated, service_role, lastcall_admin;
comment on function private.replay_webhooks(uuid, bigint[]) is 'public.replay_webhooks.';

-- agency_id: a user may leave it out.
create or replace function public.replay_webhooks(agency_id uuid default null, ids bigint[] default null)
returns integer
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.replay_webhooks(agency_id, ids)
$$;

revoke execute on function public.replay_webhooks(uuid, bigint[]) from public, anon;
grant  execute on function public.replay_webhooks(uuid, bigint[]) to authenticated, service_role, lastcall_admin;
comment on function public.replay_webhooks(uuid, bigint[]) is 'Have dead webhook events applied again.';
