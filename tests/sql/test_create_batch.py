"""create_batch: a batch with its first contacts, or nothing."""

from __future__ import annotations

import json
import threading
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from ..support.database import TestDatabase

NAMES = ("agent_mapping_id", "campaign_id", "from_number")


def contacts(*numbers: int, **more: Any) -> list[dict[str, Any]]:
    return [{"phone_number": f"+1555{number:07d}", **more} for number in numbers]


def create(db: TestDatabase, user: UUID | None, **arguments: Any) -> dict[str, Any]:
    """As a user, or at the console."""
    given = {name: json.dumps(v) if isinstance(v, (dict, list)) and name in ("contacts", "calling_hours") else v
             for name, v in arguments.items()}  # fmt: skip
    query = f"select * from create_batch({', '.join(f'{name} => %({name})s' for name in given)})"
    if user is None:
        (row,) = db.owner.execute(query, given).fetchall()
        return row
    with db.as_user(user) as connection:
        (row,) = connection.execute(query, given).fetchall()
    return dict(row)


def refusal(db: TestDatabase, user: UUID | None, **arguments: Any) -> tuple[str | None, dict[str, Any]]:
    """How it is refused; nothing may have changed."""
    before = db.state()
    with pytest.raises(psycopg.Error) as refused:
        create(db, user, **arguments)
    assert db.state() == before
    return refused.value.sqlstate, json.loads(refused.value.diag.message_detail or "{}")


@pytest.fixture
def calling(db: TestDatabase) -> dict[str, Any]:
    """An owner, and what a batch of the agency needs."""
    agency = db.agency()
    return {"agency": agency, "owner": db.user(agency), **db.calling(agency)}


def given(calling: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**{name: calling[name] for name in NAMES}, "contacts": contacts(1, 2, 3), **more}


def test_a_batch_begins_pending_with_its_contacts(db: TestDatabase, calling: dict[str, Any]) -> None:
    created = create(db, calling["owner"], **given(calling))
    batch = db.batch_row(created["batch_id"])
    assert created == {
        "batch_id": batch["id"],
        "status": "pending",
        "total_contacts": 3,
        "agent_mapping_id": UUID(calling["agent_mapping_id"]),
        "agent_name": "Sales Agent",
        "from_number": "+15551234567",
        "duplicates": 0,
        "do_not_call": 0,
    }
    assert (batch["calls_per_minute"], batch["max_concurrent"], batch["mode"]) == (30, 10, "immediate")
    assert (batch["user_id"], batch["agency_id"]) == (calling["owner"], calling["agency"])
    assert db.statuses(batch["id"]) == {"pending": 3}
    event = db.row("select action, from_status, to_status, contacts from batch_events")
    assert event == {"action": "create", "from_status": None, "to_status": "pending", "contacts": 3}


def test_the_details_of_a_contact_are_told_to_the_agent(db: TestDatabase, calling: dict[str, Any]) -> None:
    known = {
        "first_name": "Ada",
        "last_name": "King",
        "email": "ada@example.com",
        "company": "ACME",
        "title": "Countess",
    }
    some = contacts(1, **known, custom_data={"plan": "gold"}, max_attempts=2) + contacts(2)
    batch = create(db, calling["owner"], **given(calling, contacts=some))["batch_id"]
    db.rows("select process_batches()")
    first, second = db.rows("select * from claim_contacts(2)")
    assert (first["custom_data"], first["from_number"]) == ({**known, "plan": "gold"}, "+15551234567")
    assert first["agent_mapping_id"] == UUID(calling["agent_mapping_id"])
    assert second["custom_data"] == {}
    assert db.value("select array_agg(max_attempts order by id) from campaign_contacts where batch_id = %s", batch) == [
        2,
        3,
    ]


