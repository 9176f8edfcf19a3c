"""A PostgreSQL as a hosted Supabase project has it, and the Supabase CLI at work on it.

Only a stand-in: Debian's PostgreSQL with the roles, the schemas and the default privileges of a project. The CLI is the
real one. `make test-supabase` says where it is (SUPABASE_CLI), and where PostgreSQL is (TEST_POSTGRES_BIN).
"""

from __future__ import annotations

import os
import secrets
import subprocess
from itertools import count
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from functions.migrations import SQL
from functions.postgres_server import PostgresServer

ROOT = SQL.parent
OWNER = "project_owner"
"""Like a project's `postgres`: owns the database, may create roles, and is no superuser."""
SUPERUSER = "postgres"

_ROLES = (SQL / "local" / "roles.sql").read_bytes()
# The default privileges of a project's tables, sequences and functions.
_PROJECT = f"""
create schema extensions;
grant usage on schema extensions to anon, authenticated, service_role, {OWNER};
alter default privileges for role {OWNER} in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges for role {OWNER} in schema public grant all on sequences to anon, authenticated, service_role;
alter default privileges for role {OWNER} in schema public grant all on functions to anon, authenticated, service_role;
"""


def need_supabase_cli() -> None:
    """Skip the module where `make test-supabase` does not run it; there, what is missing is an error."""
    if "SUPABASE_CLI" not in os.environ:
        pytest.skip("npm, Debian's PostgreSQL 15, pgTAP and pg_prove: make test-supabase", allow_module_level=True)


class HostedPostgres:
    """A server that listens on TCP, which is all that the CLI knows, and asks for a password there."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.password = secrets.token_hex()
        access = folder / "pg_hba.conf"
        access.write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        options = {"listen_addresses": "127.0.0.1", "port": str(self.port), "hba_file": str(access), "fsync": "off"}
        self.server = PostgresServer(Path(os.environ["TEST_POSTGRES_BIN"]), folder, options)
        self._numbers = count()

    def start(self) -> None:
        self.server.start()
        with psycopg.connect(make_conninfo(self.server.uri(), port=self.port), autocommit=True) as connection:
            connection.execute(_ROLES)
            connection.execute(
                f"alter role {SUPERUSER} password '{self.password}';"
                f"create role {OWNER} login createrole bypassrls password '{self.password}';"
                f"grant anon, authenticated, service_role to {OWNER}".encode()
            )

    def project(self) -> str:
        """The name of a new project's database."""
        name = f"project_{next(self._numbers)}"
        with psycopg.connect(self.uri("postgres", SUPERUSER), autocommit=True) as connection:
            connection.execute(f"create database {name} owner {OWNER}".encode())
        with psycopg.connect(self.uri(name, SUPERUSER), autocommit=True) as connection:
            connection.execute(_ROLES)
            connection.execute(_PROJECT.encode())
        return name

    def uri(self, database: str, user: str = OWNER) -> str:
        return f"postgresql://{user}:{self.password}@127.0.0.1:{self.port}/{database}?sslmode=disable"


def supabase(*arguments: str, uri: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the CLI in the project of `folder`, on the database of that URI."""
    # Nothing of somebody's own projects.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SUPABASE_", "PG"))}
    return subprocess.run(
        [os.environ["SUPABASE_CLI"], "--agent", "no", *arguments, "--yes", f"--remote={uri}"],
        cwd=folder,
        env={**own, "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
