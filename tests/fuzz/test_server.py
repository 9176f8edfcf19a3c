"""The service as it is served, over raw sockets: what an HTTP client would never send."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from ..support.command import Service, serve
from ..support.tokens import SECRET, token
from .rule import PHONE_NUMBER, PLANTED, fuzz

USER = "5f0e7a3c-1b2d-4c3e-8f90-a1b2c3d4e5f6"
CANCEL = b"/functions/v1/calls-batch-cancel"
TOKEN = token(USER).encode()
SIGNED = b"Authorization: Bearer " + TOKEN + b"\r\n"
GOOD = b"GET /nope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`lastcall serve` without a database: none of this gets so far."""
    settings = {"DATABASE_URL": "postgresql://nobody@/none?host=/nowhere", "SUPABASE_JWT_SECRET": SECRET}
    with serve(Path(tmp_path_factory.mktemp("service")), {**settings, "LASTCALL_POOL_TIMEOUT_MS": "100"}) as service:
        yield service
        # Nothing of what was sent came up on stderr, where every line is JSON.
        said = json.dumps(service.log())
        for secret in (PLANTED, PHONE_NUMBER, TOKEN.decode(), "Traceback"):
            assert secret not in said
        assert {line["level"] for line in service.log()} <= {"info", "warning"}


def talk(service: Service, data: bytes, *, half_closed: bool = False) -> list[int]:
    """The statuses of what is answered to this, until the service closes the connection."""
    host, _, port = service.url.removeprefix("http://").partition(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=60) as connection, suppress(ConnectionError):
        connection.sendall(data)
        if half_closed:
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65_536):
            answer += part
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def post(headers: bytes, body: bytes = b"") -> bytes:
    return b"POST " + CANCEL + b" HTTP/1.1\r\nHost: x\r\n" + SIGNED + headers + b"\r\n" + body


REFUSED = {
    "two different lengths": post(b"Content-Length: 2\r\nContent-Length: 3\r\n", b"{} "),
    "a negative length": post(b"Content-Length: -1\r\n"),
    "a length that is none": post(b"Content-Length: 0x2\r\n", b"{}"),
    "a list of lengths": post(b"Content-Length: 2, 3\r\n", b"{}"),
    "a length with a sign": post(b"Content-Length: +2\r\n", b"{}"),
    "a chunk of no size": post(b"Transfer-Encoding: chunked\r\n", b"xyz\r\n{}\r\n0\r\n\r\n"),
    "a chunk of a huge size": post(b"Transfer-Encoding: chunked\r\n", b"f" * 40 + b"\r\n{}"),
    "an unknown encoding": post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    "an encoding hidden by a space": post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"),
    "an encoding hidden by a tab": post(b"Transfer-Encoding:\x0bchunked\r\n", b"0\r\n\r\n"),
    "a folded first header": b"GET / HTTP/1.1\r\n x: y\r\nHost: x\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a NUL in a header": post(b"Idempotency-Key: a\x00b\r\n"),
    "a NUL in the path": b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path that is no ASCII": b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "a version that is none": b"GET / HTTP/9.9.9\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n",
    "a header without end": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000,
    "100,000 headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100_000,
    "a path of 200 kB": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED.keys())
def test_an_ambiguous_request_is_refused_and_the_connection_closed(service: Service, request_: bytes) -> None:
    """A proxy in front may see other requests in it: nothing behind it is answered."""
    statuses = talk(service, request_ + GOOD)
    assert statuses in ([400], [])
    assert talk(service, GOOD) == [404]


def test_a_length_and_chunks_together_are_one_request_and_what_follows_is_not_hidden(service: Service) -> None:
    """Chunks count, as the standard has it, and what looks like a second request to who goes by the length is body."""
    smuggled = b"0\r\n\r\n" + b"GET /smuggled HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    head = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(smuggled)
    assert talk(service, post(head, smuggled)) in ([400], [400, 404])


def test_a_client_that_says_it_has_finished_gets_its_answer(service: Service) -> None:
    assert talk(service, post(b"Content-Length: 2\r\nConnection: close\r\n", b"{}"), half_closed=True) in ([400], [])
    assert talk(service, post(b"Content-Length: 20\r\n", b'{"batch'), half_closed=True) == []
    assert talk(service, GOOD) == [404]


def test_requests_behind_one_another_are_answered_in_their_order(service: Service) -> None:
    several = [post(b"Content-Length: 2\r\n", b"{}"), b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n"]
    several += [b"DELETE " + CANCEL + b" HTTP/1.1\r\nHost: x\r\n\r\n", GOOD]
    assert talk(service, b"".join(several)) == [400, 404, 405, 404]


PIECES = [
    b"POST ",
    b"GET ",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    CANCEL,
    b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n",
    b"Host: x\r\n",
    b"\r\n",
    b"\r\n\r\n",
    SIGNED,
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"5\r\n{}   \r\n",
    b"0\r\n\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
    b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n",
    b"X-Request-Id: \t\r\n",
    PLANTED.encode(),
    PHONE_NUMBER.encode(),
    b'{"batch_id": 5}',
]


@fuzz(60)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=5), max_size=12))
@example([PHONE_NUMBER.encode(), b" ", CANCEL, b" HTTP/1.1\r\n", b"Host: x\r\n", b"\r\n"])
def test_any_bytes(service: Service, parts: list[bytes]) -> None:
    statuses = talk(service, b"".join(parts), half_closed=True)
    assert all(status < 500 for status in statuses), statuses
