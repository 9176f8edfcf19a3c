-- The secrets that an agency's carriers sign with. Several may be valid at once, so that one can be replaced
-- without losing an event. No role is granted anything: rotate_webhook_secret shows a new one once, and
-- verify_webhook compares within the database.
create table private.webhook_secrets (
  agency_id  uuid not null references public.agencies (id) on delete cascade,
  id         bigint generated always as identity,
  secret     text not null,
  created_at timestamptz not null default now(),
  expires_at timestamptz,
  primary key (agency_id, id)
);

comment on table private.webhook_secrets is 'The secrets that an agency''s carriers sign with.';
comment on column private.webhook_secrets.expires_at is 'Not valid any more from then on; null: until it is replaced.';
