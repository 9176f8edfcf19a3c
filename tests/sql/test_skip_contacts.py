"""skip_contacts skips some contacts of a batch for good, by their ids or by a filter."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from ..support.database import TestDatabase

OVER = ("completed", "cancelled")


def skip(db: TestDatabase, caller: UUID, batch: Any, **arguments: Any) -> dict[str, Any]:
    given = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in arguments.items()}
    names = "".join(f", {name} => %({name})s" for name in given)
    with db.as_user(caller) as connection:
        row = connection.execute(f"select * from skip_contacts(%(batch)s{names})", {"batch": batch, **given}).fetchone()
    assert row is not None
    return dict(row)


def refusal(db: TestDatabase, *arguments: Any, **named: Any) -> tuple[str | None, str]:
    """The sqlstate and code with which a skip is refused, having changed nothing."""
    before = db.state()
    with pytest.raises(psycopg.Error) as refused:
        skip(db, *arguments, **named)
    assert db.state() == before
    return refused.value.sqlstate, json.loads(refused.value.diag.message_detail or "{}").get("code")


@pytest.fixture
def agency(db: TestDatabase) -> UUID:
    return db.agency()


@pytest.fixture
def owner(db: TestDatabase, agency: UUID) -> UUID:
    return db.user(agency)


@pytest.fixture
def batch(db: TestDatabase, agency: UUID) -> UUID:
    return db.batch(agency)


def ids(db: TestDatabase, batch: UUID, status: str | None = None) -> list[str]:
    """The ids of the batch's contacts, in dial order."""
    found = db.rows(
        "select id::text from campaign_contacts where batch_id = %s and status = coalesce(%s::contact_status, status)"
        " order by id",
        batch,
        status,
    )
    return [row["id"] for row in found]


def knows(db: TestDatabase, contact: str, **columns: Any) -> None:
    """Tell what is known of a contact."""
    custom = columns.pop("custom_data", {})
    db.rows(
        "insert into contact_data (agency_id, batch_id, contact_id, company, custom_data)"
        " select agency_id, batch_id, id, %s, %s from campaign_contacts where id::text = %s",
        columns.get("company"),
        json.dumps(custom),
        contact,
    )


def test_the_named_contacts_are_skipped_and_the_others_stay(db: TestDatabase, owner: UUID, batch: UUID) -> None:
    db.contacts(batch, pending=4, scheduled=2, completed=1)
    named = [ids(db, batch)[0], ids(db, batch)[2], ids(db, batch)[4], ids(db, batch)[6]]

    answer = skip(db, owner, batch, contact_ids=[*named, named[0], "999999999"])

    assert answer == {
        "success": True,
        "batch_id": batch,
        "status": "processing",
        "contacts_skipped": 3,
        "calls_in_progress": 0,
        "calls_starting": 0,
        "dry_run": False,
    }
    assert sorted(ids(db, batch, "skipped"), key=int) == named[:3]
    assert db.batch_row(batch)["skipped"] == 3
    assert db.value("select count(*) from campaign_contacts where outcome_notes = 'Skipped by request'") == 3


FILTERS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "a status": ({"status": ["scheduled"]}, [2, 3]),
    "two statuses": ({"status": ["pending", "scheduled"]}, [0, 1, 2, 3]),
    "at least so many attempts": ({"min_attempts": 1}, [2, 3]),
    "at most so many attempts": ({"max_attempts": 1}, [0, 1, 2]),
    "attempts between": ({"min_attempts": 1, "max_attempts": 1}, [2]),
    "a column": ({"custom_data": {"plan": "gold"}}, [0, 2]),
    "two columns": ({"custom_data": {"plan": "gold", "age": "7"}}, [2]),
    "a number as text": ({"custom_data": {"age": 7}}, [2, 3]),
    "a boolean": ({"custom_data": {"vip": True}}, [3]),
    "a column that is told to all agents": ({"custom_data": {"company": "Acme"}}, [1]),
    "a column that none has": ({"custom_data": {"shoe": "42"}}, []),
    "several things": ({"status": ["scheduled"], "min_attempts": 1, "custom_data": {"plan": "gold"}}, [2]),
}


