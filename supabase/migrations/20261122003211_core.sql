-- file: schema/roles.sql
-- lastcall_admin: who may act on every agency's batches from a SQL console. Being an admin is
-- a membership, never the mere absence of a token: `grant lastcall_admin to alice;`
-- Whoever applies the core is a member.
do $$
begin
  if not exists (select from pg_catalog.pg_roles where rolname = 'lastcall_admin') then
    create role lastcall_admin nologin;
  end if;
exception when duplicate_object or unique_violation then
  null;  -- roles belong to the cluster: another database's migration was faster
end;
$$;

do $$
begin
  if not pg_catalog.pg_has_role(current_user, 'lastcall_admin', 'usage') then
    grant lastcall_admin to current_user;
  end if;
exception when insufficient_privilege then
  raise exception 'another owner made lastcall_admin in this cluster: have a superuser grant it to %', current_user;
end;
$$;
grant usage on schema public to lastcall_admin;

-- The core. Nothing in it is exposed by PostgREST; each function names who may execute it, and
-- its search_path with pg_temp last: where that is not named, PostgreSQL looks for types in
-- the caller's temporary schema first, and a domain made there would run the caller's code as
-- the definer.
create schema if not exists private;
revoke all on schema private from public;
grant usage on schema private to authenticated, service_role, lastcall_admin;

-- file: schema/types.sql
-- Who a user is in the agency. Owners and admins may cancel and stop; the others may not.
create type public.user_role as enum (
  'agency_owner', 'agency_admin', 'agency_member', 'client_admin', 'client_viewer', 'admin'
);

create type public.batch_status as enum (
  'pending',     -- waits for process_batches
  'scheduled',   -- waits for scheduled_for
  'processing',  -- being dialed
  'paused',      -- not dialed; keeps its place
  'stopped',     -- not dialed; can be resumed
  'completed',   -- every contact has a result
  'failed',      -- cannot be dialed
  'cancelled'    -- for good
);

create type public.contact_status as enum (
  'pending',      -- not called yet
  'scheduled',    -- to be called when due
  'queued',       -- leased by a dialer, not yet called
  'in_progress',  -- a call is going on
  'completed',
  'failed',       -- no attempts left
  'skipped'       -- will not be called: batch cancelled or ended early
);

create type public.call_status as enum (
  'queued',       -- a lease: start_call has not let it through
  'in_progress',
  'completed',
  'failed'
);

-- file: schema/agencies.sql
-- The tenant. Stop-calling calls it a workspace.
create table public.agencies (
  id         uuid primary key default gen_random_uuid(),
  name       text not null,
  created_at timestamptz not null default now()
);

comment on table public.agencies is 'The tenant: everything else belongs to one agency.';

-- file: schema/users.sql
-- The people of an agency. The row, never the token's metadata, says what a user may do.
-- On Supabase the id is that of auth.users; no foreign key leads there.
create table public.users (
  id          uuid primary key default gen_random_uuid(),
  agency_id   uuid references public.agencies (id) on delete cascade,
  role        public.user_role not null default 'agency_member',
  external_id text,
  created_at  timestamptz not null default now(),
  unique (agency_id, id),
  unique (agency_id, external_id)
);

comment on table public.users is 'People: which agency they belong to, and what they may do there.';
comment on column public.users.agency_id is 'Null: signed in, but of no agency; refused everywhere.';
comment on column public.users.external_id is 'The id by which another system knows the user; unique in the agency.';

-- file: schema/call_batches.sql
-- One list of contacts to call.
-- total_contacts = pending + scheduled + queued + in_progress + completed + failed + skipped,
-- at every commit. The first two are not stored: they are what the others leave of the total.
-- No check constraint says so, on purpose: a wrong count, brought in by a plain insert, must
-- never be what keeps a batch from being cancelled. private.check_counters() finds it,
-- private.recount_batch() repairs it.
create table public.call_batches (
  agency_id        uuid not null references public.agencies (id) on delete cascade,
  id               uuid not null default gen_random_uuid(),
  user_id          uuid,
  external_id      text,
  name             text,
  status           public.batch_status not null default 'pending',
  total_contacts   integer not null default 0,
  queued           integer not null default 0,
  in_progress      integer not null default 0,
  completed        integer not null default 0,
  failed           integer not null default 0,
  skipped          integer not null default 0,
  calls_per_minute integer default 30 check (calls_per_minute between 1 and 1000),
  max_concurrent   integer default 10 check (max_concurrent >= 1),
  retry_delay_seconds integer not null default 60 check (retry_delay_seconds >= 0),
  scheduled_for    timestamptz,
  created_at       timestamptz not null default now(),
  started_at       timestamptz,
  paused_at        timestamptz,
  stopped_at       timestamptz,
  completed_at     timestamptz,
  error_message    text,
  skip_remaining   boolean not null default false,
  claim_cursor     bigint not null default 0,
  next_claim_at    timestamptz default now(),
  last_claimed_at  timestamptz,
  primary key (agency_id, id),
  unique (agency_id, external_id),
  foreign key (agency_id, user_id) references public.users (agency_id, id) on delete restrict
) with (fillfactor = 50);  -- every claim and every result updates the row: keep it heap-only

-- An admin gives a batch's id alone.
create index call_batches_id on public.call_batches (id);
-- A user's batches.
create index call_batches_user on public.call_batches (agency_id, user_id);
-- What process_batches and claim_contacts look through; none of its columns changes on a claim.
create index call_batches_live on public.call_batches (agency_id, id)
  where status in ('pending', 'scheduled', 'processing');

comment on table public.call_batches is 'One list of contacts to call, its state and its counters.';
comment on column public.call_batches.external_id is 'The id by which another system knows the batch; unique in the agency.';
comment on column public.call_batches.calls_per_minute is 'Most calls claimed in any 60 seconds; null: no limit.';
comment on column public.call_batches.max_concurrent is 'Most contacts queued or in progress at a time; null: no limit.';
comment on column public.call_batches.skip_remaining is 'The batch was ended early: a failed call is not retried.';
comment on column public.call_batches.claim_cursor is 'Contacts up to this id were claimed, or come back by their due_at.';
comment on column public.call_batches.next_claim_at is 'No contact can be claimed before this time; null: until one comes back.';

-- file: schema/campaign_contacts.sql
-- One person of a batch to call. Built for the bulk skip: no index, nor an index's predicate,
-- mentions a column that changes as a contact moves, and each page keeps room for a second
-- version of its rows, so every step of a contact's life is a heap-only update.
-- The id grows with every insert: dial order is upload order.
create table public.campaign_contacts (
  agency_id        uuid not null,
  batch_id         uuid not null,
  id               bigint generated by default as identity,
  phone_number     text not null,
  status           public.contact_status not null default 'pending',
  attempts         smallint not null default 0,
  max_attempts     smallint not null default 3 check (max_attempts >= 1),
  duration_seconds integer,
  call_id          bigint,
  due_at           timestamptz,
  last_attempt_at  timestamptz,
  completed_at     timestamptz,
  created_at       timestamptz not null default now(),
  outcome          text,
  outcome_notes    text,
  primary key (agency_id, batch_id, id),
  foreign key (agency_id, batch_id) references public.call_batches (agency_id, id) on delete cascade
) with (fillfactor = 45);

-- Contacts that came back (a retry, a lost lease) or wait for a time of their own. Small: a
-- contact that is dialed in its turn never enters it, and the bulk skip leaves it alone.
create index campaign_contacts_due on public.campaign_contacts (agency_id, batch_id, due_at)
  where due_at is not null;

comment on table public.campaign_contacts is 'One person of a batch to call.';
comment on column public.campaign_contacts.due_at is 'Claimed when this time has come, not in its turn; null: in its turn.';
comment on column public.campaign_contacts.call_id is 'The latest call to this contact.';

-- What the voice agent is told about a contact. Apart, since it is wide and never changes,
-- and every update of a contact copies its whole row.
create table public.contact_data (
  agency_id   uuid not null,
  batch_id    uuid not null,
  contact_id  bigint not null,
  custom_data jsonb not null,
  primary key (agency_id, batch_id, contact_id),
  foreign key (agency_id, batch_id) references public.call_batches (agency_id, id) on delete cascade
);

