"""POST webhook-ingest, and process-webhook-queue, which applies what came in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest
from starlette.testclient import TestClient

from functions._shared.settings import Settings
from functions.app import create_app

from ..support.client import answer
from ..support.database import TestDatabase
from ..support.serving import logged
from ..support.tokens import bearer, token
from ..support.webhooks import BODY, STORED, Carrier, event, queue, signed_standard, signed_ultravox

INGEST, PROCESS = "/functions/v1/webhook-ingest", "/functions/v1/process-webhook-queue"
SERVICE_KEY = token(uuid4(), role="service_role")
CRON = {"Authorization": "Bearer the-cron-secret-of-at-least-32-bytes"}


@pytest.fixture(params=["postgres", "postgrest"])
def client(request: pytest.FixtureRequest) -> Iterator[TestClient]:
    settings: Settings = request.getfixturevalue("settings" if request.param == "postgres" else "postgrest_settings")
    service = replace(settings, secret_key=SERVICE_KEY, cron_secret="the-cron-secret-of-at-least-32-bytes")
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def carrier(db: TestDatabase) -> Carrier:
    return Carrier(db, db.agency())


NO_TELEMETRY = "0d1c2b3a-4f5e-4a6b-8c7d-9e8f7a6b5c4d"
UNAUTHORIZED = (
    401,
    {"success": False, "error": "Invalid webhook signature or secret", "code": "webhook_unauthorized"},
)
NO_EVENT = "Body must be a webhook event: event, and call with callId and created"


@pytest.mark.parametrize("prefix", ["/functions/v1", ""])
def test_the_secret_in_the_path_and_again(client: TestClient, db: TestDatabase, carrier: Carrier, prefix: str) -> None:
    db.rows("update private.webhook_secrets set secret = 'whsec_ab/c+d/+/ef='")
    for secret in ("whsec_ab/c+d/+/ef=", quote("whsec_ab/c+d/+/ef=", safe="")):
        response = client.post(f"{prefix}/webhook-ingest/{carrier.agency}/{secret}", content=BODY)
        assert answer(response) == STORED
    assert queue(db) == [("pending", None)]


@pytest.mark.parametrize("prefix", ["/functions/v1", ""])
def test_signatures_are_over_the_body_to_the_letter(client: TestClient, carrier: Carrier, prefix: str) -> None:
    url = f"{prefix}/webhook-ingest/{carrier.agency}"
    response = client.post(url, content=BODY, headers=signed_standard(carrier.secret, BODY, webhook_id="msg_7"))
    assert answer(response) == (200, {"success": True, "event_id": "msg_7"})
    assert answer(client.post(url, content=BODY, headers=signed_ultravox(carrier.secret, BODY))) == STORED
    for headers in (signed_standard(carrier.secret, BODY), signed_ultravox(carrier.secret, BODY)):
        assert answer(client.post(url, content=BODY.strip(), headers=headers)) == UNAUTHORIZED
        assert answer(client.post(f"{url}/{carrier.secret}", content=BODY + " ", headers=headers)) == UNAUTHORIZED


def test_an_unsigned_event_gets_the_same_401_everywhere(client: TestClient, db: TestDatabase, carrier: Carrier) -> None:
    before = db.state()
    for agency in (carrier.agency, uuid4()):
        for path in ("", "/wrong", "/" + carrier.secret[:-1]):
            assert answer(client.post(f"{INGEST}/{agency}{path}", content=BODY)) == UNAUTHORIZED
        owner = bearer(db.user(carrier.agency)) if agency == carrier.agency else bearer(uuid4())
        before = db.state()
        # A token of the agency's own people is none either, nor is the service's key.
        assert answer(client.post(f"{INGEST}/{agency}", content=BODY, headers=owner)) == UNAUTHORIZED
        assert answer(client.post(f"{INGEST}/{agency}", content=BODY, headers=CRON)) == UNAUTHORIZED
        assert answer(client.post(f"{INGEST}/{agency}?webhook_secret={carrier.secret}", content=BODY)) == UNAUTHORIZED
    assert db.state() == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"event": "call.ended"}', b'{"event": "call.ended", "call": 1}'])
def test_a_body_that_is_no_event_is_400(client: TestClient, carrier: Carrier, body: bytes) -> None:
    response = client.post(f"{INGEST}/{carrier.agency}/{carrier.secret}", content=body)
    assert answer(response) == (400, {"success": False, "error": NO_EVENT, "code": "webhook_invalid"})


@pytest.mark.parametrize("body", [b"\xff", b'{"event": "\x00"}'])
def test_a_body_that_is_no_text_is_400(client: TestClient, carrier: Carrier, body: bytes) -> None:
    response = client.post(f"{INGEST}/{carrier.agency}/{carrier.secret}", content=body)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_body")


@pytest.mark.parametrize("path", ["/x", f"/{NO_TELEMETRY}/%00", f"/{NO_TELEMETRY}/" + "x" * 501, f"/{NO_TELEMETRY}/"])
def test_a_path_that_is_none_is_400(client: TestClient, path: str) -> None:
    response = client.post(f"{INGEST}{path}", content=BODY)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_path")


def test_a_body_of_256_kib_is_taken_and_a_larger_one_413(client: TestClient, carrier: Carrier) -> None:
    url = f"{INGEST}/{carrier.agency}/{carrier.secret}"
    assert answer(client.post(url, content=BODY.ljust(262_144))) == STORED
    response = client.post(url, content=BODY.ljust(262_145))
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_another_method_is_405(client: TestClient, carrier: Carrier, method: str) -> None:
    response = client.request(method, f"{INGEST}/{carrier.agency}/{carrier.secret}")
    assert (response.status_code, response.headers["allow"]) == (405, "POST, OPTIONS")


def test_an_unknown_event_type_is_200(client: TestClient, db: TestDatabase, carrier: Carrier) -> None:
    response = client.post(f"{INGEST}/{carrier.agency}/{carrier.secret}", json={"event": "call.billed"})
    assert response.status_code == 200
    assert queue(db) == [("ignored", "Not an event to apply")]


def test_secrets_are_not_logged(client: TestClient, carrier: Carrier) -> None:
    with logged() as log:
        client.post(f"{INGEST}/{carrier.agency}/{carrier.secret}", content=BODY)
        (line,) = log.lines("request")
    assert line["status"] == 200
    assert carrier.secret not in log.text


# process-webhook-queue


def place(db: TestDatabase, carrier: Carrier, number: int) -> tuple[UUID, list[dict[str, Any]]]:
    batch = db.batch(carrier.agency)
    db.contacts(batch, pending=number)
    return batch, carrier.place(batch, number)


def test_stored_events_are_applied_and_then_there_are_none(
    client: TestClient, db: TestDatabase, carrier: Carrier
) -> None:
    batch, calls = place(db, carrier, 3)
    for call in calls:
        reply = client.post(f"{INGEST}/{carrier.agency}/{carrier.secret}", json=event("call.ended", call))
        assert reply.status_code == 200
    assert answer(client.post(PROCESS, headers=CRON)) == (200, {"processed": 3, "failed": 0})
    assert answer(client.post(PROCESS, headers=CRON)) == (200, {"processed": 0})
    assert db.statuses(batch) == {"completed": 3}


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "BREW"])
@pytest.mark.parametrize("path", [PROCESS, "/process-webhook-queue"])
def test_any_method_runs_it(client: TestClient, db: TestDatabase, carrier: Carrier, method: str, path: str) -> None:
    batch, (call,) = place(db, carrier, 1)
    carrier.tell(event("call.ended", call))
    assert client.request(method, path, headers={"Authorization": f"Bearer {SERVICE_KEY}"}).status_code == 200
    assert db.statuses(batch) == {"completed": 1}


def test_a_preflight_names_the_methods_and_runs_nothing(client: TestClient, db: TestDatabase, carrier: Carrier) -> None:
    carrier.tell(event("call.ended"))
    response = client.options(PROCESS)
    assert (response.status_code, response.headers["allow"]) == (204, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
    assert queue(db) == [("pending", None)]


def test_only_the_service_may_run_it(client: TestClient, db: TestDatabase, carrier: Carrier) -> None:
    carrier.tell(event("call.ended"))
    owner = bearer(db.user(carrier.agency))
    for headers in ({}, owner, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {carrier.secret}"}):
        response = client.post(PROCESS, headers=headers)
        assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert queue(db) == [("pending", None)]


@pytest.mark.own_database
def test_a_claim_that_fails_is_500(client: TestClient, db: TestDatabase) -> None:
    db.rows("alter table webhook_queue rename column attempts to tries")
    response = client.post(PROCESS, headers=CRON)
    assert answer(response) == (
        500,
        {"success": False, "error": "Failed to process webhook queue", "code": "internal_error"},
    )
