"""opt_out puts a number on the do-not-call list and skips its contacts in every batch of the agency."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from ..support.database import TestDatabase

NUMBER = "+15550000001"
OTHER = "+15550000002"


def opt_out(db: TestDatabase, caller: UUID, number: str | None = NUMBER, **arguments: Any) -> dict[str, Any]:
    names = "".join(f", {name} => %({name})s" for name in arguments)
    with db.as_user(caller) as connection:
        query = f"select * from opt_out(%(number)s{names})"
        row = connection.execute(query, {"number": number, **arguments}).fetchone()
    assert row is not None
    return dict(row)


def refusal(db: TestDatabase, *arguments: Any, **named: Any) -> tuple[str | None, str]:
    """The sqlstate and code with which an opt-out is refused, having changed nothing."""
    before = db.state()
    with pytest.raises(psycopg.Error) as refused:
        opt_out(db, *arguments, **named)
    assert db.state() == before
    return refused.value.sqlstate, json.loads(refused.value.diag.message_detail or "{}").get("code")


@pytest.fixture
def agency(db: TestDatabase) -> UUID:
    return db.agency()


@pytest.fixture
def member(db: TestDatabase, agency: UUID) -> UUID:
    return db.user(agency, "agency_member")


def numbers(db: TestDatabase, batch: UUID, status: str) -> list[str]:
    return [
        row["phone_number"]
        for row in db.rows(
            "select phone_number from campaign_contacts where batch_id = %s and status = %s::contact_status"
            " order by id",
            batch,
            status,
        )
    ]


def test_the_number_is_skipped_in_every_batch_that_is_not_over(db: TestDatabase, agency: UUID, member: UUID) -> None:
    live = ("pending", "scheduled", "processing", "paused", "stopped", "failed")
    over = ("completed", "cancelled")
    batches = {status: db.batch(agency, status=status) for status in (*live, *over)}
    for batch in batches.values():
        db.contacts(batch, pending=3)

    answer = opt_out(db, member)

    assert answer == {
        "success": True,
        "phone_number": NUMBER,
        "added": True,
        "batches": 6,
        "contacts_skipped": 6,
        "calls_in_progress": 0,
        "calls_starting": 0,
    }
    for status, batch in batches.items():
        assert numbers(db, batch, "skipped") == ([NUMBER] if status in live else []), status
        assert db.batch_row(batch)["status"] == status


def test_the_list_keeps_who_where_why_and_when(db: TestDatabase, agency: UUID, member: UUID) -> None:
    opt_out(db, member, source="call 17", reason="asked twice")
    row = db.row("select *, created_at > now() - interval '1 minute' as is_new from do_not_call")
    assert (row["agency_id"], row["phone_number"], row["source"], row["reason"], row["added_by"], row["is_new"]) == (
        agency, NUMBER, "call 17", "asked twice", member, True,
    )  # fmt: skip


def test_a_skipped_contact_says_why(db: TestDatabase, agency: UUID, member: UUID) -> None:
    batch = db.batch(agency)
    db.contacts(batch, pending=1)
    opt_out(db, member, reason="asked")
    assert db.row("select outcome, outcome_notes from campaign_contacts") == {
        "outcome": "do_not_call",
        "outcome_notes": "Opted out",
    }
    event = db.row("select action, actor_id, contacts, reason from batch_events")
    assert event == {"action": "opt_out", "actor_id": member, "contacts": 1, "reason": "asked"}


def test_other_agencies_go_on_calling_the_number(db: TestDatabase, member: UUID) -> None:
    theirs = db.batch(db.agency("Other"))
    db.contacts(theirs, pending=2)
    assert opt_out(db, member)["batches"] == 0
    assert db.statuses(theirs) == {"pending": 2}
    assert len(db.rows("select call_id from claim_contacts(2)")) == 2


def test_a_lease_on_the_number_ends_and_no_dialer_can_start_it(db: TestDatabase, agency: UUID, member: UUID) -> None:
    batch = db.batch(agency)
    db.contacts(batch, pending=2)
    claimed = db.rows("select call_id, phone_number, lease from claim_contacts(2)")
    opt_out(db, member)
    started = db.start_calls(batch, [row["call_id"] for row in claimed], claimed[0]["lease"])
    assert started == [row["call_id"] for row in claimed if row["phone_number"] == OTHER]


def test_a_call_in_progress_to_the_number_finishes_and_is_the_last(db: TestDatabase) -> None:
    batch, calls = db.in_progress(1)
    member = db.user(db.value("select agency_id from call_batches where id = %s", batch), "agency_member")
    answer = opt_out(db, member)
    assert (answer["batches"], answer["contacts_skipped"], answer["calls_in_progress"], answer["calls_starting"]) == (
        1, 0, 1, 1,
    )  # fmt: skip
    db.finish_calls(batch, calls, "failed", outcome="busy")
    assert db.statuses(batch) == {"failed": 1}


def test_a_repeat_skips_what_came_in_since_and_keeps_the_first_reason(
    db: TestDatabase, agency: UUID, member: UUID
) -> None:
    opt_out(db, member, source="call", reason="first")
    batch = db.batch(agency)
    db.contacts(batch, pending=1)  # by a plain insert
    answer = opt_out(db, member, source="mail", reason="second")
    assert (answer["added"], answer["contacts_skipped"]) == (False, 1)
    assert db.row("select source, reason from do_not_call") == {"source": "call", "reason": "first"}
    assert opt_out(db, member)["batches"] == 0


def test_the_number_is_left_out_of_what_is_added_later(db: TestDatabase, agency: UUID, member: UUID) -> None:
    batch = db.batch(agency)
    opt_out(db, member)
    added = db.row("select * from add_contacts(%s, %s)", batch, json.dumps([{"phone_number": NUMBER}]))
    assert (added["added"], added["do_not_call"]) == (0, 1)


def test_any_user_of_the_agency_may_opt_a_number_out_and_nobody_else(db: TestDatabase, agency: UUID) -> None:
    for role in ("agency_owner", "agency_admin", "agency_member", "client_admin", "client_viewer", "admin"):
        assert opt_out(db, db.user(agency, role))["success"]
    assert refusal(db, db.user(None)) == ("PT403", "no_agency")
    assert refusal(db, db.user(db.agency("Other")), agency_id=agency) == ("PT404", "agency_not_found")


def test_a_service_names_the_agency(db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency)
    db.contacts(batch, pending=1)
    with db.as_service() as connection:
        connection.execute("select opt_out(%s, agency_id => %s)", [NUMBER, agency])
        assert db.statuses(batch) == {"skipped": 1}
        for given, code in ((None, "agency_id_required"), (uuid4(), "agency_not_found")):
            with pytest.raises(psycopg.Error) as refused:
                connection.execute("select opt_out(%s, agency_id => %s)", [NUMBER, given])
            assert code in str(refused.value.diag.message_detail)


@pytest.mark.parametrize("number", [None, "", "911", "5550000001", "+0550000001", "+1555000000a", "+1" + "5" * 20])
def test_a_number_that_is_none_is_refused(db: TestDatabase, member: UUID, number: str | None) -> None:
    assert refusal(db, member, number) == ("PT400", "phone_number_invalid")


def test_a_batch_that_another_request_holds_is_busy_and_nothing_is_changed(
    db: TestDatabase, agency: UUID, member: UUID
) -> None:
    free, held = sorted(db.batch(agency) for _ in range(2))
    for batch in (free, held):
        db.contacts(batch, pending=1)
    before = db.state()
    with db.connect() as holder, holder.transaction(), db.as_user(member) as connection:
        holder.execute("select cancel_batch(%s)", [held])
        connection.execute("set lock_timeout = '50ms'")
        with pytest.raises(psycopg.Error) as refused:
            connection.execute("select opt_out(%s)", [NUMBER])
        assert db.state() == before
        detail = json.loads(refused.value.diag.message_detail or "")
        assert (refused.value.sqlstate, detail["code"], detail["held_by"]) == ("PT503", "batch_busy", "cancel_batch")


def test_an_agency_to_which_contacts_are_being_added_is_busy(db: TestDatabase, agency: UUID, member: UUID) -> None:
    batch = db.batch(agency)
    contacts = json.dumps([{"phone_number": OTHER}])
    with db.connect() as adder, adder.transaction(), db.as_user(member) as connection:
        adder.execute("select add_contacts(%s, %s)", [batch, contacts])
        connection.execute("set lock_timeout = '50ms'")
        with pytest.raises(psycopg.Error) as refused:
            connection.execute("select opt_out(%s)", [NUMBER])
        detail = json.loads(refused.value.diag.message_detail or "")
        assert (refused.value.sqlstate, detail["code"]) == ("PT503", "agency_busy")
