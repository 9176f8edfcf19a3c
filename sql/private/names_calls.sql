-- Whether a JSON value is an array of objects that each name a call: by call_id, and by the lease of its claim.
-- lease: a UUID, or null for a call that was claimed before leases had names; it is never left out.
create or replace function private.names_calls(p_value jsonb)
returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_typeof(p_value) is not distinct from 'array' and not exists (
    select from jsonb_array_elements(case when jsonb_typeof(p_value) = 'array' then p_value end) as e (item)
     where jsonb_typeof(e.item) <> 'object'
        or jsonb_typeof(e.item -> 'call_id') is distinct from 'number'
        or e.item ->> 'call_id' !~ '^[0-9]{1,18}$'
        or coalesce(jsonb_typeof(e.item -> 'lease') <> 'null'
                    and e.item ->> 'lease' !~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$', true))
$$;

revoke execute on function private.names_calls(jsonb) from public;
comment on function private.names_calls(jsonb) is 'Whether each item of a JSON array names a call by id and lease.';
