"""Calls that arrive while somebody else holds what they need."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg

from .database import Connection, TestDatabase


class Arrival(threading.Thread):
    """Runs one call on a connection of its own, in a thread."""

    def __init__(
        self, db: TestDatabase, query: str, values: dict[str, Any], connection: Connection | None = None
    ) -> None:
        super().__init__()
        self.db = db
        self.connection = connection or db.connect()
        self.pid = self.connection.info.backend_pid
        self.query = query
        self.values = values
        self.sqlstate: str | None = None
        self.row: dict[str, Any] | None = None
        self.start()

    def run(self) -> None:
        try:
            self.row = self.connection.execute(self.query, self.values).fetchone()
        except psycopg.Error as error:
            self.sqlstate = error.sqlstate
        finally:
            self.connection.close()

    def waits(self) -> bool:
        """Wait until it waits for a lock (True) or has ended (False)."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if not self.is_alive():
                return False
            if self.db.value("select cardinality(pg_blocking_pids(%s))", self.pid) > 0:
                return True
        raise AssertionError("it neither waits nor ends")
