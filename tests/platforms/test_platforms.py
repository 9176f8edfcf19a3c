"""The functions on the platforms that run functions: the same answers as everywhere, and one connection for all."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx2
import psycopg
import pytest
from openpyxl import Workbook
from starlette.testclient import TestClient

from functions._shared.settings import Settings
from functions.app import create_app
from functions.migrations import migrate
from functions.postgres_server import PostgresServer

from ..support.client import Case, answer
from ..support.command import environment
from ..support.database import TestDatabase
from ..support.outage import unavailable
from ..support.platforms import PLATFORMS, REPOSITORY, aws_lambda
from ..support.servers import new_server, short_lived_folder
from ..support.tokens import ISSUER, SECRET, bearer
from ..support.waiting import until
from ..support.webhooks import BODY, STORED, Carrier, queue

pytestmark = [pytest.mark.long, pytest.mark.one_postgres]

CANCEL = "/functions/v1/calls-batch-cancel"
IMPORT = "/functions/v1/calls-batch-import"
EXPORT = "/functions/v1/calls-batch-export"
PATH_SECRET = "whsec_ab/c+d/+/ef="
# Headers that the server in front adds or counts.
SERVERS_OWN = {"date", "server", "content-length", "connection", "transfer-encoding"}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server of these tests' own, which comes and goes."""
    with short_lived_folder() as folder:
        server = new_server(folder)
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="module")
def database(server: PostgresServer) -> str:
    with psycopg.connect(server.uri(), autocommit=True) as connection:
        connection.execute("create database platforms")
    migrate(server.uri("platforms"))
    return "platforms"


@pytest.fixture(scope="module", params=PLATFORMS)
def name(request: pytest.FixtureRequest) -> str:
    """One platform after the other."""
    return str(request.param)


@pytest.fixture(scope="module")
def log() -> Iterator[Path]:
    """Where the platform writes what the function writes."""
    with tempfile.TemporaryDirectory(prefix="lastcall-") as folder:
        yield Path(folder) / "log"


@pytest.fixture(scope="module")
def platform(name: str, server: PostgresServer, database: str, log: Path) -> Iterator[httpx2.Client]:
    """A client of the functions on that platform."""
    settings = {
        "DATABASE_URL": server.uri(database, "lastcall_functions"),
        "SUPABASE_JWT_SECRET": SECRET,
        "SUPABASE_JWT_ISSUER": ISSUER,
    }
    with PLATFORMS[name](settings, log) as url, httpx2.Client(base_url=url, timeout=60) as client:
        yield client
    log.unlink()


@pytest.fixture
def db(server: PostgresServer, database: str) -> Iterator[TestDatabase]:
    db = TestDatabase(server.uri(database), server.uri(database, "lastcall_functions"))
    yield db
    assert db.unbalanced() == []
    db.close()


@pytest.fixture
def app(db: TestDatabase) -> Iterator[TestClient]:
    """The app itself, to compare with."""
    settings = Settings(database_url=db.functions_uri, jwt_secret=SECRET, jwt_issuer=ISSUER)
    with TestClient(create_app(settings)) as client:
        yield client


def headers(response: httpx2.Response) -> dict[str, str]:
    return {
        name: value
        for name, value in response.headers.items()
        if name not in SERVERS_OWN and not name.startswith("x-vercel-internal-")
    }


def test_a_cancel_is_answered_as_by_the_app_itself(db: TestDatabase, platform: httpx2.Client, app: TestClient) -> None:
    here, there = Case(db, contacts=3), Case(db, contacts=3)
    for status in (200, 400):
        given = [
            client.post(
                CANCEL,
                json={"batch_id": str(case.batch), "reason": "wrong list, größe"},
                headers=bearer(case.user) | {"X-Request-Id": "request/1", "Cookie": "a=1; b=2"},
            )
            for client, case in ((platform, here), (app, there))
        ]
        assert [response.status_code for response in given] == [status, status]
        ours, theirs = ({**response.json(), "batch_id": None} for response in given)
        assert ours == theirs
        assert headers(given[0]) == headers(given[1])
        assert given[0].headers["x-request-id"] == "request/1"
    assert db.statuses(here.batch) == {"skipped": 3}
    event = db.row("select request_id, reason from batch_events where batch_id = %s", here.batch)
    assert event == {"request_id": "request/1", "reason": "wrong list, größe"}


REFUSALS = [
    ("GET", CANCEL, {}, None),  # 405, Allow
    ("OPTIONS", CANCEL, {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}, None),
    ("POST", CANCEL, {}, b"{}"),  # 401, WWW-Authenticate
    ("POST", CANCEL, {"Authorization": "Bearer sb_secret_x"}, b"{}"),
    ("POST", "/functions/v1/nothing", {}, b"{}"),
    ("HEAD", "/health", {}, None),
    ("GET", "/health?a=1&a=2&b=%C3%B6", {}, None),
    ("POST", "/api/call/stop-calling", {}, b"{}"),
]


@pytest.mark.parametrize(("method", "path", "given", "body"), REFUSALS)
def test_status_headers_and_body_are_the_apps(
    platform: httpx2.Client, app: TestClient, method: str, path: str, given: dict[str, str], body: bytes | None
) -> None:
    sent = {"X-Request-Id": "r-1", "Content-Type": "application/json", **given}
    ours, theirs = (client.request(method, path, headers=sent, content=body) for client in (platform, app))
    assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content)
    # API Gateways and function URLs have a type for what has no content, too.
    assert headers(theirs).items() <= headers(ours).items()


