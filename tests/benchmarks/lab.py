"""The PostgreSQL under measurement, and the stop watch."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.rows import TupleRow

from functions.migrations import migrate
from functions.postgres_server import embedded_postgres

Connection = psycopg.Connection[TupleRow]

# As a small production server has them, durability included.
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "autovacuum": "on",
    # A checkpoint comes when a benchmark asks for one, not somewhere in the middle of a measurement.
    "checkpoint_timeout": "1h",
}


@dataclass(frozen=True)
class Measurement:
    """One timed statement, or group of statements, over a number of contacts."""

    seconds: float
    wal_bytes: int
    contacts: int

    @property
    def wal_per_contact(self) -> float:
        return self.wal_bytes / self.contacts


class Lab:
    """A migrated database on a server of its own."""

    def __init__(self, uri: str, service_uri: str) -> None:
        self.uri = uri
        """As the owner: the SQL console."""
        self.service_uri = service_uri
        """As the functions' login role, which then takes the role that it acts as."""
        self.owner = self.connect()

    def connect(self, role: str | None = None, claims: str = "{}") -> Connection:
        """A connection of the owner, or of the functions acting as `role`."""
        if role is None:
            return psycopg.connect(self.uri, autocommit=True)
        connection = psycopg.connect(self.service_uri, autocommit=True)
        connection.execute(
            "select set_config('role', %s, false), set_config('request.jwt.claims', %s, false)",
            [role, claims],
        )
        return connection

    def settle(self, *tables: str) -> None:
        """Leave the tables as if they had been filled a while ago: vacuumed, analyzed and on disk. So each
        measurement pays for its own writes only, whole pages at their first change included, as it does
        in real life."""
        self.owner.execute(f"vacuum (analyze) {', '.join(tables)}".encode())
        self.owner.execute("checkpoint")

    def measure(self, work: Callable[[], int]) -> Measurement:
        """Time `work`, which returns how many contacts it changed."""
        before = self._wal_position()
        started = time.perf_counter()
        contacts = work()
        seconds = time.perf_counter() - started
        return Measurement(seconds, self._wal_position() - before, contacts)

    def describe(self) -> str:
        """The server and the machine, in a line."""
        row = self.owner.execute("select current_setting('server_version')").fetchone()
        assert row is not None
        settings = ", ".join(f"{name} {value}" for name, value in SETTINGS.items())
        return (
            f"PostgreSQL {row[0]}, {platform.system()} {platform.machine()}, "
            f"{len(os.sched_getaffinity(0))} cores for server and clients; {settings}."
        )

    def _wal_position(self) -> int:
        row = self.owner.execute("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").fetchone()
        assert row is not None
        return int(row[0])


@contextmanager
def open_lab() -> Iterator[Lab]:
    """A lab in a temporary folder; server and folder are gone afterwards, however it ends."""
    with tempfile.TemporaryDirectory(prefix="lastcall-bench-") as folder:
        server = embedded_postgres(Path(folder) / "postgres", SETTINGS)
        try:
            server.start()
            with psycopg.connect(server.uri(), autocommit=True) as connection:
                connection.execute("create database bench")
            migrate(server.uri("bench"))
            lab = Lab(server.uri("bench"), server.uri("bench", "lastcall_functions"))
            try:
                yield lab
            finally:
                lab.owner.close()
        finally:
            server.stop()


def progress(message: str) -> None:
    """Say what is going on, apart from the tables on stdout."""
    print(message, file=sys.stderr, flush=True)
