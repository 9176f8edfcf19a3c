"""No request leaves for the carrier after the place-by time, wherever a dialer or its machine stood still.

STOPS: how many times the process of a dialer is stopped with five calls (default 2).
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from httpcore2._trace import Trace

from functions._shared.settings import Settings
from functions.dialer import place_by
from functions.dialer.carrier import CarrierHttp
from functions.dialer.place_by import CallLateError, PlaceBy

from ..support.certificates import Authority
from ..support.database import TestDatabase
from ..support.dialers import wait_for
from ..support.dialing import ScriptedCarrier, a_dialer, complete, until
from ..support.processes import looping, process_settings
from ..support.proxy import Proxy, proxy
from ..support.simulator import record, simulated

STOPS = int(os.environ.get("STOPS", "2"))
STOPS_S = [0.1, 1.0, 10.0, 60.0, 600.0]
WITHIN_S = 2.0


class Clocks:
    """The clocks of a machine, moved by hand."""

    def __init__(self) -> None:
        self.boot_s = 1_000.0
        self.wall_s = 1_800_000_000.0

    def stand_still(self, seconds: float) -> None:
        self.boot_s += seconds
        self.wall_s += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    stand_in = SimpleNamespace(clock_gettime=lambda _: clocks.boot_s, time=lambda: clocks.wall_s)
    monkeypatch.setattr(place_by, "time", stand_in)
    monkeypatch.setattr(place_by, "_BOOT_CLOCK", 7)
    return clocks


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """The certificate of a server that the client trusts."""
    authority = Authority("authority")
    certificate, key = authority.issue("localhost")
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    (tmp_path / "server.pem").write_bytes(key + certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    return context


@pytest.mark.parametrize(
    ("boot_s", "wall_s", "is_over"),
    [
        (1.9, 1.9, False),
        (2.1, 2.1, True),
        (0.0, 600.0, True),  # suspended, with a clock that stood still meanwhile
        (600.0, 0.0, True),  # the wall clock was put back
        (2.1, -3600.0, True),
        (1.0, -3600.0, False),
    ],
)
def test_the_clock_that_went_further_decides(clocks: Clocks, boot_s: float, wall_s: float, is_over: bool) -> None:
    moment = PlaceBy(2.0)
    clocks.boot_s += boot_s
    clocks.wall_s += wall_s
    if is_over:
        with pytest.raises(CallLateError):
            moment.check()
    else:
        moment.check()


class Arrivals:
    """A server that keeps the body of each request that arrived whole."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._handlers: list[asyncio.Task[None]] = []
        self.bodies: list[bytes] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._handlers.append(asyncio.create_task(self._handle(reader, writer)))

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                (length,) = re.findall(rb"(?i)content-length: (\d+)", head)
                self.bodies.append(await reader.readexactly(int(length)))
                await self.may_answer.wait()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    @asynccontextmanager
    async def serving(self, **settings: Any) -> AsyncIterator[CarrierHttp]:
        """A client of it."""
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls) as server:
            _, port = server.sockets[0].getsockname()
            http = CarrierHttp(
                f"{'https' if self._tls else 'http'}://localhost:{port}",
                Settings(place_within_s=WITHIN_S, carrier_timeout_s=60.0, **settings),
            )
            try:
                yield http
            finally:
                await http.aclose()
                await asyncio.gather(*self._handlers)


def stand_still_at(monkeypatch: pytest.MonkeyPatch, clocks: Clocks, place: str, seconds: float) -> None:
    """Let the machine stand still for some seconds when the HTTP client comes to a place."""
    go_on = Trace.atrace

    async def trace(self: Trace, name: str, info: dict[str, Any]) -> None:
        if name == place:
            clocks.stand_still(seconds)
        await go_on(self, name, info)

    monkeypatch.setattr(Trace, "atrace", trace)


@pytest.mark.parametrize("seconds", STOPS_S)
@pytest.mark.parametrize(
    "place",
    [
        "connect_tcp.started",
        "connect_tcp.complete",
        "start_tls.started",
        "start_tls.complete",
        "send_request_headers.started",
        "send_request_headers.complete",
        "send_request_body.started",
    ],
)
def test_no_whole_request_leaves_after_a_stop_anywhere_on_its_way(
    monkeypatch: pytest.MonkeyPatch, clocks: Clocks, tls: ssl.SSLContext, place: str, seconds: float
) -> None:
    stand_still_at(monkeypatch, clocks, place, seconds)

    async def run() -> None:
        carrier = Arrivals(tls)
        async with carrier.serving() as http:
            if seconds > WITHIN_S:
                with pytest.raises(CallLateError):
                    await http.send("POST", "/", PlaceBy(WITHIN_S), json={})
            else:
                await http.send("POST", "/", PlaceBy(WITHIN_S), json={})
        assert carrier.bodies == ([] if seconds > WITHIN_S else [b"{}"])

    asyncio.run(run())


def test_no_request_leaves_that_waited_for_a_connection_too_long(clocks: Clocks) -> None:
    async def run() -> None:
        carrier = Arrivals()
        async with carrier.serving(dial_concurrency=1) as http:
            carrier.may_answer.clear()
            first = asyncio.create_task(http.send("POST", "/", PlaceBy(WITHIN_S), json=1))
            await until(lambda: len(carrier.bodies) == 1)
            second = asyncio.create_task(http.send("POST", "/", PlaceBy(WITHIN_S), json=2))
            await asyncio.sleep(0)  # the second request has its place-by time
            clocks.stand_still(WITHIN_S + 0.1)
            carrier.may_answer.set()
            await first
            with pytest.raises(CallLateError):
                await second
        assert carrier.bodies == [b"1"]

    asyncio.run(run())


