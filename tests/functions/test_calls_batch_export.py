"""GET calls-batch-export: the results of a batch as CSV, whole or visibly broken off."""

from __future__ import annotations

import csv
import io
import json
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from starlette.testclient import TestClient

from functions._shared.contacts_csv import COLUMNS
from functions._shared.settings import Settings
from functions.app import create_app
from functions.calls_batch_export import PAGE_ROWS

from ..support.database import TestDatabase
from ..support.serving import logged, serving
from ..support.tokens import bearer

PATH = "/functions/v1/calls-batch-export"


def get(client: TestClient, caller: UUID, batch: UUID | str, **query: Any) -> Any:
    return client.get(PATH, params={"batch_id": str(batch), **query}, headers=bearer(caller))


def read(response: Any) -> list[dict[str, str]]:
    text = response.content.decode("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def test_a_batch_is_a_file_of_its_contacts_and_their_results(db: TestDatabase, either_client: TestClient) -> None:
    agency = db.agency()
    batch = db.batch(agency)
    data = {"note": 'say "hi",\r\nthen wait', "größe": [1, None, True]}
    contacts = [
        {"phone_number": "+15550000001", "first_name": "Zoë", "last_name": 'O"Hara, Jr.', "email": "zoe@example.com",
         "company": "ACME\r\nInc.", "title": "Chief", "timezone": "EST", "custom_data": data},
        {"phone_number": "+15550000002"},
    ]  # fmt: skip
    db.rows("select add_contacts(%s, %s)", batch, json.dumps(contacts))
    call = db.value("select call_id from claim_contacts(1)")
    db.start_calls(batch, [call])
    db.finish_calls(batch, [call], "completed", outcome="answered", duration_seconds=145, notes="ok")

    response = get(either_client, db.user(agency, "client_viewer"), batch)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == f'attachment; filename="batch-{batch}.csv"'
    assert response.headers["cache-control"] == "no-store"
    assert response.content.startswith(b"id,phone_number,first_name,")
    first, second = read(response)
    assert list(first) == COLUMNS
    row = db.row(
        "select id::text, private.iso_timestamp(created_at) as created_at, call_id::text,"
        " private.iso_timestamp(last_attempt_at) as last_attempt_at,"
        " private.iso_timestamp(completed_at) as completed_at"
        " from campaign_contacts order by campaign_contacts.id limit 1"
    )
    assert json.loads(first.pop("custom_data")) == data
    assert first == {
        **row, "phone_number": "+15550000001", "first_name": "Zoë", "last_name": 'O"Hara, Jr.',
        "email": "zoe@example.com", "company": "ACME\r\nInc.", "title": "Chief", "timezone": "EST",
        "status": "completed", "attempts": "1", "max_attempts": "3", "outcome": "answered", "duration_seconds": "145",
        "outcome_notes": "ok", "do_not_call": "false",
    }  # fmt: skip
    assert {name for name, value in second.items() if value} == {
        "id", "phone_number", "status", "attempts", "max_attempts", "do_not_call", "custom_data", "created_at",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "written"),
    [("=1+1", "'=1+1"), ("+SUM(A1)", "'+SUM(A1)"), ("-2+3", "'-2+3"), ("@SUM(A1)", "'@SUM(A1)"), ("\tx", "'\tx"),
     ("\rx", "'\rx"), ("\nx", "'\nx"), ("\uff1d1", "'\uff1d1"), ('=HYPERLINK("http://x","y")', "'=HYPERLINK(\"http://x\",\"y\")"),
     ("+15550001", "+15550001"), ("-1.5", "-1.5"), ("+1555\n=1", "'+1555\n=1"), ("+1,5", "'+1,5"), ("-", "'-"),
     ("a=1", "a=1"), ("'=1", "'=1"), (" =1", " =1")],
)  # fmt: skip
def test_a_formula_is_made_text_and_a_number_with_a_sign_is_not(
    db: TestDatabase, client: TestClient, given: str, written: str
) -> None:
    agency = db.agency()
    batch = db.batch(agency)
    contacts = [{"phone_number": "+15550000001", "first_name": given}]
    db.rows("select add_contacts(%s, %s)", batch, json.dumps(contacts))
    db.rows("update campaign_contacts set outcome_notes = %s", given)
    (row,) = read(get(client, db.user(agency), batch))
    assert (row["first_name"], row["outcome_notes"], row["phone_number"]) == (written, written, "+15550000001")


