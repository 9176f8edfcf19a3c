-- One file whose contacts are imported into a batch, in groups, each of which commits with last_row: so an
-- import that broke off goes on where it was, and no row of the file counts twice.
create table public.batch_imports (
  agency_id    uuid not null,
  id           uuid not null default gen_random_uuid(),
  batch_id     uuid not null,
  file_hash    text not null,
  max_attempts smallint not null,
  held_at      timestamptz,
  created_at   timestamptz not null default clock_timestamp(),
  finished_at  timestamptz,
  last_row     integer not null default 0,
  added        integer not null default 0,
  duplicates   integer not null default 0,
  do_not_call  integer not null default 0,
  invalid      integer not null default 0,
  answer       jsonb,
  primary key (agency_id, id),
  foreign key (agency_id, batch_id) references public.call_batches (agency_id, id) on delete cascade
);

create index batch_imports_batch on public.batch_imports (agency_id, batch_id);

comment on table public.batch_imports is 'Files whose contacts are imported into a batch.';
comment on column public.batch_imports.file_hash is 'SHA-256 of the file: by it, the same file sent again goes on with its import.';
comment on column public.batch_imports.held_at is 'The batch was made by this import, and paused until its end; the paused_at that it was given.';
comment on column public.batch_imports.last_row is 'Rows of the file up to this one are done.';
comment on column public.batch_imports.answer is 'The answer when the import finished.';

-- Rows of imported files that were left out because something is wrong with them.
create table public.import_errors (
  agency_id    uuid not null,
  import_id    uuid not null,
  row_number   integer not null,
  phone_number text,
  error        text not null,
  primary key (agency_id, import_id, row_number),
  foreign key (agency_id, import_id) references public.batch_imports (agency_id, id) on delete cascade
);

comment on table public.import_errors is 'Invalid rows of imported files, at most 100,000 of each.';
comment on column public.import_errors.row_number is 'As in the file, whose header is row 1.';
comment on column public.import_errors.phone_number is 'As given, its first 50 characters.';
