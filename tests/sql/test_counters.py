"""Every contact is accounted for, and what is not can be found and repaired."""

from __future__ import annotations

import psycopg
import pytest

from ..support.database import TestDatabase


def test_check_counters_names_each_counter_that_is_wrong(db: TestDatabase) -> None:
    good, bad = db.batch(db.agency()), db.batch(db.agency("Other"))
    db.contacts(good, pending=2, queued=1, in_progress=1, completed=1, failed=1, skipped=1)
    db.contacts(bad, pending=3, completed=1)
    assert db.rows("select * from private.check_counters()") == []
    db.rows("update call_batches set completed = 5, total_contacts = 3 where id = %s", bad)
    wrong = db.rows("select batch_id, counter, stored, counted from private.check_counters() order by counter")
    assert wrong == [
        {"batch_id": bad, "counter": "completed", "stored": 5, "counted": 1},
        {"batch_id": bad, "counter": "total_contacts", "stored": 3, "counted": 4},
    ]
    assert db.rows("select * from private.check_counters(%s)", good) == []
    db.rows("select private.recount_batch(%s)", bad)


@pytest.mark.parametrize(
    ("first", "is_doubled"),
    [
        ("status = 'in_progress'", True),
        ("status = 'unknown'", True),
        ("status = 'completed', outcome = 'answered'", True),
        ("status = 'failed', outcome = 'not_placed', carrier_call_id = 'c-1'", True),
        ("status = 'failed', outcome = 'not_placed'", False),
        ("status = 'failed', outcome = 'busy', carrier_call_id = 'c-1'", False),
    ],
)
def test_check_counters_names_doubled_calls(db: TestDatabase, first: str, is_doubled: bool) -> None:
    batch, other = db.batch(db.agency(), retry_delay_seconds=0), db.batch(db.agency("Other"))
    for of in (batch, other):
        db.contacts(of, pending=2)
        db.start_calls(of, [row["call_id"] for row in db.rows("select * from claim_contacts(2, 60, %s)", of)])
    doubled = db.value("select min(id) from calls where batch_id = %s", batch)
    db.finish_calls(batch, [doubled], "failed", outcome="not_placed", counted=False)
    (again,) = db.rows("select call_id from claim_contacts()")
    db.start_calls(batch, [again["call_id"]])
    assert db.unbalanced() == []
    db.rows(f"update calls set {first} where id = %s", doubled)
    wrong = db.rows("select batch_id, counter, stored, counted from private.check_counters()")
    assert wrong == [{"batch_id": batch, "counter": "doubled_calls", "stored": 0, "counted": 1}] * is_doubled
    assert db.rows("select * from private.check_counters(%s)", other) == []
    db.rows("delete from call_batches")


def test_a_call_that_was_not_placed_and_is_at_the_carrier_shows_when_its_contact_is_called_again(
    db: TestDatabase,
) -> None:
    batch = db.batch(db.agency(), retry_delay_seconds=0)
    db.contacts(batch, pending=1)
    call = db.value("select call_id from claim_contacts()")
    db.start_calls(batch, [call])
    db.finish_calls(batch, [call], "failed", outcome="not_placed", counted=False)
    assert db.confirm_calls(batch, [call], "c-1") == []
    assert db.row("select status::text, carrier_call_id from calls") == {"status": "failed", "carrier_call_id": "c-1"}
    assert db.unbalanced() == []
    db.start_calls(batch, [db.value("select call_id from claim_contacts()")])
    assert [row["counter"] for row in db.unbalanced()] == ["doubled_calls"]
    db.rows("delete from call_batches")


def test_recount_sets_the_counters_to_what_the_contacts_are_and_says_who_did_it(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=3, completed=1)
    db.rows("update call_batches set completed = 0, queued = -7, total_contacts = 0")
    row = db.row("select * from private.recount_batch(%s)", batch)
    assert (row["completed"], row["queued"], row["total_contacts"]) == (1, 0, 4)
    event = db.row("select action, actor_kind, contacts from batch_events")
    assert event == {"action": "recount", "actor_kind": "console", "contacts": 4}


def test_recount_of_an_unknown_batch_is_refused_with_pt404(db: TestDatabase) -> None:
    with pytest.raises(psycopg.Error) as refused:
        db.rows("select private.recount_batch(gen_random_uuid())")
    assert refused.value.sqlstate == "PT404"


@pytest.mark.parametrize(
    ("contacts", "percentage", "remaining"),
    [
        ({}, 0, 0),
        ({"pending": 3}, 0, 3),
        ({"completed": 400, "failed": 10, "in_progress": 5, "queued": 85, "pending": 500}, 41, 590),
        ({"completed": 1, "pending": 2}, 33.3, 2),
        ({"completed": 9_999, "pending": 1}, 99.9, 1),
        ({"completed": 1, "skipped": 2, "in_progress": 1}, 75, 1),
    ],
)
def test_progress_counts_what_is_done_with(
    db: TestDatabase, contacts: dict[str, int], percentage: float, remaining: int
) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, **contacts)
    row = db.row("select progress_percentage, remaining_count from v_call_batch_summary")
    assert (float(row["progress_percentage"]), row["remaining_count"]) == (percentage, remaining)
