-- Rows that are locked and tell nothing. Each keeps two kinds of transactions apart, so that neither misses what
-- the other one is about to commit.

-- For holds of every agency: private.admit_live. A hold of one agency locks the agency's row in agencies.
create table private.live_admission (
  id       boolean primary key default true check (id),
  last_use timestamptz not null default now()
);
insert into private.live_admission default values;

-- For opt-outs of an agency: private.admit_contacts.
create table private.contact_admissions (
  agency_id uuid primary key,
  last_use  timestamptz not null default now()
);

comment on table private.live_admission is 'The row that a hold of every agency locks, and each procedure that brings a batch to life.';
comment on table private.contact_admissions is 'The rows that an opt-out of an agency locks, and each procedure that adds contacts.';
comment on column private.live_admission.last_use is 'Written by a hold, so that a stricter transaction notices it.';
comment on column private.contact_admissions.last_use is 'Written by an opt-out, so that a stricter transaction notices it.';
