"""Every way of building a database builds the same one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from functions import migrations
from functions.migrations import MIGRATIONS, SQL, create_migration, migrate, source_files
from functions.postgres_server import PostgresServer

from ..support.database import TestDatabase, dump_schema

GRANTED = """
select o.name, g.grantee::regrole::text, g.privilege_type
  from (select c.oid::regclass::text, c.relacl,
               acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner)
          from pg_class c
         where c.relkind in ('r', 'v', 'S') and c.relnamespace in ('public'::regnamespace, 'private'::regnamespace)
         union all
        select p.oid::regprocedure::text, p.proacl, acldefault('f', p.proowner)
          from pg_proc p
         where p.pronamespace in ('public'::regnamespace, 'private'::regnamespace)) as o (name, given, by_default),
       aclexplode(coalesce(o.given, o.by_default)) g
 order by 1, 2, 3
"""
"""Who may do what to each table, view, sequence and function."""


def schema(server: PostgresServer, database: str) -> str:
    """The schema as pg_dump writes it, with owners and privileges, without the migrations' history."""
    return dump_schema(server.bin_folder, server.uri(database))


def test_the_migrations_build_what_the_source_builds(
    server: PostgresServer, template: str, empty_database: str
) -> None:
    with psycopg.connect(server.uri(empty_database)) as connection:
        for path in [*sorted((SQL / "local").glob("*.sql")), *(SQL / file for file in source_files())]:
            connection.execute(path.read_bytes())
    assert schema(server, empty_database) == schema(server, template)


def test_every_source_file_is_in_the_order_and_migrated() -> None:
    files = {str(path.relative_to(SQL)) for path in SQL.rglob("*.sql")}
    assert {file for file in files if not file.startswith(("local/", "supabase/"))} == set(source_files())
    assert create_migration("nothing_changed") is None


def test_a_changed_file_becomes_a_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql" / "order.txt").write_text("one.sql\ntwo.sql\n")
    (tmp_path / "sql" / "one.sql").write_text("select 1;\n")
    (tmp_path / "sql" / "two.sql").write_text("select 2;\n")
    monkeypatch.setattr(migrations, "SQL", tmp_path / "sql")
    monkeypatch.setattr(migrations, "MIGRATIONS", tmp_path / "migrations")
    first = create_migration("first")
    assert first is not None
    assert [line for line in first.read_text().splitlines() if line and not line.startswith("--")] == [
        "set lock_timeout = '500ms';",
        "select 1;",
        "select 2;",
    ]

    first.rename(first.with_name("20260101000000_first.sql"))
    (tmp_path / "sql" / "two.sql").write_text("select 3;\n")
    second = create_migration("second")
    assert second is not None
    assert "select 3;" in second.read_text()
    assert "select 1;" not in second.read_text()


def test_a_migration_edited_by_hand_still_counts_for_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql" / "order.txt").write_text("one.sql\n")
    (tmp_path / "sql" / "one.sql").write_text("create table one (a integer, b integer);\n")
    monkeypatch.setattr(migrations, "SQL", tmp_path / "sql")
    monkeypatch.setattr(migrations, "MIGRATIONS", tmp_path / "migrations")
    migration = create_migration("b")
    assert migration is not None
    written = migration.read_text()
    migration.write_text(written.replace("create table one (a integer, b integer)", "alter table one add b integer"))
    assert create_migration("nothing_changed") is None


def test_migrating_twice_changes_nothing_and_keeps_the_data(server: PostgresServer, db: TestDatabase) -> None:
    agency = db.agency()
    database = db.value("select current_database()")
    before = schema(server, database)
    assert migrate(db.uri) == []
    assert schema(server, database) == before
    assert db.value("select id from agencies") == agency


def test_two_migrations_at_once_apply_each_once(server: PostgresServer, empty_database: str) -> None:
    uri = server.uri(empty_database)
    with ThreadPoolExecutor(2) as pool:
        applied = [name for names in pool.map(migrate, [uri, uri]) for name in names]
    assert applied == [path.stem for path in sorted(MIGRATIONS.glob("*.sql"))]


