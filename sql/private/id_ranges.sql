-- Ids as ranges of neighbours, in ascending order; null: one range of every id. Each is a range of the primary key:
-- "= any" and a join can be planned to read the whole batch.
create or replace function private.id_ranges(p_ids bigint[])
returns table (first_id bigint, last_id bigint)
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select min(i.id), max(i.id)
    from (select u.id, u.id - row_number() over (order by u.id) as run
            from (select distinct u.id from unnest(p_ids) as u (id)) u) i
   where p_ids is not null
   group by i.run
   union all
  select 0, 9223372036854775807
   where p_ids is null
   order by 1
$$;

revoke execute on function private.id_ranges(bigint[]) from public;
comment on function private.id_ranges(bigint[]) is 'Ids as ranges of neighbours; null: one range of every id.';
