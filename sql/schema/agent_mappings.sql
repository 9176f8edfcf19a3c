-- The voice agents of an agency: who speaks when a contact answers.
create table public.agent_mappings (
  agency_id            uuid not null references public.agencies (id) on delete cascade,
  id                   uuid not null default gen_random_uuid(),
  ultravox_agent_id    text not null,
  ultravox_agent_name  text,
  max_duration_seconds integer not null default 3600 check (max_duration_seconds between 1 and 86400),
  recording_enabled    boolean not null default true,
  created_at           timestamptz not null default now(),
  primary key (agency_id, id),
  unique (agency_id, ultravox_agent_id)
);

comment on table public.agent_mappings is 'The voice agents of an agency.';
comment on column public.agent_mappings.ultravox_agent_id is 'The carrier''s id of the agent.';
