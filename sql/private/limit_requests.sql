-- Count a request of a user to a procedure that costs much, unless it is one too many. Services and consoles have no
-- limit. A request that is refused later, and undone, does not count. Requests that have not committed do not see each
-- other: as many more may pass as there are connections.
-- Raises PT429, with the seconds after which the next one passes as retry_after.
create or replace function private.limit_requests(p_actor private.actor, p_procedure text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now    timestamptz := clock_timestamp();
  v_limit  private.rate_limits;
  v_oldest timestamptz;
begin
  if p_actor.kind <> 'user' then
    return;
  end if;
  select l.* into v_limit from private.rate_limits l where l.procedure = p_procedure;
  if not found then
    return;
  end if;

  select r.at into v_oldest
    from private.user_requests r
   where r.agency_id = p_actor.agency_id and r.user_id = p_actor.id and r.procedure = p_procedure
   order by r.id desc
  offset v_limit.max_requests - 1
   limit 1;
  if v_oldest > v_now - v_limit.period then
    raise sqlstate 'PT429' using message = 'Too many requests; try again later',
      detail = jsonb_build_object('code', 'rate_limited', 'retry_after',
        ceil(extract(epoch from v_oldest + v_limit.period - v_now)))::text;
  end if;

  -- Rows that a concurrent request is about to delete are left to that request.
  delete from private.user_requests r
   where r.agency_id = p_actor.agency_id and r.user_id = p_actor.id and r.procedure = p_procedure
     and r.id in (
       select o.id
         from private.user_requests o
        where o.agency_id = p_actor.agency_id and o.user_id = p_actor.id and o.procedure = p_procedure
          and o.at <= v_now - v_limit.period
          for update skip locked);
  insert into private.user_requests (agency_id, user_id, procedure, at)
  values (p_actor.agency_id, p_actor.id, p_procedure, v_now);
end;
$$;

revoke execute on function private.limit_requests(private.actor, text) from public;
comment on function private.limit_requests(private.actor, text) is 'Count a request of a user, unless it is one too many.';
