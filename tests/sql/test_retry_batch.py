"""retry_batch: the failed contacts of a batch, as a new batch."""

from __future__ import annotations

import json
import threading
from typing import Any
from uuid import UUID

import psycopg
import pytest

from ..support.database import TestDatabase


def world(db: TestDatabase, **columns: Any) -> tuple[UUID, UUID, UUID]:
    """An agency, its owner, and a completed batch: 2 completed, 3 failed (busy, busy, no_answer)."""
    agency = db.agency()
    owner = db.user(agency)
    batch = db.batch(agency, owner, status="completed", name="Spring offer", external_id="spring", **columns)
    db.contacts(batch, completed=2, failed=3)
    db.rows(
        "update campaign_contacts c set phone_number = '+1555100000' || n.n, timezone = 'UTC', max_attempts = 5,"
        " outcome = case when n.n < 3 then 'busy' else 'no_answer' end"
        " from (select id, row_number() over (order by id) as n from campaign_contacts where status = 'failed') n"
        " where n.id = c.id"
    )
    db.rows(
        "insert into contact_data (agency_id, batch_id, contact_id, first_name, custom_data)"
        " select agency_id, batch_id, id, 'Ada', '{\"a\": 1}' from campaign_contacts where status = 'failed'"
    )
    return agency, owner, batch


def retry(db: TestDatabase, batch: UUID, **arguments: Any) -> dict[str, Any]:
    names = "".join(f", {name} => %s" for name in arguments)
    return db.row(f"select * from retry_batch(%s{names})", batch, *arguments.values())


def test_the_failed_contacts_are_dialed_again_as_a_new_batch_with_the_same_settings(db: TestDatabase) -> None:
    _, owner, batch = world(db, calls_per_minute=7, retry_outcomes=["busy"], timezone="UTC")
    before = db.batch_row(batch)
    retried = retry(db, batch, reason="line was down")
    new = db.batch_row(retried["batch_id"])
    assert retried == {
        "batch_id": new["id"],
        "status": "pending",
        "total_contacts": 3,
        "retry_of": batch,
        "do_not_call": 0,
    }
    same = ("name", "user_id", "calls_per_minute", "max_concurrent", "retry_outcomes", "timezone")
    assert {name: new[name] for name in same} == {name: before[name] for name in same}
    assert (new["external_id"], new["user_id"]) == (None, owner)
    assert db.batch_row(batch) == before
    assert db.rows(
        "select c.phone_number, c.status, c.attempts, c.max_attempts, c.timezone, d.first_name, d.custom_data"
        " from campaign_contacts c join contact_data d on d.contact_id = c.id where c.batch_id = %s order by c.id",
        new["id"],
    ) == [
        {
            "phone_number": f"+1555100000{n}",
            "status": "pending",
            "attempts": 0,
            "max_attempts": 5,
            "timezone": "UTC",
            "first_name": "Ada",
            "custom_data": {"a": 1},
        }
        for n in (1, 2, 3)
    ]
    events = db.rows("select batch_id, action, contacts, reason from batch_events order by id")
    assert events == [
        {"batch_id": batch, "action": "retry", "contacts": 3, "reason": "line was down"},
        {"batch_id": new["id"], "action": "create", "contacts": 3, "reason": "line was down"},
    ]


def test_a_second_retry_takes_no_contact_of_the_first(db: TestDatabase) -> None:
    _, _, batch = world(db)
    assert retry(db, batch, outcomes=["busy"])["total_contacts"] == 2
    assert retry(db, batch)["total_contacts"] == 1
    with pytest.raises(psycopg.Error, match="no failed contact that can be called again"):
        retry(db, batch)


def test_two_retries_at_once_take_each_contact_once(db: TestDatabase) -> None:
    _, _, batch = world(db)
    ready, outcomes = threading.Barrier(4), []

    def ask() -> None:
        with db.connect() as connection:
            ready.wait()
            try:
                connection.execute("select retry_batch(%s)", [batch])
                outcomes.append("retried")
            except psycopg.Error as error:
                outcomes.append(error.sqlstate or "")

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["PT400", "PT400", "PT400", "retried"]
    assert db.value("select count(*) from campaign_contacts where phone_number like '+1555100000_'") == 6


def test_numbers_not_to_be_called_any_more_are_left_out(db: TestDatabase) -> None:
    agency, _, batch = world(db)
    db.rows("insert into do_not_call (agency_id, phone_number) values (%s, '+15551000002')", agency)
    retried = retry(db, batch)
    assert (retried["total_contacts"], retried["do_not_call"]) == (2, 1)


def test_a_retry_may_wait_for_its_time(db: TestDatabase) -> None:
    _, _, batch = world(db)
    assert retry(db, batch, scheduled_for="2999-01-01T00:00:00Z")["status"] == "scheduled"


def test_a_repeat_gets_the_first_answer(db: TestDatabase) -> None:
    _, _, batch = world(db)
    first = retry(db, batch, idempotency_key="key-1")
    before = db.state()
    assert retry(db, batch, idempotency_key="key-1") == first
    assert db.state() == before


def test_a_batch_in_which_none_failed_is_refused_and_nothing_is_left_behind(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=2, completed=1)
    before = db.state()
    with pytest.raises(psycopg.Error) as refused:
        retry(db, batch)
    assert refused.value.sqlstate == "PT400"
    assert json.loads(refused.value.diag.message_detail or "") == {"code": "no_contacts"}
    assert db.state() == before


def test_the_failed_contacts_of_a_batch_still_being_dialed_may_be_retried(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=2, failed=1)
    db.rows("update campaign_contacts set phone_number = '+15559999999' where status = 'failed'")
    assert retry(db, batch)["total_contacts"] == 1
    assert db.statuses(batch) == {"pending": 2, "failed": 1}


@pytest.mark.parametrize(("role", "sqlstate"), [("agency_member", "PT403"), ("client_admin", "PT403")])
def test_only_owners_and_admins_retry(db: TestDatabase, role: str, sqlstate: str) -> None:
    agency, _, batch = world(db)
    with db.as_user(db.user(agency, role)) as connection, pytest.raises(psycopg.Error) as refused:
        connection.execute("select retry_batch(%s)", [batch])
    assert refused.value.sqlstate == sqlstate
