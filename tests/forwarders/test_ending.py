"""Cancel, stop and pause through a forwarder whose app is out of reach: PostgREST calls the procedure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from functions._shared.settings import Settings
from functions.app import create_app

from ..support.database import TestDatabase
from ..support.forwarders import Project
from ..support.postgrest import PUBLISHABLE_KEY
from ..support.serving import serving
from ..support.tokens import token

PATHS = {
    "calls-batch-cancel": "/functions/v1/calls-batch-cancel",
    "calls-batch-pause": "/functions/v1/calls-batch-pause",
    "stop-calling": "/api/call/stop-calling",
}
SAME_HEADERS = (
    "content-type",
    "cache-control",
    "www-authenticate",
    "retry-after",
    "x-request-id",
    "allow",
    "x-calls-in-progress",
    "x-calls-starting",
)
AUDIT = "select action, idempotency_key from batch_events where batch_id = %s"

pytestmark = [pytest.mark.one_postgres, pytest.mark.parametrize("name", PATHS)]


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with httpx2.Client(timeout=60) as client:
        yield client


@pytest.fixture
def alone(project: Project, nowhere: str, postgrest_url: str) -> Iterator[Project]:
    """A project whose app is out of reach, and whose PostgREST is not."""
    with project.secrets(LASTCALL_URL=nowhere, SUPABASE_URL=postgrest_url, SUPABASE_ANON_KEY=PUBLISHABLE_KEY):
        yield project


class Case:
    """A batch of 3 contacts that is being dialed, and the request that ends it."""

    def __init__(self, db: TestDatabase, name: str, agency: UUID) -> None:
        self.name = name
        self.owner = db.user(agency)
        self.member = db.user(agency, "agency_member")
        self.batch = db.batch(agency, self.owner)
        db.contacts(self.batch, pending=2, queued=0, in_progress=1)
        self.body: dict[str, Any] = {"batch_id": str(self.batch)}
        if name == "stop-calling":
            self.body = {"batchId": str(self.batch), "userId": str(self.owner)}

    def ids(self) -> list[str]:
        return [str(self.batch), str(self.owner), str(self.member)]


def id_field(name: str) -> str:
    return "batchId" if name == "stop-calling" else "batch_id"


def wait_field(name: str) -> str:
    return "waitSeconds" if name == "stop-calling" else "wait_seconds"


def end_calls_field(name: str) -> str:
    return "endCalls" if name == "stop-calling" else "end_calls"


REQUESTS: dict[str, Any] = {
    "done": {},
    "with a reason": lambda case: {"json": {**case.body, "reason": "wrong list"}},
    "again": {"again": True},
    "with a field that is not known": lambda case: {"json": {**case.body, "colour": "red"}},
    "another batch": lambda case: {"json": {**case.body, id_field(case.name): str(uuid4())}},
    "no batch": {"json": {}},
    "null for a batch": lambda case: {"json": {**case.body, id_field(case.name): None}},
    "a number for a batch": lambda case: {"json": {**case.body, id_field(case.name): 7}},
    "a number for a reason": lambda case: {"json": {**case.body, "reason": 7.5}},
    "the end of calls": lambda case: {"json": {**case.body, end_calls_field(case.name): True}},
    "no end of calls": lambda case: {"json": {**case.body, end_calls_field(case.name): False}},
    "null for the end of calls": lambda case: {"json": {**case.body, end_calls_field(case.name): None}},
    "a text for the end of calls": lambda case: {"json": {**case.body, end_calls_field(case.name): "true"}},
    "a wait": lambda case: {"json": {**case.body, wait_field(case.name): 5}},
    "no wait": lambda case: {"json": {**case.body, wait_field(case.name): 0}},
    "null for a wait": lambda case: {"json": {**case.body, wait_field(case.name): None}},
    "a text for a wait": lambda case: {"json": {**case.body, wait_field(case.name): "5"}},
    "a wait below 0": lambda case: {"json": {**case.body, wait_field(case.name): -1}},
    "a wait over 30 seconds": lambda case: {"json": {**case.body, wait_field(case.name): 30.5}},
    "an array": {"json": []},
    "no JSON": {"content": b"{"},
    "no token": {"headers": {}},
    "no bearer": {"headers": {"Authorization": "Basic abc"}},
    "an API key": {"headers": {"Authorization": f"Bearer {PUBLISHABLE_KEY}"}},
    "an expired token": lambda case: {"headers": {"Authorization": f"Bearer {token(case.owner, exp=1)}"}},
    "a forged token": lambda case: {"headers": {"Authorization": f"Bearer {token(case.owner)[:-4]}AAAA"}},
    "no token at all": {"headers": {"Authorization": "Bearer nonsense"}},
    "a service's token": lambda case: {
        "headers": {"Authorization": f"Bearer {token(case.owner, role='service_role')}"}
    },
    "a member": lambda case: {"headers": {"Authorization": f"Bearer {token(case.member)}"}},
    "a stranger": {"headers": {"Authorization": f"Bearer {token(uuid4())}"}},
}


@pytest.mark.parametrize("given", REQUESTS)
def test_the_answer_is_the_apps(
    alone: Project, client: httpx2.Client, db: TestDatabase, settings: Settings, name: str, given: str
) -> None:
    agency = db.agency()
    answers = []
    with TestClient(create_app(settings)) as app:
        for send in (
            lambda **request: app.post(PATHS[name], **request),
            lambda **request: client.post(alone.function(name), **request),
        ):
            case = Case(db, name, agency)
            default = {"headers": {"Authorization": f"Bearer {token(case.owner)}"}, "json": case.body}
            change = REQUESTS[given]
            request = default | (change(case) if callable(change) else change)
            if request.pop("again", False):
                send(**default)
            if "content" in request:
                del request["json"]
            request["headers"] = {**request["headers"], "X-Request-Id": "same-at-both"}
            answer: Any = send(**request)
            text = answer.text
            for own_id in case.ids():
                text = text.replace(own_id, "id")
            body = json.loads(text)
            body.pop("paused_at", None)
            headers = {header: answer.headers[header] for header in SAME_HEADERS if header in answer.headers}
            state = {**db.statuses(case.batch), "batch": db.batch_row(case.batch)["status"]}
            answers.append((answer.status_code, body, headers, state))
    assert answers[1] == answers[0]


def test_a_request_that_the_app_has_done_is_done_once_and_gets_the_first_answer(
    project: Project,
    client: httpx2.Client,
    db: TestDatabase,
    settings: Settings,
    postgrest_url: str,
    name: str,
) -> None:
    """The app's answer is lost, or a proxy in front of the app answers 502 instead."""
    case = Case(db, name, db.agency())
    app = create_app(settings)
    firsts: list[bytes] = []

    async def lose(request: Request) -> Response:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://app") as inner:
            headers = {
                header: request.headers[header] for header in ("authorization", "content-type", "idempotency-key")
            }
            first = await inner.post(request.url.path, content=await request.body(), headers=headers)
        firsts.append(first.content)
        return Response(status_code=502)

    proxy = Starlette(routes=[Route(PATHS[name], lose, methods=["POST"])])
    with (
        serving(proxy) as (host, port),
        project.secrets(
            LASTCALL_URL=f"http://{host}:{port}", SUPABASE_URL=postgrest_url, SUPABASE_ANON_KEY=PUBLISHABLE_KEY
        ),
    ):
        headers = {"Authorization": f"Bearer {token(case.owner)}"}
        answer = client.post(project.function(name), json=case.body, headers=headers)
    assert (answer.status_code, answer.json()) == (200, json.loads(firsts[0]))
    (event,) = db.rows(AUDIT, case.batch)
    assert event["idempotency_key"] is not None


