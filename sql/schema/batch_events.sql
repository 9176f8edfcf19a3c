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
