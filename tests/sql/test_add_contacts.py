"""add_contacts: more contacts for a batch, at the end of its dial order."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest

from ..support.database import TestDatabase


def add(db: TestDatabase, batch: UUID, contacts: list[dict[str, Any]], key: str | None = None) -> dict[str, Any]:
    return db.row("select * from add_contacts(%s, %s, %s)", batch, json.dumps(contacts), key)


def numbered(*numbers: int, **more: Any) -> list[dict[str, Any]]:
    return [{"phone_number": f"+1555{number:07d}", **more} for number in numbers]


def claimed(db: TestDatabase) -> list[int]:
    return [int(row["phone_number"][-7:]) for row in db.rows("select * from claim_contacts(100)")]


def test_added_contacts_are_dialed_last_and_counted(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=1)
    assert claimed(db) == [1]
    assert claimed(db) == []
    assert add(db, batch, numbered(5, 6, 7)) == {
        "success": True,
        "batch_id": batch,
        "added": 3,
        "duplicates": 0,
        "do_not_call": 0,
        "total_contacts": 4,
    }
    assert claimed(db) == [5, 6, 7]


def test_a_number_that_the_batch_has_is_a_duplicate_unless_it_was_skipped(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=1, completed=1)
    db.rows("update campaign_contacts set phone_number = '+15550000002' where status = 'completed'")
    db.rows(
        "insert into campaign_contacts (agency_id, batch_id, phone_number, status)"
        " select agency_id, id, '+15550000003', 'skipped' from call_batches"
    )
    db.rows("update call_batches set total_contacts = 3, skipped = 1")
    added = add(db, batch, numbered(1, 2, 3, 4, 4))
    assert (added["added"], added["duplicates"], added["total_contacts"]) == (2, 3, 5)


def test_a_number_of_another_batch_is_no_duplicate(db: TestDatabase) -> None:
    agency = db.agency()
    db.contacts(db.batch(agency), pending=1)
    assert add(db, db.batch(agency), numbered(1))["added"] == 1


def test_an_added_contact_may_have_a_time_of_its_own(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    add(
        db,
        batch,
        [
            *numbered(1, due_at="2999-01-01T00:00:00Z"),
            *numbered(2, due_at="2020-01-01T00:00:00Z"),
            *numbered(3),
        ],
    )
    assert claimed(db) == [2, 3]
    assert db.statuses(batch) == {"queued": 2, "scheduled": 1}


@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_nothing_is_added_to_a_batch_that_is_over(db: TestDatabase, status: str) -> None:
    batch = db.batch(db.agency(), status=status)
    before = db.state()
    with pytest.raises(psycopg.Error) as refused:
        add(db, batch, numbered(1))
    assert refused.value.sqlstate == "PT400"
    assert json.loads(refused.value.diag.message_detail or "") == {"code": f"batch_already_{status}"}
    assert db.state() == before


@pytest.mark.parametrize("status", ["pending", "scheduled", "processing", "paused", "stopped"])
def test_contacts_are_added_to_any_batch_that_is_not_over(db: TestDatabase, status: str) -> None:
    assert add(db, db.batch(db.agency(), status=status), numbered(1))["added"] == 1


def test_a_bad_row_keeps_the_others_out_too(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    before = db.state()
    with pytest.raises(psycopg.Error) as refused:
        add(db, batch, [*numbered(1), {"phone_number": "none"}])
    assert json.loads(refused.value.diag.message_detail or "")["errors"] == [
        {"index": 1, "error": "phone_number must be in E.164 form, such as +15551234567"}
    ]
    assert db.state() == before


def test_a_repeat_gets_the_first_answer(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    first = add(db, batch, numbered(1, 2), "key-1")
    assert first["added"] == 2
    assert add(db, batch, numbered(1, 2), "key-1") == first
    with pytest.raises(psycopg.Error) as refused:
        add(db, batch, numbered(3), "key-1")
    assert refused.value.sqlstate == "PT409"


def test_a_member_adds_nothing(db: TestDatabase) -> None:
    agency = db.agency()
    batch = db.batch(agency)
    with db.as_user(db.user(agency, "agency_member")) as connection, pytest.raises(psycopg.Error) as refused:
        connection.execute("select add_contacts(%s, %s)", [batch, json.dumps(numbered(1))])
    assert refused.value.sqlstate == "PT403"
