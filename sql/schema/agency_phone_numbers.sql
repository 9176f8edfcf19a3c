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
