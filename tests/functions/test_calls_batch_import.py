"""POST calls-batch-import: a file of contacts into a batch; GET: the rows of it that were invalid."""

from __future__ import annotations

import csv
import io
import json
import socket
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import httpx2
import psycopg
import pytest
from openpyxl import Workbook
from starlette.testclient import TestClient

from functions._shared.contact_file import ContactFile, Group
from functions._shared.settings import Settings
from functions.app import create_app

from ..support.database import TestDatabase
from ..support.serving import logged, serving
from ..support.tokens import bearer
from ..support.waiting import until

PATH = "/functions/v1/calls-batch-import"


@pytest.fixture
def client(either_client: TestClient) -> TestClient:
    return either_client


class Office:
    """An agency with an owner and what batches are created with."""

    def __init__(self, db: TestDatabase) -> None:
        self.db = db
        self.agency = db.agency()
        self.owner = db.user(self.agency)
        self.calling = db.calling(self.agency)

    def post(
        self,
        client: Any,
        file: str | bytes | None,
        *,
        name: str = "contacts.csv",
        to: UUID | str | None = None,
        caller: UUID | None = None,
        key: str | None = None,
        path: str = PATH,
        **fields: str,
    ) -> Any:
        given = {"batch_id": str(to)} if to else self.calling
        headers = bearer(caller or self.owner) | ({"Idempotency-Key": key} if key else {})
        files = {"file": (name, file.encode() if isinstance(file, str) else file)} if file is not None else None
        return client.post(path, data={**given, **fields}, files=files or {"other": (None, "")}, headers=headers)

    def contacts(self, batch: UUID | str) -> list[dict[str, Any]]:
        return self.db.rows(
            "select c.phone_number, d.first_name, d.custom_data from campaign_contacts c"
            " left join contact_data d on d.batch_id = c.batch_id and d.contact_id = c.id"
            " where c.batch_id = %s order by c.id",
            batch,
        )

    def numbers(self, batch: UUID | str) -> list[str]:
        return [row["phone_number"] for row in self.contacts(batch)]


@pytest.fixture
def office(db: TestDatabase) -> Office:
    return Office(db)


def numbered(count: int, first: int = 0) -> str:
    return "phone_number,plan\n" + "".join(f"+1555{i:07d},gold\n" for i in range(first, first + count))


def workbook(*rows: list[Any]) -> bytes:
    book = Workbook()
    for row in rows:
        book.worksheets[0].append(row)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def test_a_file_becomes_a_batch_that_waits_to_be_dialed(db: TestDatabase, client: TestClient, office: Office) -> None:
    db.rows("insert into do_not_call (agency_id, phone_number) values (%s, '+15550000004')", office.agency)
    response = office.post(
        client,
        "phoneNumber,firstName,Plan,max_attempts\n"
        "+15550000001,Ada,gold,\n"
        "+1 (555) 000-0002,,,7\n"
        '001555.000.0003,"Grace ""Amazing""\nHopper",,\n'
        "+15550000001,Again,,\n"
        "+15550000004,Nobody,,\n"
        "5550000005,Short,,\n",
        batchName="Spring",
        retry="1",
        callingNumbers='["+15551234567"]',
        callingHour='{"start": "09:00", "end": "17:00"}',
        allowedDays="[1, 2]",
        delay="90",
        timezone="America/New_York",
        batchType="outbound",
        enableDNC="true",
    )
    answer = response.json()
    assert response.status_code == 201, answer
    batch = answer["batch_id"]
    errors = [
        {
            "row": 7,
            "phone_number": "5550000005",
            "error": "phone_number must be in E.164 form, such as +15551234567",
        }
    ]
    assert answer == {
        "success": True,
        "batch_id": batch,
        "import_id": answer["import_id"],
        "created": True,
        "status": "pending",
        "total_contacts": 3,
        "added": 3,
        "duplicates": 1,
        "do_not_call": 1,
        "invalid": 1,
        "error_count": 1,
        "errors": errors,
        "batch": {"_id": batch, "batchName": "Spring", "callingNumbers": ["+15551234567"], "totalCalls": 3},
    }
    assert office.contacts(batch) == [
        {"phone_number": "+15550000001", "first_name": "Ada", "custom_data": {"Plan": "gold"}},
        {"phone_number": "+15550000002", "first_name": None, "custom_data": None},
        {"phone_number": "+15550000003", "first_name": 'Grace "Amazing"\nHopper', "custom_data": {}},
    ]
    attempts = db.rows("select max_attempts from campaign_contacts where batch_id = %s order by id", batch)
    assert [row["max_attempts"] for row in attempts] == [2, 7, 2]
    row = db.batch_row(batch)
    assert (row["retry_delay_seconds"], row["allowed_days"], row["timezone"]) == (90, [1, 2], "America/New_York")
    assert (row["paused_at"], row["error_message"], row["user_id"]) == (None, None, office.owner)
    assert db.row("select * from process_batches()")["batches_started"] == 1


