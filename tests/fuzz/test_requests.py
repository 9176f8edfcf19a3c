"""Bodies, queries, paths and headers of every function, for a caller who is signed in."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import hypothesis.strategies as st
import pytest
from hypothesis import given
from starlette.testclient import TestClient

from ..support.database import TestDatabase
from ..support.tokens import bearer
from . import strategies
from .rule import PHONE_NUMBER, PLANTED, fuzz, heard, holds

AGENCY_BATCH = "0d1c2b3a-4f5e-4a6b-8c7d-9e8f7a6b5c4d"
AGENCY, OWNER, AGENT, CAMPAIGN = (f"5eed0000-0000-4000-8000-{number:012}" for number in range(1, 5))
CONTACT = {
    "phone_number": PHONE_NUMBER,
    "first_name": PLANTED,
    "email": "ada@example.com",
    "timezone": "Europe/Paris",
    "custom_data": {"plan": PLANTED},
    "max_attempts": 3,
    "due_at": "2030-01-01T00:00:00Z",
}
SETTINGS = {
    "calls_per_minute": 30,
    "max_concurrent": 10,
    "scheduled_for": "2030-01-01T00:00:00Z",
    "mode": "scheduled",
    "name": PLANTED,
    "external_id": PLANTED,
    "calling_numbers": ["+15551234567"],
    "retry_delay_seconds": 60,
    "retry_outcomes": ["busy"],
    "calling_hours": {"start": "09:00", "end": "17:00"},
    "allowed_days": [1, 2],
    "timezone": "America/New_York",
    "max_calls_per_number": 3,
}
CHANGE = {"batch_id": AGENCY_BATCH, "reason": PLANTED}
CALL = {"batchId": AGENCY_BATCH, "userId": AGENCY_BATCH, "reason": PLANTED}
BODIES: dict[str, dict[str, Any]] = {
    "calls-batch-cancel": {**CHANGE, "wait_seconds": 0, "end_calls": True},
    "calls-batch-pause": {**CHANGE, "wait_seconds": 0},
    "calls-batch-resume": CHANGE,
    "calls-batch-create": {
        "agent_mapping_id": "",
        "from_number": "",
        "campaign_id": "",
        "contacts": [CONTACT],
        **SETTINGS,
    },
    "calls-batch-add-contacts": {"batch_id": AGENCY_BATCH, "contacts": [CONTACT]},
    "calls-batch-skip": {
        **CHANGE,
        "contact_ids": ["1"],
        "filter": {
            "status": ["pending"],
            "min_attempts": 0,
            "max_attempts": 3,
            "custom_data": {"plan": PLANTED, "age": 7.5, "gold": True},
        },
        "dry_run": False,
    },
    "calls-opt-out": {"phone_number": PHONE_NUMBER, "source": PLANTED, "reason": PLANTED},
    "calls-hold": {
        "campaign_id": CAMPAIGN,
        "agent_mapping_id": None,
        "from_number": None,
        "whole_agency": False,
        "until": "2030-01-01T00:00:00Z",
        "reason": PLANTED,
        "dry_run": False,
    },
    "calls-hold-lift": {"hold_id": AGENCY_BATCH, "reason": PLANTED},
    "calls-batch-retry": {**CHANGE, "outcomes": ["busy"], "scheduled_for": "2030-01-01T00:00:00Z"},
    "/api/call/stop-calling": {**CALL, "skipRemaining": False, "waitSeconds": 0, "endCalls": True},
    "/api/call/start-calling": {
        **CALL,
        "callingNumbers": ["+15551234567"],
        "callData": [{"phoneNumber": PHONE_NUMBER, "firstName": PLANTED}],
        "uuid": PLANTED,
    },
}
QUERIES: dict[str, list[str]] = {
    "calls-batch-list": ["status", "campaign_id", "limit", "offset", "after"],
    "calls-batch-get": ["batch_id", "contact_status", "contact_limit", "contact_offset", "contact_after"],
    "calls-batch-events": ["batch_id", "limit", "after"],
    "calls-batch-silence": ["batch_id"],
    "calls-hold-list": ["include_lifted", "limit"],
    "calls-batch-export": ["batch_id", "contact_status"],
    "calls-batch-import": ["import_id"],
    "/api/call/batches/{user}": ["page", "limit", "search"],
    "/api/call/batch-details/{batch}": ["page", "limit", "filter", "sortBy", "sortOrder", "search"],
}
GOOD_PARAMETERS = [AGENCY_BATCH, "1", "pending", "callStatus", '{"callStatus": "completed"}', "desc", "createdAt"]


def url(function: str) -> str:
    return function if function.startswith("/") else f"/functions/v1/{function}"


class Office:
    """An agency with an owner and a batch, whose ids are the same in every test."""

    def __init__(self, db: TestDatabase) -> None:
        agency, self.owner, self.batch = UUID(AGENCY), UUID(OWNER), UUID(AGENCY_BATCH)
        db.rows("insert into agencies (id, name) values (%s, 'Acme')", agency)
        db.rows("insert into users (id, agency_id, role) values (%s, %s, 'agency_owner')", self.owner, agency)
        calling = {**db.calling(agency), "agent_mapping_id": AGENT, "campaign_id": CAMPAIGN}
        db.rows("update agent_mappings set id = %s, ultravox_agent_id = 'the-agent'", AGENT)
        db.rows("update campaigns set id = %s", CAMPAIGN)
        db.rows("insert into call_batches (agency_id, id, user_id) values (%s, %s, %s)", agency, self.batch, self.owner)
        db.contacts(self.batch, pending=3, failed=1)
        BODIES["calls-batch-create"].update(calling)
        self.headers = {name.encode(): value.encode() for name, value in bearer(self.owner).items()}


@pytest.fixture
def office(db: TestDatabase) -> Office:
    return Office(db)


@pytest.mark.parametrize("function", BODIES)
def test_a_body(either_client: TestClient, office: Office, function: str) -> None:
    @fuzz(60)
    @given(strategies.encoded(strategies.spoiled(BODIES[function]) | strategies.json_text))
    def run(body: bytes) -> None:
        with heard() as log:
            holds(either_client.post(url(function), content=body, headers=office.headers), log)

    run()


@pytest.mark.parametrize("function", QUERIES)
def test_a_query(either_client: TestClient, office: Office, function: str) -> None:
    parameter = st.tuples(st.sampled_from(QUERIES[function]), st.sampled_from(GOOD_PARAMETERS) | strategies.text)
    known = st.just([("batch_id", AGENCY_BATCH)]) | st.just([])

    @fuzz(60)
    @given(known, st.lists(parameter, max_size=3), strategies.query)
    def run(first: Any, given: Any, more: Any) -> None:
        path = url(function).format(user=office.owner, batch=office.batch)
        with heard() as log:
            holds(either_client.get(path, params=[*first, *given, *more], headers=office.headers), log)

    run()


@fuzz(150)
@given(
    prefix=st.sampled_from(
        ["/api/call/batches/", "/api/call/batch-details/", "/functions/v1/", "/", "/functions/v1/calls-batch-get"]
    ),
    segments=st.lists(strategies.path_segment, max_size=3),
    tail=st.sampled_from(["", "?", "?a", "?%zz=%ff&=&&a=b=c", "?" + "a=1&" * 500]),
    method=st.sampled_from(["GET", "POST", "OPTIONS"]),
)
def test_a_path(
    either_client: TestClient, office: Office, prefix: str, segments: list[str], tail: str, method: str
) -> None:
    with heard() as log:
        path = f"http://testserver{prefix}{'/'.join(segments)}{tail}"
        holds(either_client.request(method, path, headers=office.headers), log)


HEADERS = [b"Idempotency-Key", b"X-Request-Id", b"Content-Type", b"Content-Encoding", b"Transfer-Encoding", b"Accept"]
HEADERS += [b"Origin", b"Host", b"Expect", b"Cookie", b"X-Forwarded-For", b"Authorization", b"Content-Length"]


@fuzz(200)
@given(
    function=st.sampled_from(
        ["calls-batch-pause", "calls-batch-list", "/health", "calls-batch-import", "calls-batch-process"]
    ),
    headers=st.lists(st.tuples(st.sampled_from(HEADERS), strategies.header_value), max_size=4),
    signed=st.booleans(),
)
def test_headers(either_client: TestClient, office: Office, function: str, headers: Any, signed: bool) -> None:
    with heard() as log:
        sent = [*(office.headers.items() if signed else []), *headers]
        body = f'{{"batch_id": "{AGENCY_BATCH}"}}'.encode()
        holds(either_client.post(url(function), content=body, headers=sent), log)
