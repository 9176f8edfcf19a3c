"""GET calls-batch-get: a batch, its live calls and its contacts."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from starlette.testclient import TestClient

from ..support.database import TestDatabase
from ..support.tokens import bearer

PATH = "/functions/v1/calls-batch-get"


def get(client: TestClient, caller: UUID, batch: UUID | str, **query: Any) -> Any:
    return client.get(PATH, params={"batch_id": str(batch), **query}, headers=bearer(caller))


def called(db: TestDatabase, agency: UUID) -> UUID:
    """A batch whose first contact's call was answered, whose second one's is unknown, the third one's in progress."""
    contacts = [
        {"phone_number": "+15559876543", "first_name": "John", "last_name": "Doe", "email": "john@example.com",
         "company": "ACME", "title": "Manager", "timezone": "EST", "custom_data": {"plan": "gold"}},
        *({"phone_number": f"+1555000000{i}"} for i in range(4)),
    ]  # fmt: skip
    calling = db.calling(agency)
    made = db.row(
        "select * from create_batch(%s, %s, %s, %s)",
        calling["agent_mapping_id"], calling["from_number"], calling["campaign_id"], json.dumps(contacts),
    )  # fmt: skip
    batch: UUID = made["batch_id"]
    db.rows("select process_batches()")
    calls = [row["call_id"] for row in db.rows("select call_id from claim_contacts(3)")]
    db.start_calls(batch, calls)
    db.finish_calls(batch, calls[:1], "completed", outcome="answered", duration_seconds=145)
    db.finish_calls(batch, calls[1:2], "unknown")
    db.confirm_calls(batch, calls[2:], "carrier-3")
    return batch


def test_a_batch_comes_with_its_contacts_as_the_contract_says(db: TestDatabase, either_client: TestClient) -> None:
    agency = db.agency()
    batch = called(db, agency)
    db.rows("insert into do_not_call (agency_id, phone_number) values (%s, '+15550000003')", agency)
    member = db.user(agency, "agency_member")
    response = get(either_client, member, batch)
    assert response.status_code == 200
    answer = response.json()
    listed = either_client.get("/functions/v1/calls-batch-list", headers=bearer(member)).json()["batches"][0]
    assert answer["batch"] == listed
    row = db.row("select * from campaign_contacts order by id limit 1")
    iso = {
        name: db.value("select private.iso_timestamp(%s)", row[name])
        for name in ("last_attempt_at", "completed_at", "created_at")
    }
    assert answer["contacts"][0] == {
        "id": str(row["id"]), "phone_number": "+15559876543", "first_name": "John", "last_name": "Doe",
        "email": "john@example.com", "company": "ACME", "title": "Manager", "status": "completed",
        "call_id": str(row["call_id"]), "attempts": 1, "max_attempts": 3, "outcome": "answered",
        "duration_seconds": 145, "outcome_notes": None, "last_attempt_at": iso["last_attempt_at"],
        "completed_at": iso["completed_at"], "custom_data": {"plan": "gold"}, "do_not_call": False,
        "timezone": "EST", "created_at": iso["created_at"],
    }  # fmt: skip
    assert list(answer["contacts"][0]) == [
        "id", "phone_number", "first_name", "last_name", "email", "company", "title", "status", "call_id", "attempts",
        "max_attempts", "outcome", "duration_seconds", "outcome_notes", "last_attempt_at", "completed_at",
        "custom_data", "do_not_call", "timezone", "created_at",
    ]  # fmt: skip
    last = answer["contacts"][-1]
    assert (last["phone_number"], last["do_not_call"], last["custom_data"], last["call_id"]) == (
        "+15550000003", True, {}, None,
    )  # fmt: skip
    assert answer["contact_pagination"] == {
        "total": 5, "limit": 50, "offset": 0, "has_more": False, "next_cursor": None,
    }  # fmt: skip


