-- Grants of tables and procedures, by role. Run: supabase test db. Everything is rolled back.
begin;
set local search_path = public, extensions;
select plan(12);

insert into agencies (id, name) values
  ('7e570000-0000-4000-8000-00000000000a', 'Ours'), ('7e570000-0000-4000-8000-00000000000b', 'Theirs');
insert into users (id, agency_id, role) values
  ('7e570000-0000-4000-8000-0000000000a1', '7e570000-0000-4000-8000-00000000000a', 'client_viewer'),
  ('7e570000-0000-4000-8000-0000000000a2', null, 'agency_owner');
insert into call_batches (agency_id, id, total_contacts) values
  ('7e570000-0000-4000-8000-00000000000a', '7e570000-0000-4000-8000-0000000000c1', 1),
  ('7e570000-0000-4000-8000-00000000000b', '7e570000-0000-4000-8000-0000000000c2', 1);
insert into campaign_contacts (agency_id, batch_id, phone_number)
select agency_id, id, '+15550000001'
  from call_batches
 where id in ('7e570000-0000-4000-8000-0000000000c1', '7e570000-0000-4000-8000-0000000000c2');

-- Functions of extensions are not ours.
select results_eq(
  $$select p.oid::regprocedure::text collate "C"
      from pg_proc p
     where p.pronamespace in ('public'::regnamespace, 'private'::regnamespace)
       and has_function_privilege('anon', p.oid, 'execute')
       and not exists (select from pg_depend d
                        where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
     order by 1$$,
  $$values ('ingest_webhook(uuid,text,jsonb,text)' collate "C"), ('private.ingest_webhook(uuid,text,jsonb,text)')$$,
  'without a token nothing runs but ingest_webhook');
select is_empty(
  $$select c.oid::regclass, p.privilege
      from pg_class c, unnest(array['select', 'insert', 'update', 'delete', 'truncate']) as p (privilege)
     where c.relkind in ('r', 'v') and c.relnamespace in ('public'::regnamespace, 'private'::regnamespace)
       and has_table_privilege('anon', c.oid, p.privilege)$$,
  'without a token nothing is read or written');
select is_empty(
  $$select c.oid::regclass
      from pg_class c
     where c.relkind = 'S' and c.relnamespace in ('public'::regnamespace, 'private'::regnamespace)
       and (has_sequence_privilege('anon', c.oid, 'usage, select, update')
            or has_sequence_privilege('authenticated', c.oid, 'usage, select, update'))$$,
  'nobody draws or sets an id');
select is_empty(
  $$select relname from pg_class
     where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and not relrowsecurity$$,
  'each table has row-level security');

set local role anon;
set local request.jwt.claims = '{"role": "anon"}';
select throws_ok('select from call_batches', '42501', null, 'the publishable key reads no batch');
select throws_ok($$select cancel_batch('7e570000-0000-4000-8000-0000000000c1')$$, '42501', null, 'and cancels none');

set local role authenticated;
set local request.jwt.claims = '{"sub": "7e570000-0000-4000-8000-0000000000a1", "role": "authenticated"}';
select results_eq('select id from call_batches', $$values ('7e570000-0000-4000-8000-0000000000c1'::uuid)$$,
  'a user reads the own agency''s batches');
select results_eq('select id from v_call_batch_summary', $$values ('7e570000-0000-4000-8000-0000000000c1'::uuid)$$,
  'and their progress');
select results_eq('select batch_id from campaign_contacts',
  $$values ('7e570000-0000-4000-8000-0000000000c1'::uuid)$$, 'and their contacts');
select throws_ok($$update call_batches set status = 'completed'$$, '42501', null, 'but writes no table');
select throws_ok('select claim_contacts()', '42501', null, 'and plays no dialer');

set local request.jwt.claims = '{"sub": "7e570000-0000-4000-8000-0000000000a2", "role": "authenticated"}';
select is_empty('select id from call_batches', 'a user of no agency reads nothing');

reset role;
select * from finish();
rollback;
