-- The roles that may cancel a batch, and the steps that a dialer can still take. Run: supabase test db. Everything is
-- rolled back.
begin;
set local search_path = public, extensions;
select plan(16);

insert into agencies (id, name) values
  ('7e570000-0000-4000-8000-00000000000a', 'Ours'), ('7e570000-0000-4000-8000-00000000000b', 'Theirs');
insert into users (id, agency_id, role) values
  ('7e570000-0000-4000-8000-0000000000a1', '7e570000-0000-4000-8000-00000000000a', 'agency_owner'),
  ('7e570000-0000-4000-8000-0000000000a2', '7e570000-0000-4000-8000-00000000000a', 'agency_member'),
  ('7e570000-0000-4000-8000-0000000000b1', '7e570000-0000-4000-8000-00000000000b', 'agency_owner');
insert into call_batches (agency_id, id, status, total_contacts) values
  ('7e570000-0000-4000-8000-00000000000a', '7e570000-0000-4000-8000-0000000000c1', 'processing', 5);
insert into campaign_contacts (agency_id, batch_id, phone_number)
select '7e570000-0000-4000-8000-00000000000a', '7e570000-0000-4000-8000-0000000000c1', '+1555000000' || i
  from generate_series(1, 5) as i;

-- A dialer has one contact on the phone and another one claimed when the cancel comes.
set local role service_role;
set local request.jwt.claims = '{"role": "service_role"}';
select call_id as started, lease as its_lease
  from claim_contacts(1, batch_id => '7e570000-0000-4000-8000-0000000000c1') \gset
select call_id as claimed, lease as other_lease
  from claim_contacts(1, batch_id => '7e570000-0000-4000-8000-0000000000c1') \gset
select results_eq(
  format('select unnest(started) from start_call(%L, %L, %L)',
    '7e570000-0000-4000-8000-0000000000c1', array[:started], :'its_lease'),
  array[:started]::bigint[], 'before the cancel, a claimed contact may be called');

set local role authenticated;
set local request.jwt.claims = '{"role": "authenticated"}';
select throws_ok($$select cancel_batch('7e570000-0000-4000-8000-0000000000c1')$$,
  'PT401', 'Not signed in', 'without a user nobody cancels');
set local request.jwt.claims = '{"sub": "7e570000-0000-4000-8000-0000000000b1", "role": "authenticated"}';
select throws_ok($$select cancel_batch('7e570000-0000-4000-8000-0000000000c1')$$,
  'PT404', 'Batch not found', 'for another agency''s owner there is no such batch');
set local request.jwt.claims = '{"sub": "7e570000-0000-4000-8000-0000000000a2", "role": "authenticated"}';
select throws_ok($$select cancel_batch('7e570000-0000-4000-8000-0000000000c1')$$,
  'PT403', null, 'a member may not cancel');
set local request.jwt.claims =
  '{"sub": "7e570000-0000-4000-8000-0000000000a2", "role": "authenticated", "user_role": "agency_owner"}';
select throws_ok($$select cancel_batch('7e570000-0000-4000-8000-0000000000c1')$$,
  'PT403', null, 'nor with a token that calls the member an owner');

set local request.jwt.claims = '{"sub": "7e570000-0000-4000-8000-0000000000a1", "role": "authenticated"}';
select is(status, 'processing', 'what was refused changed nothing')
  from call_batches where id = '7e570000-0000-4000-8000-0000000000c1';
select results_eq(
  $$select status, contacts_skipped from cancel_batch('7e570000-0000-4000-8000-0000000000c1', reason => 'wrong list')$$,
  $$values ('cancelled'::batch_status, 4)$$, 'the owner cancels, and all but the one on the phone are skipped');
select throws_ok($$select cancel_batch('7e570000-0000-4000-8000-0000000000c1')$$,
  'PT400', 'Batch is already cancelled', 'a second cancel is told so');
select results_eq(
  $$select status::text, count(*)::integer from campaign_contacts
     where batch_id = '7e570000-0000-4000-8000-0000000000c1' group by 1 order by 1$$,
  $$values ('in_progress', 1), ('skipped', 4)$$, 'each contact is accounted for');
select results_eq(
  $$select action, actor_kind, actor_id, contacts, reason from batch_events
     where batch_id = '7e570000-0000-4000-8000-0000000000c1'$$,
  $$values ('cancel', 'user', '7e570000-0000-4000-8000-0000000000a1'::uuid, 4, 'wrong list')$$,
  'the audit trail has who, how many and why');

set local role service_role;
set local request.jwt.claims = '{"role": "service_role"}';
select is_empty($$select * from claim_contacts(5, batch_id => '7e570000-0000-4000-8000-0000000000c1')$$,
  'after the cancel nothing is claimed');
select is_empty(
  format('select unnest(started) from start_call(%L, %L, %L)',
    '7e570000-0000-4000-8000-0000000000c1', array[:claimed], :'other_lease'),
  'what was claimed before it is not called');
select lives_ok($$select release_expired_leases(), process_batches()$$, 'the dialer''s housekeeping goes on');
select results_eq(
  format($$select call_id from finish_call(%L, %L) where result = 'changed'$$, '7e570000-0000-4000-8000-0000000000c1',
    jsonb_build_array(jsonb_build_object(
      'call_id', :started, 'lease', :'its_lease', 'status', 'failed', 'outcome', 'busy'))),
  array[:started]::bigint[], 'the call in progress ends in peace');
select results_eq(
  $$select status::text, count(*)::integer from campaign_contacts
     where batch_id = '7e570000-0000-4000-8000-0000000000c1' group by 1 order by 1$$,
  $$values ('failed', 1), ('skipped', 4)$$, 'and is not tried again');

reset role;
select is_empty('select * from private.check_counters()', 'the books balance');

select * from finish();
rollback;