def test_a_file_is_added_to_a_batch_that_goes_on(db: TestDatabase, client: TestClient, office: Office) -> None:
    batch = db.batch(office.agency, status="processing")
    db.contacts(batch, pending=2)
    response = office.post(client, numbered(4), to=batch, path="/calls-batch-import")
    answer = response.json()
    assert (response.status_code, answer["status"], answer["total_contacts"]) == (200, "processing", 4)
    assert (answer["added"], answer["duplicates"], answer["created"]) == (2, 2, False)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_delimiter_newlines_and_a_byte_order_mark_are_as_spreadsheets_write_them(
    client: TestClient, office: Office, delimiter: str, newline: str
) -> None:
    rows = [["Phone_Number", "note, or; so", ""], ["+15550000001", "a;b,c", ""], [], ["+15550000002", "Zoë"]]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=newline).writerows(rows)
    answer = office.post(client, text.getvalue().encode("utf-8-sig")).json()
    assert [row["custom_data"] for row in office.contacts(answer["batch_id"])] == [
        {"note, or; so": "a;b,c"},
        {"note, or; so": "Zoë"},
    ]


def test_a_workbook_is_read_by_its_first_sheet(client: TestClient, office: Office) -> None:
    file = workbook(
        ["phoneNumber", "first_name", "max_attempts", "account", "vip", "formula"],
        ["+15550000001", "Ada", 5, 17.0, True, "=1+1"],
        [15550000002, "Grace", None, None, None, None],
        [None] * 6,
        ["+1 555 000 0003", None, None, 2.5, None, None],
    )
    answer = office.post(client, file, name="Contacts.XLSX").json()
    assert office.contacts(answer["batch_id"]) == [
        {"phone_number": "+15550000001", "first_name": "Ada", "custom_data": {"account": "17", "vip": "true"}},
        {"phone_number": "+15550000003", "first_name": None, "custom_data": {"account": "2.5"}},
    ]
    # Without its + a number could be of any country.
    assert [(error["row"], error["phone_number"]) for error in answer["errors"]] == [(3, "15550000002")]


