-- The role of a user in the agency. Owners and admins may cancel and stop; the others may not.
create type public.user_role as enum (
  'agency_owner', 'agency_admin', 'agency_member', 'client_admin', 'client_viewer', 'admin'
);

create type public.batch_status as enum (
  'pending',     -- waits for process_batches
  'scheduled',   -- waits for scheduled_for
  'processing',  -- being dialed
  'paused',      -- not dialed; keeps its place
  'stopped',     -- not dialed; can be resumed
  'completed',   -- every contact has a result
  'failed',      -- cannot be dialed
  'cancelled'    -- for good
);

create type public.contact_status as enum (
  'pending',      -- not called yet
  'scheduled',    -- to be called when due
  'queued',       -- leased by a dialer, not yet called
  'in_progress',  -- a call is going on
  'completed',
  'failed',       -- no attempts left
  'skipped'       -- will not be called: batch cancelled or ended early
);

create type public.call_status as enum (
  'queued',       -- a lease: start_call has not let it through
  'in_progress',
  'unknown',      -- let through, and nobody could tell whether the carrier got it: never placed again by itself
  'completed',
  'failed'
);

create type public.batch_mode as enum (
  'immediate',    -- from the next run of process_batches on
  'scheduled'     -- from scheduled_for on
);

create type public.phone_number_status as enum ('pending', 'active', 'inactive', 'released');

create type public.webhook_status as enum (
  'pending',      -- waits for process_webhook_queue
  'completed',    -- applied
  'ignored',      -- nothing to apply: error_message says why
  'failed',       -- could not be applied; tried again at next_retry_at
  'dead'          -- failed for the last time: replay_webhooks tries again
);
