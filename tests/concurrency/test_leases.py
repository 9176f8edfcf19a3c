"""A crash takes claims back, and their ids come again: nothing about the old calls changes the new ones.

CRASHES: how many crashes each test with dialers lives through (default 3).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from functions._shared.errors import unavailable
from functions.migrations import migrate
from functions.postgres_server import PostgresServer

from ..support.crashes import connected, crash, hold_the_disk
from ..support.database import TestDatabase
from ..support.dialing import ScriptedCarrier, a_dialer, dialing, until
from ..support.servers import new_server
from ..support.webhooks import Carrier, event, process, queue

CRASHES = int(os.environ.get("CRASHES", "3"))
CONTACTS = 20


@pytest.fixture
def server(own_folder: Path) -> Iterator[PostgresServer]:
    """A server of the test's own, to crash."""
    server = new_server(own_folder)
    server.start()
    migrate(server.uri())
    yield server
    server.stop()


def a_batch(db: TestDatabase) -> UUID:
    batch = db.batch(db.agency(), retry_delay_seconds=0, max_concurrent=CONTACTS)
    db.contacts(batch, pending=CONTACTS)
    return batch


class CrashedDialer:
    """A dialer whose only claim a crash takes back before start_call. late: the procedure that reaches the database
    only when the dialer is told to, start_call itself or finish_call, since the answer of start_call was lost."""

    def __init__(self, server: PostgresServer, db: TestDatabase, late: str) -> None:
        self.server = server
        self.db = db
        self.late = late
        self.carrier = ScriptedCarrier()
        self.crashed = asyncio.Event()
        self.may_speak = asyncio.Event()
        self.spoke = asyncio.Event()
        self.has_claimed = False

    def claim_once(self) -> Awaitable[bool] | None:
        """Let one claim through, and hold the next ones until the dialer has spoken."""
        if self.has_claimed:
            return self.spoke.wait()
        self.has_claimed = True
        return None

    async def run(self) -> None:
        writer = hold_the_disk(self.db)

        async def lose_the_server() -> None:
            if self.crashed.is_set():
                return
            self.db = crash(self.server, self.db, writer)
            self.crashed.set()
            if self.late == "finish_call":
                raise unavailable("database_unavailable", "The database is out of reach; try again")
            await self.may_speak.wait()

        async with dialing(self.db, self.carrier) as database:
            database.before["claim_contacts"] = self.claim_once
            database.before["finish_call"] = self.may_speak.wait
            database.before["start_call"] = lose_the_server
            database.after[self.late] = self.spoke.set
            await self.spoke.wait()


async def live_through_a_crash(
    server: PostgresServer, db: TestDatabase, late: str
) -> tuple[TestDatabase, dict[str, Any] | None]:
    """One dialer's claim is taken back and another dialer's calls get the ids; then the first one speaks of its own.
    A new connection, and how often contacts were called and where they are; None: the claim outlasted the crash."""
    batch = a_batch(db)
    first, second = CrashedDialer(server, db, late), ScriptedCarrier()
    work = asyncio.create_task(first.run())
    await first.crashed.wait()
    seen = None
    if first.db.statuses(batch) == {"pending": CONTACTS}:
        claimed, confirmed = asyncio.Event(), asyncio.Event()

        async def wait_for_the_first() -> None:
            claimed.set()
            await first.spoke.wait()

        async with dialing(first.db, second) as database:
            if late == "start_call":
                database.before["start_call"] = wait_for_the_first
                await claimed.wait()
                first.may_speak.set()
            database.after["confirm_call"] = confirmed.set
            await until(lambda: len(second.arrived) == CONTACTS)
            await confirmed.wait()
        first.may_speak.set()
        await work
        async with a_dialer(first.db, second) as (last, _):
            await last.run_once(CONTACTS, 10)
        placed = Counter(call.contact_id for call in second.arrived + first.carrier.arrived)
        seen = {"placed": set(placed.values()), "contacts": first.db.statuses(batch), "wrong": first.db.unbalanced()}
    else:
        first.may_speak.set()
        await work
    first.db.rows("delete from call_batches")
    return first.db, seen


def claimed_twice(server: PostgresServer) -> tuple[TestDatabase, Carrier, UUID, list[int], UUID]:
    """A batch whose contacts were claimed, and claimed again under the same ids after a crash: the ids and the
    lease that the crash took back."""
    db = connected(server)
    while True:
        batch = a_batch(db)
        carrier = Carrier(db, db.value("select agency_id from call_batches where id = %s", batch))
        writer = hold_the_disk(db)
        old = db.rows("select call_id, lease from claim_contacts(%s, 60, %s)", CONTACTS, batch)
        db = crash(server, db, writer)
        carrier.db = db
        if db.statuses(batch) == {"pending": CONTACTS}:
            break
        db.rows("delete from call_batches")
    new = db.rows("select call_id, lease from claim_contacts(%s, 60, %s)", CONTACTS, batch)
    calls = [call["call_id"] for call in new]
    assert calls == [call["call_id"] for call in old]
    assert new[0]["lease"] != old[0]["lease"]
    return db, carrier, batch, calls, old[0]["lease"]


def test_nothing_about_calls_that_a_crash_took_back_changes_the_calls_with_their_ids(server: PostgresServer) -> None:
    db, carrier, batch, calls, old = claimed_twice(server)
    before = db.state()
    assert db.row("select * from start_call(%s, %s, %s)", batch, calls, old) == {"started": [], "unknown": calls}
    assert db.state() == before

    assert db.start_calls(batch, calls) == calls
    before = db.state()
    reports: list[tuple[str, dict[str, Any]]] = [
        ("confirm_call", {"carrier_call_id": "old"}),
        ("finish_call", {"status": "failed", "outcome": "not_placed", "counted": False}),
        ("finish_call", {"status": "failed", "outcome": "busy"}),
        ("finish_call", {"status": "completed"}),
        ("finish_call", {"status": "unknown"}),
        ("finish_call", {"status": "missing"}),
    ]
    for procedure, report in reports:
        for lease in (str(old), None):
            told = json.dumps([{"call_id": call, "lease": lease, **report} for call in calls])
            rows = db.rows(f"select * from {procedure}(%s, %s)", batch, told)
            unknown = [{"call_id": call, "lease": lease and UUID(lease), "result": "unknown"} for call in calls]
            assert rows == unknown
            assert db.state() == before, (procedure, report)

    calls_by_agency = "select jsonb_agg(to_jsonb(c) order by c.id) from calls c"
    before = db.value(calls_by_agency)
    for lease in (str(old), "", "old", 7):
        for event_type in ("call.started", "call.joined", "call.ended"):
            about = {"batch_id": batch, "call_id": calls[0], "lease": lease}
            carrier.tell(event(event_type, about, callId=f"old {lease} {event_type}"))
    process(db)
    assert queue(db) == [("ignored", "No such call")] * 12
    assert db.value(calls_by_agency) == before
    assert db.unbalanced() == []
    db.close()


@pytest.mark.parametrize("late", ["start_call", "finish_call"])
def test_no_contact_is_called_twice_when_a_crash_takes_claims_back(server: PostgresServer, late: str) -> None:
    db = connected(server)
    crashes = 0
    while crashes < CRASHES:
        db, seen = asyncio.run(live_through_a_crash(server, db, late))
        if seen is not None:
            crashes += 1
            assert seen == {"placed": {1}, "contacts": {"in_progress": CONTACTS}, "wrong": []}
    db.close()