def test_an_answer_of_the_app_stands(
    project: Project, client: httpx2.Client, db: TestDatabase, settings: Settings, postgrest_url: str, name: str
) -> None:
    case = Case(db, name, db.agency())
    with (
        serving(create_app(settings)) as (host, port),
        project.secrets(
            LASTCALL_URL=f"http://{host}:{port}", SUPABASE_URL=postgrest_url, SUPABASE_ANON_KEY=PUBLISHABLE_KEY
        ),
    ):
        headers = {"Authorization": f"Bearer {token(case.owner)}", "Idempotency-Key": "mine"}
        answer = client.post(project.function(name), json=case.body, headers=headers)
        assert answer.status_code == 200
        assert client.post(project.function("calls-batch-resume"), json={"batch_id": "x"}).status_code == 401
    assert [event["idempotency_key"] for event in db.rows(AUDIT, case.batch)] == ["mine"]


def test_a_project_with_new_keys_ends_batches_too(
    project: Project, client: httpx2.Client, db: TestDatabase, nowhere: str, postgrest_url: str, name: str
) -> None:
    case = Case(db, name, db.agency())
    keys = json.dumps({"default": PUBLISHABLE_KEY})
    with project.secrets(LASTCALL_URL=nowhere, SUPABASE_URL=postgrest_url, SUPABASE_PUBLISHABLE_KEYS=keys):
        headers = {"Authorization": f"Bearer {token(case.owner)}"}
        assert client.post(project.function(name), json=case.body, headers=headers).status_code == 200


def test_without_the_app_and_postgrest_the_answer_says_to_repeat_the_request(
    project: Project, client: httpx2.Client, db: TestDatabase, nowhere: str, name: str
) -> None:
    case = Case(db, name, db.agency())
    with project.secrets(LASTCALL_URL=nowhere, SUPABASE_URL=nowhere, SUPABASE_ANON_KEY=PUBLISHABLE_KEY):
        headers = {"Authorization": f"Bearer {token(case.owner)}"}
        answer = client.post(project.function(name), json=case.body, headers=headers)
    assert answer.status_code == 502
    assert "repeat it with the same Idempotency-Key" in answer.text
    assert db.batch_row(case.batch)["status"] == "processing"


def test_nothing_else_is_done_without_the_app(
    alone: Project, client: httpx2.Client, db: TestDatabase, name: str
) -> None:
    case = Case(db, name, db.agency())
    headers = {"Authorization": f"Bearer {token(case.owner)}"}
    assert client.post(alone.function(name), json=case.body, headers=headers).status_code == 200
    assert client.post(alone.function("calls-batch-resume"), json=case.body, headers=headers).status_code == 502
    assert client.get(alone.function(name), headers=headers).status_code == 502