@pytest.fixture
def known(db: TestDatabase, batch: UUID) -> list[str]:
    """Four contacts of which different things are known."""
    db.contacts(batch, pending=2, scheduled=2)
    contacts = ids(db, batch)
    for contact, attempts in zip(contacts[2:], (1, 2), strict=True):
        db.rows("update campaign_contacts set attempts = %s where id::text = %s", attempts, contact)
    knows(db, contacts[0], custom_data={"plan": "gold"})
    knows(db, contacts[1], company="Acme")
    knows(db, contacts[2], custom_data={"plan": "gold", "age": 7})
    knows(db, contacts[3], custom_data={"plan": "iron", "age": "7", "vip": True})
    return contacts


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_selects_the_contacts_that_meet_all_of_it(
    db: TestDatabase, owner: UUID, batch: UUID, known: list[str], name: str
) -> None:
    chosen, places = FILTERS[name]
    counted = skip(db, owner, batch, filter=chosen, dry_run=True)
    assert db.statuses(batch) == {"pending": 2, "scheduled": 2}
    answer = skip(db, owner, batch, filter=chosen)
    assert answer["contacts_skipped"] == counted["contacts_skipped"] == len(places)
    assert ids(db, batch, "skipped") == [known[place] for place in places]


def test_with_ids_and_a_filter_a_contact_meets_both(
    db: TestDatabase, owner: UUID, batch: UUID, known: list[str]
) -> None:
    skip(db, owner, batch, contact_ids=known[1:3], filter=FILTERS["a column"][0])
    assert ids(db, batch, "skipped") == known[2:3]


def test_a_column_of_custom_data_counts_before_one_that_all_contacts_have(
    db: TestDatabase, owner: UUID, batch: UUID
) -> None:
    db.contacts(batch, pending=1)
    (contact,) = ids(db, batch)
    knows(db, contact, company="Acme", custom_data={"company": "Other"})
    assert skip(db, owner, batch, filter={"custom_data": {"company": "Acme"}})["contacts_skipped"] == 0
    assert skip(db, owner, batch, filter={"custom_data": {"company": "Other"}})["contacts_skipped"] == 1


def test_leases_of_skipped_contacts_end_and_no_dialer_can_start_them(
    db: TestDatabase, owner: UUID, batch: UUID
) -> None:
    db.contacts(batch, pending=4)
    claimed = db.rows("select call_id, contact_id, lease from claim_contacts(4)")
    calls = [row["call_id"] for row in claimed]
    named = [str(row["contact_id"]) for row in claimed[:2]]

    assert skip(db, owner, batch, contact_ids=named)["contacts_skipped"] == 2

    assert db.start_calls(batch, calls, claimed[0]["lease"]) == calls[2:]
    row = db.batch_row(batch)
    assert (row["queued"], row["in_progress"], row["skipped"]) == (0, 2, 2)


def test_queued_contacts_without_a_lease_are_skipped_too(db: TestDatabase, owner: UUID, batch: UUID) -> None:
    db.contacts(batch, queued=3, pending=1)
    assert skip(db, owner, batch, filter={"status": ["queued"]})["contacts_skipped"] == 3
    assert db.batch_row(batch)["queued"] == 0


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        ({"status": "failed", "outcome": "busy"}, "failed"),
        ({"status": "failed", "outcome": "withdrawn"}, "failed"),
        ({"status": "failed", "outcome": "carrier_down", "counted": False}, "failed"),
        ({"status": "missing"}, "failed"),
        ({"status": "completed", "outcome": "answered"}, "completed"),
    ],
    ids=lambda given: "" if isinstance(given, str) else "-".join(str(value) for value in given.values()),
)
def test_the_call_in_progress_to_a_skipped_contact_finishes_and_is_the_last(
    db: TestDatabase, result: dict[str, Any], outcome: str
) -> None:
    batch, calls = db.in_progress(2)
    agency = db.value("select agency_id from call_batches where id = %s", batch)
    caller = db.user(agency)
    contact = str(db.value("select contact_id from calls where id = %s", calls[0]))

    answer = skip(db, caller, batch, contact_ids=[contact])

    assert (answer["contacts_skipped"], answer["calls_in_progress"], answer["calls_starting"]) == (0, 1, 1)
    assert db.finish_calls(batch, calls, **result) == calls
    found = {str(row["id"]): row["status"] for row in db.rows("select id, status::text from campaign_contacts")}
    assert found[contact] == outcome
    (other,) = (status for id_, status in found.items() if id_ != contact)
    assert other == ("completed" if outcome == "completed" else "scheduled")


