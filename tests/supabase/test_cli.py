"""supabase/ is a project that the Supabase CLI accepts, pushes, checks and makes types of."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from functions import migrations
from functions.migrations import MIGRATIONS, migrate

from ..support.database import dump_schema
from ..support.hosted import ROOT, SUPERUSER, HostedPostgres, need_supabase_cli, supabase

need_supabase_cli()

NAMES = [path.stem for path in sorted(MIGRATIONS.glob("*.sql"))]
ACCEPTED = {
    # To delete a campaign or an agent looks through the agency's batches by the primary key (6 ms for 10,000). An index
    # would make that faster and every new batch slower, and tempt plans that look for an agency's batches.
    "unindexed_foreign_keys_public_call_batches_call_batches_agency_id_campaign_id_fkey",
    "unindexed_foreign_keys_public_call_batches_call_batches_agency_id_agent_mapping_id_fkey",
    # Holds are few.
    "unindexed_foreign_keys_public_holds_holds_agency_id_campaign_id_fkey",
    "unindexed_foreign_keys_public_holds_holds_agency_id_agent_mapping_id_fkey",
}
"""Hints of the advisors that we do not follow."""


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON of a command that succeeded."""
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def push(uri: str, folder: Path = ROOT) -> list[str]:
    """`supabase db push`; the names of the migrations that it applied."""
    told = answer(supabase("db", "push", "--output-format", "json", uri=uri, folder=folder))
    return [Path(name).stem for name in told["migrations"]]


def history(uri: str) -> list[tuple[str, str]]:
    """`supabase migration list`: each version as it is here, and as it is there."""
    told = answer(supabase("migration", "list", "--output-format", "json", uri=uri))
    return [(row["local"], row["remote"]) for row in told["migrations"]]


