"""Too many clients, slow ones, and a database that is slow, silent or gone: a bounded queue, 503 with Retry-After,
room for a cancel, and nothing left over when it has passed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from starlette.applications import Starlette

from functions._shared.http import LARGE_AT_ONCE
from functions._shared.settings import Settings
from functions.app import create_app

from ..support.database import TestDatabase
from ..support.outage import impatient, unavailable
from ..support.proxy import proxy
from ..support.serving import logged, serving
from ..support.tokens import bearer
from ..support.waiting import until

CANCEL, PAUSE, LIST, EXPORT, ADD = (
    f"/functions/v1/calls-batch-{name}" for name in ("cancel", "pause", "list", "export", "add-contacts")
)
BUSY = 4
"""Connections for everything but what ends calls; RESERVED are left for that."""
RESERVED = 3
OF_AN_AGENCY = 2
"""The connections that one agency may have at a time."""


@pytest.fixture
def busy_settings(settings: Settings) -> Settings:
    # A waiting request waits for ten minutes: an answer has another reason than a timeout.
    return replace(
        settings,
        pool_size=BUSY + RESERVED,
        pool_reserved=RESERVED,
        pool_timeout_s=600,
        pool_max_waiting=8,
        lock_timeout_ms=600_000,
        statement_timeout_ms=1_200_000,
    )


def transported(settings: Settings, request: pytest.FixtureRequest, transport: str) -> Settings:
    """The settings over this transport."""
    if transport == "postgres":
        return settings
    there: Settings = request.getfixturevalue("postgrest_settings")
    return replace(
        settings, transport="postgrest", supabase_url=there.supabase_url, publishable_key=there.publishable_key
    )


class House:
    """A running service, an agency with an owner, and batches."""

    def __init__(self, db: TestDatabase, app: Starlette, url: str) -> None:
        self.db = db
        self.app = app
        self.agency = db.agency()
        self.owner = db.user(self.agency)
        self.client = httpx2.Client(base_url=url, headers=bearer(self.owner), timeout=120)

    def batch(self) -> UUID:
        batch = self.db.batch(self.agency, self.owner)
        self.db.contacts(batch, pending=3)
        return batch

    def post(self, path: str, batch: UUID, user: UUID | None = None, **more: Any) -> httpx2.Response:
        """Ask for the batch as the user, or the owner."""
        headers = bearer(user) if user else {}
        return self.client.post(path, json={"batch_id": str(batch), **more}, headers=headers)

    def list(self, _number: int = 0) -> httpx2.Response:
        return self.client.get(LIST)

    def waiting(self) -> int:
        """How many connections of the service wait for a lock."""
        count: int = self.db.value(
            "select count(*) from pg_stat_activity"
            " where datname = current_database() and wait_event_type = 'Lock'"
            "   and usename in ('lastcall_functions', 'authenticator')"
        )
        return count

    def connections(self) -> dict[str, int]:
        """The service's connections by state."""
        rows = self.db.rows(
            "select state, count(*) as n from pg_stat_activity"
            " where datname = current_database() and application_name = 'lastcall' group by 1"
        )
        return {row["state"]: row["n"] for row in rows}

    @contextmanager
    def held(self, *batches: UUID) -> Iterator[None]:
        """Whoever would change one of the batches waits."""
        with self.db.connect() as other, other.transaction():
            other.execute("select from call_batches where id = any (%s) for no key update", [list(batches)])
            yield

    @contextmanager
    def unreadable(self) -> Iterator[None]:
        """Whoever reads contact_data, as exports do, waits."""
        with self.db.connect() as other, other.transaction():
            other.execute("lock table contact_data in access exclusive mode")
            yield

    @contextmanager
    def unlistable(self) -> Iterator[None]:
        """Whoever reads campaigns, as lists of batches do, waits."""
        with self.db.connect() as other, other.transaction():
            other.execute("lock table campaigns in access exclusive mode")
            yield


