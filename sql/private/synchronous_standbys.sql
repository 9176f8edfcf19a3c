-- How many synchronous standbys each commit waits for: 0 without synchronous_standby_names.
create or replace function private.required_standbys()
returns integer
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when s.names = '' then 0
              -- ANY 2 (a, b, c), FIRST 2 (a, b, c) or 2 (a, b, c); a mere list means 1.
              else coalesce(substring(s.names from '^\s*(?:[[:alpha:]]+\s+)?([0-9]+)\s*\(')::integer, 1) end
    from (select current_setting('synchronous_standby_names')) as s (names)
$$;

revoke execute on function private.required_standbys() from public;
comment on function private.required_standbys() is 'How many synchronous standbys each commit waits for.';

-- How many synchronous standbys have the log up to p_lsn on disk. Null where the owner of the core may not see the
-- standbys: `grant pg_read_all_stats` to the owner then.
create or replace function private.count_standbys(p_lsn pg_lsn)
returns integer
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select case when pg_has_role('pg_read_all_stats', 'usage') then (
           select count(*)::integer
             from pg_stat_get_wal_senders() w
            where w.sync_state in ('sync', 'quorum') and w.flush_lsn >= p_lsn) end
$$;

revoke execute on function private.count_standbys(pg_lsn) from public;
comment on function private.count_standbys(pg_lsn) is 'How many synchronous standbys have the log up to a position.';
