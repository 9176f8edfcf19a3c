"""Skip, opt-out, hold and its lifting through a forwarder whose app is out of reach: PostgREST calls the procedure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from starlette.testclient import TestClient

from functions._shared.settings import Settings
from functions.app import create_app

from ..support.database import TestDatabase
from ..support.forwarders import Project
from ..support.postgrest import PUBLISHABLE_KEY
from ..support.tokens import token

SAME_HEADERS = ("content-type", "cache-control", "www-authenticate", "retry-after", "x-request-id")
ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00")

pytestmark = pytest.mark.one_postgres


class Case:
    """A batch of 3 contacts that is being dialed, and a hold of another campaign."""

    def __init__(self, db: TestDatabase) -> None:
        agency = db.agency()
        self.owner = db.user(agency)
        self.member = db.user(agency, "agency_member")
        self.calling = db.calling(agency)
        self.batch = db.batch(agency, self.owner, campaign_id=self.calling["campaign_id"])
        db.contacts(self.batch, pending=2, in_progress=1)
        self.contacts = [
            str(row["id"])
            for row in db.rows("select id from campaign_contacts where batch_id = %s order by id", self.batch)
        ]
        self.hold: UUID = db.value(
            "select (hold_calls(agent_mapping_id => %s, agency_id => %s)).hold_id",
            self.calling["agent_mapping_id"],
            agency,
        )


def skip(**more: Any) -> Callable[[Case], dict[str, Any]]:
    return lambda case: {"batch_id": str(case.batch), **more}


def opt_out(**more: Any) -> Callable[[Case], dict[str, Any]]:
    return lambda _case: {"phone_number": "+15550000001", **more}


def hold(**more: Any) -> Callable[[Case], dict[str, Any]]:
    return lambda case: {name: case.calling.get(value, value) if isinstance(value, str) else value
                         for name, value in more.items()}  # fmt: skip


def lift(**more: Any) -> Callable[[Case], dict[str, Any]]:
    return lambda case: {"hold_id": str(case.hold), **more}


PENDING = {"status": ["pending"]}
REQUESTS: dict[str, tuple[str, Callable[[Case], Any]]] = {
    "skip: by a filter": ("calls-batch-skip", skip(filter=PENDING, reason="wrong list")),
    "skip: by ids": ("calls-batch-skip", lambda case: {"batch_id": str(case.batch), "contact_ids": case.contacts[:1]}),
    "skip: dry": ("calls-batch-skip", skip(filter=PENDING, dry_run=True)),
    "skip: no contacts": ("calls-batch-skip", skip()),
    "skip: null for both": ("calls-batch-skip", skip(filter=None, contact_ids=None)),
    "skip: ids that are none": ("calls-batch-skip", skip(contact_ids=["one"])),
    "skip: numbers for ids": ("calls-batch-skip", skip(contact_ids=[1])),
    "skip: a text for ids": ("calls-batch-skip", skip(contact_ids="1")),
    "skip: a text for a filter": ("calls-batch-skip", skip(filter="pending")),
    "skip: an unknown filter": ("calls-batch-skip", skip(filter={"colour": "red"})),
    "skip: a text for dry_run": ("calls-batch-skip", skip(filter=PENDING, dry_run="yes")),
    "skip: null for dry_run": ("calls-batch-skip", skip(filter=PENDING, dry_run=None)),
    "skip: another batch": ("calls-batch-skip", lambda _case: {"batch_id": str(uuid4()), "filter": PENDING}),
    "opt out": ("calls-opt-out", opt_out(source="call", reason="asked")),
    "opt out: nulls": ("calls-opt-out", opt_out(source=None, reason=None)),
    "opt out: no number": ("calls-opt-out", lambda _case: {}),
    "opt out: a number that is none": ("calls-opt-out", opt_out(phone_number="911")),
    "opt out: null for a number": ("calls-opt-out", opt_out(phone_number=None)),
    "opt out: a number for a source": ("calls-opt-out", opt_out(source=7)),
    "hold: the agency": ("calls-hold", hold(whole_agency=True, reason="wrong hour")),
    "hold: a campaign": ("calls-hold", hold(campaign_id="campaign_id", until="2999-01-01T00:00:00Z")),
    "hold: an agent": ("calls-hold", hold(agent_mapping_id="agent_mapping_id", dry_run=True)),
    "hold: a caller number": ("calls-hold", hold(from_number="from_number", campaign_id=None)),
    "hold: nothing": ("calls-hold", hold()),
    "hold: two scopes": ("calls-hold", hold(whole_agency=True, campaign_id="campaign_id")),
    "hold: a time that has passed": ("calls-hold", hold(whole_agency=True, until="2000-01-01T00:00:00+01:00")),
    "hold: a time without a zone": ("calls-hold", hold(whole_agency=True, until="2999-01-01T00:00:00")),
    "hold: a text for a time": ("calls-hold", hold(whole_agency=True, until="soon")),
    "hold: a number for a time": ("calls-hold", hold(whole_agency=True, until=7)),
    "hold: a text for a campaign": ("calls-hold", hold(campaign_id="none")),
    "hold: a number for a campaign": ("calls-hold", hold(campaign_id=7)),
    "hold: a text for the agency": ("calls-hold", hold(whole_agency="yes")),
    "lift": ("calls-hold-lift", lift(reason="mended")),
    "lift: no hold": ("calls-hold-lift", lambda _case: {}),
    "lift: another hold": ("calls-hold-lift", lambda _case: {"hold_id": str(uuid4())}),
    "lift: null for a hold": ("calls-hold-lift", lift(hold_id=None)),
}


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with httpx2.Client(timeout=60) as client:
        yield client


@pytest.fixture
def alone(project: Project, nowhere: str, postgrest_url: str) -> Iterator[Project]:
    """A project whose app is out of reach, and whose PostgREST is not."""
    with project.secrets(LASTCALL_URL=nowhere, SUPABASE_URL=postgrest_url, SUPABASE_ANON_KEY=PUBLISHABLE_KEY):
        yield project


@pytest.mark.parametrize("caller", ["owner", "member"])
@pytest.mark.parametrize("given", REQUESTS)
def test_the_answer_is_the_apps(
    alone: Project, client: httpx2.Client, db: TestDatabase, settings: Settings, given: str, caller: str
) -> None:
    name, body = REQUESTS[given]
    answers = []
    with TestClient(create_app(settings)) as app:
        for send in (
            lambda **request: app.post(f"/functions/v1/{name}", **request),
            lambda **request: client.post(alone.function(name), **request),
        ):
            case = Case(db)
            headers = {"Authorization": f"Bearer {token(getattr(case, caller))}", "X-Request-Id": "same-at-both"}
            answer: Any = send(json=body(case), headers=headers)
            text = TIME.sub("time", ID.sub("id", answer.text))
            same = {header: answer.headers[header] for header in SAME_HEADERS if header in answer.headers}
            batch = db.batch_row(case.batch)
            state = (db.statuses(case.batch), batch["status"], batch["is_held"])
            answers.append((answer.status_code, json.loads(text), same, state))
    assert answers[1] == answers[0]


@pytest.mark.parametrize("given", [given for given in REQUESTS if given in ("skip: by a filter", "hold: the agency")])
def test_a_repeat_with_the_same_key_gets_the_first_answer(
    alone: Project, client: httpx2.Client, db: TestDatabase, given: str
) -> None:
    name, body = REQUESTS[given]
    case = Case(db)
    headers = {"Authorization": f"Bearer {token(case.owner)}", "Idempotency-Key": "mine"}
    answers = [client.post(alone.function(name), json=body(case), headers=headers) for _ in range(2)]
    assert answers[0].status_code == 200
    assert answers[1].json() == answers[0].json()
