"""GET calls-batch-list: the agency's batches, their progress and what they wait for."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from starlette.testclient import TestClient

from ..support.database import TestDatabase
from ..support.tokens import bearer

PATH = "/functions/v1/calls-batch-list"


def get(client: TestClient, caller: UUID, **query: Any) -> Any:
    return client.get(PATH, params=query, headers=bearer(caller))


def names(answer: dict[str, Any]) -> list[str]:
    return [batch["name"] for batch in answer["batches"]]


def test_a_batch_is_shown_as_the_contract_says_and_our_own_keys_after_it(
    db: TestDatabase, either_client: TestClient
) -> None:
    agency = db.agency()
    viewer = db.user(agency, "client_viewer")
    calling = db.calling(agency)
    batch = db.batch(
        agency, viewer, external_id="spring", name="Spring", calls_per_minute=30, max_concurrent=10, **calling,
        calling_start="00:00", calling_end="24:00", retry_delay_seconds=90,
        created_at="2025-01-15T10:30:00.123456Z", started_at="2025-01-15T10:31:00+00", next_claim_at="2025-01-15",
    )  # fmt: skip
    db.contacts(batch, pending=85, queued=500, in_progress=5, completed=400, failed=10)
    answer = get(either_client, viewer)
    assert answer.status_code == 200
    (shown,) = answer.json()["batches"]
    assert shown == {
        "id": str(batch), "agency_id": str(agency),
        "campaign_id": calling["campaign_id"], "campaign_name": "Q1 Outreach",
        "agent_mapping_id": calling["agent_mapping_id"], "agent_name": "Sales Agent",
        "from_number": "+15551234567", "status": "processing",
        "total_contacts": 1000, "queued": 500, "in_progress": 5, "completed": 400, "failed": 10, "skipped": 0,
        "progress_percentage": 41.0, "remaining_count": 590, "calls_per_minute": 30, "max_concurrent": 10,
        "scheduled_for": None, "created_at": "2025-01-15T10:30:00.123Z", "started_at": "2025-01-15T10:31:00.000Z",
        "external_id": "spring", "name": "Spring", "user_id": str(viewer), "mode": "immediate", "retry_of": None,
        "waiting_for": "max_concurrent", "waiting_until": None,
        "paused_at": None, "stopped_at": None, "completed_at": None, "error_message": None,
        "calling_numbers": None, "timezone": None,
        "calling_hours": {"start": "00:00:00", "end": "24:00:00"}, "allowed_days": None,
        "max_calls_per_number": None, "retry_delay_seconds": 90, "retry_outcomes": None,
    }  # fmt: skip
    assert list(shown)[:21] == [
        "id", "agency_id", "campaign_id", "campaign_name", "agent_mapping_id", "agent_name", "from_number", "status",
        "total_contacts", "queued", "in_progress", "completed", "failed", "skipped", "progress_percentage",
        "remaining_count", "calls_per_minute", "max_concurrent", "scheduled_for", "created_at", "started_at",
    ]  # fmt: skip
    assert answer.json()["pagination"] == {
        "total": 1, "limit": 25, "offset": 0, "has_more": False, "next_cursor": None,
    }  # fmt: skip


def test_a_batch_says_what_it_waits_for(db: TestDatabase, either_client: TestClient) -> None:
    agency = db.agency()
    db.contacts(db.batch(agency, status="scheduled", scheduled_for="2999-01-01T09:00:00Z"), pending=1)
    (shown,) = get(either_client, db.user(agency)).json()["batches"]
    assert (shown["waiting_for"], shown["waiting_until"]) == ("scheduled_for", "2999-01-01T09:00:00.000Z")


def test_batches_come_newest_first_in_pages_by_offset(db: TestDatabase, either_client: TestClient) -> None:
    agency = db.agency()
    user = db.user(agency)
    for day in range(1, 6):
        db.batch(agency, name=f"day {day}", created_at=f"2026-01-0{day}T12:00:00Z")
    pages = [get(either_client, user, limit=2, offset=offset).json() for offset in (0, 2, 4, 6)]
    assert [names(page) for page in pages] == [["day 5", "day 4"], ["day 3", "day 2"], ["day 1"], []]
    assert [page["pagination"]["has_more"] for page in pages] == [True, True, False, False]
    assert {page["pagination"]["total"] for page in pages} == {5}


def test_pages_by_cursor_hold_their_place_while_batches_are_created(
    db: TestDatabase, either_client: TestClient
) -> None:
    agency = db.agency()
    user = db.user(agency)
    for i in range(9):  # three at a time at the same microsecond
        db.batch(agency, name=str(i), created_at=f"2026-01-0{1 + i // 3}T12:00:00.123456Z")
    found, after = [], None
    while True:
        page = get(either_client, user, limit=2, **({"after": after} if after else {})).json()
        found += names(page)
        db.batch(agency, name="new")
        after = page["pagination"]["next_cursor"]
        assert page["pagination"]["has_more"] is (after is not None)
        if after is None:
            break
    assert len(found) == 9
    assert [sorted(found[i : i + 3]) for i in (0, 3, 6)] == [["6", "7", "8"], ["3", "4", "5"], ["0", "1", "2"]]


def test_only_those_of_a_status_or_a_campaign(db: TestDatabase, either_client: TestClient) -> None:
    agency = db.agency()
    user = db.user(agency)
    campaign = db.calling(agency)["campaign_id"]
    for status in ("pending", "scheduled", "processing", "paused", "stopped", "completed", "failed", "cancelled"):
        db.batch(agency, name=status, status=status)
    db.batch(agency, name="of the campaign", status="paused", campaign_id=campaign)
    assert names(get(either_client, user, status="stopped").json()) == ["stopped"]
    paused = get(either_client, user, status="paused", limit=1).json()
    assert (paused["pagination"]["total"], paused["pagination"]["has_more"]) == (2, True)
    assert names(get(either_client, user, campaign_id=campaign).json()) == ["of the campaign"]
    assert names(get(either_client, user, campaign_id=campaign, status="stopped").json()) == []


def test_every_user_sees_the_own_agencys_and_no_others(db: TestDatabase, either_client: TestClient) -> None:
    for name in ("one", "two"):
        db.batch(db.agency(name), name=name)
    mine, _ = [row["agency_id"] for row in db.rows("select agency_id from call_batches order by name")]
    for role in ("agency_owner", "agency_admin", "agency_member", "client_admin", "client_viewer", "admin"):
        assert names(get(either_client, db.user(mine, role)).json()) == ["one"]


def test_a_console_sees_every_agencys_or_one_agencys(db: TestDatabase) -> None:
    agencies = [db.agency(name) for name in ("one", "two")]
    for agency in agencies:
        db.batch(agency)
    total = "-> 'pagination' -> 'total'"
    assert db.value(f"select list_batches() {total}") == 2
    assert db.value(f"select list_batches(agency_id => %s) {total}", agencies[0]) == 1
    with db.as_service() as connection:
        assert connection.execute(f"select list_batches() {total} as n").fetchone() == {"n": 2}


@pytest.mark.parametrize(
    "query",
    ["status=done", "campaign_id=x", "limit=0", "limit=101", "limit=x", "offset=-1", f"offset={10**30}", "after=x",
     "after=1.2.3", "after=%00"],
)  # fmt: skip
def test_a_bad_query_is_400(db: TestDatabase, either_client: TestClient, query: str) -> None:
    response = either_client.get(f"{PATH}?{query}", headers=bearer(db.user(db.agency())))
    assert (response.status_code, response.json()["success"]) == (400, False)


def test_without_a_token_401_of_no_agency_403_and_by_another_method_405(
    db: TestDatabase, either_client: TestClient
) -> None:
    assert either_client.get(PATH).status_code == 401
    refused = get(either_client, db.user(None))
    assert (refused.status_code, refused.json()["code"]) == (403, "no_agency")
    refused = either_client.post(PATH)
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


@pytest.mark.own_database
def test_a_failure_is_500_with_the_contracts_message(db: TestDatabase, either_client: TestClient) -> None:
    user = db.user(db.agency())
    db.rows("alter table call_batches rename column created_at to created")
    response = get(either_client, user)
    assert (response.status_code, response.json()["error"]) == (500, "Failed to fetch batches")