def rows(uri: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(uri) as connection:
        return connection.execute(query.encode()).fetchall()


def copied(folder: Path, edit: Callable[[str], str]) -> Path:
    """The project in another folder, its config.toml edited."""
    shutil.copytree(ROOT / "supabase", folder / "supabase", ignore=shutil.ignore_patterns(".temp"))
    config = folder / "supabase" / "config.toml"
    config.write_text(edit(config.read_text()))
    return folder


def test_push_applies_each_migration_once(hosted: HostedPostgres) -> None:
    uri = hosted.uri(hosted.project())
    assert push(uri) == NAMES
    assert push(uri) == []
    versions = [name.partition("_")[0] for name in NAMES]
    assert history(uri) == [(version, version) for version in versions]


def test_push_and_migrate_build_the_same(hosted: HostedPostgres, pushed: str) -> None:
    migrated = hosted.project()
    migrate(hosted.uri(migrated))
    programs = hosted.server.bin_folder
    assert dump_schema(programs, hosted.uri(pushed)) == dump_schema(programs, hosted.uri(migrated))


def test_migrate_goes_on_where_push_stopped(hosted: HostedPostgres, tmp_path: Path) -> None:
    uri = hosted.uri(hosted.project())
    former = copied(tmp_path, lambda config: config)
    for name in NAMES[1:]:
        (former / "supabase" / "migrations" / f"{name}.sql").unlink()
    assert push(uri, former) == NAMES[:1]
    assert migrate(uri) == NAMES[1:]
    assert (push(uri), migrate(uri)) == ([], [])


def test_push_goes_on_where_migrate_stopped(
    hosted: HostedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = hosted.uri(hosted.project())
    shutil.copy(MIGRATIONS / f"{NAMES[0]}.sql", tmp_path)
    with monkeypatch.context() as former:
        former.setattr(migrations, "MIGRATIONS", tmp_path)
        assert migrate(uri) == NAMES[:1]
    assert push(uri) == NAMES[1:]
    assert (push(uri), migrate(uri)) == ([], [])


def test_a_migration_that_push_cannot_apply_leaves_nothing_of_itself(hosted: HostedPostgres, tmp_path: Path) -> None:
    uri = hosted.uri(hosted.project())
    migrate(uri)
    project = copied(tmp_path, lambda config: config)
    bad = project / "supabase" / "migrations" / "20991231000000_bad.sql"
    bad.write_text("create table public.half_done ();\nselect 1 / 0;\n")
    failed = supabase("db", "push", uri=uri, folder=project)
    assert failed.returncode == 1
    assert "division by zero" in failed.stdout + failed.stderr
    assert rows(uri, "select to_regclass('public.half_done')") == [(None,)]
    assert push(uri) == []


def test_push_loads_the_seed(hosted: HostedPostgres, pushed: str) -> None:
    uri = hosted.uri(pushed)
    assert rows(uri, "select status::text, total_contacts from call_batches") == [("processing", 500)]
    assert rows(uri, "select * from private.check_counters()") == []


def test_lint_finds_nothing(hosted: HostedPostgres, pushed: str) -> None:
    uri = hosted.uri(pushed, SUPERUSER)
    done = supabase("db", "lint", "--level", "warning", "--fail-on", "error", "--output-format", "json", uri=uri)
    assert answer(done)["results"] == []


def test_advisors_find_nothing_to_warn_of(hosted: HostedPostgres, pushed: str) -> None:
    uri = hosted.uri(pushed, SUPERUSER)
    done = supabase("db", "advisors", "--level", "info", "--fail-on", "warn", "--output-format", "json", uri=uri)
    # On a database that nobody has used, no index has been used.
    hints = {hint["cacheKey"] for hint in answer(done)["results"] if hint["name"] != "unused_index"}
    assert hints == ACCEPTED


@pytest.mark.parametrize(
    ("command", "mistake", "finding"),
    [
        (
            ("db", "lint", "--fail-on", "error"),
            "create function public.mistaken() returns void language plpgsql"
            " as $$ begin perform no_such_column from public.call_batches; end $$",
            "no_such_column",
        ),
        (
            ("db", "advisors", "--level", "warn", "--fail-on", "warn"),
            "create function public.mistaken() returns void language sql as 'select'",
            "function_search_path_mutable",
        ),
        (
            ("db", "advisors", "--level", "warn", "--fail-on", "warn"),
            "create table public.mistaken (id bigint primary key); grant select on public.mistaken to anon",
            "rls_disabled_in_public",
        ),
    ],
    ids=["lint", "search-path", "row-level-security"],
)
def test_a_mistake_is_found(hosted: HostedPostgres, command: tuple[str, ...], mistake: str, finding: str) -> None:
    database = hosted.project()
    with psycopg.connect(hosted.uri(database), autocommit=True) as connection:
        migrate(hosted.uri(database))
        connection.execute(mistake.encode())
    done = supabase(*command, "--output-format", "json", uri=hosted.uri(database, SUPERUSER))
    assert done.returncode == 1
    assert finding in done.stdout


def test_the_types_have_every_public_function_and_table(hosted: HostedPostgres, pushed: str) -> None:
    done = supabase("gen", "types", "--schema", "public", uri=hosted.uri(pushed))
    assert done.returncode == 0, done.stderr
    types = done.stdout
    assert "export type Database = {" in types
    functions = types.index("Functions: {")
    typed = set(re.findall(r'"(\w+)":\s*\{ Args:', types[functions:]))
    query = "select proname from pg_proc where pronamespace = 'public'::regnamespace"
    assert typed == {name for (name,) in rows(hosted.uri(pushed), query)}
    for (table,) in rows(hosted.uri(pushed), "select tablename from pg_tables where schemaname = 'public'"):
        assert f'"{table}": {{' in types[:functions]
    assert '"cancel_batch_result": {\n' in types
    assert '{ "batch_id"?: string,"idempotency_key"?: string,"reason"?: string }' in types


def test_the_cli_reads_the_options_of_the_config(hosted: HostedPostgres, pushed: str, tmp_path: Path) -> None:
    option = re.compile(r"^# (\[auth\.hook\.custom_access_token\])\n# (enabled = true)\n# (uri = .*)$", re.MULTILINE)

    def turned_on(config: str) -> str:
        on, replaced = option.subn(r"\1\n\2\n\3", config)
        assert replaced == 1
        return on

    on = copied(tmp_path / "on", turned_on)
    assert push(hosted.uri(pushed), on) == []
    wrong = copied(tmp_path / "wrong", lambda config: turned_on(config).replace("pg-functions:", "functions:"))
    refused = supabase("migration", "list", uri=hosted.uri(pushed), folder=wrong)
    assert refused.returncode == 1
    assert "auth.hook.custom_access_token.uri" in refused.stderr + refused.stdout
