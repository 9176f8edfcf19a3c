"""Every way of building a database builds the same one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from functions import migrations
from functions.migrations import MIGRATIONS, SQL, create_migration, migrate, source_files
from functions.postgres_server import PostgresServer

from ..support.command import lastcall
from ..support.database import TestDatabase, schema
from ..support.servers import new_server

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
"""The privileges on each table, view, sequence and function."""

CORES_ROLES = ("lastcall_admin", "lastcall_functions")
THE_THREE = {"anon", "authenticated", "service_role"}


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
        "set local lock_timeout = '500ms';",
        "select 1;",
        "select 2;",
    ]

    first.rename(first.with_name("20000101000000_first.sql"))
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


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_two_migrations_at_once_apply_each_once(server: PostgresServer, empty_database: str, isolation: str) -> None:
    uri = server.uri(empty_database)
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(
            f"alter database {empty_database} set default_transaction_isolation = '{isolation}'".encode()
        )
    with ThreadPoolExecutor(2) as pool:
        applied = [name for names in pool.map(migrate, [uri, uri]) for name in names]
    assert sorted(applied) == [path.stem for path in sorted(MIGRATIONS.glob("*.sql"))]


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


@pytest.mark.usefixtures("template")
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


@contextmanager
def without_the_cores_roles(server: PostgresServer) -> Iterator[psycopg.Connection]:
    """A superuser's connection, while the cluster has not the roles that the core creates: they are the
    cluster's, and other databases of it need them again."""
    with psycopg.connect(server.uri(), autocommit=True) as connection:
        for role in CORES_ROLES:
            connection.execute(f"alter role {role} rename to {role}_of_others".encode())
        try:
            yield connection
        finally:
            for role in CORES_ROLES:
                connection.execute(f"drop role if exists {role}".encode())
                connection.execute(f"alter role {role}_of_others rename to {role}".encode())


@contextmanager
def hosted_project(server: PostgresServer) -> Iterator[tuple[psycopg.Connection, str]]:
    """As on Supabase: the database's owner may create roles, and is no superuser. A superuser's connection and
    the owner's URI."""
    with without_the_cores_roles(server) as connection:
        connection.execute("create role supabase_admin")
        connection.execute("create role hosted_owner login createrole bypassrls")
        connection.execute("create database hosted owner hosted_owner")
        try:
            yield connection, server.uri("hosted", "hosted_owner")
        finally:
            connection.execute("drop database hosted with (force)")
            connection.execute("drop role if exists lastcall_functions, lastcall_admin")
            connection.execute("drop owned by hosted_owner")
            connection.execute("drop role hosted_owner")
            connection.execute("drop role supabase_admin")


def memberships(connection: psycopg.Connection) -> set[str]:
    """The roles that lastcall_functions may set."""
    rows = connection.execute(
        "select r.rolname from pg_auth_members m join pg_roles r on r.oid = m.roleid"
        " join pg_roles f on f.oid = m.member where f.rolname = 'lastcall_functions' and not m.admin_option"
    )
    return {row[0] for row in rows}


@pytest.mark.usefixtures("template")
def test_a_hosted_projects_owner_migrates_without_being_a_superuser(server: PostgresServer) -> None:
    with hosted_project(server) as (superuser, uri):
        # As Supabase does from PostgreSQL 16 on; before, who may create roles may grant them.
        superuser.execute("grant anon, authenticated, service_role to hosted_owner with admin option")
        warnings: list[str] = []
        migrate(uri, warnings.append)
        assert (warnings, memberships(superuser)) == ([], THE_THREE)
        with psycopg.connect(uri, autocommit=True) as console:
            console.execute((MIGRATIONS.parent / "seed.sql").read_bytes())
            row = console.execute("select contacts_skipped from cancel_batch((select id from call_batches))")
            assert row.fetchone() == (500,)
            actor = console.execute("select actor_kind, actor_role from batch_events where action = 'cancel'")
            assert actor.fetchone() == ("console", "hosted_owner")
            assert console.execute("select * from private.check_counters()").fetchall() == []


@pytest.mark.usefixtures("template")
def test_a_missing_right_of_a_hosted_projects_owner_is_reported_and_nothing_fails(server: PostgresServer) -> None:
    """From PostgreSQL 16 on it takes the admin option, which an older Supabase project has not given."""
    with hosted_project(server) as (superuser, uri):
        if superuser.info.server_version < 160000:
            pytest.skip("before PostgreSQL 16, who may create roles may grant them")
        superuser.execute("grant anon to hosted_owner with admin option")
        for _ in range(2):  # said until it is done
            warnings: list[str] = []
            migrate(uri, warnings.append)
            assert warnings == [
                "lastcall_functions cannot become authenticated, service_role: hosted_owner may not grant them."
                " As a superuser, or with the admin option on them:"
                " grant authenticated, service_role to lastcall_functions;"
            ]
            assert memberships(superuser) == {"anon"}
        superuser.execute(warnings[0].rpartition(": ")[2].encode())
        warnings = []
        migrate(uri, warnings.append)
        assert (warnings, memberships(superuser)) == ([], THE_THREE)


