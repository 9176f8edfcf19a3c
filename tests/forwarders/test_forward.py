"""supabase/functions on Deno: what passes through a forwarder, what does not, and what it answers by itself."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx2
import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from functions._shared.settings import Settings
from functions.app import create_app

from ..support.deno import ROOT
from ..support.forwarders import Project
from ..support.serving import serving
from ..support.tokens import token

FOLDER = ROOT / "supabase" / "functions"
NAMES = sorted(index.parent.name for index in FOLDER.glob("[!_]*/index.ts"))
ELSEWHERE = {
    "start-calling": ("start-calling", "/api/call/start-calling"),
    "stop-calling": ("stop-calling", "/api/call/stop-calling"),
    "list-user-batches": ("list-user-batches/someone", "/api/call/batches/someone"),
    "get-user-batch": ("get-user-batch/something", "/api/call/batch-details/something"),
    "webhook-ingest": ("webhook-ingest/nobody/a/b", "/functions/v1/webhook-ingest/nobody/a/b"),
}
CANCEL = "calls-batch-cancel"
UNKNOWN = "whether this was done is not known: repeat it with the same Idempotency-Key"
CORS = {
    "access-control-allow-origin": "*",
    "access-control-expose-headers": "X-Request-Id, Retry-After, X-Calls-In-Progress, X-Calls-Starting",
}
PREFLIGHT = {
    "Origin": "https://app.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}

Handler = Callable[[Request, Send], Any]


class Upstream:
    """Stands where the app is, and answers as a test says."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answer: Handler | Response = Response()
        self.left = threading.Event()
        """Set when somebody left before the answer's end."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        self.requests.append(request)
        if isinstance(self.answer, Response):
            async for _ in request.stream():
                pass
            await self.answer(scope, receive, send)
            return
        try:
            await self.answer(request, send)
        except ClientDisconnect:
            self.left.set()

    async def hang(self, request: Request, _send: Send) -> None:
        """Never answer."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.left.set()

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the only request."""
        (request,) = self.requests
        return dict(request.headers)


@pytest.fixture
def upstream(project: Project) -> Iterator[Upstream]:
    upstream = Upstream()
    with serving(upstream) as (host, port), project.secrets(LASTCALL_URL=f"http://{host}:{port}/"):
        yield upstream


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with httpx2.Client(headers={"Accept-Encoding": "identity"}, timeout=60) as client:
        yield client


def generate(folder: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "supabase" / "forwarders.py"), str(folder)], check=True)


def test_the_committed_forwarders_are_the_generated_ones(tmp_path: Path) -> None:
    generate(tmp_path)
    generated = {path.parent.name: path.read_text() for path in tmp_path.glob("*/*")}
    assert generated == {name: (FOLDER / name / "index.ts").read_text() for name in NAMES}
    assert set(NAMES) >= {CANCEL, *ELSEWHERE}


def test_a_function_that_is_no_more_is_removed_and_ones_own_stay(tmp_path: Path) -> None:
    former, own = tmp_path / "calls-batch-former" / "index.ts", tmp_path / "own" / "index.ts"
    for path, text in ((former, (FOLDER / CANCEL / "index.ts").read_text()), (own, "Deno.serve(own);\n")):
        path.parent.mkdir()
        path.write_text(text)
    generate(tmp_path)
    assert not former.parent.exists()
    assert own.read_text() == "Deno.serve(own);\n"


@pytest.mark.parametrize("name", NAMES)
def test_every_function_answers_as_the_app_does(project: Project, client: httpx2.Client, name: str) -> None:
    """Without a token: at each method the same status, headers and body as at the app itself."""
    settings = Settings(database_url="postgresql://127.0.0.1:9/none", jwt_secret="x" * 32, cron_secret="y" * 32)
    forwarded, path = ELSEWHERE.get(name, (name, f"/functions/v1/{name}"))
    with serving(create_app(settings)) as (host, port), project.secrets(LASTCALL_URL=f"http://{host}:{port}"):
        for method in ("OPTIONS", "GET", "HEAD", "POST", "PUT"):
            headers = {"X-Request-Id": "same-at-both", **(PREFLIGHT if method == "OPTIONS" else {})}
            through = client.request(method, project.function(forwarded), headers=headers)
            direct = client.request(method, f"http://{host}:{port}{path}", headers=headers)
            assert through.status_code == direct.status_code < 500
            assert through.content == direct.content
            assert described(through) == described(direct)


def described(response: httpx2.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name not in ("date", "vary")}


def test_a_request_is_passed_on_with_the_headers_that_the_app_reads_and_no_others(
    project: Project, upstream: Upstream, client: httpx2.Client
) -> None:
    passed = {
        "accept": "text/csv",
        "authorization": "Bearer t",
        "content-type": "application/json; charset=utf-8",
        "idempotency-key": "k",
        "webhook-id": "i",
        "webhook-signature": "v1,a v1,b",
        "webhook-timestamp": "1",
        "x-client-info": "supabase-js-web/2",
        "x-request-id": "r",
        "x-ultravox-webhook-signature": "s",
        "x-ultravox-webhook-timestamp": "2",
    }
    others = {"apikey": "sb_secret_1", "cookie": "c=1", "x-forwarded-for": "10.0.0.1", "x-region": "us-east-1"}
    assert client.post(project.function(CANCEL), headers={**passed, **others}, content=b"{}").status_code == 200
    of_fetch = {"accept-language", "content-length", "host", "user-agent"}
    assert {name: value for name, value in upstream.headers.items() if name not in of_fetch} == {
        **passed,
        "accept-encoding": "identity",
        "x-lastcall-forwarded": "1",
    }


def test_a_request_without_a_usable_id_is_given_one(
    project: Project, upstream: Upstream, client: httpx2.Client
) -> None:
    for given in ({}, {"X-Request-Id": "not an id"}):
        client.post(project.function(CANCEL), headers=given)
    first, second = (request.headers["x-request-id"] for request in upstream.requests)
    assert first != second
    assert len(first) == len(second) == 36


@pytest.mark.parametrize("prefix", ["/functions/v1", "/unstripped/functions/v1"])
@pytest.mark.parametrize(
    ("asked", "arrives"),
    [
        ("/calls-batch-list?status=a%20b&c=1&c=%2B&d", "/functions/v1/calls-batch-list?status=a%20b&c=1&c=%2B&d"),
        ("/webhook-ingest/a/b%2Fc/+=/?x", "/functions/v1/webhook-ingest/a/b%2Fc/+=/?x"),
        ("/webhook-ingest//host/a", "/functions/v1/webhook-ingest//host/a"),
        ("/list-user-batches/64e5?page=2", "/api/call/batches/64e5?page=2"),
        ("/stop-calling", "/api/call/stop-calling"),
    ],
)
def test_path_and_query_arrive_as_they_were_sent(
    project: Project, upstream: Upstream, prefix: str, asked: str, arrives: str
) -> None:
    status = ask_raw(project, "POST", prefix + asked)
    (request,) = upstream.requests
    query = request.scope["query_string"].decode()
    assert (status, request.scope["raw_path"].decode() + ("?" + query if query else "")) == (200, arrives)


def test_no_path_leads_out_of_the_function(project: Project, upstream: Upstream) -> None:
    for path in ("..", "%2e%2e", ".%2E", "..%5c", "\\..\\"):
        ask_raw(project, "POST", f"/functions/v1/webhook-ingest/{path}/health")
        ask_raw(project, "POST", f"/unstripped/functions/v1/webhook-ingest/a/{path}/{path}/{path}/health")
    paths = [request.scope["path"] for request in upstream.requests]
    assert all(path.startswith("/functions/v1/webhook-ingest/") for path in paths), paths


def ask_raw(project: Project, method: str, target: str) -> int:
    """The status at a path that no client has touched."""
    connection = http.client.HTTPConnection(urlsplit(project.url).netloc, timeout=30)
    try:
        connection.request(method, target)
        return connection.getresponse().status
    finally:
        connection.close()


def test_any_bytes_pass_both_ways(project: Project, upstream: Upstream, client: httpx2.Client) -> None:
    body = bytes(range(256)) * 4096

    async def echo(request: Request, send: Send) -> None:
        await Response(await request.body(), media_type="application/octet-stream")(
            request.scope, request.receive, send
        )

    upstream.answer = echo
    response = client.post(
        project.function("calls-batch-import"), content=body, headers={"Content-Type": "application/octet-stream"}
    )
    assert response.content == body
    assert response.headers["content-length"] == str(len(body))


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "11"}])
def test_a_body_is_passed_on_while_it_comes(
    project: Project, upstream: Upstream, client: httpx2.Client, headers: dict[str, str]
) -> None:
    first_has_arrived = threading.Event()
    arrived: list[bytes] = []

    async def read(request: Request, send: Send) -> None:
        async for chunk in request.stream():
            arrived.append(chunk)
            first_has_arrived.set()
        await Response()(request.scope, request.receive, send)

    def body() -> Iterator[bytes]:
        yield b"first"
        assert first_has_arrived.wait(60)
        yield b"second"

    upstream.answer = read
    response = client.post(project.function("calls-batch-import"), content=body(), headers=headers)
    assert (response.status_code, b"".join(arrived)) == (200, b"firstsecond")


def test_an_answer_is_passed_back_while_it_comes_and_is_not_limited_in_time(
    project: Project, upstream: Upstream, client: httpx2.Client
) -> None:
    first_has_arrived = threading.Event()

    async def write(request: Request, send: Send) -> None:
        if request.url.path.endswith(CANCEL):
            await upstream.hang(request, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/csv")]})
        await send({"type": "http.response.body", "body": b"first\n", "more_body": True})
        await asyncio.to_thread(first_has_arrived.wait, 60)
        await send({"type": "http.response.body", "body": b"second\n"})

    upstream.answer = write
    export = project.function("calls-batch-export")
    with project.secrets(LASTCALL_TIMEOUT_S="1"), ExitStack() as stack:
        # On a slow machine an answer may begin too late: then another one is asked for.
        while (response := stack.enter_context(client.stream("GET", export))).status_code == 504:
            pass
        lines = response.iter_lines()
        assert next(lines) == "first"
        # One that began later runs out of its time meanwhile.
        assert client.post(project.function(CANCEL)).status_code == 504
        first_has_arrived.set()
        assert list(lines) == ["second"]


def test_an_answer_is_passed_back_but_for_what_is_said_of_the_connection(
    project: Project, upstream: Upstream, client: httpx2.Client
) -> None:
    kept = {
        "allow": "POST, OPTIONS",
        "content-disposition": 'attachment; filename="a.csv"',
        "content-type": "text/csv; charset=utf-8",
        "retry-after": "7",
        "www-authenticate": "Bearer",
        "x-request-id": "r",
        **CORS,
    }
    upstream.answer = Response(
        b"x", 429, {**kept, "connection": "close, x-hop", "keep-alive": "timeout=5", "x-hop": "1"}
    )
    response = client.post(project.function(CANCEL))
    assert (response.status_code, response.content) == (429, b"x")
    assert {name: response.headers[name] for name in kept} == kept
    assert not {"keep-alive", "x-hop"} & set(response.headers)


def test_a_compressed_body_stays_compressed_on_its_way_through_the_forwarder(
    project: Project, upstream: Upstream, client: httpx2.Client
) -> None:
    packed = gzip.compress(b"hello" * 100)
    upstream.answer = Response(packed, headers={"content-encoding": "gzip"}, media_type="text/plain")
    response = client.post(project.function(CANCEL))
    assert response.content == b"hello" * 100
    assert response.headers["content-length"] == str(len(packed))


def test_an_answer_that_breaks_off_is_not_taken_for_whole(
    project: Project, upstream: Upstream, client: httpx2.Client
) -> None:
    async def break_off(_request: Request, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first\n", "more_body": True})
        raise ConnectionError

    upstream.answer = break_off
    with pytest.raises(httpx2.TransportError), client.stream("GET", project.function("calls-batch-export")) as response:
        response.read()


@pytest.mark.parametrize("sent", [b"{  }", b"{ "])
def test_a_client_that_goes_away_ends_it_at_the_app(project: Project, upstream: Upstream, sent: bytes) -> None:
    """While it waits for the answer, and while it sends."""
    arrived = threading.Event()

    async def read(request: Request, send: Send) -> None:
        async for _ in request.stream():
            arrived.set()
        await upstream.hang(request, send)

    upstream.answer = read
    address = urlsplit(project.url)
    with socket.create_connection((address.hostname, address.port)) as client:
        # At once: Deno 2.9 may not notice the end of a connection whose body came after the head.
        head = f"POST /functions/v1/calls-batch-create HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 4\r\n\r\n"
        client.sendall(head.encode() + sent)
        assert arrived.wait(60)
    assert upstream.left.wait(60)


def test_the_sender_of_a_refused_file_sees_the_reason(
    project: Project, app_url: str, nowhere: str, client: httpx2.Client
) -> None:
    def send() -> httpx2.Response:
        files = {"file": ("contacts.csv", b"x" * (16 << 20))}
        headers = {"Authorization": "Bearer " + token(uuid4(), exp=1)}
        return client.post(project.function("calls-batch-import"), files=files, headers=headers)

    with project.secrets(LASTCALL_URL=app_url):
        refused = send()
    with project.secrets(LASTCALL_URL=nowhere):
        unreached = send()
    unconfigured = send()
    assert (refused.status_code, refused.json()["error"]) == (401, "Token has expired")
    assert (unreached.status_code, unreached.json()["code"]) == (502, "app_unavailable")
    assert (unconfigured.status_code, unconfigured.json()["code"]) == (500, "not_configured")


def test_no_redirect_is_followed_or_passed_back(project: Project, upstream: Upstream, client: httpx2.Client) -> None:
    upstream.answer = Response(status_code=308, headers={"location": "/elsewhere?secret"})
    response = client.post(project.function(CANCEL), headers={"X-Request-Id": "r"})
    error = "The service redirects: LASTCALL_URL must be where it leads"
    expect(response, 502, {"success": False, "error": error, "code": "app_unavailable"})
    assert "location" not in response.headers
    assert len(upstream.requests) == 1


def test_without_the_app_the_answer_is_ours(project: Project, client: httpx2.Client, nowhere: str) -> None:
    unknown = f"The service is out of reach; {UNKNOWN}"
    again = "The service is out of reach; try again"
    with project.secrets(LASTCALL_URL=nowhere):
        id_ = {"X-Request-Id": "r"}
        cancel = client.post(project.function(CANCEL), headers=id_)
        listed = client.get(project.function("calls-batch-list"), headers=id_)
        stop = client.post(project.function("stop-calling"), headers=id_)
    expect(cancel, 502, {"success": False, "error": unknown, "code": "app_unavailable"})
    expect(listed, 502, {"success": False, "error": again, "code": "app_unavailable"})
    expect(stop, 502, {"message": "", "status": False, "code": 502, "errorMessage": unknown, "data": {}})


def test_an_app_that_takes_too_long_is_left(project: Project, upstream: Upstream, client: httpx2.Client) -> None:
    upstream.answer = upstream.hang
    with project.secrets(LASTCALL_TIMEOUT_S="1"):
        response = client.post(project.function(CANCEL), headers={"X-Request-Id": "r"})
    error = f"The service did not answer within 1 seconds; {UNKNOWN}"
    expect(response, 504, {"success": False, "error": error, "code": "app_timeout"})
    assert upstream.left.wait(60)


def test_an_address_that_leads_back_is_not_followed_round(project: Project, client: httpx2.Client) -> None:
    with project.secrets(LASTCALL_URL=project.url):
        response = client.post(project.function(CANCEL), headers={"X-Request-Id": "r"})
    error = "LASTCALL_URL leads back to this project: it must be the app's address"
    expect(response, 508, {"success": False, "error": error, "code": "forwarding_loop"})


@pytest.mark.parametrize(
    ("secrets", "error"),
    [
        ({}, "No app is configured: set the secret LASTCALL_URL"),
        ({"LASTCALL_URL": ""}, "No app is configured: set the secret LASTCALL_URL"),
        *[
            ({"LASTCALL_URL": value}, "LASTCALL_URL must be an http(s) URL")
            for value in (
                "ftp://hidden",
                "hidden",
                "https://",
                "https://u:hidden@h",
                "https://h?hidden",
                "http://h:hidden",
            )
        ],
        *[
            (
                {"LASTCALL_URL": "http://127.0.0.1", "LASTCALL_TIMEOUT_S": value},
                "LASTCALL_TIMEOUT_S must be a whole number from 1 to 999",
            )
            for value in ("0", "1.5", "1000", "hidden")
        ],
    ],
)
def test_a_missing_setting_is_logged_and_not_shown(
    project: Project, client: httpx2.Client, secrets: dict[str, str], error: str
) -> None:
    with project.secrets(**secrets):
        response = client.post(project.function(CANCEL), headers={"X-Request-Id": "r"})
    expect(response, 500, {"success": False, "error": error, "code": "not_configured"})
    assert "hidden" not in project.log()


def expect(response: httpx2.Response, status: int, body: dict[str, Any]) -> None:
    """An answer of the forwarder's own, which a browser's app may read."""
    assert (response.status_code, response.json()) == (status, body)
    own = {**CORS, "cache-control": "no-store", "content-type": "application/json", "x-request-id": "r"}
    assert {name: response.headers[name] for name in own} == own


@pytest.mark.parametrize("is_configured", [False, True])
def test_a_preflight_is_answered_without_the_app_and_is_not_kept(
    project: Project, nowhere: str, client: httpx2.Client, is_configured: bool
) -> None:
    with project.secrets(**({"LASTCALL_URL": nowhere} if is_configured else {})):
        response = client.options(project.function(CANCEL), headers=PREFLIGHT)
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["access-control-allow-methods"] == "POST"
    assert response.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "access-control-max-age" not in response.headers


def test_a_request_that_was_not_forwarded_is_logged_without_token_path_or_query(
    project: Project, nowhere: str, client: httpx2.Client
) -> None:
    url = project.function("webhook-ingest/agency/the-secret?the-query")
    with project.secrets(LASTCALL_URL=nowhere):
        client.post(url, headers={"Authorization": "Bearer the-token", "X-Request-Id": "logged-1"}, content=b"the-body")
    (line,) = [json.loads(line) for line in project.log().splitlines() if "logged-1" in line]
    assert line.pop("reason").startswith("client error (Connect)")
    assert line == {
        "level": "error",
        "message": "request not forwarded",
        "function": "webhook-ingest",
        "request_id": "logged-1",
        "status": 502,
        "code": "app_unavailable",
    }
    assert "the-" not in project.log()