@pytest.mark.parametrize(
    ("file", "name", "code"),
    [
        (None, "", "file_required"),
        (b"", "a.csv", "file_empty"),
        (b"phone_number\n", "a.csv", "file_empty"),
        (b"phone_number\n\n,\n", "a.csv", "file_empty"),
        (b"name,phone\nAda,+15550000001\n", "a.csv", "phone_column_missing"),
        (b"\n", "a.csv", "phone_column_missing"),
        (b"phone_number,phoneNumber\n+15550000001,\n", "a.csv", "header_invalid"),
        (b"phone_number,plan,plan\n+15550000001,,\n", "a.csv", "header_invalid"),
        (b"phone_number" + b",x" * 200 + b"\n", "a.csv", "header_invalid"),
        (b"phone_number\n+15550000001\n", "a.txt", "file_type_invalid"),
        (b"phone_number\n+15550000001\n", "a.xls", "file_type_invalid"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a.xlsx", "file_type_invalid"),
        ("phone_number\n+15550000001\n".encode("utf-16"), "a.csv", "file_invalid"),
        ("phone_number,n\n+15550000001,Zoë\n".encode("latin-1"), "a.csv", "file_invalid"),
        (b"phone_number\n+15550000001\n" + b"x" * (1 << 21), "a.csv", "file_invalid"),
        (b'phone_number,n\n+15550000001,"open\n+15550000002,\n', "a.csv", "file_invalid"),
        (b"phone_number\n+15550000001\n", "a.xlsx", "file_invalid"),
        (workbook(["phone_number"], ["+15550000001"])[:-200], "a.xlsx", "file_invalid"),
        (workbook(["phone"], ["+15550000001"]), "a.xlsx", "phone_column_missing"),
        (workbook(["phone_number"]), "a.xlsx", "file_empty"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_400_and_changes_nothing(
    db: TestDatabase, client: TestClient, office: Office, file: bytes | None, name: str, code: str
) -> None:
    before = db.state()
    response = office.post(client, file, name=name)
    assert (response.status_code, response.json()["code"]) == (400, code)
    assert db.state() == before


@pytest.mark.parametrize(
    ("part", "size"), [("xl/sharedStrings.xml", 129 << 20), ("xl/styles.xml", 17 << 20), ("xl/worksheets/x", 1 << 30)]
)
def test_a_workbook_that_would_unpack_to_too_much_is_refused(
    client: TestClient, office: Office, part: str, size: int
) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open(part, "w") as bomb:
        for _ in range((size >> 20) + 1):
            bomb.write(bytes(1 << 20))
    response = office.post(client, file.getvalue(), name="bomb.xlsx")
    assert (response.status_code, response.json()["error"]) == (400, "The workbook is too large: save it as .csv")


INVALID_ROWS = (
    b"phone_number,first_name,timezone,max_attempts,x\n"
    b"+15550000001,Ada,,,\n"
    b",no number,,,\n"
    b"+15550000003,N\x00UL,,,\n"
    b"+15550000004,,Mars/Olympus,,\n"
    b"+15550000005,,,many,\n"
    b'+15550000006,"a"b,,,\n'
    b"+15550000007,,,,,extra\n"
    b"+15550000008,,,," + b"y" * 110_000 + b"\n"
    b"+15550000009," + b"y" * 501 + b",,,\n"
    b"+15550000010,,,,,\n"
)  # fmt: skip
REASONS = {
    3: "phone_number is required",
    4: "has a NUL character",
    5: "timezone is not known",
    6: "max_attempts must be a whole number from 1 to 99",
    7: "has a quote out of place",
    8: "has a cell in a column without a name",
    9: "has more than 100000 bytes",
    10: "first_name must be a string of at most 500 characters",
}


def test_invalid_rows_are_reported_and_keep_no_other_from_being_imported(client: TestClient, office: Office) -> None:
    answer = office.post(client, INVALID_ROWS).json()
    assert office.numbers(answer["batch_id"]) == ["+15550000001", "+15550000010"]
    assert {error["row"]: error["error"] for error in answer["errors"]} == REASONS
    assert (answer["invalid"], answer["error_count"]) == (8, 8)


@pytest.mark.parametrize("how", [{"strict": "true"}, {"type": "false"}])
def test_strict_takes_all_rows_or_none(
    db: TestDatabase, client: TestClient, office: Office, how: dict[str, str]
) -> None:
    before = db.state()
    response = office.post(client, INVALID_ROWS, **how)
    answer = response.json()
    assert (response.status_code, answer["code"], answer["success"]) == (422, "rows_invalid", False)
    assert {error["row"]: error["error"] for error in answer["errors"]} == REASONS
    assert answer["error_count"] == 8
    assert db.state() == before
    assert office.post(client, numbered(3), **how).status_code == 201


def test_a_file_without_a_contact_to_call_is_422_and_leaves_a_batch_that_says_so(
    db: TestDatabase, client: TestClient, office: Office
) -> None:
    response = office.post(client, "phone_number\n1\n2\n")
    answer = response.json()
    assert (response.status_code, answer["code"], answer["success"], answer["invalid"]) == (
        422, "no_contacts", False, 2,
    )  # fmt: skip
    row = db.batch_row(answer["batch_id"])
    assert (row["status"], row["error_message"]) == ("paused", "No contact of the imported file can be called")


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"agent_mapping_id": ""}, 400, "agent_mapping_id_required"),
        ({"from_number": ""}, 400, "from_number_required"),
        ({"from_number": "+15559999999"}, 400, "from_number_not_active"),
        ({"campaign_id": str(uuid4())}, 404, "campaign_not_found"),
        ({"agent_mapping_id": str(uuid4())}, 404, "agent_not_found"),
        ({"userId": str(uuid4())}, 404, "user_not_found"),
        ({"userId": "nobody"}, 400, "invalid_body"),
        ({"calls_per_minute": "61"}, 400, "calls_per_minute_invalid"),
        ({"calls_per_minute": "many"}, 400, "invalid_body"),
        ({"max_attempts": "0"}, 400, "max_attempts_invalid"),
        ({"retry": "99"}, 400, "invalid_body"),
        ({"batchType": "inbound"}, 400, "invalid_body"),
        ({"callingHour": "nine"}, 400, "invalid_body"),
        ({"callingHour": '{"start": "9"}'}, 400, "calling_hours_invalid"),
        ({"allowedDays": "[7]"}, 400, "allowed_days_invalid"),
        ({"allowedDays": "[" * 60_000}, 400, "invalid_body"),
        ({"batch_name": "a", "batchName": "b"}, 400, "invalid_body"),
        ({"batch_id": str(uuid4())}, 400, "settings_not_allowed"),
    ],
)  # fmt: skip
def test_a_setting_that_is_none_is_refused_and_changes_nothing(
    db: TestDatabase, client: TestClient, office: Office, fields: dict[str, str], status: int, code: str
) -> None:
    before = db.state()
    response = office.post(client, numbered(1), **fields)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert db.state() == before


