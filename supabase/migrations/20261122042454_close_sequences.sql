-- Who is in the way of this is not made to wait for long: it gives up, and is run again.
set local lock_timeout = '500ms';

-- file: schema/sequences.sql fddfd3ba7afdf742a80960bad878f3ccd179429bd24dce356c7ed3f696c0a424
-- Ids come by inserting alone: nobody may draw or set one, also where a project's default privileges, as
-- Supabase's, give every new sequence to everyone.
revoke all on sequence public.campaign_contacts_id_seq, public.calls_id_seq, public.batch_events_id_seq,
                       public.webhook_queue_id_seq, private.webhook_secrets_id_seq
  from public, anon, authenticated, service_role, lastcall_admin;