def test_a_migration_that_fails_leaves_nothing_of_itself(
    server: PostgresServer, empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "20260101000000_good.sql").write_text("create table public.good ();")
    (tmp_path / "20260102000000_bad.sql").write_text("create table public.bad (); select 1 / 0;")
    monkeypatch.setattr(migrations, "MIGRATIONS", tmp_path)
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(server.uri(empty_database))
    with psycopg.connect(server.uri(empty_database)) as connection:
        tables = connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
        versions = connection.execute("select version from supabase_migrations.schema_migrations").fetchall()
    assert (tables, versions) == ([("good",)], [("20260101000000",)])


def test_on_supabase_its_own_roles_are_left_alone(server: PostgresServer, empty_database: str) -> None:
    with psycopg.connect(server.uri(), autocommit=True) as connection:
        connection.execute("create role supabase_admin")
        before = connection.execute("select rolname, rolinherit, rolbypassrls from pg_roles order by 1").fetchall()
        try:
            migrate(server.uri(empty_database))
            after = connection.execute("select rolname, rolinherit, rolbypassrls from pg_roles order by 1").fetchall()
            assert after == before
        finally:
            connection.execute("drop role supabase_admin")


def test_a_projects_generous_default_privileges_open_nothing(
    server: PostgresServer, template: str, empty_database: str
) -> None:
    """As on Supabase, where whatever is made in public is everyone's by default."""
    with psycopg.connect(server.uri(empty_database), autocommit=True) as connection:
        for kind in ("tables", "sequences", "functions"):
            everyone = f"grant all on {kind} to anon, authenticated, service_role"
            connection.execute(f"alter default privileges in schema public {everyone}".encode())
        migrate(server.uri(empty_database))
        granted = connection.execute(GRANTED.encode()).fetchall()
    with psycopg.connect(server.uri(template)) as connection:
        assert granted == connection.execute(GRANTED.encode()).fetchall()


def test_the_seed_loads_and_its_books_balance(db: TestDatabase) -> None:
    db.rows((MIGRATIONS.parent / "seed.sql").read_text())
    assert db.unbalanced() == []
    assert db.row("select * from cancel_batch((select id from call_batches))")["contacts_skipped"] == 500


@pytest.mark.usefixtures("template")
def test_a_hosted_projects_owner_migrates_without_being_a_superuser(server: PostgresServer) -> None:
    """As on Supabase: the database's owner may create roles, and is no superuser."""
    with psycopg.connect(server.uri(), autocommit=True) as connection:
        # Roles are the cluster's: the one that the core creates must not be there yet.
        connection.execute("create role supabase_admin")
        connection.execute("alter role lastcall_admin rename to lastcall_admin_of_others")
        connection.execute("create role hosted_owner login createrole bypassrls")
        connection.execute("create database hosted owner hosted_owner")
        try:
            migrate(server.uri("hosted", "hosted_owner"))
            with psycopg.connect(server.uri("hosted", "hosted_owner"), autocommit=True) as console:
                console.execute((MIGRATIONS.parent / "seed.sql").read_bytes())
                row = console.execute("select contacts_skipped from cancel_batch((select id from call_batches))")
                assert row.fetchone() == (500,)
                actor = console.execute("select actor_kind, actor_role from batch_events where action = 'cancel'")
                assert actor.fetchone() == ("console", "hosted_owner")
                assert console.execute("select * from private.check_counters()").fetchall() == []
        finally:
            connection.execute("drop database hosted with (force)")
            connection.execute("drop role if exists lastcall_admin")
            connection.execute("drop role hosted_owner")
            connection.execute("alter role lastcall_admin_of_others rename to lastcall_admin")
            connection.execute("drop role supabase_admin")


@pytest.mark.usefixtures("template")
def test_any_owner_migrates_where_a_superuser_has_made_the_roles(server: PostgresServer) -> None:
    with psycopg.connect(server.uri(), autocommit=True) as connection:
        connection.execute("create role plain_owner login")
        connection.execute("create database plain owner plain_owner")
        try:
            uri = server.uri("plain", "plain_owner")
            with pytest.raises(psycopg.Error, match="have a superuser grant it to plain_owner"):
                migrate(uri)
            connection.execute("grant lastcall_admin to plain_owner")
            assert migrate(uri) == [path.stem for path in sorted(MIGRATIONS.glob("*.sql"))]
            assert migrate(uri) == []
        finally:
            connection.execute("drop database plain with (force)")
            connection.execute("drop role plain_owner")
