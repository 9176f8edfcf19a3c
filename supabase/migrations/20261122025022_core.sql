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
grant usage on schema private to anon, authenticated, service_role, lastcall_admin;

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
  'unknown',      -- let through, and nobody could tell whether the carrier got it: never placed again by itself
  'completed',
  'failed'
);

create type public.batch_mode as enum (
  'immediate',    -- from the next run of process_batches on
  'scheduled'     -- from scheduled_for on
);

create type public.phone_number_status as enum ('pending', 'active', 'inactive', 'released');

create type public.webhook_status as enum (
  'pending',      -- waits for process_webhook_queue
  'completed',    -- applied
  'ignored',      -- nothing to apply: error_message says why
  'failed',       -- could not be applied; tried again at next_retry_at
  'dead'          -- failed for the last time: replay_webhooks tries again
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

-- file: schema/campaigns.sql
-- What batches are dialed for.
create table public.campaigns (
  agency_id  uuid not null references public.agencies (id) on delete cascade,
  id         uuid not null default gen_random_uuid(),
  name       text not null,
  created_at timestamptz not null default now(),
  primary key (agency_id, id)
);

comment on table public.campaigns is 'What batches are dialed for.';

-- file: schema/agent_mappings.sql
-- The voice agents of an agency: who speaks when a contact answers.
create table public.agent_mappings (
  agency_id            uuid not null references public.agencies (id) on delete cascade,
  id                   uuid not null default gen_random_uuid(),
  ultravox_agent_id    text not null,
  ultravox_agent_name  text,
  max_duration_seconds integer not null default 3600 check (max_duration_seconds between 1 and 86400),
  recording_enabled    boolean not null default true,
  created_at           timestamptz not null default now(),
  primary key (agency_id, id),
  unique (agency_id, ultravox_agent_id)
);

comment on table public.agent_mappings is 'The voice agents of an agency.';
comment on column public.agent_mappings.ultravox_agent_id is 'The carrier''s id of the agent.';

-- file: schema/agency_phone_numbers.sql
-- The numbers that an agency may call from.
create table public.agency_phone_numbers (
  agency_id     uuid not null references public.agencies (id) on delete cascade,
  id            uuid not null default gen_random_uuid(),
  phone_number  text not null check (phone_number ~ '^\+[1-9][0-9]{6,14}$'),
  friendly_name text,
  status        public.phone_number_status not null default 'pending',
  is_active     boolean not null default true,
  created_at    timestamptz not null default now(),
  primary key (agency_id, id),
  unique (agency_id, phone_number)
);

comment on table public.agency_phone_numbers is 'The numbers that an agency may call from: those that are active.';

-- file: schema/do_not_call.sql
-- Numbers that an agency must not call. Looked at when contacts are added, and again by
-- start_call, the moment before each call.
create table public.do_not_call (
  agency_id    uuid not null references public.agencies (id) on delete cascade,
  phone_number text not null check (phone_number ~ '^\+[1-9][0-9]{6,14}$'),
  reason       text,
  created_at   timestamptz not null default now(),
  primary key (agency_id, phone_number)
);

comment on table public.do_not_call is 'Numbers that an agency must not call.';

-- file: schema/dialed_numbers.sql
-- One row for each number that a batch with max_calls_per_number has called: what two such
-- batches lock, so that both together keep to the limit. Nothing is counted here: calls tell.
create table private.dialed_numbers (
  agency_id    uuid not null,
  phone_number text not null,
  primary key (agency_id, phone_number)
);

comment on table private.dialed_numbers is 'What batches that call the same number lock.';

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
  campaign_id      uuid,
  agent_mapping_id uuid,
  from_number      text,
  calling_numbers  text[],
  retry_of         uuid,
  mode             public.batch_mode not null default 'immediate',
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
  retry_outcomes   text[],
  timezone         text,
  calling_start    time,
  calling_end      time,
  allowed_days     smallint[],
  max_calls_per_number integer check (max_calls_per_number >= 1),
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
  foreign key (agency_id, user_id) references public.users (agency_id, id) on delete restrict,
  foreign key (agency_id, campaign_id) references public.campaigns (agency_id, id) on delete restrict,
  foreign key (agency_id, agent_mapping_id) references public.agent_mappings (agency_id, id) on delete restrict
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
comment on column public.call_batches.calling_numbers is 'The numbers to call from in turn; null: from_number alone.';
comment on column public.call_batches.retry_of is 'The batch whose failed contacts these are.';
comment on column public.call_batches.retry_outcomes is 'Outcomes after which a failed call is tried again; null: any.';
comment on column public.call_batches.timezone is 'Where calling hours and days are meant, unless a contact has a time zone of its own; null: UTC.';
comment on column public.call_batches.calling_start is 'With calling_end: the hours in which calls may start; through midnight when it is the later one.';
comment on column public.call_batches.allowed_days is 'Days on which calls may start, 0 (Sunday) to 6; null: every day.';
comment on column public.call_batches.max_calls_per_number is 'Most calls to one number in any 24 hours, those of other batches of the agency included.';
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
  timezone         text,
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

-- Who has a number: duplicates within a batch, calls to it across batches. The number comes first,
-- so that no plan takes this index for a batch's contacts.
create index campaign_contacts_number on public.campaign_contacts (phone_number, agency_id, batch_id);

comment on table public.campaign_contacts is 'One person of a batch to call.';
comment on column public.campaign_contacts.timezone is 'Where this contact is; null: where the batch says.';
comment on column public.campaign_contacts.due_at is 'Claimed when this time has come, not in its turn; null: in its turn.';
comment on column public.campaign_contacts.call_id is 'The latest call to this contact.';

-- What is known of a contact and told to the voice agent. Apart, since it is wide and never
-- changes, and every update of a contact copies its whole row.
create table public.contact_data (
  agency_id   uuid not null,
  batch_id    uuid not null,
  contact_id  bigint not null,
  first_name  text,
  last_name   text,
  email       text,
  company     text,
  title       text,
  custom_data jsonb not null default '{}',
  primary key (agency_id, batch_id, contact_id),
  foreign key (agency_id, batch_id) references public.call_batches (agency_id, id) on delete cascade
);

comment on table public.contact_data is 'What is known of a contact and told to the voice agent.';

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
  checked_at       timestamptz,
  primary key (agency_id, batch_id, id),
  -- None to the contact: deleting a batch of a million would look for each contact's calls.
  foreign key (agency_id, batch_id) references public.call_batches (agency_id, id) on delete cascade
) with (fillfactor = 70);

-- Leases by the time they end, and the calls whose end is not known yet.
create index calls_open on public.calls (agency_id, batch_id, status, lease_expires_at)
  where status in ('queued', 'in_progress', 'unknown');
-- The calls of a contact. Without the agency, by which alone no plan shall look for calls.
create index calls_contact on public.calls (contact_id);
-- The call that the carrier's event is about. The agency second: both are given, so no plan prefers another index.
create index calls_carrier on public.calls (carrier_call_id, agency_id) where carrier_call_id is not null;

comment on table public.calls is 'One attempt at a contact; while queued, the lease of a dialer.';
comment on column public.calls.carrier_call_id is 'The carrier''s id of the call.';
comment on column public.calls.checked_at is 'When list_open_calls last gave the call, to ask the carrier about.';

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

-- file: schema/webhook_queue.sql
-- What carriers reported, until process_webhook_queue has applied it and purge_webhook_queue has thrown it away.
-- An event is stored once, however often it is delivered.
create table public.webhook_queue (
  agency_id     uuid not null references public.agencies (id) on delete cascade,
  id            bigint generated always as identity,
  event_id      text not null,
  event_type    text not null,
  payload       jsonb not null,
  status        public.webhook_status not null default 'pending',
  attempts      integer not null default 0,
  max_attempts  integer not null default 5,
  error_message text,
  created_at    timestamptz not null default clock_timestamp(),
  processed_at  timestamptz,
  next_retry_at timestamptz default clock_timestamp(),
  primary key (agency_id, id),
  unique (agency_id, event_id),
  check (attempts <= max_attempts)
);

-- What is due, oldest first, whichever agency's.
create index webhook_queue_due on public.webhook_queue (next_retry_at) where next_retry_at is not null;
-- What waits for an operator.
create index webhook_queue_dead on public.webhook_queue (agency_id, id) where status = 'dead';

comment on table public.webhook_queue is 'What carriers reported, each event once.';
comment on column public.webhook_queue.event_id is 'Its webhook-id, or else the carrier''s call id and the event type.';
comment on column public.webhook_queue.error_message is 'Why it was ignored, or could not be applied.';
comment on column public.webhook_queue.next_retry_at is 'When it is to be applied; null: never again by itself.';

-- file: schema/webhook_secrets.sql
-- The secrets that an agency's carriers sign with. Several may be valid at once, so that one can be replaced
-- without losing an event. Nobody is granted anything: rotate_webhook_secret shows a new one once, and
-- verify_webhook compares within the database.
create table private.webhook_secrets (
  agency_id  uuid not null references public.agencies (id) on delete cascade,
  id         bigint generated always as identity,
  secret     text not null,
  created_at timestamptz not null default now(),
  expires_at timestamptz,
  primary key (agency_id, id)
);

comment on table private.webhook_secrets is 'The secrets that an agency''s carriers sign with.';
comment on column private.webhook_secrets.expires_at is 'Not valid any more from then on; null: until it is replaced.';

-- file: schema/batch_imports.sql
-- One file whose contacts are imported into a batch, in groups, each of which commits with last_row: so an
-- import that broke off goes on where it was, and no row of the file counts twice.
create table public.batch_imports (
  agency_id    uuid not null,
  id           uuid not null default gen_random_uuid(),
  batch_id     uuid not null,
  file_hash    text not null,
  max_attempts smallint not null,
  held_at      timestamptz,
  created_at   timestamptz not null default clock_timestamp(),
  finished_at  timestamptz,
  last_row     integer not null default 0,
  added        integer not null default 0,
  duplicates   integer not null default 0,
  do_not_call  integer not null default 0,
  invalid      integer not null default 0,
  answer       jsonb,
  primary key (agency_id, id),
  foreign key (agency_id, batch_id) references public.call_batches (agency_id, id) on delete cascade
);

create index batch_imports_batch on public.batch_imports (agency_id, batch_id);

comment on table public.batch_imports is 'Files whose contacts are imported into a batch.';
comment on column public.batch_imports.file_hash is 'SHA-256 of the file: by it, the same file sent again goes on with its import.';
comment on column public.batch_imports.held_at is 'The batch was made by this import, and paused until its end; the paused_at that it was given.';
comment on column public.batch_imports.last_row is 'Rows of the file up to this one are done.';
comment on column public.batch_imports.answer is 'What was answered when it finished.';

-- Rows of imported files that were left out because something is wrong with them.
create table public.import_errors (
  agency_id    uuid not null,
  import_id    uuid not null,
  row_number   integer not null,
  phone_number text,
  error        text not null,
  primary key (agency_id, import_id, row_number),
  foreign key (agency_id, import_id) references public.batch_imports (agency_id, id) on delete cascade
);

comment on table public.import_errors is 'Invalid rows of imported files, at most 100,000 of each.';
comment on column public.import_errors.row_number is 'As in the file, whose header is row 1.';
comment on column public.import_errors.phone_number is 'As given, its first 50 characters.';

-- file: schema/v_call_batch_summary.sql
-- Progress of the batches that the reader may see, from the stored counters: never by
-- counting contacts. A skipped contact is done with: a cancelled batch ends at 100 %.
create view public.v_call_batch_summary with (security_invoker = true) as
select b.agency_id, b.id, b.user_id, b.external_id, b.name,
       b.campaign_id, c.name as campaign_name, b.agent_mapping_id, a.ultravox_agent_name as agent_name,
       b.from_number, b.status,
       b.total_contacts, b.queued, b.in_progress, b.completed, b.failed, b.skipped,
       coalesce(trunc(100.0 * (b.completed + b.failed + b.skipped) / nullif(b.total_contacts, 0), 1), 0)
         as progress_percentage,
       b.total_contacts - b.completed - b.failed - b.skipped as remaining_count,
       b.calls_per_minute, b.max_concurrent, b.retry_of,
       b.scheduled_for, b.created_at, b.started_at, b.paused_at, b.stopped_at, b.completed_at, b.error_message
  from public.call_batches b
  left join public.campaigns c on c.agency_id = b.agency_id and c.id = b.campaign_id
  left join public.agent_mappings a on a.agency_id = b.agency_id and a.id = b.agent_mapping_id;

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
revoke all on table public.agencies, public.users, public.campaigns, public.agent_mappings,
                    public.agency_phone_numbers, public.do_not_call,
                    public.call_batches, public.campaign_contacts,
                    public.contact_data, public.calls, public.batch_events, public.webhook_queue,
                    public.batch_imports, public.import_errors, public.v_call_batch_summary
  from public, anon, authenticated, service_role, lastcall_admin;

grant select on table public.agencies, public.users, public.campaigns, public.agent_mappings,
                      public.agency_phone_numbers, public.do_not_call,
                      public.call_batches, public.campaign_contacts,
                      public.contact_data, public.calls, public.webhook_queue,
                      public.batch_imports, public.import_errors, public.v_call_batch_summary
  to authenticated, service_role, lastcall_admin;
-- Not the idempotency keys, nor what was asked and answered under them.
grant select (agency_id, batch_id, id, created_at, action, actor_kind, actor_id, actor_role,
              on_behalf_of, from_status, to_status, contacts, reason, request_id)
  on table public.batch_events to authenticated, service_role;
grant select on table public.batch_events to lastcall_admin;
-- The backend brings agencies, people and what calls are made with; batches in progress change by
-- procedures alone.
grant insert, update, delete on table public.agencies, public.users, public.campaigns, public.agent_mappings,
                                      public.agency_phone_numbers, public.do_not_call to service_role;
grant insert on table public.call_batches to service_role;

alter table public.agencies enable row level security;
alter table public.users enable row level security;
alter table public.campaigns enable row level security;
alter table public.agent_mappings enable row level security;
alter table public.agency_phone_numbers enable row level security;
alter table public.do_not_call enable row level security;
alter table public.call_batches enable row level security;
alter table public.campaign_contacts enable row level security;
alter table public.contact_data enable row level security;
alter table public.calls enable row level security;
alter table public.batch_events enable row level security;
alter table public.webhook_queue enable row level security;
alter table public.batch_imports enable row level security;
alter table public.import_errors enable row level security;

