"""GET calls-batch-silence, and the wait for silence of cancel, stop and pause."""

from __future__ import annotations

import threading
from typing import Any
from uuid import UUID

import pytest
from starlette.testclient import TestClient

from ..support.database import TestDatabase
from ..support.dialers import wait_for
from ..support.tokens import bearer

PATHS = {
    "cancelled": "/functions/v1/calls-batch-cancel",
    "paused": "/functions/v1/calls-batch-pause",
    "stopped": "/api/call/stop-calling",
}


class Case:
    """A batch with calls that start_call let through, and the request that ends it."""

    def __init__(self, db: TestDatabase, client: TestClient, status: str, within: float = 60) -> None:
        self._client = client
        self.status = status
        agency = db.agency()
        self.owner = db.user(agency)
        self.batch: UUID = db.batch(agency, self.owner, external_id="the batch")
        db.contacts(self.batch, pending=3)
        claimed = db.rows("select call_id, lease from claim_contacts(3, 60, %s)", self.batch)
        self.calls = [call["call_id"] for call in claimed]
        db.rows("select start_call(%s, %s, %s, %s)", self.batch, self.calls, claimed[0]["lease"], within)

    def end(self, wait: float | None = None) -> Any:
        if self.status == "stopped":
            body: dict[str, Any] = {"batchId": "the batch", "userId": str(self.owner)}
            body |= {} if wait is None else {"waitSeconds": wait}
        else:
            body = {"batch_id": str(self.batch)} | ({} if wait is None else {"wait_seconds": wait})
        return self._client.post(PATHS[self.status], json=body, headers=bearer(self.owner))

    def figures(self, response: Any) -> tuple[int | None, int | None]:
        """Calls starting and in progress, as the body tells them."""
        body = response.json()
        if self.status == "stopped":
            return body["data"].get("callsStarting"), body["data"].get("callsInProgress")
        return body.get("calls_starting"), body.get("calls_in_progress")


def told(response: Any) -> tuple[str, str]:
    return response.headers["x-calls-starting"], response.headers["x-calls-in-progress"]


@pytest.mark.parametrize("status", PATHS)
def test_without_a_wait_headers_alone_tell_the_figures(
    db: TestDatabase, either_client: TestClient, status: str
) -> None:
    case = Case(db, either_client, status)
    response = case.end()
    assert response.status_code == 200
    assert told(response) == ("3", "3")
    assert case.figures(response) == (None, None)


@pytest.mark.parametrize("status", PATHS)
@pytest.mark.parametrize("wait", [0, 0.2])
def test_a_wait_that_ends_before_the_silence_tells_what_can_still_start(
    db: TestDatabase, either_client: TestClient, status: str, wait: float
) -> None:
    case = Case(db, either_client, status)
    response = case.end(wait)
    assert response.status_code == 200
    assert told(response) == ("3", "3")
    assert case.figures(response) == (3, 3)
    assert db.batch_row(case.batch)["status"] == status


@pytest.mark.parametrize("status", PATHS)
def test_the_reply_comes_when_no_request_can_leave_any_more(
    db: TestDatabase, either_client: TestClient, status: str
) -> None:
    case = Case(db, either_client, status, within=0.5)
    response = case.end(30)
    assert db.value("select max(place_by) < clock_timestamp() from calls")
    assert told(response) == ("0", "3")
    assert case.figures(response) == (0, 3)


@pytest.mark.parametrize("status", PATHS)
def test_the_reply_comes_when_the_carrier_is_known_to_have_each_call(
    db: TestDatabase, either_client: TestClient, status: str
) -> None:
    case = Case(db, either_client, status)
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(case.end(30)))
    asking.start()
    wait_for(lambda: db.batch_row(case.batch)["status"] == status, "the batch is ended")
    db.confirm_calls(case.batch, case.calls[:2], "c-1")
    db.finish_calls(case.batch, case.calls[2:], "failed")
    asking.join()
    assert told(answers[0]) == ("0", "2")
    assert case.figures(answers[0]) == (0, 2)


def test_a_repeat_with_the_same_key_waits_again(db: TestDatabase, either_client: TestClient) -> None:
    case = Case(db, either_client, "cancelled")
    headers = {**bearer(case.owner), "Idempotency-Key": "once"}
    body = {"batch_id": str(case.batch), "wait_seconds": 0}
    first = either_client.post(PATHS["cancelled"], json=body, headers=headers)
    db.confirm_calls(case.batch, case.calls, "c-1")
    again = either_client.post(PATHS["cancelled"], json=body, headers=headers)
    assert (told(first), told(again)) == (("3", "3"), ("0", "3"))


@pytest.mark.parametrize("status", PATHS)
@pytest.mark.parametrize("wait", [-1, 30.1, "5", [], True])
def test_a_wait_that_is_none_is_refused_and_ends_nothing(
    db: TestDatabase, client: TestClient, status: str, wait: Any
) -> None:
    case = Case(db, client, status)
    assert case.end(wait).status_code == 400
    assert db.batch_row(case.batch)["status"] == "processing"


def test_anybody_of_the_agency_sees_whether_a_batch_is_silent(db: TestDatabase, either_client: TestClient) -> None:
    case = Case(db, either_client, "cancelled")
    path = "/functions/v1/calls-batch-silence"
    asked = {"params": {"batch_id": str(case.batch)}, "headers": bearer(case.owner)}
    live = either_client.get(path, **asked).json()
    assert (live["status"], live["is_silent"], live["calls_starting"]) == ("processing", False, 3)
    case.end()
    ended = either_client.get(path, **asked).json()
    assert (ended["status"], ended["is_silent"], ended["silent_since"]) == ("cancelled", False, None)
    assert ended["silent_by"] is not None
    db.confirm_calls(case.batch, case.calls, "c-1")
    silent = either_client.get(path, **asked).json()
    assert (silent["is_silent"], silent["calls_starting"], silent["calls_in_progress"]) == (True, 0, 3)
    stranger = {**asked, "headers": bearer(db.user(db.agency()))}
    assert either_client.get(path, **stranger).status_code == 404
    assert either_client.get(path, headers=bearer(case.owner)).status_code == 400