@contextmanager
def house(db: TestDatabase, settings: Settings) -> Iterator[House]:
    app = create_app(settings)
    with serving(app) as (host, port):
        inside = House(db, app, f"http://{host}:{port}")
        with inside.client:
            yield inside


# Room for those who end calls.


@pytest.mark.parametrize("transport", ["postgres", "postgrest"])
def test_a_cancel_is_answered_while_everything_else_is_stuck(
    db: TestDatabase, busy_settings: Settings, request: pytest.FixtureRequest, transport: str
) -> None:
    settings = transported(busy_settings, request, transport)
    with house(db, settings) as inside, ThreadPoolExecutor(BUSY + 9) as threads:
        one, other = inside.batch(), inside.batch()
        with inside.unlistable():
            # One too many: when that is answered, so many wait that the next one is not even let wait.
            stuck = [threads.submit(inside.list) for _ in range(BUSY + 9)]
            until(lambda: any(answer.done() for answer in stuck))
            until(lambda: inside.waiting() == BUSY)
            assert unavailable(inside.list())
            assert inside.post(CANCEL, one).json()["contacts_skipped"] == 3
            assert inside.post(PAUSE, other).json()["status"] == "paused"
            assert inside.client.get("/health").status_code == 200
            assert inside.waiting() == BUSY
        assert sorted(answer.result().status_code for answer in stuck) == [200] * (BUSY + 8) + [503]
        assert inside.list().status_code == 200


def test_a_user_waits_for_a_held_batch_on_one_connection_however_often_it_is_asked_for(
    db: TestDatabase, busy_settings: Settings
) -> None:
    with house(db, replace(busy_settings, pool_max_waiting=20)) as inside, ThreadPoolExecutor(12) as threads:
        batch = inside.batch()
        with inside.held(batch):
            sent = [threads.submit(inside.post, CANCEL, batch) for _ in range(10)]
            until(lambda: inside.waiting() == 1)
            assert inside.post(CANCEL, inside.batch()).status_code == 200
            assert inside.waiting() == 1
        assert sorted(answer.result().status_code for answer in sent) == [200] + [400] * 9


@pytest.mark.parametrize("transport", ["postgres", "postgrest"])
@pytest.mark.own_database
def test_an_agency_leaves_another_agency_a_connection_to_cancel_however_many_of_its_batches_are_held(
    db: TestDatabase, busy_settings: Settings, request: pytest.FixtureRequest, transport: str
) -> None:
    settings = replace(transported(busy_settings, request, transport), pool_max_waiting=40)
    db.rows(f"alter role authenticator in database {db.value('select current_database()')} set lock_timeout = '10min'")
    with house(db, settings) as inside, ThreadPoolExecutor(40) as threads:
        users = [inside.owner, *(db.user(inside.agency) for _ in range(3))]
        batches = [inside.batch() for _ in range(8)]
        other = db.agency("Other")
        other_owner = db.user(other)
        others = [db.batch(other, other_owner) for _ in range(3)]
        with inside.unlistable(), inside.held(*batches):
            lists = [threads.submit(inside.list) for _ in range(BUSY)]
            until(lambda: inside.waiting() == BUSY)
            sent = [threads.submit(inside.post, CANCEL, batch, users[i % 4]) for i, batch in enumerate(batches)]
            until(lambda: inside.waiting() == BUSY + OF_AN_AGENCY)
            assert [inside.post(CANCEL, batch, other_owner).status_code for batch in others] == [200] * 3
            assert inside.waiting() == BUSY + OF_AN_AGENCY
            assert not any(answer.done() for answer in sent)
        assert [answer.result().status_code for answer in sent] == [200] * 8
        assert {answer.result().status_code for answer in lists} == {200}