def test_a_call_that_is_unknown_when_its_contact_is_skipped_is_the_last(db: TestDatabase) -> None:
    batch, calls = db.in_progress(1)
    caller = db.user(db.value("select agency_id from call_batches where id = %s", batch))
    db.finish_calls(batch, calls, "unknown")
    assert skip(db, caller, batch, filter={"max_attempts": 5})["calls_in_progress"] == 1
    db.finish_calls(batch, calls, "missing")
    assert db.statuses(batch) == {"failed": 1}


def test_a_call_that_the_carrier_queues_is_withdrawn_when_its_contact_is_skipped(db: TestDatabase) -> None:
    batch, calls = db.in_progress(2)
    caller = db.user(db.value("select agency_id from call_batches where id = %s", batch))
    db.rows("update calls set carrier_queued = true, carrier_call_id = id::text")
    contact = str(db.value("select contact_id from calls where id = %s", calls[0]))
    assert db.rows("select call_id from list_calls_to_end()") == []
    assert skip(db, caller, batch, contact_ids=[contact])["calls_starting"] == 1
    assert db.rows("select call_id, hang_up from list_calls_to_end()") == [{"call_id": calls[0], "hang_up": False}]


def test_a_dry_run_counts_the_same_and_changes_nothing(db: TestDatabase, owner: UUID, batch: UUID) -> None:
    db.contacts(batch, pending=5, scheduled=1, failed=2)
    claimed = db.rows("select call_id from claim_contacts(3)")
    db.start_calls(batch, [row["call_id"] for row in claimed][:1])
    chosen = {"max_attempts": 9}
    before = db.state()
    counted = skip(db, owner, batch, filter=chosen, dry_run=True, idempotency_key="key-1")
    assert db.state() == before
    answer = skip(db, owner, batch, filter=chosen, idempotency_key="key-1")
    assert answer == {**counted, "dry_run": False}
    assert (answer["contacts_skipped"], answer["calls_in_progress"], answer["calls_starting"]) == (5, 1, 1)


def test_a_dry_run_waits_for_nobody(db: TestDatabase, owner: UUID, batch: UUID) -> None:
    db.contacts(batch, pending=1)
    with db.connect() as holder, holder.transaction():
        holder.execute("select from call_batches where id = %s for update", [batch])
        assert skip(db, owner, batch, filter={"status": ["pending"]}, dry_run=True)["contacts_skipped"] == 1


def test_a_batch_whose_last_contacts_are_skipped_completes(db: TestDatabase, owner: UUID, batch: UUID) -> None:
    db.contacts(batch, pending=2, completed=1)
    skip(db, owner, batch, filter={"status": ["pending"]})
    db.rows("select process_batches()")
    assert db.batch_row(batch)["status"] == "completed"


@pytest.mark.parametrize("status", ["pending", "scheduled", "paused", "stopped", "failed"])
def test_contacts_are_skipped_in_a_batch_that_is_not_dialed(
    db: TestDatabase, agency: UUID, owner: UUID, status: str
) -> None:
    batch = db.batch(agency, status=status)
    db.contacts(batch, pending=2)
    assert skip(db, owner, batch, filter={"status": ["pending"]})["status"] == status
    assert (db.batch_row(batch)["status"], db.statuses(batch)) == (status, {"skipped": 2})


def test_a_skipped_number_may_be_added_again(db: TestDatabase, owner: UUID, batch: UUID) -> None:
    db.contacts(batch, pending=1)
    skip(db, owner, batch, filter={"status": ["pending"]})
    added = db.row("select * from add_contacts(%s, %s)", batch, json.dumps([{"phone_number": "+15550000001"}]))
    assert (added["added"], added["duplicates"]) == (1, 0)