def test_only_owners_and_admins_of_the_agency_import(db: TestDatabase, client: TestClient, office: Office) -> None:
    batch, theirs = db.batch(office.agency), db.batch(db.agency("Other"))
    for role, status in (("agency_admin", 200), ("agency_member", 403), ("client_admin", 403)):
        caller = db.user(office.agency, role)
        assert office.post(client, numbered(1), to=batch, caller=caller).status_code == status
        assert office.post(client, numbered(1), to=batch, caller=caller, strict="1").status_code == status
    assert office.post(client, numbered(1), to=batch, caller=db.user(None)).status_code == 403
    for missing in (theirs, uuid4()):
        response = office.post(client, numbered(1), to=missing)
        assert (response.status_code, response.json()["code"]) == (404, "batch_not_found")
    assert client.post(PATH, files={"file": ("a.csv", b"x")}).status_code == 401
    assert client.get(PATH).status_code == 401


def test_whoever_may_not_import_is_told_so_before_the_file_is_read(
    db: TestDatabase, client: TestClient, office: Office
) -> None:
    response = office.post(client, b"\0", caller=db.user(office.agency, "agency_member"))
    assert (response.status_code, response.json()["code"]) == (403, "role_not_allowed")


def test_another_method_or_body_is_refused(client: TestClient, office: Office) -> None:
    response = client.put(PATH)
    assert (response.status_code, response.headers["allow"]) == (405, "POST, GET, HEAD, OPTIONS")
    kinds = ["", "; boundary=b", "; boundary=b; charset=undefined", "; boundary=b; charset=utf-16"]
    bodies = [{"content": b"x", "headers": {"Content-Type": f"multipart/form-data{kind}"}} for kind in kinds]
    for body in ({"json": {}}, *bodies):
        headers = bearer(office.owner) | body.pop("headers", {})
        response = client.post(PATH, headers=headers, **body)
        assert (response.status_code, response.json()["success"]) == (400, False)


@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_a_batch_that_is_over_takes_no_file(db: TestDatabase, client: TestClient, office: Office, status: str) -> None:
    response = office.post(client, numbered(1), to=db.batch(office.agency, status=status))
    assert (response.status_code, response.json()["code"]) == (400, f"batch_already_{status}")


def test_the_invalid_rows_are_a_csv_for_the_agency(db: TestDatabase, client: TestClient, office: Office) -> None:
    file = "phone_number\n" + "=cmd()\n+1+2\n" + "".join(f'"{i},\n"\n' for i in range(12_000))
    answer = office.post(client, file).json()
    assert (answer["invalid"], len(answer["errors"])) == (12_002, 100)
    member = db.user(office.agency, "client_viewer")
    response = client.get(PATH, params={"import_id": answer["import_id"]}, headers=bearer(member))
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    head = client.head(PATH, params={"import_id": answer["import_id"]}, headers=bearer(member))
    assert (head.status_code, head.content) == (200, b"")
    rows = list(csv.reader(io.StringIO(response.text, newline="")))
    assert len(rows) == 12_003
    e164 = "phone_number must be in E.164 form, such as +15551234567"
    assert rows[:4] == [
        ["row", "phone_number", "error"], ["2", "'=cmd()", e164], ["3", "'+1+2", e164], ["4", "0,", e164],
    ]  # fmt: skip
    for caller, status in ((db.user(db.agency("Other")), 404), (db.user(None), 403)):
        response = client.get(PATH, params={"import_id": answer["import_id"]}, headers=bearer(caller))
        assert response.status_code == status
    assert client.get(PATH, headers=bearer(member)).json()["code"] == "import_id_required"


