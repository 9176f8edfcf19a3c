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
