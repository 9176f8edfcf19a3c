-- Which batch and whose is meant by stop_batch, looked up without a lock.
create type private.user_batch as (agency_id uuid, batch_id uuid, user_id uuid);

-- Both ids may be UUIDs or external ids. A user must name the responsible user, may be that
-- user or an owner or admin of the agency, and reaches only that user's batches in the own
-- agency. A service or a console may leave the user out, and reaches every agency.
-- Raises PT401, PT400 (an id is missing, or agencies share it), PT403 (of no agency; neither that
-- user nor an owner or admin), PT404 (no such user; no such batch of that user).
create or replace function private.find_user_batch(p_batch_id text, p_user_id text)
returns private.user_batch
language plpgsql stable
security definer  -- looks at users and batches, of every agency for a service or a console
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan  -- by the agency's index for a user, without it for the others
as $$
declare
  v_uuid    constant text := '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$';
  v_actor   private.actor := private.current_actor();
  v_users   uuid[];
  v_targets private.user_batch[];
begin
  if coalesce(p_batch_id, '') = '' then
    raise sqlstate 'PT400' using message = 'batchId is required',
      detail = '{"code": "batch_id_required"}';
  end if;
  if coalesce(p_user_id, '') = '' and v_actor.kind = 'user' then
    raise sqlstate 'PT400' using message = 'userId is required',
      detail = '{"code": "user_id_required"}';
  end if;
  if v_actor.kind = 'user' and v_actor.agency_id is null then
    raise sqlstate 'PT403' using message = 'User is not associated with an agency',
      detail = '{"code": "no_agency"}';
  end if;

  if coalesce(p_user_id, '') <> '' then
    v_users := private.find_users(v_actor, p_user_id);
  end if;

  v_targets := array(
    select (b.agency_id, b.id, case when v_users is not null then b.user_id end)::private.user_batch
      from public.call_batches b
     where (v_actor.agency_id is null or b.agency_id = v_actor.agency_id)
       and (b.external_id = p_batch_id
            or b.id = case when p_batch_id ~ v_uuid then p_batch_id::uuid end)
       and (v_users is null or b.user_id = any (v_users))
     limit 2);
  if cardinality(v_targets) = 0 then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  elsif cardinality(v_targets) > 1 then
    raise sqlstate 'PT400' using message = 'Several batches have this id: give the UUID, or the user',
      detail = '{"code": "batch_id_ambiguous"}';
  end if;
  return v_targets[1];
end;
$$;

revoke execute on function private.find_user_batch(text, text) from public;
comment on function private.find_user_batch(text, text) is 'Which batch, and whose, stop_batch means.';
