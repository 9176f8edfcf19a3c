-- One row for each number that a batch with max_calls_per_number has called: what two such
-- batches lock, so that both together keep to the limit. Nothing is counted here: calls tell.
create table private.dialed_numbers (
  agency_id    uuid not null,
  phone_number text not null,
  primary key (agency_id, phone_number)
);

comment on table private.dialed_numbers is 'The rows that batches lock when they call the same number.';
