create type public.lift_hold_result as (
  success      boolean,
  hold_id      uuid,
  lifted_at    timestamptz,
  batches      integer,  -- being dialed, in the scope of the hold
  batches_held integer   -- of these, how many another hold keeps held
);

-- Lift a hold: the batches in its scope go on as they were, unless another hold reaches them. Lifting a lifted hold again is
-- a success, and changes nothing.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin; a hold of every agency, for a user), PT404 (no
-- such hold of the agency), PT400 (no hold_id), PT503 (another request holds one of the batches), 0A000 (a stricter
-- isolation than read committed).
create or replace function private.lift_hold(p_hold_id uuid, p_reason text)
returns public.lift_hold_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor     private.actor := private.current_actor();
  v_agency_id uuid := private.find_admin_agency(null);
  v_hold      public.holds;
  v_reached   private.reached_batches;
begin
  if p_hold_id is null then
    raise sqlstate 'PT400' using message = 'hold_id is required',
      detail = '{"code": "hold_id_required"}';
  end if;
  select h.* into v_hold
    from public.holds h
   where h.id = p_hold_id and (v_agency_id is null or h.agency_id = v_agency_id or h.agency_id is null);
  if not found then
    raise sqlstate 'PT404' using message = 'Hold not found',
      detail = '{"code": "hold_not_found"}';
  end if;
  if v_hold.agency_id is null and v_actor.kind = 'user' then
    raise sqlstate 'PT403' using message = 'Only a service or a console may lift a hold of every agency',
      detail = '{"code": "service_only"}';
  end if;

  perform private.close_live(v_hold.agency_id);
  update public.holds h
     set lifted_at = clock_timestamp(),
         lifted_by = v_actor.id,
         lifted_by_role = v_actor.db_role,
         lift_reason = p_reason
   where h.id = p_hold_id and h.lifted_at is null;
  if found then
    perform private.mark_held(v_hold);
  end if;
  select h.* into v_hold from public.holds h where h.id = p_hold_id;
  v_reached := private.count_reached(v_hold);
  return row(true, v_hold.id, v_hold.lifted_at, v_reached.batches, v_reached.held)::public.lift_hold_result;
end;
$$;

revoke execute on function private.lift_hold(uuid, text) from public;
grant  execute on function private.lift_hold(uuid, text) to authenticated, service_role, lastcall_admin;
comment on function private.lift_hold(uuid, text) is 'public.lift_hold.';

-- The door to private.lift_hold for users, services and consoles. reason: kept with the hold.
create or replace function public.lift_hold(hold_id uuid default null, reason text default null)
returns public.lift_hold_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batches
as $$
  select private.lift_hold(hold_id, reason)
$$;

revoke execute on function public.lift_hold(uuid, text) from public, anon;
grant  execute on function public.lift_hold(uuid, text) to authenticated, service_role, lastcall_admin;
comment on function public.lift_hold(uuid, text) is 'Lift a hold: its batches go on as they were.';
