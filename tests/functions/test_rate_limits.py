"""A user's limit, over HTTP: the same for every process."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from functions._shared.settings import Settings
from functions.app import create_app

from ..support.database import TestDatabase
from ..support.tokens import bearer


@pytest.fixture
def client(either_client: TestClient) -> TestClient:
    return either_client


def test_too_many_requests_are_429_with_retry_after(db: TestDatabase, client: TestClient) -> None:
    agency = db.agency()
    batch, headers = db.batch(agency), bearer(db.user(agency))
    db.rows("update private.rate_limits set max_requests = 1")
    asked = {"params": {"batch_id": str(batch)}, "headers": headers}
    assert client.get("/functions/v1/calls-batch-export", **asked).status_code == 200
    response = client.get("/functions/v1/calls-batch-export", **asked)
    seconds = int(response.headers["retry-after"])
    assert 0 < seconds <= 60
    assert (response.status_code, response.json()) == (
        429,
        {
            "success": False,
            "error": "Too many requests; try again later",
            "code": "rate_limited",
            "retry_after": seconds,
        },
    )


def test_start_calling_says_so_in_its_envelope(db: TestDatabase, client: TestClient) -> None:
    agency = db.agency()
    user = db.user(agency)
    batch = db.batch(agency, user)
    db.rows("update private.rate_limits set max_requests = 1")
    asked = {"json": {"batchId": str(batch), "userId": str(user)}, "headers": bearer(user)}
    assert client.post("/api/call/start-calling", **asked).status_code == 200
    response = client.post("/api/call/start-calling", **asked)
    assert response.status_code == response.json()["code"] == 429
    assert response.json()["errorMessage"] == "Too many requests; try again later"
    assert "retry-after" in response.headers


def test_two_processes_share_the_limit_of_a_user(db: TestDatabase, settings: Settings) -> None:
    agency = db.agency()
    asked = {"params": {"batch_id": str(db.batch(agency))}, "headers": bearer(db.user(agency))}
    db.rows("update private.rate_limits set max_requests = 2")
    with TestClient(create_app(settings)) as one, TestClient(create_app(settings)) as other:
        statuses = [
            client.get("/functions/v1/calls-batch-export", **asked).status_code for client in (one, other, one, other)
        ]
    assert statuses == [200, 200, 429, 429]


def test_a_cancel_passes_when_everything_else_is_refused(db: TestDatabase, client: TestClient) -> None:
    agency = db.agency()
    batch, headers = db.batch(agency), bearer(db.user(agency))
    db.rows("update private.rate_limits set max_requests = 1")
    for _ in range(2):
        client.get("/functions/v1/calls-batch-export", params={"batch_id": str(batch)}, headers=headers)
    response = client.post("/functions/v1/calls-batch-cancel", json={"batch_id": str(batch)}, headers=headers)
    assert response.status_code == 200