def test_a_late_request_harms_no_other_on_the_same_connections(clocks: Clocks) -> None:
    async def run() -> None:
        carrier = Arrivals()
        async with carrier.serving(dial_concurrency=1) as http:
            for number in range(3):
                await http.send("POST", "/", PlaceBy(WITHIN_S), json=number)
                late = PlaceBy(WITHIN_S)
                clocks.stand_still(WITHIN_S + 0.1)
                with pytest.raises(CallLateError):
                    await http.send("POST", "/", late, json="late")
        assert carrier.bodies == [b"0", b"1", b"2"]

    asyncio.run(run())


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no such option")
def test_the_kernel_repeats_a_lost_request_no_longer_than_a_call_may_be_placed() -> None:
    async def run() -> None:
        async with Arrivals().serving() as http:
            await http.send("POST", "/", PlaceBy(WITHIN_S), json={})
            sockets = [one for one in gc.get_objects() if isinstance(one, socket.socket) and one.fileno() != -1]
            limits = {
                one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                for one in sockets
                if one.family == socket.AF_INET and one.type == socket.SOCK_STREAM
            }
            assert round(1000 * WITHIN_S) in limits

    asyncio.run(run())


@pytest.mark.parametrize("seconds", STOPS_S)
def test_calls_whose_start_was_read_too_late_are_not_placed_and_their_contacts_wait_uncounted(
    db: TestDatabase, clocks: Clocks, seconds: float
) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=3)
    carrier = ScriptedCarrier(complete)

    async def run() -> None:
        async with a_dialer(db, carrier, place_within_s=WITHIN_S) as (dialer, database):
            database.after["start_call"] = lambda: clocks.stand_still(seconds)
            await dialer.run_once(3, 60)

    asyncio.run(run())
    if seconds > WITHIN_S:
        assert carrier.arrived == []
        assert (
            db.rows("select status::text, attempts from campaign_contacts")
            == [{"status": "scheduled", "attempts": 0}] * 3
        )
        assert db.rows("select status::text, outcome from calls") == [{"status": "failed", "outcome": "not_placed"}] * 3
    else:
        assert db.statuses(batch) == {"completed": 3}
    assert db.unbalanced() == []


def test_the_database_knows_until_when_a_request_may_leave(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=2)
    claimed = db.rows("select * from claim_contacts(2)")
    assert db.value("select count(place_by) from calls") == 0
    for call, within in zip(claimed, [None, 0.5], strict=True):
        values = [batch, [call["call_id"]], call["lease"], *([] if within is None else [within])]
        db.rows(f"select start_call({', '.join(['%s'] * len(values))})", *values)
    left = db.rows("select extract(epoch from place_by - started_at)::float as seconds from calls order by id")
    assert left == [{"seconds": 2.0}, {"seconds": 0.5}]


@pytest.mark.parametrize("within", [None, 0, 0.09, 60.1, "NaN"])
def test_a_time_to_place_that_is_none_is_refused(db: TestDatabase, within: Any) -> None:
    batch = db.batch(db.agency())
    with pytest.raises(psycopg.Error, match="place_within_seconds must be") as refused:
        db.rows("select start_call(%s, '{1}', %s, %s)", batch, batch, within)
    assert refused.value.sqlstate == "PT400"


def test_a_dialer_that_was_stopped_with_the_answer_of_start_call_unread_places_nothing(
    db: TestDatabase, own_folder: Path
) -> None:
    """A cancel is answered meanwhile; the witness is the carrier's record."""
    with simulated() as carrier_url, proxy(own_folder, db.functions_uri) as between:
        settings = process_settings(
            db,
            carrier_url,
            DATABASE_URL=between.uri,
            LASTCALL_PLACE_WITHIN_MS="200",
            LASTCALL_SERVICE_LOCK_TIMEOUT_MS="30000",
        )
        with looping(own_folder, settings) as process:
            for _ in range(STOPS):
                stop_with_the_answer_unread(db, between, process.pid)
        assert record(carrier_url) == []
    assert db.unbalanced() == []


def stop_with_the_answer_unread(db: TestDatabase, between: Proxy, dialer: int) -> None:
    """Let a dialer's start_call wait for a number, hold the answer back until start_call has committed, stop the
    dialer, and cancel the batch. The dialer goes on when no request may leave any more."""
    agency = db.agency()
    batch = db.batch(agency, max_calls_per_number=3)
    with db.connect() as other, other.transaction():
        numbers = "select %s, '+1555' || lpad(i::text, 7, '0') from generate_series(1, 5) i"
        other.execute(f"insert into private.dialed_numbers (agency_id, phone_number) {numbers}".encode(), [agency])
        db.contacts(batch, pending=5)
        db.rows("update call_batches set next_claim_at = now() where id = %s", batch)
        waiting = (
            "select count(*) from pg_stat_activity"
            " where wait_event_type = 'Lock' and strpos(query, 'start_call') > 0 and datname = current_database()"
        )
        wait_for(lambda: db.value(waiting) == 1, "start_call waits")
        between.passes_replies.clear()
    started = "select count(started_at) from calls where batch_id = %s"
    wait_for(lambda: db.value(started, batch) == 5, "start_call commits")
    os.kill(dialer, signal.SIGSTOP)
    try:
        between.passes_replies.set()
        db.rows("select cancel_batch(%s)", batch)
        over = "select max(place_by) < clock_timestamp() from calls where batch_id = %s"
        wait_for(lambda: db.value(over, batch), "the place-by time is over")
    finally:
        os.kill(dialer, signal.SIGCONT)
    open_calls = "select count(*) from calls where batch_id = %s and status in ('in_progress', 'unknown')"
    wait_for(lambda: db.value(open_calls, batch) == 0, "the dialer says what became of the calls")
    assert db.statuses(batch) == {"failed": 5}
