"""GET /api/call/batch-details/{id}: a batch's contacts and the calls to each."""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import UUID, uuid4

import pytest
from starlette.testclient import TestClient

from ..support.database import TestDatabase
from ..support.tokens import bearer

ID = "64e5f12345abcdef98765432"


def get(client: TestClient, caller: UUID, batch: UUID | str, **query: Any) -> Any:
    return client.get(f"/api/call/batch-details/{batch}", params=query, headers=bearer(caller))


def filled(db: TestDatabase, agency: UUID, owner: UUID | None, contacts: list[dict[str, Any]]) -> UUID:
    batch = db.batch(agency, owner, external_id=ID, name="Spring offer", retry_delay_seconds=0)
    db.rows("select add_contacts(%s, %s)", batch, json.dumps(contacts))
    return batch


def call_next(db: TestDatabase, batch: UUID, number: int, status: str) -> None:
    calls = [row["call_id"] for row in db.rows("select call_id from claim_contacts(%s)", number)]
    db.start_calls(batch, calls)
    db.finish_calls(batch, calls, status, duration_seconds=120)


def numbers(response: Any) -> list[str]:
    return [contact["phoneNumber"][-1] for contact in response.json()["data"]["data"]]


def test_contacts_come_with_their_columns_and_calls_as_the_contract_says(
    db: TestDatabase, either_client: TestClient
) -> None:
    agency = db.agency()
    owner = db.user(agency, "agency_member")
    known = {"name": "Ada", "account_id": 7, "priority": "high", "_id": "mine", "phoneNumber": "x", "phoneLogs": 1}
    batch = filled(db, agency, owner, [
        {"phone_number": "+15550000001", "first_name": "Ada", "company": "ACME", "custom_data": known},
        {"phone_number": "+15550000002"},
    ])  # fmt: skip
    call_next(db, batch, 1, "failed")
    call_next(db, batch, 1, "completed")
    response = get(either_client, owner, ID)
    assert response.status_code == 200
    answer = response.json()
    first, second = answer["data"].pop("data")
    ids = [str(row["id"]) for row in db.rows("select id from campaign_contacts order by id")]
    times = [first.pop("createdAt"), *(call.pop("createdAt") for call in first["phoneLogs"])]
    assert first == {
        "_id": ids[0], "phoneNumber": "+15550000001", "callStatus": "completed", "name": "Ada", "account_id": 7,
        "priority": "high", "first_name": "Ada", "company": "ACME",
        "phoneLogs": [
            {"callStatus": status, "callDuration": 120, "recordingUrl": None, "transcript": None}
            for status in ("failed", "completed")
        ],
    }  # fmt: skip
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time) for time in times)
    assert times == sorted(times)
    assert {**second, "createdAt": ""} == {
        "_id": ids[1], "phoneNumber": "+15550000002", "callStatus": "pending", "phoneLogs": [], "createdAt": "",
    }  # fmt: skip
    assert answer == {
        "message": "Calls fetched successfully", "status": True, "code": 200, "errorMessage": "",
        "data": {
            "batchId": ID, "batchName": "Spring offer", "batchStatus": "active", "page": 1, "limit": 10,
            "total": 2, "totalPages": 1, "totalIsExact": True,
        },
    }  # fmt: skip


def test_a_claim_that_was_not_called_yet_is_no_call(db: TestDatabase, either_client: TestClient) -> None:
    agency = db.agency()
    owner = db.user(agency)
    filled(db, agency, owner, [{"phone_number": "+15550000001"}])
    db.rows("select claim_contacts(1)")
    (contact,) = get(either_client, owner, ID).json()["data"]["data"]
    assert (contact["callStatus"], contact["phoneLogs"]) == ("queued", [])


def test_pages_orders_filter_and_search(db: TestDatabase, either_client: TestClient) -> None:
    agency = db.agency()
    owner = db.user(agency)
    names = [("Grace", "Hopper"), ("Ada", "Lovelace"), ("Alan", "Turing"), ("Barbara", "Liskov")]
    batch = filled(db, agency, owner, [
        *({"phone_number": f"+1555000000{4 - i}", "first_name": first, "last_name": last}
          for i, (first, last) in enumerate(names)),
        {"phone_number": "+15550000009", "custom_data": {"name": "Edsger"}},
    ])  # fmt: skip
    call_next(db, batch, 2, "completed")

    def seen(**query: Any) -> str:
        return "".join(numbers(get(either_client, owner, ID, **query)))

    assert seen() == "43219"
    assert [seen(page=page, limit=2) for page in (1, 2, 3, 4)] == ["43", "21", "9", ""]
    data = get(either_client, owner, ID, page=2, limit=2).json()["data"]
    assert [data[name] for name in ("page", "limit", "total", "totalPages")] == [2, 2, 5, 3]
    assert (seen(sortOrder="desc"), seen(sortOrder="desc", page=2, limit=2)) == ("91234", "23")
    assert (seen(sortBy="createdAt", sortOrder="asc"), seen(sortBy="phoneNumber")) == ("43219", "12349")
    assert seen(sortBy="phoneNumber", sortOrder="desc") == "94321"
    assert (seen(sortBy="callStatus"), seen(sortBy="callStatus", sortOrder="desc")) == ("43219", "91234")
    assert seen(filter='{"callStatus":"completed"}') == "43"
    assert seen(filter='{"callStatus":"pending"}', sortBy="phoneNumber", limit=2) == "12"
    assert seen(filter="{}") == "43219"
    assert [seen(search=text) for text in ("00003", "ada love", "LISKOV", "dsg", "%", "_", "5550000")] == [
        "3", "3", "1", "9", "", "", "43219",
    ]  # fmt: skip
    assert seen(search="a", filter='{"callStatus":"completed"}') == "43"
    data = get(either_client, owner, ID, search="a", limit=1).json()["data"]
    assert [data[name] for name in ("total", "totalPages", "totalIsExact")] == [4, 4, True]