def test_a_repeat_gets_the_first_answer(db: TestDatabase, client: TestClient, office: Office) -> None:
    first = office.post(client, numbered(3), key="once")
    db.rows("select process_batches()")
    before = db.state()
    again = office.post(client, numbered(3), key="once")
    assert (again.status_code, again.json()) == (201, first.json())
    assert db.state() == before
    response = office.post(client, numbered(4), key="once")
    assert (response.status_code, response.json()["code"]) == (409, "idempotency_key_reused")
    assert office.post(client, numbered(3)).json()["batch_id"] != first.json()["batch_id"]


def test_a_file_over_the_limit_is_413(settings: Settings, office: Office) -> None:
    with TestClient(create_app(replace(settings, max_upload_bytes=10_000))) as client:
        assert office.post(client, numbered(400)).status_code == 201
        response = office.post(client, numbered(1000))
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_a_client_that_leaves_while_it_sends_leaves_nothing(
    db: TestDatabase, settings: Settings, office: Office
) -> None:
    before = db.state()
    with logged() as log, serving(create_app(settings)) as address:
        with socket.create_connection(address) as connection:
            head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in bearer(office.owner).items())
            head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            part = '--b\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
            connection.sendall((head + part + numbered(10)).encode())
        until(lambda: log.lines("request") != [])
    assert db.state() == before
    assert log.lines("request failed") == []


def test_no_phone_number_is_logged(client: TestClient, office: Office) -> None:
    with logged() as log:
        office.post(client, numbered(3) + "5550009999,\n", name="5550009999.csv")
        office.post(client, "phone_number\n+15550000001\n", strict="true")
    for number in ("555000000", "5550009999"):  # shorter, it may be in a time or an id
        assert number not in log.text


READ = ContactFile.read