def test_the_first_contact_with_a_number_is_kept_and_duplicates_are_counted(
    db: TestDatabase, calling: dict[str, Any]
) -> None:
    some = contacts(1, first_name="Ada") + contacts(2) + contacts(1, first_name="Bob") + contacts(1)
    created = create(db, calling["owner"], **given(calling, contacts=some))
    assert (created["total_contacts"], created["duplicates"]) == (2, 2)
    assert [row["first_name"] for row in db.rows("select first_name from contact_data")] == ["Ada"]


def test_numbers_not_to_be_called_are_left_out_and_counted(db: TestDatabase, calling: dict[str, Any]) -> None:
    db.rows("insert into do_not_call (agency_id, phone_number) values (%s, '+15550000002')", calling["agency"])
    db.rows("insert into do_not_call (agency_id, phone_number) values (%s, '+15550000003')", db.agency("Other"))
    created = create(db, calling["owner"], **given(calling))
    assert (created["total_contacts"], created["do_not_call"], created["duplicates"]) == (2, 1, 0)


def test_a_batch_of_which_no_contact_is_left_is_not_created(db: TestDatabase, calling: dict[str, Any]) -> None:
    db.rows("insert into do_not_call (agency_id, phone_number) values (%s, '+15550000001')", calling["agency"])
    refused = refusal(db, calling["owner"], **given(calling, contacts=contacts(1, 1)))
    assert refused == ("PT400", {"code": "no_contacts", "do_not_call": 2})


@pytest.mark.parametrize(
    ("contact", "error"),
    [
        (1, "must be an object"),
        ([], "must be an object"),
        ({}, "phone_number is required"),
        ({"phone_number": None}, "phone_number is required"),
        *(({"phone_number": bad}, "phone_number must be in E.164 form, such as +15551234567")
          for bad in (15551234567, "5551234567", "+05551234567", "+1 555 123", "+12345", "+1234567890123456", "")),
        ({"first_name": 1}, "first_name must be a string of at most 500 characters"),
        ({"title": "x" * 501}, "title must be a string of at most 500 characters"),
        ({"timezone": "Mars/Olympus"}, "timezone is not known"),
        ({"timezone": "UTC+3 or so"}, "timezone is not known"),
        ({"timezone": 3}, "timezone is not known"),
        ({"custom_data": "{}"}, "custom_data must be an object"),
        ({"custom_data": ["a"]}, "custom_data must be an object"),
        ({"custom_data": {"a": "x" * 65_536}}, "custom_data must have at most 64 kB"),
        ({"custom_data": json.loads('{"a":' * 33 + "1" + "}" * 33)}, "custom_data must be nested at most 32 deep"),
        *(({"max_attempts": bad}, "max_attempts must be a whole number from 1 to 99") for bad in (0, 1.5, "3", 100)),
        *(({"due_at": bad}, "due_at must be a time in ISO 8601")
          for bad in ("soon", "infinity", "2026-06-31T09:00:00Z", 3)),
    ],
)  # fmt: skip
def test_each_bad_row_is_told_with_its_index_and_reason(
    db: TestDatabase, calling: dict[str, Any], contact: Any, error: str
) -> None:
    bad = {"phone_number": "+15550000009", **contact} if isinstance(contact, dict) and contact else contact
    sqlstate, detail = refusal(db, calling["owner"], **given(calling, contacts=[*contacts(1), bad, *contacts(2)]))
    assert sqlstate == "PT400"
    assert detail == {"code": "contacts_invalid", "error_count": 1, "errors": [{"index": 1, "error": error}]}


@pytest.mark.parametrize("number", ["1e5000", "-1e309"])
def test_a_number_that_a_dialer_could_not_read_is_refused(
    db: TestDatabase, calling: dict[str, Any], number: str
) -> None:
    some = f'[{{"phone_number": "+15550000001", "custom_data": {{"a": [{{"b": {number}}}]}}}}]'
    _, detail = refusal(db, calling["owner"], **given(calling, contacts=some))
    assert detail["errors"] == [{"index": 0, "error": "custom_data must hold no number beyond 1e308"}]


