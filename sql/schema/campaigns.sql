-- Campaigns: each batch is dialed for one.
create table public.campaigns (
  agency_id  uuid not null references public.agencies (id) on delete cascade,
  id         uuid not null default gen_random_uuid(),
  name       text not null,
  created_at timestamptz not null default now(),
  primary key (agency_id, id)
);

comment on table public.campaigns is 'Campaigns: each batch is dialed for one.';
