"""The dialer's side: claims, the last gate, results, leases, and the batches' way."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from ..support.database import TestDatabase
from ..support.dialers import wait_for
from ..support.statistics import flush, updates


def claim(db: TestDatabase, number: int = 10, **arguments: Any) -> list[dict[str, Any]]:
    names = "".join(f", {name} => %s" for name in arguments)
    return db.rows(f"select * from claim_contacts(%s{names})", number, *arguments.values())


def start(db: TestDatabase, batch: UUID, calls: list[dict[str, Any]]) -> list[int]:
    return db.start_calls(batch, [call["call_id"] for call in calls], calls[0]["lease"])


def finish(db: TestDatabase, batch: UUID, calls: list[int], status: str, **result: Any) -> list[int]:
    return db.finish_calls(batch, calls, status, **result)


def numbers(claimed: list[dict[str, Any]]) -> list[int]:
    return [int(row["phone_number"][-7:]) for row in claimed]


# claim_contacts


def test_contacts_are_claimed_in_upload_order_each_once(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=7)
    assert [numbers(claim(db, 3)) for _ in range(4)] == [[1, 2, 3], [4, 5, 6], [7], []]
    assert db.statuses(batch) == {"queued": 7}


def test_a_claim_tells_the_dialer_all_it_needs(db: TestDatabase) -> None:
    agency = db.agency()
    batch = db.batch(agency)
    contacts = [
        {"phone_number": "+15551234567", "custom_data": {"name": "Ada"}},
        {"phone_number": "+15557654321"},
    ]
    db.rows("select add_contacts(%s, %s)", batch, json.dumps(contacts))
    first, second = claim(db, lease_seconds=30)
    assert (first["agency_id"], first["batch_id"], first["phone_number"]) == (agency, batch, "+15551234567")
    assert (first["custom_data"], first["attempt"]) == ({"name": "Ada"}, 1)
    assert second["custom_data"] == {}
    lease = db.value("select %s - created_at from calls where id = %s", first["lease_expires_at"], first["call_id"])
    assert lease == timedelta(seconds=30)


@pytest.mark.parametrize("status", ["pending", "scheduled", "paused", "stopped", "completed", "failed", "cancelled"])
def test_only_a_processing_batch_is_claimed_from(db: TestDatabase, status: str) -> None:
    batch = db.batch(db.agency(), status=status)
    db.contacts(batch, pending=1)
    assert claim(db) == []
    # Nor when it changed its status after it was chosen.
    assert db.rows("select private.claim_batch(agency_id, id, 10, 60) from call_batches") == []
    assert db.statuses(batch) == {"pending": 1}


def test_contacts_that_are_not_waiting_are_passed_over(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, completed=2, failed=1, skipped=1, in_progress=1, scheduled=1, pending=1)
    assert len(claim(db)) == 2


def test_max_concurrent_bounds_what_is_queued_and_in_progress(db: TestDatabase) -> None:
    batch = db.batch(db.agency(), max_concurrent=3)
    db.contacts(batch, pending=10)
    claimed = claim(db)
    assert len(claimed) == 3
    started = start(db, batch, claimed)
    assert claim(db) == []
    finish(db, batch, started[:2], "completed")
    assert len(claim(db)) == 2


def test_calls_per_minute_bounds_what_is_claimed_in_any_60_seconds(db: TestDatabase) -> None:
    batch = db.batch(db.agency(), calls_per_minute=5)
    db.contacts(batch, pending=20)
    first = claim(db, 3)
    assert len(first) == 3
    assert len(claim(db, 10)) == 2
    assert claim(db) == []
    # A minute passes for the first three.
    of = [call["call_id"] for call in first]
    db.rows("update calls set created_at = created_at - interval '60 seconds' where id = any (%s)", of)
    assert claim(db) == [], "the batch is not looked at before its time"
    db.rows("update call_batches set next_claim_at = now()")
    assert len(claim(db)) == 3


def test_batches_take_turns_so_that_a_huge_one_does_not_starve_a_small_one(db: TestDatabase) -> None:
    huge, small = db.batch(db.agency()), db.batch(db.agency("Other"))
    db.contacts(huge, pending=100)
    db.contacts(small, pending=6)
    turns = [claim(db, 3)[0]["batch_id"] for _ in range(6)]
    assert turns.count(small) == 2
    assert turns[:4] in ([huge, small, huge, small], [small, huge, small, huge])


def test_a_claim_can_be_kept_to_one_batch(db: TestDatabase) -> None:
    one, other = db.batch(db.agency()), db.batch(db.agency("Other"))
    db.contacts(one, pending=2)
    db.contacts(other, pending=2)
    assert {row["batch_id"] for _ in range(3) for row in claim(db, 1, batch_id=other)} == {other}


def test_a_batch_that_somebody_holds_is_passed_over_without_waiting(db: TestDatabase) -> None:
    held, free = db.batch(db.agency()), db.batch(db.agency("Other"))
    db.contacts(held, pending=1)
    db.contacts(free, pending=1)
    with db.connect() as holder, holder.transaction():
        holder.execute("select from call_batches where id = %s for no key update", [held])
        assert [row["batch_id"] for row in claim(db) + claim(db)] == [free]
    assert [row["batch_id"] for row in claim(db)] == [held]


@pytest.mark.parametrize("arguments", [(0, 60), (1001, 60), (None, 60), (10, 0), (10, 3601), (10, None)])
def test_numbers_out_of_range_are_refused_with_pt400(db: TestDatabase, arguments: tuple[Any, Any]) -> None:
    with pytest.raises(psycopg.Error) as refused:
        db.rows("select * from claim_contacts(%s, %s)", *arguments)
    assert refused.value.sqlstate == "PT400"


@pytest.mark.own_database
def test_dialing_is_heap_only_for_contacts_in_their_turn(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=2_000)
    flush(db.owner)
    before = updates(db)
    with db.connect() as connection:
        for _ in range(20):
            claimed = connection.execute("select call_id, lease from claim_contacts(100)").fetchall()
            calls = [row["call_id"] for row in claimed]
            connection.execute("select start_call(%s, %s, %s)", [batch, calls, claimed[0]["lease"]])
            results = db.named(calls, status="completed")
            connection.execute("select finish_call(%s, %s)", [batch, results])
        flush(connection)
    made = updates(db) - before
    assert made["n_tup_upd"] == 6_000
    assert made["n_tup_hot_upd"] >= 0.95 * 6_000


# start_call


def test_a_call_that_passes_the_gate_is_in_progress_and_counts_as_an_attempt(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=3)
    first, second, _ = claim(db)
    assert start(db, batch, [first, second]) == [first["call_id"], second["call_id"]]
    assert db.statuses(batch) == {"in_progress": 2, "queued": 1}
    contact = db.row("select attempts, call_id from campaign_contacts where id = %s", first["contact_id"])
    assert contact == {"attempts": 1, "call_id": first["call_id"]}


def test_a_call_passes_the_gate_once(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=1)
    claimed = claim(db)
    assert len(start(db, batch, claimed + claimed)) == 1
    assert start(db, batch, claimed) == []


def test_a_lost_lease_does_not_pass(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=2)
    lost, kept = claim(db)
    db.rows("update calls set lease_expires_at = clock_timestamp() where id = %s", lost["call_id"])
    assert start(db, batch, [lost, kept]) == [kept["call_id"]]


@pytest.mark.parametrize("status", ["paused", "stopped", "cancelled"])
def test_nothing_passes_while_the_batch_is_not_processing(db: TestDatabase, status: str) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=1)
    claimed = claim(db)
    db.rows("update call_batches set status = %s", status)
    assert start(db, batch, claimed) == []
    assert db.statuses(batch) == {"queued": 1}


def test_calls_of_another_batch_do_not_pass(db: TestDatabase) -> None:
    one, other = db.batch(db.agency()), db.batch(db.agency("Other"))
    db.contacts(one, pending=1)
    claimed = claim(db)
    assert start(db, other, claimed) == []


def test_calls_that_are_gone_are_told_and_those_that_passed_already_are_not(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=3)
    claimed = claim(db)
    gone, passed, _ = calls = [call["call_id"] for call in claimed]
    lease = claimed[0]["lease"]
    db.start_calls(batch, [passed])
    db.rows("delete from calls where id = %s", gone)
    answer = db.row("select * from start_call(%s, %s, %s)", batch, [*calls, 999], lease)
    assert answer == {"started": calls[2:], "unknown": [gone, 999]}
    db.rows("select cancel_batch(%s)", batch)
    assert db.row("select * from start_call(%s, %s, %s)", batch, calls, lease) == {"started": [], "unknown": [gone]}
    db.rows("select private.recount_batch(%s)", batch)


def test_each_claim_has_a_lease_of_its_own_without_which_nothing_starts(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=4)
    first, second = claim(db, 2), claim(db, 2)
    leases = {call["lease"] for call in first}, {call["lease"] for call in second}
    assert [len(of) for of in leases] == [1, 1]
    assert leases[0] != leases[1]
    calls = [call["call_id"] for call in first]
    answer = db.row("select * from start_call(%s, %s, %s)", batch, calls, second[0]["lease"])
    assert answer == {"started": [], "unknown": calls}
    with pytest.raises(psycopg.Error) as refused:
        db.rows("select start_call(%s, %s, null)", batch, calls)
    assert refused.value.sqlstate == "PT400"


# finish_call


def test_a_completed_call_completes_its_contact(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=2)
    started = start(db, batch, claim(db))
    result = {
        "outcome": "answered",
        "duration_seconds": 145,
        "carrier_call_id": "c-1",
        "notes": "call back in May",
    }
    assert finish(db, batch, started[:1], "completed", **result) == started[:1]
    assert db.statuses(batch) == {"completed": 1, "in_progress": 1}
    contact = db.row("select * from campaign_contacts where status = 'completed'")
    assert (contact["outcome"], contact["duration_seconds"]) == ("answered", 145)
    assert (contact["outcome_notes"], contact["completed_at"] is not None) == ("call back in May", True)
    assert db.value("select carrier_call_id from calls where id = %s", started[0]) == "c-1"


def test_a_carriers_fractions_of_a_second_are_rounded(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=2)
    first, second = start(db, batch, claim(db))
    assert finish(db, batch, [first], "completed", duration_seconds=12.7) == [first]
    assert finish(db, batch, [second], "completed", duration_seconds=-3e12) == [second]
    assert [row["duration_seconds"] for row in db.rows("select duration_seconds from calls order by id")] == [13, 0]


def test_a_failed_call_with_attempts_left_comes_back_after_the_retry_delay(db: TestDatabase) -> None:
    batch = db.batch(db.agency(), retry_delay_seconds=3600)
    db.contacts(batch, pending=1)
    finish(db, batch, start(db, batch, claim(db)), "failed", outcome="busy")
    assert db.statuses(batch) == {"scheduled": 1}
    assert db.row("select completed_at, outcome from campaign_contacts") == {
        "completed_at": None,
        "outcome": "busy",
    }
    assert claim(db) == []
    db.rows("update campaign_contacts set due_at = now()")
    db.rows("update call_batches set next_claim_at = now()")
    (again,) = claim(db)
    assert again["attempt"] == 2


def test_a_contact_is_tried_max_attempts_times(db: TestDatabase) -> None:
    batch = db.batch(db.agency(), retry_delay_seconds=0)
    db.rows(
        "select add_contacts(%s, %s)",
        batch,
        json.dumps([{"phone_number": "+15550000001", "max_attempts": 2}]),
    )
    attempts = 0
    while claimed := claim(db):
        attempts += 1
        finish(db, batch, start(db, batch, claimed), "failed")
    assert attempts == 2
    assert db.statuses(batch) == {"failed": 1}
    assert db.value("select count(*) from calls") == 2


def test_a_result_told_twice_counts_once(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=1)
    started = start(db, batch, claim(db))
    assert finish(db, batch, started * 2, "completed") == started
    before = db.state()
    assert finish(db, batch, started, "failed") == []
    assert db.state() == before


def test_a_call_that_never_started_has_no_result(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=1)
    (held,) = claim(db)
    before = db.state()
    assert finish(db, batch, [held["call_id"], held["call_id"] + 1], "completed") == []
    assert db.state() == before


@pytest.mark.parametrize("over", ["cancel_batch(%s)", "stop_batch(%s::text, skip_remaining => true)"])
def test_calls_in_progress_finish_in_a_batch_that_is_over_and_none_is_retried(db: TestDatabase, over: str) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=5)
    answered, failed = start(db, batch, claim(db, 2))
    db.rows(f"select {over}", batch)
    finish(db, batch, [answered], "completed")
    finish(db, batch, [failed], "failed")
    assert db.statuses(batch) == {"completed": 1, "failed": 1, "skipped": 3}


@pytest.mark.parametrize(
    "results",
    ["null", "{}", "[1]", '[{"lease": null, "status": "completed"}]',
     '[{"call_id": "1", "lease": null, "status": "completed"}]', '[{"call_id": 1, "lease": null}]',
     '[{"call_id": 1, "lease": null, "status": "queued"}]', '[{"call_id": 1.5, "lease": null, "status": "completed"}]',
     '[{"call_id": 1, "lease": null, "status": ["completed"]}]',
     '[[{"call_id": 1, "lease": null, "status": "completed"}]]',
     '[{"call_id": 1, "lease": null, "status": "completed", "duration_seconds": "long"}]',
     '[{"call_id": 1, "status": "completed"}]', '[{"call_id": 1, "lease": "1", "status": "completed"}]',
     '[{"call_id": 1, "lease": 1, "status": "completed"}]'],
)  # fmt: skip
def test_results_that_are_none_are_refused_with_pt400(db: TestDatabase, results: str) -> None:
    batch = db.batch(db.agency())
    with pytest.raises(psycopg.Error) as refused:
        db.rows("select finish_call(%s, %s)", batch, results)
    assert refused.value.sqlstate == "PT400"


@pytest.mark.parametrize(
    ("procedure", "report", "again"),
    [("confirm_call", {"carrier_call_id": "c-1"}, "changed"), ("finish_call", {"status": "completed"}, "unchanged")],
)
def test_each_report_is_told_what_became_of_it(
    db: TestDatabase, procedure: str, report: dict[str, str], again: str
) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=2)
    claimed = claim(db)
    (call,) = start(db, batch, claimed[:1])
    held, lease = claimed[1]["call_id"], claimed[0]["lease"]
    told = [(call, lease), (call, lease), (held, lease), (999, lease), (call, batch), (call, None)]
    reports = [{"call_id": of, "lease": named and str(named), **report} for of, named in told]
    rows = db.rows(f"select * from {procedure}(%s, %s)", batch, json.dumps(reports))
    results = ["changed", again, "unchanged", "unknown", "unknown", "unknown"]
    assert [(row["call_id"], row["lease"], row["result"]) for row in rows] == [
        (of, named, result) for (of, named), result in zip(told, results, strict=True)
    ]


# release_expired_leases


def test_a_contact_whose_lease_ran_out_can_be_claimed_again(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=3)
    lost = claim(db, 2)
    assert db.value("select release_expired_leases()") == 0
    db.rows("update calls set lease_expires_at = clock_timestamp()")
    assert db.value("select release_expired_leases()") == 2
    assert db.statuses(batch) == {"pending": 3}
    again = claim(db)
    assert sorted(numbers(again)) == [1, 2, 3]
    assert start(db, batch, lost) == [], "and not started under the old lease"
    assert len(start(db, batch, again)) == 3


def test_a_queued_contact_without_a_lease_is_found(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, queued=3)
    assert db.value("select release_expired_leases()") == 3
    assert len(claim(db)) == 3


def test_batches_with_wrong_counts_do_not_keep_others_from_their_release(db: TestDatabase) -> None:
    agency = db.agency()
    for _ in range(12):
        db.contacts(db.batch(agency, queued=1), pending=1)
    batch = db.batch(agency)
    db.contacts(batch, pending=3)
    claim(db, batch_id=batch)
    db.rows("update calls set lease_expires_at = clock_timestamp()")
    for _ in range(3):
        db.rows("select release_expired_leases()")
    assert db.statuses(batch) == {"pending": 3}
    assert db.rows("select * from private.check_counters()") == [], "and are put right"


def test_a_batch_that_somebody_holds_keeps_nobody_waiting(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=1)
    claim(db)
    db.rows("update calls set lease_expires_at = clock_timestamp()")
    with db.connect() as holder, holder.transaction():
        holder.execute("select from call_batches for no key update")
        assert db.value("select release_expired_leases()") == 0
    assert db.value("select release_expired_leases()") == 1


# process_batches


@pytest.mark.parametrize("status", ["pending", "scheduled"])
def test_a_batch_that_is_due_starts_processing(db: TestDatabase, status: str) -> None:
    agency = db.agency()
    due = db.batch(agency, status=status, scheduled_for="2020-01-01T00:00:00Z")
    later = db.batch(agency, status=status, scheduled_for="2999-01-01T00:00:00Z")
    for batch in (due, later):
        db.contacts(batch, pending=1)
    assert db.row("select * from process_batches()") == {"batches_started": 1, "batches_completed": 0}
    assert (db.batch_row(due)["status"], db.batch_row(later)["status"]) == ("processing", status)
    assert db.batch_row(due)["started_at"] is not None
    assert db.row("select action, actor_kind, to_status from batch_events") == {
        "action": "process",
        "actor_kind": "console",
        "to_status": "processing",
    }


def test_a_batch_without_contacts_waits_for_them(db: TestDatabase) -> None:
    batch = db.batch(db.agency(), status="pending")
    db.rows("select process_batches()")
    assert db.batch_row(batch)["status"] == "pending"


def test_a_batch_with_nothing_left_to_call_completes(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=2, skipped=1)
    first, second = start(db, batch, claim(db))
    finish(db, batch, [first], "completed")
    assert db.row("select * from process_batches()")["batches_completed"] == 0
    finish(db, batch, [second], "completed")
    assert db.row("select * from process_batches()")["batches_completed"] == 1
    row = db.batch_row(batch)
    assert (row["status"], row["completed_at"] is not None) == ("completed", True)


def dial(db: TestDatabase, batch: UUID) -> int:
    """Call every contact that can be called now: how many there were."""
    return len(finish(db, batch, start(db, batch, claim(db)), "completed"))


def waiting_for(db: TestDatabase, batch: UUID) -> Any:
    return db.value("select waiting_for from call_batches b, private.waiting_for(b, now()) where id = %s", batch)


def test_a_batch_that_never_had_a_contact_does_not_complete(db: TestDatabase) -> None:
    batch = db.batch(db.agency(), status="pending")
    db.rows("select start_batch(%s)", str(batch))
    for _ in range(2):
        assert claim(db) == []
        assert db.row("select * from process_batches()")["batches_completed"] == 0
    assert (db.batch_row(batch)["status"], waiting_for(db, batch)) == ("processing", "contacts")
    db.rows("select add_contacts(%s, %s)", batch, json.dumps([{"phone_number": "+15551234567"}]))
    assert dial(db, batch) == 1
    assert db.row("select * from process_batches()")["batches_completed"] == 1


def begin_import(db: TestDatabase, **to: Any) -> tuple[UUID, UUID]:
    """The batch and the import."""
    names = "".join(f", {name} => %s" for name in to)
    begun = db.value(f"select begin_import(file_hash => %s{names})", "0" * 64, *to.values())
    return UUID(begun["batch_id"]), UUID(begun["import_id"])


def test_a_batch_does_not_complete_while_an_import_into_it_is_unfinished(db: TestDatabase) -> None:
    batch, of = begin_import(db, **db.calling(db.agency()))
    db.rows("select resume_batch(%s)", batch)
    for row in (2, 3):
        contact = [{"row": row, "phone_number": f"+1555123456{row}"}]
        done = db.value("select import_contacts(%s, %s, %s)", batch, of, json.dumps(contact))
        assert (done["added"], done["last_row"]) == (row - 1, row)
        assert dial(db, batch) == 1
        assert db.row("select * from process_batches()")["batches_completed"] == 0
        assert (db.batch_row(batch)["status"], waiting_for(db, batch)) == ("processing", "contacts")
    assert db.value("select finish_import(%s, %s)", batch, of)["success"]
    assert db.row("select * from process_batches()")["batches_completed"] == 1


def test_batches_that_await_contacts_do_not_hold_up_the_completion_of_others(db: TestDatabase) -> None:
    agency = db.agency()
    for _ in range(20):
        db.batch(agency)
    done = db.batch(agency)
    db.contacts(done, completed=1)
    assert db.row("select * from process_batches(1)")["batches_completed"] == 1
    assert db.batch_row(done)["status"] == "completed"


def step_back(db: TestDatabase, by: str) -> None:
    """The clock steps back: what was noted until now is noted of a time to come."""
    db.rows(
        "update call_batches set next_claim_at = next_claim_at + %s::interval,"
        " last_claimed_at = last_claimed_at + %s::interval",
        by,
        by,
    )
    db.rows("update calls set created_at = created_at + %s::interval", by)


@pytest.mark.parametrize("by", ["90 seconds", "1 day", "10 years"])
@pytest.mark.parametrize("claimed", [0, 3])
def test_a_batch_goes_on_when_the_clock_steps_back(db: TestDatabase, claimed: int, by: str) -> None:
    batch = db.batch(db.agency(), calls_per_minute=3)
    db.contacts(batch, pending=6)
    if claimed:
        assert len(claim(db, claimed)) == claimed
    step_back(db, by)
    db.rows("select process_batches()")
    assert waiting_for(db, batch) is None
    assert len(claim(db, 3)) == 3


def test_a_batch_whose_time_is_wrong_is_looked_at_within_ten_minutes(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=2)
    assert len(claim(db, 1)) == 1
    # As after a resume by the wrong clock.
    db.rows("update call_batches set next_claim_at = now() + interval '1 day'")
    for minutes, found in ((9, 0), (11, 1)):
        db.rows("update call_batches set last_claimed_at = now() - make_interval(mins => %s)", minutes)
        db.rows("select process_batches()")
        assert len(claim(db)) == found


def test_a_look_at_a_batch_that_waits_finds_when_it_waits_until(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, scheduled=1)
    db.rows("update campaign_contacts set due_at = now() + interval '1 day'")
    assert claim(db) == []
    until = db.batch_row(batch)["next_claim_at"]
    db.rows("update call_batches set last_claimed_at = now() - interval '11 minutes'")
    db.rows("select process_batches()")
    assert claim(db) == []
    assert db.batch_row(batch)["next_claim_at"] == until
    assert db.value("select next_claim_in()") > 3600


def test_a_batch_takes_its_turn_when_the_clock_steps_back(db: TestDatabase) -> None:
    one = db.batch(db.agency())
    db.contacts(one, pending=3)
    assert len(claim(db, 1)) == 1
    step_back(db, "1 day")
    db.rows("update call_batches set next_claim_at = now()")
    other = db.batch(db.agency("Other"))
    db.contacts(other, pending=3)
    turns = [claim(db, 1)[0]["batch_id"] for _ in range(4)]
    assert turns.count(one) == turns.count(other) == 2


def test_a_batch_that_waits_for_a_retry_does_not_complete(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=1)
    finish(db, batch, start(db, batch, claim(db)), "failed")
    assert claim(db) == []
    assert db.row("select * from process_batches()")["batches_completed"] == 0


def test_a_contact_behind_the_claim_cursor_is_still_called(db: TestDatabase) -> None:
    """A plain insert that commits late may bring contacts with ids that were passed already."""
    batch = db.batch(db.agency())
    with db.connect() as late, late.transaction():
        late.execute(
            "insert into campaign_contacts (agency_id, batch_id, phone_number)"
            " select agency_id, id, '+15559999999' from call_batches"
        )
        db.contacts(batch, pending=2)
        assert len(claim(db)) == 2
    db.rows("update call_batches set total_contacts = total_contacts + 1")
    finish(
        db,
        batch,
        start(db, batch, db.rows("select id as call_id, lease from calls")),
        "completed",
    )
    assert claim(db) == []
    assert db.row("select * from process_batches()")["batches_completed"] == 0
    assert [row["phone_number"] for row in claim(db)] == ["+15559999999"]


GETS = {
    "a contact": (
        "insert into campaign_contacts (agency_id, batch_id, phone_number)"
        " select agency_id, id, '+15550000009' from call_batches;"
        "update call_batches set total_contacts = total_contacts + 1"
    ),
    "an import": f"select begin_import(id, '{'0' * 64}') from call_batches",
}


@pytest.mark.own_database
@pytest.mark.parametrize("statement", GETS.values(), ids=GETS.keys())
def test_a_batch_that_gets_more_while_it_is_looked_at_does_not_complete(db: TestDatabase, statement: str) -> None:
    batch = db.batch(db.agency(), next_claim_at=None)
    db.contacts(batch, completed=1)
    # The same, but it waits for us after the contacts were read and before the batch is taken.
    db.rows(
        "create or replace function private.has_nothing_left(p_batch call_batches) returns boolean language plpgsql"
        " as $$ begin perform pg_advisory_xact_lock(7); return p_batch.next_claim_at is null; end $$"
    )
    waiting = (
        "select count(*) as n from pg_stat_activity"
        " where datname = current_database() and wait_event_type = 'Lock' and wait_event = 'advisory'"
    )
    complete = "select private.complete_batch(agency_id, id, private.current_actor()) from call_batches"
    with db.connect() as adding:
        adding.execute("begin")
        adding.execute("select pg_advisory_xact_lock(7)")
        looking = threading.Thread(target=db.rows, args=(complete,))
        looking.start()
        wait_for(lambda: adding.execute(waiting).fetchone() == {"n": 1}, "it waits after the contacts were read")
        adding.execute(statement)
        adding.execute("commit")
    looking.join()
    assert db.batch_row(batch)["status"] == "processing"
    db.rows(complete)
    added = db.statuses(batch).get("pending", 0)
    assert len(claim(db)) == added, "and finds them the next time"


@pytest.mark.parametrize("number", [0, -1, 1001, None])
def test_a_number_of_batches_out_of_range_is_refused_with_pt400(db: TestDatabase, number: int | None) -> None:
    with pytest.raises(psycopg.Error) as refused:
        db.rows("select process_batches(%s)", number)
    assert refused.value.sqlstate == "PT400"


def test_two_runs_at_once_start_each_batch_once(db: TestDatabase) -> None:
    batch = db.batch(db.agency(), status="pending")
    db.contacts(batch, pending=1)
    with db.connect() as other, other.transaction():
        other.execute("select process_batches()")
        assert db.row("select * from process_batches()")["batches_started"] == 0
    assert db.value("select count(*) from batch_events") == 1