def test_the_first_hundred_bad_rows_are_listed_and_all_are_counted(db: TestDatabase, calling: dict[str, Any]) -> None:
    _, detail = refusal(db, calling["owner"], **given(calling, contacts=[{}] * 250))
    assert detail["error_count"] == 250
    assert [error["index"] for error in detail["errors"]] == list(range(100))


@pytest.mark.parametrize("bad", [[], {}, None, "none", [{"phone_number": f"+1555{i:07d}"} for i in range(10_001)]])
def test_contacts_are_an_array_of_1_to_10000(db: TestDatabase, calling: dict[str, Any], bad: Any) -> None:
    arguments = given(calling, contacts=bad)
    if isinstance(bad, str):
        arguments["contacts"] = json.dumps(bad)
    assert refusal(db, calling["owner"], **arguments) == ("PT400", {"code": "contacts_invalid"})


def test_ten_thousand_contacts_are_created_at_once(db: TestDatabase, calling: dict[str, Any]) -> None:
    created = create(db, calling["owner"], **given(calling, contacts=contacts(*range(10_000))))
    assert created["total_contacts"] == 10_000


def test_a_scheduled_batch_waits_for_its_time(db: TestDatabase, calling: dict[str, Any]) -> None:
    created = create(db, calling["owner"], **given(calling, scheduled_for="2999-01-01T00:00:00Z"))
    assert created["status"] == "scheduled"
    assert db.batch_row(created["batch_id"])["mode"] == "scheduled"
    db.rows("select process_batches()")
    assert db.batch_row(created["batch_id"])["status"] == "scheduled"
    db.rows("update call_batches set scheduled_for = now()")
    db.rows("select process_batches()")
    assert db.batch_row(created["batch_id"])["status"] == "processing"


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ({"calls_per_minute": 0}, "calls_per_minute_invalid"),
        ({"calls_per_minute": 61}, "calls_per_minute_invalid"),
        ({"calls_per_minute": None}, "calls_per_minute_invalid"),
        ({"max_concurrent": 101}, "max_concurrent_invalid"),
        ({"retry_delay_seconds": -1}, "retry_delay_seconds_invalid"),
        ({"max_calls_per_number": 0}, "max_calls_per_number_invalid"),
        ({"mode": "scheduled"}, "mode_invalid"),
        ({"mode": "immediate", "scheduled_for": "2999-01-01T00:00:00Z"}, "mode_invalid"),
        ({"allowed_days": []}, "allowed_days_invalid"),
        ({"allowed_days": [1, 7]}, "allowed_days_invalid"),
        ({"timezone": "Nowhere"}, "timezone_invalid"),
        ({"name": ""}, "name_invalid"),
        ({"external_id": "x" * 501}, "external_id_invalid"),
        ({"calling_hours": {"start": "09:00"}}, "calling_hours_invalid"),
        ({"calling_hours": {"start": "9", "end": "17:00"}}, "calling_hours_invalid"),
        ({"calling_hours": {"start": "09:00", "end": "24:01"}}, "calling_hours_invalid"),
        ({"calling_hours": {"start": "09:00", "end": "09:00"}}, "calling_hours_invalid"),
        ({"calling_hours": []}, "calling_hours_invalid"),
        ({"calling_numbers": []}, "calling_numbers_invalid"),
        ({"calling_numbers": ["+15551234567", "+15550000000"]}, "from_number_not_active"),
        ({"from_number": "+15550000000"}, "from_number_not_active"),
        ({"from_number": None}, "from_number_required"),
        ({"agent_mapping_id": None}, "agent_mapping_id_required"),
        ({"campaign_id": None}, "campaign_id_required"),
    ],
)
def test_a_setting_out_of_range_is_refused(
    db: TestDatabase, calling: dict[str, Any], setting: dict[str, Any], code: str
) -> None:
    assert refusal(db, calling["owner"], **given(calling, **setting)) == ("PT400", {"code": code})