def test_the_audit_trail_tells_of_a_skip(db: TestDatabase, owner: UUID, batch: UUID) -> None:
    db.contacts(batch, pending=3)
    skip(db, owner, batch, filter={"status": ["pending"]}, reason="wrong list")
    event = db.row("select action, actor_id, from_status, to_status, contacts, reason from batch_events")
    assert event == {
        "action": "skip_contacts",
        "actor_id": owner,
        "from_status": "processing",
        "to_status": "processing",
        "contacts": 3,
        "reason": "wrong list",
    }


def test_a_repeat_with_the_same_key_gets_the_first_answer_and_another_request_409(
    db: TestDatabase, owner: UUID, batch: UUID
) -> None:
    db.contacts(batch, pending=3)
    first = skip(db, owner, batch, contact_ids=ids(db, batch)[:1], idempotency_key="key-1")
    db.contacts(batch, pending=1)
    assert skip(db, owner, batch, contact_ids=ids(db, batch)[:1], idempotency_key="key-1") == first
    for other in ({"contact_ids": ids(db, batch)[:2]}, {"filter": {"status": ["pending"]}}):
        assert refusal(db, owner, batch, **other, idempotency_key="key-1") == ("PT409", "idempotency_key_reused")


@pytest.mark.parametrize("status", OVER)
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_batch_that_is_over_is_refused(
    db: TestDatabase, agency: UUID, owner: UUID, status: str, dry_run: bool
) -> None:
    batch = db.batch(agency, status=status)
    found = refusal(db, owner, batch, filter={"status": ["pending"]}, dry_run=dry_run)
    assert found == ("PT400", f"batch_already_{status}")


IDS_THAT_ARE_NONE: list[list[Any]] = [[], ["one"], ["-1"], [""], [None], ["1" * 19], ["1"] * 10_001]
FILTERS_THAT_ARE_NONE: list[Any] = [
    [],
    "pending",
    {},
    {"colour": "red"},
    {"status": "pending"},
    {"status": []},
    {"status": ["skipped"]},
    {"status": [7]},
    {"min_attempts": "1"},
    {"min_attempts": -1},
    {"max_attempts": 1.5},
    {"max_attempts": 100_000},
    {"max_attempts": None},
    {"custom_data": {}},
    {"custom_data": "plan"},
    {"custom_data": {"plan": ["gold"]}},
    {"custom_data": {"plan": None}},
]


@pytest.mark.parametrize("given", IDS_THAT_ARE_NONE, ids=lambda given: repr(given)[:20])
def test_ids_that_are_none_are_refused(db: TestDatabase, owner: UUID, batch: UUID, given: list[Any]) -> None:
    assert refusal(db, owner, batch, contact_ids=given) == ("PT400", "contact_ids_invalid")


@pytest.mark.parametrize("given", FILTERS_THAT_ARE_NONE, ids=repr)
def test_a_filter_that_is_none_is_refused(db: TestDatabase, owner: UUID, batch: UUID, given: Any) -> None:
    db.contacts(batch, pending=1)
    assert refusal(db, owner, batch, filter=json.dumps(given)) == ("PT400", "filter_invalid")


def test_a_skip_that_names_no_contacts_is_refused(db: TestDatabase, owner: UUID, batch: UUID) -> None:
    assert refusal(db, owner, batch) == ("PT400", "contacts_required")


def test_whoever_may_not_cancel_may_not_skip(db: TestDatabase, agency: UUID, batch: UUID) -> None:
    chosen = {"status": ["pending"]}
    for role in ("agency_member", "client_admin", "client_viewer", "admin"):
        assert refusal(db, db.user(agency, role), batch, filter=chosen) == ("PT403", "role_not_allowed")
    assert refusal(db, db.user(None), batch, filter=chosen) == ("PT403", "no_agency")
    assert refusal(db, db.user(db.agency("Other")), batch, filter=chosen) == ("PT404", "batch_not_found")
    assert refusal(db, db.user(agency), uuid4(), filter=chosen) == ("PT404", "batch_not_found")


def test_contacts_of_another_batch_are_not_reached_by_their_ids(
    db: TestDatabase, agency: UUID, owner: UUID, batch: UUID
) -> None:
    other = db.batch(agency)
    db.contacts(other, pending=2)
    assert skip(db, owner, batch, contact_ids=ids(db, other))["contacts_skipped"] == 0
    assert db.statuses(other) == {"pending": 2}