@pytest.mark.usefixtures("template")
def test_an_owner_who_may_create_no_role_is_told_what_a_superuser_runs(
    server: PostgresServer, own_folder: Path
) -> None:
    with without_the_cores_roles(server) as superuser:
        superuser.execute("create role lastcall_admin nologin")
        superuser.execute("create role plain_owner login in role lastcall_admin")
        superuser.execute("create database plain owner plain_owner")
        try:
            url = server.uri("plain", "plain_owner")
            done = lastcall("migrate", folder=own_folder, DATABASE_URL=url)
            assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "up to date")
            problem, _, remedy = done.stderr.partition(". As a superuser: ")
            assert problem == (
                "lastcall: warning: the role lastcall_functions is missing, and plain_owner may not create it"
            )
            superuser.execute(remedy.encode())
            assert memberships(superuser) == THE_THREE
            done = lastcall("migrate", folder=own_folder, DATABASE_URL=url)
            assert (done.returncode, done.stdout, done.stderr) == (0, "up to date\n", "")
        finally:
            superuser.execute("drop database plain with (force)")
            superuser.execute("drop role plain_owner")


def test_the_functions_role_has_no_password_and_no_right_but_to_become_one_of_the_three(db: TestDatabase) -> None:
    role = db.row("select * from pg_authid where rolname = 'lastcall_functions'")
    assert (role["rolpassword"], role["rolvaliduntil"]) == (None, None)
    assert {name for name, value in role.items() if value is True} == {"rolcanlogin"}
    with psycopg.connect(db.uri) as superuser:
        assert memberships(superuser) == THE_THREE
    assert db.rows("select from pg_shdepend where refobjid = 'lastcall_functions'::regrole") == []


def test_a_role_that_was_lost_is_made_again(server: PostgresServer, db: TestDatabase) -> None:
    """Roles are in no dump of a database: what is restored elsewhere has its history, and not its role."""
    with without_the_cores_roles(server) as superuser:
        superuser.execute("alter role lastcall_admin_of_others rename to lastcall_admin")
        try:
            assert migrate(db.uri) == []
            assert memberships(superuser) == THE_THREE
        finally:
            superuser.execute("alter role lastcall_admin rename to lastcall_admin_of_others")


@pytest.mark.usefixtures("template")
def test_two_databases_of_a_cluster_may_be_migrated_at_once(server: PostgresServer) -> None:
    names = ["at_once_1", "at_once_2", "at_once_3"]
    with without_the_cores_roles(server) as superuser:
        for name in names:
            superuser.execute(f"create database {name}".encode())
        try:
            with ThreadPoolExecutor(len(names)) as pool:
                applied = list(pool.map(migrate, map(server.uri, names)))
            assert applied == [[path.stem for path in sorted(MIGRATIONS.glob("*.sql"))]] * len(names)
            assert memberships(superuser) == THE_THREE
        finally:
            for name in names:
                superuser.execute(f"drop database {name} with (force)".encode())


def test_a_restored_cluster_serves_again(server: PostgresServer, db: TestDatabase, own_folder: Path) -> None:
    """pg_dumpall --roles-only and pg_dump, into another cluster."""
    user = db.user(db.agency())
    database = db.value("select current_database()")
    db.rows("alter role lastcall_functions password 'as it was'")
    try:
        dumps = [
            subprocess.run([server.bin_folder / program, *options], capture_output=True, check=True).stdout
            for program, *options in (
                ("pg_dumpall", "--roles-only", "--dbname", server.uri()),
                ("pg_dump", "--create", server.uri(database)),
            )
        ]
        verifier = db.value("select rolpassword from pg_authid where rolname = 'lastcall_functions'")
    finally:
        db.rows("alter role lastcall_functions password null")
    other = new_server(own_folder)
    other.start()
    try:
        for dump in dumps:
            subprocess.run([server.bin_folder / "psql", other.uri()], input=dump, capture_output=True, check=True)
        restored = TestDatabase(other.uri(database), other.uri(database, "lastcall_functions"))
        try:
            role = restored.row("select * from pg_authid where rolname = 'lastcall_functions'")
            assert role["rolpassword"] == verifier
            assert migrate(restored.uri) == []
            with restored.as_user(user) as connection:
                lists = connection.execute("select list_batches() -> 'batches' as batches").fetchone()
                assert lists == {"batches": []}
        finally:
            restored.close()
    finally:
        other.stop()


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