@pytest.mark.own_database
def test_a_user_who_waits_for_too_long_behind_the_own_request_is_told_that_the_batch_is_busy(
    db: TestDatabase, busy_settings: Settings
) -> None:
    with house(db, replace(busy_settings, pool_timeout_s=0.2)) as inside, ThreadPoolExecutor(1) as threads:
        batch = inside.batch()
        with inside.held(batch):
            first = threads.submit(inside.post, CANCEL, batch)
            until(lambda: inside.waiting() == 1)
            second = inside.post(PAUSE, batch)
            assert unavailable(second)
            assert second.json()["code"] == "batch_busy"
        assert first.result().status_code == 200


def test_an_agency_that_has_its_share_is_told_to_come_again(db: TestDatabase, busy_settings: Settings) -> None:
    settings = replace(busy_settings, pool_timeout_s=0.2)
    with house(db, settings) as inside, ThreadPoolExecutor(OF_AN_AGENCY) as threads:
        batches = [inside.batch() for _ in range(OF_AN_AGENCY)]
        with inside.held(*batches):
            sent = [threads.submit(inside.post, CANCEL, batch) for batch in batches]
            until(lambda: inside.waiting() == OF_AN_AGENCY)
            refused = inside.post(CANCEL, inside.batch())
            assert unavailable(refused)
            assert refused.json()["code"] == "busy"
        assert [answer.result().status_code for answer in sent] == [200] * OF_AN_AGENCY
        assert inside.post(CANCEL, inside.batch()).status_code == 200


def test_a_stranger_who_names_the_batch_does_not_hold_up_its_owner(db: TestDatabase, busy_settings: Settings) -> None:
    with house(db, busy_settings) as inside, ThreadPoolExecutor(2) as threads:
        batch = inside.batch()
        stranger = db.user(db.agency("Other"))
        with db.connect() as other, other.transaction():
            # The stranger is looked up, and waits for that.
            other.execute("lock table users in access exclusive mode")
            sent = threads.submit(inside.post, CANCEL, batch, stranger)
            until(lambda: inside.waiting() == 1)
            mine = threads.submit(inside.post, CANCEL, batch)
            until(lambda: inside.waiting() == 2)
        assert (sent.result().status_code, mine.result().status_code) == (404, 200)


def test_ten_times_as_many_clients_as_connections_are_answered_or_told_to_come_again(
    db: TestDatabase, busy_settings: Settings
) -> None:
    clients = 10 * (BUSY + RESERVED)
    with house(db, busy_settings) as inside, ThreadPoolExecutor(clients) as threads:
        inside.batch()
        with inside.unlistable():
            sent = [threads.submit(inside.list) for _ in range(clients)]
            until(lambda: sum(answer.done() for answer in sent) == clients - BUSY - 8)
            assert sum(inside.connections().values()) == BUSY
            refused = [answer.result() for answer in sent if answer.done()]
            assert [(answer.status_code, answer.text) for answer in refused if not unavailable(answer)] == []
        assert sorted({answer.result().status_code for answer in sent}) == [200, 503]
        assert [answer.result().status_code for answer in sent].count(200) == BUSY + 8
        assert [inside.list().status_code for _ in range(3)] == [200] * 3


# Slow clients, and clients that leave.


def raw(inside: House, head: str, body: bytes = b"") -> socket.socket:
    """A connection on which this was sent."""
    url = httpx2.URL(str(inside.client.base_url))
    connection = socket.create_connection((url.host, url.port or 80), timeout=60)
    authorization = bearer(inside.owner)["Authorization"]
    connection.sendall(f"{head} HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n".encode() + body)
    return connection


def test_clients_that_send_slowly_or_nothing_hold_no_connection_to_the_database(
    db: TestDatabase, busy_settings: Settings
) -> None:
    with house(db, busy_settings) as inside, ExitStack() as stack:
        batch = inside.batch()
        slow = [
            stack.enter_context(raw(inside, f"POST {CANCEL}", b'Content-Length: 60\r\n\r\n{"batch')) for _ in range(40)
        ]
        slow += [stack.enter_context(raw(inside, f"POST {ADD}", b"X-Half: a he")) for _ in range(40)]
        for connection in slow:
            connection.sendall(b" ")
        assert [inside.list().status_code for _ in range(20)] == [200] * 20
        assert inside.post(CANCEL, batch).status_code == 200
        assert sum(inside.connections().values()) <= 2


