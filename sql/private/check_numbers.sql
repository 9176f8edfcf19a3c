-- Refuse numbers that are not active ones of the agency. Raises PT400.
create or replace function private.check_numbers(p_agency_id uuid, p_numbers text[])
returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_number text;
begin
  if cardinality(p_numbers) not between 1 and 100 then
    raise sqlstate 'PT400' using message = 'calling_numbers must be 1 to 100 numbers',
      detail = '{"code": "calling_numbers_invalid"}';
  end if;
  select n.given into v_number
    from unnest(p_numbers) as n (given)
   where not exists (
     select from public.agency_phone_numbers p
      where p.agency_id = p_agency_id and p.phone_number = n.given and p.status = 'active' and p.is_active)
   limit 1;
  if found then
    raise sqlstate 'PT400' using message = format('%s is not an active number of the agency', left(coalesce(v_number, 'null'), 50)),
      detail = '{"code": "from_number_not_active"}';
  end if;
end;
$$;

revoke execute on function private.check_numbers(uuid, text[]) from public;
comment on function private.check_numbers(uuid, text[]) is 'Refuse numbers that are not active ones of the agency.';
