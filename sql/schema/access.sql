-- Grants and policies of the tables. Everything starts from nothing, also where a project's default
-- privileges are generous. People read their own agency and write nowhere: the procedures
-- are their only door. A policy calls one bare function, so that it also runs on Citus.
revoke all on table public.agencies, public.users, public.campaigns, public.agent_mappings,
                    public.agency_phone_numbers, public.do_not_call,
                    public.call_batches, public.campaign_contacts,
                    public.contact_data, public.calls, public.batch_events, public.webhook_queue,
                    public.batch_imports, public.import_errors, public.holds, public.v_call_batch_summary
  from public, anon, authenticated, service_role, lastcall_admin;

grant select on table public.agencies, public.users, public.campaigns, public.agent_mappings,
                      public.agency_phone_numbers, public.do_not_call,
                      public.call_batches, public.campaign_contacts,
                      public.contact_data, public.calls, public.webhook_queue,
                      public.batch_imports, public.import_errors, public.v_call_batch_summary
  to authenticated, service_role, lastcall_admin;
-- Not the idempotency keys, nor what was asked and answered under them.
grant select (agency_id, batch_id, id, created_at, action, actor_kind, actor_id, actor_role,
              on_behalf_of, from_status, to_status, contacts, reason, request_id)
  on table public.batch_events to authenticated, service_role;
grant select on table public.batch_events to lastcall_admin;
grant select (id, agency_id, campaign_id, agent_mapping_id, from_number, until, reason, created_at, created_by,
              created_by_role, lifted_at, lifted_by, lifted_by_role, lift_reason)
  on table public.holds to authenticated, service_role;
grant select on table public.holds to lastcall_admin;
-- The backend brings agencies, people and what calls are made with; batches in progress change by
-- procedures alone.
grant insert, update, delete on table public.agencies, public.users, public.campaigns, public.agent_mappings,
                                      public.agency_phone_numbers, public.do_not_call to service_role;
grant insert on table public.call_batches to service_role;

alter table public.agencies enable row level security;
alter table public.users enable row level security;
alter table public.campaigns enable row level security;
alter table public.agent_mappings enable row level security;
alter table public.agency_phone_numbers enable row level security;
alter table public.do_not_call enable row level security;
alter table public.call_batches enable row level security;
alter table public.campaign_contacts enable row level security;
alter table public.contact_data enable row level security;
alter table public.calls enable row level security;
alter table public.batch_events enable row level security;
alter table public.webhook_queue enable row level security;
alter table public.batch_imports enable row level security;
alter table public.import_errors enable row level security;
alter table public.holds enable row level security;

create policy own_agency on public.agencies for select to authenticated
  using (id = private.current_agency_id());
create policy own_agency on public.users for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.campaigns for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.agent_mappings for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.agency_phone_numbers for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.do_not_call for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.call_batches for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.campaign_contacts for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.contact_data for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.calls for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.batch_events for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.webhook_queue for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.batch_imports for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.import_errors for select to authenticated
  using (agency_id = private.current_agency_id());
create policy own_agency on public.holds for select to authenticated
  using (agency_id = private.current_agency_id());

create policy every_agency on public.agencies for select to lastcall_admin using (true);
create policy every_agency on public.users for select to lastcall_admin using (true);
create policy every_agency on public.campaigns for select to lastcall_admin using (true);
create policy every_agency on public.agent_mappings for select to lastcall_admin using (true);
create policy every_agency on public.agency_phone_numbers for select to lastcall_admin using (true);
create policy every_agency on public.do_not_call for select to lastcall_admin using (true);
create policy every_agency on public.call_batches for select to lastcall_admin using (true);
create policy every_agency on public.campaign_contacts for select to lastcall_admin using (true);
create policy every_agency on public.contact_data for select to lastcall_admin using (true);
create policy every_agency on public.calls for select to lastcall_admin using (true);
create policy every_agency on public.batch_events for select to lastcall_admin using (true);
create policy every_agency on public.webhook_queue for select to lastcall_admin using (true);
create policy every_agency on public.batch_imports for select to lastcall_admin using (true);
create policy every_agency on public.import_errors for select to lastcall_admin using (true);
create policy every_agency on public.holds for select to lastcall_admin using (true);
