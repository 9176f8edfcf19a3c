-- The longest wait for a batch: the session's lock_timeout if it has one, or else 10 seconds for people and
-- 1 for the service, whose calls must be placed within seconds.
create or replace function private.longest_wait()
returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when current_setting('lock_timeout') <> '0' then current_setting('lock_timeout')
              when current_setting('role', true) = 'service_role' then '1s'
              else '10s' end
$$;

revoke execute on function private.longest_wait() from public;
comment on function private.longest_wait() is 'The longest wait for a batch that another request holds.';

-- Refuse a batch that another request holds. The detail names the procedure that the holder called last (held_by) and the
-- age of the holder's transaction (held_seconds), where pg_locks and pg_stat_activity show them. The detail shows no more
-- of the holder's query.
-- Raises PT503.
create or replace function private.refuse_busy(p_agency_id uuid, p_batch_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_xmax   xid;
  v_xids   xid[];
  v_holder record;
begin
  select b.xmax into v_xmax
    from public.call_batches b
   where b.agency_id = p_agency_id and b.id = p_batch_id;
  begin
    -- A holder that had to wait itself left its transaction as a member of a multixact.
    v_xids := array(select m.xid from pg_get_multixact_members(v_xmax) m);
  exception when others then
    v_xids := array[v_xmax];  -- no multixact, but the transaction itself
  end;
  select (select p.proname
            from pg_proc p
            join pg_proc q on q.proname = p.proname and q.pronamespace = 'private'::regnamespace
           where p.pronamespace = 'public'::regnamespace and strpos(a.query, p.proname) > 0
           order by strpos(a.query, p.proname)
           limit 1) as procedure,
         floor(extract(epoch from clock_timestamp() - a.xact_start))::integer as seconds
    into v_holder
    from pg_locks l
    join pg_stat_activity a on a.pid = l.pid
   where l.locktype = 'transactionid' and l.granted and l.transactionid = any (v_xids)
   limit 1;
  raise sqlstate 'PT503' using message = 'Another request holds this batch; try again',
    detail = jsonb_strip_nulls(jsonb_build_object(
      'code', 'batch_busy', 'retry_after', 2, 'held_by', v_holder.procedure, 'held_seconds', v_holder.seconds))::text;
end;
$$;

revoke execute on function private.refuse_busy(uuid, uuid) from public;
comment on function private.refuse_busy(uuid, uuid) is 'Refuse a batch that another request holds.';

-- The batch, locked until the transaction ends. Everyone who changes a batch or its contacts
-- comes through here (claimers take the same lock with skip locked) before they look at
-- anything else of it: one lock, one order, no deadlock, and a status that holds.
-- The commit is durable, whatever the database's synchronous_commit is.
-- The wait for another request is bounded (private.longest_wait).
-- Raises PT404, PT503 (another request holds the batch), 40001 (changed meanwhile, at a stricter isolation).
create or replace function private.lock_batch(p_agency_id uuid, p_batch_id uuid)
returns public.call_batches
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lock_timeout constant text := current_setting('lock_timeout');
  v_batch        public.call_batches;
begin
  perform private.commit_durably();
  -- First without the subtransaction that a refusal needs: an update under a subtransaction's lock makes a multixact.
  if current_setting('transaction_isolation') = 'read committed' then
    select b.* into v_batch
      from public.call_batches b
     where b.agency_id = p_agency_id and b.id = p_batch_id
       for no key update skip locked;
    if found then
      return v_batch;
    end if;
  end if;

  begin
    perform set_config('lock_timeout', private.longest_wait(), true);
    select b.* into v_batch
      from public.call_batches b
     where b.agency_id = p_agency_id and b.id = p_batch_id
       for no key update;
    if not found then
      raise sqlstate 'PT404' using message = 'Batch not found',
        detail = '{"code": "batch_not_found"}';
    end if;
    perform set_config('lock_timeout', v_lock_timeout, true);
  exception
    when lock_not_available then
      perform private.refuse_busy(p_agency_id, p_batch_id);
    when serialization_failure then
      raise sqlstate '40001' using message = sqlerrm,
        hint = 'Run it at isolation level read committed';
  end;
  return v_batch;
end;
$$;

revoke execute on function private.lock_batch(uuid, uuid) from public;
comment on function private.lock_batch(uuid, uuid) is 'The batch, locked; the first step of every change.';
