-- The caller, who must belong to p_agency_id or act on every agency.
-- Raises PT401 (not signed in), PT403 (of no agency), PT404 (another agency's: it does not exist
-- for this caller).
create or replace function private.require_actor(p_agency_id uuid)
returns private.actor
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor private.actor := private.current_actor();
begin
  if v_actor.kind = 'user' and v_actor.agency_id is null then
    raise sqlstate 'PT403' using message = 'User is not associated with an agency',
      detail = '{"code": "no_agency"}';
  end if;
  if v_actor.kind = 'user' and v_actor.agency_id is distinct from p_agency_id then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  end if;
  return v_actor;
end;
$$;

revoke execute on function private.require_actor(uuid) from public;
comment on function private.require_actor(uuid) is 'The caller, of this agency or of all.';

-- Whether the caller may act on every batch of the agency: its owners and admins may, and
-- services and consoles.
create or replace function private.is_agency_admin(p_actor private.actor)
returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select p_actor.kind <> 'user' or coalesce(p_actor.role in ('agency_owner', 'agency_admin'), false)
$$;

revoke execute on function private.is_agency_admin(private.actor) from public;
comment on function private.is_agency_admin(private.actor) is 'An owner or admin of the agency, a service or a console.';

-- The caller, who must be an owner or admin of the agency, a service or a console.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (another agency's).
create or replace function private.require_admin(p_agency_id uuid)
returns private.actor
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor private.actor := private.require_actor(p_agency_id);
begin
  if not private.is_agency_admin(v_actor) then
    raise sqlstate 'PT403' using message = 'User role must be agency_owner or agency_admin',
      detail = '{"code": "role_not_allowed"}';
  end if;
  return v_actor;
end;
$$;

revoke execute on function private.require_admin(uuid) from public;
comment on function private.require_admin(uuid) is 'The caller, an owner or admin of the agency, a service or a console.';

-- The caller, who must be a service or a console: the dialer's side. Raises PT401, PT403.
create or replace function private.require_service()
returns private.actor
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor private.actor := private.current_actor();
begin
  if v_actor.kind = 'user' then
    raise sqlstate 'PT403' using message = 'Only the service role may do this',
      detail = '{"code": "service_only"}';
  end if;
  return v_actor;
end;
$$;

revoke execute on function private.require_service() from public;
comment on function private.require_service() is 'The caller, a service or a console.';

-- The transaction, which must be at isolation level read committed: at a stricter one a statement does not see those
-- who committed while it waited for their lock, and would leave their batches and contacts out.
-- Raises 0A000 (a stricter isolation).
create or replace function private.require_read_committed()
returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise sqlstate '0A000'
      using message = format('It needs isolation level read committed; this transaction is %s',
        current_setting('transaction_isolation')),
        hint = 'Run it at isolation level read committed';
  end if;
end;
$$;

revoke execute on function private.require_read_committed() from public;
comment on function private.require_read_committed() is 'The transaction, at isolation level read committed.';
