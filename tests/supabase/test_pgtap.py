"""supabase/tests, run as `supabase test db` runs them: by pg_prove, as the project's owner."""

from __future__ import annotations

import os
import re
import subprocess

import psycopg
import pytest

from functions.migrations import migrate

from ..support.hosted import OWNER, ROOT, SUPERUSER, HostedPostgres, need_supabase_cli

need_supabase_cli()


@pytest.fixture
def project(hosted: HostedPostgres) -> str:
    """A project's database as after `supabase db reset`, with pgTAP, which the CLI puts there."""
    database = hosted.project()
    migrate(hosted.uri(database))
    with psycopg.connect(hosted.uri(database)) as connection:
        connection.execute((ROOT / "supabase" / "seed.sql").read_bytes())
    with psycopg.connect(hosted.uri(database, SUPERUSER)) as connection:
        connection.execute("create extension pgtap with schema extensions")
    return database


def pg_prove(hosted: HostedPostgres, database: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["pg_prove", "--ext", ".pg", "--ext", ".sql", "--recurse", "--verbose", ROOT / "supabase" / "tests"],
        env={
            "PATH": os.environ["PATH"],
            "PGHOST": "127.0.0.1",
            "PGPORT": str(hosted.port),
            "PGUSER": OWNER,
            "PGPASSWORD": hosted.password,
            "PGDATABASE": database,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )


def contents(hosted: HostedPostgres, database: str) -> list[tuple[int, ...]]:
    """How many agencies, contacts to call, calls and events there are."""
    with psycopg.connect(hosted.uri(database)) as connection:
        return connection.execute(
            "select (select count(*) from agencies), (select count(*) from campaign_contacts where status = 'pending'),"
            " (select count(*) from calls), (select count(*) from batch_events)"
        ).fetchall()


def test_they_pass_and_leave_nothing_behind(hosted: HostedPostgres, project: str) -> None:
    done = pg_prove(hosted, project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Result: PASS" in done.stdout
    assert contents(hosted, project) == [(1, 500, 0, 0)]


@pytest.mark.parametrize(
    ("mistake", "failed"),
    [
        ("grant execute on function cancel_batch to anon", "without a token nothing runs but ingest_webhook"),
        ("drop policy own_agency on call_batches", "a user reads the own agency's batches"),
        ("alter function private.require_admin rename to no_more", "a member may not cancel"),
    ],
)
def test_they_find_a_mistake(hosted: HostedPostgres, project: str, mistake: str, failed: str) -> None:
    with psycopg.connect(hosted.uri(project)) as connection:
        connection.execute(mistake.encode())
    done = pg_prove(hosted, project)
    assert done.returncode != 0
    assert re.search(rf"^not ok \d+ - {failed}$", done.stdout, re.MULTILINE)
