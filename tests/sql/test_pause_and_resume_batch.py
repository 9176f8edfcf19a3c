"""pause_batch stops new calls and keeps the batch's place; resume_batch goes on from there."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from ..support.database import TestDatabase


def call(db: TestDatabase, user: UUID, procedure: str, batch: UUID | None, **arguments: Any) -> dict[str, Any]:
    names = "".join(f", {name} => %s" for name in arguments)
    with db.as_user(user) as connection:
        row = connection.execute(f"select * from {procedure}(%s{names})", [batch, *arguments.values()]).fetchone()
    assert row is not None
    return dict(row)


def phone_numbers(db: TestDatabase, number: int) -> list[int]:
    return [int(row["phone_number"][-7:]) for row in db.rows("select * from claim_contacts(%s)", number)]


def test_a_paused_batch_keeps_its_contacts_and_says_since_when(db: TestDatabase) -> None:
    agency = db.agency()
    owner, batch = db.user(agency), db.batch(agency)
    db.contacts(batch, pending=5, queued=2, in_progress=1, completed=3)

    answer = call(db, owner, "pause_batch", batch)

    paused_at = answer.pop("paused_at")
    assert answer == {
        "success": True,
        "batch_id": batch,
        "status": "paused",
        "message": "Batch paused. In-progress calls will continue until they complete.",
        "calls_in_progress": 1,
        "calls_starting": 0,
    }
    row = db.batch_row(batch)
    assert (row["status"], row["paused_at"]) == ("paused", paused_at)
    assert db.statuses(batch) == {"pending": 7, "in_progress": 1, "completed": 3}


def test_no_call_starts_while_paused_not_even_one_that_was_claimed(db: TestDatabase) -> None:
    agency = db.agency()
    owner, batch = db.user(agency), db.batch(agency)
    db.contacts(batch, pending=5)
    held = [row["call_id"] for row in db.rows("select call_id from claim_contacts(3)")]
    lease = db.lease(held[0])
    call(db, owner, "pause_batch", batch)
    assert db.start_calls(batch, held, lease) == []
    assert db.rows("select * from claim_contacts(10)") == []
    call(db, owner, "resume_batch", batch)
    assert db.start_calls(batch, held, lease) == [], "the old lease stays lost"


def test_a_resumed_batch_goes_on_where_it_was(db: TestDatabase) -> None:
    agency = db.agency()
    owner, batch = db.user(agency), db.batch(agency)
    db.contacts(batch, pending=6)
    claimed = db.rows("select call_id from claim_contacts(4)")
    calls = [row["call_id"] for row in claimed]
    db.start_calls(batch, calls[:2])
    call(db, owner, "pause_batch", batch)

    answer = call(db, owner, "resume_batch", batch)

    assert answer == {
        "success": True,
        "batch_id": batch,
        "status": "processing",
        "message": "Batch resumed. The processor will start making calls on the next run.",
    }
    assert db.batch_row(batch)["paused_at"] is None
    assert phone_numbers(db, 10) == [3, 4, 5, 6]


def test_a_batch_whose_time_is_to_come_is_scheduled_again(db: TestDatabase) -> None:
    agency = db.agency()
    later = datetime(2999, 1, 16, 9, tzinfo=UTC)
    owner, batch = db.user(agency), db.batch(agency, status="scheduled", scheduled_for=later)
    db.contacts(batch, pending=1)
    call(db, owner, "pause_batch", batch)
    answer = call(db, owner, "resume_batch", batch)
    assert (answer["status"], answer["message"]) == (
        "scheduled",
        "Batch scheduled to resume at 2999-01-16T09:00:00Z",
    )
    db.rows("update call_batches set scheduled_for = now()")
    db.rows("select process_batches()")
    assert len(db.rows("select * from claim_contacts(10)")) == 1


def test_a_stopped_batch_can_be_resumed(db: TestDatabase) -> None:
    agency = db.agency()
    owner, batch = db.user(agency), db.batch(agency)
    db.contacts(batch, pending=3)
    db.rows("select stop_batch(%s::text)", batch)
    assert call(db, owner, "resume_batch", batch)["status"] == "processing"
    assert db.batch_row(batch)["stopped_at"] is None
    assert len(db.rows("select * from claim_contacts(10)")) == 3


def test_a_batch_resumed_after_an_early_end_retries_again(db: TestDatabase) -> None:
    agency = db.agency()
    owner, batch = db.user(agency), db.batch(agency)
    db.contacts(batch, pending=2)
    db.start_calls(batch, [db.value("select call_id from claim_contacts(1)")])
    db.rows("select stop_batch(%s::text, skip_remaining => true)", batch)
    call(db, owner, "resume_batch", batch)
    db.finish_calls(batch, [db.value("select id from calls")], "failed")
    assert db.statuses(batch) == {"scheduled": 1, "skipped": 1}


def test_calls_in_progress_finish_while_paused(db: TestDatabase) -> None:
    agency = db.agency()
    owner, batch = db.user(agency), db.batch(agency)
    db.contacts(batch, pending=3)
    answered, failed = (row["call_id"] for row in db.rows("select call_id from claim_contacts(2)"))
    db.start_calls(batch, [answered, failed])
    call(db, owner, "pause_batch", batch)
    db.finish_calls(batch, [answered], "completed")
    db.finish_calls(batch, [failed], "failed")
    assert db.statuses(batch) == {"completed": 1, "scheduled": 1, "pending": 1}
    assert db.batch_row(batch)["status"] == "paused"


@pytest.mark.parametrize("procedure", ["pause_batch", "resume_batch"])
def test_a_caller_without_the_right_is_refused_and_nothing_changes(db: TestDatabase, procedure: str) -> None:
    agency = db.agency()
    batch = db.batch(agency, status="processing" if procedure == "pause_batch" else "paused")
    refusals = [(db.user(agency, role), batch, "PT403") for role in ("agency_member", "client_admin", "admin")]
    refusals += [(db.user(None), batch, "PT403"), (db.user(db.agency("Other")), batch, "PT404")]
    refusals += [(db.user(agency), uuid4(), "PT404")]
    refusals += [(db.user(agency), None, "PT400")]
    before = db.state()
    for user, given, sqlstate in refusals:
        with pytest.raises(psycopg.Error) as refused:
            call(db, user, procedure, given)
        assert refused.value.sqlstate == sqlstate
    assert db.state() == before


@pytest.mark.parametrize(("procedure", "status"), [("pause_batch", "processing"), ("resume_batch", "paused")])
def test_a_repeat_with_its_idempotency_key_gets_the_first_answer(db: TestDatabase, procedure: str, status: str) -> None:
    agency = db.agency()
    owner, batch = db.user(agency), db.batch(agency, status=status)
    first = call(db, owner, procedure, batch, idempotency_key="key-1", reason="lunch")
    before = db.state()
    assert call(db, owner, procedure, batch, idempotency_key="key-1", reason="lunch") == first
    assert db.state() == before
    with pytest.raises(psycopg.Error) as refused:
        call(db, owner, procedure, batch, idempotency_key="key-1", reason="another")
    assert refused.value.sqlstate == "PT409"