create policy own_agency on public.agencies for select to authenticated
  using (id = private.current_agency_id());
create policy own_agency on public.users for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.campaigns for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.agent_mappings for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.agency_phone_numbers for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.do_not_call for select to authenticated
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
create policy own_agency on public.webhook_queue for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.batch_imports for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.import_errors for select to authenticated
  using (agency_id = private.current_agency_id());

create policy every_agency on public.agencies for select to lastcall_admin using (true);
create policy every_agency on public.users for select to lastcall_admin using (true);
create policy every_agency on public.campaigns for select to lastcall_admin using (true);
create policy every_agency on public.agent_mappings for select to lastcall_admin using (true);
create policy every_agency on public.agency_phone_numbers for select to lastcall_admin using (true);
create policy every_agency on public.do_not_call for select to lastcall_admin using (true);
create policy every_agency on public.call_batches for select to lastcall_admin using (true);
create policy every_agency on public.campaign_contacts for select to lastcall_admin using (true);
create policy every_agency on public.contact_data for select to lastcall_admin using (true);
create policy every_agency on public.calls for select to lastcall_admin using (true);
create policy every_agency on public.batch_events for select to lastcall_admin using (true);
create policy every_agency on public.webhook_queue for select to lastcall_admin using (true);
create policy every_agency on public.batch_imports for select to lastcall_admin using (true);
create policy every_agency on public.import_errors for select to lastcall_admin using (true);

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
-- anything else of it: one lock, one order, no deadlock, and a status that holds. What is changed under
-- it is on disk when the reply is out, even where the database is set not to wait for that.
-- Raises PT404.
create or replace function private.lock_batch(p_agency_id uuid, p_batch_id uuid)
returns public.call_batches
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch public.call_batches;
begin
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'on', true);
  end if;
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

-- file: private/find_user_batch.sql
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

-- file: private/is_timestamp.sql
-- Whether this text is a time with a date, such as 2025-01-15T10:30:00Z.
create or replace function private.is_timestamp(p_text text)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_text !~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}' then
    return false;
  end if;
  perform p_text::timestamptz;
  return true;
exception when data_exception then  -- such as the 31st of June
  return false;
end;
$$;

revoke execute on function private.is_timestamp(text) from public;
comment on function private.is_timestamp(text) is 'Whether this is a time with a date.';

-- file: private/next_calling_time.sql
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
  -- What else PostgreSQL takes for one (an offset, a rule) is more likely a slip.
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

-- file: private/check_contacts.sql
-- What is wrong with contacts: the place (from 1) of each that is not an object with phone_number (E.164, required);
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
                 -- What PostgreSQL holds, and a dialer's JSON reader may not: then it could claim nothing else either.
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
comment on function private.check_contacts(jsonb) is 'What is wrong with contacts.';

-- file: private/insert_contacts.sql
create type private.inserted_contacts as (added integer, duplicates integer, do_not_call integer);

-- Append valid contacts (see private.check_contacts) to a locked batch, in the order given. A number that the batch has
-- already (the first one is kept; one that was skipped may come again) or that the agency must not call is
-- left out, and counted. p_max_attempts: of contacts that do not say.
-- The caller holds the batch's lock.
create or replace function private.insert_valid_contacts(
  p_batch public.call_batches, p_contacts jsonb, p_max_attempts smallint)
returns private.inserted_contacts
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now    timestamptz := clock_timestamp();
  v_result private.inserted_contacts;
begin
  with given as materialized (
    select g.place, g.contact ->> 'phone_number' as phone_number, g.contact,
           -- With limits: each by its key, and never by reading the whole batch or list.
           row_number() over (partition by g.contact ->> 'phone_number' order by g.place) > 1
             -- As rows: by the index of numbers, and by no other that would read the whole batch for each number.
             or coalesce((select true from public.campaign_contacts c
                           where (c.phone_number, c.agency_id, c.batch_id)
                                 >= (g.contact ->> 'phone_number', p_batch.agency_id, p_batch.id)
                             and (c.phone_number, c.agency_id, c.batch_id)
                                 <= (g.contact ->> 'phone_number', p_batch.agency_id, p_batch.id)
                             and c.status <> 'skipped'
                           limit 1), false) as is_duplicate,
           coalesce((select true from public.do_not_call n
                      where n.agency_id = p_batch.agency_id and n.phone_number = g.contact ->> 'phone_number'
                      limit 1), false) as is_do_not_call
      from jsonb_array_elements(p_contacts) with ordinality as g (contact, place)),
  -- Numbered before the insert, so that each one's data finds it.
  numbered as materialized (
    select nextval(pg_get_serial_sequence('public.campaign_contacts', 'id')) as id, n.*
      from (select g.* from given g where not g.is_duplicate and not g.is_do_not_call order by g.place) n),
  added as (
    insert into public.campaign_contacts (
      agency_id, batch_id, id, phone_number, timezone, max_attempts, status, due_at)
    select p_batch.agency_id, p_batch.id, n.id, n.phone_number, n.contact ->> 'timezone',
           coalesce((n.contact ->> 'max_attempts')::smallint, p_max_attempts),
           case when n.contact ->> 'due_at' is null then 'pending' else 'scheduled' end::public.contact_status,
           -- A contact with hours of its own is not called in its turn, but when it is due.
           coalesce((n.contact ->> 'due_at')::timestamptz,
                    case when n.contact ->> 'timezone' is not null
                          and (p_batch.calling_start is not null or p_batch.allowed_days is not null) then v_now end)
      from numbered n),
  added_data as (
    insert into public.contact_data (
      agency_id, batch_id, contact_id, first_name, last_name, email, company, title, custom_data)
    select p_batch.agency_id, p_batch.id, n.id, n.contact ->> 'first_name', n.contact ->> 'last_name',
           n.contact ->> 'email', n.contact ->> 'company', n.contact ->> 'title',
           coalesce(nullif(n.contact -> 'custom_data', 'null'), '{}')
      from numbered n
     where n.contact ?| array['first_name', 'last_name', 'email', 'company', 'title', 'custom_data'])
  select (select count(*) from numbered)::integer,
         (count(*) filter (where g.is_duplicate and not g.is_do_not_call))::integer,
         (count(*) filter (where g.is_do_not_call))::integer
    into v_result
    from given g;
  return v_result;
end;
$$;

revoke execute on function private.insert_valid_contacts(public.call_batches, jsonb, smallint) from public;
comment on function private.insert_valid_contacts(public.call_batches, jsonb, smallint) is 'Append valid contacts to a locked batch.';

-- Append contacts to a locked batch, in the order given. p_contacts: a JSON array of 1 to 10,000 contacts (see
-- private.check_contacts). All or none: an invalid one refuses them all.
-- Raises PT400 (contacts_invalid; detail: errors, the first 100 with index and error, error_count).
-- The caller holds the batch's lock.
create or replace function private.insert_contacts(p_batch public.call_batches, p_contacts jsonb)
returns private.inserted_contacts
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_errors jsonb;
  v_count  integer;
begin
  if jsonb_typeof(p_contacts) is distinct from 'array' or jsonb_array_length(p_contacts) not between 1 and 10000 then
    raise sqlstate 'PT400' using message = 'contacts must be an array of 1 to 10,000 objects',
      detail = '{"code": "contacts_invalid"}';
  end if;
  select count(*)::integer,
         jsonb_agg(jsonb_build_object('index', w.place - 1, 'error', w.error) order by w.place) filter (where w.nth <= 100)
    into v_count, v_errors
    from (select e.place, e.error, row_number() over (order by e.place) as nth
            from private.check_contacts(p_contacts) e) w;
  if v_count > 0 then
    raise sqlstate 'PT400' using
      message = format('%s of %s contacts are invalid', v_count, jsonb_array_length(p_contacts)),
      detail = jsonb_build_object('code', 'contacts_invalid', 'error_count', v_count, 'errors', v_errors)::text;
  end if;
  return private.insert_valid_contacts(p_batch, p_contacts, 3::smallint);
end;
$$;

revoke execute on function private.insert_contacts(public.call_batches, jsonb) from public;
comment on function private.insert_contacts(public.call_batches, jsonb) is 'Append contacts to a locked batch.';

