-- The events that carriers reported, until process_webhook_queue has applied and purge_webhook_queue deleted them.
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

-- Events that are due, oldest first, of every agency.
create index webhook_queue_due on public.webhook_queue (next_retry_at) where next_retry_at is not null;
-- Dead events: they wait for an operator.
create index webhook_queue_dead on public.webhook_queue (agency_id, id) where status = 'dead';

comment on table public.webhook_queue is 'Events that carriers reported, each once.';
comment on column public.webhook_queue.event_id is 'Its webhook-id, unless the signature does not cover it, or else the carrier''s call id and the event type.';
comment on column public.webhook_queue.error_message is 'Why it was ignored, or could not be applied.';
comment on column public.webhook_queue.next_retry_at is 'When it is to be applied; null: never again by itself.';
