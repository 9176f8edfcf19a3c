"""A batch that may not dial now says what it waits for, and until when, if that is known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from ..support.database import TestDatabase

NOW = datetime(2026, 6, 3, 12, 0, tzinfo=UTC)  # a Wednesday
PAST, SOON = NOW - timedelta(hours=1), NOW + timedelta(hours=1)
HOURS = {"calling_start": "13:00", "calling_end": "17:00"}
OPENS = NOW.replace(hour=13)


def waiting(db: TestDatabase, batch: UUID, at: datetime = NOW) -> tuple[Any, Any]:
    row = db.row("select w.* from call_batches b, private.waiting_for(b, %s) w where b.id = %s", at, batch)
    return row["waiting_for"], row["waiting_until"]


def waiting_now(db: TestDatabase, batch: UUID) -> tuple[Any, Any]:
    return waiting(db, batch, db.value("select clock_timestamp()"))


def made(db: TestDatabase, contacts: dict[str, int] | None = None, **columns: Any) -> UUID:
    batch = db.batch(db.agency(), **{"next_claim_at": PAST, **columns})
    db.contacts(batch, **({"pending": 5} if contacts is None else contacts))
    return batch


@pytest.mark.parametrize("status", ["pending", "scheduled"])
def test_before_its_start_it_waits_for_its_time_for_contacts_or_for_process_batches(
    db: TestDatabase, status: str
) -> None:
    assert waiting(db, made(db, status=status, scheduled_for=SOON)) == ("scheduled_for", SOON)
    for due in (None, PAST):
        assert waiting(db, made(db, status=status, scheduled_for=due)) == ("process", None)
        assert waiting(db, made(db, {}, status=status, scheduled_for=due)) == ("contacts", None)


@pytest.mark.parametrize(
    ("status", "reason"),
    [("paused", "resume"), ("stopped", "resume"), ("completed", None), ("failed", None), ("cancelled", None)],
)
def test_halted_it_waits_to_be_resumed_and_over_for_nothing(db: TestDatabase, status: str, reason: str | None) -> None:
    assert waiting(db, made(db, status=status, scheduled_for=SOON, **HOURS)) == (reason, None)


def test_a_batch_that_dials_waits_for_nothing(db: TestDatabase) -> None:
    assert waiting(db, made(db)) == (None, None)
    at_work = {"pending": 5, "queued": 1, "in_progress": 1}
    assert waiting(db, made(db, at_work, max_concurrent=3, calls_per_minute=30)) == (None, None)
    assert waiting(db, made(db, **HOURS), SOON) == (None, None)


def test_outside_its_hours_and_days_it_waits_for_them(db: TestDatabase) -> None:
    assert waiting(db, made(db, **HOURS)) == ("calling_hours", OPENS)
    assert waiting(db, made(db, allowed_days=[5])) == ("calling_hours", datetime(2026, 6, 5, tzinfo=UTC))
    assert waiting(db, made(db, **HOURS, timezone="America/New_York")) == ("calling_hours", NOW.replace(hour=17))
    # Before a limit, which its hours outlast.
    assert waiting(db, made(db, {"pending": 1, "in_progress": 1}, max_concurrent=1, **HOURS)) == (
        "calling_hours", OPENS,
    )  # fmt: skip


def test_outside_its_hours_a_contact_with_a_time_zone_of_its_own_that_is_due_is_dialed(db: TestDatabase) -> None:
    batch = made(db, **HOURS)
    db.rows("update campaign_contacts set due_at = %s where id = (select min(id) from campaign_contacts)", PAST)
    assert waiting(db, batch) == ("calling_hours", OPENS)  # a retry, of where the batch is
    db.rows("update campaign_contacts set timezone = 'Asia/Tokyo' where due_at is not null")
    assert waiting(db, batch) == (None, None)
    db.rows("update campaign_contacts set status = 'skipped' where due_at is not null")
    db.rows("update call_batches set skipped = 1")
    assert waiting(db, batch) == ("calling_hours", OPENS)


def test_outside_its_hours_what_the_last_claim_found_says_when_the_first_contact_can_be_called(
    db: TestDatabase,
) -> None:
    before, after = NOW + timedelta(minutes=20), NOW + timedelta(hours=3)
    assert waiting(db, made(db, next_claim_at=before, **HOURS)) == ("calling_hours", before)
    assert waiting(db, made(db, next_claim_at=OPENS, **HOURS)) == ("calling_hours", OPENS)
    assert waiting(db, made(db, next_claim_at=after, **HOURS)) == ("retry", after)
    # No day is allowed: never, but for those elsewhere.
    assert waiting(db, made(db, allowed_days=[])) == ("calling_hours", None)
    assert waiting(db, made(db, next_claim_at=before, allowed_days=[])) == ("calling_hours", before)


def test_after_a_claim_outside_its_hours_it_waits_for_them(db: TestDatabase) -> None:
    far = db.value("select (extract(dow from now())::int + 3) %% 7")
    batch = db.batch(db.agency(), allowed_days=[far])
    db.contacts(batch, pending=2)
    reason, until = waiting_now(db, batch)
    assert db.rows("select claim_contacts()") == []
    assert waiting_now(db, batch) == (reason, until) == ("calling_hours", db.batch_row(batch)["next_claim_at"])


def test_with_as_many_calls_as_it_may_have_it_waits_for_one_to_end(db: TestDatabase) -> None:
    assert waiting(db, made(db, {"pending": 1, "queued": 1, "in_progress": 2}, max_concurrent=3)) == (
        "max_concurrent", None,
    )  # fmt: skip


def test_with_as_many_calls_in_a_minute_as_it_may_have_it_waits_until_the_first_of_them_is_a_minute_old(
    db: TestDatabase,
) -> None:
    batch = db.batch(db.agency(), calls_per_minute=3)
    db.contacts(batch, pending=10)
    db.rows("select claim_contacts(2)")
    assert waiting_now(db, batch) == (None, None)
    db.rows("select claim_contacts(2)")
    first = db.value("select min(created_at) from calls")
    until = first + timedelta(minutes=1)
    assert waiting_now(db, batch) == ("calls_per_minute", until)
    assert db.rows("select claim_contacts()") == []  # which sets next_claim_at to the same time
    assert db.batch_row(batch)["next_claim_at"] == until
    assert waiting_now(db, batch) == ("calls_per_minute", until)
    assert waiting(db, batch, until) == (None, None)


def test_when_all_that_is_left_is_due_later_it_waits_for_that(db: TestDatabase) -> None:
    batch = db.batch(db.agency(), retry_delay_seconds=600)
    db.contacts(batch, pending=1)
    call = db.value("select call_id from claim_contacts()")
    db.start_calls(batch, [call])
    db.rows("select claim_contacts()")
    assert waiting_now(db, batch) == ("results", None)
    db.finish_calls(batch, [call], "failed")
    due = db.value("select due_at from campaign_contacts")
    assert waiting_now(db, batch) == ("retry", due)
    assert waiting(db, batch, due) == (None, None)


def test_with_nothing_left_to_claim_it_waits_for_results_and_then_to_be_completed(db: TestDatabase) -> None:
    assert waiting(db, made(db, {"in_progress": 1, "completed": 4})) == ("results", None)
    assert waiting(db, made(db, {"queued": 1, "completed": 4}, max_concurrent=1, **HOURS)) == ("results", None)
    # The counters leave one, which the last claim did not find.
    assert waiting(db, made(db, {"pending": 1, "in_progress": 1}, next_claim_at=None)) == ("results", None)
    batch = made(db, {"completed": 4, "failed": 1})
    assert waiting(db, batch) == ("process", None)
    db.rows("select process_batches()")
    assert db.batch_row(batch)["status"] == "completed"
