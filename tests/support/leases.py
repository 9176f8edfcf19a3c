"""Migrated databases that tests lease one after another.

Making a database takes most of a short test's time. So a test gets the database of the test before it: with the rows
that it had when it was migrated, and with its owner's connection, which is warm.

A test may leave rows, positions of sequences and connections behind. Any other change (schema, privileges, roles,
settings) is reported as a failure of that test, and the database is replaced. The marker `own_database` gives a test a
new database: for such changes, and for tests of the physical database (plans, statistics, heap-only updates).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import psycopg

from .database import connect

if TYPE_CHECKING:
    from functions.postgres_server import PostgresServer

    from .container import ContainerServer

_LARGE_BYTES = 256 * 1024
"""Truncating all tables takes some 30 ms, so it is for large tables; deleted rows stay in the others' files."""

_TABLES = """
select c.oid::regclass::text as name
  from pg_class c
 where c.relkind = 'r' and c.relnamespace in ('public'::regnamespace, 'private'::regnamespace)
 order by 1
"""
_WAS_WRITTEN = "select string_agg(concat(oid, ' ', xmin), ',' order by oid) from {} where oid >= 16384"
_DATABASE = {
    # A catalog's row gets a new xmin when it is written; vacuum and analyze leave the xmin as it is.
    **{
        name: _WAS_WRITTEN.format(name)
        for name in (
            *(
                "pg_type",
                "pg_enum",
                "pg_proc",
                "pg_constraint",
                "pg_trigger",
                "pg_policy",
                "pg_rewrite",
                "pg_extension",
            ),
            *("pg_event_trigger", "pg_attrdef", "pg_default_acl", "pg_operator", "pg_cast", "pg_language"),
        )
    },
    "pg_namespace": _WAS_WRITTEN.format("pg_namespace") + " and nspname not like 'pg_%'",  # temporary ones stay
    "pg_attribute": "select string_agg(concat(attrelid, ' ', attnum, ' ', xmin), ',' order by attrelid, attnum)"
    " from pg_attribute where attrelid >= 16384",
    # Truncating a table writes its row.
    "pg_class": "select string_agg(concat_ws(' ', oid, relname, relnamespace, relowner, relacl, reloptions, relchecks,"
    " relhastriggers, relrowsecurity, relforcerowsecurity), ',' order by oid) from pg_class where oid >= 16384",
    "migrations": "select string_agg(version, ',' order by version) from supabase_migrations.schema_migrations",
}
_SERVER = {
    "roles": "select string_agg(to_jsonb(r)::text, ',' order by oid) from pg_authid r where oid >= 16384",
    "members of roles": "select string_agg(concat_ws(' ', roleid, member, grantor, admin_option), ','"
    " order by roleid, member, grantor) from pg_auth_members where roleid >= 16384 or member >= 16384",
    "settings of roles and databases": "select string_agg(concat_ws(' ', setdatabase, setrole, setconfig), ','"
    " order by setdatabase, setrole) from pg_db_role_setting",
    "settings of the server": "select string_agg(concat_ws(' ', name, setting), ',' order by seqno)"
    " from pg_file_settings where sourcefile like '%auto.conf'",
}

_END_OTHERS = (
    "select pg_terminate_backend(pid) from pg_stat_activity"
    " where datname = current_database() and backend_type = 'client backend' and pid <> all (%s)"
)
# As discard all does, but for prepared statements, which psycopg would still take for prepared.
_RESET_SESSION = (
    "set session authorization default; reset all; close all; unlisten *; discard temp; discard sequences;"
    " select pg_advisory_unlock_all()"
)
_RESTART_SEQUENCES = """
select setval(seqrelid::regclass, seqstart, false)
  from pg_sequence
 where pg_sequence_last_value(seqrelid) is not null
"""


State = dict[str, Any]


def differences(before: State, after: State) -> list[str]:
    return [name for name in before if before[name] != after[name]]


