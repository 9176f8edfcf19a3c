"""Dialers as threads, with a connection each, and no carrier."""

from __future__ import annotations

import json
import random
import threading
import time
from typing import Any
from uuid import UUID

import psycopg

from .database import TestDatabase


class Dialer(threading.Thread):
    """Claims, starts and finishes calls in a loop, until told to stop; keeps what it did. It does so as the core
    of now has it and as one of before leases had names; a claim from before a migration is lost in it."""

    def __init__(self, db: TestDatabase, seed: int, batch_id: UUID | None = None) -> None:
        super().__init__()
        self.connection = db.connect()
        self.connection.prepare_threshold = None  # as the real dialer
        self.random = random.Random(seed)
        self.batch_id = batch_id
        self.rounds = 0
        self.starts: list[tuple[float, UUID, int]] = []
        """Each start_call: when it was asked for, its batch, how many calls passed."""
        self.enough = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self.enough.is_set():
                self.round()
                self.rounds += 1
        except Exception as error:
            self.error = error
        finally:
            self.connection.close()

    def round(self) -> None:
        query = "select to_jsonb(c) as claimed from claim_contacts(20, 60, %s) c"
        try:
            claimed = [row["claimed"] for row in self.connection.execute(query, [self.batch_id]).fetchall()]
        except psycopg.errors.DatatypeMismatch:  # the migration committed between the query's plan and the function's
            return
        if not claimed:
            return
        batch, lease = UUID(claimed[0]["batch_id"]), claimed[0].get("lease")
        calls = [row["call_id"] for row in claimed]
        asked = time.monotonic()
        try:
            passed = self.connection.execute(
                "select start_call(%s, %s) as id"
                if lease is None
                else "select unnest((start_call(%s, %s, %s)).started) as id",
                [batch, calls] if lease is None else [batch, calls, lease],
            ).fetchall()
        except psycopg.errors.UndefinedFunction:
            assert lease is None
            return
        self.starts.append((asked, batch, len(passed)))
        results = [
            {"call_id": row["id"], "lease": lease, "status": self.random.choice(["completed", "failed"])}
            for row in passed
            if self.random.random() < 0.8  # the others are still talking
        ]
        self.connection.execute("select finish_call(%s, %s)", [batch, json.dumps(results)])


def wait_for(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.005)
