"""Crashes of a PostgreSQL server that take back what no commit waited for."""

from __future__ import annotations

import os
import signal
import time

import psycopg

from functions.postgres_server import PostgresServer

from .database import TestDatabase

_WRITER = "select pid from pg_stat_activity where backend_type = 'walwriter'"


def connected(server: PostgresServer) -> TestDatabase:
    return TestDatabase(server.uri(), server.uri(user="lastcall_functions"))


def hold_the_disk(db: TestDatabase) -> int:
    """Keep the process that writes what nobody waits for from writing it; returns its id."""
    writer: int = db.value(_WRITER)
    os.kill(writer, signal.SIGSTOP)
    return writer


def crash(server: PostgresServer, db: TestDatabase, writer: int) -> TestDatabase:
    """Kill that process, whereupon the server ends all connections and recovers; a new connection then."""
    db.close()
    os.kill(writer, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline
        try:
            db = connected(server)
            if db.rows(_WRITER) not in ([], [{"pid": writer}]):
                return db
            db.close()
        except psycopg.OperationalError:  # it has not noticed, ends, or recovers
            time.sleep(0.05)
