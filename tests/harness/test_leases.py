"""A leased database is as good as a new one, and the test that changes more than its rows is named."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from functions.postgres_server import PostgresServer

from ..support.database import Connection, connect
from ..support.leases import DatabasePool, LeasedDatabase

pytestmark = pytest.mark.one_postgres

CHANGES = {
    "pg_constraint": "alter table call_batches add constraint named check (true)",
    "pg_class": "alter table call_batches set (autovacuum_enabled = off)",
    "pg_proc": "create function left_behind() returns void language sql as ''",
    "pg_attribute": "alter table calls rename column outcome to result",
    "pg_policy": "drop policy own_agency on agencies",
    "pg_namespace": "create schema left_behind",
    "pg_enum": "alter type batch_status add value 'left_behind'",
    "migrations": "delete from supabase_migrations.schema_migrations",
}
SERVER_CHANGES = {
    "roles": ("create role left_behind", "drop role left_behind"),
    "members of roles": ("grant anon to lastcall_admin", "revoke anon from lastcall_admin"),
    "settings of roles and databases": ("alter role anon set work_mem = '5MB'", "alter role anon reset all"),
    "settings of the server": ("alter system set work_mem = '5MB'", "alter system reset work_mem"),
}


def lease_and_change(databases: DatabasePool, kind: str, statement: str) -> str:
    """The name of a database whose test was told that it changed this kind of thing."""
    with (
        pytest.raises(AssertionError, match=f"mark it own_database. Changed: .*{kind}"),
        databases.leased() as database,
    ):
        database.owner.execute(statement.encode())
    return database.name


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_database_is_reported_and_not_leased_again(databases: DatabasePool, kind: str) -> None:
    changed = lease_and_change(databases, kind, CHANGES[kind])
    with databases.leased() as database:
        assert database.name != changed


@pytest.mark.parametrize("kind", SERVER_CHANGES)
def test_a_changed_server_is_reported_to_the_test_that_changed_it_alone(
    databases: DatabasePool, server: PostgresServer, kind: str
) -> None:
    change, undo = SERVER_CHANGES[kind]
    with connect(server.uri()) as connection:
        try:
            lease_and_change(databases, kind, change)
            with databases.leased():
                pass  # this test's successor changed nothing
        finally:
            connection.execute(undo.encode())
    with pytest.raises(AssertionError), databases.leased():
        pass  # takes note of what was undone


FILL = """
insert into agencies (id, name) values (gen_random_uuid(), 'Acme');
insert into call_batches (agency_id) select id from agencies;
insert into batch_events (agency_id, batch_id, action, actor_kind, actor_role, to_status)
  select agency_id, id, 'create', 'service', 'service_role', 'pending' from call_batches, generate_series(1, {number});
update private.rate_limits set max_requests = 1;
"""


@pytest.mark.parametrize("number", [1, 20_000], ids=["deleted", "truncated"])
def test_the_next_test_finds_no_rows_and_the_first_position_of_each_sequence(
    databases: DatabasePool, number: int
) -> None:
    names = set()
    for _ in range(2):
        with databases.leased() as database:
            names.add(database.name)
            assert database.owner.execute("select from agencies, call_batches").rowcount == 0
            assert database.owner.execute("select from private.rate_limits where max_requests = 1").rowcount == 0
            database.owner.execute(FILL.format(number=number).encode())
            assert database.owner.execute("select min(id) as first from batch_events").fetchone() == {"first": 1}
    assert len(names) == 1


def test_the_next_test_finds_no_setting_table_or_transaction_of_a_session(databases: DatabasePool) -> None:
    with databases.leased() as database:
        first = database.name
        database.owner.execute("set timezone = 'Asia/Tokyo'; create temporary table agencies (n integer); begin")
    with databases.leased() as database:
        assert database.name == first
        assert database.owner.execute("show timezone").fetchone() != {"TimeZone": "Asia/Tokyo"}
        assert database.owner.execute("select id from agencies").rowcount == 0


def test_connections_that_a_test_left_open_are_ended(databases: DatabasePool) -> None:
    with databases.leased() as database:
        left_open = connect(database.uri)
        left_open.execute("begin; lock table agencies")
    with databases.leased() as database:
        assert database.owner.execute("select from agencies").rowcount == 0
    with pytest.raises(psycopg.OperationalError):
        left_open.execute("select")


def test_a_connection_that_comes_while_the_others_are_ended_is_ended_too(
    databases: DatabasePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[Connection] = []
    rows = LeasedDatabase._rows

    def and_connect(database: LeasedDatabase, query: str, *values: Any) -> list[dict[str, Any]]:
        found = rows(database, query, *values)
        if "pg_terminate_backend" in query and not late:
            late.append(connect(database.uri))
        return found

    monkeypatch.setattr(LeasedDatabase, "_rows", and_connect)
    with databases.leased() as database:
        left_open = connect(database.uri)
    for connection in (left_open, *late):
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select")


def test_a_test_that_ended_its_owners_connection_leaves_the_next_one_another(databases: DatabasePool) -> None:
    with databases.leased() as database:
        database.owner.close()
    with databases.leased() as database:
        assert database.owner.execute("select 1 as n").fetchone() == {"n": 1}


def test_a_test_with_a_database_of_its_own_may_change_it(databases: DatabasePool) -> None:
    with databases.own() as database:
        database.owner.execute("drop table call_batches cascade")
    with databases.leased() as database:
        assert database.owner.execute("select from call_batches").rowcount == 0
