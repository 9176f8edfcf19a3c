"""A database of its own for each run of `lastcall demo` and `lastcall prove` on the embedded PostgreSQL."""

from __future__ import annotations

import psycopg
from psycopg import sql

from .postgres_server import PostgresServer


class DatabaseClaim:
    """A fresh database for one run of a command, such as demo_1 or, while other demos are at work in the folder, the
    next free number. The claim lasts as long as the connection, which ends with the process."""

    def __init__(self, server: PostgresServer, command: str) -> None:
        """command: demo or prove, which the name of the database begins with. Raises psycopg.Error."""
        self._connection = psycopg.connect(server.uri(), autocommit=True)
        self._lock_class = int.from_bytes(command.encode()[:4])
        number = 1
        while not self._try_number(number):
            number += 1
        self.name = f"{command}_{number}"
        name = sql.Identifier(self.name)
        self._connection.execute(sql.SQL("drop database if exists {} with (force)").format(name))
        self._connection.execute(sql.SQL("create database {}").format(name))

    def _try_number(self, number: int) -> bool:
        row = self._connection.execute("select pg_try_advisory_lock(%s, %s)", [self._lock_class, number]).fetchone()
        return row is not None and bool(row[0])

    def close(self) -> None:
        """Leave the database to the next run."""
        self._connection.close()
