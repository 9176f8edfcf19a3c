-- Refuse a request because of a locked batch's status, once the synchronous standby has the status.
-- PostgreSQL shows a change, and lets go of its row, only when the standby has the change. Three events show a change
-- earlier: its wait is cancelled, its connection is terminated, the primary restarts. A failover undoes such a change.
-- A refusal commits nothing that could wait, so this function asks the standbys, for at most 2 seconds.
-- Raises PT400 (with p_message and p_code), PT503 (the standby has not confirmed the status).
create or replace function private.refuse_status(p_message text, p_code text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_required constant integer := private.required_standbys();
  v_lsn      constant pg_lsn := pg_current_wal_flush_lsn();  -- a visible commit is in the flushed log
  v_until    constant timestamptz := clock_timestamp() + interval '2 seconds';
  v_standbys integer;
begin
  while v_required > 0 loop
    v_standbys := private.count_standbys(v_lsn);
    exit when v_standbys >= v_required;
    if v_standbys is null or clock_timestamp() > v_until then
      raise sqlstate 'PT503' using
        message = case when v_standbys is null
                       then 'The synchronous standby cannot be seen: grant pg_read_all_stats to the owner of the procedures'
                       else 'The synchronous standby has not confirmed the status of the batch; try again' end,
        detail = '{"code": "not_confirmed", "retry_after": 2}';
    end if;
    perform pg_sleep(0.005);
  end loop;
  raise sqlstate 'PT400' using message = p_message, detail = jsonb_build_object('code', p_code)::text;
end;
$$;

revoke execute on function private.refuse_status(text, text) from public;
comment on function private.refuse_status(text, text) is 'Refuse a request because of the batch''s status, once that is durable.';