class LeasedDatabase:
    """A migrated database: a connection of its owner, and the way back to its first state."""

    def __init__(self, name: str, uri: str) -> None:
        self.name = name
        self.uri = uri
        self.owner = connect(uri)
        # Its deletes check no foreign key and run no trigger.
        self._keeper = connect(uri, options="-c session_replication_role=replica")
        tables = [row["name"] for row in self._rows(_TABLES)]
        self._seeds = {table: rows for table in tables if (rows := self._content(table))}
        self._others = [table for table in tables if table not in self._seeds]
        self._state = self.state(_DATABASE)

    def clean(self) -> list[str]:
        """Delete the rows that a test left behind. Returns what else the test changed: if anything, the database is
        not clean and must not be leased again."""
        self._reset_owner()
        self._end_other_connections()
        changed = differences(self._state, self.state(_DATABASE))
        if not changed:
            self._restore_rows()
        return changed

    def state(self, queries: dict[str, str]) -> State:
        """The answers to queries, shortened, by the names of the queries."""
        shortened = ", ".join(f'md5(({query})) as "{name}"' for name, query in queries.items())
        return self._rows(f"select {shortened}")[0]

    def close(self) -> None:
        self.owner.close()
        self._keeper.close()

    def _reset_owner(self) -> None:
        try:
            self.owner.rollback()
            self.owner.execute(_RESET_SESSION)
        except psycopg.Error:  # the test ended the connection
            self.owner.close()
            self.owner = connect(self.uri)

    def _end_other_connections(self) -> None:
        keep = [self._keeper.info.backend_pid, self.owner.info.backend_pid]
        give_up_at = time.monotonic() + 30
        # Again and again: one that was being made when the others were ended comes after them.
        while self._rows(_END_OTHERS, keep):
            assert time.monotonic() < give_up_at, f"connections to {self.name} do not end"
            time.sleep(0.001)

    def _restore_rows(self) -> None:
        used = ", ".join(f"case when exists (select from {table}) then '{table}' end" for table in self._others)
        size = " + ".join(f"pg_table_size('{table}')" for table in self._others)
        found = self._rows(f"select array_remove(array[{used}], null) as tables, {size} as size")[0]
        if found["size"] > _LARGE_BYTES:
            self._rows(f"truncate {', '.join(self._others)}")
        elif found["tables"]:
            self._rows("; ".join(f"delete from {table}" for table in found["tables"]))
        for table, seed in self._seeds.items():
            if self._content(table) != seed:
                self._rows(f"delete from {table}")
                self._rows(f"insert into {table} select * from jsonb_populate_recordset(null::{table}, %s)", seed)
        self._rows(_RESTART_SEQUENCES)

    def _content(self, table: str) -> str | None:
        """All rows of a table; None when it is empty."""
        content: str | None = self._rows(f"select jsonb_agg(t order by to_jsonb(t))::text as rows from {table} t")[0][
            "rows"
        ]
        return content

    def _rows(self, query: str | bytes, *values: Any) -> list[dict[str, Any]]:
        cursor = self._keeper.execute(query, values or None)
        return cursor.fetchall() if cursor.description else []


class DatabasePool:
    """The databases that one server lends to tests: as many as are held at a time, which is usually one."""

    def __init__(self, server: PostgresServer | ContainerServer, template: str) -> None:
        self._server = server
        self._template = template
        self._numbers = count()
        self._idle: list[LeasedDatabase] = []
        self._state: State | None = None

    @contextmanager
    def leased(self) -> Iterator[LeasedDatabase]:
        """A database in its first state. Raises AssertionError at the end when more than rows was changed."""
        database = self._idle.pop() if self._idle else self._new()
        self._state = self._state or database.state(_SERVER)
        changed = ["everything: the test was interrupted"]
        try:
            yield database
            changed = database.clean() + self._server_changes(database)
        finally:
            if changed:
                self._drop(database)
            else:
                self._idle.append(database)
        assert not changed, (
            f"this test changed its leased database: mark it own_database. Changed: {', '.join(changed)}"
        )

    @contextmanager
    def own(self) -> Iterator[LeasedDatabase]:
        """A new database, which no other test gets."""
        database = self._new()
        try:
            yield database
        finally:
            self._drop(database)

    def close(self) -> None:
        while self._idle:
            self._drop(self._idle.pop())

    def _server_changes(self, database: LeasedDatabase) -> list[str]:
        """How the server differs from what it was after the test before."""
        before, self._state = self._state or {}, database.state(_SERVER)
        return differences(before, self._state)

    def _new(self) -> LeasedDatabase:
        name = f"test_{next(self._numbers)}"
        self._administer(f"create database {name} template {self._template}")
        return LeasedDatabase(name, self._server.uri(name))

    def _drop(self, database: LeasedDatabase) -> None:
        database.close()
        self._administer(f"drop database {database.name} with (force)")

    def _administer(self, statement: str) -> None:
        with connect(self._server.uri()) as connection:
            connection.execute(statement.encode())
