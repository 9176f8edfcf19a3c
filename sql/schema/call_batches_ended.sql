-- By these service_stats finds the batches that it tells of, and never reads all there ever were. None of
-- their columns changes while a batch is dialed.
create index call_batches_ended on public.call_batches (completed_at) where completed_at is not null;
create index call_batches_halted on public.call_batches (agency_id, id) where status in ('paused', 'stopped');
