"""How often a user may call what costs much; and that no limit stands before what ends dialing."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest

from ..support.database import TestDatabase

CONTACT = json.dumps([{"phone_number": "+15557654321"}])
LIMITED = {
    "create_batch": "create_batch(agent_mapping_id => %(agent_mapping_id)s, campaign_id => %(campaign_id)s,"
    " from_number => %(from_number)s, contacts => %(contact)s)",
    "add_contacts": "add_contacts(%(batch)s, %(contact)s)",
    "begin_import": "begin_import(%(batch)s, %(hash)s)",
    "retry_batch": "retry_batch(%(failed)s, outcomes => %(outcomes)s)",
    "start_batch": "start_batch(%(batch)s::text, %(user)s::text)",
    "export_contacts": "export_contacts(%(batch)s)",
}
ENDING = ["cancel_batch(%(batch)s)", "stop_batch(%(batch)s::text, %(user)s::text)", "pause_batch(%(batch)s)"]


def world(db: TestDatabase) -> tuple[UUID, dict[str, Any]]:
    agency = db.agency()
    user = db.user(agency)
    failed = db.batch(agency)
    db.contacts(failed, failed=5)
    return user, {
        **db.calling(agency),
        "user": user,
        "batch": db.batch(agency, user),
        "failed": failed,
        "outcomes": None,
        "contact": CONTACT,
        "hash": "0" * 64,
    }


def ask(db: TestDatabase, user: UUID, call: str, values: dict[str, Any]) -> None:
    with db.as_user(user) as connection:
        connection.execute(f"select {call}", values)


def limit(db: TestDatabase, requests: int, period: str = "1 minute") -> None:
    db.rows("update private.rate_limits set max_requests = %s, period = %s", requests, period)


def refused(db: TestDatabase, user: UUID, call: str, values: dict[str, Any]) -> dict[str, Any]:
    before = db.state()
    with pytest.raises(psycopg.Error) as error:
        ask(db, user, call, values)
    assert error.value.sqlstate == "PT429"
    assert db.state() == before
    return dict(json.loads(error.value.diag.message_detail or ""))


def test_every_limited_procedure_has_a_limit(db: TestDatabase) -> None:
    assert {row["procedure"] for row in db.rows("select procedure from private.rate_limits")} == set(LIMITED)


@pytest.mark.parametrize("procedure", LIMITED)
def test_one_request_too_many_is_refused_and_told_when_the_next_one_passes(db: TestDatabase, procedure: str) -> None:
    user, values = world(db)
    limit(db, 1)
    ask(db, user, LIMITED[procedure], values)
    details = refused(db, user, LIMITED[procedure], values)
    assert details["code"] == "rate_limited"
    assert 0 < details["retry_after"] <= 60


def test_each_user_and_each_procedure_has_a_limit_of_its_own(db: TestDatabase) -> None:
    user, values = world(db)
    limit(db, 1)
    ask(db, user, LIMITED["add_contacts"], values)
    ask(db, user, LIMITED["export_contacts"], values)
    colleague = db.user(db.value("select agency_id from users where id = %s", user))
    ask(db, colleague, LIMITED["add_contacts"], values)
    refused(db, user, LIMITED["add_contacts"], values)


def test_it_passes_again_when_the_period_is_over_and_what_no_longer_counts_is_deleted(db: TestDatabase) -> None:
    user, values = world(db)
    limit(db, 2)
    for _ in range(2):
        ask(db, user, LIMITED["export_contacts"], values)
    refused(db, user, LIMITED["export_contacts"], values)
    db.rows("update private.user_requests set at = at - interval '1 minute'")
    ask(db, user, LIMITED["export_contacts"], values)
    assert db.value("select count(*) from private.user_requests") == 1


@pytest.mark.parametrize("call", ENDING)
def test_procedures_that_end_dialing_have_no_limit(db: TestDatabase, call: str) -> None:
    user, values = world(db)
    limit(db, 1)
    for procedure in LIMITED:
        ask(db, user, LIMITED[procedure], values)
    ask(db, user, call, values)
    assert db.value("select status from call_batches where id = %s", values["batch"]) != "processing"


def test_the_further_pages_of_an_export_do_not_count(db: TestDatabase) -> None:
    user, values = world(db)
    db.contacts(values["batch"], pending=4)
    limit(db, 1)
    after = None
    with db.as_user(user) as connection:
        for _ in range(3):
            page = "select export_contacts(%s, %s, 1) as page"
            (row,) = connection.execute(page, [values["batch"], after]).fetchall()
            after = row["page"]["next_cursor"]
    assert after is not None


def test_a_repeat_of_a_request_does_not_count(db: TestDatabase) -> None:
    user, values = world(db)
    limit(db, 1)
    for _ in range(3):
        ask(db, user, "add_contacts(%(batch)s, %(contact)s, idempotency_key => 'key-1')", values)


def test_services_and_consoles_have_no_limit(db: TestDatabase) -> None:
    _, values = world(db)
    limit(db, 1)
    for _ in range(2):
        db.owner.execute(f"select {LIMITED['add_contacts']}", values)
        with db.as_service() as connection:
            connection.execute(f"select {LIMITED['add_contacts']}", values)
    assert db.rows("select from private.user_requests") == []


def test_a_procedure_without_a_row_has_no_limit(db: TestDatabase) -> None:
    user, values = world(db)
    db.rows("delete from private.rate_limits where procedure = 'add_contacts'")
    for _ in range(2):
        ask(db, user, LIMITED["add_contacts"], values)
    assert db.rows("select from private.user_requests") == []


def test_an_admin_of_the_console_changes_a_limit_and_nobody_else(db: TestDatabase) -> None:
    user, _ = world(db)
    role = f"admin_of_{db.value('select current_database()')}"
    db.rows(f"create role {role} in role lastcall_admin")
    change = "update private.rate_limits set max_requests = 7"
    try:
        with db.connect() as connection:
            connection.execute(f"set role {role}".encode())
            connection.execute(change)
    finally:
        db.rows(f"drop role {role}")
    for acting in (db.as_user(user), db.as_service()):
        with acting as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(change)


def test_requests_at_the_same_time_do_not_wait_for_each_other(db: TestDatabase) -> None:
    """Two batches, since one batch's lock makes them wait whatever the limit does."""
    user, values = world(db)
    limit(db, 2)
    ask(db, user, LIMITED["add_contacts"], values)
    db.rows("update private.user_requests set at = at - interval '1 minute'")
    with db.as_user(user) as one, db.as_user(user) as other:
        one.execute("begin")
        one.execute(f"select {LIMITED['add_contacts']}", values)
        other.execute("set lock_timeout = '60s'")
        other.execute(f"select {LIMITED['add_contacts']}", {**values, "batch": values["failed"]})
        one.execute("commit")
    assert db.value("select count(*) from private.user_requests") == 2