def test_the_next_invocation_has_the_connection_of_the_one_before(db: TestDatabase, platform: httpx2.Client) -> None:
    cases = [Case(db) for _ in range(3)]
    query = "select pid, backend_start from pg_stat_activity where application_name = 'lastcall'"
    found = []
    for case in cases:
        assert case.cancel(platform).status_code == 200  # type: ignore[arg-type]
        until(lambda: len(db.rows(query)) == 1)  # those of the tests before are ending
        found.append(db.rows(query))
    assert found == [found[0]] * 3


def test_a_database_that_comes_back_is_found_again(
    db: TestDatabase, server: PostgresServer, platform: httpx2.Client
) -> None:
    cases = [Case(db) for _ in range(3)]
    assert cases[0].cancel(platform).status_code == 200  # type: ignore[arg-type]
    db.owner.close()
    server.restart("immediate")
    assert cases[1].cancel(platform).status_code == 200  # type: ignore[arg-type]
    server.stop()
    response = cases[2].cancel(platform)  # type: ignore[arg-type]
    server.start()
    db.owner = db.connect()
    assert unavailable(response)
    assert db.batch_row(cases[2].batch)["status"] == "processing"
    assert cases[2].cancel(platform).status_code == 200  # type: ignore[arg-type]


def test_a_secret_in_the_path_arrives_with_its_slashes_and_is_not_logged(
    db: TestDatabase, platform: httpx2.Client, log: Path
) -> None:
    carrier = Carrier(db, db.agency())
    db.rows("delete from webhook_queue")
    db.rows("update private.webhook_secrets set secret = %s where agency_id = %s", PATH_SECRET, carrier.agency)
    spellings = (PATH_SECRET, quote(PATH_SECRET, safe=""))
    for secret in spellings:
        response = platform.post(f"/functions/v1/webhook-ingest/{carrier.agency}/{secret}", content=BODY)
        assert answer(response) == STORED
    assert queue(db) == [("pending", None)]
    # The process goes on writing for a moment after the reply.
    until(lambda: log.read_text().count("/webhook-ingest/{agency_id}/{webhook_secret:path}") >= len(spellings))
    assert not any(secret in log.read_text() for secret in spellings)


def test_an_uploaded_workbook_arrives_byte_for_byte(db: TestDatabase, platform: httpx2.Client) -> None:
    agency = db.agency()
    user, batch = db.user(agency), db.batch(agency)
    book = Workbook()
    for row in (["phone_number", "first_name"], ["+15557654321", "Zoë"], ["+15557654322", "李"]):
        book.worksheets[0].append(row)
    file = io.BytesIO()
    book.save(file)
    response = platform.post(
        IMPORT,
        data={"batch_id": str(batch)},
        files={"file": ("contacts.xlsx", file.getvalue())},
        headers=bearer(user),
    )
    assert (response.status_code, response.json()["added"]) == (200, 2), response.text
    names = db.rows("select first_name from contact_data where batch_id = %s order by contact_id", batch)
    assert [row["first_name"] for row in names] == ["Zoë", "李"]


def test_an_export_of_several_pages_is_whole(db: TestDatabase, platform: httpx2.Client, app: TestClient) -> None:
    agency = db.agency()
    user, batch = db.user(agency), db.batch(agency)
    db.contacts(batch, pending=2500)
    db.rows("update campaign_contacts set outcome_notes = 'größe' where batch_id = %s", batch)
    ours, theirs = (client.get(EXPORT, params={"batch_id": batch}, headers=bearer(user)) for client in (platform, app))
    assert (ours.status_code, ours.content) == (200, theirs.content)
    assert len(list(csv.DictReader(io.StringIO(ours.text)))) == 2500
    assert headers(ours) == headers(theirs) | {"x-request-id": ours.headers["x-request-id"]}


def test_an_export_that_breaks_off_does_not_look_whole(db: TestDatabase, platform: httpx2.Client) -> None:
    agency = db.agency()
    user, batch = db.user(agency), db.batch(agency)
    db.contacts(batch, pending=1500)
    definition = db.value("select pg_get_functiondef('public.export_contacts'::regproc)")
    # The second page divides by zero.
    broken = definition.replace(
        "select private.", "select case when after is not null then to_json(1 / (length(after) * 0)) else private."
    ).replace("contact_status)\n$", "contact_status) end\n$")
    assert broken != definition
    db.rows(broken)
    try:
        response = platform.get(EXPORT, params={"batch_id": batch}, headers=bearer(user))
        assert response.status_code == 500
    except httpx2.RemoteProtocolError:
        pass
    finally:
        db.rows(definition)


ENTRY_POINTS = [
    ("lambda", ".", "import functions.platforms.aws_lambda"),
    ("azure", "functions/platforms/azure", "import function_app"),
    ("google", "functions/platforms/google", "import main"),
]


@pytest.mark.parametrize(("folder", "start"), [entry[1:] for entry in ENTRY_POINTS], ids=[e[0] for e in ENTRY_POINTS])
def test_settings_that_cannot_be_are_said_at_the_start_and_not_at_the_first_request(folder: str, start: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", start],
        cwd=REPOSITORY / folder,
        env=environment(DATABASE_URL="postgresql:///none"),
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "SettingsError: set SUPABASE_JWT_SECRET, or SUPABASE_URL" in done.stderr


def test_the_stage_of_an_api_gateway_is_taken_away(db: TestDatabase, own_folder: Path) -> None:
    settings = {"DATABASE_URL": db.functions_uri, "SUPABASE_JWT_SECRET": SECRET, "LASTCALL_BASE_PATH": "/prod"}
    with aws_lambda(settings, own_folder / "log") as url:
        assert httpx2.get(f"{url}/prod/health", timeout=60).status_code == 200
