create type public.batch_silence_result as (
  batch_id          text,                 -- as it was given
  status            public.batch_status,
  is_silent         boolean,              -- no call of the batch can start, at the gate or at the carrier
  silent_since      timestamptz,          -- since then at the latest; null: not silent
  silent_by         timestamptz,          -- when calls_starting will be 0 at the latest; null: no call is starting, or unknown
  calls_starting    integer,              -- let through, and still in time to get to the carrier or queued there
  calls_in_progress integer               -- let through and not over, with those that are starting
);

-- Whether calls of a batch can still start, and which are in progress.
-- A batch is silent when it is paused, stopped, held or over and none of its calls is starting. silent_since is the later
-- of two times, neither of them ahead: when the batch was ended or held, and when the last of its calls could start.
-- p_batch_id: a UUID, or with p_user_id or for services an external id (see private.find_user_batch).
-- Raises PT401, PT403 (of no agency; neither that user nor an owner or admin), PT404 (no such batch of the agency, or
-- of the user), PT400 (an id is missing).
create or replace function private.batch_silence(p_batch_id text, p_user_id text)
returns public.batch_silence_result
language plpgsql stable
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_uuid   constant text := '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$';
  v_target private.user_batch;
  v_batch  public.call_batches;
  v_is_held boolean;
  v_result public.batch_silence_result;
begin
  if coalesce(p_batch_id, '') = '' then
    raise sqlstate 'PT400' using message = 'batch_id is required',
      detail = '{"code": "batch_id_required"}';
  elsif p_user_id is null and p_batch_id ~ v_uuid then
    v_target := row(private.find_batch_agency(p_batch_id::uuid), p_batch_id::uuid, null::uuid);
  else
    v_target := private.find_user_batch(p_batch_id, p_user_id);
  end if;
  perform private.require_actor(v_target.agency_id);
  select b.* into v_batch
    from public.call_batches b
   where b.agency_id = v_target.agency_id and b.id = v_target.batch_id;
  if not found then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  end if;

  v_result.batch_id := p_batch_id;
  v_result.status := v_batch.status;
  v_result.calls_starting := private.count_starting(v_batch);
  v_result.calls_in_progress := v_batch.in_progress;
  v_is_held := v_batch.status = 'processing' and private.is_held(v_batch, clock_timestamp());
  v_result.is_silent := v_result.calls_starting = 0
    and (v_is_held or v_batch.status in ('paused', 'stopped', 'completed', 'failed', 'cancelled'));
  v_result.silent_by := case when v_result.calls_starting > 0 and v_batch.place_by > clock_timestamp() and not exists (
      select from public.calls c
       where c.agency_id = v_batch.agency_id and c.batch_id = v_batch.id
         and c.status in ('in_progress', 'unknown') and c.carrier_queued) then v_batch.place_by end;
  v_result.silent_since := case when v_result.is_silent then least(clock_timestamp(), greatest(
    case when v_is_held then private.held_since(v_batch)
         when v_batch.status = 'paused' then v_batch.paused_at
         when v_batch.status = 'stopped' then v_batch.stopped_at
         else v_batch.completed_at end,
    v_batch.place_by)) end;
  return v_result;
end;
$$;

revoke execute on function private.batch_silence(text, text) from public;
grant  execute on function private.batch_silence(text, text) to authenticated, service_role, lastcall_admin;
comment on function private.batch_silence(text, text) is 'public.batch_silence.';

-- The door to private.batch_silence for users, services and consoles.
create or replace function public.batch_silence(batch_id text default null, user_id text default null)
returns public.batch_silence_result
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.batch_silence(batch_id, user_id)
$$;

revoke execute on function public.batch_silence(text, text) from public, anon;
grant  execute on function public.batch_silence(text, text) to authenticated, service_role, lastcall_admin;
comment on function public.batch_silence(text, text) is
  'Whether calls of a batch can still start, since when not, and which are in progress.';
