"""cancel_batch skips what was not called yet, and nothing else."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest

from ..support.database import TestDatabase
from ..support.statistics import flush, updates

SKIPPABLE = ("pending", "scheduled", "queued")
ALL = {"pending": 5, "scheduled": 4, "queued": 3, "in_progress": 2, "completed": 6, "failed": 1, "skipped": 7}


def cancel(db: TestDatabase, user_id: object, batch_id: object, **arguments: object) -> dict[str, object]:
    names = "".join(f", {name} => %s" for name in arguments)
    with db.as_user(user_id) as connection:  # type: ignore[arg-type]
        row = connection.execute(f"select * from cancel_batch(%s{names})", [batch_id, *arguments.values()]).fetchone()
    assert row is not None
    return row


def test_it_skips_pending_scheduled_and_queued_contacts_and_counts_them(db: TestDatabase) -> None:
    agency = db.agency()
    batch = db.batch(agency)
    db.contacts(batch, **ALL)

    answer = cancel(db, db.user(agency), batch)

    assert answer == {
        "success": True,
        "batch_id": batch,
        "status": "cancelled",
        "contacts_skipped": 12,
        "message": "Batch cancelled. In-progress calls will complete but no new calls will be initiated.",
        "calls_in_progress": 2,
        "calls_starting": 0,
    }
    assert db.statuses(batch) == {"in_progress": 2, "completed": 6, "failed": 1, "skipped": 19}
    notes = db.rows("select outcome_notes, count(*) as n from campaign_contacts group by 1 order by 1")
    assert notes == [{"outcome_notes": "Batch cancelled", "n": 12}, {"outcome_notes": None, "n": 16}]


def test_the_batch_says_that_when_and_by_whom_it_was_cancelled(db: TestDatabase) -> None:
    agency = db.agency()
    batch = db.batch(agency)
    db.contacts(batch, skipped=2, pending=3)
    user = db.user(agency)

    cancel(db, user, batch, reason="wrong script")

    row = db.batch_row(batch)
    assert (row["status"], row["skipped"], row["error_message"]) == ("cancelled", 5, "Cancelled by user")
    assert row["completed_at"] is not None
    event = db.row("select * from batch_events")
    assert (event["action"], event["actor_kind"], event["actor_id"]) == ("cancel", "user", user)
    assert (event["from_status"], event["to_status"]) == ("processing", "cancelled")
    assert (event["contacts"], event["reason"]) == (3, "wrong script")


@pytest.mark.parametrize("status", ["pending", "scheduled", "processing", "paused", "stopped", "failed"])
def test_a_batch_can_be_cancelled_from_every_status_that_is_not_over(db: TestDatabase, status: str) -> None:
    agency = db.agency()
    batch = db.batch(agency, status=status)
    db.contacts(batch, pending=1)
    assert cancel(db, db.user(agency), batch)["contacts_skipped"] == 1


@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_a_batch_that_is_over_is_refused_with_pt400(db: TestDatabase, status: str) -> None:
    agency = db.agency()
    batch = db.batch(agency, status=status)
    db.contacts(batch, completed=1)
    user = db.user(agency)
    before = db.state()
    with pytest.raises(psycopg.Error, match=f"Batch is already {status}") as refused:
        cancel(db, user, batch)
    assert refused.value.sqlstate == "PT400"
    assert db.state() == before


@pytest.mark.parametrize("role", ["agency_owner", "agency_admin"])
def test_owners_and_admins_may_cancel(db: TestDatabase, role: str) -> None:
    agency = db.agency()
    assert cancel(db, db.user(agency, role), db.batch(agency))["success"] is True


@pytest.mark.parametrize("role", ["agency_member", "client_admin", "client_viewer", "admin"])
def test_no_other_role_may_cancel(db: TestDatabase, role: str) -> None:
    agency = db.agency()
    batch, user = db.batch(agency), db.user(agency, role)
    before = db.state()
    with pytest.raises(psycopg.Error) as refused:
        cancel(db, user, batch)
    assert refused.value.sqlstate == "PT403"
    assert db.state() == before


def test_a_user_of_no_agency_is_refused_with_pt403(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    for user in (db.user(None), uuid4()):
        with pytest.raises(psycopg.Error, match="not associated with an agency") as refused:
            cancel(db, user, batch)
        assert refused.value.sqlstate == "PT403"


def test_another_agencys_batch_does_not_exist(db: TestDatabase) -> None:
    batch, user = db.batch(db.agency()), db.user(db.agency("Other"))
    before = db.state()
    for batch_id in (batch, uuid4()):
        with pytest.raises(psycopg.Error, match="Batch not found") as refused:
            cancel(db, user, batch_id)
        assert refused.value.sqlstate == "PT404"
    assert db.state() == before


def test_the_batch_id_is_required(db: TestDatabase) -> None:
    with pytest.raises(psycopg.Error, match="batch_id is required") as refused:
        cancel(db, db.user(db.agency()), None)
    assert refused.value.sqlstate == "PT400"


def test_an_admin_at_the_sql_console_reads_one_clear_row(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=2)
    assert db.row("select * from cancel_batch(%s)", batch)["contacts_skipped"] == 2
    event = db.row("select actor_kind, actor_role from batch_events")
    assert event == {"actor_kind": "console", "actor_role": "postgres"}


def test_a_lease_ends_with_the_batch(db: TestDatabase) -> None:
    agency = db.agency()
    batch = db.batch(agency)
    db.contacts(batch, pending=5)
    db.rows("select * from claim_contacts(3)")
    assert cancel(db, db.user(agency), batch)["contacts_skipped"] == 5
    assert db.value("select count(*) from calls") == 0


def test_wrong_counters_never_keep_a_batch_from_being_cancelled(db: TestDatabase) -> None:
    agency = db.agency()
    batch = db.batch(agency, queued=99, total_contacts=1)
    db.contacts(batch, pending=3)
    assert cancel(db, db.user(agency), batch)["contacts_skipped"] == 3
    assert {row["counter"] for row in db.unbalanced()} == {"total_contacts"}
    db.rows("select private.recount_batch(%s)", batch)


@pytest.mark.own_database
def test_a_fresh_cancel_updates_heap_only(db: TestDatabase) -> None:
    """No index, nor an index's predicate, mentions what changes, and each page has room."""
    agency = db.agency()
    batch = db.batch(agency)
    db.contacts(batch, pending=20_000)
    flush(db.owner)
    before = updates(db)
    with db.connect() as connection:
        connection.execute("select * from cancel_batch(%s)", [batch])
        flush(connection)
    made = updates(db) - before
    assert made["n_tup_upd"] == 20_000
    assert made["n_tup_hot_upd"] >= 0.95 * 20_000