comment on table public.contact_data is 'What the voice agent is told about a contact.';

-- file: schema/calls.sql
-- One attempt at a contact. A row begins as a lease (queued): a dialer's right to call the
-- contact until lease_expires_at. start_call turns it into a call; a lease that never became
-- one (expired, or its batch cancelled or stopped) is deleted, so what stays was really called.
create table public.calls (
  agency_id        uuid not null,
  batch_id         uuid not null,
  id               bigint generated by default as identity,
  contact_id       bigint not null,
  attempt          smallint not null,
  status           public.call_status not null default 'queued',
  created_at       timestamptz not null default now(),
  lease_expires_at timestamptz not null,
  started_at       timestamptz,
  ended_at         timestamptz,
  duration_seconds integer,
  outcome          text,
  carrier_call_id  text,
  primary key (agency_id, batch_id, id),
  -- None to the contact: deleting a batch of a million would look for each contact's calls.
  foreign key (agency_id, batch_id) references public.call_batches (agency_id, id) on delete cascade
) with (fillfactor = 70);

create index calls_leases on public.calls (agency_id, batch_id, lease_expires_at)
  where status = 'queued';

comment on table public.calls is 'One attempt at a contact; while queued, the lease of a dialer.';

-- file: schema/batch_events.sql
-- The audit trail: who did what to a batch, written in the transaction that did it.
-- Append-only: nobody is granted update or delete.
create table public.batch_events (
  agency_id       uuid not null,
  batch_id        uuid not null,
  id              bigint generated always as identity,
  created_at      timestamptz not null default clock_timestamp(),
  action          text not null,
  actor_kind      text not null check (actor_kind in ('user', 'service', 'console')),
  actor_id        uuid,
  actor_role      text not null,
  on_behalf_of    uuid,
  from_status     public.batch_status,
  to_status       public.batch_status not null,
  contacts        integer not null default 0,
  reason          text,
  request_id      text,
  idempotency_key text,
  request         jsonb,
  response        jsonb,
  primary key (agency_id, batch_id, id),
  foreign key (agency_id, batch_id) references public.call_batches (agency_id, id) on delete cascade
);

-- A key names one request of the agency, whichever batch it was for.
create unique index batch_events_idempotency_key on public.batch_events (agency_id, idempotency_key)
  where idempotency_key is not null;

comment on table public.batch_events is 'Append-only audit trail of every batch.';
comment on column public.batch_events.actor_role is 'The database role that acted.';
comment on column public.batch_events.on_behalf_of is 'The userId of stop-calling.';
comment on column public.batch_events.contacts is 'How many contacts it changed.';
comment on column public.batch_events.request is 'With an idempotency key: what was asked, to know a repeat from another request.';
comment on column public.batch_events.response is 'With an idempotency key: what was answered, to answer a repeat.';

-- file: schema/v_call_batch_summary.sql
-- Progress of the batches that the reader may see, from the stored counters: never by
-- counting contacts. A skipped contact is done with: a cancelled batch ends at 100 %.
create view public.v_call_batch_summary with (security_invoker = true) as
select b.agency_id, b.id, b.user_id, b.external_id, b.name, b.status,
       b.total_contacts, b.queued, b.in_progress, b.completed, b.failed, b.skipped,
       coalesce(trunc(100.0 * (b.completed + b.failed + b.skipped) / nullif(b.total_contacts, 0), 1), 0)
         as progress_percentage,
       b.total_contacts - b.completed - b.failed - b.skipped as remaining_count,
       b.calls_per_minute, b.max_concurrent,
       b.scheduled_for, b.created_at, b.started_at, b.paused_at, b.stopped_at, b.completed_at, b.error_message
  from public.call_batches b;

comment on view public.v_call_batch_summary is 'Batches with progress_percentage and remaining_count.';

-- file: private/current_actor.sql
-- Who is calling.
create type private.actor as (
  kind      text,              -- user, service or console
  id        uuid,              -- the user; of a service or a console, whom its token names, if any
  agency_id uuid,              -- null for service and console: they act on every agency
  role      public.user_role,  -- null for service and console
  db_role   text
);

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
comment on function private.current_actor() is 'Who is calling: a user, a service or a console.';

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

-- file: schema/access.sql
-- Who may touch which table. Everything starts from nothing, also where a project's default
-- privileges are generous. People read their own agency and write nowhere: the procedures
-- are their only door. A policy calls one bare function, so that it also runs on Citus.
revoke all on table public.agencies, public.users, public.call_batches, public.campaign_contacts,
                    public.contact_data, public.calls, public.batch_events, public.v_call_batch_summary
  from public, anon, authenticated, service_role, lastcall_admin;

grant select on table public.agencies, public.users, public.call_batches, public.campaign_contacts,
                      public.contact_data, public.calls, public.v_call_batch_summary
  to authenticated, service_role, lastcall_admin;
-- Not the idempotency keys, nor what was asked and answered under them.
grant select (agency_id, batch_id, id, created_at, action, actor_kind, actor_id, actor_role,
              on_behalf_of, from_status, to_status, contacts, reason, request_id)
  on table public.batch_events to authenticated, service_role;
grant select on table public.batch_events to lastcall_admin;
-- The backend brings agencies and people; batches in progress change by procedures alone.
grant insert, update, delete on table public.agencies, public.users to service_role;
grant insert on table public.call_batches to service_role;

alter table public.agencies enable row level security;
alter table public.users enable row level security;
alter table public.call_batches enable row level security;
alter table public.campaign_contacts enable row level security;
alter table public.contact_data enable row level security;
alter table public.calls enable row level security;
alter table public.batch_events enable row level security;

create policy own_agency on public.agencies for select to authenticated
  using (id = private.current_agency_id());
create policy own_agency on public.users for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.call_batches for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.campaign_contacts for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.contact_data for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.calls for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.batch_events for select to authenticated
  using (agency_id = private.current_agency_id());

create policy every_agency on public.agencies for select to lastcall_admin using (true);
create policy every_agency on public.users for select to lastcall_admin using (true);
create policy every_agency on public.call_batches for select to lastcall_admin using (true);
create policy every_agency on public.campaign_contacts for select to lastcall_admin using (true);
create policy every_agency on public.contact_data for select to lastcall_admin using (true);
create policy every_agency on public.calls for select to lastcall_admin using (true);
create policy every_agency on public.batch_events for select to lastcall_admin using (true);

-- file: private/require.sql
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

-- file: private/find_batch_agency.sql
-- Which agency's batch is meant, before the procedure that locks it runs: a user's own agency,
-- whatever the id; for a service or a console, the agency of the batch with that UUID.
-- Raises PT401, PT400 (no id, or agencies share it), PT403 (of no agency), PT404.
create or replace function private.find_batch_agency(p_batch_id uuid)
returns uuid
language plpgsql stable
security definer  -- looks at batches of every agency for a service or a console
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.current_actor();
  v_agencies uuid[];
begin
  if p_batch_id is null then
    raise sqlstate 'PT400' using message = 'batch_id is required',
      detail = '{"code": "batch_id_required"}';
  end if;
  if v_actor.kind = 'user' then
    return v_actor.agency_id;
  end if;

  v_agencies := array(select b.agency_id from public.call_batches b where b.id = p_batch_id limit 2);
  if cardinality(v_agencies) = 0 then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  elsif cardinality(v_agencies) > 1 then
    raise sqlstate 'PT400' using message = 'Several agencies have a batch with this id',
      detail = '{"code": "batch_id_ambiguous"}';
  end if;
  return v_agencies[1];
end;
$$;

revoke execute on function private.find_batch_agency(uuid) from public;
grant  execute on function private.find_batch_agency(uuid) to authenticated, service_role, lastcall_admin;
comment on function private.find_batch_agency(uuid) is 'Which agency''s batch is meant.';

-- file: private/lock_batch.sql
-- The batch, locked until the transaction ends. Everyone who changes a batch or its contacts
-- comes through here (claimers take the same lock with skip locked) before they look at
-- anything else of it: one lock, one order, no deadlock, and a status that holds.
-- Raises PT404.
create or replace function private.lock_batch(p_agency_id uuid, p_batch_id uuid)
returns public.call_batches
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch public.call_batches;
begin
  select b.* into v_batch
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id
     for no key update;
  if not found then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  end if;
  return v_batch;
