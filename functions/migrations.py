"""Bring a database to the core of this release, and write the core's changes as migrations.

supabase/migrations/ is what gets applied, by `lastcall migrate` and by the Supabase CLI alike; both
keep their history in the CLI's table, so that either can go on where the other stopped. sql/ is the
source: `create_migration` writes each of its files that changed into a new migration.

Dialing goes on meanwhile: a migration that cannot have a lock soon gives up, since everyone else would queue
behind it, and is tried again.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg

_ROOT = Path(__file__).parent.parent
_PACKAGED = Path(__file__).parent / "_core"
SQL = _ROOT / "sql"
_FUNCTIONS_ROLE = "functions_role.sql"
MIGRATIONS = _ROOT / "supabase" / "migrations"
_SEED = _ROOT / "supabase" / "seed.sql"

# Any two migrations of one database: the second waits.
_LOCK_KEY = 0x6C617374  # "last"
_LOCK_TRIES = 60
_LET_OTHERS_PASS_S = 1.0
_HEADER = """\
-- This migration holds up nobody for long: when it must wait for a lock, it gives up, and is run again.
set local lock_timeout = '500ms';

"""
_HISTORY = """
create schema if not exists supabase_migrations;
create table if not exists supabase_migrations.schema_migrations (
  version text not null primary key, statements text[], name text
);
alter table supabase_migrations.schema_migrations add column if not exists statements text[];
alter table supabase_migrations.schema_migrations add column if not exists name text;
"""
# The digest is of the file that a section was made from, which stays known when the section is edited by hand.
_SECTION = re.compile(r"^-- file: (\S+)(?: ([0-9a-f]{64}))?\n(.*?)(?=^-- file: |\Z)", re.MULTILINE | re.DOTALL)


def migrate(database_url: str, warn: Callable[[str], None] | None = None) -> list[str]:
    """Apply the migrations that the database does not have yet, each in a transaction of its own.
    On a plain Postgres, first what Supabase would provide (sql/local).
    warn: is given each warning of the server once, such as what the owner may not do and who may.
    Returns their names. Raises psycopg.Error, LockNotAvailable when others held what it needs for about a minute or
    more; a migration that fails leaves nothing of itself."""
    applied = []
    warnings: dict[str, None] = {}
    # There may be a transaction pooler in between: nothing is set or locked for longer than a transaction.
    with psycopg.connect(database_url, autocommit=True, prepare_threshold=None) as connection:
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # who waited sees what the first one did
        connection.add_notice_handler(lambda warning: warnings.setdefault(_format_warning(warning)))
        with _alone(connection):
            if not _is_supabase(connection):
                for path in sorted(_core("local", SQL / "local").glob("*.sql")):
                    connection.execute(path.read_bytes())
            connection.execute(_HISTORY.encode())
        for path in sorted(_core("migrations", MIGRATIONS).glob("*.sql")):
            version, _, name = path.stem.partition("_")
            if _apply(connection, version, name, path.read_text()):
                applied.append(path.stem)
        with _alone(connection):
            # Its role is the cluster's, which may be another one than where the migration was applied.
            connection.execute((_core("schema", SQL / "schema") / _FUNCTIONS_ROLE).read_bytes())
    if warn is not None:
        for warning in warnings:
            warn(warning)
    return applied


def _apply(connection: psycopg.Connection, version: str, name: str, migration: str) -> bool:
    """Whether the migration was applied; not when the database has it already."""
    for tries_left in range(_LOCK_TRIES - 1, -1, -1):
        try:
            with _alone(connection):
                known = "select from supabase_migrations.schema_migrations where version = %s"
                if connection.execute(known, [version]).rowcount:
                    return False
                connection.execute(migration.encode())
                connection.execute(
                    "insert into supabase_migrations.schema_migrations (version, name, statements) values (%s, %s, %s)",
                    [version, name, [migration]],
                )
            return True
        except psycopg.errors.LockNotAvailable:
            if not tries_left:
                raise
        time.sleep(_LET_OTHERS_PASS_S)
    raise AssertionError("unreachable")


@contextmanager
def _alone(connection: psycopg.Connection) -> Iterator[None]:
    """A transaction in which no other migration of the database runs, and of whose notices only warnings come."""
    with connection.transaction():
        connection.execute(
            "select pg_advisory_xact_lock(%s), set_config('client_min_messages', 'warning', true)", [_LOCK_KEY]
        )
        yield


def _format_warning(warning: psycopg.errors.Diagnostic) -> str:
    return f"{warning.message_primary}. {warning.message_hint or ''}".strip()


def source_files() -> list[str]:
    """The files of sql/ in the order in which they build the core."""
    return (SQL / "order.txt").read_text().split()


def create_migration(name: str) -> Path | None:
    """Write the files of sql/ that differ from what the migrations hold of them into a new migration
    `name`, and return its path; None when nothing changed. A statement that cannot run again (a
    table, a type, an index) has to be turned into its change by hand."""
    migrated: dict[str, str] = {}
    for path in sorted(MIGRATIONS.glob("*.sql")):
        for file, digest, text in _SECTION.findall(path.read_text()):
            migrated[file] = digest or _digest(text)
    sources = {file: (SQL / file).read_text() for file in source_files()}
    changed = [(file, text) for file, text in sources.items() if _digest(text) != migrated.get(file)]
    if not changed:
        return None
    version = datetime.now(UTC).strftime("%Y%m%d%H%M%S")
    path = MIGRATIONS / f"{version}_{name}.sql"
    MIGRATIONS.mkdir(parents=True, exist_ok=True)
    path.write_text(_HEADER + "\n".join(f"-- file: {file} {_digest(text)}\n{text}" for file, text in changed))
    return path


def sample_statements() -> bytes:
    """The statements that insert the sample agency."""
    return _core("seed.sql", _SEED).read_bytes()


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()


def _core(packaged: str, source: Path) -> Path:
    """In a wheel the files are within the package; in a checkout they are where they are made."""
    return source if source.exists() else _PACKAGED / packaged


def _is_supabase(connection: psycopg.Connection) -> bool:
    return connection.execute("select from pg_roles where rolname = 'supabase_admin'").fetchone() is not None
