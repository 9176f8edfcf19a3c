"""start_batch: dial now, whatever the batch waited for; with other contacts, these instead."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest

from ..support.database import TestDatabase

ALLOWED = ["pending", "scheduled", "processing", "paused", "stopped"]


def start(db: TestDatabase, batch: UUID | str, **arguments: Any) -> dict[str, Any]:
    names = "".join(f", {name} => %s" for name in arguments)
    given = [json.dumps(v) if name == "call_data" else v for name, v in arguments.items()]
    return db.row(f"select * from start_batch(%s{names})", str(batch), *given)


@pytest.mark.parametrize("status", ALLOWED)
def test_a_batch_is_dialed_from_then_on(db: TestDatabase, status: str) -> None:
    batch = db.batch(db.agency(), status=status, scheduled_for="2999-01-01T00:00:00Z", skip_remaining=True)
    db.contacts(batch, pending=2)
    assert start(db, batch)["status"] == "processing"
    row = db.batch_row(batch)
    assert (row["status"], row["scheduled_for"], row["skip_remaining"]) == ("processing", None, False)
    assert row["started_at"] is not None
    assert len(db.rows("select * from claim_contacts(5)")) == 2
    event = db.row("select action, from_status, to_status from batch_events")
    assert event == {"action": "start", "from_status": status, "to_status": "processing"}


@pytest.mark.parametrize("status", ["completed", "cancelled", "failed"])
def test_a_batch_that_is_over_is_not_started(db: TestDatabase, status: str) -> None:
    batch = db.batch(db.agency(), status=status)
    before = db.state()
    with pytest.raises(psycopg.Error, match=f"Batch is already {status}") as refused:
        start(db, batch)
    assert refused.value.sqlstate == "PT400"
    assert db.state() == before


def test_with_call_data_these_are_called_instead_of_what_is_stored(db: TestDatabase) -> None:
    batch = db.batch(db.agency(), status="stopped")
    db.contacts(batch, pending=2, scheduled=1, in_progress=1, completed=1)
    data = [
        {"phoneNumber": "+15559000001", "name": "Ada", "priority": 1},
        {"phoneNumber": "+15559000002"},
        {"phoneNumber": "+15559000001"},
    ]
    started = start(db, batch, call_data=data)
    assert (started["contacts_added"], started["duplicates"], started["contacts_replaced"]) == (2, 1, 3)
    assert db.statuses(batch) == {"skipped": 3, "in_progress": 1, "completed": 1, "pending": 2}
    assert db.value("select distinct outcome_notes from campaign_contacts where status = 'skipped'") == "Replaced"
    first, second = db.rows("select * from claim_contacts(9)")
    assert (first["phone_number"], first["custom_data"]) == ("+15559000001", {"name": "Ada", "priority": 1})
    assert (second["phone_number"], second["custom_data"]) == ("+15559000002", {})


def test_call_data_replaces_what_a_dialer_holds(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=2)
    calls = [row["call_id"] for row in db.rows("select * from claim_contacts(2)")]
    lease = db.lease(calls[0])
    start(db, batch, call_data=[{"phoneNumber": "+15559000001"}])
    assert db.start_calls(batch, calls, lease) == []
    assert db.statuses(batch) == {"skipped": 2, "pending": 1}
    assert db.batch_row(batch)["queued"] == 0


@pytest.mark.parametrize("data", [[], {}, [1], [{}], [{"phoneNumber": "5551234"}], [{"phone_number": "+15559000001"}]])
def test_call_data_that_is_none_changes_nothing(db: TestDatabase, data: Any) -> None:
    batch = db.batch(db.agency(), status="stopped")
    db.contacts(batch, pending=2)
    before = db.state()
    with pytest.raises(psycopg.Error) as refused:
        start(db, batch, call_data=data)
    assert refused.value.sqlstate == "PT400"
    assert db.state() == before


def test_calling_numbers_are_active_numbers_of_the_agency(db: TestDatabase) -> None:
    agency = db.agency()
    batch = db.batch(agency, status="stopped")
    db.contacts(batch, pending=1)
    number = db.calling(agency)["from_number"]
    with pytest.raises(psycopg.Error, match="is not an active number of the agency"):
        start(db, batch, calling_numbers=[number, "+15550000000"])
    start(db, batch, calling_numbers=[number])
    assert db.row("select from_number from claim_contacts(1)") == {"from_number": number}


def test_the_user_of_the_batch_or_an_admin_starts_it_and_no_one_else(db: TestDatabase) -> None:
    agency = db.agency()
    member, other, admin = (db.user(agency, role) for role in ("agency_member", "agency_member", "agency_admin"))
    batch = db.batch(agency, member, status="stopped")
    for user, sqlstate in ((other, "PT403"), (member, None), (admin, None)):
        with db.as_user(user) as connection:
            try:
                connection.execute("select start_batch(%s, %s)", [str(batch), str(member)])
                found = None
            except psycopg.Error as error:
                found = error.sqlstate
        assert found == sqlstate


def test_a_repeat_gets_the_first_answer(db: TestDatabase) -> None:
    batch = db.batch(db.agency(), status="stopped")
    data = [{"phoneNumber": "+15559000001"}]
    first = start(db, batch, call_data=data, idempotency_key="key-1")
    before = db.state()
    assert start(db, batch, call_data=data, idempotency_key="key-1") == first
    assert db.state() == before