def test_only_so_many_large_bodies_are_held_at_a_time(db: TestDatabase, busy_settings: Settings) -> None:
    db.rows("delete from private.rate_limits")  # it is asked again and again
    with house(db, busy_settings) as inside:
        batch = inside.batch()
        contacts = [{"phone_number": "+15557654321"}]
        with ExitStack() as stack:
            for _ in range(LARGE_AT_ONCE):
                stack.enter_context(raw(inside, f"POST {ADD}", b"Content-Length: 1000000\r\n\r\n{"))
            until(lambda: unavailable(inside.post(ADD, batch, contacts=contacts)))
            assert inside.post(PAUSE, batch).status_code == 200
        until(lambda: inside.post(ADD, batch, contacts=contacts).status_code == 200)
        assert db.batch_row(batch)["total_contacts"] == 4


def test_a_client_that_reads_no_export_holds_no_connection_to_the_database(
    db: TestDatabase, busy_settings: Settings
) -> None:
    with house(db, busy_settings) as inside, ExitStack() as stack:
        batch = inside.batch()
        db.contacts(batch, completed=20_000)
        for _ in range(BUSY + RESERVED + 2):
            reader = stack.enter_context(raw(inside, f"GET {EXPORT}?batch_id={batch}", b"\r\n"))
            assert reader.recv(1, socket.MSG_PEEK)  # it is being answered
        until(lambda: inside.connections().get("active", 0) == 0)
        assert inside.list().status_code == 200
        assert inside.post(CANCEL, batch).status_code == 200


def test_a_client_that_leaves_while_the_database_works_frees_its_connection_clean(
    db: TestDatabase, busy_settings: Settings
) -> None:
    with logged() as log, house(db, busy_settings) as inside:
        batch = inside.batch()
        with inside.unreadable():
            leaving = [raw(inside, f"GET {EXPORT}?batch_id={batch}", b"\r\n") for _ in range(BUSY)]
            until(lambda: inside.waiting() == BUSY)
            for connection in leaving:
                connection.close()
        until(lambda: inside.connections() == {"idle": BUSY})
        assert inside.client.get(f"{EXPORT}?batch_id={batch}").text.count("\n") == 4
        assert [line["level"] for line in log.lines()] == ["info"] * len(log.lines())


# The database.


def test_a_database_that_stops_answering_is_given_up_and_the_next_request_after_it_works(
    db: TestDatabase, settings: Settings, own_folder: Path
) -> None:
    with proxy(own_folder, db.functions_uri) as between:
        few = replace(settings, database_url=between.uri, pool_size=3, pool_reserved=1, pool_timeout_s=60.0)
        with house(db, few) as inside, ThreadPoolExecutor(12) as threads:
            batch = inside.batch()
            assert inside.list().status_code == 200
            with impatient(inside.app):
                between.passes_replies.clear()
                assert all(unavailable(answer) for answer in threads.map(inside.list, range(12)))
                assert unavailable(inside.client.get("/health"))
                assert unavailable(inside.post(CANCEL, batch))
            between.cut()
            assert inside.client.get("/health").status_code == 200
            assert inside.list().status_code == 200
            assert inside.post(CANCEL, batch).status_code in (200, 400)
            assert db.batch_row(batch)["status"] == "cancelled"


def test_a_database_that_accepts_and_says_nothing_is_unavailable(db: TestDatabase, settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        unheard = replace(
            settings, database_url=f"postgresql://nobody@127.0.0.1:{port}/none", pool_timeout_s=0.3, pool_max_waiting=5
        )
        with house(db, unheard) as inside, ThreadPoolExecutor(40) as threads:
            assert all(unavailable(answer) for answer in threads.map(inside.list, range(40)))
            assert unavailable(inside.post(CANCEL, inside.batch()))
            assert unavailable(inside.client.get("/health"))
