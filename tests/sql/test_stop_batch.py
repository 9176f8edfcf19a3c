"""stop_batch empties the call queue and keeps the contacts, unless told to skip them."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from ..support.database import TestDatabase

ALL = {"pending": 5, "scheduled": 4, "queued": 3, "in_progress": 2, "completed": 6, "failed": 1, "skipped": 7}


def stop(db: TestDatabase, caller: UUID, batch_id: Any, user_id: Any, **arguments: Any) -> dict[str, Any]:
    names = "".join(f", {name} => %s" for name in arguments)
    with db.as_user(caller) as connection:
        query = f"select * from stop_batch(%s::text, %s::text{names})"
        row = connection.execute(query, [batch_id, user_id, *arguments.values()]).fetchone()
    assert row is not None
    return dict(row)


def refusal(db: TestDatabase, *arguments: Any) -> str | None:
    """The sqlstate with which a stop is refused, having changed nothing."""
    before = db.state()
    with pytest.raises(psycopg.Error) as refused:
        stop(db, *arguments)
    assert db.state() == before
    return refused.value.sqlstate


def test_queued_contacts_go_back_and_the_others_stay(db: TestDatabase) -> None:
    agency = db.agency()
    owner = db.user(agency)
    batch = db.batch(agency, owner)
    db.contacts(batch, **ALL)

    answer = stop(db, owner, batch, owner)

    assert answer == {
        "batch_id": str(batch),
        "status": "stopped",
        "contacts_released": 3,
        "contacts_skipped": 0,
        "calls_in_progress": 2,
        "calls_starting": 0,
    }
    assert db.statuses(batch) == {
        "pending": 8,
        "scheduled": 4,
        "in_progress": 2,
        "completed": 6,
        "failed": 1,
        "skipped": 7,
    }
    assert db.batch_row(batch)["status"] == "stopped"


def test_with_skip_remaining_the_contacts_not_yet_called_are_skipped(db: TestDatabase) -> None:
    agency = db.agency()
    owner = db.user(agency)
    batch = db.batch(agency, owner)
    db.contacts(batch, **ALL)

    answer = stop(db, owner, batch, owner, skip_remaining=True)

    assert (answer["contacts_skipped"], answer["contacts_released"]) == (12, 0)
    assert db.statuses(batch) == {"in_progress": 2, "completed": 6, "failed": 1, "skipped": 19}
    assert db.value("select count(*) from campaign_contacts where outcome_notes = 'Batch stopped'") == 12


def test_no_dialer_can_start_what_it_held_when_the_batch_was_stopped(db: TestDatabase) -> None:
    agency = db.agency()
    owner = db.user(agency)
    batch = db.batch(agency, owner)
    db.contacts(batch, pending=5)
    held = [row["call_id"] for row in db.rows("select call_id from claim_contacts(3)")]
    lease = db.lease(held[0])
    stop(db, owner, batch, owner)

    assert db.start_calls(batch, held, lease) == []
    db.rows("update call_batches set status = 'processing'")
    assert db.start_calls(batch, held, lease) == [], "not under the old lease, once started again"
    assert len(db.rows("select * from claim_contacts(10)")) == 5


def test_a_released_contact_goes_back_to_where_it_was(db: TestDatabase) -> None:
    batch = db.batch(db.agency(), retry_delay_seconds=0)
    db.contacts(batch, pending=2)
    call = db.value("select call_id from claim_contacts(1)")
    db.start_calls(batch, [call])
    db.finish_calls(batch, [call], "failed")
    assert len(db.rows("select * from claim_contacts(2)")) == 2
    db.rows("select * from stop_batch(%s)", str(batch))
    assert db.statuses(batch) == {"pending": 1, "scheduled": 1}


def test_stopping_a_stopped_batch_is_a_success(db: TestDatabase) -> None:
    agency = db.agency()
    owner = db.user(agency)
    batch = db.batch(agency, owner)
    db.contacts(batch, pending=2)
    stop(db, owner, batch, owner)
    stopped_at = db.batch_row(batch)["stopped_at"]
    assert stop(db, owner, batch, owner)["status"] == "stopped"
    assert db.batch_row(batch)["stopped_at"] == stopped_at
    assert stop(db, owner, batch, owner, skip_remaining=True)["contacts_skipped"] == 2


@pytest.mark.parametrize("status", ["pending", "scheduled", "processing", "paused"])
def test_a_batch_can_be_stopped_from_every_status_that_is_not_over(db: TestDatabase, status: str) -> None:
    agency = db.agency()
    owner = db.user(agency)
    assert stop(db, owner, db.batch(agency, owner, status=status), owner)["status"] == "stopped"


@pytest.mark.parametrize("status", ["completed", "cancelled", "failed"])
def test_a_batch_that_is_over_is_refused_with_pt400(db: TestDatabase, status: str) -> None:
    agency = db.agency()
    owner = db.user(agency)
    assert refusal(db, owner, db.batch(agency, owner, status=status), owner) == "PT400"


def test_nothing_but_a_cancel_takes_a_batch_out_of_failed(db: TestDatabase) -> None:
    batch = db.batch(db.agency(), status="failed")
    db.contacts(batch, pending=2)
    for procedure in ("stop_batch(%s::text)", "resume_batch(%s)", "start_batch(%s::text)", "pause_batch(%s)"):
        with pytest.raises(psycopg.Error) as refused:
            db.rows(f"select {procedure}", batch)
        assert refused.value.sqlstate == "PT400"
    db.rows("select process_batches()")
    assert db.rows("select claim_contacts()") == []
    db.rows("select cancel_batch(%s)", batch)
    assert db.statuses(batch) == {"skipped": 2}


@pytest.mark.parametrize("form", ["uuid", "external id"])
def test_both_ids_may_be_uuids_or_external_ids_and_the_batchs_is_echoed(db: TestDatabase, form: str) -> None:
    agency = db.agency()
    user = db.user(agency, external_id="64e5f12345abcdef12345678")
    batch = db.batch(agency, user, external_id="64e5f12345abcdef98765432")
    batch_id, user_id = (
        (str(batch), str(user)) if form == "uuid" else ("64e5f12345abcdef98765432", "64e5f12345abcdef12345678")
    )
    assert stop(db, user, batch_id, user_id)["batch_id"] == batch_id
    assert db.row("select actor_id, on_behalf_of from batch_events") == {
        "actor_id": user,
        "on_behalf_of": user,
    }


def test_an_owner_or_admin_may_stop_for_any_user_of_the_agency(db: TestDatabase) -> None:
    agency = db.agency()
    member = db.user(agency, "agency_member")
    for role in ("agency_owner", "agency_admin"):
        caller = db.user(agency, role)
        assert stop(db, caller, db.batch(agency, member), member)["status"] == "stopped"
        assert db.row("select actor_id, on_behalf_of from batch_events order by id desc limit 1") == {
            "actor_id": caller,
            "on_behalf_of": member,
        }


@pytest.mark.parametrize("role", ["agency_member", "client_admin", "client_viewer", "admin"])
def test_anyone_else_may_stop_only_the_own_batches(db: TestDatabase, role: str) -> None:
    agency = db.agency()
    caller, other = db.user(agency, role), db.user(agency)
    own, others = db.batch(agency, caller), db.batch(agency, other)
    assert stop(db, caller, own, caller)["status"] == "stopped"
    assert refusal(db, caller, others, other) == "PT403"
    assert refusal(db, caller, others, caller) == "PT404"
    assert refusal(db, caller, others, uuid4()) == "PT403", "nor learn which users exist"


def test_user_and_batch_must_be_of_the_callers_agency(db: TestDatabase) -> None:
    agency, other_agency = db.agency(), db.agency("Other")
    owner, stranger = db.user(agency), db.user(other_agency, external_id="stranger")
    theirs = db.batch(other_agency, stranger, external_id="theirs")
    assert refusal(db, owner, theirs, stranger) == "PT404"
    assert refusal(db, owner, "theirs", "stranger") == "PT404"
    assert refusal(db, owner, theirs, owner) == "PT404"
    assert refusal(db, owner, uuid4(), owner) == "PT404"


def test_the_same_external_id_in_two_agencies_means_each_ones_own(db: TestDatabase) -> None:
    for name in ("Acme", "Other"):
        agency = db.agency(name)
        owner = db.user(agency, external_id="owner")
        batch = db.batch(agency, owner, external_id="spring")
        stop(db, owner, "spring", "owner")
        assert db.batch_row(batch)["status"] == "stopped"
        assert db.value("select count(*) from call_batches where status = 'stopped'") == (1 if name == "Acme" else 2)
    with pytest.raises(psycopg.Error, match="Several batches") as refused:
        db.rows("select * from stop_batch('spring')")
    assert refused.value.sqlstate == "PT400"


def test_both_ids_are_required_of_a_user(db: TestDatabase) -> None:
    agency = db.agency()
    owner = db.user(agency)
    batch = db.batch(agency, owner)
    for missing in (None, ""):
        assert refusal(db, owner, missing, owner) == "PT400"
        assert refusal(db, owner, batch, missing) == "PT400"


def test_a_user_of_no_agency_is_refused_with_pt403(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    user = db.user(None)
    assert refusal(db, user, batch, user) == "PT403"


def test_an_admin_at_the_sql_console_may_leave_the_user_out(db: TestDatabase) -> None:
    batch = db.batch(db.agency(), external_id="64e5f12345abcdef98765432")
    db.contacts(batch, pending=1, in_progress=1)
    answer = db.row("select * from stop_batch('64e5f12345abcdef98765432')")
    assert (answer["batch_id"], answer["calls_in_progress"]) == ("64e5f12345abcdef98765432", 1)


def test_at_the_sql_console_too_a_given_user_must_be_the_batchs(db: TestDatabase) -> None:
    agency = db.agency()
    owner, other = db.user(agency), db.user(agency)
    batch = db.batch(agency, owner)
    for user, message in ((other, "Batch not found"), (uuid4(), "User not found")):
        with pytest.raises(psycopg.Error, match=message):
            db.rows("select * from stop_batch(%s, %s)", str(batch), str(user))
    assert db.row("select * from stop_batch(%s, %s)", str(batch), str(owner))["status"] == "stopped"


@pytest.mark.parametrize("added", [0, 1])
def test_a_failed_call_is_not_retried_when_the_batch_was_ended_early(db: TestDatabase, added: int) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=2)
    call = db.value("select call_id from claim_contacts(1)")
    db.start_calls(batch, [call])
    db.rows("select * from stop_batch(%s, skip_remaining => true)", str(batch))
    # Not even when contacts were added since: only resuming the batch undoes its end.
    for _ in range(added):
        db.rows("select add_contacts(%s, %s)", batch, json.dumps([{"phone_number": "+15550000009"}]))
    db.finish_calls(batch, [call], "failed")
    assert db.statuses(batch) == {"failed": 1, "skipped": 1} | ({"pending": added} if added else {})


def contacts_read(db: TestDatabase, batch: UUID, skip_remaining: bool) -> int:
    """How many contacts a stop reads."""
    with db.connect() as connection, connection.transaction():
        connection.execute("select stop_batch(%s::text, skip_remaining => %s)", [batch, skip_remaining])
        row = connection.execute(
            "select seq_tup_read + coalesce(idx_tup_fetch, 0) as n from pg_stat_xact_user_tables"
            " where relname = 'campaign_contacts'"
        ).fetchone()
    assert row is not None
    number: int = row["n"]
    return number


@pytest.mark.parametrize("skip_remaining", [False, True])
def test_a_stop_of_a_stopped_batch_reads_no_contacts(db: TestDatabase, skip_remaining: bool) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, **ALL)
    assert contacts_read(db, batch, skip_remaining) > 0
    assert contacts_read(db, batch, skip_remaining) == 0
    assert db.batch_row(batch)["status"] == "stopped"


def test_a_stop_of_a_stopped_batch_skips_what_was_added_since(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=3)
    for skipped in (3, 0):
        answer = db.row("select * from stop_batch(%s::text, skip_remaining => true)", batch)
        assert answer["contacts_skipped"] == skipped
    db.rows("select add_contacts(%s, %s)", batch, json.dumps([{"phone_number": "+15559999999"}]))
    answer = db.row("select * from stop_batch(%s::text, skip_remaining => true)", batch)
    assert answer["contacts_skipped"] == 1
    assert db.statuses(batch) == {"skipped": 4}


def test_a_stop_of_a_stopped_batch_skips_what_the_first_one_left(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=3)
    db.rows("select stop_batch(%s::text)", batch)
    answer = db.row("select * from stop_batch(%s::text, skip_remaining => true)", batch)
    assert answer["contacts_skipped"] == 3
