"""When a batch may call: hours and days, where a contact is, do-not-call, most calls to a number, retries."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from ..support.database import TestDatabase

CLOSED = {"calling_start": "now() + interval '2 hours'", "calling_end": "now() + interval '3 hours'"}
OPEN = {"calling_start": "now() - interval '2 hours'", "calling_end": "now() + interval '2 hours'"}


def rule(db: TestDatabase, batch: UUID, **columns: str) -> None:
    """Give the batch a setting, by SQL expressions; times of day are taken in UTC."""
    for column, value in columns.items():
        given = f"(({value}) at time zone 'UTC')::time" if column.startswith("calling_") else value
        db.rows(f"update call_batches set {column} = {given}, next_claim_at = now() where id = %s", batch)


def claim(db: TestDatabase, number: int = 100) -> list[dict[str, Any]]:
    return db.rows("select * from claim_contacts(%s)", number)


def start(db: TestDatabase, claimed: list[dict[str, Any]]) -> list[int]:
    if not claimed:
        return []
    calls = [row["call_id"] for row in claimed]
    return db.start_calls(claimed[0]["batch_id"], calls, claimed[0]["lease"])


def add(db: TestDatabase, batch: UUID, *contacts: dict[str, Any]) -> None:
    db.rows("select add_contacts(%s, %s)", batch, json.dumps(contacts))


def number(n: int) -> str:
    return f"+1555{n:07d}"


# Hours and days


@pytest.mark.parametrize(
    ("hours", "days", "zone", "at", "expected"),
    [
        (("09:00", "17:00"), None, None, "2026-01-05 10:00Z", "2026-01-05 10:00Z"),
        (("09:00", "17:00"), None, None, "2026-01-05 08:59:59Z", "2026-01-05 09:00Z"),
        (("09:00", "17:00"), None, None, "2026-01-05 17:00Z", "2026-01-06 09:00Z"),
        (("09:00", "17:00"), None, "America/New_York", "2026-01-05 10:00Z", "2026-01-05 14:00Z"),
        (("09:00", "17:00"), None, "EST", "2026-07-06 10:00Z", "2026-07-06 14:00Z"),
        (("09:00", "17:00"), None, "America/New_York", "2026-07-06 10:00Z", "2026-07-06 13:00Z"),
        # The 5th of January 2026 is a Monday.
        (("09:00", "17:00"), [2, 3], None, "2026-01-05 10:00Z", "2026-01-06 09:00Z"),
        (("09:00", "17:00"), [1], None, "2026-01-05 18:00Z", "2026-01-12 09:00Z"),
        (None, [0], None, "2026-01-05 10:00Z", "2026-01-11 00:00Z"),
        (None, [1], None, "2026-01-05 10:00Z", "2026-01-05 10:00Z"),
        (None, None, None, "2026-01-05 10:00Z", "2026-01-05 10:00Z"),
        # Through midnight: the night belongs to the day on which it begins.
        (("20:00", "02:00"), None, None, "2026-01-05 01:00Z", "2026-01-05 01:00Z"),
        (("20:00", "02:00"), None, None, "2026-01-05 02:00Z", "2026-01-05 20:00Z"),
        (("20:00", "02:00"), [1], None, "2026-01-06 01:59Z", "2026-01-06 01:59Z"),
        (("20:00", "02:00"), [1], None, "2026-01-05 01:00Z", "2026-01-05 20:00Z"),
        # The night of the 8th of March 2026 has no 02:30 in New York.
        (("02:30", "05:00"), None, "America/New_York", "2026-03-08 05:00Z", "2026-03-08 07:30Z"),
        (("09:00", "17:00"), None, "America/New_York", "2026-03-08 00:00Z", "2026-03-08 13:00Z"),
    ],
)
def test_the_next_time_for_calls_is_within_hours_and_days_where_the_zone_is(
    db: TestDatabase, hours: tuple[str, str] | None, days: list[int] | None, zone: str | None, at: str, expected: str
) -> None:
    start_at, end_at = hours or (None, None)
    query = "select private.next_calling_time(%s, %s, %s::smallint[], %s, %s) = %s::timestamptz"
    assert db.value(query, start_at, end_at, days, zone, at, expected) is True


def test_outside_its_hours_a_batch_gives_nothing_and_looks_again_when_they_begin(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=3)
    rule(db, batch, **CLOSED)
    assert claim(db) == []
    opens = "(next_claim_at at time zone 'UTC')::time = calling_start and next_claim_at > now()"
    assert db.value(f"select {opens} from call_batches") is True
    db.rows("select process_batches()")
    assert db.batch_row(batch)["status"] == "processing"
    rule(db, batch, **OPEN)
    assert len(claim(db)) == 3


def test_a_call_claimed_in_time_does_not_start_when_the_hours_have_ended(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=3)
    claimed = claim(db)
    rule(db, batch, **CLOSED)
    assert start(db, claimed) == []
    assert db.statuses(batch) == {"pending": 3}
    assert db.rows("select from calls") == []
    assert claim(db) == []
    rule(db, batch, **OPEN)
    db.rows("update campaign_contacts set due_at = now()")
    assert len(start(db, claim(db))) == 3


def test_a_contact_is_called_in_the_hours_of_where_it_is(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    rule(db, batch, **OPEN)
    add(
        db,
        batch,
        {"phone_number": number(1), "timezone": "UTC"},
        {"phone_number": number(2), "timezone": "Etc/GMT+12"},
        {"phone_number": number(3)},
    )
    started = start(db, claim(db))
    assert db.value(
        "select array_agg(phone_number order by id) from campaign_contacts where status = 'in_progress'"
    ) == [
        number(1),
        number(3),
    ]
    assert len(started) == 2
    waiting = db.row(
        "select status, due_at > now() + interval '7 hours' as later from campaign_contacts where phone_number = %s",
        number(2),
    )
    assert waiting == {"status": "pending", "later": True}


def test_where_a_batch_is_closed_the_contacts_whose_own_hours_run_are_called(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    rule(db, batch, calling_start="now() + interval '11 hours'", calling_end="now() + interval '13 hours'")
    add(
        db,
        batch,
        {"phone_number": number(1)},
        {"phone_number": number(2), "timezone": "Etc/GMT-12"},
    )
    claimed = claim(db)
    assert [row["phone_number"] for row in claimed] == [number(2)]
    assert len(start(db, claimed)) == 1
    # And a failed call of a contact without a zone waits for the batch's hours.
    assert db.value("select next_claim_at > now() + '10 hours' from call_batches") is True


def test_many_contacts_with_zones_are_not_looked_through_at_each_claim(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    rule(db, batch, **OPEN)
    add(db, batch, *({"phone_number": number(i), "timezone": "UTC"} for i in range(50)))
    assert len(claim(db, 60)) == 50
    assert db.batch_row(batch)["claim_cursor"] == db.value("select max(id) from campaign_contacts")


# Do not call


def test_a_number_put_on_the_list_after_the_claim_is_not_called(db: TestDatabase) -> None:
    agency = db.agency()
    batch = db.batch(agency)
    db.contacts(batch, pending=3)
    claimed = claim(db)
    db.rows("insert into do_not_call (agency_id, phone_number) values (%s, %s)", agency, number(2))
    db.rows("insert into do_not_call (agency_id, phone_number) values (%s, %s)", db.agency("Other"), number(3))
    assert start(db, claimed) == [claimed[0]["call_id"], claimed[2]["call_id"]]
    assert db.statuses(batch) == {"in_progress": 2, "skipped": 1}
    skipped = db.row("select phone_number, outcome, outcome_notes from campaign_contacts where status = 'skipped'")
    assert skipped == {
        "phone_number": number(2),
        "outcome": "do_not_call",
        "outcome_notes": "On the do-not-call list",
    }
    assert db.batch_row(batch)["skipped"] == 1


def test_a_batch_of_which_all_may_not_be_called_completes(db: TestDatabase) -> None:
    agency = db.agency()
    batch = db.batch(agency)
    db.contacts(batch, pending=2)
    for n in (1, 2):
        db.rows("insert into do_not_call (agency_id, phone_number) values (%s, %s)", agency, number(n))
    assert start(db, claim(db)) == []
    db.rows("select process_batches()")
    assert (db.batch_row(batch)["status"], db.statuses(batch)) == ("completed", {"skipped": 2})


# Most calls to a number


def test_a_number_is_called_no_more_than_it_may_in_a_day_over_all_batches(db: TestDatabase) -> None:
    agency = db.agency()
    batches = [db.batch(agency, max_calls_per_number=2) for _ in range(3)]
    elsewhere = db.batch(db.agency("Other"), max_calls_per_number=1)
    for batch in (*batches, elsewhere):
        db.contacts(batch, pending=1)
    passed = [
        len(start(db, db.rows("select * from claim_contacts(1, 60, %s)", batch))) for batch in (*batches, elsewhere)
    ]
    assert passed == [1, 1, 0, 1]
    waits = db.row("select status, extract(epoch from due_at - now()) / 3600 as hours from campaign_contacts"
                   " where batch_id = %s", batches[2])  # fmt: skip
    assert waits["status"] == "pending"
    assert 23.9 < waits["hours"] <= 24
    # A day later.
    db.rows("update calls set started_at = started_at - interval '24 hours'")
    db.rows("update campaign_contacts set due_at = now() where batch_id = %s", batches[2])
    db.rows("update call_batches set next_claim_at = now() where id = %s", batches[2])
    assert len(start(db, db.rows("select * from claim_contacts(1, 60, %s)", batches[2]))) == 1


def test_a_day_has_24_hours_where_clocks_are_put_forward_too(db: TestDatabase) -> None:
    """In New York the 8th of March 2026 has 23 hours."""
    with db.connect() as connection:
        connection.execute("set timezone = 'America/New_York'")
        free_at = connection.execute(
            "select private.number_free_at(%s, '+15550000001', -1, '2026-03-07 20:00Z') as at", [db.agency()]
        ).fetchone()
    assert free_at == {"at": datetime(2026, 3, 8, 20, tzinfo=UTC)}


def test_calls_of_a_batch_without_the_limit_count_for_one_with_it(db: TestDatabase) -> None:
    agency = db.agency()
    free, limited = db.batch(agency), db.batch(agency, max_calls_per_number=1)
    db.contacts(free, pending=1)
    db.contacts(limited, pending=2)
    assert len(start(db, db.rows("select * from claim_contacts(1, 60, %s)", free))) == 1
    assert len(start(db, db.rows("select * from claim_contacts(9, 60, %s)", limited))) == 1


def test_twice_the_same_number_in_one_group_counts_twice(db: TestDatabase) -> None:
    batch = db.batch(db.agency(), max_calls_per_number=2)
    db.contacts(batch, pending=4)
    db.rows("update campaign_contacts set phone_number = %s", number(1))
    assert len(start(db, claim(db))) == 2
    assert db.statuses(batch) == {"in_progress": 2, "pending": 2}


def test_two_batches_that_start_the_same_numbers_at_once_keep_to_the_limit_together(db: TestDatabase) -> None:
    agency = db.agency()
    batches = [db.batch(agency, max_calls_per_number=1) for _ in range(4)]
    for batch in batches:
        db.contacts(batch, pending=20)
    groups = [db.rows("select * from claim_contacts(20, 60, %s)", batch) for batch in batches]
    # Each batch in an order of its own: whoever locks numbers in the order of arrival deadlocks.
    ready = threading.Barrier(len(groups))

    def begin(place: int) -> None:
        calls, lease = [row["call_id"] for row in groups[place]], groups[place][0]["lease"]
        with db.connect() as connection:
            ready.wait()
            connection.execute(
                "select start_call(%s, %s, %s)", [batches[place], calls[:: 1 if place % 2 else -1], lease]
            )

    threads = [threading.Thread(target=begin, args=[place]) for place in range(len(groups))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    called = db.rows(
        "select phone_number, count(*) as n from campaign_contacts where status = 'in_progress' group by 1"
    )
    assert len(called) == 20
    assert all(row["n"] == 1 for row in called)


# Retries


@pytest.mark.parametrize(("outcome", "becomes"), [("busy", "scheduled"), ("refused", "failed"), (None, "failed")])
def test_only_the_outcomes_to_retry_are_retried(db: TestDatabase, outcome: str | None, becomes: str) -> None:
    batch = db.batch(db.agency(), retry_outcomes=["busy", "no_answer"])
    db.contacts(batch, pending=1)
    (call,) = start(db, claim(db))
    db.finish_calls(batch, [call], "failed", outcome=outcome)
    assert db.statuses(batch) == {becomes: 1}


# Unknown


def told(db: TestDatabase, batch: UUID, call: int, status: str) -> list[int]:
    return db.finish_calls(batch, [call], status)


def test_an_unknown_call_stays_in_progress_and_is_not_placed_again(db: TestDatabase) -> None:
    batch = db.batch(db.agency(), retry_delay_seconds=0)
    db.contacts(batch, pending=1)
    (call,) = start(db, claim(db))
    assert told(db, batch, call, "unknown") == [call]
    assert told(db, batch, call, "unknown") == []
    db.rows("select release_expired_leases()")
    db.rows("select process_batches()")
    assert claim(db) == []
    assert db.statuses(batch) == {"in_progress": 1}
    assert db.batch_row(batch)["status"] == "processing"


@pytest.mark.parametrize(("status", "contact"), [("completed", "completed"), ("failed", "scheduled")])
def test_the_carriers_word_ends_an_unknown_call(db: TestDatabase, status: str, contact: str) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=1)
    (call,) = start(db, claim(db))
    told(db, batch, call, "unknown")
    assert told(db, batch, call, status) == [call]
    assert db.statuses(batch) == {contact: 1}
    assert told(db, batch, call, "unknown") == []


def test_a_confirmed_call_is_in_progress_under_the_carriers_id(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=2)
    first, second = start(db, claim(db))
    told(db, batch, first, "unknown")
    told(db, batch, second, "completed")
    assert db.confirm_calls(batch, [first, second], "theirs") == [first]
    assert db.row("select status, carrier_call_id from calls where id = %s", first) == {
        "status": "in_progress",
        "carrier_call_id": "theirs",
    }
    assert db.row("select carrier_call_id from calls where id = %s", second) == {"carrier_call_id": None}


def test_calls_are_made_from_the_calling_numbers_in_turn(db: TestDatabase) -> None:
    batch = db.batch(db.agency(), from_number=number(90), calling_numbers=[number(91), number(92)])
    db.contacts(batch, pending=4)
    assert sorted(row["from_number"] for row in claim(db)) == [number(91)] * 2 + [number(92)] * 2
