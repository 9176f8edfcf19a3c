"""GET /api/call/batches/{userId}: where the caller of stop-calling sees that the batch is stopped."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID, uuid4

import pytest
from starlette.testclient import TestClient

from ..support.database import TestDatabase
from ..support.tokens import bearer

STOP = "/api/call/stop-calling"


@pytest.fixture
def client(either_client: TestClient) -> TestClient:
    return either_client


def get(client: TestClient, caller: UUID, user: UUID | str, **query: Any) -> Any:
    return client.get(f"/api/call/batches/{user}", params=query, headers=bearer(caller))


def test_a_stopped_batch_shows_as_stopped(db: TestDatabase, client: TestClient) -> None:
    agency = db.agency()
    owner = db.user(agency, external_id="64e5f12345abcdef12345678")
    batch = db.batch(agency, owner, external_id="64e5f12345abcdef98765432", name="Spring offer")
    db.contacts(batch, pending=30, in_progress=5, completed=100, failed=15)
    (before,) = get(client, owner, owner).json()["data"]["batches"]
    assert before["queue_status"] == "active"

    body = {"batchId": "64e5f12345abcdef98765432", "userId": "64e5f12345abcdef12345678"}
    assert client.post(STOP, json=body, headers=bearer(owner)).status_code == 200

    response = get(client, owner, "64e5f12345abcdef12345678")
    assert response.status_code == 200
    answer = response.json()
    (shown,) = answer["data"].pop("batches")
    times = [shown.pop("createdAt"), shown.pop("updatedAt")]
    assert shown == {
        "_id": "64e5f12345abcdef98765432",
        "batchName": "Spring offer",
        "totalCalls": 150,
        "callsPicked": 120,
        "callsCompleted": 100,
        "queue_status": "stopped",
    }
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time) for time in times)
    assert times[0] <= times[1]
    assert answer == {
        "message": "Batches fetched successfully",
        "status": True,
        "code": 200,
        "errorMessage": "",
        "data": {"pagination": {"total": 1, "page": 1, "limit": 10, "totalPages": 1}},
    }


def test_batches_come_newest_first_in_pages(db: TestDatabase, client: TestClient) -> None:
    agency = db.agency()
    owner = db.user(agency)
    for day in range(1, 6):
        db.batch(agency, owner, name=f"day {day}", created_at=f"2026-01-0{day}T12:00:00Z")
    pages = [get(client, owner, owner, page=page, limit=2).json()["data"] for page in (1, 2, 3, 4)]
    assert [[batch["batchName"] for batch in page["batches"]] for page in pages] == [
        ["day 5", "day 4"],
        ["day 3", "day 2"],
        ["day 1"],
        [],
    ]
    assert pages[1]["pagination"] == {"total": 5, "page": 2, "limit": 2, "totalPages": 3}
    assert pages[0]["batches"][0]["createdAt"] == "2026-01-05T12:00:00.000Z"


@pytest.mark.parametrize(
    ("search", "found"),
    [("spring", ["Spring offer"]), ("OFFER", ["Spring offer", "Autumn offer"]), ("active", ["Autumn offer"]),
     ("stopped", ["Spring offer"]), ("%", []), ("winter", [])],
)  # fmt: skip
def test_search_looks_in_names_and_for_queue_statuses(
    db: TestDatabase, client: TestClient, search: str, found: list[str]
) -> None:
    agency = db.agency()
    owner = db.user(agency)
    db.batch(agency, owner, name="Autumn offer", created_at="2026-01-01T00:00:00Z")
    db.batch(agency, owner, name="Spring offer", status="stopped", created_at="2026-01-02T00:00:00Z")
    db.batch(agency, owner, status="paused", created_at="2026-01-03T00:00:00Z")
    response = get(client, owner, owner, search=search)
    if found:
        assert [batch["batchName"] for batch in response.json()["data"]["batches"]] == found
    else:
        assert (response.status_code, response.json()["errorMessage"]) == (404, "No batches found")


def test_a_user_sees_the_own_batches_and_an_admin_those_of_the_agency(db: TestDatabase, client: TestClient) -> None:
    agency, other = db.agency(), db.agency("Other")
    admin, member = db.user(agency, "agency_admin"), db.user(agency, "agency_member")
    stranger = db.user(other)
    for user, place in ((admin, agency), (member, agency), (stranger, other)):
        db.batch(place, user)
    assert get(client, member, member).status_code == 200
    assert get(client, admin, member).status_code == 200
    assert get(client, member, admin).status_code == 403
    assert get(client, member, uuid4()).status_code == 403
    for caller, user in ((admin, stranger), (admin, uuid4()), (stranger, member)):
        response = get(client, caller, user)
        assert (response.status_code, response.json()["errorMessage"]) == (404, "User not found")
    assert get(client, db.user(None), member).status_code == 403


@pytest.mark.parametrize(
    "query",
    ["page=0", "page=-1", "page=x", "page=1.5", "limit=0", "limit=101", f"page={10**30}", "search=a%00b"],
)
def test_a_bad_query_is_400(db: TestDatabase, client: TestClient, query: str) -> None:
    owner = db.user(db.agency())
    response = client.get(f"/api/call/batches/{owner}?{query}", headers=bearer(owner))
    assert (response.status_code, response.json()["code"]) == (400, 400)


@pytest.mark.parametrize("path", ["%00", "x" * 501])
def test_a_user_id_that_is_none_is_400(db: TestDatabase, client: TestClient, path: str) -> None:
    owner = db.user(db.agency())
    assert client.get(f"/api/call/batches/{path}", headers=bearer(owner)).status_code == 400


def test_without_a_token_it_is_401_and_with_another_method_405(db: TestDatabase, client: TestClient) -> None:
    owner = db.user(db.agency())
    assert client.get(f"/api/call/batches/{owner}").status_code == 401
    response = client.post(f"/api/call/batches/{owner}")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


def test_an_admin_at_the_console_reads_any_users_batches(db: TestDatabase) -> None:
    agency = db.agency()
    owner = db.user(agency, external_id="the-owner")
    db.batch(agency, owner)
    assert db.value("select list_user_batches('the-owner') -> 'pagination' ->> 'total'") == "1"