def test_a_batch_of_several_pages_is_whole_and_in_dial_order(db: TestDatabase, either_client: TestClient) -> None:
    agency = db.agency()
    user, batch = db.user(agency), db.batch(agency)
    db.contacts(batch, completed=PAGE_ROWS * 2, failed=PAGE_ROWS, pending=1)
    rows = read(get(either_client, user, batch))
    assert [int(row["id"]) for row in rows] == [
        row["id"] for row in db.rows("select id from campaign_contacts order by id")
    ]
    failed = read(get(either_client, user, batch, contact_status="failed"))
    assert failed == rows[PAGE_ROWS * 2 : PAGE_ROWS * 3]


def test_a_batch_without_such_contacts_is_a_header_alone(db: TestDatabase, either_client: TestClient) -> None:
    agency = db.agency()
    user, batch = db.user(agency), db.batch(agency)
    header = (",".join(COLUMNS) + "\r\n").encode()
    assert get(either_client, user, batch).content == header
    db.contacts(batch, pending=3)
    assert get(either_client, user, batch, contact_status="skipped").content == header


def test_a_head_request_gets_no_file(db: TestDatabase, either_client: TestClient) -> None:
    agency = db.agency()
    batch = db.batch(agency)
    response = either_client.head(PATH, params={"batch_id": str(batch)}, headers=bearer(db.user(agency)))
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == "text/csv; charset=utf-8"


@pytest.mark.parametrize("query", ["", "batch_id=x", "contact_status=stopped"])
def test_a_bad_query_is_400(db: TestDatabase, either_client: TestClient, query: str) -> None:
    agency = db.agency()
    given = f"batch_id={db.batch(agency)}&{query}" if query.startswith("contact") else query
    assert either_client.get(f"{PATH}?{given}", headers=bearer(db.user(agency))).status_code == 400


def test_another_agencys_batch_is_404_and_the_others_are_refused_as_everywhere(
    db: TestDatabase, either_client: TestClient
) -> None:
    batch = db.batch(db.agency())
    for missing in (batch, uuid4()):
        response = get(either_client, db.user(db.agency("Other")), missing)
        assert (response.status_code, response.json()["code"]) == (404, "batch_not_found")
    assert get(either_client, db.user(None), batch).status_code == 403
    assert either_client.get(f"{PATH}?batch_id={batch}").status_code == 401
    assert either_client.post(PATH).status_code == 405


@pytest.mark.own_database
def test_a_failure_at_the_beginning_is_500(db: TestDatabase, either_client: TestClient) -> None:
    agency = db.agency()
    user, batch = db.user(agency), db.batch(agency)
    db.rows("alter table contact_data rename column email to mail")
    response = get(either_client, user, batch)
    assert (response.status_code, response.json()["error"]) == (500, "Failed to export contacts")


@pytest.mark.parametrize("transport", ["settings", "postgrest_settings"])
def test_a_failure_in_the_middle_does_not_look_like_a_complete_file(
    db: TestDatabase, request: pytest.FixtureRequest, transport: str
) -> None:
    settings: Settings = request.getfixturevalue(transport)
    agency = db.agency()
    user, batch = db.user(agency), db.batch(agency)
    # Enough that the server must wait for its client before the last pages are read.
    contacts = PAGE_ROWS * 20
    db.contacts(batch, pending=contacts)
    db.rows("update campaign_contacts set outcome_notes = repeat('x', 2000)")
    with logged() as log, serving(create_app(settings)) as (host, port):
        url = f"http://{host}:{port}{PATH}?batch_id={batch}"
        with httpx2.stream("GET", url, headers=bearer(user), timeout=60) as response:
            assert response.status_code == 200
            db.rows("update users set agency_id = null where id = %s", user)
            with pytest.raises(httpx2.RemoteProtocolError):
                for _ in response.iter_bytes():
                    pass
    assert log.lines("request")
    assert any(line["level"] == "error" for line in log.lines())
