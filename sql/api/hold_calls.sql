create type public.hold_calls_result as (
  success           boolean,
  hold_id           uuid,                     -- null: it was a dry run
  scope             text,                     -- campaign, agent, caller_number, agency or everything
  until             timestamptz,              -- when the hold ends by itself
  batches           integer,                  -- being dialed now, and held
  calls_in_progress integer,                  -- of these batches, let through by start_call and not over: these finish
  calls_starting    integer,                  -- of these, how many can still start (see public.batch_silence)
  dry_run           boolean
);

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