end;
$$;

revoke execute on function private.lock_batch(uuid, uuid) from public;
comment on function private.lock_batch(uuid, uuid) is 'The batch, locked; the first step of every change.';

-- file: private/record_event.sql
-- Write what was done to a batch into the audit trail, in the transaction that did it.
-- p_response is kept only with an idempotency key. Raises PT409 (the key already named another
-- request of the agency; the transaction is undone).
create or replace function private.record_event(
  p_agency_id uuid, p_batch public.call_batches, p_actor private.actor, p_action text,
  p_to_status public.batch_status, p_contacts integer,
  p_on_behalf_of uuid default null, p_reason text default null,
  p_idempotency_key text default null, p_request jsonb default null, p_response jsonb default null)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into public.batch_events (
    agency_id, batch_id, action, actor_kind, actor_id, actor_role, on_behalf_of,
    from_status, to_status, contacts, reason, request_id, idempotency_key, request, response)
  values (
    p_agency_id, p_batch.id, p_action, p_actor.kind, p_actor.id, p_actor.db_role, p_on_behalf_of,
    p_batch.status, p_to_status, p_contacts, p_reason,
    left(nullif(current_setting('request.headers', true), '')::jsonb ->> 'x-request-id', 200),
    p_idempotency_key,
    case when p_idempotency_key is not null then p_request end,
    case when p_idempotency_key is not null then p_response end)
  -- Waits for a concurrent holder of the key to end.
  on conflict (agency_id, idempotency_key) where idempotency_key is not null do nothing;
  if not found then
    raise sqlstate 'PT409' using message = 'Idempotency-Key was used for another request',
      detail = '{"code": "idempotency_key_reused"}';
  end if;
end;
$$;

revoke execute on function private.record_event(
  uuid, public.call_batches, private.actor, text, public.batch_status, integer, uuid, text, text, jsonb, jsonb)
  from public;
comment on function private.record_event(
  uuid, public.call_batches, private.actor, text, public.batch_status, integer, uuid, text, text, jsonb, jsonb)
  is 'Append to the audit trail.';

-- file: private/find_answer.sql
-- The answer that this request got before under its idempotency key, or null: then do it.
-- Call it in a statement of its own with the batch locked: then of two equal requests at once
-- the second finds the first one's answer. Raises PT400 (key too long), PT409 (the key named another request).
create or replace function private.find_answer(p_agency_id uuid, p_idempotency_key text, p_request jsonb)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_event record;
begin
  if p_idempotency_key is null then
    return null;
  end if;
  if length(p_idempotency_key) not between 1 and 255 then
    raise sqlstate 'PT400' using message = 'Idempotency-Key must have 1 to 255 characters',
      detail = '{"code": "idempotency_key_invalid"}';
  end if;
  select e.request, e.response into v_event
    from public.batch_events e
   where e.agency_id = p_agency_id and e.idempotency_key = p_idempotency_key;
  if found and v_event.request is distinct from p_request then
    raise sqlstate 'PT409' using message = 'Idempotency-Key was used for another request',
      detail = '{"code": "idempotency_key_reused"}';
  end if;
  return v_event.response;
end;
$$;

revoke execute on function private.find_answer(uuid, text, jsonb) from public;
comment on function private.find_answer(uuid, text, jsonb) is 'The first answer to a repeated request.';

-- file: private/skip_remaining.sql
-- Skip what was not called yet of a locked batch, and nothing else: pending, scheduled and
-- queued contacts become skipped, leases end. p_notes goes into outcome_notes.
-- Returns how many were skipped. The caller holds the batch's lock and sets its counters.
create or replace function private.skip_remaining(p_agency_id uuid, p_batch_id uuid, p_notes text)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- Whether to read the batch by its key or the whole table depends on its share of the table.
set plan_cache_mode = force_custom_plan
as $$
declare
  v_skipped integer;
begin
  delete from public.calls c
   where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.status = 'queued';
  update public.campaign_contacts c
     set status = 'skipped',
         outcome_notes = p_notes
   where c.agency_id = p_agency_id and c.batch_id = p_batch_id
     and c.status in ('pending', 'scheduled', 'queued');
  get diagnostics v_skipped = row_count;
  return v_skipped;
end;
$$;

revoke execute on function private.skip_remaining(uuid, uuid, text) from public;
comment on function private.skip_remaining(uuid, uuid, text) is 'Skip the contacts of a locked batch that were not called yet.';

-- file: private/release_queued.sql
-- Take leases of a locked batch away: those that expired by p_expired_at, or all of them
-- (infinity, which also frees queued contacts that no lease holds). Their contacts go back to
-- where they were (pending, or scheduled when called before) and can be claimed at once; no
-- dialer can start them under the old lease. Returns how many contacts went back.
-- The caller holds the batch's lock and sets its counters.
create or replace function private.release_queued(
  p_agency_id uuid, p_batch_id uuid, p_claim_cursor bigint, p_expired_at timestamptz)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now         timestamptz := clock_timestamp();
  v_contact_ids bigint[];
  v_first       bigint;
  v_last        bigint;
  v_count       integer;
  v_released    integer := 0;
begin
  with ended as (
    delete from public.calls c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id
       and c.status = 'queued' and c.lease_expires_at <= p_expired_at
    returning c.contact_id)
  select array_agg(e.contact_id) into v_contact_ids from ended e;

  for v_first, v_last in
    select min(i.id), max(i.id)
      from (select u.id, u.id - row_number() over (order by u.id) as run
              from unnest(v_contact_ids) as u (id)) i
     where p_expired_at < 'infinity'
     group by i.run
    union all
    select 0, 9223372036854775807  -- every id
     where p_expired_at = 'infinity'
  loop
    update public.campaign_contacts c
       set status = case when c.attempts > 0 then 'scheduled' else 'pending' end::public.contact_status,
           -- Behind the cursor only a due time is found again.
           due_at = case when c.id <= p_claim_cursor then v_now else c.due_at end
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id between v_first and v_last
       and c.status = 'queued';
    get diagnostics v_count = row_count;
    v_released := v_released + v_count;
  end loop;
  return v_released;
end;
$$;

revoke execute on function private.release_queued(uuid, uuid, bigint, timestamptz) from public;
comment on function private.release_queued(uuid, uuid, bigint, timestamptz) is 'Take leases of a locked batch away; their contacts go back.';

-- file: private/find_users.sql
-- The users whom p_user_id, a UUID or an external id, means to this caller: of the own agency for a
-- user, of any for a service or a console. A user who is neither one of them nor an owner or admin
-- is refused, and learns nothing of who exists. Raises PT403, PT404 (there is none).
create or replace function private.find_users(p_actor private.actor, p_user_id text)
returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan  -- by the agency's index for a user, without it for the others
as $$
declare
  v_uuid  constant text := '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$';
  v_users uuid[] := array(
    select u.id
      from public.users u
     where (p_actor.agency_id is null or u.agency_id = p_actor.agency_id)
       and (u.external_id = p_user_id
            or u.id = case when p_user_id ~ v_uuid then p_user_id::uuid end));
begin
  if not private.is_agency_admin(p_actor) and v_users <> array[p_actor.id] then
    raise sqlstate 'PT403' using message = 'Only the user, or an owner or admin of the agency, may do this',
      detail = '{"code": "role_not_allowed"}';
  end if;
  if cardinality(v_users) = 0 then
    raise sqlstate 'PT404' using message = 'User not found',
      detail = '{"code": "user_not_found"}';
  end if;
  return v_users;
end;
$$;

revoke execute on function private.find_users(private.actor, text) from public;
comment on function private.find_users(private.actor, text) is 'The users whom an id means to this caller.';

-- file: private/find_stop_target.sql
-- Which batch and whose is meant by stop_batch, looked up without a lock.
create type private.stop_target as (agency_id uuid, batch_id uuid, user_id uuid);

