-- Holds: no call of their batches starts until somebody lifts the hold or it ends by itself. A hold reaches the batches
-- of an agency that match every given one of campaign, agent and caller number; without an agency it reaches all. One row
-- is the history of a hold. The batches that it reaches are marked (call_batches.is_held): start_call asks nothing new.
create table public.holds (
  id               uuid primary key default gen_random_uuid(),
  agency_id        uuid references public.agencies (id) on delete cascade,
  campaign_id      uuid,
  agent_mapping_id uuid,
  from_number      text,
  until            timestamptz,
  reason           text,
  created_at       timestamptz not null default clock_timestamp(),
  created_by       uuid,
  created_by_role  text not null,
  lifted_at        timestamptz,
  lifted_by        uuid,
  lifted_by_role   text,
  lift_reason      text,
  idempotency_key  text,
  request          jsonb,
  response         jsonb,
  check (num_nonnulls(campaign_id, agent_mapping_id, from_number) <= 1),
  check (agency_id is not null or num_nonnulls(campaign_id, agent_mapping_id, from_number) = 0),
  foreign key (agency_id, campaign_id) references public.campaigns (agency_id, id) on delete cascade,
  foreign key (agency_id, agent_mapping_id) references public.agent_mappings (agency_id, id) on delete cascade
);

-- The holds that count. Few, however long the history is.
create index holds_active on public.holds (agency_id) where lifted_at is null;
-- The history of an agency, newest first.
create index holds_agency on public.holds (agency_id, created_at);
-- A key names one hold of the agency.
create unique index holds_idempotency_key on public.holds (agency_id, idempotency_key) nulls not distinct
  where idempotency_key is not null;

comment on table public.holds is 'Holds: no call of their batches starts until they are lifted or end.';
comment on column public.holds.agency_id is 'Null: the batches of every agency.';
comment on column public.holds.until is 'When the hold ends by itself; null: never.';
comment on column public.holds.created_by_role is 'The database role that placed the hold.';
comment on column public.holds.request is 'With an idempotency key: what was asked, to know a repeat from another request.';
comment on column public.holds.response is 'With an idempotency key: what was answered, to answer a repeat.';
