-- Throw away events that are done with (completed or ignored) since p_older_than, at most p_max_rows (1 to 100,000) a
-- run: run it daily, and again while it returns as many. Dead ones stay until they are replayed. An event that is told
-- again after that is stored again, and ignored: its call is over.
-- Raises PT401, PT403 (not a service or console), PT400 (out of range).
create or replace function private.purge_webhook_queue(p_older_than interval, p_max_rows integer)
returns integer
language plpgsql volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before timestamptz := clock_timestamp() - p_older_than;
  v_purged integer;
begin
  perform private.require_service();
  if p_older_than is null or p_older_than < interval '1 hour'
     or p_max_rows is null or p_max_rows not between 1 and 100000 then
    raise sqlstate 'PT400' using message = 'older_than must be at least an hour and max_rows 1 to 100000',
      detail = '{"code": "purge_out_of_range"}';
  end if;
  delete from public.webhook_queue q
   using (select d.agency_id, d.id
            from public.webhook_queue d
           where d.status in ('completed', 'ignored') and d.processed_at < v_before
           limit p_max_rows
             for update skip locked) d
   where q.agency_id = d.agency_id and q.id = d.id;
  get diagnostics v_purged = row_count;
  return v_purged;
end;
$$;

revoke execute on function private.purge_webhook_queue(interval, integer) from public;
grant  execute on function private.purge_webhook_queue(interval, integer) to service_role, lastcall_admin;
comment on function private.purge_webhook_queue(interval, integer) is 'public.purge_webhook_queue.';

create or replace function public.purge_webhook_queue(
  older_than interval default '30 days', max_rows integer default 10000)
returns integer
language sql volatile
security invoker
set search_path = pg_catalog, pg_temp
set default_transaction_isolation = 'read committed'  -- by PostgREST, for its transaction
as $$
  select private.purge_webhook_queue(older_than, max_rows)
$$;

revoke execute on function public.purge_webhook_queue(interval, integer) from public, anon, authenticated;
grant  execute on function public.purge_webhook_queue(interval, integer) to service_role, lastcall_admin;
comment on function public.purge_webhook_queue(interval, integer) is 'Throw away webhook events that are done with.';
