-- How often a user may call the procedures that cost much. An operator changes a limit, for every process at
-- once: update private.rate_limits set max_requests = 600 where procedure = 'create_batch';
-- A procedure without a row has no limit. The procedures that end dialing have none.
create table private.rate_limits (
  procedure    text primary key,
  max_requests integer not null check (max_requests > 0),
  period       interval not null default '1 minute' check (period > '0 seconds')
);

insert into private.rate_limits (procedure, max_requests) values
  ('create_batch', 60), ('add_contacts', 120), ('begin_import', 20), ('retry_batch', 60), ('start_batch', 120),
  ('export_contacts', 30);

-- The requests that count, as long as they do. Rows are added and not changed, so that no request of a user
-- waits for another one of the same user.
create table private.user_requests (
  agency_id uuid not null,
  user_id   uuid not null,
  procedure text not null,
  id        bigint generated always as identity,
  at        timestamptz not null default clock_timestamp(),
  primary key (agency_id, user_id, procedure, id)
);

grant select, insert, update, delete on table private.rate_limits to lastcall_admin;

comment on table private.rate_limits is 'How often a user may call the procedures that cost much.';
comment on table private.user_requests is 'The requests that count towards a limit, as long as they do.';
