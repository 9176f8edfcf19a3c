-- This migration holds up nobody for long: when it must wait for a lock, it gives up, and is run again.
set local lock_timeout = '500ms';

-- file: schema/functions_role.sql 88763915e062c48d31c1b63e67045bbceac7c52b4d773ebf5952fa75de4bf3a1
-- Comments alone have changed.

-- file: schema/types.sql 1101dcc2ca107b043a4d2090309ea74a3a802cfa3fcc18d246ab0b666b5222b7
-- Comments alone have changed.

-- file: schema/campaigns.sql 1927bb5437ab7fe32a6949de9bb48e05047c872e964c7766beb9420a44703c8a
comment on table public.campaigns is 'Campaigns: each batch is dialed for one.';

-- file: schema/dialed_numbers.sql f8415caac77cba9327fa74a8b0528b5bf004c781353476a6a2d910ca531255c7
comment on table private.dialed_numbers is 'The rows that batches lock when they call the same number.';

-- file: schema/call_batches.sql 724959fbec3681c3bf1241aacb3d496efb99bb5725e95be88d44dc80b05e2d3b
-- Comments alone have changed.

-- file: schema/call_batches_ended.sql 46f685ea6c6ba89cd28d8d2099aa19c0c9c369baebe3ed76a3fcc597c349b7a2
-- Comments alone have changed.

-- file: schema/campaign_contacts.sql 69ee1ac198318a09292df3a91b363b7746b6455f5adf203357596fb9084a0621
comment on table public.contact_data is 'The details of a contact for the voice agent.';

-- file: schema/calls.sql 8c6df80a260934cdd0941c15cc490a973b2cedbde4f4cf92154c40e9d0410838
-- Comments alone have changed.

-- file: schema/webhook_queue.sql 703509a4cc94f31dfcff1b93a2a5fa5c7d35b1c3dfd84884da81d091592818ca
comment on table public.webhook_queue is 'Events that carriers reported, each once.';

-- file: schema/webhook_secrets.sql 80ea0dece54889b1a6ae24b0d86b6b101fd2e89c78fc3e7d774defb68105c961
-- Comments alone have changed.

-- file: schema/batch_imports.sql b5953463ff720690c181acf2dba68b0d410de8babd4e8a78cc085b9e4958608e
comment on column public.batch_imports.answer is 'The answer when the import finished.';

-- file: schema/holds.sql 645e4d109ad79b648039d7400d7f9c6a43f2b03fba95a6f4e207fb40b7a4e80c
comment on table public.holds is 'Holds: no call of their batches starts until they are lifted or end.';

-- file: schema/admissions.sql 8f91fdc6c7bd4561dac4462d35673a6672ed23efbd3ee13ac227b8e98a7a0256
comment on table private.live_admission is 'The row that a hold of every agency locks, and each procedure that brings a batch to life.';
comment on table private.contact_admissions is 'The rows that an opt-out of an agency locks, and each procedure that adds contacts.';

-- file: schema/rate_limits.sql ce47d06fd60bcc854a8002284462acd6f41217833ee1c0deeb1dd7202a7f1308
-- Comments alone have changed.

