-- Call calls-batch-process and process-webhook-queue from within a Supabase project, by pg_cron and pg_net.
-- No part of the core: an operator runs it, in the SQL editor or by psql -f, again after every change of it.
-- First, once:
--   create extension if not exists pg_cron;
--   create extension if not exists pg_net;
--   select vault.create_secret('https://lastcall.example.com', 'lastcall_url');      -- where the functions are
--   select vault.create_secret('<the value of LASTCALL_CRON_SECRET>', 'lastcall_cron_secret');
-- Each minute, or as often as lastcall.schedule says (pg_cron 1.5 and later: seconds too):
--   set lastcall.schedule = '10 seconds';
-- To end it: select cron.unschedule('lastcall/calls-batch-process'), cron.unschedule('lastcall/process-webhook-queue');
do $$
declare
  v_schedule constant text := coalesce(nullif(current_setting('lastcall.schedule', true), ''), '* * * * *');
  v_missing  text;
  v_function text;
begin
  if to_regprocedure('cron.schedule(text,text,text)') is null then
    raise exception 'pg_cron is missing' using hint = 'create extension pg_cron;';
  end if;
  if to_regprocedure('net.http_post(text,jsonb,jsonb,jsonb,integer)') is null then
    raise exception 'pg_net is missing' using hint = 'create extension pg_net;';
  end if;
  if to_regclass('vault.decrypted_secrets') is null then
    raise exception 'the vault is missing' using hint = 'create extension supabase_vault;';
  end if;
  select string_agg(w.name, ', ') into v_missing
    from (values ('lastcall_url'), ('lastcall_cron_secret')) as w (name)
   where not exists (select from vault.decrypted_secrets s where s.name = w.name and s.decrypted_secret <> '');
  if v_missing is not null then
    raise exception 'not in the vault: %', v_missing using hint = 'select vault.create_secret(''<value>'', ''<name>'');';
  end if;

  foreach v_function in array array['calls-batch-process', 'process-webhook-queue'] loop
    -- The secrets are read when the job runs: what is scheduled holds none, and they may change.
    perform cron.schedule('lastcall/' || v_function, v_schedule, format($job$
      select net.http_post(
        url := (select rtrim(s.decrypted_secret, '/') from vault.decrypted_secrets s where s.name = 'lastcall_url')
               || '/functions/v1/' || %L,
        body := '{}'::jsonb,
        headers := jsonb_build_object(
          'Content-Type', 'application/json',
          'Authorization', 'Bearer ' || (
            select s.decrypted_secret from vault.decrypted_secrets s where s.name = 'lastcall_cron_secret')),
        timeout_milliseconds := 58000)
      $job$, v_function));
  end loop;
end;
$$;