class Halfway:
    """A batch whose import is sent in groups of 10,000 rows, and is held before the second one is taken."""

    def __init__(self, db: TestDatabase, office: Office, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.db = db
        self.answer: Any = None
        self._third = threading.Event()
        """The third group may be read: of two who wait for the batch, chance decides who is next."""

        def read(contacts: ContactFile, group: Group) -> bytes:
            assert group.last_row <= 20_001 or self._third.wait(60)
            return READ(contacts, group)

        monkeypatch.setattr(ContactFile, "read", read)
        # Whoever stores an invalid row waits for a lock: that is the second group.
        db.rows(
            "create or replace function wait() returns trigger language plpgsql as"
            " $$ begin perform pg_advisory_xact_lock(1); return new; end $$"
        )
        db.rows("create or replace trigger wait before insert on import_errors for each row execute function wait()")
        self._blocker = db.connect()
        self._blocker.execute("select pg_advisory_lock(1)")
        self.file = numbered(10_000) + "bad,\n" + numbered(20_000, 10_000).partition("\n")[2]
        self._thread = threading.Thread(target=self._send, args=(office, url))
        self._thread.start()
        until(lambda: self.waiting("advisory") == 1)
        self.batch = db.value("select batch_id from batch_imports")

    def waiting(self, lock: str) -> int:
        """How many wait for such a lock."""
        count: int = self.db.value(
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and wait_event = %s"
            " and datname = current_database()",
            lock,
        )
        return count

    def during(self, statement: str) -> Any:
        """Have a statement about the batch wait for the second group; the answer to the import in the end."""
        with self.db.connect() as connection:
            thread = threading.Thread(target=lambda: connection.execute(statement, [self.batch]))
            thread.start()
            until(lambda: self.waiting("transactionid") == 1)
            self._blocker.close()
            thread.join()
        return self.go_on()

    def _send(self, office: Office, url: str) -> None:
        with httpx2.Client(base_url=url, timeout=120) as client:
            self.answer = office.post(client, self.file, key="half")

    def go_on(self) -> Any:
        self._blocker.close()
        self._third.set()
        self._thread.join()
        return self.answer


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    with serving(create_app(settings)) as (host, port):
        yield f"http://{host}:{port}"


@pytest.mark.own_database
def test_a_batch_is_not_dialed_before_its_import_has_finished(
    db: TestDatabase, url: str, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Halfway(db, office, url, monkeypatch)
    row = db.batch_row(half.batch)
    assert (row["status"], row["total_contacts"]) == ("paused", 10_000)
    assert row["error_message"] == "The import of its contacts has not finished"
    assert db.row("select * from process_batches()")["batches_started"] == 0
    assert half.go_on().json()["added"] == 30_000
    assert db.row("select * from process_batches()")["batches_started"] == 1


@pytest.mark.own_database
def test_whoever_resumes_or_pauses_during_an_import_has_the_say(
    db: TestDatabase, url: str, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Halfway(db, office, url, monkeypatch)
    answer = half.during("select resume_batch(%s)").json()
    row = db.batch_row(half.batch)
    assert (answer["status"], row["status"], row["error_message"]) == ("processing", "processing", None)


@pytest.mark.own_database
def test_a_cancel_during_an_import_refuses_the_rest_and_says_what_was_added(
    db: TestDatabase, url: str, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Halfway(db, office, url, monkeypatch)
    response = half.during("select cancel_batch(%s)")
    answer = response.json()
    assert (response.status_code, answer["code"]) == (400, "batch_already_cancelled")
    assert (answer["batch_id"], answer["added"]) == (str(half.batch), db.batch_row(half.batch)["skipped"])
    assert answer["added"] == 19_999


@pytest.mark.own_database
def test_an_import_that_broke_off_goes_on_when_the_file_is_sent_again(
    db: TestDatabase, url: str, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    for again in ({"key": "half"}, {"to": "batch"}):
        db.rows("truncate call_batches cascade")
        half = Halfway(db, office, url, monkeypatch)
        db.rows(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where wait_event_type = 'Lock' and datname = current_database()"
        )
        response = half.go_on()
        answer = response.json()
        assert (response.status_code, answer["code"], answer["added"]) == (503, "database_unavailable", 10_000)
        assert answer["batch_id"] == str(half.batch)
        assert db.batch_row(half.batch)["status"] == "paused"
        with httpx2.Client(base_url=url, timeout=120) as client:
            fields: dict[str, Any] = {"to": half.batch} if "to" in again else again
            answer = office.post(client, half.file, **fields).json()
        assert (answer["batch_id"], answer["status"]) == (str(half.batch), "pending")
        assert (answer["added"], answer["duplicates"], answer["invalid"]) == (30_000, 0, 1)


def test_two_imports_into_one_batch_at_once_count_each_contact_once(db: TestDatabase, url: str, office: Office) -> None:
    batch = db.batch(office.agency, status="processing")
    answers = []

    def send(file: str) -> None:
        with httpx2.Client(base_url=url, timeout=120) as client:
            answers.append(office.post(client, file, to=batch).json())

    threads = [threading.Thread(target=send, args=(numbered(25_000, first),)) for first in (0, 0, 10_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(office.numbers(batch)) == len(set(office.numbers(batch))) == 35_000
    assert db.batch_row(batch)["total_contacts"] == 35_000
    by_import = {answer["import_id"]: answer for answer in answers}
    assert sum(answer["added"] for answer in by_import.values()) == 35_000


def test_rows_that_the_core_would_not_take_are_refused(db: TestDatabase, office: Office) -> None:
    batch = db.batch(office.agency)
    begun = db.value("select begin_import(%s, %s)", batch, "0" * 64)
    for rows in (None, {}, [], [1], [{"phone_number": "+15550000001"}], [{"row": 0}], [{"row": 1.5}], [{}] * 10_001):
        with pytest.raises(psycopg.Error) as refused:
            db.rows("select import_contacts(%s, %s, %s)", batch, begun["import_id"], json.dumps(rows))
        assert refused.value.sqlstate == "PT400"
    with pytest.raises(psycopg.Error) as refused:
        db.rows("select import_contacts(%s, %s, '[]')", batch, uuid4())
    assert refused.value.sqlstate == "PT404"
    with pytest.raises(psycopg.Error) as refused:
        db.rows("select begin_import(%s, 'x')", batch)
    assert refused.value.sqlstate == "PT400"