-- Both ids may be UUIDs or external ids. A user must name the responsible user, may be that
-- user or an owner or admin of the agency, and reaches only that user's batches in the own
-- agency. A service or a console may leave the user out, and reaches every agency.
-- Raises PT401, PT400 (an id is missing, or agencies share it), PT403 (of no agency; neither that
-- user nor an owner or admin), PT404 (no such user; no such batch of that user).
create or replace function private.find_stop_target(p_batch_id text, p_user_id text)
returns private.stop_target
language plpgsql stable
security definer  -- looks at users and batches, of every agency for a service or a console
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan  -- by the agency's index for a user, without it for the others
as $$
declare
  v_uuid    constant text := '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$';
  v_actor   private.actor := private.current_actor();
  v_users   uuid[];
  v_targets private.stop_target[];
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
    select (b.agency_id, b.id, case when v_users is not null then b.user_id end)::private.stop_target
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

revoke execute on function private.find_stop_target(text, text) from public;
comment on function private.find_stop_target(text, text) is 'Which batch, and whose, stop_batch means.';

-- file: private/iso_timestamp.sql
-- A time as JSON APIs write it: UTC, with milliseconds and Z, whatever the session's time zone.
create or replace function private.iso_timestamp(p_time timestamptz)
returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select to_char(p_time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
$$;

revoke execute on function private.iso_timestamp(timestamptz) from public;
comment on function private.iso_timestamp(timestamptz) is 'A time as JSON APIs write it.';

-- file: private/check_counters.sql
-- Every batch whose counters do not say what its contacts are: no row means that the books
-- balance. p_batch_id: only this batch. Reads all contacts: for tests and for admins.
create or replace function private.check_counters(p_batch_id uuid default null)
returns table (agency_id uuid, batch_id uuid, counter text, stored bigint, counted bigint)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select b.agency_id, b.id, v.counter, v.stored, v.counted
    from public.call_batches b
    left join (
      select c.agency_id, c.batch_id,
             count(*) as total,
             count(*) filter (where c.status = 'queued') as queued,
             count(*) filter (where c.status = 'in_progress') as in_progress,
             count(*) filter (where c.status = 'completed') as completed,
             count(*) filter (where c.status = 'failed') as failed,
             count(*) filter (where c.status = 'skipped') as skipped
        from public.campaign_contacts c
       where p_batch_id is null or c.batch_id = p_batch_id
       group by c.agency_id, c.batch_id) n
      on n.agency_id = b.agency_id and n.batch_id = b.id
   cross join lateral (
     values ('total_contacts', b.total_contacts, coalesce(n.total, 0)),
            ('queued', b.queued, coalesce(n.queued, 0)),
            ('in_progress', b.in_progress, coalesce(n.in_progress, 0)),
            ('completed', b.completed, coalesce(n.completed, 0)),
            ('failed', b.failed, coalesce(n.failed, 0)),
            ('skipped', b.skipped, coalesce(n.skipped, 0))) as v (counter, stored, counted)
   where (p_batch_id is null or b.id = p_batch_id) and v.stored <> v.counted
$$;

revoke execute on function private.check_counters(uuid) from public;
grant  execute on function private.check_counters(uuid) to service_role, lastcall_admin;
comment on function private.check_counters(uuid) is 'Batches whose counters do not add up; no row: the books balance.';

-- file: private/recount_batch.sql
-- Set a batch's counters to what its contacts are: the repair for what check_counters finds.
-- Returns the batch as it stands then. Raises PT401, PT403 (not a service or console), PT404.
create or replace function private.recount_batch(p_batch_id uuid)
returns public.call_batches
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor     private.actor := private.require_service();
  v_agency_id uuid := private.find_batch_agency(p_batch_id);
  v_batch     public.call_batches := private.lock_batch(v_agency_id, p_batch_id);
  v_recounted public.call_batches;
begin
  update public.call_batches b
     set total_contacts = n.total,
         queued = n.queued,
         in_progress = n.in_progress,
         completed = n.completed,
         failed = n.failed,
         skipped = n.skipped
    from (select count(*) as total,
                 count(*) filter (where c.status = 'queued') as queued,
                 count(*) filter (where c.status = 'in_progress') as in_progress,
                 count(*) filter (where c.status = 'completed') as completed,
                 count(*) filter (where c.status = 'failed') as failed,
                 count(*) filter (where c.status = 'skipped') as skipped
            from public.campaign_contacts c
           where c.agency_id = v_agency_id and c.batch_id = p_batch_id) n
   where b.agency_id = v_agency_id and b.id = p_batch_id
  returning b.* into v_recounted;
  perform private.record_event(v_agency_id, v_batch, v_actor, 'recount', v_batch.status, v_recounted.total_contacts);
  return v_recounted;
end;
$$;

revoke execute on function private.recount_batch(uuid) from public;
grant  execute on function private.recount_batch(uuid) to service_role, lastcall_admin;
comment on function private.recount_batch(uuid) is 'Set a batch''s counters to what its contacts are.';

-- file: api/cancel_batch.sql
create type public.cancel_batch_result as (
  success          boolean,
  batch_id         uuid,
  status           public.batch_status,
  contacts_skipped integer,
  message          text
);

-- Cancel a batch: contacts not yet called are skipped, calls in progress finish. Irreversible.
-- When it has committed, start_call lets no contact of the batch through any more.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such batch
-- of the agency), PT400 (already completed or cancelled), PT409 (idempotency key reused).
-- Contract: calls-batch-cancel.
create or replace function private.cancel_batch(
  p_agency_id uuid, p_batch_id uuid, p_idempotency_key text, p_reason text)
returns public.cancel_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor   private.actor := private.require_admin(p_agency_id);
  v_batch   public.call_batches;
  v_request jsonb := jsonb_build_object(
    'procedure', 'cancel_batch', 'batch_id', p_batch_id, 'reason', p_reason, 'actor', v_actor.id);
  v_answer  jsonb;
  v_result  public.cancel_batch_result;
begin
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  if v_batch.status in ('completed', 'cancelled') then
    raise sqlstate 'PT400' using message = format('Batch is already %s', v_batch.status),
      detail = format('{"code": "batch_already_%s"}', v_batch.status);
  end if;

  v_result := row(true, v_batch.id, 'cancelled'::public.batch_status,
    private.skip_remaining(p_agency_id, p_batch_id, 'Batch cancelled'),
    'Batch cancelled. In-progress calls will complete but no new calls will be initiated.'::text);
  update public.call_batches b
     set status = 'cancelled',
         queued = 0,
         skipped = b.skipped + v_result.contacts_skipped,
         completed_at = clock_timestamp(),
         error_message = 'Cancelled by user'
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  perform private.record_event(p_agency_id, v_batch, v_actor, 'cancel', 'cancelled', v_result.contacts_skipped,
    p_reason => p_reason, p_idempotency_key => p_idempotency_key,
    p_request => v_request, p_response => to_jsonb(v_result));
  return v_result;
end;
$$;

