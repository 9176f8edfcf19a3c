-- Tell whoever watches the agency's batches that one changed its status: where the database is a Supabase
-- project's, a private Realtime broadcast to the channel agency:<agency's id>, event batch_status. It is sent when
-- the transaction commits, or not at all. Elsewhere nothing happens.
-- Never raises: a change is not undone because nobody could be told of it. A warning says so.
create or replace function private.broadcast_status(
  p_agency_id uuid, p_batch_id uuid, p_action text,
  p_from_status public.batch_status, p_to_status public.batch_status, p_contacts integer)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_send regprocedure := to_regprocedure('realtime.send(jsonb,text,text,boolean)');
begin
  if v_send is null then
    return;
  end if;
  begin
    -- Dynamic, since no other database knows the function.
    execute format('select %s($1, ''batch_status'', $2, true)', v_send::oid::regproc)
      using jsonb_build_object('batch_id', p_batch_id, 'action', p_action, 'from_status', p_from_status,
                               'to_status', p_to_status, 'contacts', p_contacts,
                               'at', private.iso_timestamp(clock_timestamp())),
            'agency:' || p_agency_id;
  exception when others then
    raise warning 'status of batch % was not broadcast: %', p_batch_id, sqlerrm;
  end;
end;
$$;

revoke execute on function private.broadcast_status(
  uuid, uuid, text, public.batch_status, public.batch_status, integer) from public;
comment on function private.broadcast_status(
  uuid, uuid, text, public.batch_status, public.batch_status, integer)
  is 'Tell whoever watches the agency''s batches of a change of status.';