-- file: private/current_actor.sql 85093aa73e7ab3612da10e361e3a14305488baf60289d5bbef83e2e10b42e5f8
-- The caller.
-- The user whom the request's token names (claim sub), or null. Set by the functions and by
-- PostgREST after they verified the token; nothing else may be believed of it.
create or replace function private.token_user_id()
returns uuid
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when s.sub ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$' then s.sub::uuid end
    from (select nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub') as s (sub)
$$;

revoke execute on function private.token_user_id() from public;
comment on function private.token_user_id() is 'The user whom the request''s token names.';

-- The caller by the database role that the session acts as, which holds inside security
-- definer functions too: service_role is a service, a member of lastcall_admin a console,
-- anyone else a user by the token's claims. Raises PT401 (no user named by the claims). A user without
-- a row in users, or without an agency, comes back with agency_id null.
create or replace function private.current_actor()
returns private.actor
language plpgsql stable
security definer  -- reads users, whoever asks
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor private.actor;
begin
  v_actor.db_role := coalesce(nullif(current_setting('role', true), 'none'), session_user);
  v_actor.id := private.token_user_id();

  if v_actor.db_role = 'service_role' then
    v_actor.kind := 'service';
  elsif pg_catalog.pg_has_role(v_actor.db_role, 'lastcall_admin', 'usage') then
    v_actor.kind := 'console';
  elsif v_actor.id is null then
    raise sqlstate 'PT401' using message = 'Not signed in',
      detail = '{"code": "not_signed_in"}';
  else
    v_actor.kind := 'user';
    select u.agency_id, u.role into v_actor.agency_id, v_actor.role
      from public.users u
     where u.id = v_actor.id;
  end if;
  return v_actor;
end;
$$;

revoke execute on function private.current_actor() from public;
comment on function private.current_actor() is 'The caller: a user, a service or a console.';

-- The agency whose rows the caller may read, for row-level security: null for none.
create or replace function private.current_agency_id()
returns uuid
language sql stable
security definer  -- a policy on users cannot read users
set search_path = pg_catalog, pg_temp
as $$
  select u.agency_id from public.users u where u.id = private.token_user_id()
$$;

revoke execute on function private.current_agency_id() from public;
grant  execute on function private.current_agency_id() to authenticated;
comment on function private.current_agency_id() is 'The agency whose rows the caller may read.';

-- file: schema/access.sql 240d857bc7afc3cdef23d5f780e7a9cbef57bbf256ccb1474e3c03ddbd279d94
-- Comments alone have changed.

-- file: private/limit_requests.sql e46e0e255053036e8b7efa5d8830466419b7e4e39f7456ac1172edfd538ce75b
-- Count a request of a user to a procedure that costs much, unless it is one too many. Services and consoles have no
-- limit. A request that is refused later, and undone, does not count. Requests that have not committed do not see each
-- other: as many more may pass as there are connections.
-- Raises PT429, with the seconds after which the next one passes as retry_after.
create or replace function private.limit_requests(p_actor private.actor, p_procedure text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now    timestamptz := clock_timestamp();
  v_limit  private.rate_limits;
  v_oldest timestamptz;
begin
  if p_actor.kind <> 'user' then
    return;
  end if;
  select l.* into v_limit from private.rate_limits l where l.procedure = p_procedure;
  if not found then
    return;
  end if;

  select r.at into v_oldest
    from private.user_requests r
   where r.agency_id = p_actor.agency_id and r.user_id = p_actor.id and r.procedure = p_procedure
   order by r.id desc
  offset v_limit.max_requests - 1
   limit 1;
  if v_oldest > v_now - v_limit.period then
    raise sqlstate 'PT429' using message = 'Too many requests; try again later',
      detail = jsonb_build_object('code', 'rate_limited', 'retry_after',
        ceil(extract(epoch from v_oldest + v_limit.period - v_now)))::text;
  end if;

  -- Rows that a concurrent request is about to delete are left to that request.
  delete from private.user_requests r
   where r.agency_id = p_actor.agency_id and r.user_id = p_actor.id and r.procedure = p_procedure
     and r.id in (
       select o.id
         from private.user_requests o
        where o.agency_id = p_actor.agency_id and o.user_id = p_actor.id and o.procedure = p_procedure
          and o.at <= v_now - v_limit.period
          for update skip locked);
  insert into private.user_requests (agency_id, user_id, procedure, at)
  values (p_actor.agency_id, p_actor.id, p_procedure, v_now);
end;
$$;

revoke execute on function private.limit_requests(private.actor, text) from public;
comment on function private.limit_requests(private.actor, text) is 'Count a request of a user, unless it is one too many.';

-- file: private/lock_batch.sql 6041d967918f1a0d82d55e6c5ab16114f0862d81b84f9144c3d538060375098c
-- The longest wait for a batch: the session's lock_timeout if it has one, or else 10 seconds for people and
-- 1 for the service, whose calls must be placed within seconds.
create or replace function private.longest_wait()
returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when current_setting('lock_timeout') <> '0' then current_setting('lock_timeout')
              when current_setting('role', true) = 'service_role' then '1s'
              else '10s' end
$$;

revoke execute on function private.longest_wait() from public;
comment on function private.longest_wait() is 'The longest wait for a batch that another request holds.';

-- Refuse a batch that another request holds. The detail names the procedure that the holder called last (held_by) and the
-- age of the holder's transaction (held_seconds), where pg_locks and pg_stat_activity show them. The detail shows no more
-- of the holder's query.
-- Raises PT503.
create or replace function private.refuse_busy(p_agency_id uuid, p_batch_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_xmax   xid;
  v_xids   xid[];
  v_holder record;
begin
  select b.xmax into v_xmax
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  begin
    -- A holder that had to wait itself left its transaction as a member of a multixact.
    v_xids := array(select m.xid from pg_get_multixact_members(v_xmax) m);
  exception when others then
    v_xids := array[v_xmax];  -- no multixact, but the transaction itself
  end;
  select (select p.proname
            from pg_proc p
            join pg_proc q on q.proname = p.proname and q.pronamespace = 'private'::regnamespace
           where p.pronamespace = 'public'::regnamespace and strpos(a.query, p.proname) > 0
           order by strpos(a.query, p.proname)
           limit 1) as procedure,
         floor(extract(epoch from clock_timestamp() - a.xact_start))::integer as seconds
    into v_holder
    from pg_locks l
    join pg_stat_activity a on a.pid = l.pid
   where l.locktype = 'transactionid' and l.granted and l.transactionid = any (v_xids)
   limit 1;
  raise sqlstate 'PT503' using message = 'Another request holds this batch; try again',
    detail = jsonb_strip_nulls(jsonb_build_object(
      'code', 'batch_busy', 'retry_after', 2, 'held_by', v_holder.procedure, 'held_seconds', v_holder.seconds))::text;
end;
$$;

revoke execute on function private.refuse_busy(uuid, uuid) from public;
comment on function private.refuse_busy(uuid, uuid) is 'Refuse a batch that another request holds.';

-- The batch, locked until the transaction ends. Everyone who changes a batch or its contacts
-- comes through here (claimers take the same lock with skip locked) before they look at
-- anything else of it: one lock, one order, no deadlock, and a status that holds.
-- The commit is durable, whatever the database's synchronous_commit is.
-- The wait for another request is bounded (private.longest_wait).
-- Raises PT404, PT503 (another request holds the batch), 40001 (changed meanwhile, at a stricter isolation).
create or replace function private.lock_batch(p_agency_id uuid, p_batch_id uuid)
returns public.call_batches
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
  v_batch        public.call_batches;
begin
  perform private.commit_durably();
  -- First without the subtransaction that a refusal needs: an update under a subtransaction's lock makes a multixact.
  if current_setting('transaction_isolation') = 'read committed' then
    select b.* into v_batch
      from public.call_batches b
     where b.agency_id = p_agency_id and b.id = p_batch_id
       for no key update skip locked;
    if found then
      return v_batch;
    end if;
  end if;

  begin
    perform set_config('lock_timeout', private.longest_wait(), true);
    select b.* into v_batch
      from public.call_batches b
     where b.agency_id = p_agency_id and b.id = p_batch_id
       for no key update;
    if not found then
      raise sqlstate 'PT404' using message = 'Batch not found',
        detail = '{"code": "batch_not_found"}';
    end if;
    perform set_config('lock_timeout', v_lock_timeout, true);
  exception
    when lock_not_available then
      perform private.refuse_busy(p_agency_id, p_batch_id);
    when serialization_failure then
      raise sqlstate '40001' using message = sqlerrm,
        hint = 'Run it at isolation level read committed';
  end;
  return v_batch;
end;
$$;

revoke execute on function private.lock_batch(uuid, uuid) from public;
comment on function private.lock_batch(uuid, uuid) is 'The batch, locked; the first step of every change.';

-- file: private/skip_selected.sql 6cf1308e89339a8d52a637c7002538538ac743f37191b219143e79a9ebc715cf
-- Which contacts of a batch a request means. A null field does not matter; a contact meets all the others.
-- Whether a contact meets a filter, its ids apart.
-- A column is one of custom_data, or first_name, last_name, email, company or title.
create or replace function private.meets_filter(p_contact public.campaign_contacts, p_filter private.contact_filter)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_data public.contact_data;
begin
  if p_contact.status <> all (p_filter.statuses)
     or p_contact.attempts < p_filter.min_attempts
     or p_contact.attempts > p_filter.max_attempts then
    return false;
  end if;
  if p_filter.custom_data is null then
    return true;
  end if;
  select d.* into v_data
    from public.contact_data d
   where d.agency_id = p_contact.agency_id and d.batch_id = p_contact.batch_id and d.contact_id = p_contact.id;
  return not exists (
    select from jsonb_each_text(p_filter.custom_data) as f (name, value)
     where coalesce(
             v_data.custom_data ->> f.name,
             case f.name when 'first_name' then v_data.first_name
                         when 'last_name' then v_data.last_name
                         when 'email' then v_data.email
                         when 'company' then v_data.company
                         when 'title' then v_data.title end) is distinct from f.value);
end;
$$;

revoke execute on function private.meets_filter(public.campaign_contacts, private.contact_filter) from public;
comment on function private.meets_filter(public.campaign_contacts, private.contact_filter) is
  'Whether a contact meets a filter, its ids apart.';

-- Skip the selected contacts of a locked batch for good: pending, scheduled and queued ones become skipped, their leases
-- end. A call in progress to a selected contact finishes; the contact is not called again, however the call ends.
-- p_outcome and p_notes go into the contact's outcome and outcome_notes.
-- The caller holds the batch's lock. Sets the batch's counters.
create or replace function private.skip_selected(
  p_batch public.call_batches, p_filter private.contact_filter, p_outcome text, p_notes text)
returns private.skipped_contacts
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_call   record;
  v_first  bigint;
  v_last   bigint;
  v_count  integer;
  v_queued integer := 0;
  v_result private.skipped_contacts := (0, 0, 0);
begin
  for v_call in
    select k.id, k.status, k.carrier_call_id is null and k.place_by > clock_timestamp() or k.carrier_queued as is_starting
      from public.calls k
     cross join lateral (
       select c.*
         from public.campaign_contacts c
        where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id and c.id = k.contact_id
        limit 1) c
     where k.agency_id = p_batch.agency_id and k.batch_id = p_batch.id
       and k.status in ('queued', 'in_progress', 'unknown')
       and (p_filter.contact_ids is null or k.contact_id = any (p_filter.contact_ids))
       and private.meets_filter(c, p_filter)
  loop
    if v_call.status = 'queued' then
      delete from public.calls k
       where k.agency_id = p_batch.agency_id and k.batch_id = p_batch.id and k.id = v_call.id;
    else
      update public.calls k
         set is_last = true
       where k.agency_id = p_batch.agency_id and k.batch_id = p_batch.id and k.id = v_call.id;
      v_result.in_progress := v_result.in_progress + 1;
      v_result.starting := v_result.starting + coalesce(v_call.is_starting, false)::integer;
    end if;
  end loop;

  if p_batch.queued > 0 then
    select count(*)::integer into v_queued
      from private.id_ranges(p_filter.contact_ids) r
     cross join lateral (
       select
         from public.campaign_contacts c
        where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id and c.id between r.first_id and r.last_id
          and c.status = 'queued'
          and private.meets_filter(c, p_filter)) c;
  end if;
  for v_first, v_last in select r.first_id, r.last_id from private.id_ranges(p_filter.contact_ids) r loop
    update public.campaign_contacts c
       set status = 'skipped',
           outcome = coalesce(p_outcome, c.outcome),
           outcome_notes = p_notes
     where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id and c.id between v_first and v_last
       and c.status in ('pending', 'scheduled', 'queued')
       and private.meets_filter(c, p_filter);
    get diagnostics v_count = row_count;
    v_result.skipped := v_result.skipped + v_count;
  end loop;
  update public.call_batches b
     set queued = b.queued - v_queued,
         skipped = b.skipped + v_result.skipped
   where b.agency_id = p_batch.agency_id and b.id = p_batch.id and v_result.skipped > 0;
  return v_result;
end;
$$;

revoke execute on function private.skip_selected(public.call_batches, private.contact_filter, text, text) from public;
comment on function private.skip_selected(public.call_batches, private.contact_filter, text, text) is
  'Skip the selected contacts of a locked batch for good.';

-- Count the contacts that private.skip_selected would skip now.
create or replace function private.count_selected(p_batch public.call_batches, p_filter private.contact_filter)
returns private.skipped_contacts
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_result private.skipped_contacts;
begin
  select (count(*) filter (where c.status <> 'in_progress'))::integer,
         (count(*) filter (where c.status = 'in_progress'))::integer
    into v_result.skipped, v_result.in_progress
    from private.id_ranges(p_filter.contact_ids) r
   cross join lateral (
     select c.status
       from public.campaign_contacts c
      where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id and c.id between r.first_id and r.last_id
        and c.status in ('pending', 'scheduled', 'queued', 'in_progress')
        and private.meets_filter(c, p_filter)) c;
  select count(*)::integer into v_result.starting
    from public.calls k
   cross join lateral (
     select c.*
       from public.campaign_contacts c
      where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id and c.id = k.contact_id
      limit 1) c
   where k.agency_id = p_batch.agency_id and k.batch_id = p_batch.id and k.status in ('in_progress', 'unknown')
     and (k.carrier_call_id is null and k.place_by > clock_timestamp() or k.carrier_queued)
     and (p_filter.contact_ids is null or k.contact_id = any (p_filter.contact_ids))
     and private.meets_filter(c, p_filter);
  return v_result;
end;
$$;

revoke execute on function private.count_selected(public.call_batches, private.contact_filter) from public;
comment on function private.count_selected(public.call_batches, private.contact_filter) is
  'Count the contacts that private.skip_selected would skip.';

-- file: private/mark_held.sql 2e1b0c8a14318cc62a24c71b1f65c6cb6961bf4991f4096b7a195376577c0a28
-- Whether a hold reaches a batch, by its scope alone. A batch that calls from several numbers is held whole.
create or replace function private.hold_reaches(p_hold public.holds, p_batch public.call_batches)
returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(p_hold.agency_id = p_batch.agency_id, true)
     and (p_hold.campaign_id is null or p_hold.campaign_id is not distinct from p_batch.campaign_id)
     and (p_hold.agent_mapping_id is null or p_hold.agent_mapping_id is not distinct from p_batch.agent_mapping_id)
     and (p_hold.from_number is null or p_hold.from_number is not distinct from p_batch.from_number
          or coalesce(p_hold.from_number = any (p_batch.calling_numbers), false))
$$;

revoke execute on function private.hold_reaches(public.holds, public.call_batches) from public;
comment on function private.hold_reaches(public.holds, public.call_batches) is 'Whether a hold reaches a batch.';

-- Whether a hold counts.
create or replace function private.is_active(p_hold public.holds)
returns boolean
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select p_hold.lifted_at is null and coalesce(p_hold.until > clock_timestamp(), true)
$$;

revoke execute on function private.is_active(public.holds) from public;
comment on function private.is_active(public.holds) is 'Whether a hold counts.';

-- Whether a batch is held, by its mark.
create or replace function private.is_held(p_batch public.call_batches, p_now timestamptz)
returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select p_batch.is_held and coalesce(p_batch.held_until > p_now, true)
$$;

revoke execute on function private.is_held(public.call_batches, timestamptz) from public;
comment on function private.is_held(public.call_batches, timestamptz) is 'Whether a batch is held, by its mark.';

-- The mark that a batch must have by the holds of this moment. Whoever brings the batch to life has called
-- private.admit_live before.
create or replace function private.find_mark(p_batch public.call_batches)
returns private.hold_mark
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(bool_or(true), false), case when bool_and(h.until is not null) then max(h.until) end
    from public.holds h
   where h.lifted_at is null and (h.agency_id = p_batch.agency_id or h.agency_id is null)
     and private.is_active(h)
     and private.hold_reaches(h, p_batch)
$$;

revoke execute on function private.find_mark(public.call_batches) from public;
comment on function private.find_mark(public.call_batches) is 'The mark that a batch must have by the holds of this moment.';

-- Since when a held batch is held: the first of the holds that reach it.
create or replace function private.held_since(p_batch public.call_batches)
returns timestamptz
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select min(h.created_at)
    from public.holds h
   where (h.agency_id = p_batch.agency_id or h.agency_id is null)
     and private.is_active(h)
     and private.hold_reaches(h, p_batch)
$$;

revoke execute on function private.held_since(public.call_batches) from public;
comment on function private.held_since(public.call_batches) is 'Since when a held batch is held.';

-- Count the batches in the scope of a hold that are being dialed now.
create or replace function private.count_reached(p_hold public.holds)
returns private.reached_batches
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select count(*), coalesce(sum(b.in_progress), 0), coalesce(sum(private.count_starting(b)), 0),
         count(*) filter (where private.is_held(b, clock_timestamp()))
    from public.call_batches b
   where b.status = 'processing' and (p_hold.agency_id is null or b.agency_id = p_hold.agency_id)
     and private.hold_reaches(p_hold, b)
$$;

revoke execute on function private.count_reached(public.holds) from public;
comment on function private.count_reached(public.holds) is 'Count the batches in the scope of a hold.';

-- Lock the batches being dialed that a hold reaches, in the one order of all who lock several, and give each the mark
-- that the holds of this moment ask for. No batch can begin meanwhile: the caller has called private.close_live.
-- Raises PT503 (another request holds one of the batches).
create or replace function private.mark_held(p_hold public.holds)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
  v_batch        record;
begin
  begin
    perform set_config('lock_timeout', private.longest_wait(), true);
    -- private.hold_reaches written out: a call for each batch would take longer than the locks.
    perform
       from public.call_batches b
      where b.status = 'processing' and (p_hold.agency_id is null or b.agency_id = p_hold.agency_id)
        and (p_hold.campaign_id is null or b.campaign_id = p_hold.campaign_id)
        and (p_hold.agent_mapping_id is null or b.agent_mapping_id = p_hold.agent_mapping_id)
        and (p_hold.from_number is null or b.from_number = p_hold.from_number
             or p_hold.from_number = any (b.calling_numbers))
      order by b.agency_id, b.id
        for no key update;
    perform set_config('lock_timeout', v_lock_timeout, true);
  exception
    when lock_not_available then
      for v_batch in
        select b.agency_id, b.id
          from public.call_batches b
         where b.status = 'processing' and (p_hold.agency_id is null or b.agency_id = p_hold.agency_id)
           and private.hold_reaches(p_hold, b)
         order by b.agency_id, b.id
      loop
        perform
           from public.call_batches b
          where b.agency_id = v_batch.agency_id and b.id = v_batch.id
            for no key update skip locked;
        if not found then
          perform private.refuse_busy(v_batch.agency_id, v_batch.id);
        end if;
      end loop;
      -- It was let go meanwhile.
      raise sqlstate 'PT503' using message = 'Another request holds what this one needs; try again',
        detail = '{"code": "agency_busy", "retry_after": 2}';
  end;
  -- A statement of its own: it sees what the batches became before they were locked.
  update public.call_batches b
     set (is_held, held_until) = (select m.is_held, m.held_until from private.find_mark(b) m)
   where b.status = 'processing' and (p_hold.agency_id is null or b.agency_id = p_hold.agency_id)
     and private.hold_reaches(p_hold, b);
end;
$$;

revoke execute on function private.mark_held(public.holds) from public;
comment on function private.mark_held(public.holds) is 'Give the batches that a hold reaches their marks.';

-- file: private/next_calling_time.sql 5f9a92f3a5e89e2be4a96d3d34af7f9bc0e57fe85a4afbbf3a66d63a16f962cd
-- The earliest time from p_at on at which calls may start: p_at itself within the calling hours of an
-- allowed day, where p_timezone is (null: UTC). Hours that end before they begin go through
-- midnight, and belong to the day on which they begin. Null hours or days: all of them.
-- Null when there is no such time (no day is allowed).
create or replace function private.next_calling_time(
  p_start time, p_end time, p_days smallint[], p_timezone text, p_at timestamptz)
returns timestamptz
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select min(greatest(p_at, h.opens))
    from (select (p_at at time zone coalesce(p_timezone, 'UTC'))::date + i as day
            from generate_series(-1, 8) as i) d
   cross join lateral (
     select (d.day + coalesce(p_start, '00:00')) at time zone coalesce(p_timezone, 'UTC') as opens,
            (d.day + coalesce(p_end, '24:00')
               + case when p_end <= p_start then interval '1 day' else interval '0' end)
              at time zone coalesce(p_timezone, 'UTC') as closes) h
   where h.closes > p_at and (p_days is null or extract(dow from d.day)::smallint = any (p_days))
$$;

revoke execute on function private.next_calling_time(time, time, smallint[], text, timestamptz) from public;
comment on function private.next_calling_time(time, time, smallint[], text, timestamptz) is
  'The earliest time from which calls may start.';

-- Whether PostgreSQL knows a time zone, by its name (America/New_York) or abbreviation (EST).
create or replace function private.is_timezone(p_timezone text)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  -- PostgreSQL also takes an offset or a rule for a timezone; here these are more likely a slip.
  if p_timezone !~ '^[A-Za-z][A-Za-z0-9_+/-]{1,63}$' then
    return false;
  end if;
  perform now() at time zone p_timezone;
  return true;
exception when invalid_parameter_value then
  return false;
end;
$$;

revoke execute on function private.is_timezone(text) from public;
comment on function private.is_timezone(text) is 'Whether this is a time zone.';

-- file: private/check_contacts.sql 35ad213617a80fd35658d0f89190028d78210153cd93356acf014e24d20493ba
-- Check contacts: the place (from 1) of each that is not an object with phone_number (E.164, required);
-- first_name, last_name, email, company, title (text of at most 500 characters); timezone; custom_data (object of at most
-- 64 kB, 32 levels and numbers to 1e308); max_attempts (1 to 99); due_at (a time before which it is not called). p_contacts: a JSON array.
create or replace function private.check_contacts(p_contacts jsonb)
returns table (place bigint, error text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_timezones text[];
begin
  v_timezones := array(
    select distinct g.contact ->> 'timezone'
      from jsonb_array_elements(p_contacts) as g (contact)
     where jsonb_typeof(g.contact -> 'timezone') = 'string');
  v_timezones := array(select t.name from unnest(v_timezones) as t (name) where private.is_timezone(t.name));

  return query
    select w.place, w.error
      from (
        select g.place,
               case
                 when jsonb_typeof(g.contact) <> 'object' then 'must be an object'
                 when g.contact ->> 'phone_number' is null then 'phone_number is required'
                 when jsonb_typeof(g.contact -> 'phone_number') <> 'string'
                   or g.contact ->> 'phone_number' !~ '^\+[1-9][0-9]{6,14}$'
                   then 'phone_number must be in E.164 form, such as +15551234567'
                 when jsonb_typeof(g.contact -> 'timezone') <> 'null'
                   and g.contact ->> 'timezone' <> all (v_timezones)
                   then 'timezone is not known'
                 when jsonb_typeof(g.contact -> 'custom_data') not in ('object', 'null')
                   then 'custom_data must be an object'
                 -- PostgreSQL holds larger ones, but a dialer's JSON reader may not: its claims would all fail.
                 when octet_length((g.contact -> 'custom_data')::text) > 65536
                   then 'custom_data must have at most 64 kB'
                 when jsonb_path_exists(g.contact -> 'custom_data',
                        'strict $.** ? (@.type() == "number" && (@ > 1e308 || @ < -1e308))')
                   then 'custom_data must hold no number beyond 1e308'
                 when jsonb_path_exists(g.contact -> 'custom_data',
                        '$.**{32 to last} ? (@.type() == "object" || @.type() == "array")')
                   then 'custom_data must be nested at most 32 deep'
                 when jsonb_typeof(g.contact -> 'max_attempts') not in ('number', 'null')
                   or g.contact ->> 'max_attempts' !~ '^[1-9][0-9]?$'
                   then 'max_attempts must be a whole number from 1 to 99'
                 when jsonb_typeof(g.contact -> 'due_at') not in ('string', 'null')
                   or not private.is_timestamp(g.contact ->> 'due_at')
                   then 'due_at must be a time in ISO 8601'
                 else (
                   select min(t.name) || ' must be a string of at most 500 characters'
                     from unnest(array['first_name', 'last_name', 'email', 'company', 'title']) as t (name)
                    where jsonb_typeof(g.contact -> t.name) not in ('string', 'null')
                       or length(g.contact ->> t.name) > 500)
               end as error
          from jsonb_array_elements(p_contacts) with ordinality as g (contact, place)) w
     where w.error is not null;
end;
$$;

revoke execute on function private.check_contacts(jsonb) from public;
comment on function private.check_contacts(jsonb) is 'Check contacts, and list their faults.';

-- file: private/check_batch.sql fe4152e1c05ccaf1a760c7a8a64636a4966eddb1de5fbaa73debb11c1ddc67cd
-- A new batch as it will be inserted: what the caller gave, checked against the agency, and what
-- every batch starts with. Raises PT404 (no such
-- agent, campaign or user in the agency), PT400 (a setting out of range; not an active number).
create or replace function private.check_batch(
  p_agency_id uuid, p_batch public.call_batches, p_actor private.actor)
returns public.call_batches
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch   public.call_batches;
  v_missing text;
  v_invalid text;
begin
  v_missing := case when p_batch.agent_mapping_id is null then 'agent_mapping_id'
                    when p_batch.from_number is null then 'from_number'
                    when p_batch.campaign_id is null then 'campaign_id' end;
  if v_missing is not null then
    raise sqlstate 'PT400' using message = v_missing || ' is required',
      detail = format('{"code": "%s_required"}', v_missing);
  end if;

  v_batch := private.fresh_batch(p_batch, p_batch.scheduled_for);
  v_batch.agency_id := p_agency_id;
  v_batch.user_id := coalesce(p_batch.user_id, case when p_actor.kind = 'user' then p_actor.id end);

  -- A required limit that is null is out of range; an optional one is not checked.
  v_invalid := case
    when (p_batch.calls_per_minute between 1 and 60) is not true then 'calls_per_minute must be 1 to 60'
    when (p_batch.max_concurrent between 1 and 100) is not true then 'max_concurrent must be 1 to 100'
    when (p_batch.retry_delay_seconds between 0 and 604800) is not true then 'retry_delay_seconds must be 0 to 604800'
    when p_batch.max_calls_per_number not between 1 and 100 then 'max_calls_per_number must be 1 to 100'
    when p_batch.mode <> v_batch.mode and v_batch.mode = 'scheduled' then 'mode must be scheduled when scheduled_for is given'
    when p_batch.mode <> v_batch.mode then 'mode scheduled needs a scheduled_for'
    when cardinality(p_batch.allowed_days) = 0 or not p_batch.allowed_days <@ '{0,1,2,3,4,5,6}'
      then 'allowed_days must be days from 0 (Sunday) to 6'
    when not private.is_timezone(p_batch.timezone) then 'timezone is not known'
    when length(p_batch.name) not between 1 and 500 then 'name must have 1 to 500 characters'
    when length(p_batch.external_id) not between 1 and 500 then 'external_id must have 1 to 500 characters'
    when cardinality(p_batch.retry_outcomes) > 100 then 'retry_outcomes must be at most 100'
  end;
  if v_invalid is not null then
    raise sqlstate 'PT400' using message = v_invalid,
      detail = format('{"code": "%s_invalid"}', split_part(v_invalid, ' ', 1));
  end if;

  if not exists (select from public.agent_mappings m
                  where m.agency_id = p_agency_id and m.id = v_batch.agent_mapping_id) then
    raise sqlstate 'PT404' using message = 'Agent not found',
      detail = '{"code": "agent_not_found"}';
  end if;
  if not exists (select from public.campaigns c
                  where c.agency_id = p_agency_id and c.id = v_batch.campaign_id) then
    raise sqlstate 'PT404' using message = 'Campaign not found',
      detail = '{"code": "campaign_not_found"}';
  end if;
  if v_batch.user_id is not null and not exists (
       select from public.users u where u.agency_id = p_agency_id and u.id = v_batch.user_id) then
    raise sqlstate 'PT404' using message = 'User not found',
      detail = '{"code": "user_not_found"}';
  end if;
  perform private.check_numbers(p_agency_id, array[v_batch.from_number]);
  perform private.check_numbers(p_agency_id, v_batch.calling_numbers);
  return v_batch;
end;
$$;

revoke execute on function private.check_batch(uuid, public.call_batches, private.actor) from public;
comment on function private.check_batch(uuid, public.call_batches, private.actor) is 'A new batch, checked.';

-- file: api/create_batch.sql e6314dcd447c9e8b28e755553bce068214b0ad6851a8d3390220b358985b627a
-- Which agency an agent is of, before a procedure for that agency runs: a user's own agency, whatever
-- the id; for a service or a console, the agency of that agent. Raises PT401, PT400 (no id), PT404.
create or replace function private.find_agent_agency(p_agent_mapping_id uuid)
returns uuid
language plpgsql stable
security definer  -- looks at agents of every agency for a service or a console
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor     private.actor := private.current_actor();
  v_agency_id uuid;
begin
  if v_actor.kind = 'user' then
    return v_actor.agency_id;
  end if;
  if p_agent_mapping_id is null then
    raise sqlstate 'PT400' using message = 'agent_mapping_id is required',
      detail = '{"code": "agent_mapping_id_required"}';
  end if;
  select m.agency_id into v_agency_id from public.agent_mappings m where m.id = p_agent_mapping_id;
  if not found then
    raise sqlstate 'PT404' using message = 'Agent not found',
      detail = '{"code": "agent_not_found"}';
  end if;
  return v_agency_id;
end;
$$;

revoke execute on function private.find_agent_agency(uuid) from public;
grant  execute on function private.find_agent_agency(uuid) to authenticated, service_role, lastcall_admin;
comment on function private.find_agent_agency(uuid) is 'Which agency an agent is of.';

-- Create a batch with its first 1 to 10,000 contacts (see private.insert_contacts): it is dialed from the next run
-- of process_batches on, or from its scheduled_for on. p_batch: the columns of the batch that the caller gives, the
-- others null; p_contacts: a JSON array. All or nothing.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such agent, campaign or
-- user in the agency), PT400 (a setting out of range; not an active number of the agency; invalid contacts,
-- or none left to call), PT409 (idempotency key reused; external id taken), PT429 (too many requests).
-- Contract: calls-batch-create.
create or replace function private.create_batch(
  p_agency_id uuid, p_batch public.call_batches, p_contacts jsonb, p_idempotency_key text)
returns public.create_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.require_admin(p_agency_id);
  v_request  jsonb := jsonb_build_object(
    'procedure', 'create_batch', 'batch', to_jsonb(p_batch), 'actor', v_actor.id,
    'contacts', encode(sha256(convert_to(p_contacts::text, 'UTF8')), 'hex'));
  v_answer   jsonb;
  v_agent    public.agent_mappings;
  v_batch    public.call_batches;
  v_contacts private.inserted_contacts;
  v_result   public.create_batch_result;
begin
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  perform private.limit_requests(v_actor, 'create_batch');

  perform private.admit_contacts(p_agency_id);
  v_batch := private.check_batch(p_agency_id, p_batch, v_actor);
  select m.* into v_agent
    from public.agent_mappings m
   where m.agency_id = p_agency_id and m.id = v_batch.agent_mapping_id;

  begin
    insert into public.call_batches select v_batch.*;
    v_contacts := private.insert_contacts(v_batch, p_contacts);
    if v_contacts.added = 0 then
      raise sqlstate 'PT400' using message = 'No contact is left to call: every number is on the do-not-call list',
        detail = jsonb_build_object('code', 'no_contacts', 'do_not_call', v_contacts.do_not_call)::text;
    end if;
    update public.call_batches b
       set total_contacts = v_contacts.added
     where b.agency_id = p_agency_id and b.id = v_batch.id;

    v_result := row(v_batch.id, v_batch.status, v_contacts.added, v_agent.id, v_agent.ultravox_agent_name,
      v_batch.from_number, v_contacts.duplicates, v_contacts.do_not_call);
    v_batch.status := null;  -- it came from nowhere
    perform private.record_event(p_agency_id, v_batch, v_actor, 'create', v_result.status, v_contacts.added,
      p_idempotency_key => p_idempotency_key, p_request => v_request, p_response => to_jsonb(v_result));
  exception
    when unique_violation then
      raise sqlstate 'PT409' using message = 'Another batch of the agency has this id or external_id',
        detail = '{"code": "batch_id_taken"}';
    when sqlstate 'PT409' then
      -- The second of two equal requests at once has waited for the answer of the first.
      v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
      return jsonb_populate_record(v_result, v_answer);
  end;
  return v_result;
end;
$$;

revoke execute on function private.create_batch(uuid, public.call_batches, jsonb, text) from public;
grant  execute on function private.create_batch(uuid, public.call_batches, jsonb, text) to authenticated, service_role, lastcall_admin;
comment on function private.create_batch(uuid, public.call_batches, jsonb, text) is 'public.create_batch, for a known agency.';

-- The door to private.create_batch for users, services and consoles.
-- agent_mapping_id, campaign_id, from_number: of the agency; contacts: see private.insert_contacts.
-- calls_per_minute: 1 to 60. max_concurrent: 1 to 100. scheduled_for: null is at once. mode: immediate or scheduled,
-- if given, must agree with scheduled_for. user_id: the user of the agency whose batch it is, by default the caller.
-- calling_numbers: more numbers of the agency, called from in turn.
-- retry_delay_seconds: 0 to 604800 until a failed call is tried again; retry_outcomes: only after these.
-- calling_hours: {"start": "09:00", "end": "17:00"}; allowed_days: 0 (Sunday) to 6; both in timezone, or in the
-- contact's own. max_calls_per_number: in any 24 hours, with the agency's other batches, 1 to 100.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
create or replace function public.create_batch(
  agent_mapping_id uuid default null, from_number text default null, campaign_id uuid default null,
  contacts jsonb default null, calls_per_minute integer default 30, max_concurrent integer default 10,
  scheduled_for timestamptz default null, mode public.batch_mode default null,
  name text default null, external_id text default null, user_id uuid default null,
  calling_numbers text[] default null, retry_delay_seconds integer default 60, retry_outcomes text[] default null,
  calling_hours jsonb default null, allowed_days integer[] default null, timezone text default null,
  max_calls_per_number integer default null, idempotency_key text default null)
returns public.create_batch_result
language plpgsql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
#variable_conflict use_variable
declare
  v_batch public.call_batches;
begin
  v_batch.agent_mapping_id := agent_mapping_id;
  v_batch.from_number := from_number;
  v_batch.campaign_id := campaign_id;
  v_batch.calls_per_minute := calls_per_minute;
  v_batch.max_concurrent := max_concurrent;
  v_batch.scheduled_for := scheduled_for;
  v_batch.mode := mode;
  v_batch.name := name;
  v_batch.external_id := external_id;
  v_batch.user_id := user_id;
  v_batch.calling_numbers := calling_numbers;
  v_batch.retry_delay_seconds := retry_delay_seconds;
  v_batch.retry_outcomes := retry_outcomes;
  v_batch.calling_start := private.calling_time(calling_hours, 'start');
  v_batch.calling_end := private.calling_time(calling_hours, 'end');
  v_batch.allowed_days := allowed_days;
  v_batch.timezone := timezone;
  v_batch.max_calls_per_number := max_calls_per_number;
  return private.create_batch(private.find_agent_agency(agent_mapping_id), v_batch, contacts, idempotency_key);
end;
$$;

revoke execute on function public.create_batch(
  uuid, text, uuid, jsonb, integer, integer, timestamptz, public.batch_mode, text, text, uuid, text[], integer,
  text[], jsonb, integer[], text, integer, text) from public, anon;
grant  execute on function public.create_batch(
  uuid, text, uuid, jsonb, integer, integer, timestamptz, public.batch_mode, text, text, uuid, text[], integer,
  text[], jsonb, integer[], text, integer, text) to authenticated, service_role, lastcall_admin;
comment on function public.create_batch(
  uuid, text, uuid, jsonb, integer, integer, timestamptz, public.batch_mode, text, text, uuid, text[], integer,
  text[], jsonb, integer[], text, integer, text) is
  'Create a call batch with its first contacts.';

-- file: api/check_import.sql 796d076b29c5fcb6800711a998d757d39967eaa987fb2d0342f1444288ce1279
-- Check rows of a file (see private.check_rows), and change nothing. An import that takes all rows or none begins with
-- this check. Without rows it only checks that the caller may import.
-- Returns {"invalid": how many, "errors": the first 100, with row, phone_number and error}.
-- Raises PT401, PT403 (of no agency; not an owner or admin), PT400 (not such rows).
create or replace function private.check_import(p_rows jsonb)
returns json
language plpgsql stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_result json;
begin
  perform private.require_admin((private.current_actor()).agency_id);
  if p_rows is null then
    return json_build_object('invalid', 0, 'errors', json_build_array());
  end if;
  select json_build_object(
           'invalid', count(*),
           'errors', coalesce(
             json_agg(json_build_object('row', w.row_number, 'phone_number', left(w.contact ->> 'phone_number', 50),
                                        'error', w.error) order by w.row_number)
             filter (where w.nth <= 100), '[]'))
    into v_result
    from (select r.*, row_number() over (order by r.row_number) as nth
            from private.check_rows(p_rows) r
           where r.error is not null) w;
  return v_result;
end;
$$;

revoke execute on function private.check_import(jsonb) from public;
grant  execute on function private.check_import(jsonb) to authenticated, service_role, lastcall_admin;
comment on function private.check_import(jsonb) is 'public.check_import.';

create or replace function public.check_import(rows jsonb default null)
returns json
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.check_import($1)
$$;

revoke execute on function public.check_import(jsonb) from public, anon;
grant  execute on function public.check_import(jsonb) to authenticated, service_role, lastcall_admin;
comment on function public.check_import(jsonb) is 'Check rows of a file, and change nothing.';

-- file: api/begin_import.sql 4f5e0b0ff894438253d262125298c70701ef92ba47b536c162ca503fc262dbdf
-- Begin to import a file: into the batch p_batch.id, or into a new batch of the settings p_batch, which stays paused
-- until finish_import, so that it is not dialed while half of it is there. The rows follow by import_contacts.
-- An import of the same file into the same batch that has not finished is gone on with. p_file_hash: the
-- SHA-256 of the file, in hex. p_max_attempts: of contacts that do not say.
-- Returns private.import_progress. Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no
-- such batch, agent, campaign or user in the agency), PT400 (a setting out of range, or given for a batch that is there;
-- batch completed or cancelled; no hash), PT409 (idempotency key reused; external id taken).
create or replace function private.begin_import(
  p_agency_id uuid, p_batch public.call_batches, p_max_attempts integer, p_file_hash text, p_idempotency_key text)
returns json
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor   private.actor := private.require_admin(p_agency_id);
  v_request jsonb := jsonb_build_object(
    'procedure', 'begin_import', 'batch', to_jsonb(p_batch), 'max_attempts', p_max_attempts, 'file_hash', p_file_hash,
    'actor', v_actor.id);
  v_answer  jsonb;
  v_batch   public.call_batches;
  v_import  public.batch_imports;
begin
  if (p_file_hash ~ '^[0-9a-f]{64}$') is not true then
    raise sqlstate 'PT400' using message = 'file_hash must be the SHA-256 of the file',
      detail = '{"code": "file_hash_invalid"}';
  end if;
  if (p_max_attempts between 1 and 99) is not true then
    raise sqlstate 'PT400' using message = 'max_attempts must be 1 to 99',
      detail = '{"code": "max_attempts_invalid"}';
  end if;
  if p_batch.id is not null then
    if jsonb_strip_nulls(to_jsonb(p_batch) - 'id') <> '{}' then
      raise sqlstate 'PT400' using message = 'With a batch_id the batch keeps its settings: give none',
        detail = '{"code": "settings_not_allowed"}';
    end if;
    v_batch := private.lock_batch(p_agency_id, p_batch.id);
  end if;
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return private.import_progress(private.find_import(
      p_agency_id, (v_answer ->> 'batch_id')::uuid, (v_answer ->> 'import_id')::uuid));
  end if;
  perform private.limit_requests(v_actor, 'begin_import');

  if p_batch.id is null then
    v_batch := private.check_batch(p_agency_id, p_batch, v_actor);
    v_batch.status := 'paused';
    v_batch.paused_at := v_batch.created_at;
    v_batch.error_message := 'The import of its contacts has not finished';
    v_import.held_at := v_batch.paused_at;
  elsif v_batch.status in ('completed', 'cancelled') then
    perform private.refuse_status(format('Batch is already %s', v_batch.status), 'batch_already_' || v_batch.status);
  else
    select i.* into v_import
      from public.batch_imports i
     where i.agency_id = p_agency_id and i.batch_id = v_batch.id and i.file_hash = p_file_hash
       and i.max_attempts = p_max_attempts and i.finished_at is null
     order by i.created_at
     limit 1;
  end if;

  begin
    if p_batch.id is null then
      insert into public.call_batches select v_batch.*;
    end if;
    if v_import.id is null then
      insert into public.batch_imports (agency_id, batch_id, file_hash, max_attempts, held_at)
      values (p_agency_id, v_batch.id, p_file_hash, p_max_attempts, v_import.held_at)
      returning * into v_import;
    end if;
    v_answer := jsonb_build_object('batch_id', v_batch.id, 'import_id', v_import.id);
    if p_batch.id is null then
      v_batch.status := null;  -- it came from nowhere
    end if;
    perform private.record_event(p_agency_id, v_batch, v_actor, 'begin_import', coalesce(v_batch.status, 'paused'), 0,
      p_idempotency_key => p_idempotency_key, p_request => v_request, p_response => v_answer);
  exception
    when unique_violation then
      raise sqlstate 'PT409' using message = 'Another batch of the agency has this id or external_id',
        detail = '{"code": "batch_id_taken"}';
    when sqlstate 'PT409' then
      -- The second of two equal requests at once has waited for the answer of the first.
      v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
      v_import := private.find_import(
        p_agency_id, (v_answer ->> 'batch_id')::uuid, (v_answer ->> 'import_id')::uuid);
  end;
  return private.import_progress(v_import);
end;
$$;

revoke execute on function private.begin_import(uuid, public.call_batches, integer, text, text) from public;
grant  execute on function private.begin_import(uuid, public.call_batches, integer, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.begin_import(uuid, public.call_batches, integer, text, text) is 'public.begin_import, for a known agency.';

-- The door to private.begin_import for users, services and consoles. batch_id: import into this batch; or else into a new
-- one of the other arguments, as public.create_batch has them; from_number is by default the first of calling_numbers.
-- idempotency_key: a repeat with the same key and arguments goes on with the import.
create or replace function public.begin_import(
  batch_id uuid default null, file_hash text default null, max_attempts integer default null,
  agent_mapping_id uuid default null, from_number text default null, campaign_id uuid default null,
  calls_per_minute integer default null, max_concurrent integer default null,
  scheduled_for timestamptz default null, mode public.batch_mode default null,
  name text default null, external_id text default null, user_id uuid default null,
  calling_numbers text[] default null, retry_delay_seconds integer default null, retry_outcomes text[] default null,
  calling_hours jsonb default null, allowed_days integer[] default null, timezone text default null,
  max_calls_per_number integer default null, idempotency_key text default null)
returns json
language plpgsql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
#variable_conflict use_variable
declare
  v_is_new constant boolean := batch_id is null;
  v_batch  public.call_batches;
begin
  v_batch.id := batch_id;
  v_batch.agent_mapping_id := agent_mapping_id;
  v_batch.from_number := coalesce(from_number, calling_numbers[1]);
  v_batch.campaign_id := campaign_id;
  v_batch.calls_per_minute := coalesce(calls_per_minute, case when v_is_new then 30 end);
  v_batch.max_concurrent := coalesce(max_concurrent, case when v_is_new then 10 end);
  v_batch.scheduled_for := scheduled_for;
  v_batch.mode := mode;
  v_batch.name := name;
  v_batch.external_id := external_id;
  v_batch.user_id := user_id;
  v_batch.calling_numbers := calling_numbers;
  v_batch.retry_delay_seconds := coalesce(retry_delay_seconds, case when v_is_new then 60 end);
  v_batch.retry_outcomes := retry_outcomes;
  v_batch.calling_start := private.calling_time(calling_hours, 'start');
  v_batch.calling_end := private.calling_time(calling_hours, 'end');
  v_batch.allowed_days := allowed_days;
  v_batch.timezone := timezone;
  v_batch.max_calls_per_number := max_calls_per_number;
  return private.begin_import(
    case when v_is_new then private.find_agent_agency(agent_mapping_id) else private.find_batch_agency(batch_id) end,
    v_batch, coalesce(max_attempts, 3), file_hash, idempotency_key);
end;
$$;

revoke execute on function public.begin_import(
  uuid, text, integer, uuid, text, uuid, integer, integer, timestamptz, public.batch_mode, text, text, uuid, text[],
  integer, text[], jsonb, integer[], text, integer, text) from public, anon;
grant  execute on function public.begin_import(
  uuid, text, integer, uuid, text, uuid, integer, integer, timestamptz, public.batch_mode, text, text, uuid, text[],
  integer, text[], jsonb, integer[], text, integer, text) to authenticated, service_role, lastcall_admin;
comment on function public.begin_import(
  uuid, text, integer, uuid, text, uuid, integer, integer, timestamptz, public.batch_mode, text, text, uuid, text[],
  integer, text[], jsonb, integer[], text, integer, text) is
  'Begin to import a file of contacts into a call batch, a new one or one that is there.';

-- file: api/retry_batch.sql 69e7f1f23b9a4ee61789a3e55dc353eb1f4fc49eb2e33cae697ce9531cec7427
-- Dial the failed contacts of a batch again: a new batch of them, with the settings of the old one, which
-- stays as it is. A contact that an earlier retry took is not taken twice.
-- p_outcomes: only contacts whose last call had one of these; null: all. p_scheduled_for: null is at once.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such batch of the agency),
-- PT400 (no contact failed so, or all were taken), PT409 (idempotency key reused), PT429 (too many requests).
create or replace function private.retry_batch(
  p_agency_id uuid, p_batch_id uuid, p_outcomes text[], p_scheduled_for timestamptz,
  p_idempotency_key text, p_reason text)
returns public.retry_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_actor   private.actor := private.require_admin(p_agency_id);
  v_request jsonb := jsonb_build_object(
    'procedure', 'retry_batch', 'batch_id', p_batch_id, 'outcomes', p_outcomes, 'scheduled_for', p_scheduled_for,
    'reason', p_reason, 'actor', v_actor.id);
  v_answer  jsonb;
  v_batch   public.call_batches;
  v_retry   public.call_batches;
  v_failed  integer;
  v_added   integer;
  v_result  public.retry_batch_result;
begin
  perform private.admit_contacts(p_agency_id);
  -- Held, so that of two retries at once the second one sees the first one's.
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  perform private.limit_requests(v_actor, 'retry_batch');

  v_retry := private.fresh_batch(v_batch, p_scheduled_for);
  v_retry.external_id := null;
  v_retry.retry_of := p_batch_id;
  insert into public.call_batches select v_retry.*;

  with failed as materialized (
    select c.id as old_id, c.phone_number, c.timezone, c.max_attempts,
           coalesce((select true from public.do_not_call n
                      where n.agency_id = p_agency_id and n.phone_number = c.phone_number
                      limit 1), false) as is_do_not_call
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.status = 'failed'
       and (p_outcomes is null or c.outcome = any (p_outcomes))
       and not exists (select from public.campaign_contacts r
                         join public.call_batches b on b.agency_id = r.agency_id and b.id = r.batch_id
                        where r.agency_id = p_agency_id and r.phone_number = c.phone_number
                          and b.retry_of = p_batch_id)),
  numbered as materialized (
    select nextval(pg_get_serial_sequence('public.campaign_contacts', 'id')) as id, f.*
      from (select * from failed where not is_do_not_call order by old_id) f),
  added as (
    insert into public.campaign_contacts (agency_id, batch_id, id, phone_number, timezone, max_attempts, due_at)
    select p_agency_id, v_retry.id, n.id, n.phone_number, n.timezone, n.max_attempts,
           case when n.timezone is not null and (v_retry.calling_start is not null or v_retry.allowed_days is not null)
             then v_retry.created_at end
      from numbered n),
  added_data as (
    insert into public.contact_data (
      agency_id, batch_id, contact_id, first_name, last_name, email, company, title, custom_data)
    select d.agency_id, v_retry.id, n.id, d.first_name, d.last_name, d.email, d.company, d.title, d.custom_data
      from numbered n
      join public.contact_data d on d.agency_id = p_agency_id and d.batch_id = p_batch_id and d.contact_id = n.old_id)
  select count(*)::integer, (count(*) filter (where not f.is_do_not_call))::integer
    into v_failed, v_added from failed f;
  if v_added = 0 then
    raise sqlstate 'PT400' using message = 'The batch has no failed contact that can be called again',
      detail = '{"code": "no_contacts"}';
  end if;
  update public.call_batches b
     set total_contacts = v_added
   where b.agency_id = p_agency_id and b.id = v_retry.id;

  v_result := row(v_retry.id, v_retry.status, v_added, p_batch_id, v_failed - v_added);
  perform private.record_event(p_agency_id, v_batch, v_actor, 'retry', v_batch.status, v_added,
    p_reason => p_reason, p_idempotency_key => p_idempotency_key,
    p_request => v_request, p_response => to_jsonb(v_result));
  v_retry.status := null;  -- it came from nowhere
  perform private.record_event(p_agency_id, v_retry, v_actor, 'create', v_result.status, v_added, p_reason => p_reason);
  return v_result;
end;
$$;

revoke execute on function private.retry_batch(uuid, uuid, text[], timestamptz, text, text) from public;
grant  execute on function private.retry_batch(uuid, uuid, text[], timestamptz, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.retry_batch(uuid, uuid, text[], timestamptz, text, text) is 'public.retry_batch, for a batch of a known agency.';

-- The door to private.retry_batch for users, services and consoles.
-- outcomes: only contacts whose last call had one of these. scheduled_for: null is at once.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
create or replace function public.retry_batch(
  batch_id uuid default null, outcomes text[] default null, scheduled_for timestamptz default null,
  idempotency_key text default null, reason text default null)
returns public.retry_batch_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.retry_batch(
    private.find_batch_agency(batch_id), batch_id, outcomes, scheduled_for, idempotency_key, reason)
$$;

revoke execute on function public.retry_batch(uuid, text[], timestamptz, text, text) from public, anon;
grant  execute on function public.retry_batch(uuid, text[], timestamptz, text, text) to authenticated, service_role, lastcall_admin;
comment on function public.retry_batch(uuid, text[], timestamptz, text, text) is
  'Dial the failed contacts of a call batch again, as a new batch.';

-- file: api/rotate_webhook_secret.sql b391fe8721e59addcb09015b81a4338a5f8643f037e43599bd1f1be61698cbd1
-- Give an agency a new webhook secret, the first one too. It is shown this once. Earlier secrets stay valid for
-- p_grace (0 to 30 days), time to hand the new one to the carrier: no event is refused meanwhile.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such agency, or not the
-- user's), PT400 (no agency named; grace out of range).
create or replace function private.rotate_webhook_secret(p_agency_id uuid, p_grace interval)
returns public.rotate_webhook_secret_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_agency_id uuid := private.find_admin_agency(p_agency_id);
  v_secret    text := private.new_webhook_secret();
  v_now       timestamptz;
begin
  if v_agency_id is null then
    raise sqlstate 'PT400' using message = 'agency_id is required',
      detail = '{"code": "agency_id_required"}';
  end if;
  if p_grace is null or p_grace not between interval '0' and interval '30 days' then
    raise sqlstate 'PT400' using message = 'grace must be 0 to 30 days',
      detail = '{"code": "grace_out_of_range"}';
  end if;

  perform private.commit_durably();  -- the carrier signs with a secret that was shown
  -- The second of two rotations at once sees the secret of the first.
  perform from public.agencies a where a.id = v_agency_id for no key update;
  v_now := clock_timestamp();
  delete from private.webhook_secrets s
   where s.agency_id = v_agency_id and s.expires_at <= v_now;
  update private.webhook_secrets s
     set expires_at = least(s.expires_at, v_now + p_grace)
   where s.agency_id = v_agency_id;
  insert into private.webhook_secrets (agency_id, secret) values (v_agency_id, v_secret);
  return row(true, v_agency_id, v_secret);
end;
$$;

revoke execute on function private.rotate_webhook_secret(uuid, interval) from public;
grant  execute on function private.rotate_webhook_secret(uuid, interval) to authenticated, service_role, lastcall_admin;
comment on function private.rotate_webhook_secret(uuid, interval) is 'public.rotate_webhook_secret.';

-- agency_id: a user may leave it out.
create or replace function public.rotate_webhook_secret(agency_id uuid default null, grace interval default '1 day')
returns public.rotate_webhook_secret_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.rotate_webhook_secret(agency_id, grace)
$$;

revoke execute on function public.rotate_webhook_secret(uuid, interval) from public, anon;
grant  execute on function public.rotate_webhook_secret(uuid, interval) to authenticated, service_role, lastcall_admin;
comment on function public.rotate_webhook_secret(uuid, interval) is
  'Give an agency a new webhook secret, shown this once; the former ones stay valid for a while.';

-- file: api/ingest_webhook.sql d99db9542ac51bfbfab0d881095d5a9c9cff5f984324b60a12be4b160d62ac18
-- Store what a carrier reports, once, and answer at once: process_webhook_queue applies it.
-- p_body: to the byte as it came, for the signature is over it. p_headers: a JSON object, names in lower case.
-- A repeated event gets the same answer. Its id is webhook-id, or else made of the body: Ultravox's
-- signature does not cover that header, so that a replay could name another id, or the id of an event to come.
-- A carrier forgets an event that was answered, so the answer is durable.
-- One of a type that is not known is stored as ignored: carriers give up endpoints that refuse.
-- This is the one procedure for callers without a token. One who cannot show a secret of the agency changes nothing
-- and learns nothing, not even whether there is such an agency.
-- Raises PT413 (a body over 256 KiB), PT401 (see verify_webhook), PT400 (no such event).
-- Contract: webhook-ingest.
create or replace function private.ingest_webhook(
  p_agency_id uuid, p_body text, p_headers jsonb, p_path_secret text)
returns public.ingest_webhook_result
language plpgsql volatile
security definer  -- the caller may read and write nothing
set search_path = pg_catalog, pg_temp
as $$
declare
  v_payload         jsonb;
  v_event_type      text;
  v_carrier_call_id text;
  v_event_id        text;
  v_is_known        boolean;
begin
  if octet_length(p_body) > 262144 then
    raise sqlstate 'PT413' using message = 'Body must have at most 262144 bytes',
      detail = '{"code": "body_too_large"}';
  end if;
  if not private.verify_webhook(p_agency_id, p_body, p_headers, p_path_secret) then
    raise sqlstate 'PT401' using message = 'Invalid webhook signature or secret',
      detail = '{"code": "webhook_unauthorized"}';
  end if;

  begin
    v_payload := p_body::jsonb;
  exception when data_exception or statement_too_complex then
    null;  -- no event, below
  end;
  v_event_type := case when jsonb_typeof(v_payload -> 'event') = 'string' then v_payload ->> 'event' end;
  v_is_known := v_event_type in ('call.started', 'call.joined', 'call.ended');
  v_carrier_call_id := case when jsonb_typeof(v_payload #> '{call,callId}') = 'string' then v_payload #>> '{call,callId}' end;
  v_event_id := coalesce(case when p_headers ->> 'webhook-signature' is not null
                                or p_headers ->> 'x-ultravox-webhook-signature' is null  -- as in verify_webhook
                              then p_headers ->> 'webhook-id' end,
                         v_carrier_call_id || ' ' || v_event_type,
                         encode(sha256(convert_to(p_body, 'UTF8')), 'hex'));
  if coalesce(length(v_event_type) not between 1 and 50, true)
     or length(v_event_id) not between 1 and 400
     or v_is_known and (coalesce(length(v_carrier_call_id) not between 1 and 255, true)
                        or jsonb_typeof(v_payload #> '{call,created}') is distinct from 'string') then
    raise sqlstate 'PT400' using
      message = 'Body must be a webhook event: event, and call with callId and created',
      detail = '{"code": "webhook_invalid"}';
  end if;

  perform private.commit_durably();
  insert into public.webhook_queue (
    agency_id, event_id, event_type, payload, status, error_message, processed_at, next_retry_at)
  values (
    p_agency_id, v_event_id, v_event_type, v_payload,
    case when v_is_known then 'pending' else 'ignored' end::public.webhook_status,
    case when not v_is_known then 'Not an event to apply' end,
    case when not v_is_known then clock_timestamp() end,
    case when v_is_known then clock_timestamp() end)
  on conflict (agency_id, event_id) do nothing;
  if not found then
    perform private.commit_repeat_durably();
  end if;
  return row(true, v_event_id);
end;
$$;

revoke execute on function private.ingest_webhook(uuid, text, jsonb, text) from public;
grant  execute on function private.ingest_webhook(uuid, text, jsonb, text) to anon, service_role, lastcall_admin;
comment on function private.ingest_webhook(uuid, text, jsonb, text) is 'public.ingest_webhook.';

create or replace function public.ingest_webhook(
  agency_id uuid, body text, headers jsonb default '{}', path_secret text default null)
returns public.ingest_webhook_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.ingest_webhook(agency_id, body, headers, path_secret)
$$;

revoke execute on function public.ingest_webhook(uuid, text, jsonb, text) from public, authenticated;
grant  execute on function public.ingest_webhook(uuid, text, jsonb, text) to anon, service_role, lastcall_admin;
comment on function public.ingest_webhook(uuid, text, jsonb, text) is 'Store what a carrier reports, if it is signed.';

-- file: api/replay_webhooks.sql 9812fb675d15230547396485acb899bf18bece5ca7bc2b9c7c3f7752ecb7d2f8
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

-- file: dialer/claim_contacts.sql 0cb7d136508196550f5f12f1a2e013176f7a9961e583daa6eb0ce2aa9e79a48d
-- Claim the next contacts of one batch under a lease of p_lease_seconds, at most
-- p_max_contacts, and no more than the batch's max_concurrent and calls_per_minute leave
-- room for. First those that came back and are due, then the others in dial order; outside the
-- batch's calling hours only those that are due and have a time zone of their own.
-- Returns nothing, without waiting, when someone else holds the batch: claimers never queue
-- up in front of a cancel.
create or replace function private.claim_batch(
  p_agency_id uuid, p_batch_id uuid, p_max_contacts integer, p_lease_seconds integer)
returns setof public.claimed_contact
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- Plans that are right for any batch. Statistics of an empty table, or without this batch, suggest a plan that reads
-- the whole batch for each call.
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_batch       public.call_batches;
  v_agent       public.agent_mappings;
  v_now         timestamptz;
  v_expires_at  timestamptz;
  -- One for the claim, since its calls are started together; a call is told apart by the id beside it.
  v_lease       constant uuid := gen_random_uuid();
  v_call_ids    constant regclass := pg_get_serial_sequence('public.calls', 'id')::regclass;
  v_opens_at    timestamptz;
  v_limit       integer;
  v_recent      timestamptz[];
  v_due         bigint[];
  v_turns       integer;
  v_in_turn     bigint[];
  v_first       bigint;
  v_last        bigint;
begin
  select b.* into v_batch
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id and b.status = 'processing'
     for no key update skip locked;
  if not found then
    return;
  end if;
  v_now := clock_timestamp();
  if v_batch.last_claimed_at is null then
    -- A batch that came in being dialed, by a plain insert: nobody looked at the holds.
    select m.is_held, m.held_until into v_batch.is_held, v_batch.held_until from private.find_mark(v_batch) m;
    update public.call_batches b
       set is_held = v_batch.is_held,
           held_until = v_batch.held_until
     where b.agency_id = p_agency_id and b.id = p_batch_id and v_batch.is_held;
  end if;
  if private.is_held(v_batch, v_now) then
    return;
  end if;
  v_expires_at := v_now + make_interval(secs => p_lease_seconds);
  v_limit := greatest(least(p_max_contacts, v_batch.max_concurrent - v_batch.queued - v_batch.in_progress), 0);

  if v_batch.calls_per_minute is not null and v_limit > 0 then
    v_recent := array(
      select r.created_at
        from (select c.created_at
                from public.calls c
               where c.agency_id = p_agency_id and c.batch_id = p_batch_id
               order by c.agency_id desc, c.batch_id desc, c.id desc
               limit v_batch.calls_per_minute) r
       -- A call from a time to come is of a clock that stepped back.
       where r.created_at between v_now - interval '1 minute' and v_now + interval '1 minute'
       order by r.created_at);
    if cardinality(v_recent) >= v_batch.calls_per_minute then
      update public.call_batches b
         set next_claim_at = v_recent[1] + interval '1 minute'
       where b.agency_id = p_agency_id and b.id = p_batch_id;
      return;
    end if;
    v_limit := least(v_limit, v_batch.calls_per_minute - cardinality(v_recent));
  end if;
  if v_limit = 0 then
    return;
  end if;
  select a.* into v_agent
    from public.agent_mappings a
   where a.agency_id = p_agency_id and a.id = v_batch.agent_mapping_id;
  v_opens_at := private.next_calling_time(
    v_batch.calling_start, v_batch.calling_end, v_batch.allowed_days, v_batch.timezone, v_now);

  v_due := array(
    select c.id
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id
       and c.due_at <= v_now and c.status in ('pending', 'scheduled')
       and (v_opens_at = v_now or c.timezone is not null)
     order by c.due_at
     limit v_limit);
  v_turns := case when v_opens_at = v_now then v_limit - cardinality(v_due) else 0 end;
  v_in_turn := array(
    select c.id
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id > v_batch.claim_cursor
       and c.due_at is null and c.status in ('pending', 'scheduled')
     order by c.agency_id, c.batch_id, c.id
     limit v_turns);

  -- By runs of neighbouring ids, each a range of the primary key: "= any" and a join can be planned
  -- to read the whole batch.
  for v_first, v_last in
    select min(i.id), max(i.id)
      from (select u.id, u.id - row_number() over (order by u.id) as run
              from unnest(v_due || v_in_turn) as u (id)) i
     group by i.run
     order by 1
  loop
    return query
      with claimed as (
        update public.campaign_contacts c
           set status = 'queued',
               due_at = null
         where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id between v_first and v_last
        returning c.id, c.phone_number, (c.attempts + 1)::smallint as attempt),
      numbered as materialized (
        select nextval(v_call_ids) as call_id, n.*
          from (select * from claimed c order by c.id) n),
      leased as (
        insert into public.calls (
          agency_id, batch_id, id, contact_id, attempt, created_at, lease_expires_at, lease)
        select p_agency_id, p_batch_id, n.call_id, n.id, n.attempt, v_now, v_expires_at, v_lease
          from numbered n)
      select p_agency_id, p_batch_id, n.call_id, n.id, n.phone_number,
             coalesce(v_batch.calling_numbers[1 + n.call_id % cardinality(v_batch.calling_numbers)],
                      v_batch.from_number),
             v_batch.agent_mapping_id, n.attempt,
             coalesce((select jsonb_strip_nulls(jsonb_build_object(
                                'first_name', d.first_name, 'last_name', d.last_name, 'email', d.email,
                                'company', d.company, 'title', d.title)) || d.custom_data
                         from public.contact_data d
                        where d.agency_id = p_agency_id and d.batch_id = p_batch_id
                          and d.contact_id = n.id), '{}'),
             v_expires_at,
             v_agent.ultravox_agent_id, v_agent.max_duration_seconds, v_agent.recording_enabled,
             v_lease
        from numbered n
       order by n.call_id;
  end loop;

  update public.call_batches b
     set queued = b.queued + cardinality(v_due) + cardinality(v_in_turn),
         claim_cursor = coalesce(
           case when cardinality(v_in_turn) < v_turns then (
             -- No contact is left in turn: do not read the contacts that are due or done a second time.
             select c.id
               from public.campaign_contacts c
              where c.agency_id = p_agency_id and c.batch_id = p_batch_id
              order by c.agency_id desc, c.batch_id desc, c.id desc
              limit 1)
           else v_in_turn[cardinality(v_in_turn)] end, b.claim_cursor),
         last_claimed_at = v_now,
         -- All are claimed: nothing to look for until one is due, comes back, or the calling hours begin.
         next_claim_at = case
           when cardinality(v_due) + cardinality(v_in_turn) = v_limit then b.next_claim_at
           when v_opens_at = v_now then (
             select min(c.due_at)
               from public.campaign_contacts c
              where c.agency_id = p_agency_id and c.batch_id = p_batch_id
                and c.due_at is not null and c.status in ('pending', 'scheduled'))
           else least(v_opens_at, (
             select min(c.due_at)
               from public.campaign_contacts c
              where c.agency_id = p_agency_id and c.batch_id = p_batch_id
                and c.due_at is not null and c.timezone is not null and c.status in ('pending', 'scheduled')))
         end
   where b.agency_id = p_agency_id and b.id = p_batch_id;
end;
$$;

revoke execute on function private.claim_batch(uuid, uuid, integer, integer) from public;
comment on function private.claim_batch(uuid, uuid, integer, integer) is 'Claim the next contacts of one batch.';

-- Claim the next contacts to call, all of one batch: of the batches that have something to
-- claim, the one that was served longest ago, so that a huge batch takes turns with a small one.
-- max_contacts: 1 to 1000. lease_seconds: 1 to 3600; start_call must come before it ends.
-- batch_id: only this batch. Returns nothing when there is nothing to claim now.
-- Raises PT401, PT403 (not a service or console), PT400 (a number out of range).
create or replace function private.claim_contacts(p_max_contacts integer, p_lease_seconds integer, p_batch_id uuid)
returns setof public.claimed_contact
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now   timestamptz := clock_timestamp();
  v_batch record;
begin
  perform private.require_service();
  if pg_current_xact_id_if_assigned() is null then
    -- A claim that a crash takes back has done nothing: start_call lets no call through whose lease is
    -- gone, and its own commit, which is waited for, makes the lease durable with it. So nobody waits for the
    -- disk with the batch locked. The ids that it takes back come again, under another lease.
    -- Not in a transaction that has changed something before.
    perform set_config('synchronous_commit', 'off', true);
  end if;
  if p_max_contacts is null or p_max_contacts not between 1 and 1000
     or p_lease_seconds is null or p_lease_seconds not between 1 and 3600 then
    raise sqlstate 'PT400' using message = 'max_contacts must be 1 to 1000 and lease_seconds 1 to 3600',
      detail = '{"code": "claim_out_of_range"}';
  end if;

  for v_batch in
    select b.agency_id, b.id
      from public.call_batches b
     where b.status = 'processing'
       and b.next_claim_at <= v_now
       and (b.max_concurrent is null or b.queued + b.in_progress < b.max_concurrent)
       and not (b.is_held and coalesce(b.held_until > v_now, true))
       and (p_batch_id is null or b.id = p_batch_id)
     -- A claim at a time to come is of a clock that stepped back.
     order by case when b.last_claimed_at <= v_now + interval '1 minute' then b.last_claimed_at end nulls first,
              b.created_at
     limit 50  -- those that turn out to have reached their rate stay locked until the claim commits
  loop
    return query select * from private.claim_batch(v_batch.agency_id, v_batch.id, p_max_contacts, p_lease_seconds);
    exit when found;
  end loop;
end;
$$;

revoke execute on function private.claim_contacts(integer, integer, uuid) from public;
grant  execute on function private.claim_contacts(integer, integer, uuid) to service_role, lastcall_admin;
comment on function private.claim_contacts(integer, integer, uuid) is 'public.claim_contacts.';

create or replace function public.claim_contacts(
  max_contacts integer default 10, lease_seconds integer default 60, batch_id uuid default null)
returns setof public.claimed_contact
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select * from private.claim_contacts(max_contacts, lease_seconds, batch_id)
$$;

revoke execute on function public.claim_contacts(integer, integer, uuid) from public, anon, authenticated;
grant  execute on function public.claim_contacts(integer, integer, uuid) to service_role, lastcall_admin;
comment on function public.claim_contacts(integer, integer, uuid) is
  'Claim the next contacts to call, under a lease; batches take turns.';

-- file: dialer/start_call.sql 159d07bd43dc56c97c57d4d89d51180536607f8d3fbda9dc7de5ce34bc129fca
-- When a number of the agency, with p_others calls in 24 hours beside it, may be called (p_now: at once).
create or replace function private.number_free_at(
  p_agency_id uuid, p_phone_number text, p_others integer, p_now timestamptz)
returns timestamptz
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_started_at timestamptz;
begin
  if p_others < 0 then
    return p_now + interval '24 hours';
  end if;
  select k.started_at into v_started_at
    from public.campaign_contacts c
   -- Fenced: by its index alone, not by the agency's key.
   cross join lateral (
     select k.agency_id, k.started_at from public.calls k where k.contact_id = c.id offset 0) k
   where c.agency_id = p_agency_id and c.phone_number = p_phone_number
     and k.agency_id = p_agency_id and k.started_at > p_now - interval '24 hours'
   order by k.started_at desc
   offset p_others
   limit 1;
  return coalesce(v_started_at + interval '24 hours', p_now);
end;
$$;

revoke execute on function private.number_free_at(uuid, text, integer, timestamptz) from public;
comment on function private.number_free_at(uuid, text, integer, timestamptz) is 'When a number may be called again.';

-- The leased calls of a locked batch that must not be placed now, and when they may be: it is outside the calling
-- hours at the contact's place, or the number has had its most calls in 24 hours. due_at null: never, the
-- number is on the do-not-call list.
create or replace function private.find_withheld(
  p_batch public.call_batches, p_leased private.leased_call[], p_now timestamptz)
returns table (call_id bigint, contact_id bigint, due_at timestamptz)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
  if p_batch.max_calls_per_number is not null then
    -- Two batches that call the same number take turns here, in the order of the numbers, so that the
    -- second one counts the first one's call.
    insert into private.dialed_numbers as d (agency_id, phone_number)
    select p_batch.agency_id, l.phone_number
      from unnest(p_leased) l
     group by l.phone_number
     order by l.phone_number
        on conflict (agency_id, phone_number) do update set phone_number = excluded.phone_number;
  end if;

  return query
    select j.call_id, j.contact_id, case when not j.is_do_not_call then greatest(j.opens_at, j.free_at) end
      from (
        select l.call_id, l.contact_id,
               -- With limits: each by its key, and never by reading the whole list.
               coalesce((select true from public.do_not_call n
                          where n.agency_id = p_batch.agency_id and n.phone_number = l.phone_number
                          limit 1), false) as is_do_not_call,
               case when p_batch.calling_start is not null or p_batch.allowed_days is not null then
                 private.next_calling_time(p_batch.calling_start, p_batch.calling_end, p_batch.allowed_days,
                   coalesce(l.timezone, p_batch.timezone), p_now) end as opens_at,
               case when p_batch.max_calls_per_number is not null then
                 private.number_free_at(p_batch.agency_id, l.phone_number, p_batch.max_calls_per_number
                   - (row_number() over (partition by l.phone_number order by l.call_id))::integer, p_now) end as free_at
          from unnest(p_leased) l) j
     where j.is_do_not_call or greatest(j.opens_at, j.free_at) > p_now;
end;
$$;

revoke execute on function private.find_withheld(public.call_batches, private.leased_call[], timestamptz) from public;
comment on function private.find_withheld(public.call_batches, private.leased_call[], timestamptz) is
  'Leased calls that must not be placed now.';

-- The last gate before the carrier: of these calls of one claim, let those through that may be placed now,
-- and count the attempt. p_lease: as claim_contacts told it. A call passes while its batch is processing and not held, its
-- lease runs, the number is not on the do-not-call list, the calling hours where the contact is have not ended, and the
-- number has calls left. The contact of a call that is withheld is skipped (do not call) or waits until it may be called.
-- p_place_within_seconds: counted by the caller from before it asked, the time in which a request must leave for the
-- carrier, or never leave. calls.place_by keeps the end of that time, counted from here and so never too early.
-- Returns the calls to place as started; a call that is not among them must not be placed.
-- Since cancel, stop and holds take the same lock, whatever has not passed when they commit never will.
-- Raises PT401, PT403 (not a service or console), PT404, PT400 (no lease; a time not from 0.1 to 60 seconds).
create or replace function private.start_call(
  p_agency_id uuid, p_batch_id uuid, p_call_ids bigint[], p_lease uuid, p_place_within_seconds double precision)
returns public.started_calls
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_batch       public.call_batches;
  v_now         timestamptz;
  v_result      public.started_calls;
  v_leased      private.leased_call[];
  v_withheld    record;
  v_skipped     integer := 0;
  v_delayed     integer := 0;
  v_due_at      timestamptz;
  v_call_ids    bigint[];
  v_contact_ids bigint[];
  v_first       bigint;
  v_last        bigint;
  v_place_by    timestamptz;
begin
  perform private.require_service();
  if p_lease is null then
    raise sqlstate 'PT400' using message = 'lease is required',
      detail = '{"code": "lease_required"}';
  end if;
  if p_place_within_seconds is null or p_place_within_seconds not between 0.1 and 60 then
    raise sqlstate 'PT400' using message = 'place_within_seconds must be from 0.1 to 60',
      detail = '{"code": "place_within_invalid"}';
  end if;
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  v_place_by := v_now + make_interval(secs => p_place_within_seconds);
  v_result.started := '{}';
  v_result.unknown := array(
    select u.id
      from (select distinct u.id from unnest(p_call_ids) as u (id)) u
     -- Each by its key: a join can be planned to read the whole batch.
      left join lateral (
       select true as is_known
         from public.calls k
        where k.agency_id = p_agency_id and k.batch_id = p_batch_id and k.id = u.id and k.lease = p_lease
        limit 1) k on true
     where k.is_known is null
     order by u.id);
  if v_batch.status <> 'processing' or private.is_held(v_batch, v_now) then
    return v_result;
  end if;

  v_leased := array(
    select (k.id, k.contact_id, c.phone_number, c.timezone)::private.leased_call
      from (select distinct u.id from unnest(p_call_ids) as u (id)) u
     cross join lateral (
       select k.id, k.contact_id
         from public.calls k
        where k.agency_id = p_agency_id and k.batch_id = p_batch_id and k.id = u.id and k.lease = p_lease
          -- As text: not by the index of open calls, which would read all leases of the batch.
          and k.status::text = 'queued' and k.lease_expires_at > v_now
        limit 1) k
     cross join lateral (
       select c.phone_number, c.timezone
         from public.campaign_contacts c
        where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = k.contact_id
        limit 1) c);
  for v_withheld in select w.* from private.find_withheld(v_batch, v_leased, v_now) w loop
    delete from public.calls c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_withheld.call_id;
    update public.campaign_contacts c
       set status = case when v_withheld.due_at is null then 'skipped'
                         when c.attempts > 0 then 'scheduled'
                         else 'pending' end::public.contact_status,
           due_at = v_withheld.due_at,
           outcome = case when v_withheld.due_at is null then 'do_not_call' else c.outcome end,
           outcome_notes = case when v_withheld.due_at is null then 'On the do-not-call list' else c.outcome_notes end
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_withheld.contact_id;
    v_skipped := v_skipped + (v_withheld.due_at is null)::integer;
    v_delayed := v_delayed + (v_withheld.due_at is not null)::integer;
    v_due_at := least(v_due_at, v_withheld.due_at);
  end loop;

  select min(u.id), max(u.id) into v_first, v_last from unnest(p_call_ids) as u (id);
  with started as (
    update public.calls c
       set status = 'in_progress',
           started_at = v_now,
           place_by = v_place_by
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id
       -- The calls of one claim are neighbours in their batch.
       and c.id between v_first and v_last and c.id = any (p_call_ids) and c.lease = p_lease
       and c.status::text = 'queued' and c.lease_expires_at > v_now
    returning c.id, c.contact_id)
  select array_agg(s.id order by s.id), array_agg(s.contact_id order by s.id)
    into v_call_ids, v_contact_ids
    from started s;

  for v_first, v_last in
    select min(i.id), max(i.id)
      from (select u.id, u.id - row_number() over (order by u.id) as run
              from unnest(v_contact_ids) as u (id)) i
     group by i.run
  loop
    update public.campaign_contacts c
       set status = 'in_progress',
           attempts = c.attempts + 1,
           call_id = v_call_ids[array_position(v_contact_ids, c.id)],
           last_attempt_at = v_now
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id between v_first and v_last;
  end loop;

  update public.call_batches b
     set queued = b.queued - coalesce(cardinality(v_call_ids), 0) - v_skipped - v_delayed,
         in_progress = b.in_progress + coalesce(cardinality(v_call_ids), 0),
         skipped = b.skipped + v_skipped,
         place_by = case when v_call_ids is null then b.place_by else greatest(b.place_by, v_place_by) end,
         next_claim_at = case when v_delayed > 0 then least(b.next_claim_at, v_due_at) else b.next_claim_at end
   where b.agency_id = p_agency_id and b.id = p_batch_id
     and (v_call_ids is not null or v_skipped + v_delayed > 0);
  v_result.started := coalesce(v_call_ids, '{}');
  return v_result;
end;
$$;

revoke execute on function private.start_call(uuid, uuid, bigint[], uuid, double precision) from public;
grant  execute on function private.start_call(uuid, uuid, bigint[], uuid, double precision) to service_role, lastcall_admin;
comment on function private.start_call(uuid, uuid, bigint[], uuid, double precision) is 'public.start_call, for a batch of a known agency.';

-- The door to private.start_call. call_ids: as claimed, all of batch_id and of the claim with that lease.
create or replace function public.start_call(
  batch_id uuid, call_ids bigint[], lease uuid, place_within_seconds double precision default 2)
returns public.started_calls
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select * from private.start_call(private.find_batch_agency(batch_id), batch_id, call_ids, lease,
    place_within_seconds)
$$;

revoke execute on function public.start_call(uuid, bigint[], uuid, double precision) from public, anon, authenticated;
grant  execute on function public.start_call(uuid, bigint[], uuid, double precision) to service_role, lastcall_admin;
comment on function public.start_call(uuid, bigint[], uuid, double precision) is
  'The last gate before the carrier: returns the calls that may be placed now.';

-- file: dialer/process_batches.sql 8ffe9acc0bdd6891a37c6b067fad6a3b9563b30408b0a45db81a63f0315dc76f
-- Whether a batch being dialed seems to have nothing left to call: by its counters, or since the
-- last claim found nothing and nothing came back.
create or replace function private.has_nothing_left(p_batch public.call_batches)
returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select p_batch.status = 'processing' and p_batch.queued <= 0 and p_batch.in_progress <= 0
     and (p_batch.completed + p_batch.failed + p_batch.skipped >= p_batch.total_contacts
          or p_batch.next_claim_at is null)
$$;

revoke execute on function private.has_nothing_left(public.call_batches) from public;
comment on function private.has_nothing_left(public.call_batches) is 'Whether a batch being dialed seems to have nothing left to call.';

-- Complete a processing batch that has nothing left to call. The counters say when to look; the
-- contacts decide. A batch that awaits contacts is not over. One that neither the claim cursor nor a due time would find (it came in
-- by a plain insert, behind the cursor) is put back within reach. Returns whether it completed.
-- Reads the contacts before it takes the batch, so that nobody waits for the reading, and does
-- not wait itself: a batch that someone else holds is left for the next time.
create or replace function private.complete_batch(p_agency_id uuid, p_batch_id uuid, p_actor private.actor)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch public.call_batches;
  v_total integer;
  v_open  bigint;
begin
  select b.total_contacts into v_total
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  select min(c.id) into v_open
    from public.campaign_contacts c
   where c.agency_id = p_agency_id and c.batch_id = p_batch_id
     and c.status in ('pending', 'scheduled', 'queued', 'in_progress');

  select b.* into v_batch
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id and private.has_nothing_left(b)
     and b.total_contacts = v_total  -- none was added meanwhile
     for no key update skip locked;
  -- A statement of its own: it sees an import that began before the batch was taken.
  if not found or private.awaits_contacts(p_agency_id, p_batch_id) then
    return false;
  end if;
  if v_open is not null then
    update public.call_batches b
       set claim_cursor = least(b.claim_cursor, v_open - 1),
           next_claim_at = clock_timestamp()
     where b.agency_id = p_agency_id and b.id = p_batch_id;
    return false;
  end if;

  update public.call_batches b
     set status = 'completed',
         completed_at = clock_timestamp()
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  perform private.record_event(p_agency_id, v_batch, p_actor, 'complete', 'completed', 0);
  return true;
end;
$$;

revoke execute on function private.complete_batch(uuid, uuid, private.actor) from public;
comment on function private.complete_batch(uuid, uuid, private.actor) is 'Complete a batch that has nothing left to call.';

-- Move batches along: those with nothing left to call are completed; those that are due
-- (pending or scheduled, with contacts, and scheduled_for past or null) start processing,
-- oldest first; one that a hold reaches is held. A batch that waits for its next_claim_at is woken every 10 minutes all the
-- same: a clock that stepped back leaves times in the future. Run it every few seconds; safe when two run at once.
-- max_batches: the most that one run completes, the most that it wakes, and the most that it starts, 1 to 1000.
-- Raises PT401, PT403 (not a service or console), PT400 (a number out of range).
create or replace function private.process_batches(p_max_batches integer)
returns public.process_batches_result
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor  private.actor := private.require_service();
  v_now    timestamptz := clock_timestamp();
  v_result public.process_batches_result := (0, 0);
  v_live   record;
  v_batch  public.call_batches;
  v_mark   private.hold_mark;
begin
  if p_max_batches is null or p_max_batches not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'max_batches must be 1 to 1000',
      detail = '{"code": "max_batches_out_of_range"}';
  end if;

  for v_live in
    select b.agency_id, b.id
      from public.call_batches b
     where b.status = 'processing' and private.has_nothing_left(b)
       and not private.awaits_contacts(b.agency_id, b.id)
     limit p_max_batches
  loop
    v_result.batches_completed := v_result.batches_completed
      + private.complete_batch(v_live.agency_id, v_live.id, v_actor)::integer;
  end loop;

  -- From here on, since these stay locked until the run commits.
  for v_live in
    select b.agency_id, b.id
      from public.call_batches b
     where b.status = 'processing' and b.next_claim_at > v_now
       -- The time of the last claim may be of the clock that stepped back.
       and (b.last_claimed_at between v_now - interval '10 minutes' and v_now + interval '1 minute') is not true
     limit p_max_batches
       for no key update skip locked
  loop
    update public.call_batches b
       set next_claim_at = v_now
     where b.agency_id = v_live.agency_id and b.id = v_live.id;
  end loop;
  -- While a hold is being placed, the batches that it could reach are left for the next run.
  perform from private.live_admission l for share skip locked;
  if not found then
    return v_result;
  end if;
  for v_batch in
    select b.*
      from public.call_batches b
      join public.agencies a on a.id = b.agency_id
     where b.status in ('pending', 'scheduled') and coalesce(b.scheduled_for, '-infinity') <= v_now
       and exists (select from public.campaign_contacts c where c.agency_id = b.agency_id and c.batch_id = b.id)
     order by b.created_at
     limit p_max_batches
       for no key update of b skip locked
       for share of a skip locked
  loop
    v_mark := private.find_mark(v_batch);
    update public.call_batches b
       set status = 'processing',
           started_at = coalesce(b.started_at, v_now),
           is_held = v_mark.is_held,
           held_until = v_mark.held_until
     where b.agency_id = v_batch.agency_id and b.id = v_batch.id;
    perform private.record_event(v_batch.agency_id, v_batch, v_actor, 'process', 'processing', 0);
    v_result.batches_started := v_result.batches_started + 1;
  end loop;
  return v_result;
end;
$$;

revoke execute on function private.process_batches(integer) from public;
grant  execute on function private.process_batches(integer) to service_role, lastcall_admin;
comment on function private.process_batches(integer) is 'public.process_batches.';

create or replace function public.process_batches(max_batches integer default 100)
returns public.process_batches_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
set statement_timeout = '5min'  -- by PostgREST, instead of the role's: the time grows with the batch
as $$
  select private.process_batches(max_batches)
$$;

revoke execute on function public.process_batches(integer) from public, anon, authenticated;
grant  execute on function public.process_batches(integer) to service_role, lastcall_admin;
comment on function public.process_batches(integer) is
  'Start the batches that are due, complete those that have nothing left to call.';

-- file: private/waiting_for.sql 508623a9bb0a4681b9f3a6250eebdd9822b444d8ba8a528844d883a3f6e521be
-- Why no call of a batch may start at p_now, and the earliest time at which one may, where that is known.
-- Both null: it dials, or is over. If there are several reasons, the first of these:
--   contacts          none were added yet, or those that are there are done and an import has not finished
--   scheduled_for     its time is still to come
--   process           the next run of process_batches, which starts it, or completes it
--   resume            it is paused or stopped
--   results           none is left to claim; those queued and in progress may come back
--   hold              a hold reaches it
--   calling_hours     outside its hours and days, and no contact with a time zone of its own is due
--   max_concurrent    as many are queued or in progress
--   calls_per_minute  as many calls were claimed in the last 60 seconds
--   retry             whoever is left waits for a time of the own: a retry, another due time, a number's limit
-- Reads calls_per_minute calls, and 1,000 due contacts, at most.
create or replace function private.waiting_for(p_batch public.call_batches, p_now timestamptz)
returns private.waiting
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_opens_at timestamptz := p_now;
  v_is_due   boolean;
  v_free_at  timestamptz;
begin
  if p_batch.status in ('paused', 'stopped') then
    return ('resume', null)::private.waiting;
  elsif p_batch.status in ('pending', 'scheduled') then
    return case when p_batch.scheduled_for > p_now then ('scheduled_for', p_batch.scheduled_for)::private.waiting
                when p_batch.total_contacts = 0 then ('contacts', null)::private.waiting
                else ('process', null)::private.waiting end;
  elsif p_batch.status <> 'processing' then
    return (null, null)::private.waiting;
  elsif private.has_nothing_left(p_batch) then
    return (case when private.awaits_contacts(p_batch.agency_id, p_batch.id) then 'contacts' else 'process' end,
            null)::private.waiting;
  elsif p_batch.next_claim_at is null
     or p_batch.queued + p_batch.in_progress + p_batch.completed + p_batch.failed + p_batch.skipped
        >= p_batch.total_contacts then
    return ('results', null)::private.waiting;
  elsif private.is_held(p_batch, p_now) then
    return ('hold', p_batch.held_until)::private.waiting;
  end if;

  if p_batch.calling_start is not null or p_batch.allowed_days is not null then
    v_opens_at := private.next_calling_time(
      p_batch.calling_start, p_batch.calling_end, p_batch.allowed_days, p_batch.timezone, p_now);
  end if;
  if v_opens_at is distinct from p_now then
    if p_batch.next_claim_at > p_now then
      -- The last claim found none to call before next_claim_at, in whichever time zone.
      if v_opens_at is null or p_batch.next_claim_at <= v_opens_at then
        return ('calling_hours', p_batch.next_claim_at)::private.waiting;
      end if;
      return ('retry', p_batch.next_claim_at)::private.waiting;
    end if;
    select true into v_is_due
      from (select c.timezone, c.status
              from public.campaign_contacts c
             where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id and c.due_at <= p_now
             order by c.due_at
             limit 1000) c
     where c.timezone is not null and c.status in ('pending', 'scheduled')
     limit 1;
    if v_is_due is null then
      return ('calling_hours', v_opens_at)::private.waiting;
    end if;
  end if;

  if p_batch.queued + p_batch.in_progress >= p_batch.max_concurrent then
    return ('max_concurrent', null)::private.waiting;
  end if;
  select c.created_at + interval '1 minute' into v_free_at
    from public.calls c
   where c.agency_id = p_batch.agency_id and c.batch_id = p_batch.id
     and p_batch.calls_per_minute is not null
   order by c.agency_id desc, c.batch_id desc, c.id desc
  offset p_batch.calls_per_minute - 1
   limit 1;
  if v_free_at > p_now and v_free_at <= p_now + interval '2 minutes' then  -- as in claim_batch
    return ('calls_per_minute', v_free_at)::private.waiting;
  elsif p_batch.next_claim_at > p_now then
    return ('retry', p_batch.next_claim_at)::private.waiting;
  end if;
  return (null, null)::private.waiting;
end;
$$;

revoke execute on function private.waiting_for(public.call_batches, timestamptz) from public;
comment on function private.waiting_for(public.call_batches, timestamptz) is 'Why no call of a batch may start now.';

-- file: dialer/process_webhook_queue.sql 912e1e405121cab97970429ea6f93cd9d7ebf6894d3f60ed4b3f38173da5a8fd
-- An event to apply: to which call, and what it says.
-- The result of one event.
-- Apply events to the calls of one batch, in a group: one change of the batch's counters.
-- Returns what became of each, or null, without waiting, when someone else holds the batch.
--   call.started, call.joined   the carrier dials the call: confirm_call
--   call.ended                  its result: finish_call, with its rules of when a contact is called again
--     joined is given           completed, outcome answered, its duration from joined to ended
--     endReason unjoined        failed, outcome no_answer
--     any other endReason       failed, outcome the reason: hangup, agent_hangup, timeout, connection_error, system_error
--     none                      failed, outcome unknown
-- The first result of a call counts. An event after the end of the call changes nothing, nor does an event of another
-- carrier call than the first that was reported.
create or replace function private.apply_webhooks(
  p_agency_id uuid, p_batch_id uuid, p_events private.webhook_event[])
returns private.webhook_outcome[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_confirmed bigint[];
  v_others    bigint[];
  v_results   jsonb;
  v_first     bigint[];
  v_finished  bigint[];
begin
  perform
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id
     for no key update skip locked;
  if not found then
    return null;
  end if;

  v_confirmed := array(
    select c.call_id
      from private.confirm_call(p_agency_id, p_batch_id, coalesce((
        select jsonb_agg(jsonb_build_object(
                 'call_id', e.call_id, 'lease', e.lease, 'carrier_call_id', e.call ->> 'callId'))
          from unnest(p_events) e
         where e.event_type in ('call.started', 'call.joined')), '[]')) c
     where c.result = 'changed');
  v_others := array(
    select e.id
      from unnest(p_events) e
     where e.call ->> 'callId' <> (
       select k.carrier_call_id
         from public.calls k
        where k.agency_id = p_agency_id and k.batch_id = p_batch_id and k.id = e.call_id));

  select array_agg(f.id),
         coalesce(jsonb_agg(jsonb_build_object(
           'call_id', f.call_id,
           'lease', f.lease,
           'carrier_call_id', f.call ->> 'callId',
           'status', case when f.joined is not null then 'completed' else 'failed' end,
           'outcome', case when f.joined is not null then 'answered'
                           when f.reason = 'unjoined' then 'no_answer'
                           else coalesce(f.reason, 'unknown') end,
           'duration_seconds', case when private.is_timestamp(f.joined) and private.is_timestamp(f.call ->> 'ended')
             then extract(epoch from (f.call ->> 'ended')::timestamptz - f.joined::timestamptz) end)), '[]')
    into v_first, v_results
    from (select distinct on (e.call_id) e.id, e.call_id, e.lease, e.call, nullif(e.call ->> 'joined', '') as joined,
                 nullif(left(e.call ->> 'endReason', 50), '') as reason
            from unnest(p_events) e
           where e.event_type = 'call.ended' and e.id <> all (v_others)
           order by e.call_id, e.id) f;
  v_finished := array(
    select f.call_id from private.finish_call(p_agency_id, p_batch_id, v_results) f where f.result = 'changed');

  return array(
    select case when e.id = any (v_others)
                then (e.id, 'ignored', 'No such call')::private.webhook_outcome
                when e.event_type <> 'call.ended' and e.call_id = any (v_confirmed)
                  or e.id = any (v_first) and e.call_id = any (v_finished)
                then (e.id, 'completed', null)::private.webhook_outcome
                else (e.id, 'ignored', 'The call was over already')::private.webhook_outcome end
      from unnest(p_events) e);
end;
$$;

revoke execute on function private.apply_webhooks(uuid, uuid, private.webhook_event[]) from public;
comment on function private.apply_webhooks(uuid, uuid, private.webhook_event[]) is 'Apply events to the calls of one batch.';

-- Apply what carriers reported and is due, oldest first, batch by batch. Run it every few seconds, and again while it
-- has processed some; safe when several run at once. p_max_events: 1 to 10,000.
-- An event of no call of the agency, or of one that is over, is ignored, so that late, repeated and reordered ones
-- do no harm. A batch whose events cannot be applied fails alone. They are tried again after 30 seconds, 2, 8 and 32
-- minutes, each by itself then, so that only what is wrong fails again; after max_attempts they are dead.
-- It never waits for a lock, so it is part of no deadlock: events and batches that someone else holds are left to a
-- later run, which counts as no attempt. It holds the batches that it has changed until it commits, and a cancel of
-- one waits for that: so it begins no further one after 50 milliseconds, and leaves the rest to the next run.
-- Returns {"processed": applied or ignored, "failed": ...}, or {"processed": 0} when nothing was due.
-- Raises PT401, PT403 (not a service or console), PT400 (a number out of range).
-- Contract: process-webhook-queue.
create or replace function private.process_webhook_queue(p_max_events integer)
returns jsonb
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now       constant timestamptz := clock_timestamp();
  v_until     timestamptz;
  v_group     record;
  v_event     private.webhook_event;
  v_outcomes  private.webhook_outcome[];
  v_outcome   private.webhook_outcome;
  v_failed    integer := 0;
  v_processed integer := 0;
begin
  perform private.require_service();
  if p_max_events is null or p_max_events not between 1 and 10000 then
    raise sqlstate 'PT400' using message = 'max_events must be 1 to 10000',
      detail = '{"code": "max_events_out_of_range"}';
  end if;

  for v_group in
    with due as materialized (
      select q.agency_id, q.id, q.event_type, q.payload, q.attempts
        from public.webhook_queue q
       where q.next_retry_at <= v_now
       order by q.next_retry_at
       limit p_max_events
         for update skip locked)
    select d.agency_id, c.batch_id,
           array_agg((d.id, d.event_type, c.id, d.payload -> 'call', c.lease)::private.webhook_event order by d.id) as events
      from due d
     cross join lateral private.find_webhook_call(d.agency_id, d.payload) c
     group by d.agency_id, c.batch_id, case when d.attempts > 0 then d.id end
     order by min(d.id)
  loop
    exit when clock_timestamp() > v_until;
    v_until := coalesce(v_until, clock_timestamp() + interval '50 milliseconds');
    if v_group.batch_id is null then
      v_outcomes := array(select (e.id, 'ignored', 'No such call')::private.webhook_outcome from unnest(v_group.events) e);
    else
      begin
        v_outcomes := private.apply_webhooks(v_group.agency_id, v_group.batch_id, v_group.events);
      exception when others then
        v_outcomes := array(
          select (e.id, 'failed', left(sqlerrm, 500))::private.webhook_outcome from unnest(v_group.events) e);
      end;
    end if;

    -- Each event by its key: a join can be planned to read the whole queue.
    if v_outcomes is null then
      foreach v_event in array v_group.events loop
        -- Held: put off, lest it stand in front of other batches' events for as long.
        update public.webhook_queue q
           set next_retry_at = v_now + interval '1 second'
         where q.agency_id = v_group.agency_id and q.id = v_event.id;
      end loop;
      continue;
    end if;
    foreach v_outcome in array v_outcomes loop
      update public.webhook_queue q
         set status = case when v_outcome.status = 'failed' and q.attempts + 1 >= q.max_attempts then 'dead'
                           else v_outcome.status end,
             attempts = q.attempts + 1,
             error_message = v_outcome.error_message,
             processed_at = v_now,
             next_retry_at = case when v_outcome.status = 'failed' and q.attempts + 1 < q.max_attempts
               then v_now + interval '30 seconds' * 4 ^ q.attempts end
       where q.agency_id = v_group.agency_id and q.id = v_outcome.id;
      v_failed := v_failed + (v_outcome.status = 'failed')::integer;
    end loop;
    v_processed := v_processed + cardinality(v_outcomes);
  end loop;
  return case when v_processed = 0 then jsonb_build_object('processed', 0)
              else jsonb_build_object('processed', v_processed - v_failed, 'failed', v_failed) end;
end;
$$;

revoke execute on function private.process_webhook_queue(integer) from public;
grant  execute on function private.process_webhook_queue(integer) to service_role, lastcall_admin;
comment on function private.process_webhook_queue(integer) is 'public.process_webhook_queue.';

create or replace function public.process_webhook_queue(max_events integer default 200)
returns jsonb
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.process_webhook_queue(max_events)
$$;

revoke execute on function public.process_webhook_queue(integer) from public, anon, authenticated;
grant  execute on function public.process_webhook_queue(integer) to service_role, lastcall_admin;
comment on function public.process_webhook_queue(integer) is 'Apply what carriers reported.';
