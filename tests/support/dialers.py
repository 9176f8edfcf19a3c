"""Dialers as threads, with a connection each, and no carrier."""

from __future__ import annotations

import json
import random
import threading
import time
from typing import Any
from uuid import UUID

from .database import TestDatabase


class Dialer(threading.Thread):
    """Claims, starts and finishes calls in a loop, until told to stop; keeps what it did."""

    def __init__(self, db: TestDatabase, seed: int, batch_id: UUID | None = None) -> None:
        super().__init__()
        self.connection = db.connect()
        self.random = random.Random(seed)
        self.batch_id = batch_id
        self.rounds = 0
        self.starts: list[tuple[float, UUID, int]] = []
        """Of each start_call: when it was asked for, of which batch, how many calls passed."""
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
        claimed = self.connection.execute(
            "select batch_id, call_id from claim_contacts(20, 60, %s)", [self.batch_id]
        ).fetchall()
        if not claimed:
            return
        batch = claimed[0]["batch_id"]
        asked = time.monotonic()
        passed = self.connection.execute(
            "select start_call(%s, %s) as id", [batch, [row["call_id"] for row in claimed]]
        ).fetchall()
        self.starts.append((asked, batch, len(passed)))
        results = [
            {"call_id": row["id"], "status": self.random.choice(["completed", "failed"])}
            for row in passed
            if self.random.random() < 0.8  # the others are still talking
        ]
        self.connection.execute("select finish_call(%s, %s)", [batch, json.dumps(results)])


def wait_for(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.005)
