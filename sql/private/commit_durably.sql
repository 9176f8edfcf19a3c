-- Make the commit of this transaction wait for the disk and, where synchronous_standby_names is set, for the synchronous
-- standby's disk: an answer must outlast a failover. A stronger remote_apply stays.
-- Every promise to a caller comes through here, mostly by lock_batch and record_event.
create or replace function private.commit_durably()
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('synchronous_commit') in ('off', 'local', 'remote_write') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
end;
$$;

revoke execute on function private.commit_durably() from public;
comment on function private.commit_durably() is 'Make the commit of this transaction wait for disk and standby.';

-- The same for a transaction that repeats an answer and may change nothing. PostgreSQL waits only for a transaction
-- that wrote to the log: an empty message is enough.
create or replace function private.commit_repeat_durably()
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  perform private.commit_durably();
  perform pg_logical_emit_message(true, 'lastcall', '');
end;
$$;

revoke execute on function private.commit_repeat_durably() from public;
comment on function private.commit_repeat_durably() is 'Make the commit of a repeated answer wait for disk and standby.';
