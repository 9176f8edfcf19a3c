"""The contracts, line by line, over HTTP; over Postgres and over PostgREST alike."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from starlette.testclient import TestClient

from ..support.database import TestDatabase
from ..support.tokens import bearer

CANCEL_PATHS = ["/functions/v1/calls-batch-cancel", "/calls-batch-cancel"]
CANCEL = CANCEL_PATHS[0]
PAUSE, RESUME = "/functions/v1/calls-batch-pause", "/functions/v1/calls-batch-resume"
STOP = "/api/call/stop-calling"


@pytest.fixture
def client(either_client: TestClient) -> TestClient:
    return either_client


def world(db: TestDatabase, **contacts: int) -> tuple[UUID, UUID]:
    """An owner and a batch of theirs, both with the external ids of the stop-calling example."""
    agency = db.agency()
    owner = db.user(agency, external_id="64e5f12345abcdef12345678")
    batch = db.batch(agency, owner, external_id="64e5f12345abcdef98765432")
    db.contacts(batch, **contacts)
    return owner, batch


def unchanged(db: TestDatabase, client: TestClient, path: str, user: UUID, body: Any) -> Any:
    """The answer to a request that must change nothing."""
    before = db.state()
    response = client.post(path, json=body, headers=bearer(user))
    assert db.state() == before
    return response


# calls-batch-cancel


@pytest.mark.parametrize("path", CANCEL_PATHS)
def test_cancel_answers_200_with_the_contracts_body(db: TestDatabase, client: TestClient, path: str) -> None:
    owner, batch = world(db, pending=340, queued=1, scheduled=1, in_progress=2)
    response = client.post(path, json={"batch_id": str(batch)}, headers=bearer(owner))
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json() == {
        "success": True,
        "batch_id": str(batch),
        "status": "cancelled",
        "contacts_skipped": 342,
        "message": "Batch cancelled. In-progress calls will complete but no new calls will be initiated.",
    }
    assert db.statuses(batch) == {"skipped": 342, "in_progress": 2}
    row = db.batch_row(batch)
    assert (row["status"], row["skipped"], row["error_message"]) == ("cancelled", 342, "Cancelled by user")
    assert row["completed_at"] is not None


@pytest.mark.parametrize("body", [{}, {"batch_id": None}, {"batch_id": ""}, {"batch_id": "no-uuid"}, {"batch_id": 7}])
def test_cancel_without_a_batch_id_is_400(db: TestDatabase, client: TestClient, body: dict[str, Any]) -> None:
    owner, _ = world(db, pending=1)
    response = unchanged(db, client, CANCEL, owner, body)
    assert response.status_code == 400
    assert response.json()["success"] is False
    assert "batch_id" in response.json()["error"]


@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_cancel_of_a_batch_that_is_over_is_400(db: TestDatabase, client: TestClient, status: str) -> None:
    owner, batch = world(db, completed=1)
    db.rows("update call_batches set status = %s", status)
    response = unchanged(db, client, CANCEL, owner, {"batch_id": str(batch)})
    assert response.status_code == 400
    assert response.json() == {
        "success": False,
        "error": f"Batch is already {status}",
        "code": f"batch_already_{status}",
    }


def test_cancel_without_a_valid_token_is_401(db: TestDatabase, client: TestClient) -> None:
    owner, batch = world(db, pending=1)
    before = db.state()
    for headers in ({}, {"Authorization": "Bearer nonsense"}, bearer(owner, exp=1)):
        response = client.post(CANCEL, json={"batch_id": str(batch)}, headers=headers)
        assert response.status_code == 401
        assert response.json()["success"] is False
    assert db.state() == before


def test_cancel_by_a_user_of_no_agency_is_403(db: TestDatabase, client: TestClient) -> None:
    _, batch = world(db, pending=1)
    for user in (db.user(None), uuid4()):
        response = unchanged(db, client, CANCEL, user, {"batch_id": str(batch)})
        assert (response.status_code, response.json()["code"]) == (403, "no_agency")


@pytest.mark.parametrize("role", ["agency_member", "client_admin", "client_viewer", "admin"])
def test_cancel_by_another_role_is_403(db: TestDatabase, client: TestClient, role: str) -> None:
    owner, batch = world(db, pending=1)
    db.rows("update users set role = %s", role)
    response = unchanged(db, client, CANCEL, owner, {"batch_id": str(batch)})
    assert (response.status_code, response.json()["code"]) == (403, "role_not_allowed")


def test_cancel_of_no_batch_of_the_agency_is_404(db: TestDatabase, client: TestClient) -> None:
    owner, _ = world(db, pending=1)
    others = db.batch(db.agency("Other"))
    for batch in (others, uuid4()):
        response = unchanged(db, client, CANCEL, owner, {"batch_id": str(batch)})
        assert response.status_code == 404
        assert response.json() == {"success": False, "error": "Batch not found", "code": "batch_not_found"}


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "HEAD"])
@pytest.mark.parametrize("path", [CANCEL, STOP, PAUSE, RESUME])
def test_other_methods_are_405(client: TestClient, method: str, path: str) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, "POST, OPTIONS")


@pytest.mark.own_database
def test_cancel_that_cannot_update_the_batch_is_500(db: TestDatabase, client: TestClient) -> None:
    owner, batch = world(db, pending=1)
    db.rows("alter table call_batches add constraint broken check (status <> 'cancelled')")
    response = unchanged(db, client, CANCEL, owner, {"batch_id": str(batch)})
    assert response.status_code == 500
    assert response.json() == {
        "success": False,
        "error": "Failed to update batch status",
        "code": "internal_error",
    }


def test_cancel_takes_a_reason_for_the_audit_trail(db: TestDatabase, client: TestClient) -> None:
    owner, batch = world(db, pending=1)
    headers = {**bearer(owner), "X-Request-Id": "request-7"}
    client.post(CANCEL, json={"batch_id": str(batch), "reason": "wrong script"}, headers=headers)
    event = db.row("select action, actor_kind, actor_id, reason, request_id from batch_events")
    assert event == {
        "action": "cancel",
        "actor_kind": "user",
        "actor_id": owner,
        "reason": "wrong script",
        "request_id": "request-7",
    }


# stop-calling


def test_stop_answers_200_with_the_contracts_body(db: TestDatabase, client: TestClient) -> None:
    owner, batch = world(db, pending=5, queued=2, in_progress=2)
    body = {"batchId": "64e5f12345abcdef98765432", "userId": "64e5f12345abcdef12345678"}
    response = client.post(STOP, json=body, headers=bearer(owner))
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json() == {
        "message": "",
        "status": True,
        "code": 200,
        "errorMessage": "",
        "data": {"batchId": "64e5f12345abcdef98765432", "status": "stopped"},
    }
    assert db.batch_row(batch)["status"] == "stopped"
    assert db.statuses(batch) == {"pending": 7, "in_progress": 2}


def test_stop_takes_uuids_as_well(db: TestDatabase, client: TestClient) -> None:
    owner, batch = world(db)
    response = client.post(STOP, json={"batchId": str(batch), "userId": str(owner)}, headers=bearer(owner))
    assert response.json()["data"] == {"batchId": str(batch), "status": "stopped"}


def test_stop_skips_the_remaining_contacts_when_asked_to(db: TestDatabase, client: TestClient) -> None:
    owner, batch = world(db, pending=3, in_progress=1)
    body = {"batchId": str(batch), "userId": str(owner), "skipRemaining": True}
    assert client.post(STOP, json=body, headers=bearer(owner)).status_code == 200
    assert db.statuses(batch) == {"skipped": 3, "in_progress": 1}


@pytest.mark.parametrize("missing", ["batchId", "userId"])
@pytest.mark.parametrize("how", ["left out", "null", "empty", "a number"])
def test_stop_without_a_required_parameter_is_400(db: TestDatabase, client: TestClient, missing: str, how: str) -> None:
    owner, batch = world(db, pending=1)
    body: dict[str, Any] = {"batchId": str(batch), "userId": str(owner)}
    body[missing] = {"null": None, "empty": "", "a number": 7}.get(how)
    if how == "left out":
        del body[missing]
    response = unchanged(db, client, STOP, owner, body)
    assert response.status_code == 400
    answer = response.json()
    assert missing in answer.pop("errorMessage")
    assert answer == {"message": "", "status": False, "code": 400, "data": {}}


def test_stop_without_a_valid_token_is_401(db: TestDatabase, client: TestClient) -> None:
    owner, batch = world(db, pending=1)
    before = db.state()
    for headers in ({}, {"Authorization": "Bearer nonsense"}, bearer(owner, exp=1)):
        response = client.post(STOP, json={"batchId": str(batch), "userId": str(owner)}, headers=headers)
        answer = response.json()
        assert (response.status_code, answer["status"], answer["code"]) == (401, False, 401)
    assert db.state() == before


@pytest.mark.parametrize(("unknown", "message"), [("batchId", "Batch not found"), ("userId", "User not found")])
def test_stop_of_an_unknown_batch_or_user_is_404(
    db: TestDatabase, client: TestClient, unknown: str, message: str
) -> None:
    owner, batch = world(db, pending=1)
    body = {"batchId": str(batch), "userId": str(owner), unknown: "64e5f12345abcdef00000000"}
    response = unchanged(db, client, STOP, owner, body)
    assert response.status_code == 404
    assert response.json() == {"message": "", "status": False, "code": 404, "errorMessage": message, "data": {}}


@pytest.mark.own_database
def test_stop_that_fails_is_500(db: TestDatabase, client: TestClient) -> None:
    owner, batch = world(db, pending=1)
    db.rows("alter table call_batches add constraint broken check (status <> 'stopped')")
    response = unchanged(db, client, STOP, owner, {"batchId": str(batch), "userId": str(owner)})
    assert (response.status_code, response.json()["code"]) == (500, 500)
    assert response.json()["errorMessage"] == "Failed to stop calling service or call queue"


# calls-batch-pause and calls-batch-resume


@pytest.mark.parametrize("prefix", ["/functions/v1", ""])
def test_pause_and_resume_answer_200_with_the_contracts_bodies(
    db: TestDatabase, client: TestClient, prefix: str
) -> None:
    owner, batch = world(db, pending=3, queued=2, in_progress=1)
    paused = client.post(f"{prefix}/calls-batch-pause", json={"batch_id": str(batch)}, headers=bearer(owner))
    body = paused.json()
    paused_at = datetime.fromisoformat(body.pop("paused_at"))
    assert (paused.status_code, body) == (
        200,
        {
            "success": True,
            "batch_id": str(batch),
            "status": "paused",
            "message": "Batch paused. In-progress calls will continue until they complete.",
        },
    )
    assert db.batch_row(batch)["paused_at"] == paused_at
    assert db.statuses(batch) == {"pending": 5, "in_progress": 1}

    resumed = client.post(f"{prefix}/calls-batch-resume", json={"batch_id": str(batch)}, headers=bearer(owner))
    assert (resumed.status_code, resumed.json()) == (
        200,
        {
            "success": True,
            "batch_id": str(batch),
            "status": "processing",
            "message": "Batch resumed. The processor will start making calls on the next run.",
        },
    )
    assert db.batch_row(batch)["paused_at"] is None


def test_resume_before_its_time_answers_with_the_time(db: TestDatabase, client: TestClient) -> None:
    owner, batch = world(db, pending=1)
    db.rows("update call_batches set status = 'paused', scheduled_for = '2999-01-16T09:00:00Z'")
    response = client.post(RESUME, json={"batch_id": str(batch)}, headers=bearer(owner))
    assert (response.status_code, response.json()["status"]) == (200, "scheduled")
    assert response.json()["message"] == "Batch scheduled to resume at 2999-01-16T09:00:00Z"


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (PAUSE, ["pending", "paused", "stopped", "completed", "failed", "cancelled"]),
        (RESUME, ["pending", "scheduled", "processing", "completed", "failed", "cancelled"]),
    ],
)
def test_pause_and_resume_from_another_status_are_400(
    db: TestDatabase, client: TestClient, path: str, wrong: list[str]
) -> None:
    owner, batch = world(db, pending=1)
    for status in wrong:
        db.rows("update call_batches set status = %s", status)
        response = unchanged(db, client, path, owner, {"batch_id": str(batch)})
        assert (response.status_code, response.json()["success"]) == (400, False)
        assert status in response.json()["error"]


@pytest.mark.parametrize("path", [PAUSE, RESUME])
@pytest.mark.own_database
def test_pause_and_resume_refuse_as_cancel_does(db: TestDatabase, client: TestClient, path: str) -> None:
    owner, batch = world(db, pending=1)
    db.rows("update call_batches set status = %s", "processing" if path == PAUSE else "paused")
    agency = db.value("select agency_id from users where id = %s", owner)
    member, loner, stranger = db.user(agency, "agency_member"), db.user(None), db.user(db.agency("Other"))
    for user, body, status in [
        (owner, {}, 400),
        (owner, {"batch_id": "no-uuid"}, 400),
        (loner, {"batch_id": str(batch)}, 403),
        (member, {"batch_id": str(batch)}, 403),
        (stranger, {"batch_id": str(batch)}, 404),
        (owner, {"batch_id": str(uuid4())}, 404),
    ]:
        assert unchanged(db, client, path, user, body).status_code == status
    before = db.state()
    assert client.post(path, json={"batch_id": str(batch)}).status_code == 401
    assert db.state() == before
    after = "paused" if path == PAUSE else "processing"
    db.rows(f"alter table call_batches add constraint broken check (status <> '{after}') not valid")
    response = unchanged(db, client, path, owner, {"batch_id": str(batch)})
    assert (response.status_code, response.json()["error"]) == (500, "Failed to update batch status")


# Idempotency-Key, on both


def bodies(owner: UUID, batch: UUID) -> list[tuple[str, dict[str, str]]]:
    return [(STOP, {"batchId": str(batch), "userId": str(owner)}), (CANCEL, {"batch_id": str(batch)})]


def test_a_repeat_with_its_idempotency_key_gets_the_first_answer_again(db: TestDatabase, client: TestClient) -> None:
    owner, batch = world(db, pending=3, queued=1)
    for key, (path, body) in enumerate(bodies(owner, batch)):
        headers = {**bearer(owner), "Idempotency-Key": f"key-{key}"}
        first = client.post(path, json=body, headers=headers)
        assert first.status_code == 200
        again = unchanged_with(db, client, path, body, headers)
        assert (again.status_code, again.json()) == (200, first.json())


def test_an_idempotency_key_with_another_body_is_409(db: TestDatabase, client: TestClient) -> None:
    owner, batch = world(db, pending=3)
    for key, (path, body) in enumerate(bodies(owner, batch)):
        headers = {**bearer(owner), "Idempotency-Key": f"key-{key}"}
        assert client.post(path, json=body, headers=headers).status_code == 200
        assert unchanged_with(db, client, path, {**body, "reason": "another"}, headers).status_code == 409


def unchanged_with(db: TestDatabase, client: TestClient, path: str, body: Any, headers: dict[str, str]) -> Any:
    before = db.state()
    response = client.post(path, json=body, headers=headers)
    assert db.state() == before
    return response


def test_health_says_that_the_database_answers(client: TestClient) -> None:
    response = client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok", "database": "ok"})
