"""sql/supabase/pg_cron.sql, as far as a plain PostgreSQL goes: with stand-ins for pg_cron, pg_net and the vault,
which remember what they were told."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from functions.migrations import SQL

from ..support.database import TestDatabase

pytestmark = pytest.mark.own_database

SCHEDULE = (SQL / "supabase" / "pg_cron.sql").read_text()
STAND_INS = {
    "pg_cron": """
        create schema cron;
        create table cron.job (jobname text primary key, schedule text, command text);
        create function cron.schedule(job_name text, schedule text, command text) returns bigint language sql as $$
          insert into cron.job values (job_name, schedule, command)
              on conflict (jobname) do update set schedule = excluded.schedule, command = excluded.command;
          select 1::bigint $$""",
    "pg_net": """
        create schema net;
        create table net.sent (url text, body jsonb, headers jsonb, timeout_milliseconds integer);
        create function net.http_post(url text, body jsonb default '{}', params jsonb default '{}',
          headers jsonb default '{"Content-Type": "application/json"}', timeout_milliseconds integer default 5000)
          returns bigint language sql as $$
          insert into net.sent values (url, body, headers, timeout_milliseconds); select 1::bigint $$""",
    "vault": """
        create schema vault;
        create table vault.decrypted_secrets (name text, decrypted_secret text)""",
}


def provide(db: TestDatabase, *missing: str) -> None:
    for name, sql in STAND_INS.items():
        if name not in missing:
            db.rows(sql)


def keep(db: TestDatabase, **secrets: str) -> None:
    for name, secret in secrets.items():
        db.rows("insert into vault.decrypted_secrets values (%s, %s)", name, secret)


def run_jobs(db: TestDatabase) -> list[dict[str, Any]]:
    for job in db.rows("select command from cron.job order by jobname"):
        db.rows(job["command"])
    return db.rows("select * from net.sent")


def test_both_functions_are_called_each_minute_as_the_service(db: TestDatabase) -> None:
    provide(db)
    keep(db, lastcall_url="https://lastcall.example.com/", lastcall_cron_secret="s3cret")
    db.owner.execute(SCHEDULE)
    db.owner.execute(SCHEDULE)
    jobs = db.rows("select jobname, schedule from cron.job order by jobname")
    assert jobs == [
        {"jobname": "lastcall/calls-batch-process", "schedule": "* * * * *"},
        {"jobname": "lastcall/process-webhook-queue", "schedule": "* * * * *"},
    ]
    assert "s3cret" not in str(db.rows("select command from cron.job"))
    sent = run_jobs(db)
    assert [request["url"] for request in sent] == [
        "https://lastcall.example.com/functions/v1/calls-batch-process",
        "https://lastcall.example.com/functions/v1/process-webhook-queue",
    ]
    assert sent[0]["headers"] == {"Content-Type": "application/json", "Authorization": "Bearer s3cret"}
    assert (sent[0]["body"], sent[0]["timeout_milliseconds"]) == ({}, 58_000)


def test_a_secret_that_changes_needs_no_new_schedule(db: TestDatabase) -> None:
    provide(db)
    keep(db, lastcall_url="https://lastcall.example.com", lastcall_cron_secret="old")
    db.owner.execute(SCHEDULE)
    db.rows("update vault.decrypted_secrets set decrypted_secret = 'new' where name = 'lastcall_cron_secret'")
    assert {request["headers"]["Authorization"] for request in run_jobs(db)} == {"Bearer new"}


def test_it_can_be_every_few_seconds(db: TestDatabase) -> None:
    provide(db)
    keep(db, lastcall_url="https://lastcall.example.com", lastcall_cron_secret="s3cret")
    db.owner.execute("set lastcall.schedule = '10 seconds'")
    db.owner.execute(SCHEDULE)
    assert {row["schedule"] for row in db.rows("select schedule from cron.job")} == {"10 seconds"}


@pytest.mark.parametrize("missing", STAND_INS)
def test_each_missing_part_is_named(db: TestDatabase, missing: str) -> None:
    provide(db, missing)
    with pytest.raises(psycopg.Error, match=f"{missing} is missing"):
        db.owner.execute(SCHEDULE)


def test_without_its_secrets_nothing_is_scheduled(db: TestDatabase) -> None:
    provide(db)
    keep(db, lastcall_url="https://lastcall.example.com", lastcall_cron_secret="")
    with pytest.raises(psycopg.Error, match="not in the vault: lastcall_cron_secret"):
        db.owner.execute(SCHEDULE)
    assert db.rows("select from cron.job") == []
