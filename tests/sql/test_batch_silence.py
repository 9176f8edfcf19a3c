"""batch_silence: whether calls of a batch can still start at the carrier, since when not, and which are in progress."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from ..support.database import TestDatabase

ENDS = {"paused": "pause_batch(%s)", "stopped": "stop_batch(%s::text)", "cancelled": "cancel_batch(%s)"}


def silence(db: TestDatabase, batch: UUID) -> dict[str, Any]:
    return db.row("select * from batch_silence(%s)", str(batch))


def figures(row: dict[str, Any]) -> tuple[int, int]:
    return row["calls_starting"], row["calls_in_progress"]


def started(db: TestDatabase, number: int, within: float = 60) -> tuple[UUID, list[int]]:
    """A batch, and calls of it that start_call let through."""
    batch = db.batch(db.agency())
    db.contacts(batch, pending=number)
    claimed = db.rows("select call_id, lease from claim_contacts(%s, 60, %s)", number, batch)
    calls = [call["call_id"] for call in claimed]
    db.rows("select start_call(%s, %s, %s, %s)", batch, calls, claimed[0]["lease"], within)
    return batch, calls


def let_time_pass(db: TestDatabase, batch: UUID) -> None:
    """Until the place-by time of the calls is over."""
    for table, name in (("calls", "batch_id"), ("call_batches", "id")):
        db.rows(f"update {table} set place_by = place_by - interval '2 minutes' where {name} = %s", batch)


def test_a_call_is_starting_until_it_is_confirmed_is_over_or_can_leave_no_more(db: TestDatabase) -> None:
    batch, (confirmed, failed, unknown, *_) = started(db, 5)
    assert figures(silence(db, batch)) == (5, 5)
    db.confirm_calls(batch, [confirmed], "c-1")
    assert figures(silence(db, batch)) == (4, 5)
    db.finish_calls(batch, [failed], "failed")
    assert figures(silence(db, batch)) == (3, 4)
    db.finish_calls(batch, [unknown], "unknown")  # the carrier may get it yet
    assert figures(silence(db, batch)) == (3, 4)
    let_time_pass(db, batch)
    assert figures(silence(db, batch)) == (0, 4)


@pytest.mark.parametrize("status", ENDS)
def test_an_end_and_a_pause_tell_the_calls_in_progress_and_those_starting(db: TestDatabase, status: str) -> None:
    batch, (confirmed, *_) = started(db, 3)
    db.confirm_calls(batch, [confirmed], "c-1")
    assert figures(db.row(f"select * from {ENDS[status]}", batch)) == (2, 3)


@pytest.mark.parametrize("status", ENDS)
def test_a_batch_that_was_ended_or_paused_is_silent_when_none_of_its_calls_is_starting(
    db: TestDatabase, status: str
) -> None:
    batch, calls = started(db, 2)
    db.rows(f"select {ENDS[status]}", batch)
    row = silence(db, batch)
    place_by = db.value("select max(place_by) from calls")
    assert (row["status"], row["is_silent"], row["silent_since"], row["silent_by"]) == (status, False, None, place_by)

    db.confirm_calls(batch, calls, "c-1")
    row = silence(db, batch)
    assert (row["is_silent"], row["silent_by"]) == (True, None)
    assert row["silent_since"] <= db.value("select clock_timestamp()")  # its place-by time is still ahead

    let_time_pass(db, batch)
    ended_at = db.value("select coalesce(completed_at, stopped_at, paused_at) from call_batches")
    assert silence(db, batch)["silent_since"] == ended_at
    db.rows("update call_batches set place_by = clock_timestamp()")
    assert silence(db, batch)["silent_since"] == db.value("select place_by from call_batches")


@pytest.mark.parametrize("status", ["pending", "scheduled", "processing"])
def test_a_live_batch_is_not_silent(db: TestDatabase, status: str) -> None:
    batch = db.batch(db.agency(), status=status)
    row = silence(db, batch)
    assert (row["is_silent"], row["silent_since"], figures(row)) == (False, None, (0, 0))


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_batch_that_is_over_without_calls_is_silent(db: TestDatabase, status: str) -> None:
    assert silence(db, db.batch(db.agency(), status=status))["is_silent"]


def test_a_batch_is_found_by_its_external_id_and_user_and_answered_as_it_was_given(db: TestDatabase) -> None:
    agency = db.agency()
    user = db.user(agency)
    batch = db.batch(agency, user, external_id="the-batch")
    row = db.row("select * from batch_silence('the-batch', %s)", str(user))
    assert row["batch_id"] == "the-batch"
    assert silence(db, batch)["batch_id"] == str(batch)


@pytest.mark.parametrize("role", ["agency_owner", "agency_admin", "agency_member", "client_viewer"])
def test_any_user_of_the_agency_may_look(db: TestDatabase, role: str) -> None:
    agency = db.agency()
    batch = db.batch(agency)
    with db.as_user(db.user(agency, role)) as connection:
        assert connection.execute("select (batch_silence(%s)).status", [str(batch)]).fetchone() is not None


@pytest.mark.parametrize(
    ("asked", "sqlstate"),
    [("theirs", "PT404"), ("none", "PT404"), ("", "PT400"), (None, "PT400"), ("by-external-id-alone", "PT400")],
)
def test_a_batch_of_another_agency_or_none_is_refused(db: TestDatabase, asked: str | None, sqlstate: str) -> None:
    agency = db.agency()
    db.batch(agency, external_id="by-external-id-alone")
    ids = {"theirs": str(db.batch(db.agency())), "none": str(uuid4())}
    with db.as_user(db.user(agency)) as connection, pytest.raises(psycopg.Error) as refused:
        connection.execute("select batch_silence(%s)", [ids.get(asked or "", asked)])
    assert refused.value.sqlstate == sqlstate
