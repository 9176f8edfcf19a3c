"""calls-batch-create, -add-contacts, -retry and start-calling over HTTP; over Postgres and over PostgREST alike."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from starlette.testclient import TestClient

from ..support.database import TestDatabase
from ..support.tokens import bearer

CREATE, ADD, RETRY = (f"/functions/v1/calls-batch-{name}" for name in ("create", "add-contacts", "retry"))
START = "/api/call/start-calling"


@pytest.fixture
def client(either_client: TestClient) -> TestClient:
    return either_client


def contacts(*numbers: int, **more: Any) -> list[dict[str, Any]]:
    return [{"phone_number": f"+1555{number:07d}", **more} for number in numbers]


@pytest.fixture
def owner(db: TestDatabase) -> UUID:
    return db.user(db.agency(), external_id="64e5f12345abcdef12345678")


@pytest.fixture
def body(db: TestDatabase, owner: UUID) -> dict[str, Any]:
    """The body that creates a batch of three contacts."""
    agency = db.value("select agency_id from users where id = %s", owner)
    return {**db.calling(agency), "contacts": contacts(1, 2, 3)}


def post(client: TestClient, path: str, user: UUID, body: Any, **headers: str) -> Any:
    return client.post(path, json=body, headers={**bearer(user), **headers})


def refused(db: TestDatabase, client: TestClient, path: str, user: UUID, body: Any, **headers: str) -> Any:
    """The answer to a request that must change nothing."""
    before = db.state()
    response = post(client, path, user, body, **headers)
    assert db.state() == before
    return response


@pytest.mark.parametrize("path", [CREATE, "/calls-batch-create"])
def test_create_answers_201_with_the_contracts_body(
    db: TestDatabase, client: TestClient, owner: UUID, body: dict[str, Any], path: str
) -> None:
    some = contacts(1, first_name="Ada", timezone="EST", custom_data={"a": [1, {"b": "ü"}]}) + contacts(1, 2)
    response = post(client, path, owner, {**body, "contacts": some, "calls_per_minute": 7, "max_concurrent": 3})
    assert response.status_code == 201
    batch = db.row("select * from call_batches")
    assert response.json() == {
        "batch_id": str(batch["id"]),
        "status": "pending",
        "total_contacts": 2,
        "agent_mapping_id": body["agent_mapping_id"],
        "agent_name": "Sales Agent",
        "from_number": "+15551234567",
        "duplicates": 1,
        "do_not_call": 0,
    }
    assert (batch["calls_per_minute"], batch["max_concurrent"]) == (7, 3)
    assert db.row("select first_name, custom_data from contact_data") == {
        "first_name": "Ada",
        "custom_data": {"a": [1, {"b": "ü"}]},
    }


def test_create_takes_every_setting(db: TestDatabase, client: TestClient, owner: UUID, body: dict[str, Any]) -> None:
    settings = {
        "scheduled_for": "2999-01-01T10:00:00+02:00",
        "mode": "scheduled",
        "name": "Spring offer",
        "external_id": "spring",
        "user_id": str(owner),
        "calling_numbers": ["+15551234567"],
        "retry_delay_seconds": 30,
        "retry_outcomes": ["busy", "no_answer"],
        "calling_hours": {"start": "09:00", "end": "17:30"},
        "allowed_days": [1, 2, 3],
        "timezone": "America/New_York",
        "max_calls_per_number": 2,
    }
    assert post(client, CREATE, owner, {**body, **settings}).json()["status"] == "scheduled"
    row = db.row("select to_jsonb(b) as b from call_batches b")["b"]
    assert {name: row[name] for name in settings if name in row and name != "scheduled_for"} == {
        name: settings[name] for name in settings if name not in ("calling_hours", "scheduled_for")
    }
    assert (row["calling_start"], row["calling_end"]) == ("09:00:00", "17:30:00")
    assert db.value("select scheduled_for = '2999-01-01T08:00:00Z' from call_batches") is True


def test_create_tells_bad_rows_by_index(
    db: TestDatabase, client: TestClient, owner: UUID, body: dict[str, Any]
) -> None:
    response = refused(db, client, CREATE, owner, {**body, "contacts": [*contacts(1), {"phone_number": "911"}, 7]})
    assert response.status_code == 400
    assert response.json() == {
        "success": False,
        "error": "2 of 3 contacts are invalid",
        "code": "contacts_invalid",
        "error_count": 2,
        "errors": [
            {"index": 1, "error": "phone_number must be in E.164 form, such as +15551234567"},
            {"index": 2, "error": "must be an object"},
        ],
    }


@pytest.mark.parametrize("missing", ["agent_mapping_id", "from_number", "campaign_id", "contacts"])
def test_create_without_a_required_field_is_400_and_names_it(
    db: TestDatabase, client: TestClient, owner: UUID, body: dict[str, Any], missing: str
) -> None:
    response = refused(db, client, CREATE, owner, {name: v for name, v in body.items() if name != missing})
    assert (response.status_code, response.json()["error"]) == (400, f"{missing} is required")


@pytest.mark.parametrize(
    ("field", "value"),
    [("agent_mapping_id", "none"), ("campaign_id", 7), ("from_number", 15551234567), ("from_number", "+15550000000"),
     ("calls_per_minute", 61), ("calls_per_minute", "30"), ("max_concurrent", 0), ("mode", "now"),
     ("scheduled_for", "soon"), ("scheduled_for", "2999-01-01T10:00:00"), ("contacts", []), ("contacts", {}),
     ("contacts", None), ("calling_hours", {"start": "late"}), ("allowed_days", [8]), ("timezone", "Mars"),
     ("contacts", contacts(*range(10_001)))],
)  # fmt: skip
def test_create_with_a_bad_field_is_400(
    db: TestDatabase, client: TestClient, owner: UUID, body: dict[str, Any], field: str, value: Any
) -> None:
    assert refused(db, client, CREATE, owner, {**body, field: value}).status_code == 400


@pytest.mark.parametrize("bad", ['"\\u0000"', '"\\ud800"', "1e1000000", "[" * 50_000 + "]" * 50_000])
@pytest.mark.parametrize("path", [CREATE, ADD, START])
def test_contacts_that_postgres_cannot_hold_are_400(
    db: TestDatabase, client: TestClient, owner: UUID, body: dict[str, Any], path: str, bad: str
) -> None:
    batch = db.batch(db.value("select agency_id from users where id = %s", owner), owner)
    ids = {
        CREATE: ", ".join(f'"{name}": "{body[name]}"' for name in ("agent_mapping_id", "campaign_id", "from_number")),
        ADD: f'"batch_id": "{batch}"',
        START: f'"batchId": "{batch}", "userId": "{owner}"',
    }[path]
    field, number = ("callData", "phoneNumber") if path == START else ("contacts", "phone_number")
    content = f'{{{ids}, "{field}": [{{"{number}": "+15550000001", "custom_data": {{"a": {bad}}}}}]}}'
    before = db.state()
    response = client.post(path, content=content, headers=bearer(owner))
    assert db.state() == before
    assert response.status_code == 400


@pytest.mark.parametrize("name", ["\x00", "start\x00"])
def test_a_nul_in_the_name_of_a_setting_is_400(
    db: TestDatabase, client: TestClient, owner: UUID, body: dict[str, Any], name: str
) -> None:
    hours = {"start": "09:00", "end": "17:00", name: "x"}
    answer = refused(db, client, CREATE, owner, {**body, "calling_hours": hours})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_body")


def test_create_refuses_others_as_cancel_does(db: TestDatabase, client: TestClient, body: dict[str, Any]) -> None:
    agency = db.value("select agency_id from users limit 1")
    stranger = db.user(db.agency("Other"))
    before = db.state()
    assert client.post(CREATE, json=body).status_code == 401
    assert client.get(CREATE).status_code == 405
    assert db.state() == before
    assert refused(db, client, CREATE, stranger, body).status_code == 404
    for user in (db.user(agency, "agency_member"), db.user(None)):
        assert refused(db, client, CREATE, user, body).status_code == 403


def test_a_body_of_ten_thousand_wide_contacts_is_taken_and_a_larger_one_is_413(
    db: TestDatabase, client: TestClient, owner: UUID, body: dict[str, Any]
) -> None:
    wide = contacts(*range(10_000), custom_data={"note": "x" * 300})
    assert post(client, CREATE, owner, {**body, "contacts": wide}).status_code == 201
    wider = contacts(*range(10_000), custom_data={"note": "x" * 1_700})
    assert refused(db, client, CREATE, owner, {**body, "contacts": wider}).status_code == 413


def test_a_repeat_of_create_gets_the_first_answer(
    db: TestDatabase, client: TestClient, owner: UUID, body: dict[str, Any]
) -> None:
    key = {"Idempotency-Key": "key-1"}
    first = post(client, CREATE, owner, body, **key)
    again = refused(db, client, CREATE, owner, body, **key)
    assert (again.status_code, again.json()) == (201, first.json())
    assert refused(db, client, CREATE, owner, {**body, "name": "other"}, **key).status_code == 409


@pytest.mark.own_database
def test_create_that_fails_is_500(db: TestDatabase, client: TestClient, owner: UUID, body: dict[str, Any]) -> None:
    db.rows("alter table campaign_contacts add constraint broken check (false) not valid")
    response = refused(db, client, CREATE, owner, body)
    assert (response.status_code, response.json()["error"]) == (500, "Failed to create batch")


# calls-batch-add-contacts


def test_add_contacts_answers_200_with_what_became_of_them(
    db: TestDatabase, client: TestClient, owner: UUID, body: dict[str, Any]
) -> None:
    batch = post(client, CREATE, owner, body).json()["batch_id"]
    db.rows("insert into do_not_call select agency_id, '+15550000005' from call_batches")
    response = post(client, ADD, owner, {"batch_id": batch, "contacts": contacts(3, 4, 5)})
    assert (response.status_code, response.json()) == (
        200,
        {"success": True, "batch_id": batch, "added": 1, "duplicates": 1, "do_not_call": 1, "total_contacts": 4},
    )


def test_add_contacts_refuses_what_it_must(
    db: TestDatabase, client: TestClient, owner: UUID, body: dict[str, Any]
) -> None:
    batch = post(client, CREATE, owner, body).json()["batch_id"]
    agency = db.value("select agency_id from users where id = %s", owner)
    more = {"batch_id": batch, "contacts": contacts(9)}
    assert refused(db, client, ADD, db.user(agency, "agency_member"), more).status_code == 403
    assert refused(db, client, ADD, db.user(db.agency("Other")), more).status_code == 404
    assert refused(db, client, ADD, owner, {**more, "batch_id": str(uuid4())}).status_code == 404
    assert refused(db, client, ADD, owner, {**more, "contacts": [{}]}).status_code == 400
    assert refused(db, client, ADD, owner, {"batch_id": batch}).json()["error"] == "contacts is required"
    db.rows("update call_batches set status = 'cancelled'")
    assert refused(db, client, ADD, owner, more).json()["code"] == "batch_already_cancelled"


# calls-batch-retry


def test_retry_answers_201_with_the_new_batch(
    db: TestDatabase, client: TestClient, owner: UUID, body: dict[str, Any]
) -> None:
    batch = post(client, CREATE, owner, body).json()["batch_id"]
    db.rows("update campaign_contacts set status = 'failed', outcome = 'busy' where phone_number <> '+15550000001'")
    db.rows("update call_batches set failed = 2")
    response = post(client, RETRY, owner, {"batch_id": batch, "outcomes": ["busy"], "reason": "again"})
    new = db.row("select * from call_batches where retry_of is not null")
    assert (response.status_code, response.json()) == (
        201,
        {
            "batch_id": str(new["id"]),
            "status": "pending",
            "total_contacts": 2,
            "retry_of": batch,
            "do_not_call": 0,
        },
    )
    again = refused(db, client, RETRY, owner, {"batch_id": batch})
    assert (again.status_code, again.json()["code"]) == (400, "no_contacts")
    assert refused(db, client, RETRY, db.user(db.agency("Other")), {"batch_id": batch}).status_code == 404


# start-calling


@pytest.mark.parametrize("status", ["pending", "stopped", "paused", "processing"])
def test_start_calling_answers_200_with_the_contracts_body(
    db: TestDatabase, client: TestClient, owner: UUID, status: str
) -> None:
    agency = db.value("select agency_id from users where id = %s", owner)
    batch = db.batch(agency, owner, external_id="6806382f98da85ec32fac955", status=status)
    db.contacts(batch, pending=3)
    ids = {"batchId": "6806382f98da85ec32fac955", "userId": "64e5f12345abcdef12345678"}
    response = post(client, START, owner, {**ids, "uuid": "whatever"})
    assert (response.status_code, response.json()) == (
        200,
        {
            "message": "",
            "status": True,
            "code": 200,
            "errorMessage": "",
            "data": {"batchId": "6806382f98da85ec32fac955", "status": "started"},
        },
    )
    assert db.batch_row(batch)["status"] == "processing"


def test_start_calling_calls_the_call_data_instead_of_what_is_stored(
    db: TestDatabase, client: TestClient, owner: UUID
) -> None:
    agency = db.value("select agency_id from users where id = %s", owner)
    number = db.calling(agency)["from_number"]
    batch = db.batch(agency, owner, status="stopped")
    db.contacts(batch, pending=3)
    ids = {"batchId": str(batch), "userId": str(owner)}
    data = [{"phoneNumber": "+15559000001", "name": "Ada"}]
    response = post(client, START, owner, {**ids, "callData": data, "callingNumbers": [number]})
    assert (response.status_code, response.json()["errorMessage"]) == (200, "")
    assert db.statuses(batch) == {"skipped": 3, "pending": 1}
    bad = refused(db, client, START, owner, {**ids, "callData": [*data, {"phoneNumber": "none"}]})
    assert bad.status_code == 400
    assert bad.json()["errorMessage"] == "1 of 2 contacts are invalid"
    assert bad.json()["data"]["errors"][0]["index"] == 1


@pytest.mark.parametrize("missing", ["batchId", "userId"])
def test_start_calling_without_a_required_parameter_is_400(
    db: TestDatabase, client: TestClient, owner: UUID, missing: str
) -> None:
    body = {"batchId": "a", "userId": "b"}
    del body[missing]
    response = refused(db, client, START, owner, body)
    assert (response.status_code, response.json()["errorMessage"]) == (400, f"{missing} is required")


def test_start_calling_of_an_unknown_batch_or_user_is_404(db: TestDatabase, client: TestClient, owner: UUID) -> None:
    batch = db.batch(db.value("select agency_id from users where id = %s", owner), owner, status="stopped")
    for ids in ({"batchId": "none", "userId": str(owner)}, {"batchId": str(batch), "userId": "none"}):
        assert refused(db, client, START, owner, ids).status_code == 404


@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_start_calling_of_a_batch_that_is_over_is_400(
    db: TestDatabase, client: TestClient, owner: UUID, status: str
) -> None:
    batch = db.batch(db.value("select agency_id from users where id = %s", owner), owner, status=status)
    response = refused(db, client, START, owner, {"batchId": str(batch), "userId": str(owner)})
    assert (response.status_code, response.json()["errorMessage"]) == (400, f"Batch is already {status}")


@pytest.mark.own_database
def test_start_calling_without_a_token_is_401_and_that_fails_is_500(
    db: TestDatabase, client: TestClient, owner: UUID
) -> None:
    batch = db.batch(db.value("select agency_id from users where id = %s", owner), owner, status="stopped")
    ids = {"batchId": str(batch), "userId": str(owner)}
    assert client.post(START, json=ids).status_code == 401
    db.rows("alter table call_batches add constraint broken check (status <> 'processing') not valid")
    response = refused(db, client, START, owner, ids)
    assert (response.status_code, response.json()["errorMessage"]) == (500, "Failed to start calling service")