revoke execute on function private.cancel_batch(uuid, uuid, text, text) from public;
grant  execute on function private.cancel_batch(uuid, uuid, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.cancel_batch(uuid, uuid, text, text) is 'public.cancel_batch, for a batch of a known agency.';

-- The door to private.cancel_batch for users, services and consoles.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
create or replace function public.cancel_batch(
  batch_id uuid default null, idempotency_key text default null, reason text default null)
returns public.cancel_batch_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.cancel_batch(private.find_batch_agency(batch_id), batch_id, idempotency_key, reason)
$$;

revoke execute on function public.cancel_batch(uuid, text, text) from public, anon;
grant  execute on function public.cancel_batch(uuid, text, text) to authenticated, service_role, lastcall_admin;
comment on function public.cancel_batch(uuid, text, text) is
  'Cancel a call batch for good: remaining contacts are skipped, calls in progress finish.';

-- file: api/stop_batch.sql
create type public.stop_batch_result as (
  batch_id          text,                 -- as it was given
  status            public.batch_status,
  contacts_released integer,              -- taken out of the call queue, to be called when resumed
  contacts_skipped  integer,              -- with skip_remaining
  calls_in_progress integer               -- these finish
);

-- Stop a batch: no further call starts, the call queue is emptied, calls in progress finish.
-- Contacts stay, and the batch can be resumed; with p_skip_remaining those not yet
-- called are skipped. Stopping a stopped batch is a success. The batch and user come from
-- private.find_stop_target and are checked again here.
-- Raises PT401, PT403 (of no agency; neither the user nor an owner or admin), PT404 (no such batch of
-- the user), PT400 (already completed or cancelled), PT409 (idempotency key reused).
-- Contract: stop-calling.
create or replace function private.stop_batch(
  p_agency_id uuid, p_batch_id uuid, p_user_id uuid, p_given_id text, p_skip_remaining boolean,
  p_idempotency_key text, p_reason text)
returns public.stop_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor   private.actor := private.require_actor(p_agency_id);
  v_batch   public.call_batches;
  v_request jsonb := jsonb_build_object(
    'procedure', 'stop_batch', 'given_id', p_given_id, 'batch_id', p_batch_id, 'user_id', p_user_id,
    'skip_remaining', p_skip_remaining, 'reason', p_reason, 'actor', v_actor.id);
  v_answer  jsonb;
  v_result  public.stop_batch_result;
begin
  if not private.is_agency_admin(v_actor) and p_user_id is distinct from v_actor.id then
    raise sqlstate 'PT403' using message = 'Only the user, or an owner or admin of the agency, may do this',
      detail = '{"code": "role_not_allowed"}';
  end if;

  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  if p_user_id is not null and v_batch.user_id is distinct from p_user_id then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  end if;
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  if v_batch.status in ('completed', 'cancelled') then
    raise sqlstate 'PT400' using message = format('Batch is already %s', v_batch.status),
      detail = format('{"code": "batch_already_%s"}', v_batch.status);
  end if;

  v_result := row(p_given_id, 'stopped'::public.batch_status, 0, 0, v_batch.in_progress);
  if p_skip_remaining then
    v_result.contacts_skipped := private.skip_remaining(p_agency_id, p_batch_id, 'Batch stopped');
  else
    v_result.contacts_released := private.release_queued(p_agency_id, p_batch_id, v_batch.claim_cursor, 'infinity');
  end if;
  update public.call_batches b
     set status = 'stopped',
         queued = 0,
         skipped = b.skipped + v_result.contacts_skipped,
         skip_remaining = b.skip_remaining or p_skip_remaining,
         next_claim_at = clock_timestamp(),
         stopped_at = case when b.status = 'stopped' then b.stopped_at else clock_timestamp() end
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  perform private.record_event(p_agency_id, v_batch, v_actor, 'stop', 'stopped',
    v_result.contacts_skipped + v_result.contacts_released,
    p_on_behalf_of => p_user_id, p_reason => p_reason, p_idempotency_key => p_idempotency_key,
    p_request => v_request, p_response => to_jsonb(v_result));
  return v_result;
end;
$$;

revoke execute on function private.stop_batch(uuid, uuid, uuid, text, boolean, text, text) from public;
grant  execute on function private.stop_batch(uuid, uuid, uuid, text, boolean, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.stop_batch(uuid, uuid, uuid, text, boolean, text, text) is 'public.stop_batch, for a batch and user of a known agency.';

-- The door to private.stop_batch for users, services and consoles; these two may leave the user out.
-- batch_id, user_id: UUIDs or external ids.
-- skip_remaining: end the batch early, its contacts not yet called become skipped.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
create or replace function public.stop_batch(
  batch_id text default null, user_id text default null, skip_remaining boolean default false,
  idempotency_key text default null, reason text default null)
returns public.stop_batch_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.stop_batch(
           t.agency_id, t.batch_id, t.user_id, $1, coalesce(skip_remaining, false), idempotency_key, reason)
    from private.find_stop_target($1, $2) t
$$;

revoke execute on function public.stop_batch(text, text, boolean, text, text) from public, anon;
grant  execute on function public.stop_batch(text, text, boolean, text, text) to authenticated, service_role, lastcall_admin;
grant  execute on function private.find_stop_target(text, text) to authenticated, service_role, lastcall_admin;
comment on function public.stop_batch(text, text, boolean, text, text) is
  'Stop a call batch: its queue is emptied, calls in progress finish; it can be resumed.';

-- file: api/pause_batch.sql
create type public.pause_batch_result as (
  success   boolean,
  batch_id  uuid,
  status    public.batch_status,
  paused_at timestamptz,
  message   text
);

-- Pause a batch: no further call starts, calls in progress finish, and resume_batch goes on where it
-- was. Leased contacts go back to where they were: no dialer can start them.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such batch
-- of the agency), PT400 (neither processing nor scheduled), PT409 (idempotency key reused).
-- Contract: calls-batch-pause.
create or replace function private.pause_batch(
  p_agency_id uuid, p_batch_id uuid, p_idempotency_key text, p_reason text)
returns public.pause_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.require_admin(p_agency_id);
  v_batch    public.call_batches;
  v_request  jsonb := jsonb_build_object(
    'procedure', 'pause_batch', 'batch_id', p_batch_id, 'reason', p_reason, 'actor', v_actor.id);
  v_answer   jsonb;
  v_released integer;
  v_result   public.pause_batch_result;
begin
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  if v_batch.status not in ('processing', 'scheduled') then
    raise sqlstate 'PT400' using message = format('Only a processing or scheduled batch can be paused; this one is %s', v_batch.status),
      detail = '{"code": "batch_not_pausable"}';
  end if;

  v_released := private.release_queued(p_agency_id, p_batch_id, v_batch.claim_cursor, 'infinity');
  v_result := row(true, v_batch.id, 'paused'::public.batch_status, clock_timestamp(),
    'Batch paused. In-progress calls will continue until they complete.'::text);
  update public.call_batches b
     set status = 'paused',
         queued = 0,
         paused_at = v_result.paused_at
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  perform private.record_event(p_agency_id, v_batch, v_actor, 'pause', 'paused', v_released,
    p_reason => p_reason, p_idempotency_key => p_idempotency_key,
    p_request => v_request, p_response => to_jsonb(v_result));
  return v_result;
end;
$$;

revoke execute on function private.pause_batch(uuid, uuid, text, text) from public;
grant  execute on function private.pause_batch(uuid, uuid, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.pause_batch(uuid, uuid, text, text) is 'public.pause_batch, for a batch of a known agency.';

-- The door to private.pause_batch for users, services and consoles.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
create or replace function public.pause_batch(
  batch_id uuid default null, idempotency_key text default null, reason text default null)
returns public.pause_batch_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.pause_batch(private.find_batch_agency(batch_id), batch_id, idempotency_key, reason)
$$;

revoke execute on function public.pause_batch(uuid, text, text) from public, anon;
grant  execute on function public.pause_batch(uuid, text, text) to authenticated, service_role, lastcall_admin;
comment on function public.pause_batch(uuid, text, text) is
  'Pause a call batch: no further call starts, calls in progress finish; it can be resumed.';

-- file: api/resume_batch.sql
create type public.resume_batch_result as (
  success  boolean,
  batch_id uuid,
  status   public.batch_status,
  message  text
);

-- Go on with a paused or stopped batch: it is scheduled again when its time is still to come, or else
-- processing at once. A batch that was ended early goes on with what was added since.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such batch
-- of the agency), PT400 (neither paused nor stopped), PT409 (idempotency key reused).
-- Contract: calls-batch-resume, from stopped too.
create or replace function private.resume_batch(
  p_agency_id uuid, p_batch_id uuid, p_idempotency_key text, p_reason text)
returns public.resume_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor   private.actor := private.require_admin(p_agency_id);
  v_batch   public.call_batches;
  v_now     timestamptz;
  v_request jsonb := jsonb_build_object(
    'procedure', 'resume_batch', 'batch_id', p_batch_id, 'reason', p_reason, 'actor', v_actor.id);
  v_answer  jsonb;
  v_result  public.resume_batch_result;
begin
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  if v_batch.status not in ('paused', 'stopped') then
    raise sqlstate 'PT400' using message = format('Only a paused or stopped batch can be resumed; this one is %s', v_batch.status),
      detail = '{"code": "batch_not_resumable"}';
  end if;

  if v_batch.scheduled_for > v_now then
    v_result := row(true, v_batch.id, 'scheduled'::public.batch_status,
      'Batch scheduled to resume at ' || to_char(v_batch.scheduled_for at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'));
  else
    v_result := row(true, v_batch.id, 'processing'::public.batch_status,
      'Batch resumed. The processor will start making calls on the next run.'::text);
  end if;
  update public.call_batches b
     set status = v_result.status,
         paused_at = null,
         stopped_at = null,
         started_at = case when v_result.status = 'processing' then coalesce(b.started_at, v_now) else b.started_at end,
         skip_remaining = false,
         next_claim_at = v_now
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  perform private.record_event(p_agency_id, v_batch, v_actor, 'resume', v_result.status, 0,
    p_reason => p_reason, p_idempotency_key => p_idempotency_key,
    p_request => v_request, p_response => to_jsonb(v_result));
  return v_result;
end;
$$;

revoke execute on function private.resume_batch(uuid, uuid, text, text) from public;
grant  execute on function private.resume_batch(uuid, uuid, text, text) to authenticated, service_role, lastcall_admin;
comment on function private.resume_batch(uuid, uuid, text, text) is 'public.resume_batch, for a batch of a known agency.';

-- The door to private.resume_batch for users, services and consoles.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
create or replace function public.resume_batch(
  batch_id uuid default null, idempotency_key text default null, reason text default null)
returns public.resume_batch_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.resume_batch(private.find_batch_agency(batch_id), batch_id, idempotency_key, reason)
$$;

revoke execute on function public.resume_batch(uuid, text, text) from public, anon;
grant  execute on function public.resume_batch(uuid, text, text) to authenticated, service_role, lastcall_admin;
comment on function public.resume_batch(uuid, text, text) is
  'Go on with a paused or stopped call batch.';

-- file: api/list_user_batches.sql
-- A user's batches, newest first, as stop-calling's product shows them.
-- p_user_id: UUID or external id. p_page: from 1. p_page_size: 1 to 100. p_search: part of the name, or a
-- queue_status (active while being dialed, or else the batch's status).
-- Returns {"batches": [...], "pagination": {"total", "page", "limit", "totalPages"}}, from the counters.
-- callsPicked: taken from the queue and called; callsCompleted: called with success.
-- Raises PT401, PT400 (no user id; a number out of range), PT403 (of no agency; neither that user nor an
-- owner or admin), PT404 (no such user; no batch at all).
-- Contract: GET /api/call/batches/{userId}; an owner or admin may look at any user of the agency.
create or replace function private.list_user_batches(
  p_user_id text, p_page integer, p_page_size integer, p_search text)
returns json
language plpgsql stable
security definer  -- looks at users, and for a service or a console at every agency
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_actor   private.actor := private.current_actor();
  v_users   uuid[];
  v_total   integer;
  v_batches json;
begin
  if coalesce(p_user_id, '') = '' then
    raise sqlstate 'PT400' using message = 'userId is required',
      detail = '{"code": "user_id_required"}';
  end if;
  if p_page is null or p_page < 1 or p_page_size is null or p_page_size not between 1 and 100 then
    raise sqlstate 'PT400' using message = 'page must be at least 1 and limit 1 to 100',
      detail = '{"code": "page_out_of_range"}';
  end if;
  if v_actor.kind = 'user' and v_actor.agency_id is null then
    raise sqlstate 'PT403' using message = 'User is not associated with an agency',
      detail = '{"code": "no_agency"}';
  end if;
  v_users := private.find_users(v_actor, p_user_id);

  with mine as (
    select b.*,
           case when b.status = 'processing' then 'active' else b.status::text end as queue_status,
           row_number() over (order by b.created_at desc, b.id) as place
      from public.call_batches b
     where (v_actor.agency_id is null or b.agency_id = v_actor.agency_id)
       and b.user_id = any (v_users)),
  found as (
    select m.*, row_number() over (order by m.place) as found_place
      from mine m
     where coalesce(p_search, '') = ''
        or strpos(lower(m.name), lower(p_search)) > 0
        or m.queue_status = lower(p_search))
  select count(*)::integer,
         coalesce(json_agg(
           json_build_object(
             '_id', coalesce(f.external_id, f.id::text),
             'batchName', f.name,
             'totalCalls', f.total_contacts,
             'callsPicked', f.in_progress + f.completed + f.failed,
             'callsCompleted', f.completed,
             'queue_status', f.queue_status,
             'createdAt', private.iso_timestamp(f.created_at),
             'updatedAt', private.iso_timestamp(greatest(
               f.created_at, f.started_at, f.paused_at, f.stopped_at, f.completed_at, f.last_claimed_at)))
           order by f.found_place)
           filter (where f.found_place > (p_page - 1)::bigint * p_page_size
                     and f.found_place <= p_page::bigint * p_page_size), '[]')
    into v_total, v_batches
    from found f;
  if v_total = 0 then
    raise sqlstate 'PT404' using message = 'No batches found',
      detail = '{"code": "batch_not_found"}';
  end if;

  return json_build_object(
    'batches', v_batches,
    'pagination', json_build_object(
      'total', v_total,
      'page', p_page,
      'limit', p_page_size,
      'totalPages', (v_total + p_page_size - 1) / p_page_size));
end;
$$;

revoke execute on function private.list_user_batches(text, integer, integer, text) from public;
grant  execute on function private.list_user_batches(text, integer, integer, text) to authenticated, service_role, lastcall_admin;
comment on function private.list_user_batches(text, integer, integer, text) is 'public.list_user_batches.';

create or replace function public.list_user_batches(
  user_id text default null, page integer default 1, page_size integer default 10, search text default null)
returns json
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.list_user_batches(user_id, page, page_size, search)
$$;

revoke execute on function public.list_user_batches(text, integer, integer, text) from public, anon;
grant  execute on function public.list_user_batches(text, integer, integer, text) to authenticated, service_role, lastcall_admin;
comment on function public.list_user_batches(text, integer, integer, text) is
  'A user''s call batches with their progress, newest first.';

-- file: dialer/add_contacts.sql
-- Add contacts to a batch, at the end of its dial order. p_contacts: a JSON array of objects
-- with phone_number (required), custom_data (object), max_attempts (default 3) and due_at
-- (not before this time). Returns how many were added. Under the batch's lock, so that none
-- slips into a batch that is being cancelled, nor behind the claim cursor.
-- Raises PT401, PT403 (not a service or console), PT404, PT400 (not such an array; batch
-- completed or cancelled).
create or replace function private.add_contacts(p_agency_id uuid, p_batch_id uuid, p_contacts jsonb)
returns integer
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor private.actor := private.require_service();
  v_batch public.call_batches;
  v_now   timestamptz;
  v_added integer;
begin
  if jsonb_typeof(p_contacts) is distinct from 'array' or exists (
       select from jsonb_array_elements(p_contacts) as g (contact)
        where jsonb_typeof(g.contact) <> 'object'
           or jsonb_typeof(g.contact -> 'phone_number') is distinct from 'string'
           or jsonb_typeof(g.contact -> 'custom_data') not in ('object', 'null')
           or g.contact ->> 'max_attempts' !~ '^[1-9]\d{0,3}$'
           or g.contact ->> 'due_at' !~ '^\d{4}-\d\d-\d\d[T ]\d\d:\d\d') then
    raise sqlstate 'PT400' using message = 'contacts must be an array of objects with a phone_number and, if given, custom_data (object), max_attempts (1 to 9999), due_at (ISO 8601)',
      detail = '{"code": "contacts_invalid"}';
  end if;

  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  if v_batch.status in ('completed', 'cancelled') then
    raise sqlstate 'PT400' using message = format('Batch is already %s', v_batch.status),
      detail = format('{"code": "batch_already_%s"}', v_batch.status);
  end if;

  begin
    -- Numbered before the insert, so that each one's data finds it.
    with given as materialized (
      select nextval(pg_get_serial_sequence('public.campaign_contacts', 'id')) as id, g.contact
        from jsonb_array_elements(p_contacts) with ordinality as g (contact, place)
       order by g.place),
    added as (
      insert into public.campaign_contacts (agency_id, batch_id, id, phone_number, max_attempts, status, due_at)
      select p_agency_id, p_batch_id, g.id, g.contact ->> 'phone_number',
             coalesce((g.contact ->> 'max_attempts')::smallint, 3),
             case when g.contact ->> 'due_at' is null then 'pending' else 'scheduled' end::public.contact_status,
             (g.contact ->> 'due_at')::timestamptz
        from given g),
    added_data as (
      insert into public.contact_data (agency_id, batch_id, contact_id, custom_data)
      select p_agency_id, p_batch_id, g.id, g.contact -> 'custom_data'
        from given g
       where jsonb_typeof(g.contact -> 'custom_data') = 'object' and g.contact -> 'custom_data' <> '{}')
    select count(*)::integer into v_added from given;
  exception when data_exception then  -- a time that is none, such as the 31st of June
    raise sqlstate 'PT400' using message = 'due_at must be a time', detail = '{"code": "contacts_invalid"}';
  end;

  update public.call_batches b
     set total_contacts = b.total_contacts + v_added,
         next_claim_at = least(b.next_claim_at, v_now)
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  perform private.record_event(p_agency_id, v_batch, v_actor, 'add_contacts', v_batch.status, v_added);
  return v_added;
end;
$$;

revoke execute on function private.add_contacts(uuid, uuid, jsonb) from public;
grant  execute on function private.add_contacts(uuid, uuid, jsonb) to service_role, lastcall_admin;
comment on function private.add_contacts(uuid, uuid, jsonb) is 'public.add_contacts, for a batch of a known agency.';

create or replace function public.add_contacts(batch_id uuid, contacts jsonb)
returns integer
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.add_contacts(private.find_batch_agency(batch_id), batch_id, contacts)
$$;

revoke execute on function public.add_contacts(uuid, jsonb) from public, anon, authenticated;
grant  execute on function public.add_contacts(uuid, jsonb) to service_role, lastcall_admin;
comment on function public.add_contacts(uuid, jsonb) is 'Add contacts to a batch, at the end of its dial order.';

-- file: dialer/claim_contacts.sql
create type public.claimed_contact as (
  agency_id        uuid,
  batch_id         uuid,
  call_id          bigint,
  contact_id       bigint,
  phone_number     text,
  attempt          smallint,
  custom_data      jsonb,
  lease_expires_at timestamptz
);

-- Claim the next contacts of one batch under a lease of p_lease_seconds, at most
-- p_max_contacts, and no more than the batch's max_concurrent and calls_per_minute leave
-- room for. First those that came back and are due, then the others in dial order.
-- Returns nothing, without waiting, when someone else holds the batch: claimers never queue
-- up in front of a cancel.
create or replace function private.claim_batch(
  p_agency_id uuid, p_batch_id uuid, p_max_contacts integer, p_lease_seconds integer)
returns setof public.claimed_contact
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- Plans that are right for any batch. What statistics suggest is not, when they are of an empty
-- table or do not know this batch: then each call would read all of it.
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_batch       public.call_batches;
  v_now         timestamptz;
  v_expires_at  timestamptz;
  v_call_ids    constant regclass := pg_get_serial_sequence('public.calls', 'id')::regclass;
  v_limit       integer;
  v_recent      timestamptz[];
  v_due         bigint[];
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
       where r.created_at > v_now - interval '1 minute'
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

  v_due := array(
    select c.id
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id
       and c.due_at <= v_now and c.status in ('pending', 'scheduled')
     order by c.due_at
     limit v_limit);
  v_in_turn := array(
    select c.id
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id > v_batch.claim_cursor
       and c.due_at is null and c.status in ('pending', 'scheduled')
     order by c.agency_id, c.batch_id, c.id
     limit v_limit - cardinality(v_due));

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
        insert into public.calls (agency_id, batch_id, id, contact_id, attempt, created_at, lease_expires_at)
        select p_agency_id, p_batch_id, n.call_id, n.id, n.attempt, v_now, v_expires_at
          from numbered n)
      select p_agency_id, p_batch_id, n.call_id, n.id, n.phone_number, n.attempt,
             coalesce((select d.custom_data
                         from public.contact_data d
                        where d.agency_id = p_agency_id and d.batch_id = p_batch_id
                          and d.contact_id = n.id), '{}'),
             v_expires_at
        from numbered n
       order by n.call_id;
  end loop;

  update public.call_batches b
     set queued = b.queued + cardinality(v_due) + cardinality(v_in_turn),
         claim_cursor = coalesce(v_in_turn[cardinality(v_in_turn)], b.claim_cursor),
         last_claimed_at = v_now,
         -- All are claimed: nothing to look for until one is due or comes back.
         next_claim_at = case when cardinality(v_due) + cardinality(v_in_turn) < v_limit then (
             select min(c.due_at)
               from public.campaign_contacts c
              where c.agency_id = p_agency_id and c.batch_id = p_batch_id
                and c.due_at is not null and c.status in ('pending', 'scheduled'))
           else b.next_claim_at end
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
       and (p_batch_id is null or b.id = p_batch_id)
     order by b.last_claimed_at nulls first, b.created_at
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
as $$
  select * from private.claim_contacts(max_contacts, lease_seconds, batch_id)
$$;

revoke execute on function public.claim_contacts(integer, integer, uuid) from public, anon, authenticated;
grant  execute on function public.claim_contacts(integer, integer, uuid) to service_role, lastcall_admin;
comment on function public.claim_contacts(integer, integer, uuid) is
  'Claim the next contacts to call, under a lease; batches take turns.';

-- file: dialer/start_call.sql
-- The last gate before the carrier: of these calls, let those through that may be placed now,
-- and count the attempt. A call passes while its batch is processing and its lease runs.
-- Returns the ids of the calls to place; a call that is not among them must not be placed.
-- Since cancel and stop hold the same lock, whatever has not passed when they commit never will.
-- Raises PT401, PT403 (not a service or console), PT404.
create or replace function private.start_call(p_agency_id uuid, p_batch_id uuid, p_call_ids bigint[])
returns setof bigint
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_batch       public.call_batches;
  v_now         timestamptz;
  v_call_ids    bigint[];
  v_contact_ids bigint[];
  v_first       bigint;
  v_last        bigint;
begin
  perform private.require_service();
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  if v_batch.status <> 'processing' then
    return;
  end if;

  select min(u.id), max(u.id) into v_first, v_last from unnest(p_call_ids) as u (id);
  with started as (
    update public.calls c
       set status = 'in_progress',
           started_at = v_now
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id
       -- The calls of one claim are neighbours in their batch.
       and c.id between v_first and v_last and c.id = any (p_call_ids)
       -- As text: not by the index on leases, which would read all leases of the batch.
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
     set queued = b.queued - cardinality(v_call_ids),
         in_progress = b.in_progress + cardinality(v_call_ids)
   where b.agency_id = p_agency_id and b.id = p_batch_id and v_call_ids is not null;
  return query select unnest(v_call_ids);
end;
$$;

revoke execute on function private.start_call(uuid, uuid, bigint[]) from public;
grant  execute on function private.start_call(uuid, uuid, bigint[]) to service_role, lastcall_admin;
comment on function private.start_call(uuid, uuid, bigint[]) is 'public.start_call, for a batch of a known agency.';

-- The door to private.start_call. call_ids: as claimed, all of batch_id.
create or replace function public.start_call(batch_id uuid, call_ids bigint[])
returns setof bigint
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.start_call(private.find_batch_agency(batch_id), batch_id, call_ids)
$$;

revoke execute on function public.start_call(uuid, bigint[]) from public, anon, authenticated;
grant  execute on function public.start_call(uuid, bigint[]) to service_role, lastcall_admin;
comment on function public.start_call(uuid, bigint[]) is
  'The last gate before the carrier: returns the calls that may be placed now.';

-- file: dialer/finish_call.sql
-- Record the results of calls of one batch, in a group: one change of the batch's counters.
-- p_results: a JSON array of objects with call_id, status (completed or failed) and, where
-- known, outcome, duration_seconds, carrier_call_id, notes. A failed call with attempts left
-- puts its contact back, due after the batch's retry delay, unless the batch is over
-- (cancelled, or ended early): then the contact is failed. A result for a call that is not
-- in progress (told twice, never started) changes nothing.
-- Returns the ids of the calls that ended by it.
-- Raises PT401, PT403 (not a service or console), PT404, PT400 (not such an array).
create or replace function private.finish_call(p_agency_id uuid, p_batch_id uuid, p_results jsonb)
returns setof bigint
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_batch     public.call_batches;
  v_now       timestamptz;
  v_retry_at  timestamptz;
  v_result    record;
  v_call      public.calls;
  v_contact   public.contact_status;
  v_completed integer := 0;
  v_failed    integer := 0;
  v_retried   integer := 0;
begin
  perform private.require_service();
  if jsonb_typeof(p_results) is distinct from 'array' or exists (
       select from jsonb_array_elements(p_results) as r (result)
        where jsonb_typeof(r.result) <> 'object'
           or jsonb_typeof(r.result -> 'call_id') is distinct from 'number'
           or r.result ->> 'call_id' !~ '^\d{1,18}$'
           or jsonb_typeof(r.result -> 'status') is distinct from 'string'
           or r.result ->> 'status' not in ('completed', 'failed')
           or jsonb_typeof(r.result -> 'duration_seconds') not in ('number', 'null')) then
    raise sqlstate 'PT400' using message = 'results must be an array of objects with a call_id, a status completed or failed, and numbers as durations',
      detail = '{"code": "results_invalid"}';
  end if;

  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  v_retry_at := v_now + make_interval(secs => v_batch.retry_delay_seconds);
  for v_result in
    select r.call_id, r.status, r.outcome, r.carrier_call_id, r.notes,
           least(greatest(round(r.duration_seconds), 0), 2147483647)::integer as duration_seconds
      from jsonb_to_recordset(p_results) as r (
        call_id bigint, status public.call_status, outcome text, duration_seconds numeric,
        carrier_call_id text, notes text)
  loop
    update public.calls c
       set status = v_result.status,
           ended_at = v_now,
           outcome = v_result.outcome,
           duration_seconds = v_result.duration_seconds,
           carrier_call_id = coalesce(v_result.carrier_call_id, c.carrier_call_id)
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_result.call_id
       and c.status = 'in_progress'
    returning c.* into v_call;
    continue when not found;

    select case when v_result.status = 'completed' then 'completed'
                when c.attempts < c.max_attempts and v_batch.status <> 'cancelled' and not v_batch.skip_remaining
                  then 'scheduled'
                else 'failed' end::public.contact_status
      into v_contact
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_call.contact_id;
    update public.campaign_contacts c
       set status = v_contact,
           due_at = case when v_contact = 'scheduled' then v_retry_at end,
           completed_at = case when v_contact <> 'scheduled' then v_now end,
           outcome = v_result.outcome,
           outcome_notes = v_result.notes,
           duration_seconds = v_result.duration_seconds
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_call.contact_id;
    v_completed := v_completed + (v_contact = 'completed')::integer;
    v_failed := v_failed + (v_contact = 'failed')::integer;
    v_retried := v_retried + (v_contact = 'scheduled')::integer;
    return next v_result.call_id;
  end loop;

  update public.call_batches b
     set in_progress = b.in_progress - v_completed - v_failed - v_retried,
         completed = b.completed + v_completed,
         failed = b.failed + v_failed,
         next_claim_at = case when v_retried > 0 then least(b.next_claim_at, v_retry_at) else b.next_claim_at end
   where b.agency_id = p_agency_id and b.id = p_batch_id and v_completed + v_failed + v_retried > 0;
end;
$$;

revoke execute on function private.finish_call(uuid, uuid, jsonb) from public;
grant  execute on function private.finish_call(uuid, uuid, jsonb) to service_role, lastcall_admin;
comment on function private.finish_call(uuid, uuid, jsonb) is 'public.finish_call, for a batch of a known agency.';

-- The door to private.finish_call. results: all of batch_id.
create or replace function public.finish_call(batch_id uuid, results jsonb)
returns setof bigint
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.finish_call(private.find_batch_agency(batch_id), batch_id, results)
$$;

revoke execute on function public.finish_call(uuid, jsonb) from public, anon, authenticated;
grant  execute on function public.finish_call(uuid, jsonb) to service_role, lastcall_admin;
comment on function public.finish_call(uuid, jsonb) is 'Record the results of calls of one batch.';

-- file: dialer/release_expired_leases.sql
-- Give back the contacts of one batch that a dialer claimed and did not start in time, and
-- queued contacts that no lease holds. Returns how many.
-- Without waiting: a batch that someone else holds is left for the next time.
create or replace function private.release_batch_leases(p_agency_id uuid, p_batch_id uuid)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch    public.call_batches;
  v_now      timestamptz;
  v_leases   integer;
  v_released integer;
begin
  select b.* into v_batch
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id
     for no key update skip locked;
  if not found then
    return 0;
  end if;
  v_now := clock_timestamp();

  select count(*)::integer into v_leases
    from public.calls c
   where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.status = 'queued';
  v_released := private.release_queued(p_agency_id, p_batch_id, v_batch.claim_cursor,
    case when v_leases = 0 then 'infinity' else v_now end);
  if v_released > 0 or v_leases = 0 then
    update public.call_batches b
       -- Without a lease none is queued any more, whatever was counted: do not come back for it.
       set queued = case when v_leases = 0 then 0 else b.queued - v_released end,
           next_claim_at = least(b.next_claim_at, v_now)
     where b.agency_id = p_agency_id and b.id = p_batch_id;
  end if;
  return v_released;
end;
$$;

revoke execute on function private.release_batch_leases(uuid, uuid) from public;
comment on function private.release_batch_leases(uuid, uuid) is 'Give back what one batch''s dialers did not start in time.';

-- Give back the contacts whose dialer let their lease run out, of at most 10 batches a run (these
-- stay locked until it commits): run it every few seconds, and again while it returns more than 0.
-- Returns how many contacts went back. Raises PT401, PT403 (not a service or console).
create or replace function private.release_expired_leases()
returns integer
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now      timestamptz := clock_timestamp();
  v_batch    record;
  v_released integer := 0;
begin
  perform private.require_service();
  for v_batch in
    select b.agency_id, b.id
      from public.call_batches b
     where b.status = 'processing' and b.queued > 0
       and (exists (select from public.calls c
                     where c.agency_id = b.agency_id and c.batch_id = b.id
                       and c.status = 'queued' and c.lease_expires_at <= v_now)
            or not exists (select from public.calls c
                            where c.agency_id = b.agency_id and c.batch_id = b.id and c.status = 'queued'))
     limit 10
  loop
    v_released := v_released + private.release_batch_leases(v_batch.agency_id, v_batch.id);
  end loop;
  return v_released;
end;
$$;

revoke execute on function private.release_expired_leases() from public;
grant  execute on function private.release_expired_leases() to service_role, lastcall_admin;
comment on function private.release_expired_leases() is 'public.release_expired_leases.';

create or replace function public.release_expired_leases()
returns integer
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.release_expired_leases()
$$;

revoke execute on function public.release_expired_leases() from public, anon, authenticated;
grant  execute on function public.release_expired_leases() to service_role, lastcall_admin;
comment on function public.release_expired_leases() is 'Give back contacts that were claimed and not started in time.';

-- file: dialer/process_batches.sql
create type public.process_batches_result as (batches_started integer, batches_completed integer);

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
-- contacts decide. One that neither the claim cursor nor a due time would find (it came in
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
  if not found then
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
-- oldest first. Run it every few seconds; safe when two run at once.
-- max_batches: the most that one run completes, and the most that it starts, 1 to 1000.
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
begin
  if p_max_batches is null or p_max_batches not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'max_batches must be 1 to 1000',
      detail = '{"code": "max_batches_out_of_range"}';
  end if;

  for v_live in
    select b.agency_id, b.id
      from public.call_batches b
     where b.status = 'processing' and private.has_nothing_left(b)
     limit p_max_batches
  loop
    v_result.batches_completed := v_result.batches_completed
      + private.complete_batch(v_live.agency_id, v_live.id, v_actor)::integer;
  end loop;

  -- Last, since these stay locked until the run commits.
  for v_batch in
    select b.*
      from public.call_batches b
     where b.status in ('pending', 'scheduled') and coalesce(b.scheduled_for, '-infinity') <= v_now
       and exists (select from public.campaign_contacts c where c.agency_id = b.agency_id and c.batch_id = b.id)
     order by b.created_at
     limit p_max_batches
       for no key update skip locked
  loop
    update public.call_batches b
       set status = 'processing',
           started_at = coalesce(b.started_at, v_now)
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
as $$
  select private.process_batches(max_batches)
$$;

revoke execute on function public.process_batches(integer) from public, anon, authenticated;
grant  execute on function public.process_batches(integer) to service_role, lastcall_admin;
comment on function public.process_batches(integer) is
  'Start the batches that are due, complete those that have nothing left to call.';