-- file: private/check_rows.sql
-- The rows of a file as the procedures that import them take them: 1 to 10,000 objects, each a contact (see
-- private.check_contacts) with its row, a number; or with its row and an error, what kept it from being
-- read. Returns them with what is wrong with them. Raises PT400 (not such an array).
create or replace function private.check_rows(p_rows jsonb)
returns table (row_number integer, contact jsonb, error text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if jsonb_typeof(p_rows) is distinct from 'array' or jsonb_array_length(p_rows) not between 1 and 10000
     or exists (
       select from jsonb_array_elements(p_rows) as g (contact)
        where (jsonb_typeof(g.contact -> 'row') = 'number' and g.contact ->> 'row' ~ '^[1-9][0-9]{0,8}$') is not true) then
    raise sqlstate 'PT400' using message = 'rows must be an array of 1 to 10,000 objects, each with its row in the file',
      detail = '{"code": "rows_invalid"}';
  end if;
  return query
    select (g.contact ->> 'row')::integer, g.contact, coalesce(g.contact ->> 'error', e.error)
      from jsonb_array_elements(p_rows) with ordinality as g (contact, place)
      left join private.check_contacts(p_rows) e on e.place = g.place;
end;
$$;

revoke execute on function private.check_rows(jsonb) from public;
comment on function private.check_rows(jsonb) is 'The rows of a file, with what is wrong with them.';

-- file: private/find_import.sql
-- An import of a locked batch. Raises PT404.
create or replace function private.find_import(p_agency_id uuid, p_batch_id uuid, p_import_id uuid)
returns public.batch_imports
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_import public.batch_imports;
begin
  select i.* into v_import
    from public.batch_imports i
   where i.agency_id = p_agency_id and i.id = p_import_id and i.batch_id = p_batch_id;
  if not found then
    raise sqlstate 'PT404' using message = 'Import not found',
      detail = '{"code": "import_not_found"}';
  end if;
  return v_import;
end;
$$;

revoke execute on function private.find_import(uuid, uuid, uuid) from public;
comment on function private.find_import(uuid, uuid, uuid) is 'An import of a locked batch.';

-- file: private/import_progress.sql
-- How far an import is; p_answer: what was answered when it finished, or null while there is more to do.
create or replace function private.import_progress(p_import public.batch_imports)
returns json
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select json_build_object(
    'batch_id', p_import.batch_id, 'import_id', p_import.id, 'last_row', p_import.last_row,
    'added', p_import.added, 'duplicates', p_import.duplicates, 'do_not_call', p_import.do_not_call,
    'invalid', p_import.invalid, 'answer', p_import.answer)
$$;

revoke execute on function private.import_progress(public.batch_imports) from public;
comment on function private.import_progress(public.batch_imports) is 'How far an import is.';

-- file: private/check_numbers.sql
-- Refuse numbers that are not active ones of the agency. Raises PT400.
create or replace function private.check_numbers(p_agency_id uuid, p_numbers text[])
returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_number text;
begin
  if cardinality(p_numbers) not between 1 and 100 then
    raise sqlstate 'PT400' using message = 'calling_numbers must be 1 to 100 numbers',
      detail = '{"code": "calling_numbers_invalid"}';
  end if;
  select n.given into v_number
    from unnest(p_numbers) as n (given)
   where not exists (
     select from public.agency_phone_numbers p
      where p.agency_id = p_agency_id and p.phone_number = n.given and p.status = 'active' and p.is_active)
   limit 1;
  if found then
    raise sqlstate 'PT400' using message = format('%s is not an active number of the agency', left(coalesce(v_number, 'null'), 50)),
      detail = '{"code": "from_number_not_active"}';
  end if;
end;
$$;

revoke execute on function private.check_numbers(uuid, text[]) from public;
comment on function private.check_numbers(uuid, text[]) is 'Refuse numbers that are not active ones of the agency.';

-- file: private/fresh_batch.sql
-- A batch as every one begins, with the settings of p_batch: nothing of what became of that one, waiting for its time.
create or replace function private.fresh_batch(p_batch public.call_batches, p_scheduled_for timestamptz)
returns public.call_batches
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch public.call_batches := p_batch;
begin
  v_batch.id := gen_random_uuid();
  v_batch.scheduled_for := p_scheduled_for;
  v_batch.mode := case when p_scheduled_for is null then 'immediate' else 'scheduled' end::public.batch_mode;
  v_batch.status := case when p_scheduled_for is null then 'pending' else 'scheduled' end::public.batch_status;
  v_batch.total_contacts := 0;
  v_batch.queued := 0;
  v_batch.in_progress := 0;
  v_batch.completed := 0;
  v_batch.failed := 0;
  v_batch.skipped := 0;
  v_batch.started_at := null;
  v_batch.paused_at := null;
  v_batch.stopped_at := null;
  v_batch.completed_at := null;
  v_batch.error_message := null;
  v_batch.skip_remaining := false;
  v_batch.claim_cursor := 0;
  v_batch.created_at := clock_timestamp();
  v_batch.next_claim_at := v_batch.created_at;
  v_batch.last_claimed_at := null;
  return v_batch;
end;
$$;

revoke execute on function private.fresh_batch(public.call_batches, timestamptz) from public;
comment on function private.fresh_batch(public.call_batches, timestamptz) is 'A batch as every one begins.';

-- file: private/check_batch.sql
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

  -- Null is a limit that was not given: in the limits it is out of range, where it may be left out it is not.
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

-- file: private/find_admin_agency.sql
-- The agency that the caller means and may act for: a user's own, as its owner or admin; for a service or a
-- console the one that is named, or null, every one.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such agency, or not the user's).
create or replace function private.find_admin_agency(p_agency_id uuid)
returns uuid
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
  if not private.is_agency_admin(v_actor) then
    raise sqlstate 'PT403' using message = 'User role must be agency_owner or agency_admin',
      detail = '{"code": "role_not_allowed"}';
  end if;
  if p_agency_id <> v_actor.agency_id
     or p_agency_id is not null and not exists (select from public.agencies a where a.id = p_agency_id) then
    raise sqlstate 'PT404' using message = 'Agency not found',
      detail = '{"code": "agency_not_found"}';
  end if;
  return coalesce(p_agency_id, v_actor.agency_id);
end;
$$;

revoke execute on function private.find_admin_agency(uuid) from public;
comment on function private.find_admin_agency(uuid) is 'The agency that the caller means and may act for.';

-- file: private/hmac_sha256.sql
-- HMAC-SHA256 (RFC 2104), from what every PostgreSQL has built in: no extension to install.
create or replace function private.hmac_sha256(p_key bytea, p_message bytea)
returns bytea
language plpgsql immutable strict
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key   bytea := case when length(p_key) > 64 then sha256(p_key) else p_key end;
  v_inner bytea := decode(repeat('36', 64), 'hex');
  v_outer bytea := decode(repeat('5c', 64), 'hex');
begin
  for i in 0 .. length(v_key) - 1 loop
    v_inner := set_byte(v_inner, i, get_byte(v_inner, i) # get_byte(v_key, i));
    v_outer := set_byte(v_outer, i, get_byte(v_outer, i) # get_byte(v_key, i));
  end loop;
  return sha256(v_outer || sha256(v_inner || p_message));
end;
$$;

revoke execute on function private.hmac_sha256(bytea, bytea) from public;
comment on function private.hmac_sha256(bytea, bytea) is 'HMAC-SHA256 of a message.';

-- file: private/new_webhook_secret.sql
-- A secret that nobody has, in the form of Standard Webhooks: whsec_ and 32 bytes in base64.
-- gen_random_uuid() draws 122 bits from the system's secure random source; the digest of three of them
-- gathers 256 bits of it evenly, without the fixed bits of a UUID.
create or replace function private.new_webhook_secret()
returns text
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select 'whsec_' || encode(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
                                   || uuid_send(gen_random_uuid())), 'base64')
$$;

revoke execute on function private.new_webhook_secret() from public;
comment on function private.new_webhook_secret() is 'A webhook secret that nobody has.';

-- file: private/verify_webhook.sql
-- Whether a delivery comes from who knows a secret of the agency. p_headers: a JSON object, names in lower case.
-- By the first of these that the sender shows, and by no other then:
--   1. Standard Webhooks: webhook-signature, "v1," and base64, several with spaces between; over
--      "<webhook-id>.<webhook-timestamp>.<body>", keyed with the decoded secret.
--   2. Ultravox: x-ultravox-webhook-signature, hex, several with commas between; over the body and
--      x-ultravox-webhook-timestamp (ISO 8601), keyed with the secret as it is written.
--   3. The secret itself.
-- Signatures are HMAC-SHA256, and good for 5 minutes before and after their time.
-- How long it takes tells nothing: every signature is compared with every secret's, an agency that is unknown
-- is given a secret that nobody has, and what is compared are digests with a fresh random prefix, of which
-- the sender can predict no byte.
create or replace function private.verify_webhook(
  p_agency_id uuid, p_body text, p_headers jsonb, p_path_secret text)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_now       constant timestamptz := clock_timestamp();
  v_nonce     constant text := gen_random_uuid()::text;
  v_nobodys   constant text := 'whsec_' || encode(sha256(convert_to(v_nonce, 'UTF8')), 'base64');
  v_standard  constant text := left(p_headers ->> 'webhook-signature', 4096);
  v_ultravox  constant text := left(p_headers ->> 'x-ultravox-webhook-signature', 4096);
  v_timestamp text;
  v_shown     text[];
  v_secrets   text[];
  v_secret    text;
  v_expected  text;
  v_is_timely boolean := true;
  v_is_known  boolean := false;
begin
  v_secrets := array(
    select s.secret
      from private.webhook_secrets s
     where s.agency_id = p_agency_id and coalesce(s.expires_at, 'infinity') > v_now);
  if cardinality(v_secrets) = 0 then
    v_secrets := array[v_nobodys];
  end if;
  if v_standard is not null then
    v_timestamp := p_headers ->> 'webhook-timestamp';
    v_shown := string_to_array(v_standard, ' ');
    v_is_timely := case when v_timestamp ~ '^[0-9]{1,12}$'
      then abs(extract(epoch from v_now) - v_timestamp::bigint) <= 300 end;
  elsif v_ultravox is not null then
    v_timestamp := p_headers ->> 'x-ultravox-webhook-timestamp';
    v_shown := string_to_array(replace(lower(v_ultravox), ' ', ''), ',');
    v_is_timely := case when private.is_timestamp(v_timestamp)
      then abs(extract(epoch from v_now - v_timestamp::timestamptz)) <= 300 end;
  else
    v_shown := array[p_path_secret];
  end if;

  foreach v_secret in array v_secrets loop
    v_expected := case
      when v_standard is not null then
        'v1,' || encode(private.hmac_sha256(
          decode(substr(v_secret, 7), 'base64'),  -- after whsec_
          convert_to((p_headers ->> 'webhook-id') || '.' || v_timestamp || '.' || p_body, 'UTF8')), 'base64')
      when v_ultravox is not null then
        encode(private.hmac_sha256(convert_to(v_secret, 'UTF8'), convert_to(p_body || v_timestamp, 'UTF8')), 'hex')
      else v_secret
    end;
    select bool_or(sha256(convert_to(v_nonce || s.shown, 'UTF8')) = sha256(convert_to(v_nonce || v_expected, 'UTF8')))
           or v_is_known
      into v_is_known
      from unnest(v_shown) as s (shown);
  end loop;
  return coalesce(v_is_known and v_is_timely, false);
end;
$$;

revoke execute on function private.verify_webhook(uuid, text, jsonb, text) from public;
comment on function private.verify_webhook(uuid, text, jsonb, text) is 'Whether a delivery comes from who knows a secret of the agency.';

-- file: private/find_webhook_call.sql
-- The call that a carrier's event is about, or null: of the agency that the event was delivered for, whatever
-- ids it names. In this order:
--   1. metadata.batch_id and metadata.call_id, which the dialer gave the carrier.
--   2. callId, as confirm_call or an earlier event noted it.
--   3. metadata.batch_id and metadata.contact_id: the contact's latest call.
-- Null too for a call that start_call has not let through.
create or replace function private.find_webhook_call(p_agency_id uuid, p_payload jsonb)
returns public.calls
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_carrier_call_id constant text := p_payload #>> '{call,callId}';
  v_metadata        constant jsonb := p_payload #> '{call,metadata}';
  v_batch_id        uuid;
  v_call_id         bigint;
  v_contact_id      bigint;
  v_call            public.calls;
begin
  -- As numbers or strings.
  v_batch_id := case when v_metadata ->> 'batch_id' ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
    then (v_metadata ->> 'batch_id')::uuid end;
  v_call_id := case when v_metadata ->> 'call_id' ~ '^[0-9]{1,18}$' then (v_metadata ->> 'call_id')::bigint end;
  v_contact_id := case when v_metadata ->> 'contact_id' ~ '^[0-9]{1,18}$' then (v_metadata ->> 'contact_id')::bigint end;

  if v_batch_id is null or v_call_id is null then
    select k.* into v_call
      from public.calls k
     where k.carrier_call_id = v_carrier_call_id and k.agency_id = p_agency_id
     limit 1;
    if found then
      return v_call;
    end if;
    select c.call_id into v_call_id
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = v_batch_id and c.id = v_contact_id;
  end if;
  select k.* into v_call
    from public.calls k
   where k.agency_id = p_agency_id and k.batch_id = v_batch_id and k.id = v_call_id
     and k.started_at is not null;
  return v_call;
end;
$$;

revoke execute on function private.find_webhook_call(uuid, jsonb) from public;
comment on function private.find_webhook_call(uuid, jsonb) is 'The call that a carrier''s event is about.';

-- file: private/calling_time.sql
-- The start or end of calling hours, such as {"start": "09:00", "end": "17:00"}; null hours have none.
-- Raises PT400 (not such hours, or both the same).
create or replace function private.calling_time(p_calling_hours jsonb, p_key text)
returns time
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_time constant text := '^([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?$';
begin
  if p_calling_hours is not null and (
       jsonb_typeof(p_calling_hours) <> 'object'
       or p_calling_hours ->> 'start' is null or p_calling_hours ->> 'start' !~ v_time
       or p_calling_hours ->> 'end' is null or p_calling_hours ->> 'end' !~ v_time
       or p_calling_hours ->> 'start' = p_calling_hours ->> 'end') then
    raise sqlstate 'PT400' using message = 'calling_hours must have a start and another end, such as {"start": "09:00", "end": "17:00"}',
      detail = '{"code": "calling_hours_invalid"}';
  end if;
  return (p_calling_hours ->> p_key)::time;
end;
$$;

revoke execute on function private.calling_time(jsonb, text) from public;
grant  execute on function private.calling_time(jsonb, text) to authenticated, service_role, lastcall_admin;
comment on function private.calling_time(jsonb, text) is 'The start or end of calling hours.';

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

-- file: api/create_batch.sql
create type public.create_batch_result as (
  batch_id         uuid,
  status           public.batch_status,
  total_contacts   integer,
  agent_mapping_id uuid,
  agent_name       text,
  from_number      text,
  duplicates       integer,  -- left out: the number came before in the same request
  do_not_call      integer   -- left out: on the agency's do-not-call list
);

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
-- or none left to call), PT409 (idempotency key reused; external id taken).
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
      -- Of two equal requests at once, the second one waited for the first one's answer.
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

-- file: api/add_contacts.sql
create type public.add_contacts_result as (
  success        boolean,
  batch_id       uuid,
  added          integer,
  duplicates     integer,  -- left out: the batch has the number already
  do_not_call    integer,  -- left out: on the agency's do-not-call list
  total_contacts integer
);

-- Add 1 to 10,000 contacts to a batch, at the end of its dial order (see private.insert_contacts). Under
-- the batch's lock, so that none slips into a batch that is being cancelled, nor behind the claim cursor.
-- Raises PT401, PT403 (of no agency; not an owner or admin), PT404 (no such batch of the agency), PT400
-- (invalid contacts; batch completed or cancelled), PT409 (idempotency key reused).
create or replace function private.add_contacts(
  p_agency_id uuid, p_batch_id uuid, p_contacts jsonb, p_idempotency_key text)
returns public.add_contacts_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.require_admin(p_agency_id);
  v_request  jsonb := jsonb_build_object(
    'procedure', 'add_contacts', 'batch_id', p_batch_id, 'actor', v_actor.id,
    'contacts', encode(sha256(convert_to(p_contacts::text, 'UTF8')), 'hex'));
  v_answer   jsonb;
  v_batch    public.call_batches;
  v_contacts private.inserted_contacts;
  v_result   public.add_contacts_result;
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

  v_contacts := private.insert_contacts(v_batch, p_contacts);
  update public.call_batches b
     set total_contacts = b.total_contacts + v_contacts.added,
         next_claim_at = least(b.next_claim_at, clock_timestamp())
   where b.agency_id = p_agency_id and b.id = p_batch_id and v_contacts.added > 0;
  v_result := row(true, p_batch_id, v_contacts.added, v_contacts.duplicates, v_contacts.do_not_call,
    v_batch.total_contacts + v_contacts.added);
  perform private.record_event(p_agency_id, v_batch, v_actor, 'add_contacts', v_batch.status, v_contacts.added,
    p_idempotency_key => p_idempotency_key, p_request => v_request, p_response => to_jsonb(v_result));
  return v_result;
end;
$$;

revoke execute on function private.add_contacts(uuid, uuid, jsonb, text) from public;
grant  execute on function private.add_contacts(uuid, uuid, jsonb, text) to authenticated, service_role, lastcall_admin;
comment on function private.add_contacts(uuid, uuid, jsonb, text) is 'public.add_contacts, for a batch of a known agency.';

-- The door to private.add_contacts for users, services and consoles.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
create or replace function public.add_contacts(
  batch_id uuid default null, contacts jsonb default null, idempotency_key text default null)
returns public.add_contacts_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.add_contacts(private.find_batch_agency(batch_id), batch_id, contacts, idempotency_key)
$$;

revoke execute on function public.add_contacts(uuid, jsonb, text) from public, anon;
grant  execute on function public.add_contacts(uuid, jsonb, text) to authenticated, service_role, lastcall_admin;
comment on function public.add_contacts(uuid, jsonb, text) is 'Add contacts to a call batch, at the end of its dial order.';

-- file: api/check_import.sql
-- What is wrong with rows of a file (see private.check_rows), nothing being changed: an import that takes all rows or
-- none begins with it. Returns {"invalid": how many, "errors": the first 100, with row, phone_number and error}.
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
comment on function public.check_import(jsonb) is 'What is wrong with rows of a file.';

-- file: api/begin_import.sql
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

  if p_batch.id is null then
    v_batch := private.check_batch(p_agency_id, p_batch, v_actor);
    v_batch.status := 'paused';
    v_batch.paused_at := v_batch.created_at;
    v_batch.error_message := 'The import of its contacts has not finished';
    v_import.held_at := v_batch.paused_at;
  elsif v_batch.status in ('completed', 'cancelled') then
    raise sqlstate 'PT400' using message = format('Batch is already %s', v_batch.status),
      detail = format('{"code": "batch_already_%s"}', v_batch.status);
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
      -- Of two equal requests at once, the second one waited for the first one's answer.
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

-- file: api/import_contacts.sql
-- Import the next rows of a file (see private.check_rows), in the order of the file. Valid ones become contacts (see
-- private.insert_valid_contacts); invalid ones are kept in import_errors, and keep no other from being imported. Rows that are
-- done are passed over: sent twice, they count once. Under the batch's lock, so that none slips into a batch that
-- is being cancelled, nor behind the claim cursor.
-- Returns private.import_progress. Raises PT401, PT403 (of no agency; not an owner or admin), PT404 (no such batch or import
-- of the agency), PT400 (not such rows; batch completed or cancelled).
create or replace function private.import_contacts(
  p_agency_id uuid, p_batch_id uuid, p_import_id uuid, p_rows jsonb)
returns json
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_errors_kept constant integer := 100000;
  v_batch    public.call_batches;
  v_import   public.batch_imports;
  v_numbers  integer[];
  v_phones   text[];
  v_errors   text[];
  v_valid    jsonb;
  v_last_row integer;
  v_contacts private.inserted_contacts := (0, 0, 0);
begin
  perform private.require_admin(p_agency_id);
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_import := private.find_import(p_agency_id, p_batch_id, p_import_id);
  if v_import.finished_at is not null then
    return private.import_progress(v_import);
  end if;
  if v_batch.status in ('completed', 'cancelled') then
    raise sqlstate 'PT400' using message = format('Batch is already %s', v_batch.status),
      detail = format('{"code": "batch_already_%s"}', v_batch.status);
  end if;

  select array_agg(r.row_number) filter (where r.error is not null),
         array_agg(left(r.contact ->> 'phone_number', 50)) filter (where r.error is not null),
         array_agg(r.error) filter (where r.error is not null),
         jsonb_agg(r.contact order by r.row_number) filter (where r.error is null),
         max(r.row_number)
    into v_numbers, v_phones, v_errors, v_valid, v_last_row
    from private.check_rows(p_rows) r
   where r.row_number > v_import.last_row;
  if v_last_row is null then
    return private.import_progress(v_import);
  end if;

  insert into public.import_errors (agency_id, import_id, row_number, phone_number, error)
  select p_agency_id, p_import_id, e.row_number, e.phone_number, e.error
    from unnest(v_numbers, v_phones, v_errors) as e (row_number, phone_number, error)
   order by e.row_number
   limit greatest(v_errors_kept - v_import.invalid, 0);
  if v_valid is not null then
    v_contacts := private.insert_valid_contacts(v_batch, v_valid, v_import.max_attempts);
  end if;
  update public.batch_imports i
     set last_row = v_last_row,
         added = i.added + v_contacts.added,
         duplicates = i.duplicates + v_contacts.duplicates,
         do_not_call = i.do_not_call + v_contacts.do_not_call,
         invalid = i.invalid + coalesce(cardinality(v_numbers), 0)
   where i.agency_id = p_agency_id and i.id = p_import_id
  returning i.* into v_import;
  update public.call_batches b
     set total_contacts = b.total_contacts + v_contacts.added,
         next_claim_at = least(b.next_claim_at, clock_timestamp())
   where b.agency_id = p_agency_id and b.id = p_batch_id and v_contacts.added > 0;
  return private.import_progress(v_import);
end;
$$;

revoke execute on function private.import_contacts(uuid, uuid, uuid, jsonb) from public;
grant  execute on function private.import_contacts(uuid, uuid, uuid, jsonb) to authenticated, service_role, lastcall_admin;
comment on function private.import_contacts(uuid, uuid, uuid, jsonb) is 'public.import_contacts, for a batch of a known agency.';

create or replace function public.import_contacts(
  batch_id uuid default null, import_id uuid default null, rows jsonb default null)
returns json
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.import_contacts(private.find_batch_agency(batch_id), batch_id, import_id, $3)
$$;

revoke execute on function public.import_contacts(uuid, uuid, jsonb) from public, anon;
grant  execute on function public.import_contacts(uuid, uuid, jsonb) to authenticated, service_role, lastcall_admin;
comment on function public.import_contacts(uuid, uuid, jsonb) is 'Import the next rows of a file into a call batch.';

-- file: api/finish_import.sql
-- Finish an import whose rows are all there. The batch that it made is dialed from the next run of process_batches on, or
-- from its scheduled_for on, unless somebody resumed or paused it meanwhile. Left without any contact it stays
-- paused, says so in error_message, and the answer is no success (code no_contacts).
-- Returns the answer to the import; once more: the same. Raises PT401, PT403 (of no agency; not an owner or admin), PT404 (no
-- such batch or import of the agency), PT400 (batch completed or cancelled meanwhile).
-- Contract: uploadCSV, for the keys of batch.
create or replace function private.finish_import(p_agency_id uuid, p_batch_id uuid, p_import_id uuid)
returns jsonb
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.require_admin(p_agency_id);
  v_batch    public.call_batches;
  v_after    public.call_batches;
  v_import   public.batch_imports;
  v_is_empty boolean;
begin
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_import := private.find_import(p_agency_id, p_batch_id, p_import_id);
  if v_import.answer is not null then
    return v_import.answer;
  end if;
  if v_batch.status in ('completed', 'cancelled') then
    raise sqlstate 'PT400' using message = format('Batch is already %s', v_batch.status),
      detail = format('{"code": "batch_already_%s"}', v_batch.status);
  end if;

  v_is_empty := v_import.held_at is not null and v_batch.total_contacts = 0;
  v_after := v_batch;
  if v_import.held_at is not null then
    update public.call_batches b
       set status = case when b.status <> 'paused' or b.paused_at <> v_import.held_at or v_is_empty then b.status
                         when b.scheduled_for is null then 'pending'
                         else 'scheduled' end::public.batch_status,
           paused_at = case when b.paused_at <> v_import.held_at or v_is_empty then b.paused_at end,
           error_message = case when v_is_empty then 'No contact of the imported file can be called' end
     where b.agency_id = p_agency_id and b.id = p_batch_id
    returning b.* into v_after;
  end if;

  v_import.answer := jsonb_build_object(
    'success', not v_is_empty,
    'batch_id', v_after.id,
    'import_id', v_import.id,
    'created', v_import.held_at is not null,
    'status', v_after.status,
    'total_contacts', v_after.total_contacts,
    'added', v_import.added,
    'duplicates', v_import.duplicates,
    'do_not_call', v_import.do_not_call,
    'invalid', v_import.invalid,
    'error_count', v_import.invalid,
    'errors', (
      select coalesce(jsonb_agg(jsonb_build_object('row', e.row_number, 'phone_number', e.phone_number, 'error', e.error)
                                order by e.row_number), '[]')
        from (select r.*
                from public.import_errors r
               where r.agency_id = p_agency_id and r.import_id = p_import_id
               order by r.row_number
               limit 100) e),
    'batch', jsonb_build_object(
      '_id', coalesce(v_after.external_id, v_after.id::text),
      'batchName', v_after.name,
      'callingNumbers', coalesce(v_after.calling_numbers, array_remove(array[v_after.from_number], null)),
      'totalCalls', v_after.total_contacts))
    || case when v_is_empty then jsonb_build_object('error', v_after.error_message, 'code', 'no_contacts') else '{}' end;
  update public.batch_imports i
     set finished_at = clock_timestamp(),
         answer = v_import.answer
   where i.agency_id = p_agency_id and i.id = p_import_id;
  perform private.record_event(p_agency_id, v_batch, v_actor, 'finish_import', v_after.status, v_import.added);
  return v_import.answer;
end;
$$;

revoke execute on function private.finish_import(uuid, uuid, uuid) from public;
grant  execute on function private.finish_import(uuid, uuid, uuid) to authenticated, service_role, lastcall_admin;
comment on function private.finish_import(uuid, uuid, uuid) is 'public.finish_import, for a batch of a known agency.';

create or replace function public.finish_import(batch_id uuid default null, import_id uuid default null)
returns jsonb
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.finish_import(private.find_batch_agency(batch_id), batch_id, import_id)
$$;

revoke execute on function public.finish_import(uuid, uuid) from public, anon;
grant  execute on function public.finish_import(uuid, uuid) to authenticated, service_role, lastcall_admin;
comment on function public.finish_import(uuid, uuid) is 'Finish an import whose rows are all there.';

-- file: api/list_import_errors.sql
-- The invalid rows of an import in the order of the file, from after p_after_row on, at most 10,000.
-- Returns {"errors": [...]}, objects with row, phone_number and error.
-- Raises PT401, PT403 (of no agency), PT404 (no such import of the agency), PT400 (no id).
create or replace function private.list_import_errors(p_import_id uuid, p_after_row integer)
returns json
language plpgsql stable
security definer  -- looks, for a service or a console, at every agency
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_actor     private.actor := private.current_actor();
  v_agency_id uuid;
begin
  if p_import_id is null then
    raise sqlstate 'PT400' using message = 'import_id is required',
      detail = '{"code": "import_id_required"}';
  end if;
  if v_actor.kind = 'user' and v_actor.agency_id is null then
    raise sqlstate 'PT403' using message = 'User is not associated with an agency',
      detail = '{"code": "no_agency"}';
  end if;
  select i.agency_id into v_agency_id
    from public.batch_imports i
   where i.id = p_import_id and (v_actor.agency_id is null or i.agency_id = v_actor.agency_id);
  if not found then
    raise sqlstate 'PT404' using message = 'Import not found',
      detail = '{"code": "import_not_found"}';
  end if;
  return (
    select json_build_object('errors', coalesce(
             json_agg(json_build_object('row', e.row_number, 'phone_number', e.phone_number, 'error', e.error)
                      order by e.row_number), '[]'))
      from (select r.*
              from public.import_errors r
             where r.agency_id = v_agency_id and r.import_id = p_import_id and r.row_number > p_after_row
             order by r.row_number
             limit 10000) e);
end;
$$;

revoke execute on function private.list_import_errors(uuid, integer) from public;
grant  execute on function private.list_import_errors(uuid, integer) to authenticated, service_role, lastcall_admin;
comment on function private.list_import_errors(uuid, integer) is 'public.list_import_errors.';

create or replace function public.list_import_errors(import_id uuid default null, after_row integer default 0)
returns json
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.list_import_errors(import_id, after_row)
$$;

revoke execute on function public.list_import_errors(uuid, integer) from public, anon;
grant  execute on function public.list_import_errors(uuid, integer) to authenticated, service_role, lastcall_admin;
comment on function public.list_import_errors(uuid, integer) is 'The invalid rows of an imported file.';

-- file: api/start_batch.sql
create type public.start_batch_result as (
  batch_id           text,                 -- as it was given
  status             public.batch_status,
  contacts_added     integer,              -- with call_data
  duplicates         integer,
  do_not_call        integer,
  contacts_replaced  integer               -- with call_data: skipped instead
);

-- Start a batch now: one that waits for its time, or that is paused or stopped. Starting one that is being
-- dialed is a success. With p_call_data (a JSON array of 1 to 10,000 objects with phoneNumber; their other keys are told to the
-- agent), these are called instead of the stored contacts that were not called yet, which are skipped; with
-- p_calling_numbers, from these numbers of the agency.
-- The batch and user come from private.find_user_batch and are checked again here.
-- Raises PT401, PT403 (of no agency; neither the user nor an owner or admin), PT404 (no such batch of the user),
-- PT400 (completed, cancelled or failed; invalid contacts; not an active number), PT409 (idempotency key reused).
-- Contract: start-calling, from stopped too.
create or replace function private.start_batch(
  p_agency_id uuid, p_batch_id uuid, p_user_id uuid, p_given_id text, p_call_data jsonb, p_calling_numbers text[],
  p_idempotency_key text, p_reason text)
returns public.start_batch_result
language plpgsql volatile
security definer  -- callers hold no table grants; this is their only door
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actor    private.actor := private.require_actor(p_agency_id);
  v_batch    public.call_batches;
  v_request  jsonb := jsonb_build_object(
    'procedure', 'start_batch', 'given_id', p_given_id, 'batch_id', p_batch_id, 'user_id', p_user_id,
    'call_data', encode(sha256(convert_to(p_call_data::text, 'UTF8')), 'hex'), 'calling_numbers', p_calling_numbers,
    'reason', p_reason, 'actor', v_actor.id);
  v_answer   jsonb;
  v_now      timestamptz;
  v_contacts private.inserted_contacts := (0, 0, 0);
  v_replaced integer := 0;
  v_result   public.start_batch_result;
begin
  if not private.is_agency_admin(v_actor) and p_user_id is distinct from v_actor.id then
    raise sqlstate 'PT403' using message = 'Only the user, or an owner or admin of the agency, may do this',
      detail = '{"code": "role_not_allowed"}';
  end if;

  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  if p_user_id is not null and v_batch.user_id is distinct from p_user_id then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  end if;
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;
  if v_batch.status in ('completed', 'cancelled', 'failed') then
    raise sqlstate 'PT400' using message = format('Batch is already %s', v_batch.status),
      detail = format('{"code": "batch_already_%s"}', v_batch.status);
  end if;
  perform private.check_numbers(p_agency_id, p_calling_numbers);

  if p_call_data is not null then
    v_replaced := private.skip_remaining(p_agency_id, p_batch_id, 'Replaced');
    v_contacts := private.insert_contacts(v_batch, case when jsonb_typeof(p_call_data) = 'array' then (
      select jsonb_agg(case when jsonb_typeof(d.call) = 'object' then jsonb_build_object(
                         'phone_number', d.call -> 'phoneNumber', 'custom_data', d.call - 'phoneNumber')
                       else d.call end order by d.place)
        from jsonb_array_elements(p_call_data) with ordinality as d (call, place)) end);
  end if;
  update public.call_batches b
     set status = 'processing',
         queued = case when p_call_data is null then b.queued else 0 end,
         skipped = b.skipped + v_replaced,
         total_contacts = b.total_contacts + v_contacts.added,
         calling_numbers = coalesce(p_calling_numbers, b.calling_numbers),
         mode = 'immediate',
         scheduled_for = null,
         started_at = coalesce(b.started_at, v_now),
         paused_at = null,
         stopped_at = null,
         skip_remaining = false,
         next_claim_at = case when b.status = 'processing' then least(b.next_claim_at, v_now) else v_now end
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  v_result := row(p_given_id, 'processing'::public.batch_status,
    v_contacts.added, v_contacts.duplicates, v_contacts.do_not_call, v_replaced);
  perform private.record_event(p_agency_id, v_batch, v_actor, 'start', 'processing', v_contacts.added + v_replaced,
    p_on_behalf_of => p_user_id, p_reason => p_reason, p_idempotency_key => p_idempotency_key,
    p_request => v_request, p_response => to_jsonb(v_result));
  return v_result;
end;
$$;

revoke execute on function private.start_batch(uuid, uuid, uuid, text, jsonb, text[], text, text) from public;
grant  execute on function private.start_batch(uuid, uuid, uuid, text, jsonb, text[], text, text) to authenticated, service_role, lastcall_admin;
comment on function private.start_batch(uuid, uuid, uuid, text, jsonb, text[], text, text) is 'public.start_batch, for a batch and user of a known agency.';

-- The door to private.start_batch for users, services and consoles; these two may leave the user out.
-- batch_id, user_id: UUIDs or external ids. call_data: called instead of what is stored.
-- calling_numbers: E.164, active numbers of the agency, called from in turn.
-- idempotency_key: a repeat with the same key and arguments gets the first answer again.
-- reason: kept in the audit trail.
create or replace function public.start_batch(
  batch_id text default null, user_id text default null, call_data jsonb default null, calling_numbers text[] default null,
  idempotency_key text default null, reason text default null)
returns public.start_batch_result
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.start_batch(
           t.agency_id, t.batch_id, t.user_id, $1, call_data, calling_numbers, idempotency_key, reason)
    from private.find_user_batch($1, $2) t
$$;

revoke execute on function public.start_batch(text, text, jsonb, text[], text, text) from public, anon;
grant  execute on function public.start_batch(text, text, jsonb, text[], text, text) to authenticated, service_role, lastcall_admin;
comment on function public.start_batch(text, text, jsonb, text[], text, text) is
  'Start a call batch now, from waiting, paused or stopped.';

-- file: api/retry_batch.sql
create type public.retry_batch_result as (
  batch_id       uuid,
  status         public.batch_status,
  total_contacts integer,
  retry_of       uuid,
  do_not_call    integer  -- left out: on the agency's do-not-call list since
);

-- Dial the failed contacts of a batch again: a new batch of them, with the settings of the old one, which
-- stays as it is. What an earlier retry of the same batch took is not taken twice. p_outcomes: only those whose last call had one of these; null: all. p_scheduled_for: null is at once.
-- Raises PT401 (not signed in), PT403 (of no agency; not an owner or admin), PT404 (no such batch of the agency),
-- PT400 (no contact failed so, or all were taken), PT409 (idempotency key reused).
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
  -- Held, so that of two retries at once the second one sees the first one's.
  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_answer := private.find_answer(p_agency_id, p_idempotency_key, v_request);
  if v_answer is not null then
    return jsonb_populate_record(v_result, v_answer);
  end if;

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
as $$
  select private.retry_batch(
    private.find_batch_agency(batch_id), batch_id, outcomes, scheduled_for, idempotency_key, reason)
$$;

revoke execute on function public.retry_batch(uuid, text[], timestamptz, text, text) from public, anon;
grant  execute on function public.retry_batch(uuid, text[], timestamptz, text, text) to authenticated, service_role, lastcall_admin;
comment on function public.retry_batch(uuid, text[], timestamptz, text, text) is
  'Dial the failed contacts of a call batch again, as a new batch.';

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
-- private.find_user_batch and are checked again here.
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
    from private.find_user_batch($1, $2) t
$$;

revoke execute on function public.stop_batch(text, text, boolean, text, text) from public, anon;
grant  execute on function public.stop_batch(text, text, boolean, text, text) to authenticated, service_role, lastcall_admin;
grant  execute on function private.find_user_batch(text, text) to authenticated, service_role, lastcall_admin;
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

-- file: api/rotate_webhook_secret.sql
create type public.rotate_webhook_secret_result as (
  success        boolean,
  agency_id      uuid,
  webhook_secret text
);

-- Give an agency a new webhook secret, the first one too. It is shown this once. Those before it stay valid for
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

  -- Of two at once, the second one sees the first one's secret.
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
as $$
  select private.rotate_webhook_secret(agency_id, grace)
$$;

revoke execute on function public.rotate_webhook_secret(uuid, interval) from public, anon;
grant  execute on function public.rotate_webhook_secret(uuid, interval) to authenticated, service_role, lastcall_admin;
comment on function public.rotate_webhook_secret(uuid, interval) is
  'Give an agency a new webhook secret, shown this once; the former ones stay valid for a while.';

-- file: api/ingest_webhook.sql
create type public.ingest_webhook_result as (success boolean, event_id text);

-- Store what a carrier reports, once, and answer at once: process_webhook_queue applies it.
-- p_body: to the byte as it came, for the signature is over it. p_headers: a JSON object, names in lower case.
-- An event that is told again gets the same answer again. One of a type that is not known is stored as ignored:
-- carriers give up endpoints that refuse.
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
  v_event_id := coalesce(p_headers ->> 'webhook-id', v_carrier_call_id || ' ' || v_event_type,
                         encode(sha256(convert_to(p_body, 'UTF8')), 'hex'));
  if coalesce(length(v_event_type) not between 1 and 50, true)
     or length(v_event_id) not between 1 and 400
     or v_is_known and (coalesce(length(v_carrier_call_id) not between 1 and 255, true)
                        or jsonb_typeof(v_payload #> '{call,created}') is distinct from 'string') then
    raise sqlstate 'PT400' using
      message = 'Body must be a webhook event: event, and call with callId and created',
      detail = '{"code": "webhook_invalid"}';
  end if;

  insert into public.webhook_queue (
    agency_id, event_id, event_type, payload, status, error_message, processed_at, next_retry_at)
  values (
    p_agency_id, v_event_id, v_event_type, v_payload,
    case when v_is_known then 'pending' else 'ignored' end::public.webhook_status,
    case when not v_is_known then 'Not an event to apply' end,
    case when not v_is_known then clock_timestamp() end,
    case when v_is_known then clock_timestamp() end)
  on conflict (agency_id, event_id) do nothing;
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
as $$
  select private.ingest_webhook(agency_id, body, headers, path_secret)
$$;

revoke execute on function public.ingest_webhook(uuid, text, jsonb, text) from public, authenticated;
grant  execute on function public.ingest_webhook(uuid, text, jsonb, text) to anon, service_role, lastcall_admin;
comment on function public.ingest_webhook(uuid, text, jsonb, text) is 'Store what a carrier reports, if it is signed.';

-- file: api/list_dead_webhooks.sql
-- Events that failed for the last time, newest first: of an agency, or of all.
-- p_max_events: 1 to 1000. Raises PT401, PT403 (of no agency; not an owner or admin), PT404 (no such agency, or not the
-- user's), PT400 (a number out of range).
create or replace function private.list_dead_webhooks(p_agency_id uuid, p_max_events integer)
returns setof public.webhook_queue
language plpgsql stable
security definer  -- for a service or a console, events of every agency
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_agency_id uuid := private.find_admin_agency(p_agency_id);
begin
  if p_max_events is null or p_max_events not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'max_events must be 1 to 1000',
      detail = '{"code": "max_events_out_of_range"}';
  end if;
  return query
    select q.*
      from public.webhook_queue q
     where q.status = 'dead' and (v_agency_id is null or q.agency_id = v_agency_id)
     order by q.id desc
     limit p_max_events;
end;
$$;

revoke execute on function private.list_dead_webhooks(uuid, integer) from public;
grant  execute on function private.list_dead_webhooks(uuid, integer) to authenticated, service_role, lastcall_admin;
comment on function private.list_dead_webhooks(uuid, integer) is 'public.list_dead_webhooks.';

-- agency_id: a user may leave it out.
create or replace function public.list_dead_webhooks(agency_id uuid default null, max_events integer default 100)
returns setof public.webhook_queue
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select * from private.list_dead_webhooks(agency_id, max_events)
$$;

revoke execute on function public.list_dead_webhooks(uuid, integer) from public, anon;
grant  execute on function public.list_dead_webhooks(uuid, integer) to authenticated, service_role, lastcall_admin;
comment on function public.list_dead_webhooks(uuid, integer) is 'Webhook events that failed for the last time.';

-- file: api/replay_webhooks.sql
-- Have dead events applied again, as if they had just come in: of an agency, and of p_ids where given.
-- Those that are not dead stay as they are, so that it can be repeated. Returns how many were dead.
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
as $$
  select private.replay_webhooks(agency_id, ids)
$$;

revoke execute on function public.replay_webhooks(uuid, bigint[]) from public, anon;
grant  execute on function public.replay_webhooks(uuid, bigint[]) to authenticated, service_role, lastcall_admin;
comment on function public.replay_webhooks(uuid, bigint[]) is 'Have dead webhook events applied again.';

-- file: dialer/claim_contacts.sql
create type public.claimed_contact as (
  agency_id        uuid,
  batch_id         uuid,
  call_id          bigint,
  contact_id       bigint,
  phone_number     text,
  from_number      text,
  agent_mapping_id uuid,
  attempt          smallint,
  custom_data      jsonb,     -- with first_name, last_name, email, company and title, where known
  lease_expires_at timestamptz,
  ultravox_agent_id    text,  -- of the batch's agent, as the next two; null: the batch has none
  max_duration_seconds integer,
  recording_enabled    boolean
);

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
-- Plans that are right for any batch. What statistics suggest is not, when they are of an empty
-- table or do not know this batch: then each call would read all of it.
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_batch       public.call_batches;
  v_agent       public.agent_mappings;
  v_now         timestamptz;
  v_expires_at  timestamptz;
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
        insert into public.calls (agency_id, batch_id, id, contact_id, attempt, created_at, lease_expires_at)
        select p_agency_id, p_batch_id, n.call_id, n.id, n.attempt, v_now, v_expires_at
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
             v_agent.ultravox_agent_id, v_agent.max_duration_seconds, v_agent.recording_enabled
        from numbered n
       order by n.call_id;
  end loop;

  update public.call_batches b
     set queued = b.queued + cardinality(v_due) + cardinality(v_in_turn),
         claim_cursor = coalesce(
           case when cardinality(v_in_turn) < v_turns then (
             -- None is left in turn: do not look through those that are due or done again.
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
    -- disk with the batch locked. Not in a transaction that has changed something before.
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
create type private.leased_call as (call_id bigint, contact_id bigint, phone_number text, timezone text);

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
    return p_now + interval '1 day';
  end if;
  select k.started_at into v_started_at
    from public.campaign_contacts c
   -- Fenced: by its index alone, not by the agency's key.
   cross join lateral (
     select k.agency_id, k.started_at from public.calls k where k.contact_id = c.id offset 0) k
   where c.agency_id = p_agency_id and c.phone_number = p_phone_number
     and k.agency_id = p_agency_id and k.started_at > p_now - interval '1 day'
   order by k.started_at desc
   offset p_others
   limit 1;
  return coalesce(v_started_at + interval '1 day', p_now);
end;
$$;

revoke execute on function private.number_free_at(uuid, text, integer, timestamptz) from public;
comment on function private.number_free_at(uuid, text, integer, timestamptz) is 'When a number may be called again.';

-- Those of a locked batch's leased calls that must not be placed now, and when they may be: outside the calling
-- hours of where the contact is, or a number that has had its most calls in 24 hours. due_at null: never, the
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

-- The last gate before the carrier: of these calls, let those through that may be placed now,
-- and count the attempt. A call passes while its batch is processing, its lease runs, the number is not on
-- the do-not-call list, the calling hours where the contact is have not ended, and the number has
-- calls left. The contact of a call that is withheld is skipped (do not call) or waits until it may be called.
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
  v_leased      private.leased_call[];
  v_withheld    record;
  v_skipped     integer := 0;
  v_delayed     integer := 0;
  v_due_at      timestamptz;
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

  v_leased := array(
    select (k.id, k.contact_id, c.phone_number, c.timezone)::private.leased_call
      from (select distinct u.id from unnest(p_call_ids) as u (id)) u
     -- Each by its key: a join can be planned to read the whole batch.
     cross join lateral (
       select k.id, k.contact_id
         from public.calls k
        where k.agency_id = p_agency_id and k.batch_id = p_batch_id and k.id = u.id
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
           started_at = v_now
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id
       -- The calls of one claim are neighbours in their batch.
       and c.id between v_first and v_last and c.id = any (p_call_ids)
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
         next_claim_at = case when v_delayed > 0 then least(b.next_claim_at, v_due_at) else b.next_claim_at end
   where b.agency_id = p_agency_id and b.id = p_batch_id
     and (v_call_ids is not null or v_skipped + v_delayed > 0);
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

-- file: dialer/confirm_call.sql
-- Note that the carrier has these calls of one batch: its id of each, and that an unknown one is in progress.
-- p_confirmed: a JSON array of objects with call_id and carrier_call_id (text).
-- Returns the ids of the calls that were not over yet.
-- Raises PT401, PT403 (not a service or console), PT404, PT400 (not such an array).
create or replace function private.confirm_call(p_agency_id uuid, p_batch_id uuid, p_confirmed jsonb)
returns setof bigint
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_confirmed record;
begin
  perform private.require_service();
  if jsonb_typeof(p_confirmed) is distinct from 'array' or exists (
       select from jsonb_array_elements(p_confirmed) as g (confirmed)
        where jsonb_typeof(g.confirmed) <> 'object'
           or jsonb_typeof(g.confirmed -> 'call_id') is distinct from 'number'
           or g.confirmed ->> 'call_id' !~ '^[0-9]{1,18}$'
           or jsonb_typeof(g.confirmed -> 'carrier_call_id') is distinct from 'string') then
    raise sqlstate 'PT400' using message = 'confirmed must be an array of objects with a call_id and a carrier_call_id',
      detail = '{"code": "confirmed_invalid"}';
  end if;

  perform private.lock_batch(p_agency_id, p_batch_id);
  for v_confirmed in
    select r.call_id, r.carrier_call_id from jsonb_to_recordset(p_confirmed) as r (call_id bigint, carrier_call_id text)
  loop
    return query
      update public.calls c
         set status = 'in_progress',
             carrier_call_id = coalesce(c.carrier_call_id, v_confirmed.carrier_call_id)
       where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_confirmed.call_id
         and c.status::text in ('in_progress', 'unknown')  -- as text: as in finish_call
      returning c.id;
  end loop;
end;
$$;

revoke execute on function private.confirm_call(uuid, uuid, jsonb) from public;
grant  execute on function private.confirm_call(uuid, uuid, jsonb) to service_role, lastcall_admin;
comment on function private.confirm_call(uuid, uuid, jsonb) is 'public.confirm_call, for a batch of a known agency.';

-- The door to private.confirm_call. confirmed: all of batch_id.
create or replace function public.confirm_call(batch_id uuid, confirmed jsonb)
returns setof bigint
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.confirm_call(private.find_batch_agency(batch_id), batch_id, confirmed)
$$;

revoke execute on function public.confirm_call(uuid, jsonb) from public, anon, authenticated;
grant  execute on function public.confirm_call(uuid, jsonb) to service_role, lastcall_admin;
comment on function public.confirm_call(uuid, jsonb) is 'Note that the carrier has these calls.';

-- file: dialer/finish_call.sql
-- Record the results of calls of one batch, in a group: one change of the batch's counters.
-- p_results: a JSON array of objects with call_id, status (completed, failed or unknown) and,
-- where known, outcome, duration_seconds, carrier_call_id, notes, counted. A failed call with attempts left
-- puts its contact back, due after the batch's retry delay, unless its outcome is not one to try
-- again after, or the batch is over (cancelled, or ended early): then the contact is failed.
-- A failed call with counted false was no attempt, since the carrier took no calls: the contact keeps the
-- attempts it had and, unless the batch is over, goes back whatever the outcome.
-- A call is unknown when nobody could tell whether the carrier got it. It stays in progress until the carrier
-- tells its end or that there was no such call; it is never placed again before.
-- A result for a call that is not in progress (told twice, never started) changes nothing.
-- Returns the ids of the calls that it changed.
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
           or r.result ->> 'call_id' !~ '^[0-9]{1,18}$'
           or jsonb_typeof(r.result -> 'status') is distinct from 'string'
           or r.result ->> 'status' not in ('completed', 'failed', 'unknown')
           or jsonb_typeof(r.result -> 'duration_seconds') not in ('number', 'null')
           or jsonb_typeof(r.result -> 'counted') not in ('boolean', 'null')) then
    raise sqlstate 'PT400' using message = 'results must be an array of objects with a call_id, a status completed, failed or unknown, numbers as durations, and counted true or false',
      detail = '{"code": "results_invalid"}';
  end if;

  v_batch := private.lock_batch(p_agency_id, p_batch_id);
  v_now := clock_timestamp();
  v_retry_at := v_now + make_interval(secs => v_batch.retry_delay_seconds);
  for v_result in
    select r.call_id, r.status, r.outcome, r.carrier_call_id, r.notes,
           r.status = 'failed' and not coalesce(r.counted, true) as is_no_attempt,
           case when r.duration_seconds is not null
             then least(greatest(round(r.duration_seconds), 0), 2147483647)::integer end as duration_seconds
      from jsonb_to_recordset(p_results) as r (
        call_id bigint, status public.call_status, outcome text, duration_seconds numeric,
        carrier_call_id text, notes text, counted boolean)
  loop
    update public.calls c
       set status = v_result.status,
           ended_at = case when v_result.status <> 'unknown' then v_now end,
           outcome = v_result.outcome,
           duration_seconds = v_result.duration_seconds,
           carrier_call_id = coalesce(v_result.carrier_call_id, c.carrier_call_id)
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_result.call_id
       -- As text: not by the index of open calls, which would read all those of the batch.
       and c.status::text in ('in_progress', 'unknown') and c.status <> v_result.status
    returning c.* into v_call;
    continue when not found;
    return next v_result.call_id;
    continue when v_result.status = 'unknown';

    select case when v_result.status = 'completed' then 'completed'
                when v_batch.status <> 'cancelled' and not v_batch.skip_remaining
                 and (v_result.is_no_attempt
                      or c.attempts < c.max_attempts
                     and (v_batch.retry_outcomes is null or v_result.outcome = any (v_batch.retry_outcomes)))
                  then 'scheduled'
                else 'failed' end::public.contact_status
      into v_contact
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_call.contact_id;
    update public.campaign_contacts c
       set status = v_contact,
           attempts = c.attempts - v_result.is_no_attempt::integer,
           due_at = case when v_contact = 'scheduled' then v_retry_at end,
           completed_at = case when v_contact <> 'scheduled' then v_now end,
           outcome = v_result.outcome,
           outcome_notes = v_result.notes,
           duration_seconds = v_result.duration_seconds
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = v_call.contact_id;
    v_completed := v_completed + (v_contact = 'completed')::integer;
    v_failed := v_failed + (v_contact = 'failed')::integer;
    v_retried := v_retried + (v_contact = 'scheduled')::integer;
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

-- file: private/read_contacts.sql
create type private.contacts_page as (contacts json, next_cursor text);

-- The most contacts of a batch that one request looks through; more than the 10,000 of calls-batch-create.
create or replace function private.max_contacts_read()
returns integer
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select 20000
$$;

revoke execute on function private.max_contacts_read() from public;
comment on function private.max_contacts_read() is 'The most contacts of a batch that one request looks through.';

-- The contacts of a batch after the cursor p_after (null: from the first one), in dial order, without the
-- first p_offset, at most p_limit; p_status: only those. next_cursor: where to go on; null at the end.
-- Looks through at most private.max_contacts_read() contacts, and for the others leads on by
-- next_cursor: with p_status a page may be short, or empty, before the end.
-- Raises PT400 (not a cursor).
create or replace function private.read_contacts(
  p_agency_id uuid, p_batch_id uuid, p_status public.contact_status, p_after text, p_limit integer, p_offset integer)
returns private.contacts_page
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_max   constant integer := private.max_contacts_read();
  v_after bigint;
  v_found integer;
  v_next  bigint;
  v_page  private.contacts_page;
begin
  if p_after !~ '^[0-9]{1,18}$' then
    raise sqlstate 'PT400' using message = 'Not a cursor that was given out',
      detail = '{"code": "cursor_invalid"}';
  end if;
  v_after := coalesce(p_after::bigint, 0);

  select count(*)::integer, max(f.id) filter (where f.place = p_limit),
         coalesce(json_agg(
           json_build_object(
             'id', f.id::text,
             'phone_number', f.phone_number,
             'first_name', d.first_name,
             'last_name', d.last_name,
             'email', d.email,
             'company', d.company,
             'title', d.title,
             'status', f.status,
             'call_id', f.call_id::text,
             'attempts', f.attempts,
             'max_attempts', f.max_attempts,
             'outcome', f.outcome,
             'duration_seconds', f.duration_seconds,
             'outcome_notes', f.outcome_notes,
             'last_attempt_at', private.iso_timestamp(f.last_attempt_at),
             'completed_at', private.iso_timestamp(f.completed_at),
             'custom_data', coalesce(d.custom_data, '{}'),
             'do_not_call', coalesce((select true from public.do_not_call n
                                       where n.agency_id = p_agency_id and n.phone_number = f.phone_number
                                       limit 1), false),
             'timezone', f.timezone,
             'created_at', private.iso_timestamp(f.created_at))
           order by f.place)
           filter (where f.place <= p_limit), '[]')
    into v_found, v_next, v_page.contacts
    from (select c.*, row_number() over (order by c.id) as place
            from (select c.*
                    from (select c.*
                            from public.campaign_contacts c
                           where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id > v_after
                           order by c.agency_id, c.batch_id, c.id
                           limit v_max) c
                   where p_status is null or c.status = p_status
                   order by c.id
                  offset p_offset
                   limit p_limit + 1) c) f
    -- With a limit: each by its key, and never by reading the whole batch.
    left join lateral (
      select d.*
        from public.contact_data d
       where d.agency_id = p_agency_id and d.batch_id = p_batch_id and d.contact_id = f.id
       limit 1) d on true;

  if v_found <= p_limit then
    -- Not more than were asked for: the end, unless it stopped looking before it.
    select c.id into v_next
      from public.campaign_contacts c
     where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id > v_after
     order by c.agency_id, c.batch_id, c.id
    offset v_max - 1
     limit 1;
  end if;
  v_page.next_cursor := v_next::text;
  return v_page;
end;
$$;

revoke execute on function private.read_contacts(uuid, uuid, public.contact_status, text, integer, integer) from public;
comment on function private.read_contacts(uuid, uuid, public.contact_status, text, integer, integer) is
  'A page of a batch''s contacts.';

-- file: private/waiting_for.sql
create type private.waiting as (waiting_for text, waiting_until timestamptz);

-- Why no call of a batch may start at p_now, and the earliest time at which one may, where that is known.
-- Both null: it dials, or is over. Of several reasons the first:
--   contacts          none were added yet
--   scheduled_for     its time is still to come
--   process           the next run of process_batches, which starts it, or completes it
--   resume            it is paused or stopped
--   results           none is left to claim; those queued and in progress may come back
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
    return ('process', null)::private.waiting;
  elsif p_batch.next_claim_at is null
     or p_batch.queued + p_batch.in_progress + p_batch.completed + p_batch.failed + p_batch.skipped
        >= p_batch.total_contacts then
    return ('results', null)::private.waiting;
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
  if v_free_at > p_now then
    return ('calls_per_minute', v_free_at)::private.waiting;
  elsif p_batch.next_claim_at > p_now then
    return ('retry', p_batch.next_claim_at)::private.waiting;
  end if;
  return (null, null)::private.waiting;
end;
$$;

revoke execute on function private.waiting_for(public.call_batches, timestamptz) from public;
comment on function private.waiting_for(public.call_batches, timestamptz) is 'Why no call of a batch may start now.';

-- file: private/describe_batch.sql
-- A batch as calls-batch-list and calls-batch-get show it: the contract's keys, then our own. From the
-- batch's row and its counters, never by counting contacts.
create or replace function private.describe_batch(p_batch public.call_batches, p_now timestamptz)
returns json
language sql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off  -- as in claim_batch
as $$
  select json_build_object(
           'id', s.id,
           'agency_id', s.agency_id,
           'campaign_id', s.campaign_id,
           'campaign_name', s.campaign_name,
           'agent_mapping_id', s.agent_mapping_id,
           'agent_name', s.agent_name,
           'from_number', s.from_number,
           'status', s.status,
           'total_contacts', s.total_contacts,
           'queued', s.queued,
           'in_progress', s.in_progress,
           'completed', s.completed,
           'failed', s.failed,
           'skipped', s.skipped,
           'progress_percentage', s.progress_percentage,
           'remaining_count', s.remaining_count,
           'calls_per_minute', s.calls_per_minute,
           'max_concurrent', s.max_concurrent,
           'scheduled_for', private.iso_timestamp(s.scheduled_for),
           'created_at', private.iso_timestamp(s.created_at),
           'started_at', private.iso_timestamp(s.started_at),
           'external_id', s.external_id,
           'name', s.name,
           'user_id', s.user_id,
           'mode', p_batch.mode,
           'retry_of', s.retry_of,
           'waiting_for', w.waiting_for,
           'waiting_until', private.iso_timestamp(w.waiting_until),
           'paused_at', private.iso_timestamp(s.paused_at),
           'stopped_at', private.iso_timestamp(s.stopped_at),
           'completed_at', private.iso_timestamp(s.completed_at),
           'error_message', s.error_message,
           'calling_numbers', p_batch.calling_numbers,
           'timezone', p_batch.timezone,
           'calling_hours', case when p_batch.calling_start is not null then json_build_object(
             'start', to_char(p_batch.calling_start, 'HH24:MI:SS'), 'end', to_char(p_batch.calling_end, 'HH24:MI:SS')) end,
           'allowed_days', p_batch.allowed_days,
           'max_calls_per_number', p_batch.max_calls_per_number,
           'retry_delay_seconds', p_batch.retry_delay_seconds,
           'retry_outcomes', p_batch.retry_outcomes)
    from public.v_call_batch_summary s
   cross join private.waiting_for(p_batch, p_now) w
   where s.agency_id = p_batch.agency_id and s.id = p_batch.id
$$;

revoke execute on function private.describe_batch(public.call_batches, timestamptz) from public;
comment on function private.describe_batch(public.call_batches, timestamptz) is 'A batch as the functions show it.';

-- file: api/list_batches.sql
-- The agency's batches, newest first, each as private.describe_batch shows it. A service or a console sees every
-- agency's, or those of p_agency_id.
-- p_status, p_campaign_id: only these. p_page_size: 1 to 100. p_offset: how many to pass over.
-- p_after: the next_cursor of the page before; unlike an offset it holds its place while batches are created.
-- Returns {"batches": [...], "pagination": {"total", "limit", "offset", "has_more", "next_cursor"}}; total
-- counts batches before the cursor too.
-- Raises PT401, PT400 (a number out of range; not a cursor), PT403 (of no agency).
-- Contract: calls-batch-list.
create or replace function private.list_batches(
  p_agency_id uuid, p_status public.batch_status, p_campaign_id uuid, p_page_size integer, p_offset integer, p_after text)
returns json
language plpgsql stable
security definer  -- for a service or a console, looks at every agency
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan  -- by the agency's index for a user, without it for the others
as $$
declare
  v_uuid   constant text := '[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}';
  v_actor  private.actor := private.current_actor();
  v_now    timestamptz := clock_timestamp();
  v_after  text[] := regexp_match(p_after, format('^(-?[0-9]{1,17})\.(%s)\.(%s)$', v_uuid, v_uuid));
  v_shown  json;
  v_total  integer;
  v_next   text;
begin
  if p_page_size is null or p_page_size not between 1 and 100 or p_offset is null or p_offset < 0 then
    raise sqlstate 'PT400' using message = 'limit must be 1 to 100 and offset at least 0',
      detail = '{"code": "page_out_of_range"}';
  end if;
  if p_after is not null and v_after is null then
    raise sqlstate 'PT400' using message = 'Not a cursor that was given out',
      detail = '{"code": "cursor_invalid"}';
  end if;
  if v_actor.kind = 'user' and v_actor.agency_id is null then
    raise sqlstate 'PT403' using message = 'User is not associated with an agency',
      detail = '{"code": "no_agency"}';
  end if;

  with found as (
    select b.agency_id, b.id, b.created_at
      from public.call_batches b
     where (v_actor.agency_id is null or b.agency_id = v_actor.agency_id)
       and (p_agency_id is null or b.agency_id = p_agency_id)
       and (p_status is null or b.status = p_status)
       and (p_campaign_id is null or b.campaign_id = p_campaign_id)),
  page as (
    select f.agency_id, f.id,
           format('%s.%s.%s', (extract(epoch from f.created_at) * 1000000)::bigint, f.id, f.agency_id) as cursor,
           row_number() over (order by f.created_at desc, f.id desc, f.agency_id desc) - p_offset as place
      from found f
     where v_after is null
        or (f.created_at, f.id, f.agency_id)
           < (timestamptz 'epoch' + v_after[1]::bigint * interval '1 microsecond', v_after[2]::uuid, v_after[3]::uuid)
     order by f.created_at desc, f.id desc, f.agency_id desc
    offset p_offset
     limit p_page_size + 1)
  select (select count(*)::integer from found),
         coalesce(json_agg(private.describe_batch(b, v_now) order by p.place)
                    filter (where p.place <= p_page_size), '[]'),
         case when count(*) > p_page_size then max(p.cursor) filter (where p.place = p_page_size) end
    into v_total, v_shown, v_next
    from page p
    join public.call_batches b on b.agency_id = p.agency_id and b.id = p.id;

  return json_build_object(
    'batches', v_shown,
    'pagination', json_build_object(
      'total', v_total,
      'limit', p_page_size,
      'offset', p_offset,
      'has_more', v_next is not null,
      'next_cursor', v_next));
end;
$$;

revoke execute on function private.list_batches(uuid, public.batch_status, uuid, integer, integer, text) from public;
grant  execute on function private.list_batches(uuid, public.batch_status, uuid, integer, integer, text) to authenticated, service_role, lastcall_admin;
comment on function private.list_batches(uuid, public.batch_status, uuid, integer, integer, text) is 'public.list_batches.';

create or replace function public.list_batches(
  status public.batch_status default null, campaign_id uuid default null, page_size integer default 25,
  page_offset integer default 0, after text default null, agency_id uuid default null)
returns json
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.list_batches(agency_id, status, campaign_id, page_size, page_offset, after)
$$;

revoke execute on function public.list_batches(public.batch_status, uuid, integer, integer, text, uuid) from public, anon;
grant  execute on function public.list_batches(public.batch_status, uuid, integer, integer, text, uuid) to authenticated, service_role, lastcall_admin;
comment on function public.list_batches(public.batch_status, uuid, integer, integer, text, uuid) is
  'The agency''s call batches with their progress and what they wait for, newest first.';

-- file: api/get_batch.sql
-- A batch (see private.describe_batch), its calls in progress or unknown (the first 100), and a page of its
-- contacts in dial order (see private.read_contacts).
-- p_status: only contacts of this status. p_limit: 1 to 200. p_offset: 0 to 10,000; p_after, the
-- next_cursor of the page before, goes further.
-- Returns {"batch", "live_calls": [...], "contacts": [...], "contact_pagination": {"total", "limit", "offset",
-- "has_more", "next_cursor"}}. total comes from the counters. These do not tell pending from scheduled
-- contacts: where only one of the two is asked for, they are counted in a batch of up to
-- private.max_contacts_read() contacts, and total is null in a larger one.
-- Raises PT401, PT403 (of no agency), PT404 (no such batch of the agency), PT400 (a number out of range;
-- not a cursor).
-- Contract: calls-batch-get.
create or replace function private.get_batch(
  p_agency_id uuid, p_batch_id uuid, p_status public.contact_status, p_limit integer, p_offset integer, p_after text)
returns json
language plpgsql stable
security definer  -- for a service or a console, looks at every agency
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_max        constant integer := private.max_contacts_read();
  v_batch      public.call_batches;
  v_waiting    integer;
  v_total      integer;
  v_live_calls json;
  v_page       private.contacts_page;
begin
  perform private.require_actor(p_agency_id);
  if p_limit is null or p_limit not between 1 and 200 or p_offset is null or p_offset not between 0 and 10000 then
    raise sqlstate 'PT400' using
      message = 'contact_limit must be 1 to 200 and contact_offset 0 to 10,000; contact_after goes further',
      detail = '{"code": "page_out_of_range"}';
  end if;
  select b.* into v_batch from public.call_batches b where b.agency_id = p_agency_id and b.id = p_batch_id;
  if not found then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  end if;

  v_waiting := v_batch.total_contacts - v_batch.queued - v_batch.in_progress
    - v_batch.completed - v_batch.failed - v_batch.skipped;
  v_total := case
    when p_status is null then v_batch.total_contacts
    when p_status = 'queued' then v_batch.queued
    when p_status = 'in_progress' then v_batch.in_progress
    when p_status = 'completed' then v_batch.completed
    when p_status = 'failed' then v_batch.failed
    when p_status = 'skipped' then v_batch.skipped
    when v_waiting <= 0 then 0
    when v_batch.total_contacts <= v_max then (
      select count(*)::integer
        from (select c.status
                from public.campaign_contacts c
               where c.agency_id = p_agency_id and c.batch_id = p_batch_id
               limit v_max) c
       where c.status = p_status) end;

  -- Each status by itself: so the index has them in order.
  select coalesce(json_agg(json_build_object(
           'call_id', l.id::text,
           'contact_id', l.contact_id::text,
           'phone_number', (select c.phone_number
                              from public.campaign_contacts c
                             where c.agency_id = p_agency_id and c.batch_id = p_batch_id and c.id = l.contact_id
                             limit 1),
           'status', l.status,
           'started_at', private.iso_timestamp(l.started_at),
           'carrier_call_id', l.carrier_call_id)), '[]')
    into v_live_calls
    from ((select k.*
             from public.calls k
            where k.agency_id = p_agency_id and k.batch_id = p_batch_id and k.status = 'unknown'
            order by k.lease_expires_at
            limit 100)
          union all
          (select k.*
             from public.calls k
            where k.agency_id = p_agency_id and k.batch_id = p_batch_id and k.status = 'in_progress'
            order by k.lease_expires_at
            limit 100)
          limit 100) l;

  v_page := private.read_contacts(p_agency_id, p_batch_id, p_status, p_after, p_limit, p_offset);
  return json_build_object(
    'batch', private.describe_batch(v_batch, clock_timestamp()),
    'live_calls', v_live_calls,
    'contacts', v_page.contacts,
    'contact_pagination', json_build_object(
      'total', v_total,
      'limit', p_limit,
      'offset', p_offset,
      'has_more', v_page.next_cursor is not null,
      'next_cursor', v_page.next_cursor));
end;
$$;

revoke execute on function private.get_batch(uuid, uuid, public.contact_status, integer, integer, text) from public;
grant  execute on function private.get_batch(uuid, uuid, public.contact_status, integer, integer, text) to authenticated, service_role, lastcall_admin;
comment on function private.get_batch(uuid, uuid, public.contact_status, integer, integer, text) is
  'public.get_batch, for a batch of a known agency.';

create or replace function public.get_batch(
  batch_id uuid default null, contact_status public.contact_status default null, contact_limit integer default 50,
  contact_offset integer default 0, contact_after text default null)
returns json
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.get_batch(
    private.find_batch_agency(batch_id), batch_id, contact_status, contact_limit, contact_offset, contact_after)
$$;

revoke execute on function public.get_batch(uuid, public.contact_status, integer, integer, text) from public, anon;
grant  execute on function public.get_batch(uuid, public.contact_status, integer, integer, text) to authenticated, service_role, lastcall_admin;
comment on function public.get_batch(uuid, public.contact_status, integer, integer, text) is
  'A call batch, its calls in progress and a page of its contacts.';

-- file: api/get_user_batch.sql
-- A batch's contacts and the calls to each, in pages, as stop-calling's product shows them.
-- p_batch_id: UUID or external id. p_page: from 1. p_page_size: 1 to 100; p_page * p_page_size up to
-- private.max_contacts_read(). p_call_status: only contacts of this status. p_search: part of the phone number, or of
-- the name in any case. p_sort_by: createdAt (upload order), phoneNumber or callStatus, in a batch of up to
-- private.max_contacts_read() contacts; in a larger one createdAt alone.
-- A status or a search is looked for in the first private.max_contacts_read() contacts of that order; totalIsExact
-- says whether these are all, so that total counts them all.
-- Returns {"batchId", "batchName", "batchStatus", "page", "limit", "total", "totalPages", "totalIsExact", "data"}. In
-- data: _id, phoneNumber, callStatus, phoneLogs (the calls, oldest first) and createdAt beside what is known of
-- the contact, whose keys never replace these. Recordings and transcripts are not kept.
-- Raises PT401, PT400 (no batch id, or batches share it; a number out of range; not an order, or none of a batch so
-- large), PT403 (of no agency), PT404 (no such batch of the agency; another user's, and not an owner or admin).
-- Contract: GET /api/call/batch-details/{id}; an owner or admin may look at any batch of the agency.
create or replace function private.get_user_batch(
  p_batch_id text, p_page integer, p_page_size integer, p_call_status public.contact_status,
  p_search text, p_sort_by text, p_descending boolean)
returns json
language plpgsql stable
security definer  -- looks at batches of every agency for a service or a console
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan  -- by the agency's index for a user, without it for the others
set enable_seqscan = off  -- as in claim_batch
as $$
declare
  v_uuid    constant text := '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$';
  v_max     constant integer := private.max_contacts_read();
  v_actor   private.actor := private.current_actor();
  v_batches public.call_batches[];
  v_batch   public.call_batches;
  v_is_part boolean := p_call_status is not null or coalesce(p_search, '') <> '';
  v_read    integer := v_max;
  v_total   integer;
  v_data    json;
begin
  if coalesce(p_batch_id, '') = '' then
    raise sqlstate 'PT400' using message = 'batchId is required',
      detail = '{"code": "batch_id_required"}';
  end if;
  if p_page is null or p_page < 1 or p_page_size is null or p_page_size not between 1 and 100
     or p_page::bigint * p_page_size > v_max then
    raise sqlstate 'PT400' using
      message = format('page must be at least 1, limit 1 to 100, and both together reach at most %s', v_max),
      detail = '{"code": "page_out_of_range"}';
  end if;
  if p_sort_by is null or p_sort_by not in ('createdAt', 'phoneNumber', 'callStatus') then
    raise sqlstate 'PT400' using message = 'sortBy must be createdAt, phoneNumber or callStatus',
      detail = '{"code": "sort_invalid"}';
  end if;
  if v_actor.kind = 'user' and v_actor.agency_id is null then
    raise sqlstate 'PT403' using message = 'User is not associated with an agency',
      detail = '{"code": "no_agency"}';
  end if;

  v_batches := array(
    select b
      from public.call_batches b
     where (v_actor.agency_id is null or b.agency_id = v_actor.agency_id)
       and (b.external_id = p_batch_id
            or b.id = case when p_batch_id ~ v_uuid then p_batch_id::uuid end)
       and (private.is_agency_admin(v_actor) or b.user_id = v_actor.id)
     limit 2);
  if cardinality(v_batches) = 0 then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  elsif cardinality(v_batches) > 1 then
    raise sqlstate 'PT400' using message = 'Several batches have this id: give the UUID',
      detail = '{"code": "batch_id_ambiguous"}';
  end if;
  v_batch := v_batches[1];
  if p_sort_by <> 'createdAt' and v_batch.total_contacts > v_max then
    raise sqlstate 'PT400' using
      message = format('A batch of more than %s contacts can be sorted by createdAt alone', v_max),
      detail = '{"code": "sort_invalid"}';
  end if;
  if p_sort_by = 'createdAt' and not v_is_part then
    v_read := p_page * p_page_size;
  end if;

  with looked_at as (
    (select c.*
       from public.campaign_contacts c
      where c.agency_id = v_batch.agency_id and c.batch_id = v_batch.id and not coalesce(p_descending, false)
      order by c.agency_id, c.batch_id, c.id
      limit v_read)
    union all
    (select c.*
       from public.campaign_contacts c
      where c.agency_id = v_batch.agency_id and c.batch_id = v_batch.id and p_descending
      order by c.agency_id desc, c.batch_id desc, c.id desc
      limit v_read)),
  found as (
    select l.*,
           row_number() over (
             order by case when not coalesce(p_descending, false) then k.sort_key end,
                      case when p_descending then k.sort_key end desc,
                      case when p_descending then -l.id else l.id end) as place
      from looked_at l
     cross join lateral (
       select case p_sort_by when 'phoneNumber' then l.phone_number when 'callStatus' then l.status::text end as sort_key) k
     where (p_call_status is null or l.status = p_call_status)
       and (coalesce(p_search, '') = ''
            or strpos(l.phone_number, p_search) > 0
            or coalesce(strpos(lower((
                 select concat_ws(' ', d.first_name, d.last_name, d.custom_data ->> 'name')
                   from public.contact_data d
                  where d.agency_id = v_batch.agency_id and d.batch_id = v_batch.id and d.contact_id = l.id
                  limit 1)), lower(p_search)) > 0, false))),
  page as (
    select f.*
      from found f
     where f.place > (p_page - 1) * p_page_size and f.place <= p_page * p_page_size)
  select case when v_is_part then (select count(*)::integer from found) else v_batch.total_contacts end,
         coalesce(json_agg(
           coalesce((
             select jsonb_strip_nulls(jsonb_build_object(
                      'first_name', d.first_name, 'last_name', d.last_name, 'email', d.email,
                      'company', d.company, 'title', d.title)) || d.custom_data
               from public.contact_data d
              where d.agency_id = v_batch.agency_id and d.batch_id = v_batch.id and d.contact_id = p.id
              limit 1), '{}')
           || jsonb_build_object(
             '_id', p.id::text,
             'phoneNumber', p.phone_number,
             'callStatus', p.status,
             'phoneLogs', (
               select coalesce(jsonb_agg(
                        jsonb_build_object(
                          'callStatus', k.status,
                          'callDuration', k.duration_seconds,
                          'recordingUrl', null,
                          'transcript', null,
                          'createdAt', private.iso_timestamp(coalesce(k.started_at, k.created_at)))
                        order by k.id), '[]')
                 -- The batch outside: inside, it could be planned to read all of the batch's calls.
                 from (select k.* from public.calls k where k.contact_id = p.id offset 0) k
                where k.agency_id = v_batch.agency_id and k.batch_id = v_batch.id and k.status <> 'queued'),
             'createdAt', private.iso_timestamp(p.created_at))
           order by p.place), '[]')
    into v_total, v_data
    from page p;

  return json_build_object(
    'batchId', coalesce(v_batch.external_id, v_batch.id::text),
    'batchName', v_batch.name,
    'batchStatus', case when v_batch.status = 'processing' then 'active' else v_batch.status::text end,
    'page', p_page,
    'limit', p_page_size,
    'total', v_total,
    'totalPages', (v_total + p_page_size - 1) / p_page_size,
    'totalIsExact', not v_is_part or v_batch.total_contacts <= v_max,
    'data', v_data);
end;
$$;

revoke execute on function private.get_user_batch(
  text, integer, integer, public.contact_status, text, text, boolean) from public;
grant  execute on function private.get_user_batch(
  text, integer, integer, public.contact_status, text, text, boolean) to authenticated, service_role, lastcall_admin;
comment on function private.get_user_batch(text, integer, integer, public.contact_status, text, text, boolean) is
  'public.get_user_batch.';

create or replace function public.get_user_batch(
  batch_id text default null, page integer default 1, page_size integer default 10,
  call_status public.contact_status default null, search text default null,
  sort_by text default 'createdAt', descending boolean default false)
returns json
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.get_user_batch(batch_id, page, page_size, call_status, search, sort_by, descending)
$$;

revoke execute on function public.get_user_batch(
  text, integer, integer, public.contact_status, text, text, boolean) from public, anon;
grant  execute on function public.get_user_batch(
  text, integer, integer, public.contact_status, text, text, boolean) to authenticated, service_role, lastcall_admin;
comment on function public.get_user_batch(text, integer, integer, public.contact_status, text, text, boolean) is
  'A call batch''s contacts and the calls to each, in pages.';

-- file: api/list_batch_events.sql
-- The audit trail of a batch, oldest first; never idempotency keys, nor what was asked and answered under them.
-- p_page_size: 1 to 200. p_after: the next_cursor of the page before.
-- Returns {"events": [...], "pagination": {"limit", "has_more", "next_cursor"}}.
-- Raises PT401, PT403 (of no agency), PT404 (no such batch of the agency), PT400 (a number out of range;
-- not a cursor).
create or replace function private.list_batch_events(
  p_agency_id uuid, p_batch_id uuid, p_page_size integer, p_after text)
returns json
language plpgsql stable
security definer  -- for a service or a console, looks at every agency
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_after  bigint;
  v_events json;
  v_next   text;
begin
  perform private.require_actor(p_agency_id);
  if p_page_size is null or p_page_size not between 1 and 200 then
    raise sqlstate 'PT400' using message = 'limit must be 1 to 200',
      detail = '{"code": "page_out_of_range"}';
  end if;
  if p_after !~ '^[0-9]{1,18}$' then
    raise sqlstate 'PT400' using message = 'Not a cursor that was given out',
      detail = '{"code": "cursor_invalid"}';
  end if;
  if not exists (select from public.call_batches b where b.agency_id = p_agency_id and b.id = p_batch_id) then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  end if;
  v_after := coalesce(p_after::bigint, 0);

  select coalesce(json_agg(
           json_build_object(
             'id', e.id::text,
             'created_at', private.iso_timestamp(e.created_at),
             'action', e.action,
             'actor_kind', e.actor_kind,
             'actor_id', e.actor_id,
             'actor_role', e.actor_role,
             'on_behalf_of', e.on_behalf_of,
             'from_status', e.from_status,
             'to_status', e.to_status,
             'contacts', e.contacts,
             'reason', e.reason,
             'request_id', e.request_id)
           order by e.id)
           filter (where e.place <= p_page_size), '[]'),
         case when count(*) > p_page_size then (max(e.id) filter (where e.place = p_page_size))::text end
    into v_events, v_next
    from (select e.*, row_number() over (order by e.id) as place
            from (select e.*
                    from public.batch_events e
                   where e.agency_id = p_agency_id and e.batch_id = p_batch_id and e.id > v_after
                   order by e.agency_id, e.batch_id, e.id
                   limit p_page_size + 1) e) e;
  return json_build_object(
    'events', v_events,
    'pagination', json_build_object(
      'limit', p_page_size,
      'has_more', v_next is not null,
      'next_cursor', v_next));
end;
$$;

revoke execute on function private.list_batch_events(uuid, uuid, integer, text) from public;
grant  execute on function private.list_batch_events(uuid, uuid, integer, text) to authenticated, service_role, lastcall_admin;
comment on function private.list_batch_events(uuid, uuid, integer, text) is 'public.list_batch_events, for a batch of a known agency.';

create or replace function public.list_batch_events(
  batch_id uuid default null, page_size integer default 50, after text default null)
returns json
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.list_batch_events(private.find_batch_agency(batch_id), batch_id, page_size, after)
$$;

revoke execute on function public.list_batch_events(uuid, integer, text) from public, anon;
grant  execute on function public.list_batch_events(uuid, integer, text) to authenticated, service_role, lastcall_admin;
comment on function public.list_batch_events(uuid, integer, text) is 'The audit trail of a call batch, oldest first.';

-- file: api/export_contacts.sql
-- The next contacts of a batch in dial order, for an export in pages: p_after is the next_cursor of the page
-- before, null for the first. p_status: only these. p_max_rows: 1 to 1000.
-- Returns {"contacts": [...], "next_cursor"}; a page may be short before the end (see private.read_contacts).
-- Raises PT401, PT403 (of no agency), PT404 (no such batch of the agency), PT400 (a number out of range;
-- not a cursor).
create or replace function private.export_contacts(
  p_agency_id uuid, p_batch_id uuid, p_after text, p_max_rows integer, p_status public.contact_status)
returns json
language plpgsql stable
security definer  -- for a service or a console, looks at every agency
set search_path = pg_catalog, pg_temp
as $$
begin
  perform private.require_actor(p_agency_id);
  if p_max_rows is null or p_max_rows not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'max_rows must be 1 to 1000',
      detail = '{"code": "page_out_of_range"}';
  end if;
  if not exists (select from public.call_batches b where b.agency_id = p_agency_id and b.id = p_batch_id) then
    raise sqlstate 'PT404' using message = 'Batch not found',
      detail = '{"code": "batch_not_found"}';
  end if;
  return to_json(private.read_contacts(p_agency_id, p_batch_id, p_status, p_after, p_max_rows, 0));
end;
$$;

revoke execute on function private.export_contacts(uuid, uuid, text, integer, public.contact_status) from public;
grant  execute on function private.export_contacts(uuid, uuid, text, integer, public.contact_status) to authenticated, service_role, lastcall_admin;
comment on function private.export_contacts(uuid, uuid, text, integer, public.contact_status) is
  'public.export_contacts, for a batch of a known agency.';

create or replace function public.export_contacts(
  batch_id uuid default null, after text default null, max_rows integer default 1000,
  contact_status public.contact_status default null)
returns json
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.export_contacts(private.find_batch_agency(batch_id), batch_id, after, max_rows, contact_status)
$$;

revoke execute on function public.export_contacts(uuid, text, integer, public.contact_status) from public, anon;
grant  execute on function public.export_contacts(uuid, text, integer, public.contact_status) to authenticated, service_role, lastcall_admin;
comment on function public.export_contacts(uuid, text, integer, public.contact_status) is
  'The next contacts of a call batch, for an export in pages.';

-- file: dialer/process_webhook_queue.sql
-- An event to apply: to which call, and what it says.
create type private.webhook_event as (id bigint, event_type text, call_id bigint, call jsonb);
-- What became of it.
create type private.webhook_outcome as (id bigint, status public.webhook_status, error_message text);

-- Apply events to the calls of one batch, in a group: one change of the batch's counters.
-- Returns what became of each, or null, without waiting, when someone else holds the batch.
--   call.started, call.joined   the carrier has the call: confirm_call
--   call.ended                  its result: finish_call, with its rules of when a contact is called again
--     joined is given           completed, outcome answered, its duration from joined to ended
--     endReason unjoined        failed, outcome no_answer
--     any other endReason       failed, outcome the reason: hangup, agent_hangup, timeout, connection_error, system_error
--     none                      failed, outcome unknown
-- The first result of a call counts. What comes when it is over changes nothing, nor does what is about another
-- call of the carrier than the one that it first reported.
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
    select private.confirm_call(p_agency_id, p_batch_id, coalesce((
      select jsonb_agg(jsonb_build_object('call_id', e.call_id, 'carrier_call_id', e.call ->> 'callId'))
        from unnest(p_events) e
       where e.event_type in ('call.started', 'call.joined')), '[]')));
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
           'carrier_call_id', f.call ->> 'callId',
           'status', case when f.joined is not null then 'completed' else 'failed' end,
           'outcome', case when f.joined is not null then 'answered'
                           when f.reason = 'unjoined' then 'no_answer'
                           else coalesce(f.reason, 'unknown') end,
           'duration_seconds', case when private.is_timestamp(f.joined) and private.is_timestamp(f.call ->> 'ended')
             then extract(epoch from (f.call ->> 'ended')::timestamptz - f.joined::timestamptz) end)), '[]')
    into v_first, v_results
    from (select distinct on (e.call_id) e.id, e.call_id, e.call, nullif(e.call ->> 'joined', '') as joined,
                 nullif(left(e.call ->> 'endReason', 50), '') as reason
            from unnest(p_events) e
           where e.event_type = 'call.ended' and e.id <> all (v_others)
           order by e.call_id, e.id) f;
  v_finished := array(select private.finish_call(p_agency_id, p_batch_id, v_results));

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
           array_agg((d.id, d.event_type, c.id, d.payload -> 'call')::private.webhook_event order by d.id) as events
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
as $$
  select private.process_webhook_queue(max_events)
$$;

revoke execute on function public.process_webhook_queue(integer) from public, anon, authenticated;
grant  execute on function public.process_webhook_queue(integer) to service_role, lastcall_admin;
comment on function public.process_webhook_queue(integer) is 'Apply what carriers reported.';

-- file: dialer/purge_webhook_queue.sql
-- Throw away events that are done with (completed or ignored) since p_older_than, at most p_max_rows (1 to 100,000) a
-- run: run it daily, and again while it returns as many. Dead ones stay until they are replayed. An event that is told
-- again after that is stored again, and ignored: its call is over.
-- Raises PT401, PT403 (not a service or console), PT400 (out of range).
create or replace function private.purge_webhook_queue(p_older_than interval, p_max_rows integer)
returns integer
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before timestamptz := clock_timestamp() - p_older_than;
  v_purged integer;
begin
  perform private.require_service();
  if p_older_than is null or p_older_than < interval '1 hour'
     or p_max_rows is null or p_max_rows not between 1 and 100000 then
    raise sqlstate 'PT400' using message = 'older_than must be at least an hour and max_rows 1 to 100000',
      detail = '{"code": "purge_out_of_range"}';
  end if;
  delete from public.webhook_queue q
   using (select d.agency_id, d.id
            from public.webhook_queue d
           where d.status in ('completed', 'ignored') and d.processed_at < v_before
           limit p_max_rows
             for update skip locked) d
   where q.agency_id = d.agency_id and q.id = d.id;
  get diagnostics v_purged = row_count;
  return v_purged;
end;
$$;

revoke execute on function private.purge_webhook_queue(interval, integer) from public;
grant  execute on function private.purge_webhook_queue(interval, integer) to service_role, lastcall_admin;
comment on function private.purge_webhook_queue(interval, integer) is 'public.purge_webhook_queue.';

create or replace function public.purge_webhook_queue(
  older_than interval default '30 days', max_rows integer default 10000)
returns integer
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.purge_webhook_queue(older_than, max_rows)
$$;

revoke execute on function public.purge_webhook_queue(interval, integer) from public, anon, authenticated;
grant  execute on function public.purge_webhook_queue(interval, integer) to service_role, lastcall_admin;
comment on function public.purge_webhook_queue(interval, integer) is 'Throw away webhook events that are done with.';

-- file: dialer/next_claim_in.sql
-- In how many seconds something may be claimable: 0 at once, null as long as no call ends and no batch
-- starts. At 0 a claim still gets nothing while others hold the batches: then wait a little. Seconds, and no
-- time, since the dialer's clock need not be the database's.
-- Raises PT401, PT403 (not a service or console).
create or replace function private.next_claim_in()
returns double precision
language plpgsql stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  perform private.require_service();
  return (
    select greatest(extract(epoch from b.next_claim_at - v_now)::double precision, 0)
      from public.call_batches b
     where b.status = 'processing' and b.next_claim_at is not null
       and (b.max_concurrent is null or b.queued + b.in_progress < b.max_concurrent)
     order by b.next_claim_at
     limit 1);
end;
$$;

revoke execute on function private.next_claim_in() from public;
grant  execute on function private.next_claim_in() to service_role, lastcall_admin;
comment on function private.next_claim_in() is 'public.next_claim_in.';

create or replace function public.next_claim_in()
returns double precision
language sql stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select private.next_claim_in()
$$;

revoke execute on function public.next_claim_in() from public, anon, authenticated;
grant  execute on function public.next_claim_in() to service_role, lastcall_admin;
comment on function public.next_claim_in() is 'In how many seconds something may be claimable.';

-- file: dialer/list_open_calls.sql
create type public.open_call as (
  agency_id       uuid,
  batch_id        uuid,
  call_id         bigint,
  contact_id      bigint,
  status          public.call_status,
  carrier_call_id text,
  age_seconds     double precision   -- since start_call let it through
);

-- The calls to ask the carrier about: those that are unknown, and those in progress for longer than
-- older_than_seconds or than their agent lets a call last. A call that was given is not given again for
-- older_than_seconds, and those not asked about for the longest come first: every call has its turn, and two
-- who ask at once get different ones.
-- Reads the open calls alone, of all batches, whatever became of the batch. Takes no batch, since it changes
-- nothing of what a batch's row guards, and waits for nobody.
-- older_than_seconds: 1 to 86400. max_calls: 1 to 1000.
-- Raises PT401, PT403 (not a service or console), PT400 (a number out of range).
create or replace function private.list_open_calls(p_older_than_seconds integer, p_max_calls integer)
returns setof public.open_call
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- as in claim_batch
set enable_seqscan = off
as $$
declare
  v_now        timestamptz := clock_timestamp();
  v_older_than interval;
  v_call       public.calls;
begin
  perform private.require_service();
  if p_older_than_seconds is null or p_older_than_seconds not between 1 and 86400
     or p_max_calls is null or p_max_calls not between 1 and 1000 then
    raise sqlstate 'PT400' using message = 'older_than_seconds must be 1 to 86400 and max_calls 1 to 1000',
      detail = '{"code": "open_calls_out_of_range"}';
  end if;
  v_older_than := make_interval(secs => p_older_than_seconds);

  for v_call in
    select c.*
      from public.calls c
     where c.status in ('in_progress', 'unknown')
       and (c.checked_at is null or c.checked_at <= v_now - v_older_than)
       and (c.status = 'unknown'
            or c.started_at <= v_now - v_older_than
            or c.started_at <= v_now - (
              select make_interval(secs => a.max_duration_seconds)
                from public.call_batches b
                join public.agent_mappings a on a.agency_id = b.agency_id and a.id = b.agent_mapping_id
               where b.agency_id = c.agency_id and b.id = c.batch_id))
     order by coalesce(c.checked_at, c.started_at)
     limit p_max_calls
       for no key update skip locked
  loop
    update public.calls c
       set checked_at = v_now
     where c.agency_id = v_call.agency_id and c.batch_id = v_call.batch_id and c.id = v_call.id;
    return next (v_call.agency_id, v_call.batch_id, v_call.id, v_call.contact_id, v_call.status,
                 v_call.carrier_call_id, extract(epoch from v_now - v_call.started_at))::public.open_call;
  end loop;
end;
$$;

revoke execute on function private.list_open_calls(integer, integer) from public;
grant  execute on function private.list_open_calls(integer, integer) to service_role, lastcall_admin;
comment on function private.list_open_calls(integer, integer) is 'public.list_open_calls.';

create or replace function public.list_open_calls(older_than_seconds integer default 300, max_calls integer default 20)
returns setof public.open_call
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
  select * from private.list_open_calls(older_than_seconds, max_calls)
$$;

revoke execute on function public.list_open_calls(integer, integer) from public, anon, authenticated;
grant  execute on function public.list_open_calls(integer, integer) to service_role, lastcall_admin;
comment on function public.list_open_calls(integer, integer) is 'The calls to ask the carrier about, each in its turn.';