@pytest.mark.parametrize(
    "query",
    ["page=0", "page=x", "limit=0", "limit=101", f"page={10**30}", "page=201&limit=100", "filter=x", "filter=[]",
     'filter={"callStatus":"answered"}', 'filter={"name":"x"}', "filter=" + "[" * 400, "sortBy=name", "sortOrder=up",
     "search=%00"],
)  # fmt: skip
def test_a_bad_query_is_400(db: TestDatabase, either_client: TestClient, query: str) -> None:
    agency = db.agency()
    owner = db.user(agency)
    filled(db, agency, owner, [{"phone_number": "+15550000001"}])
    response = either_client.get(f"/api/call/batch-details/{ID}?{query}", headers=bearer(owner))
    assert (response.status_code, response.json()["code"], response.json()["data"]) == (400, 400, {})
    assert response.json()["errorMessage"]


def test_the_batchs_user_and_the_agencys_admins_see_it_and_for_others_it_is_not_there(
    db: TestDatabase, either_client: TestClient
) -> None:
    agency, other = db.agency(), db.agency("Other")
    member = db.user(agency, "agency_member")
    batch = filled(db, agency, member, [{"phone_number": "+15550000001"}])
    for caller in (member, db.user(agency, "agency_owner"), db.user(agency, "agency_admin")):
        for given in (ID, batch, str(batch).upper()):
            assert numbers(get(either_client, caller, given)) == ["1"]
    for caller in (db.user(agency, "agency_member"), db.user(agency, "admin"), db.user(other), db.user(other, "admin")):
        for given in (ID, batch, uuid4(), "unknown"):
            response = get(either_client, caller, given)
            assert (response.status_code, response.json()["errorMessage"]) == (404, "Batch not found")
    assert get(either_client, db.user(None), ID).status_code == 403


def test_agencies_with_the_same_external_id_see_each_their_own(db: TestDatabase, either_client: TestClient) -> None:
    for agency, number in ((db.agency("one"), 1), (db.agency("two"), 2)):
        owner = db.user(agency)
        filled(db, agency, owner, [{"phone_number": f"+1555000000{number}"}])
        assert numbers(get(either_client, owner, ID)) == [str(number)]


def test_a_contact_of_another_agency_with_the_same_id_lends_it_no_calls(
    db: TestDatabase, either_client: TestClient
) -> None:
    for agency in (db.agency("one"), db.agency("two")):
        owner = db.user(agency)
        batch = filled(db, agency, owner, [{"phone_number": "+15550000001"}])
        db.rows("update campaign_contacts set id = 1 where batch_id = %s", batch)
        db.rows(
            "insert into calls (agency_id, batch_id, contact_id, attempt, status, lease_expires_at, duration_seconds)"
            " values (%s, %s, 1, 1, 'failed', now(), 7)", agency, batch,
        )  # fmt: skip
    (contact,) = get(either_client, owner, ID).json()["data"]["data"]
    assert len(contact["phoneLogs"]) == 1


@pytest.mark.parametrize("path", ["%00", "x" * 501])
def test_an_id_that_is_none_is_400(db: TestDatabase, either_client: TestClient, path: str) -> None:
    assert get(either_client, db.user(db.agency()), path).status_code == 400


def test_without_a_token_it_is_401_and_with_another_method_405(either_client: TestClient) -> None:
    response = either_client.get(f"/api/call/batch-details/{ID}")
    assert (response.status_code, response.json()["status"]) == (401, False)
    response = either_client.post(f"/api/call/batch-details/{ID}")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


@pytest.mark.own_database
def test_a_failure_is_500(db: TestDatabase, either_client: TestClient) -> None:
    agency = db.agency()
    owner = db.user(agency)
    filled(db, agency, owner, [{"phone_number": "+15550000001"}])
    db.rows("alter table calls rename column duration_seconds to seconds")
    response = get(either_client, owner, ID)
    assert (response.status_code, response.json()["errorMessage"]) == (500, "Failed to fetch calls")
