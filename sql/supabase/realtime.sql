-- Let the users of an agency hear when one of its batches changes its status, by Supabase Realtime: they may receive on
-- the private channel agency:<agency's id>, and send on none.
-- No part of the core: an operator runs it, in the SQL editor, since there alone a project lets its owner make
-- policies of Realtime's table. Safe to run again.
-- To end it: drop policy lastcall_own_agency on realtime.messages;
do $$
begin
  if to_regprocedure('realtime.topic()') is null or to_regclass('realtime.messages') is null then
    raise exception 'Realtime is missing' using hint = 'a Supabase project has it; enable Realtime there';
  end if;
end;
$$;

drop policy if exists lastcall_own_agency on realtime.messages;
create policy lastcall_own_agency on realtime.messages for select to authenticated
  using (extension = 'broadcast' and realtime.topic() = 'agency:' || private.current_agency_id());
