"""Calls in progress that somebody wants ended, and calls that a carrier queues and has not dialed yet: which of them
dialers are told to end, and how the books record their end."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from ..support.database import TestDatabase

ENDS = {
    "paused": "pause_batch(%s)",
    "stopped": "stop_batch(%s::text)",
    "stopped, contacts skipped": "stop_batch(%s::text, skip_remaining => true)",
    "cancelled": "cancel_batch(%s)",
}
END_CALLS = {
    "cancel_batch": "cancel_batch(%s, end_calls => true)",
    "stop_batch": "stop_batch(%s::text, end_calls => true)",
}


def to_end(db: TestDatabase, most: int = 100) -> dict[int, str]:
    """The calls that a dialer is told to end, and how."""
    rows = db.rows("select call_id, hang_up from list_calls_to_end(%s)", most)
    return {row["call_id"]: "hang up" if row["hang_up"] else "withdraw" for row in rows}


def queued(db: TestDatabase, batch: UUID, calls: list[int]) -> None:
    """The carrier has these calls in its queue."""
    report = db.named(calls, carrier_call_id="c-1", carrier_queued=True)
    db.rows("select confirm_call(%s, %s)", batch, report)


def let_time_pass(db: TestDatabase, seconds: float) -> None:
    db.rows("update calls set end_asked_at = end_asked_at - make_interval(secs => %s)", seconds)


def contact(db: TestDatabase, call: int) -> dict[str, Any]:
    return db.row(
        "select t.status::text, t.outcome, t.attempts from campaign_contacts t join calls c on c.contact_id = t.id"
        " where c.id = %s",
        call,
    )


# Which calls dialers are told to end.


@pytest.mark.parametrize("end", ENDS)
def test_without_end_calls_no_call_that_was_dialed_is_ended(db: TestDatabase, end: str) -> None:
    batch, (_placed, confirmed, unknown) = db.in_progress(3)
    db.confirm_calls(batch, [confirmed], "c-1")
    db.finish_calls(batch, [unknown], "unknown")
    db.rows(f"select {ENDS[end]}", batch)
    assert to_end(db) == {}


@pytest.mark.parametrize("procedure", END_CALLS)
def test_with_end_calls_every_call_in_progress_is_hung_up(db: TestDatabase, procedure: str) -> None:
    batch, calls = db.in_progress(4)
    _placed, confirmed, unknown, in_queue = calls
    db.confirm_calls(batch, [confirmed], "c-1")
    db.finish_calls(batch, [unknown], "unknown")
    queued(db, batch, [in_queue])
    _, others = db.in_progress(1)
    db.rows(f"select {END_CALLS[procedure]}", batch)
    assert to_end(db) == dict.fromkeys(calls, "hang up")
    assert not {*calls} & {*others}


@pytest.mark.parametrize("end", ENDS)
def test_calls_in_the_carriers_queue_are_withdrawn_from_a_batch_that_is_dialed_no_more(
    db: TestDatabase, end: str
) -> None:
    batch, calls = db.in_progress(3)
    queued(db, batch, calls[:2])
    assert to_end(db) == {}
    db.rows(f"select {ENDS[end]}", batch)
    assert to_end(db) == dict.fromkeys(calls[:2], "withdraw")


def test_a_call_that_left_the_carriers_queue_is_not_withdrawn(db: TestDatabase) -> None:
    batch, (dialed, over) = db.in_progress(2)
    queued(db, batch, [dialed, over])
    db.confirm_calls(batch, [dialed], "c-1")
    queued(db, batch, [dialed])  # told late: it is dialed all the same
    db.finish_calls(batch, [over], "completed")
    db.rows("select cancel_batch(%s)", batch)
    assert to_end(db) == {}


def test_a_call_is_given_again_after_5_seconds_until_it_is_over(db: TestDatabase) -> None:
    batch, (call,) = db.in_progress(1)
    db.rows("select cancel_batch(%s, end_calls => true)", batch)
    assert to_end(db) == {call: "hang up"}
    assert to_end(db) == {}
    let_time_pass(db, 5)
    assert to_end(db) == {call: "hang up"}
    let_time_pass(db, 5)
    db.finish_calls(batch, [call], "completed")
    assert to_end(db) == {}


def test_every_call_has_its_turn_however_many_there_are(db: TestDatabase) -> None:
    batch, calls = db.in_progress(5)
    db.rows("select cancel_batch(%s, end_calls => true)", batch)
    turns = [to_end(db, most=2) for _ in range(4)]
    assert [len(turn) for turn in turns] == [2, 2, 1, 0]
    assert sorted(call for turn in turns for call in turn) == calls


def test_two_who_ask_at_once_get_different_calls_and_neither_waits(db: TestDatabase) -> None:
    batch, calls = db.in_progress(6)
    db.rows("select cancel_batch(%s, end_calls => true)", batch)
    with db.connect() as other, other.transaction():
        theirs = [row["call_id"] for row in other.execute("select call_id from list_calls_to_end(3)")]
        assert sorted([*theirs, *to_end(db)]) == calls


def test_a_batch_that_somebody_holds_keeps_nobody_from_asking(db: TestDatabase) -> None:
    batch, (call,) = db.in_progress(1)
    db.rows("select cancel_batch(%s, end_calls => true)", batch)
    with db.connect() as other, other.transaction():
        other.execute("select from call_batches where id = %s for no key update", [batch])
        assert to_end(db) == {call: "hang up"}


def test_a_dialer_is_told_what_it_needs_to_end_a_call(db: TestDatabase) -> None:
    batch, (call,) = db.in_progress(1)
    queued(db, batch, [call])
    db.rows("select cancel_batch(%s, end_calls => true)", batch)
    row = db.row("select * from list_calls_to_end()")
    assert (row["batch_id"], row["call_id"], row["lease"]) == (batch, call, db.lease(call))
    assert (row["carrier_call_id"], row["status"]) == ("c-1", "in_progress")
    assert (row["carrier_queued"], row["hang_up"]) == (True, True)


@pytest.mark.parametrize("most", [0, 1001, None])
def test_a_number_out_of_range_is_refused_with_pt400(db: TestDatabase, most: int | None) -> None:
    with pytest.raises(psycopg.Error) as refused:
        db.rows("select list_calls_to_end(%s)", most)
    assert refused.value.sqlstate == "PT400"


# How the books record the end.


@pytest.mark.parametrize(("status", "given"), [("completed", "answered"), ("failed", "no_answer")])
def test_a_call_that_the_carrier_was_told_to_hang_up_has_the_outcome_hung_up(
    db: TestDatabase, status: str, given: str
) -> None:
    batch, (call,) = db.in_progress(1)
    db.confirm_calls(batch, [call], "c-1")
    db.rows("select cancel_batch(%s, end_calls => true)", batch)
    assert to_end(db) == {call: "hang up"}
    db.finish_calls(batch, [call], status, outcome=given, duration_seconds=7, carrier_call_id="c-1")
    assert contact(db, call) == {"status": status, "outcome": "hung_up", "attempts": 1}
    assert db.row("select outcome, duration_seconds from calls") == {"outcome": "hung_up", "duration_seconds": 7}


def test_a_call_that_was_over_before_any_dialer_was_told_keeps_its_outcome(db: TestDatabase) -> None:
    batch, (call,) = db.in_progress(1)
    db.rows("select cancel_batch(%s, end_calls => true)", batch)
    db.finish_calls(batch, [call], "completed", outcome="answered", carrier_call_id="c-1")
    assert contact(db, call)["outcome"] == "answered"


def test_a_call_that_was_never_placed_is_not_called_hung_up(db: TestDatabase) -> None:
    batch, (call,) = db.in_progress(1)
    db.rows("select cancel_batch(%s, end_calls => true)", batch)
    assert to_end(db) == {call: "hang up"}
    db.finish_calls(batch, [call], "failed", outcome="not_placed", counted=False)
    assert contact(db, call) == {"status": "failed", "outcome": "not_placed", "attempts": 0}


def test_a_withdrawn_call_is_no_attempt_and_its_contact_is_called_when_the_batch_is_resumed(db: TestDatabase) -> None:
    batch, (call,) = db.in_progress(1, retry_outcomes=["busy"])
    queued(db, batch, [call])
    db.rows("select stop_batch(%s::text)", batch)
    assert to_end(db) == {call: "withdraw"}
    db.finish_calls(batch, [call], "failed", outcome="withdrawn", carrier_call_id="c-1")
    assert contact(db, call) == {"status": "scheduled", "outcome": "withdrawn", "attempts": 0}
    db.rows("select resume_batch(%s)", batch)
    db.rows("update campaign_contacts set due_at = now(); update call_batches set next_claim_at = now()")
    assert len(db.rows("select * from claim_contacts(1, 60, %s)", batch)) == 1


def test_a_withdrawn_call_of_a_cancelled_batch_leaves_its_contact_failed(db: TestDatabase) -> None:
    batch, (call,) = db.in_progress(1)
    queued(db, batch, [call])
    db.rows("select cancel_batch(%s)", batch)
    db.finish_calls(batch, [call], "failed", outcome="withdrawn", carrier_call_id="c-1")
    assert contact(db, call) == {"status": "failed", "outcome": "withdrawn", "attempts": 0}


# A call in the carrier's queue can still start.


@pytest.mark.parametrize("end", ENDS)
def test_a_batch_is_not_silent_while_the_carrier_queues_one_of_its_calls(db: TestDatabase, end: str) -> None:
    batch, (call,) = db.in_progress(1)
    queued(db, batch, [call])
    db.rows("update calls set place_by = place_by - interval '1 hour'")
    db.rows("update call_batches set place_by = place_by - interval '1 hour'")
    assert db.row(f"select calls_starting from {ENDS[end]}", batch)["calls_starting"] == 1
    row = db.row("select * from batch_silence(%s)", str(batch))
    assert (row["is_silent"], row["calls_starting"], row["silent_by"]) == (False, 1, None)


@pytest.mark.parametrize("leaves", ["is dialed", "is withdrawn"])
def test_a_batch_is_silent_since_its_last_call_left_the_carriers_queue(db: TestDatabase, leaves: str) -> None:
    batch, (call,) = db.in_progress(1)
    queued(db, batch, [call])
    db.rows("update calls set place_by = place_by - interval '1 hour'")
    db.rows("update call_batches set place_by = place_by - interval '1 hour'")
    db.rows("select cancel_batch(%s)", batch)
    before = db.value("select clock_timestamp()")
    if leaves == "is dialed":
        db.confirm_calls(batch, [call], "c-1")
    else:
        db.finish_calls(batch, [call], "failed", outcome="withdrawn", carrier_call_id="c-1")
    row = db.row("select * from batch_silence(%s)", str(batch))
    assert row["is_silent"]
    assert before <= row["silent_since"] <= db.value("select clock_timestamp()")


@pytest.mark.parametrize("value", ['"yes"', "1", "[]"])
def test_whether_the_carrier_queues_a_call_must_be_true_or_false(db: TestDatabase, value: str) -> None:
    batch, (call,) = db.in_progress(1)
    report = f'[{{"call_id": {call}, "lease": null, "carrier_call_id": "c-1", "carrier_queued": {value}}}]'
    with pytest.raises(psycopg.Error) as refused:
        db.rows("select confirm_call(%s, %s)", batch, report)
    assert refused.value.sqlstate == "PT400"


# Answers and audit trail of the two procedures.


@pytest.mark.parametrize("procedure", END_CALLS)
def test_the_end_of_calls_is_an_event_of_its_own_in_the_audit_trail(db: TestDatabase, procedure: str) -> None:
    batch, _ = db.in_progress(2)
    db.rows(f"select {END_CALLS[procedure].replace('=> true', '=> true, reason => %s')}", batch, "wrong script")
    event = db.row("select * from batch_events where action = 'end_calls'")
    status = db.batch_row(batch)["status"]
    assert (event["batch_id"], event["contacts"], event["reason"]) == (batch, 2, "wrong script")
    assert (event["from_status"], event["to_status"]) == (status, status)


def test_cancel_says_that_the_calls_are_being_ended(db: TestDatabase) -> None:
    batch, _ = db.in_progress(2)
    row = db.row("select * from cancel_batch(%s, end_calls => true)", batch)
    assert row["calls_in_progress"] == 2
    assert row["message"] == "Batch cancelled. In-progress calls are being ended and no new calls will be initiated."


def test_the_calls_of_a_cancelled_batch_can_be_ended_afterwards(db: TestDatabase) -> None:
    batch, (call,) = db.in_progress(1)
    db.contacts(batch, pending=2)
    first = db.row("select * from cancel_batch(%s)", batch)
    completed_at = db.batch_row(batch)["completed_at"]
    again = db.row("select * from cancel_batch(%s, end_calls => true)", batch)
    assert (first["contacts_skipped"], again["contacts_skipped"]) == (2, 0)
    assert to_end(db) == {call: "hang up"}
    assert db.batch_row(batch)["completed_at"] == completed_at


def test_a_cancelled_batch_without_calls_in_progress_is_not_cancelled_again(db: TestDatabase) -> None:
    batch, (call,) = db.in_progress(1)
    db.rows("select cancel_batch(%s)", batch)
    db.finish_calls(batch, [call], "completed")
    with pytest.raises(psycopg.Error, match="already cancelled") as refused:
        db.rows("select cancel_batch(%s, end_calls => true)", batch)
    assert refused.value.sqlstate == "PT400"


def test_the_calls_of_a_stopped_batch_can_be_ended_afterwards(db: TestDatabase) -> None:
    batch, (call,) = db.in_progress(1)
    db.rows("select stop_batch(%s::text)", batch)
    assert db.row("select status from stop_batch(%s::text, end_calls => true)", batch) == {"status": "stopped"}
    assert to_end(db) == {call: "hang up"}


def test_a_repeated_key_ends_the_calls_once_and_one_without_end_calls_is_another_request(db: TestDatabase) -> None:
    batch, (call,) = db.in_progress(1)
    with_end = "select * from cancel_batch(%s, 'key-1', end_calls => true)"
    first = db.row(with_end, batch)
    assert to_end(db) == {call: "hang up"}
    assert db.row(with_end, batch) == first
    assert db.value("select count(*) from batch_events where action = 'end_calls'") == 1
    with pytest.raises(psycopg.Error) as refused:
        db.rows("select cancel_batch(%s, 'key-1')", batch)
    assert refused.value.sqlstate == "PT409"
