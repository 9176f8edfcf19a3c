-- A new batch as it will be inserted: what the caller gave, checked against the agency, and what
-- every batch starts with. Raises PT404 (no such
-- agent, campaign or user in the agency), PT400 (a setting out of range; not an active number).
create or replace function private.check_batch(
  p_agency_id uuid, p_batch public.call_batches, p_actor private.actor)
returns public.call_batches
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch   public.call_batches;
  v_missing text;
  v_invalid text;
begin
  v_missing := case when p_batch.agent_mapping_id is null then 'agent_mapping_id'
                    when p_batch.from_number is null then 'from_number'
                    when p_batch.campaign_id is null then 'campaign_id' end;
  if v_missing is not null then
    raise sqlstate 'PT400' using message = v_missing || ' is required',
      detail = format('{"code": "%s_required"}', v_missing);
  end if;

  v_batch := private.fresh_batch(p_batch, p_batch.scheduled_for);
  v_batch.agency_id := p_agency_id;
  v_batch.user_id := coalesce(p_batch.user_id, case when p_actor.kind = 'user' then p_actor.id end);

  -- A required limit that is null is out of range; an optional one is not checked.
  v_invalid := case
    when (p_batch.calls_per_minute between 1 and 60) is not true then 'calls_per_minute must be 1 to 60'
    when (p_batch.max_concurrent between 1 and 100) is not true then 'max_concurrent must be 1 to 100'
    when (p_batch.retry_delay_seconds between 0 and 604800) is not true then 'retry_delay_seconds must be 0 to 604800'
    when p_batch.max_calls_per_number not between 1 and 100 then 'max_calls_per_number must be 1 to 100'
    when p_batch.mode <> v_batch.mode and v_batch.mode = 'scheduled' then 'mode must be scheduled when scheduled_for is given'
    when p_batch.mode <> v_batch.mode then 'mode scheduled needs a scheduled_for'
    when cardinality(p_batch.allowed_days) = 0 or not p_batch.allowed_days <@ '{0,1,2,3,4,5,6}'
      then 'allowed_days must be days from 0 (Sunday) to 6'
    when not private.is_timezone(p_batch.timezone) then 'timezone is not known'
    when length(p_batch.name) not between 1 and 500 then 'name must have 1 to 500 characters'
    when length(p_batch.external_id) not between 1 and 500 then 'external_id must have 1 to 500 characters'
    when cardinality(p_batch.retry_outcomes) > 100 then 'retry_outcomes must be at most 100'
  end;
  if v_invalid is not null then
    raise sqlstate 'PT400' using message = v_invalid,
      detail = format('{"code": "%s_invalid"}', split_part(v_invalid, ' ', 1));
  end if;

  if not exists (select from public.agent_mappings m
                  where m.agency_id = p_agency_id and m.id = v_batch.agent_mapping_id) then
    raise sqlstate 'PT404' using message = 'Agent not found',
      detail = '{"code": "agent_not_found"}';
  end if;
  if not exists (select from public.campaigns c
                  where c.agency_id = p_agency_id and c.id = v_batch.campaign_id) then
    raise sqlstate 'PT404' using message = 'Campaign not found',
      detail = '{"code": "campaign_not_found"}';
  end if;
  if v_batch.user_id is not null and not exists (
       select from public.users u where u.agency_id = p_agency_id and u.id = v_batch.user_id) then
    raise sqlstate 'PT404' using message = 'User not found',
      detail = '{"code": "user_not_found"}';
  end if;
  perform private.check_numbers(p_agency_id, array[v_batch.from_number]);
  perform private.check_numbers(p_agency_id, v_batch.calling_numbers);
  return v_batch;
end;
$$;

revoke execute on function private.check_batch(uuid, public.call_batches, private.actor) from public;
comment on function private.check_batch(uuid, public.call_batches, private.actor) is 'A new batch, checked.';
