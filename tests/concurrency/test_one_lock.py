"""Whoever could put a contact back meets cancel and stop at the batch's lock, in either order.

Each meeting is played twice: the one holds the batch and the other arrives, and the reverse. Nothing
is left to chance: the second one is seen waiting (or passing by) before the first one commits.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest

from ..support.arrivals import Arrival
from ..support.database import Connection, TestDatabase

ENDINGS = ["cancel_batch(%(batch)s)", "stop_batch(%(batch)s::text, skip_remaining => true)"]
# The statement, and whether it passes by a batch that another transaction holds, instead of waiting.
CONTENDERS = {
    "finish_call, all failed": ("finish_call(%(batch)s, %(failed)s)", False),
    "finish_call, all completed": ("finish_call(%(batch)s, %(completed)s)", False),
    "start_call": ("start_call(%(batch)s, %(held)s, %(lease)s)", False),
    "confirm_call": ("confirm_call(%(batch)s, %(confirmed)s)", False),
    "start_batch": ("start_batch(%(batch)s::text, call_data => %(data)s)", False),
    "add_contacts": ("add_contacts(%(batch)s, %(more)s)", False),
    "release_expired_leases": ("release_expired_leases()", True),
    "claim_contacts": ("claim_contacts(10)", True),
    "process_batches": ("process_batches()", True),
    "stop_batch": ("stop_batch(%(batch)s::text)", False),
    "cancel_batch": ("cancel_batch(%(batch)s)", False),
    "pause_batch": ("pause_batch(%(batch)s)", False),
}


def world(db: TestDatabase) -> dict[str, Any]:
    """A batch with contacts in every place: waiting, held under leases, some of them lost, in progress."""
    batch = db.batch(db.agency(), retry_delay_seconds=0)
    db.contacts(batch, pending=30)
    calls = [row["call_id"] for row in db.rows("select call_id from claim_contacts(15)")]
    talking, held = calls[:5], calls[5:]
    db.start_calls(batch, talking)
    db.rows("update calls set lease_expires_at = clock_timestamp() where id = any (%s)", held[:3])
    results = {status: db.named(talking, status=status) for status in ("failed", "completed")}
    return {
        "batch": batch,
        "held": held,
        "lease": db.lease(held[0]),
        "more": json.dumps([{"phone_number": "+15550000000"}]),
        "data": json.dumps([{"phoneNumber": "+15550000000"}]),
        "confirmed": db.named(talking, carrier_call_id="carrier"),
        **results,
    }


def callable_contacts(db: TestDatabase, batch: UUID) -> list[Any]:
    """The contacts that a dialer could still call, whatever it tries."""
    db.rows("update calls set lease_expires_at = clock_timestamp() where status = 'queued'")
    db.rows("select release_expired_leases()")
    db.rows("select process_batches()")
    waiting = db.rows(
        "select id, status from campaign_contacts where batch_id = %s and status in ('pending', 'scheduled', 'queued')",
        batch,
    )
    return waiting + db.rows("select * from claim_contacts(100)")


def holding(db: TestDatabase, query: str, values: dict[str, Any]) -> Connection:
    """A connection whose open transaction has made the call."""
    connection = db.connect()
    connection.execute("begin")
    connection.execute(query, values)
    return connection


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_a_procedure_that_arrives_during_the_end_finds_the_batch_over(
    db: TestDatabase, contender: str, ending: str
) -> None:
    values = world(db)
    query, passes_by = CONTENDERS[contender]
    with holding(db, f"select {ending}", values) as first:
        arrival = Arrival(db, f"select {query}", values)
        assert arrival.waits() is not passes_by
        first.execute("commit")
    arrival.join()
    # Only a cancel is for good: a batch that was stopped may get contacts, and be started again.
    if contender not in ("add_contacts", "start_batch") or "cancel" in ending:
        assert callable_contacts(db, values["batch"]) == []
    assert arrival.sqlstate in (None, "PT400")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_the_end_waits_for_what_came_before_it_and_finds_what_that_put_back(
    db: TestDatabase, contender: str, ending: str
) -> None:
    values = world(db)
    with holding(db, f"select {CONTENDERS[contender][0]}", values) as first:
        arrival = Arrival(db, f"select {ending}", values)
        # process_batches has nothing to do with a batch that is being dialed.
        assert arrival.waits() is (contender != "process_batches")
        first.execute("commit")
    arrival.join()
    assert callable_contacts(db, values["batch"]) == []
    assert arrival.sqlstate == ("PT400" if contender == "cancel_batch" else None)


def test_a_plain_insert_into_a_cancelled_batch_is_never_called(db: TestDatabase) -> None:
    values = world(db)
    insert = (
        "insert into campaign_contacts (agency_id, batch_id, phone_number)"
        " select agency_id, id, '+15550000000' from call_batches where id = %(batch)s"
    )
    with holding(db, insert, values) as late:
        db.rows("select cancel_batch(%s)", values["batch"])  # an insert does not keep a cancel waiting
        late.execute("commit")
    db.rows("select release_expired_leases()")
    db.rows("select process_batches()")
    assert db.rows("select * from claim_contacts(100)") == []
    assert db.batch_row(values["batch"])["status"] == "cancelled"
    db.rows("select private.recount_batch(%s)", values["batch"])


def test_a_cancel_that_is_undone_leaves_the_batch_being_dialed(db: TestDatabase) -> None:
    values = world(db)
    before = db.state()
    with holding(db, "select cancel_batch(%(batch)s)", values) as first:
        assert db.rows("select * from claim_contacts(10)") == []
        first.execute("rollback")
    assert db.state() == before
    assert len(db.rows("select * from claim_contacts(10)")) == 10


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_under_a_stricter_isolation_too_no_call_starts_after_the_end(db: TestDatabase, isolation: str) -> None:
    values = world(db)
    with db.connect() as dialer:
        dialer.execute(f"begin isolation level {isolation}")
        dialer.execute("select 1")  # its snapshot is from before the cancel
        db.rows("select cancel_batch(%s)", values["batch"])
        with pytest.raises(psycopg.errors.SerializationFailure):
            dialer.execute("select start_call(%(batch)s, %(held)s, %(lease)s)", values)
    assert db.value("select count(*) from calls where status = 'queued'") == 0
