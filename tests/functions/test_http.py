"""HTTP as every function speaks it."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from starlette.testclient import TestClient

from functions._shared.settings import Settings
from functions.app import create_app

from ..support.database import TestDatabase
from ..support.serving import Log, logged, serving
from ..support.tokens import ISSUER, SECRET, bearer, token
from ..support.waiting import until

pytestmark = pytest.mark.one_postgres

CANCEL = "/functions/v1/calls-batch-cancel"
STOP = "/api/call/stop-calling"
BOTH = pytest.mark.parametrize("path", [CANCEL, STOP])
USER = "5f0e7a3c-1b2d-4c3e-8f90-a1b2c3d4e5f6"
BATCH = "0d1c2b3a-4f5e-4a6b-8c7d-9e8f7a6b5c4d"
BODIES = {CANCEL: {"batch_id": BATCH}, STOP: {"batchId": BATCH, "userId": USER}}
NO_DATABASE = Settings(
    database_url="postgresql://nobody@/none?host=/nowhere",
    jwt_secret=SECRET,
    jwt_issuer=ISSUER,
    pool_timeout_s=0.1,
)


@pytest.fixture
def alone() -> Iterator[TestClient]:
    """A service whose database is down."""
    with TestClient(create_app(NO_DATABASE), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def log() -> Iterator[Log]:
    with logged() as log:
        yield log


def encoded(headers: dict[str, str | bytes]) -> dict[bytes, bytes]:
    """Headers whose values may be any bytes."""
    return {name.encode(): value.encode() if isinstance(value, str) else value for name, value in headers.items()}


def message(response: httpx2.Response) -> str:
    """The message of an error, in either envelope."""
    body: dict[str, Any] = response.json()
    if "success" in body:
        assert set(body) == {"success", "error", "code"}
        assert body["success"] is False
        error = body["error"]
    else:
        assert body == {
            "message": "",
            "status": False,
            "code": response.status_code,
            "errorMessage": body["errorMessage"],
            "data": {},
        }
        error = body["errorMessage"]
    assert isinstance(error, str)
    assert error
    return error


# Methods.


@BOTH
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"])
def test_any_method_but_post_is_refused_with_the_one_that_is_not(alone: TestClient, path: str, method: str) -> None:
    response = alone.request(method, path, headers=bearer(USER), content=json.dumps(BODIES[path]))
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST, OPTIONS"
    assert message(response) == "Method must be POST"


def test_health_is_read_by_get_and_head_only(alone: TestClient, client: TestClient) -> None:
    response = alone.post("/health")
    assert (response.status_code, response.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    assert client.head("/health").status_code == 200


@BOTH
def test_a_browsers_preflight_is_answered_without_a_token(alone: TestClient, path: str) -> None:
    asked = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, apikey, content-type, x-client-info, x-region, x-request-id",
    }
    response = alone.options(path, headers=asked)
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
    allowed = response.headers["Access-Control-Allow-Headers"].split(", ")
    assert set(asked["Access-Control-Request-Headers"].split(", ")) <= set(allowed)


def test_a_head_request_over_http_is_answered_without_a_body() -> None:
    with serving(create_app(NO_DATABASE)) as (host, port), httpx2.Client(timeout=60) as client:
        response = client.head(f"http://{host}:{port}{CANCEL}")
        assert (response.status_code, response.content) == (405, b"")
        assert client.get(f"http://{host}:{port}{CANCEL}").status_code == 405


# The order: method, token, body, database.


@BOTH
def test_the_method_is_looked_at_first_and_the_token_before_the_body(alone: TestClient, path: str) -> None:
    assert alone.get(path).status_code == 405
    assert alone.post(path, content=b"garbage").status_code == 401
    assert alone.post(path, content=b"x" * 100_000).status_code == 401
    assert alone.post(path, content=b"garbage", headers=bearer(USER)).status_code == 400


@BOTH
def test_the_database_is_asked_last(alone: TestClient, path: str) -> None:
    response = alone.post(path, json=BODIES[path], headers=bearer(USER))
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) > 0
    message(response)


# Bodies.

NOT_OBJECTS = {
    "empty": b"",
    "spaces": b"  ",
    "text": b"garbage",
    "a form": b"batch_id=1&userId=2",
    "cut off": b'{"batch_id": "',
    "a single quote": b"{'batch_id': 1}",
    "a list": b"[]",
    "a list of objects": b"[{}]",
    "a string": b'"x"',
    "null": b"null",
    "a number": b"1",
    "true": b"true",
    "not UTF-8": b"\xff\xfe{}",
    "UTF-16": json.dumps({"batch_id": BATCH}).encode("utf-16"),
    "a NUL": b"\x00",
    "deep lists": b"[" * 60_000,
    "deep objects": b'{"a":' * 10_000,
    "deep within a field": b'{"other": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    "deep objects within a field": b'{"other": ' + b'{"a":' * 8_000 + b"1" + b"}" * 8_001,
}


@BOTH
@pytest.mark.parametrize("body", NOT_OBJECTS.values(), ids=NOT_OBJECTS.keys())
def test_a_body_that_is_no_json_object_is_refused(alone: TestClient, path: str, body: bytes) -> None:
    response = alone.post(path, content=body, headers=bearer(USER))
    assert response.status_code == 400
    message(response)


def short(value: object) -> str:
    return repr(value)[:90]


WRONG: dict[tuple[str, str], list[Any]] = {
    (CANCEL, "batch_id"): [None, 5, True, [], {}, "", "nope", BATCH[:-1], f"{BATCH}\0"],
    (STOP, "batchId"): [None, 5, True, [BATCH], {}, "", "a\0b", "x" * 501],
    (STOP, "userId"): [None, 5, False, [USER], {}, "", "\0", "x" * 501],
    (STOP, "skipRemaining"): [None, "true", 1, []],
    (CANCEL, "reason"): [5, "", "\0", "x" * 501, []],
    (STOP, "reason"): [5, "", "\0", "x" * 501, []],
}
WRONG_FIELDS = [(path, {**BODIES[path], field: value}) for (path, field), values in WRONG.items() for value in values]


@pytest.mark.parametrize(("path", "body"), WRONG_FIELDS, ids=short)
def test_a_field_of_a_wrong_type_is_refused(alone: TestClient, path: str, body: Any) -> None:
    response = alone.post(path, json=body, headers=bearer(USER))
    assert response.status_code == 400
    message(response)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (CANCEL, {}, "batch_id is required"),
        (CANCEL, {"batchId": BATCH}, "batch_id is required"),
        (CANCEL, {"reason": "because"}, "batch_id is required"),
        (STOP, {}, "batchId is required"),
        (STOP, {"userId": USER}, "batchId is required"),
        (STOP, {"batchId": BATCH}, "userId is required"),
        (STOP, {"batch_id": BATCH, "user_id": USER}, "batchId is required"),
    ],
)
def test_a_missing_field_is_named(alone: TestClient, path: str, body: Any, says: str) -> None:
    response = alone.post(path, json=body, headers=bearer(USER))
    assert (response.status_code, message(response)) == (400, says)


@BOTH
@pytest.mark.parametrize("escape", [r"\ud800", r"\udc00", r"x\ud800\u0041", r"\udc00\ud800", r"\ud83d"])
@pytest.mark.parametrize("tail", ["", "and more text after it"])
def test_half_a_surrogate_pair_is_refused(alone: TestClient, path: str, escape: str, tail: str) -> None:
    body = json.dumps({**BODIES[path], "reason": "?"}).replace("?", escape + tail)
    response = alone.post(path, content=body, headers=bearer(USER))
    assert response.status_code == 400


@BOTH
def test_text_that_is_not_utf8_is_refused(alone: TestClient, path: str) -> None:
    body = json.dumps({**BODIES[path], "reason": "?"}).encode().replace(b"?", b"\xff\xfe")
    assert alone.post(path, content=body, headers=bearer(USER)).status_code == 400


def test_unknown_fields_are_ignored_and_any_text_is_kept(client: TestClient, db: TestDatabase) -> None:
    agency = db.agency()
    batch = db.batch(agency)
    reason = "Wrong skript, \U0001f600 'quoted' \"twice\" \\ %s {} \n\t \x7f é"
    body = {
        "batch_id": str(batch),
        "reason": reason,
        "agency_id": str(uuid4()),
        "status": "completed",
        "x": [{}],
    }
    assert client.post(CANCEL, json=body, headers=bearer(db.user(agency))).status_code == 200
    assert db.value("select reason from batch_events") == reason


@BOTH
@pytest.mark.parametrize("content_type", [None, "text/plain", "application/json; charset=utf-8", "garbage"])
def test_a_body_is_json_whatever_its_content_type_says(alone: TestClient, path: str, content_type: str | None) -> None:
    headers = bearer(USER) | ({"Content-Type": content_type} if content_type else {})
    assert alone.post(path, content=json.dumps(BODIES[path]), headers=headers).status_code == 503


# Queries.


@pytest.mark.parametrize("field", ["status", "campaign_id", "limit", "offset"])
def test_a_parameter_that_says_null_is_not_as_if_left_out(alone: TestClient, field: str) -> None:
    response = alone.get(f"/functions/v1/calls-batch-list?{field}=null", headers=bearer(USER))
    assert response.status_code == 400
    assert f"$.{field}" in message(response)


def test_a_parameter_that_is_empty_is_as_if_left_out(alone: TestClient) -> None:
    url = "/functions/v1/calls-batch-list?status=&campaign_id=&limit=&offset=&after="
    assert alone.get(url, headers=bearer(USER)).status_code == 503


# The size of a body.


def padded(path: str, size: int) -> bytes:
    body = json.dumps(BODIES[path]).encode()
    return body + b" " * (size - len(body))


@BOTH
def test_a_body_over_the_limit_is_refused_and_one_at_the_limit_is_not(alone: TestClient, path: str) -> None:
    limit = NO_DATABASE.max_body_bytes
    assert alone.post(path, content=padded(path, limit), headers=bearer(USER)).status_code == 503
    response = alone.post(path, content=padded(path, limit + 1), headers=bearer(USER))
    assert (response.status_code, message(response)) == (413, f"Body must have at most {limit} bytes")


@BOTH
def test_a_streamed_body_without_end_is_cut_off(path: str) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 1 << 30:
            sent += 1 << 16
            yield b" " * (1 << 16)

    with (
        serving(create_app(NO_DATABASE)) as (host, port),
        httpx2.Client(timeout=60) as client,
        contextlib.suppress(httpx2.TransportError),  # still sending when it is cut off, it may miss the reply
    ):
        response = client.post(f"http://{host}:{port}{path}", content=endless(), headers=bearer(USER))
        assert response.status_code == 413
    assert sent < 1 << 28


@BOTH
def test_a_large_body_of_a_known_length_is_refused_too(path: str) -> None:
    with serving(create_app(NO_DATABASE)) as (host, port), httpx2.Client(timeout=60) as client:
        url = f"http://{host}:{port}{path}"
        response = client.post(url, content=b" " * 20_000_000, headers=bearer(USER))
        assert response.status_code == 413
        message(response)
        # And others are answered as ever.
        assert client.post(url, json={}, headers=bearer(USER)).status_code == 400


def test_a_streamed_body_within_the_limit_is_accepted() -> None:
    with serving(create_app(NO_DATABASE)) as (host, port), httpx2.Client(timeout=60) as client:
        url = f"http://{host}:{port}{CANCEL}"
        response = client.post(url, content=iter([b"{", b"}"]), headers=bearer(USER))
    assert (response.status_code, message(response)) == (400, "batch_id is required")


def test_a_client_that_leaves_before_its_body_is_complete_is_no_failure_of_ours(log: Log) -> None:
    with serving(create_app(NO_DATABASE)) as (host, port):
        with socket.create_connection((host, port)) as connection:
            head = f"POST {CANCEL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token(USER)}\r\n"
            connection.sendall(f'{head}Content-Length: 100\r\n\r\n{{"batch'.encode())
        until(lambda: log.lines("request"))
    assert len(log.lines("request")) == 1
    assert all(line["level"] == "info" for line in log.lines())


# Paths.


@pytest.mark.parametrize(
    "path",
    ["/nope", "/functions/v1/nope", CANCEL + "/", STOP + "/x", "//evil.example/", "/%00", "/%ff", "/ä"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_where_no_function_is_the_answer_is_404_as_json(alone: TestClient, path: str, method: str) -> None:
    response = alone.request(method, f"http://testserver{path}")
    assert response.status_code == 404
    assert response.json()["code"] == "no_such_function"
    assert response.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("host", ["", "[", "]", "a b", "[::1", "x" * 5_000, "a:b:c", "ü".encode()])
@pytest.mark.parametrize("path", ["/nope", CANCEL, STOP])
def test_a_strange_host_header_changes_nothing(alone: TestClient, host: str | bytes, path: str) -> None:
    response = alone.post(path, headers=encoded({"Host": host}))
    assert response.status_code == (404 if path == "/nope" else 401)


# Headers of every answer.


def every_kind_of_answer(client: TestClient, headers: dict[str, str]) -> list[httpx2.Response]:
    signed = {**headers, **bearer(USER)}
    return [
        client.options(CANCEL, headers=headers),
        client.get(CANCEL, headers=headers),
        client.post(CANCEL, headers=headers),
        client.post(STOP, headers=signed),
        client.post(CANCEL, content=b" " * 70_000, headers=signed),
        client.post("/nope", headers=headers),
        client.post(STOP, json=BODIES[STOP], headers=signed),
        client.get("/health", headers=headers),
    ]


def test_every_answer_may_be_read_by_a_web_page_and_carries_the_request_id(alone: TestClient) -> None:
    answers = every_kind_of_answer(alone, {"Origin": "https://app.example", "X-Request-Id": "abc-123"})
    assert [answer.status_code for answer in answers] == [204, 405, 401, 400, 413, 404, 503, 503]
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert answer.headers.get_list("X-Request-Id") == ["abc-123"]
        exposed = answer.headers["Access-Control-Expose-Headers"]
        assert {"X-Request-Id", "Retry-After"} <= set(exposed.split(", "))


def test_every_request_without_an_id_gets_one_of_its_own(alone: TestClient) -> None:
    answers = every_kind_of_answer(alone, {})
    assert len({answer.headers["X-Request-Id"] for answer in answers}) == len(answers)


def test_no_answer_is_kept_by_a_cache(alone: TestClient) -> None:
    answers = every_kind_of_answer(alone, {})[1:]
    assert {answer.headers["Cache-Control"] for answer in answers} == {"no-store"}


@pytest.mark.parametrize(
    "given", ["a", "x" * 128, "0d1c2b3a-4f5e", "Root=1-67891233-abcdef012345678912345678", "a.b_c:d/e+f="]
)
def test_a_sane_request_id_is_taken_over(alone: TestClient, given: str) -> None:
    assert alone.get("/nope", headers={"X-Request-Id": given}).headers["X-Request-Id"] == given


@pytest.mark.parametrize(
    "given",
    [
        "",
        " ",
        "x" * 129,
        "a b",
        "a\tb",
        'a"b',
        "a,b",
        "<script>",
        "a;b",
        "ä".encode(),
        b"\xff",
        b"a\r\nSet-Cookie: x=y",
        b"a\n",
        b"a\x00",
    ],
)
def test_any_other_request_id_is_replaced(alone: TestClient, given: str | bytes) -> None:
    answer = alone.get("/nope", headers=encoded({"X-Request-Id": given}))
    assert len(answer.headers["X-Request-Id"]) == 32
    assert "Set-Cookie" not in answer.headers


# The log.


def test_a_request_is_one_line_of_the_log_and_one_event_under_the_same_id(
    client: TestClient, db: TestDatabase, log: Log
) -> None:
    agency = db.agency()
    batch, user = db.batch(agency), db.user(agency)
    headers = {**bearer(user), "X-Request-Id": "from-the-app-1"}

    answer = client.post(CANCEL, json={"batch_id": str(batch)}, headers=headers)

    assert (answer.status_code, answer.headers["X-Request-Id"]) == (200, "from-the-app-1")
    assert db.value("select request_id from batch_events") == "from-the-app-1"
    (line,) = log.lines("request")
    assert line["duration_ms"] > 0
    assert {name: line[name] for name in ("level", "request_id", "method", "route", "status", "user_id")} == {
        "level": "info",
        "request_id": "from-the-app-1",
        "method": "POST",
        "route": CANCEL,
        "status": 200,
        "user_id": str(user),
    }


def test_an_id_that_we_gave_is_the_one_in_the_audit_trail_and_the_log(
    client: TestClient, db: TestDatabase, log: Log
) -> None:
    agency = db.agency()
    user = db.user(agency)
    batch = db.batch(agency, user)
    body = {"batchId": str(batch), "userId": str(user)}
    headers = {**bearer(user), "X-Request-Id": "not one of ours"}
    given = client.post(STOP, json=body, headers=headers).headers["X-Request-Id"]
    assert db.value("select request_id from batch_events") == given
    assert [line["request_id"] for line in log.lines("request")] == [given]


def test_the_log_holds_no_token_no_body_and_no_phone_number(client: TestClient, db: TestDatabase, log: Log) -> None:
    agency = db.agency()
    user = db.user(agency)
    batch = db.batch(agency, user)
    db.contacts(batch, pending=3)
    key, reason = "the-idempotency-key", "call +15550000001 no more"
    headers = {**bearer(user), "Idempotency-Key": key, "apikey": "sb_publishable_abcdef"}
    for _ in range(2):
        assert client.post(CANCEL, json={"batch_id": str(batch), "reason": reason}, headers=headers).is_success
    client.post(CANCEL, json={"batch_id": str(batch), "reason": reason}, headers=bearer(user))
    client.post(STOP, json={"batchId": "+15550000001", "userId": str(user)}, headers=bearer(user))
    client.post(STOP, json={"batchId": "+15550000001"}, headers={"Authorization": "Bearer garbage+15550000001"})
    client.post("/+15550000001?token=garbage", content=b"+15550000001")
    assert [line["status"] for line in log.lines("request")] == [200, 200, 400, 404, 401, 404]
    for secret in ("5550000001", token(user)[:20], "garbage", reason, key, "sb_publishable", str(batch)):
        assert secret not in log.text


FAILURES = {
    CANCEL: ("Failed to update batch status", {}),
    STOP: ("Failed to stop calling service or call queue", {"skipRemaining": True}),
}


@BOTH
@pytest.mark.own_database
def test_an_unexpected_error_that_quotes_a_row_shows_nothing_of_it(
    client: TestClient, db: TestDatabase, log: Log, path: str
) -> None:
    agency = db.agency()
    user = db.user(agency)
    batch = db.batch(agency, user)
    db.contacts(batch, pending=3)
    db.rows("alter table campaign_contacts add constraint nothing_is_skipped check (status <> 'skipped')")
    failure, extra = FAILURES[path]
    body = {"batch_id": str(batch)} if path == CANCEL else {"batchId": str(batch), "userId": str(user)}
    before = db.state()

    answer = client.post(path, json={**body, **extra}, headers=bearer(user))

    assert (answer.status_code, message(answer)) == (500, failure)
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert db.state() == before
    (line,) = log.lines("request failed")
    assert (line["level"], line["exception"], line["sqlstate"]) == ("error", "CheckViolation", "23514")
    assert line["request_id"] == answer.headers["X-Request-Id"]
    assert any("functions/" in frame for frame in line["trace"])
    for text in (answer.text, log.text):
        assert "555000000" not in text  # shorter, it may be in a time or an id
        assert "Failing row" not in text


# Idempotency-Key.


@BOTH
@pytest.mark.parametrize("key", ["", "x" * 256])
def test_an_idempotency_key_must_have_1_to_255_characters(
    client: TestClient, db: TestDatabase, path: str, key: str
) -> None:
    agency = db.agency()
    user = db.user(agency)
    batch = db.batch(agency, user)
    db.contacts(batch, pending=1)
    body = {"batch_id": str(batch)} if path == CANCEL else {"batchId": str(batch), "userId": str(user)}
    before = db.state()
    answer = client.post(path, json=body, headers={**bearer(user), "Idempotency-Key": key})
    assert (answer.status_code, message(answer)) == (400, "Idempotency-Key must have 1 to 255 characters")
    assert db.state() == before


@pytest.mark.parametrize("key", ["x", "x" * 255, "with spaces, \"quotes\" and 'more'", "ключ".encode(), b"\xe4\xff"])
def test_any_other_idempotency_key_makes_a_request_repeatable(
    client: TestClient, db: TestDatabase, key: str | bytes
) -> None:
    agency = db.agency()
    batch, headers = db.batch(agency), {**bearer(db.user(agency)), "Idempotency-Key": key}
    first, second = (client.post(CANCEL, json={"batch_id": str(batch)}, headers=encoded(headers)) for _ in range(2))
    assert first.status_code == 200
    assert second.json() == first.json()


# Health.


def test_the_root_lists_addresses_that_answer(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert [client.get(answer.json()[name]).status_code for name in ("docs", "openapi", "health")] == [200, 200, 200]


def test_health_says_that_the_database_answers(client: TestClient) -> None:
    answer = client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "database": "ok"})


def test_health_says_that_the_database_does_not_answer(alone: TestClient) -> None:
    answer = alone.get("/health")
    assert (answer.status_code, message(answer)) == (503, "The database does not answer")
    assert int(answer.headers["Retry-After"]) > 0
