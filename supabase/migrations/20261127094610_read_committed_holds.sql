-- This migration holds up nobody for long: when it must wait for a lock, it gives up, and is run again.
set local lock_timeout = '500ms';

-- file: private/require.sql 4f37f1e67bf1b8da0e1ba5e742945a0c55e73609ec509e0ea681c28df39a37ae
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

-- file: private/admit_live.sql 47eca379a0266941895d54a6f586db33c4a55ada38cf0e9df0c0174d038eb22a
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

-- file: private/admit_contacts.sql 80b8a992ff4d932e4ee212f516060c8f786264ed98716b2ca21520b2655fb73e
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

-- file: api/opt_out.sql b16b31aa92484994cd0c9697116a72eb0db58b15754de4039ce3455a9aa5f60f
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

-- file: api/hold_calls.sql 46ee53270554dd1739aff36caa9cff082e18b9c5b38c234a46a62a60a0037815
-- The scope of a hold in a word.
create or replace function private.hold_scope(p_hold public.holds)
returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case when p_hold.agency_id is null then 'everything'
              when p_hold.campaign_id is not null then 'campaign'
              when p_hold.agent_mapping_id is not null then 'agent'
              when p_hold.from_number is not null then 'caller_number'
              else 'agency' end
$$;

revoke execute on function private.hold_scope(public.holds) from public;
comment on function private.hold_scope(public.holds) is 'The scope of a hold in a word.';

-- Check that what a hold names is of its agency.
-- Raises PT404 (no such campaign, agent or caller number).
create or replace function private.check_hold(p_hold public.holds)
returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_hold.campaign_id is not null and not exists (
       select from public.campaigns c where c.agency_id = p_hold.agency_id and c.id = p_hold.campaign_id) then
    raise sqlstate 'PT404' using message = 'Campaign not found',
      detail = '{"code": "campaign_not_found"}';
  end if;
  if p_hold.agent_mapping_id is not null and not exists (
       select from public.agent_mappings m where m.agency_id = p_hold.agency_id and m.id = p_hold.agent_mapping_id) then
    raise sqlstate 'PT404' using message = 'Agent not found',
      detail = '{"code": "agent_not_found"}';
  end if;
  -- A number that was given up may still be a batch's.
  if p_hold.from_number is not null
     and not exists (
       select from public.agency_phone_numbers n
        where n.agency_id = p_hold.agency_id and n.phone_number = p_hold.from_number)
     and not exists (
       select from public.call_batches b where b.agency_id = p_hold.agency_id and private.hold_reaches(p_hold, b)) then
    raise sqlstate 'PT404' using message = 'Caller number not found',
      detail = '{"code": "from_number_not_found"}';
  end if;
end;
$$;

revoke execute on function private.check_hold(public.holds) from public;
comment on function private.check_hold(public.holds) is 'Check that what a hold names is of its agency.';

-- Hold calls: see public.hold_calls. p_scopes: how many scopes were given. p_hold: agency, scope, until, reason and key.
-- With p_dry_run nothing changes, and nobody waits.
-- When it has committed, start_call lets no call of a batch in the scope through any more.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin; everything, for a user), PT404 (no such agency,
-- campaign, agent or number), PT400 (not exactly one scope; no agency; an end that has passed), PT409 (idempotency key
-- reused), PT503 (another request holds one of the batches), 0A000 (a stricter isolation than read committed).
create or replace function private.hold_calls(
  p_hold public.holds, p_scopes integer, p_everything boolean, p_dry_run boolean)
returns public.hold_calls_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor   private.actor := private.current_actor();
  v_hold    public.holds := p_hold;
  v_first   public.holds;
  v_reached private.reached_batches;
  v_result  public.hold_calls_result;
