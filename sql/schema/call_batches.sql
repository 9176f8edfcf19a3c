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
  place_by         timestamptz,
  is_held          boolean not null default false,
  held_until       timestamptz,
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
-- The index that process_batches and claim_contacts read; a claim changes none of its columns.
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
comment on column public.call_batches.place_by is 'When the last of its calls so far could start: its request could leave, or it left the carrier''s queue.';
comment on column public.call_batches.is_held is 'A hold reaches the batch, until held_until. Right while it is processing: whatever begins or resumes it looks again.';
comment on column public.call_batches.held_until is 'When the last of its holds ends by itself; null: a person lifts it.';
