-- A small agency to try things on: `supabase db reset` loads it after the migrations.
insert into public.agencies (id, name) values ('5eed0000-0000-4000-8000-00000000000a', 'Acme Calls');

insert into public.users (id, agency_id, role, external_id) values
  ('5eed0000-0000-4000-8000-0000000000a1', '5eed0000-0000-4000-8000-00000000000a', 'agency_owner', '64e5f12345abcdef12345678'),
  ('5eed0000-0000-4000-8000-0000000000a2', '5eed0000-0000-4000-8000-00000000000a', 'agency_member', null);

insert into public.call_batches (agency_id, id, user_id, external_id, name, status, total_contacts) values
  ('5eed0000-0000-4000-8000-00000000000a', '5eed0000-0000-4000-8000-0000000000b1',
   '5eed0000-0000-4000-8000-0000000000a1', '64e5f12345abcdef98765432', 'Spring offer', 'processing', 500);

insert into public.campaign_contacts (agency_id, batch_id, phone_number)
select '5eed0000-0000-4000-8000-00000000000a', '5eed0000-0000-4000-8000-0000000000b1',
       '+1555' || lpad(i::text, 7, '0')
  from generate_series(1, 500) as i;

insert into public.agent_mappings (agency_id, id, ultravox_agent_id, ultravox_agent_name) values
  ('5eed0000-0000-4000-8000-00000000000a', '5eed0000-0000-4000-8000-0000000000c1', 'agent', 'Sales Agent');
insert into public.campaigns (agency_id, id, name) values
  ('5eed0000-0000-4000-8000-00000000000a', '5eed0000-0000-4000-8000-0000000000d1', 'Q1 Outreach');
insert into public.agency_phone_numbers (agency_id, phone_number, status) values
  ('5eed0000-0000-4000-8000-00000000000a', '+15551234567', 'active');
