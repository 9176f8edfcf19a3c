-- Numbers that an agency must not call. Looked at when contacts are added, and again by
-- start_call, the moment before each call.
create table public.do_not_call (
  agency_id    uuid not null references public.agencies (id) on delete cascade,
  phone_number text not null check (phone_number ~ '^\+[1-9][0-9]{6,14}$'),
  reason       text,
  created_at   timestamptz not null default now(),
  source       text,
  added_by     uuid,
  primary key (agency_id, phone_number)
);

comment on table public.do_not_call is 'Numbers that an agency must not call.';
comment on column public.do_not_call.source is 'Where the person said no: a call, an e-mail, a register.';
comment on column public.do_not_call.added_by is 'The user who added the number by opt_out.';