@pytest.mark.parametrize("change", ["status = 'inactive'", "status = 'pending'", "is_active = false"])
def test_a_number_that_is_not_active_is_refused(db: TestDatabase, calling: dict[str, Any], change: str) -> None:
    db.rows(f"update agency_phone_numbers set {change}")
    assert refusal(db, calling["owner"], **given(calling))[1] == {"code": "from_number_not_active"}


@pytest.mark.parametrize("name", ["agent_mapping_id", "campaign_id", "from_number", "user_id"])
def test_a_row_of_another_agency_does_not_exist(db: TestDatabase, calling: dict[str, Any], name: str) -> None:
    other = db.agency("Other")
    theirs = {**db.calling(other), "user_id": str(db.user(other))}
    db.rows("update agency_phone_numbers set phone_number = '+15557654321' where agency_id = %s", other)
    theirs["from_number"] = "+15557654321"
    sqlstate, detail = refusal(db, calling["owner"], **given(calling, **{name: theirs[name]}))
    assert (sqlstate, detail["code"]) in {
        ("PT404", "agent_not_found"),
        ("PT404", "campaign_not_found"),
        ("PT404", "user_not_found"),
        ("PT400", "from_number_not_active"),
    }


@pytest.mark.parametrize(
    ("role", "sqlstate"),
    [("agency_admin", None), ("agency_member", "PT403"), ("client_admin", "PT403"), ("admin", "PT403")],
)
def test_owners_and_admins_create_batches_and_others_do_not(
    db: TestDatabase, calling: dict[str, Any], role: str, sqlstate: str | None
) -> None:
    user = db.user(calling["agency"], role)
    if sqlstate is None:
        assert create(db, user, **given(calling))["total_contacts"] == 3
    else:
        assert refusal(db, user, **given(calling))[0] == sqlstate
    assert refusal(db, db.user(None), **given(calling)) == ("PT403", {"code": "no_agency"})


def test_an_admin_at_the_console_creates_for_the_agents_agency(db: TestDatabase, calling: dict[str, Any]) -> None:
    created = create(db, None, **given(calling, user_id=calling["owner"]))
    row = db.batch_row(created["batch_id"])
    assert (row["agency_id"], row["user_id"]) == (calling["agency"], calling["owner"])
    assert refusal(db, None, **given(calling, agent_mapping_id=str(uuid4()))) == ("PT404", {"code": "agent_not_found"})


def test_an_external_id_names_one_batch_of_the_agency(db: TestDatabase, calling: dict[str, Any]) -> None:
    create(db, calling["owner"], **given(calling, external_id="spring", name="Spring offer"))
    refused = refusal(db, calling["owner"], **given(calling, external_id="spring"))
    assert refused == ("PT409", {"code": "batch_id_taken"})


def test_a_repeat_gets_the_first_answer_and_another_request_is_refused(
    db: TestDatabase, calling: dict[str, Any]
) -> None:
    first = create(db, calling["owner"], **given(calling, idempotency_key="key-1"))
    before = db.state()
    assert create(db, calling["owner"], **given(calling, idempotency_key="key-1")) == first
    assert db.state() == before
    refused = refusal(db, calling["owner"], **given(calling, contacts=contacts(9), idempotency_key="key-1"))
    assert refused == ("PT409", {"code": "idempotency_key_reused"})


def test_concurrent_equal_requests_create_once_and_both_get_the_answer(
    db: TestDatabase, calling: dict[str, Any]
) -> None:
    answers: list[dict[str, Any]] = []
    ready = threading.Barrier(4)

    def ask() -> None:
        ready.wait()
        answers.append(create(db, calling["owner"], **given(calling, idempotency_key="key-1")))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert all(answer == answers[0] for answer in answers)
    assert db.value("select count(*) from call_batches") == 1
    assert db.value("select count(*) from campaign_contacts") == 3
