-- The tables of a typical product of this kind, to compare with: uuid keys, a status index
-- and four others, an updated_at trigger, row-level security in the form that Supabase
-- recommends (subselects, evaluated once for a statement), what the voice agent is told inline.
drop schema if exists typical cascade;
create schema typical;

create table typical.agencies (
  id   uuid primary key default gen_random_uuid(),
  name text not null
);

create table typical.users (
  id        uuid primary key default gen_random_uuid(),
  agency_id uuid references typical.agencies (id) on delete cascade,
  role      text not null
);

create table typical.call_batches (
  id             uuid primary key default gen_random_uuid(),
  agency_id      uuid not null references typical.agencies (id) on delete cascade,
  status         text not null default 'pending',
  total_contacts integer not null default 0,
  skipped        integer not null default 0,
  error_message  text,
  completed_at   timestamptz,
  created_at     timestamptz not null default now(),
  updated_at     timestamptz not null default now()
);

create table typical.campaign_contacts (
  id               uuid primary key default gen_random_uuid(),
  agency_id        uuid not null references typical.agencies (id) on delete cascade,
  batch_id         uuid not null references typical.call_batches (id) on delete cascade,
  phone_number     text not null,
  status           text not null default 'pending' check (
    status in ('pending', 'scheduled', 'queued', 'in_progress', 'completed', 'failed', 'skipped')),
  attempts         integer not null default 0,
  max_attempts     integer not null default 3,
  call_id          uuid,
  outcome          text,
  outcome_notes    text,
  duration_seconds integer,
  custom_data      jsonb not null default '{}',
  last_attempt_at  timestamptz,
  completed_at     timestamptz,
  created_at       timestamptz not null default now(),
  updated_at       timestamptz not null default now()
);

create index on typical.call_batches (agency_id);
create index on typical.call_batches (status);
create index on typical.campaign_contacts (agency_id);
create index on typical.campaign_contacts (batch_id);
create index on typical.campaign_contacts (status);
create index on typical.campaign_contacts (phone_number);

create function typical.set_updated_at() returns trigger language plpgsql as $$
begin
  new.updated_at := now();
  return new;
end;
$$;

create trigger set_updated_at before update on typical.call_batches
  for each row execute function typical.set_updated_at();
create trigger set_updated_at before update on typical.campaign_contacts
  for each row execute function typical.set_updated_at();

-- As Supabase's auth.uid().
create function typical.uid() returns uuid language sql stable as $$
  select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid
$$;

alter table typical.users enable row level security;
alter table typical.call_batches enable row level security;
alter table typical.campaign_contacts enable row level security;

create policy own_user on typical.users for select to authenticated
  using (id = (select typical.uid()));
create policy own_agency on typical.call_batches for all to authenticated
  using (agency_id = (select u.agency_id from typical.users u where u.id = (select typical.uid())));
create policy own_agency on typical.campaign_contacts for all to authenticated
  using (agency_id = (select u.agency_id from typical.users u where u.id = (select typical.uid())));

grant usage on schema typical to authenticated;
grant select, insert, update, delete on all tables in schema typical to authenticated;