begin
  v_hold.agency_id := private.find_admin_agency(p_hold.agency_id);
  if p_scopes <> 1 then
    raise sqlstate 'PT400' using message = 'Give one of campaign_id, agent_mapping_id, from_number, whole_agency and everything',
      detail = '{"code": "scope_required"}';
  end if;
  if p_everything then
    if v_actor.kind = 'user' then
      raise sqlstate 'PT403' using message = 'Only a service or a console may hold the calls of every agency',
        detail = '{"code": "service_only"}';
    end if;
    v_hold.agency_id := null;
  elsif v_hold.agency_id is null then
    raise sqlstate 'PT400' using message = 'agency_id is required',
      detail = '{"code": "agency_id_required"}';
  end if;
  if (v_hold.until > clock_timestamp() and v_hold.until < 'infinity') is false then
    raise sqlstate 'PT400' using message = 'until must be a time to come',
      detail = '{"code": "until_invalid"}';
  end if;
  if length(v_hold.idempotency_key) not between 1 and 255 then
    raise sqlstate 'PT400' using message = 'Idempotency-Key must have 1 to 255 characters',
      detail = '{"code": "idempotency_key_invalid"}';
  end if;
  perform private.check_hold(v_hold);

  if p_dry_run then
    v_reached := private.count_reached(v_hold);
    return row(true, null, private.hold_scope(v_hold), v_hold.until, v_reached.batches, v_reached.in_progress,
      v_reached.starting, true)::public.hold_calls_result;
  end if;

  v_hold.request := jsonb_build_object(
    'scope', private.hold_scope(v_hold), 'campaign_id', v_hold.campaign_id, 'agent_mapping_id', v_hold.agent_mapping_id,
    'from_number', v_hold.from_number, 'until', v_hold.until, 'reason', v_hold.reason, 'actor', v_actor.id);
  perform private.close_live(v_hold.agency_id);
  select h.* into v_first
    from public.holds h
   where h.agency_id is not distinct from v_hold.agency_id and h.idempotency_key = v_hold.idempotency_key;
  if found then
    if v_first.request is distinct from v_hold.request then
      raise sqlstate 'PT409' using message = 'Idempotency-Key was used for another request',
        detail = '{"code": "idempotency_key_reused"}';
    end if;
    return jsonb_populate_record(v_result, v_first.response);
  end if;

  v_hold.id := gen_random_uuid();
  v_hold.created_at := clock_timestamp();
  v_hold.created_by := v_actor.id;
  v_hold.created_by_role := v_actor.db_role;
  insert into public.holds select v_hold.*;
  perform private.mark_held(v_hold);
  v_reached := private.count_reached(v_hold);
  v_result := row(true, v_hold.id, private.hold_scope(v_hold), v_hold.until, v_reached.batches, v_reached.in_progress,
    v_reached.starting, false);
  update public.holds h
     set response = to_jsonb(v_result)
   where h.id = v_hold.id and h.idempotency_key is not null;
  return v_result;
end;
$$;

revoke execute on function private.hold_calls(public.holds, integer, boolean, boolean) from public;
grant  execute on function private.hold_calls(public.holds, integer, boolean, boolean) to authenticated, service_role, lastcall_admin;
comment on function private.hold_calls(public.holds, integer, boolean, boolean) is 'public.hold_calls.';

-- The door to private.hold_calls for users, services and consoles. Give one scope:
-- campaign_id, agent_mapping_id: the batches of a campaign or an agent.
-- from_number: the batches that call from this number, E.164, alone or among others.
-- whole_agency: the batches of the agency. everything: those of every agency; for services and consoles.
-- The hold reaches batches that begin, resume or are created later, too. Calls in progress finish.
-- agency_id: a user may leave it out. until: when the hold ends by itself; null: it is lifted by lift_hold.
-- reason: kept with the hold. dry_run: count, and change nothing.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
create or replace function public.hold_calls(
  campaign_id uuid default null, agent_mapping_id uuid default null, from_number text default null,
  whole_agency boolean default false, everything boolean default false, agency_id uuid default null,
  until timestamptz default null, reason text default null, dry_run boolean default false,
  idempotency_key text default null)
returns public.hold_calls_result
language plpgsql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batches
as $$
#variable_conflict use_variable
declare
  v_hold public.holds;
begin
  v_hold.agency_id := agency_id;
  v_hold.campaign_id := campaign_id;
  v_hold.agent_mapping_id := agent_mapping_id;
  v_hold.from_number := from_number;
  v_hold.until := until;
  v_hold.reason := reason;
  v_hold.idempotency_key := idempotency_key;
  return private.hold_calls(
    v_hold,
    num_nonnulls(campaign_id, agent_mapping_id, from_number, nullif(whole_agency, false), nullif(everything, false)),
    coalesce(everything, false), coalesce(dry_run, false));
end;
$$;

revoke execute on function public.hold_calls(
  uuid, uuid, text, boolean, boolean, uuid, timestamptz, text, boolean, text) from public, anon;
grant  execute on function public.hold_calls(
  uuid, uuid, text, boolean, boolean, uuid, timestamptz, text, boolean, text) to authenticated, service_role, lastcall_admin;
comment on function public.hold_calls(
  uuid, uuid, text, boolean, boolean, uuid, timestamptz, text, boolean, text) is
  'Hold the calls of a campaign, an agent, a caller number or an agency until the hold is lifted.';

-- file: api/lift_hold.sql c9387b581976c14b41229c9f1e3e1e390ebea8008bbf11cc7fea9809f50ef779
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
