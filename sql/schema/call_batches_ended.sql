-- With these indexes service_stats finds its batches without reading all that there ever were. Dialing changes none of
-- their columns.
create index call_batches_ended on public.call_batches (completed_at) where completed_at is not null;
create index call_batches_halted on public.call_batches (agency_id, id) where status in ('paused', 'stopped');
