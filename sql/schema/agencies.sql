-- The tenant. Stop-calling calls it a workspace.
create table public.agencies (
  id         uuid primary key default gen_random_uuid(),
  name       text not null,
  created_at timestamptz not null default now()
);

comment on table public.agencies is 'The tenant: everything else belongs to one agency.';
