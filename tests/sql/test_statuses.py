"""The state table, pair by pair: what each procedure does to a batch in each status."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest

from ..support.database import TestDatabase

STATUSES = ["pending", "scheduled", "processing", "paused", "stopped", "completed", "failed", "cancelled"]
NOT_OVER = ["pending", "scheduled", "processing", "paused", "stopped"]

# The next status; where there is none, the procedure is refused or passes the batch by.
MOVES = {
    "process_batches()": {"pending": "processing", "scheduled": "processing"},
    "start_batch(%(batch)s::text)": dict.fromkeys(NOT_OVER, "processing"),
    "pause_batch(%(batch)s)": {"processing": "paused", "scheduled": "paused"},
    "resume_batch(%(batch)s)": {"paused": "processing", "stopped": "processing"},
    "stop_batch(%(batch)s::text)": dict.fromkeys(NOT_OVER, "stopped"),
    "cancel_batch(%(batch)s)": {s: "cancelled" for s in STATUSES if s not in ("completed", "cancelled")},
}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("procedure", MOVES)
def test_each_procedure_from_each_status(db: TestDatabase, procedure: str, status: str) -> None:
    batch = db.batch(db.agency(), status=status)
    db.contacts(batch, pending=1)
    after = MOVES[procedure].get(status)
    before = db.state()
    try:
        db.owner.execute(f"select {procedure}", {"batch": batch})
    except psycopg.Error as refused:
        assert (refused.sqlstate, after) == ("PT400", None)
    if after is None:
        assert db.state() == before
    else:
        assert db.batch_row(batch)["status"] == after
        event = db.row("select from_status, to_status from batch_events")
        assert event == {"from_status": status, "to_status": after}


# Procedures that leave the status as it is, and the statuses in which they do something.
LEAVES = {
    "add_contacts(%(batch)s, %(contacts)s)": [s for s in STATUSES if s not in ("completed", "cancelled")],
    "retry_batch(%(batch)s)": STATUSES,
    "claim_contacts()": ["processing"],
    "start_call(%(batch)s, %(held)s, %(lease)s)": ["processing"],
    "confirm_call(%(batch)s, %(confirmed)s)": STATUSES,
    "finish_call(%(batch)s, %(results)s)": STATUSES,
    "release_expired_leases()": ["processing"],
}


def world(db: TestDatabase, status: str) -> tuple[UUID, dict[str, Any]]:
    """A batch with one contact each that is pending, leased, in progress and failed."""
    batch = db.batch(db.agency())
    db.contacts(batch, pending=3)
    held, talking = (row["call_id"] for row in db.rows("select call_id from claim_contacts(2)"))
    db.start_calls(batch, [talking])
    db.rows(
        "insert into campaign_contacts (agency_id, batch_id, phone_number, status)"
        " select agency_id, id, '+15559999999', 'failed' from call_batches"
    )
    db.rows(
        "update call_batches set total_contacts = 4, failed = 1, status = %s",
        status,
    )
    return batch, {
        "batch": batch,
        "held": [held],
        "lease": db.lease(held),
        "contacts": json.dumps([{"phone_number": "+15558888888"}]),
        "confirmed": db.named([talking], carrier_call_id="the-carriers"),
        "results": db.named([talking], status="completed"),
    }


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("procedure", LEAVES)
def test_other_procedures_leave_each_status_as_it_is(db: TestDatabase, procedure: str, status: str) -> None:
    batch, values = world(db, status)
    if procedure == "release_expired_leases()":
        db.rows("update calls set lease_expires_at = now() where status = 'queued'")
    before = db.state()
    try:
        db.owner.execute(f"select {procedure}", values)
    except psycopg.Error as refused:
        assert refused.sqlstate == "PT400"
    assert (db.state() != before) is (status in LEAVES[procedure])
    assert db.batch_row(batch)["status"] == status