def test_calls_that_are_unknown_or_in_progress_are_shown(db: TestDatabase, either_client: TestClient) -> None:
    agency = db.agency()
    live = get(either_client, db.user(agency), called(db, agency)).json()["live_calls"]
    rows = db.rows("select * from calls where status in ('in_progress', 'unknown') order by id")
    assert live == [
        {
            "call_id": str(row["id"]),
            "contact_id": str(row["contact_id"]),
            "phone_number": number,
            "status": status,
            "started_at": db.value("select private.iso_timestamp(%s)", row["started_at"]),
            "carrier_call_id": carrier,
        }
        for row, number, status, carrier in zip(
            rows, ["+15550000000", "+15550000001"], ["unknown", "in_progress"], [None, "carrier-3"], strict=True
        )
    ]


def test_at_most_100_live_calls_are_shown(db: TestDatabase, either_client: TestClient) -> None:
    agency = db.agency()
    batch = db.batch(agency)
    db.contacts(batch, pending=150)
    db.start_calls(batch, [row["call_id"] for row in db.rows("select call_id from claim_contacts(150)")])
    assert len(get(either_client, db.user(agency), batch).json()["live_calls"]) == 100


def test_contacts_come_in_dial_order_in_pages_by_offset_and_by_cursor(
    db: TestDatabase, either_client: TestClient
) -> None:
    agency = db.agency()
    user, batch = db.user(agency), db.batch(agency)
    db.contacts(batch, completed=3, failed=2, pending=2)
    ids = [str(row["id"]) for row in db.rows("select id from campaign_contacts order by id")]

    def page(**query: Any) -> tuple[list[str], dict[str, Any]]:
        answer = get(either_client, user, batch, contact_limit=3, **query).json()
        return [contact["id"] for contact in answer["contacts"]], answer["contact_pagination"]

    assert [page(contact_offset=offset)[0] for offset in (0, 3, 6, 9)] == [ids[:3], ids[3:6], ids[6:], []]
    first, pagination = page()
    second, further = page(contact_after=pagination["next_cursor"])
    third, end = page(contact_after=further["next_cursor"])
    assert first + second + third == ids
    assert [place["has_more"] for place in (pagination, further, end)] == [True, True, False]
    assert (end["next_cursor"], end["total"]) == (None, 7)
    assert page(contact_status="failed") == (
        ids[3:5], {"total": 2, "limit": 3, "offset": 0, "has_more": False, "next_cursor": None},
    )  # fmt: skip


@pytest.mark.parametrize(
    "query",
    ["", "batch_id=", "batch_id=x", "batch_id=%00", "contact_status=stopped", "contact_status=cancelled",
     "contact_limit=0", "contact_limit=201", "contact_offset=-1", "contact_offset=10001", "contact_after=x"],
)  # fmt: skip
def test_a_bad_query_is_400(db: TestDatabase, either_client: TestClient, query: str) -> None:
    agency = db.agency()
    given = query if query == "" or query.startswith("batch_id") else f"batch_id={db.batch(agency)}&{query}"
    response = either_client.get(f"{PATH}?{given}", headers=bearer(db.user(agency)))
    assert (response.status_code, response.json()["success"]) == (400, False)
    if query in ("", "batch_id="):
        assert response.json()["error"] == "batch_id is required"


def test_another_agencys_batch_and_one_that_is_none_are_404(db: TestDatabase, either_client: TestClient) -> None:
    user, theirs = db.user(db.agency()), db.batch(db.agency("Other"))
    for batch in (theirs, uuid4()):
        response = get(either_client, user, batch)
        assert (response.status_code, response.json()["code"]) == (404, "batch_not_found")


def test_without_a_token_401_of_no_agency_403_and_by_another_method_405(
    db: TestDatabase, either_client: TestClient
) -> None:
    batch = db.batch(db.agency())
    assert either_client.get(f"{PATH}?batch_id={batch}").status_code == 401
    assert get(either_client, db.user(None), batch).status_code == 403
    assert either_client.delete(PATH).status_code == 405


@pytest.mark.own_database
def test_a_failure_is_500(db: TestDatabase, either_client: TestClient) -> None:
    agency = db.agency()
    user, batch = db.user(agency), db.batch(agency)
    db.rows("alter table contact_data rename column email to mail")
    response = get(either_client, user, batch)
    assert (response.status_code, response.json()["error"]) == (500, "Failed to fetch batch")
