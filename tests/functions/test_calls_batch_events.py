"""GET calls-batch-events: what was done to a batch, by whom and why."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from starlette.testclient import TestClient

from ..support.database import TestDatabase
from ..support.tokens import bearer

PATH = "/functions/v1/calls-batch-events"


def get(client: TestClient, caller: UUID, batch: UUID, **query: Any) -> Any:
    return client.get(PATH, params={"batch_id": str(batch), **query}, headers=bearer(caller))


def test_the_audit_trail_comes_oldest_first_without_idempotency_keys(
    db: TestDatabase, either_client: TestClient
) -> None:
    agency = db.agency()
    owner, viewer = db.user(agency), db.user(agency, "client_viewer")
    batch = db.batch(agency)
    db.contacts(batch, pending=3)
    headers = {**bearer(owner), "Idempotency-Key": "a-secret-key", "X-Request-Id": "request-1"}
    body = {"batch_id": str(batch), "reason": "lunch"}
    assert either_client.post("/functions/v1/calls-batch-pause", json=body, headers=headers).status_code == 200
    db.rows("select cancel_batch(%s)", batch)
    response = get(either_client, viewer, batch)
    assert response.status_code == 200
    assert "a-secret-key" not in response.text
    answer = response.json()
    rows = db.rows("select id::text, private.iso_timestamp(created_at) as created_at from batch_events order by id")
    assert answer["events"][0] == {
        **rows[0], "action": "pause", "actor_kind": "user", "actor_id": str(owner), "actor_role": "authenticated",
        "on_behalf_of": None, "from_status": "processing", "to_status": "paused", "contacts": 0, "reason": "lunch",
        "request_id": "request-1",
    }  # fmt: skip
    cancelled = answer["events"][1]
    assert [cancelled[name] for name in ("action", "actor_kind", "contacts", "to_status")] == [
        "cancel", "console", 3, "cancelled",
    ]  # fmt: skip
    assert answer["pagination"] == {"limit": 50, "has_more": False, "next_cursor": None}


def test_pages_by_cursor_hold_every_event_once(db: TestDatabase, either_client: TestClient) -> None:
    agency = db.agency()
    user, batch, other = db.user(agency), db.batch(agency), db.batch(agency)
    for _ in range(3):
        for each in (batch, other):
            db.rows("select pause_batch(%s)", each)
            db.rows("select resume_batch(%s)", each)
    found, after = [], None
    while True:
        page = get(either_client, user, batch, limit=2, **({"after": after} if after else {})).json()
        found += [event["id"] for event in page["events"]]
        after = page["pagination"]["next_cursor"]
        assert page["pagination"]["has_more"] is (after is not None)
        if after is None:
            break
    ids = db.rows("select id::text as id from batch_events where batch_id = %s order by batch_events.id", batch)
    assert found == [row["id"] for row in ids]
    assert len(found) == 6


@pytest.mark.parametrize("query", ["batch_id=x", "", "limit=0", "limit=201", "after=x"])
def test_a_bad_query_is_400(db: TestDatabase, either_client: TestClient, query: str) -> None:
    agency = db.agency()
    given = query if query in ("", "batch_id=x") else f"batch_id={db.batch(agency)}&{query}"
    assert either_client.get(f"{PATH}?{given}", headers=bearer(db.user(agency))).status_code == 400


def test_another_agencys_batch_is_404_and_the_others_are_refused_as_everywhere(
    db: TestDatabase, either_client: TestClient
) -> None:
    batch = db.batch(db.agency())
    for missing in (batch, uuid4()):
        assert get(either_client, db.user(db.agency("Other")), missing).status_code == 404
    assert get(either_client, db.user(None), batch).status_code == 403
    assert either_client.get(f"{PATH}?batch_id={batch}").status_code == 401
    assert either_client.post(PATH).status_code == 405


@pytest.mark.own_database
def test_a_failure_is_500(db: TestDatabase, either_client: TestClient) -> None:
    agency = db.agency()
    user, batch = db.user(agency), db.batch(agency)
    db.rows("alter table batch_events rename column reason to why")
    response = get(either_client, user, batch)
    assert (response.status_code, response.json()["error"]) == (500, "Failed to fetch events")
