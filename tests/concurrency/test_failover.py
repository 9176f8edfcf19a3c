"""A failover to a synchronous standby takes back nothing that was answered.

PostgreSQL shows a change, and lets go of its row, only when the synchronous standby has the change. Three events show a
change that no standby has: its wait is cancelled, its connection is terminated, the primary restarts.

The servers are PostgreSQL's own primary and standby, apart from the worker's server.

PROMOTIONS: how many promotions under load the test of promotions makes (default 3). SEED: its random choices.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import datetime
from functools import partial
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from starlette.testclient import TestClient

from functions._shared.database import gave_up_standby
from functions._shared.settings import Settings
from functions.app import create_app
from functions.operator.client import SqlClient
from functions.operator.session import OutOfReachError

from ..support.database import TestDatabase
from ..support.dialers import wait_for
from ..support.dialing import ScriptedCarrier, complete, dialing, until
from ..support.replication import Cluster
from ..support.servers import new_server, short_lived_folder
from ..support.tokens import ISSUER, SECRET, bearer
from ..support.webhooks import Carrier, event

CANCEL = "/functions/v1/calls-batch-cancel"


@pytest.fixture(scope="module")
def servers() -> Iterator[Cluster]:
    with short_lived_folder() as folder:
        cluster = Cluster(new_server(folder))
        yield cluster
        cluster.stop()


@pytest.fixture
def cluster(servers: Cluster) -> Cluster:
    """A primary with its synchronous standby."""
    servers.add_standby()
    return servers


class Site:
    """A migrated database of the cluster, on the server that is the primary at a time."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.name = f"test_{uuid4().hex}"
        cluster.execute(f"create database {self.name} template migrated")
        self.db = self.connect()
        self.agency = self.db.agency()
        self.user = self.db.user(self.agency)

    def connect(self) -> TestDatabase:
        primary = self.cluster.primary
        return TestDatabase(primary.uri(self.name), primary.uri(self.name, "lastcall_functions"))

    def settings(self, **settings: Any) -> Settings:
        """The functions at whichever server is the primary."""
        uri = self.cluster.uri(self.name, "lastcall_functions")
        return Settings(database_url=uri, jwt_secret=SECRET, jwt_issuer=ISSUER, **settings)

    def batch(self, **columns: Any) -> UUID:
        batch = self.db.batch(self.agency, self.user, **columns)
        self.db.contacts(batch, pending=2)
        return batch

    def restart_primary(self) -> None:
        """Crash the primary, and connect again."""
        self.db.close()
        self.cluster.primary.kill()
        self.cluster.primary.start()
        self.db = self.connect()

    def fail_over(self) -> None:
        self.db.close()
        self.cluster.fail_over()
        self.db = self.connect()

    def drop(self) -> None:
        """Drop the database, on the primary without waiting for a standby that may be lost."""
        self.db.close()
        self.cluster.configure("synchronous_standby_names", "")
        self.cluster.execute(f"drop database {self.name} with (force)")


@pytest.fixture
def site(cluster: Cluster) -> Iterator[Site]:
    site = Site(cluster)
    yield site
    assert site.db.unbalanced() == []
    site.drop()


class Request(threading.Thread):
    """A call of a procedure in a thread, with its own connection."""

    def __init__(self, site: Site, call: str, *values: Any) -> None:
        super().__init__(daemon=True)
        self.call = call
        self.values = values
        self.connection = site.db.connect()
        self.pid = self.connection.info.backend_pid
        self.outcome: str | None = None
        """done, its SQLSTATE, or lost."""
        self.start()

    def run(self) -> None:
        try:
            self.connection.execute(f"select {self.call}", self.values)
            self.outcome = "done"
        except psycopg.Error as error:
            self.outcome = error.sqlstate if error.sqlstate and not self.connection.closed else "lost"
        finally:
            self.connection.close()

    def end(self) -> str | None:
        self.join(60)
        return self.outcome


def waiting_for(site: Site, event: str, requests: list[Request]) -> int:
    """How many of the requests wait for the event."""
    query = "select count(*) from pg_stat_activity where pid = any (%s) and wait_event = %s"
    number: int = site.db.value(query, [request.pid for request in requests], event)
    return number


def pending(site: Site, requests: list[Request]) -> None:
    """Wait until each request waits for the standby, which answers none of them."""

    def wait() -> bool:
        assert [request.call for request in requests if request.outcome] == [], "answered without the standby"
        return waiting_for(site, "SyncRep", requests) == len(requests)

    wait_for(wait, "all wait for the standby")


def cancel_waits(site: Site, sessions: list[int]) -> None:
    site.db.rows("select pg_cancel_backend(u) from unnest(%s::integer[]) u", sessions)


def terminate_connections(site: Site, sessions: list[int]) -> None:
    site.db.rows("select pg_terminate_backend(u) from unnest(%s::integer[]) u", sessions)


def restart_primary(site: Site, _sessions: list[int]) -> None:
    site.restart_primary()


WAYS: dict[str, tuple[Callable[[Site, list[int]], None], str]] = {
    "its wait was cancelled": (cancel_waits, "done"),  # with a warning
    "the primary restarted": (restart_primary, "lost"),
    "its connection was terminated": (terminate_connections, "lost"),
}
"""Events that show a change before the standby has the change, and how its request ends."""
REFUSED = [
    ("cancel_batch(%s)", ()),
    ("stop_batch(%s::text)", ()),
    ("pause_batch(%s)", ()),
    ("resume_batch(%s)", ()),
    ("start_batch(%s::text)", ()),
    ("add_contacts(%s, %s)", ('[{"phone_number": "+15557654321"}]',)),
    ("begin_import(%s, %s)", ("0" * 64,)),
]
"""Requests that a cancelled batch refuses."""


def cancelled_here_alone(site: Site, batches: list[UUID], way: str) -> None:
    """Cancel batches so that the lost standby has no cancel, and the primary shows each."""
    cancels = [Request(site, "cancel_batch(%s)", batch) for batch in batches]
    pending(site, cancels)
    show, outcome = WAYS[way]
    show(site, [cancel.pid for cancel in cancels])
    assert [cancel.end() for cancel in cancels] == [outcome] * len(cancels)
    assert {site.db.batch_row(batch)["status"] for batch in batches} == {"cancelled"}


def refused(site: Site, batches: list[UUID]) -> list[Request]:
    """Requests that the cancelled batches refuse. Each one waits for the standby or has given up waiting."""
    requests = [Request(site, call, batch, *more) for batch, (call, more) in zip(batches, REFUSED, strict=True)]

    def wait() -> bool:
        ended = [request for request in requests if request.outcome]
        assert {request.outcome for request in ended} <= {"PT503"}, "answered without the standby"
        return waiting_for(site, "PgSleep", requests) + len(ended) >= len(requests)

    wait_for(wait, "all wait or give up")
    return requests


def test_a_refusal_waits_until_the_standby_has_the_status_that_it_states(site: Site) -> None:
    batches = {way: [site.batch() for _ in REFUSED] for way in WAYS}
    for way in WAYS:
        site.cluster.lose_standby()
        cancelled_here_alone(site, batches[way], way)
        requests = refused(site, batches[way])
        site.cluster.find_standby()
        for request in requests:
            while (outcome := request.end()) == "PT503":  # the standby came late
                request = Request(site, request.call, *request.values)
            assert outcome == "PT400", request.call
    site.fail_over()
    assert site.db.rows("select distinct status::text from call_batches") == [{"status": "cancelled"}]


def test_a_status_that_a_failover_takes_back_was_not_stated(site: Site) -> None:
    batches = [site.batch() for _ in REFUSED]
    site.cluster.lose_standby()
    cancelled_here_alone(site, batches, "its wait was cancelled")
    requests = refused(site, batches)
    site.fail_over()
    assert {request.end() for request in requests} <= {"lost", "PT503"}
    assert {site.db.batch_row(batch)["status"] for batch in batches} == {"processing"}


def test_a_database_that_does_not_wait_for_its_standby_answers_no_change_without_it(site: Site) -> None:
    calls = ["cancel_batch(%s)", "stop_batch(%s::text)", "pause_batch(%s)"]
    batches = [site.batch() for _ in calls]
    site.cluster.configure("synchronous_commit", "local")
    site.cluster.lose_standby()
    requests = [Request(site, call, batch) for call, batch in zip(calls, batches, strict=True)]
    pending(site, requests)
    site.fail_over()
    assert {request.end() for request in requests} == {"lost"}
    assert {site.db.batch_row(batch)["status"] for batch in batches} == {"processing"}


def test_a_repeated_answer_waits_until_the_standby_has_the_first_one(site: Site) -> None:
    of = site.db.calling(site.agency)
    carrier = Carrier(site.db, site.agency)
    told = json.dumps(event("call.started", carrier.place(site.batch())[0]))
    new = (of["agent_mapping_id"], of["from_number"], of["campaign_id"])
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("cancel_batch(%s, 'key-1')", (site.batch(),)),
        ("stop_batch(%s::text, idempotency_key => 'key-2')", (site.batch(),)),
        ("stop_batch(%s::text)", (site.batch(),)),
        ("pause_batch(%s, 'key-3')", (site.batch(),)),
        (
            "create_batch(%s, %s, %s, %s, idempotency_key => 'key-4')",
            (*new, '[{"phone_number": "+15557654321"}]'),
        ),
        ("begin_import(null, repeat('0', 64), null, %s, %s, %s, idempotency_key => 'key-5')", new),
        ("ingest_webhook(%s, %s, path_secret => %s)", (site.agency, told, carrier.secret)),
    ]
    site.cluster.lose_standby()
    first = [Request(site, call, *values) for call, values in calls]
    pending(site, first)
    cancel_waits(site, [request.pid for request in first])
    assert {request.end() for request in first} == {"done"}  # with a warning
    again = [Request(site, call, *values) for call, values in calls]
    pending(site, again)
    site.cluster.find_standby()
    assert {request.end() for request in again} == {"done"}
    site.fail_over()
    statuses = site.db.rows("select status::text, count(*) as n from call_batches group by 1 order by 1")
    assert [(row["status"], row["n"]) for row in statuses] == [
        ("cancelled", 1), ("paused", 2), ("pending", 1), ("processing", 1), ("stopped", 2)
    ]  # fmt: skip
    assert site.db.value("select count(*) from webhook_queue") == 1


def standbys(site: Site) -> dict[str, float]:
    """The synchronous standbys in service_stats."""
    told = site.db.rows("select label, value from service_stats() where name = 'synchronous_standbys'")
    return {row["label"]: row["value"] for row in told}


def test_the_statistics_tell_how_many_standbys_confirm_a_commit_and_how_many_are_attached(site: Site) -> None:
    for names, required, attached in [
        ("", 0, 0),
        ("other", 1, 0),
        ("standby, other", 1, 1),
        ("*", 1, 1),
        ('"2 (other", standby', 1, 1),
        ("1 (standby)", 1, 1),
        ("ANY 1 (standby, other)", 1, 1),
        ("FIRST 2 (standby, other)", 2, 1),
        ("any 2(standby, other, third)", 2, 1),
    ]:
        site.cluster.configure("synchronous_standby_names", names)
        site.db.close()
        site.db = site.connect()
        wait_for(lambda: standbys(site) == {"required": required, "attached": attached}, names)  # noqa: B023
    site.cluster.configure("synchronous_standby_names", "standby")
    site.cluster.lose_standby()
    assert standbys(site) == {"required": 1, "attached": 0}


def test_an_owner_who_may_not_see_the_standby_is_told_what_to_grant(site: Site) -> None:
    site.db.rows("create role plain_owner")
    site.db.rows("grant usage on schema private to plain_owner")
    site.db.rows("grant execute on all functions in schema private to plain_owner")
    try:
        with site.db.owner.transaction():
            site.db.rows("set local role plain_owner")
            assert site.db.value("select private.count_standbys('0/0')") is None
            with pytest.raises(psycopg.DatabaseError, match="grant pg_read_all_stats") as refused:
                site.db.rows("select private.refuse_status('Batch is already cancelled', 'batch_already_cancelled')")
            assert refused.value.sqlstate == "PT503"
    finally:
        site.db.rows("drop owned by plain_owner")
        site.db.rows("drop role plain_owner")


def test_without_a_synchronous_standby_a_failover_loses_an_answered_cancel(site: Site) -> None:
    batch = site.batch()
    site.cluster.configure("synchronous_standby_names", "")
    wait_for(lambda: standbys(site) == {"required": 0, "attached": 0}, "no standby is synchronous")
    site.cluster.lose_standby()
    with closing(site.connect()) as db:
        db.rows("select cancel_batch(%s)", batch)
    site.fail_over()
    assert site.db.batch_row(batch)["status"] == "processing"


# The functions, the command and the dialer.


def waiting(site: Site, procedure: str) -> bool:
    """Whether a call of the procedure waits for the standby."""
    sessions = "select count(*) from pg_stat_activity where wait_event = 'SyncRep' and query ~ %s"
    return bool(site.db.value(sessions, procedure))


def cancel_wait(site: Site, procedure: str) -> None:
    """Cancel the wait of a procedure that waits for the standby."""
    wait_for(lambda: waiting(site, procedure), f"{procedure} waits")
    site.db.rows(
        "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep' and query ~ %s", procedure
    )


def test_the_functions_answer_503_without_the_standby_and_follow_a_failover(site: Site) -> None:
    batch = site.batch()
    headers = {**bearer(site.user), "Idempotency-Key": "key-1"}
    with TestClient(create_app(site.settings())) as client, ThreadPoolExecutor(1) as threads:

        def cancel() -> tuple[int, str | None]:
            response = client.post(CANCEL, json={"batch_id": str(batch)}, headers=headers)
            return response.status_code, response.json().get("code")

        site.cluster.lose_standby()
        first = threads.submit(cancel)
        cancel_wait(site, "cancel_batch")
        assert first.result() == (503, "not_confirmed")
        headers["Idempotency-Key"] = "key-2"
        assert cancel() == (503, "not_confirmed")
        headers["Idempotency-Key"] = "key-1"
        site.cluster.find_standby()
        assert cancel() == (200, None)
        site.fail_over()
        assert cancel() == (200, None)
        headers["Idempotency-Key"] = "key-2"
        assert cancel() == (400, "batch_already_cancelled")


def test_the_command_at_the_console_reports_no_success_whose_wait_was_cancelled(site: Site) -> None:
    batch = site.batch()
    console = SqlClient(site.db.uri)
    site.cluster.lose_standby()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(console.change, "cancel_batch", batch_id=str(batch), key="key-1")
        cancel_wait(site, "cancel_batch")
        with pytest.raises(OutOfReachError) as unknown:
            first.result()
    assert unknown.value.may_be_done
    with pytest.raises(OutOfReachError, match="has not confirmed"):
        console.change("cancel_batch", batch_id=str(batch), key="key-2")
    site.cluster.find_standby()
    assert console.change("cancel_batch", batch_id=str(batch), key="key-1")["status"] == "cancelled"
    console.close()


def test_a_dialer_places_no_call_whose_start_did_not_wait_for_the_standby(site: Site) -> None:
    batch = site.batch(retry_delay_seconds=0)
    carrier = ScriptedCarrier(complete)

    async def run() -> None:
        site.cluster.lose_standby()
        async with dialing(site.db, carrier):
            await until(lambda: waiting(site, "start_call"))
            assert carrier.arrived == []
            cancel_wait(site, "start_call")
            await until(lambda: waiting(site, "finish_call"))  # records that none was placed
            assert carrier.arrived == []
            site.cluster.find_standby()
            await until(lambda: site.db.statuses(batch) == {"completed": 2})

    asyncio.run(run())
    assert len(carrier.arrived) == 2


def test_a_dialer_follows_a_failover_and_places_no_call_that_the_old_primary_did_not_commit(site: Site) -> None:
    batch = site.batch()
    carrier = ScriptedCarrier(complete)
    uri = site.settings().database_url

    async def run() -> None:
        site.cluster.lose_standby()
        async with dialing(site.db, carrier, database_url=uri):
            await until(lambda: waiting(site, "start_call"))
            assert carrier.arrived == []
            site.fail_over()
            assert carrier.arrived == []
            await until(lambda: site.db.statuses(batch) == {"completed": 2})

    asyncio.run(run())
    assert len(carrier.arrived) == 2


# Promotions.

PROMOTIONS = int(os.environ.get("PROMOTIONS", "3"))
SEED = int(os.environ.get("SEED", "1"))
USERS = 6
ENDS = {"cancelled": CANCEL, "stopped": "/api/call/stop-calling", "paused": "/functions/v1/calls-batch-pause"}
REFUSALS = {"cancelled": "batch_already_cancelled", "paused": "batch_not_pausable", "stopped": "never"}


class Fire:
    """Users who cancel, stop and pause batches, and a dialer, until the primary is gone."""

    def __init__(self, site: Site, random: Random) -> None:
        self.site = site
        self.batches = [(site.batch(), status) for status in ENDS for _ in range(30)]
        self.answers: list[tuple[UUID, str, int]] = []
        """Each 200, and each 400 because of a status: the batch, the status that the answer states, the HTTP status."""
        self.started: list[int] = []
        """Calls that start_call let through."""
        self.over = threading.Event()
        self.errors: list[BaseException] = []
        works = [partial(self._use, site.db.user(site.agency), Random(random.random())) for _ in range(USERS)]
        self.threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True) for work in [*works, self._dial]
        ]

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.errors.append(error)

    def _use(self, user: UUID, random: Random) -> None:
        while not self.over.is_set():
            batch, status = random.choice(self.batches)
            body = {"batch_id": str(batch)}
            if status == "stopped":
                body = {"batchId": str(batch), "userId": str(self.site.user)}
            unknown = True
            while unknown and not self.over.is_set():  # as a client that repeats
                key = {"Idempotency-Key": f"{user} {batch} {random.randrange(2)}"} if random.random() < 0.5 else {}
                response = self.client.post(ENDS[status], json=body, headers=bearer(user) | key)
                unknown = response.status_code == 503
                if not unknown:
                    assert response.status_code == 200 or REFUSALS[status] in response.text, response.text
                    self.answers.append((batch, status, response.status_code))

    def _dial(self) -> None:
        while not self.over.is_set():
            with suppress(psycopg.Error), closing(self.site.connect()) as db:
                unconfirmed: list[bool] = []
                db.owner.add_notice_handler(lambda notice: unconfirmed.append(gave_up_standby(notice)))  # noqa: B023
                while not (self.over.is_set() or any(unconfirmed)):
                    claimed = db.rows("select batch_id, call_id, lease from claim_contacts(3)")
                    if not claimed:
                        self.over.wait(0.02)
                        continue
                    calls = [row["call_id"] for row in claimed]
                    started = db.start_calls(claimed[0]["batch_id"], calls, claimed[0]["lease"])
                    if not any(unconfirmed):
                        self.started += started

    def burn(self, way: str | None, random: Random) -> None:
        """Fail over while requests wait, after the way showed some changes that the lost standby does not have."""
        # One agency's users, and none of them waits for a turn.
        settings = self.site.settings(pool_size=2 * USERS + 4, pool_reserved=USERS + 4)
        with TestClient(create_app(settings), raise_server_exceptions=False) as self.client:
            for thread in self.threads:
                thread.start()
            try:
                self._lose(way, random)
            finally:  # or requests would wait for the standby for good
                self.site.fail_over()
                self.over.set()
                for thread in self.threads:
                    thread.join()
        assert self.errors == []

    def _lose(self, way: str | None, random: Random) -> None:
        enough = random.randrange(60)
        self._wait(lambda: len(self.answers) > enough, "answers")
        if way is not None:
            self.site.cluster.lose_standby()
            for _ in range(random.randrange(2, 5)):
                self._wait(lambda: self._waiting("SyncRep", "PgSleep", "transactionid", "tuple"), "all users wait")
                interrupted = self._sessions("SyncRep")
                WAYS[way][0](self.site, [pid for pid, _ in interrupted])
                # Interrupted once more, a session that is slow to wake would lose its next request.
                self._wait(lambda: not interrupted & self._sessions("SyncRep"), "the waits are over")  # noqa: B023

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        wait_for(lambda: condition() or self.errors, what)
        assert self.errors == []

    def _waiting(self, *events: str) -> bool:
        return len(self._sessions(*events)) >= USERS

    def _sessions(self, *events: str) -> set[tuple[int, datetime]]:
        """The users' sessions that wait for one of these events: process and begin of the transaction."""
        sessions = self.site.db.rows(
            "select pid, xact_start from pg_stat_activity"
            " where application_name = 'lastcall' and wait_event = any (%s)",
            list(events),
        )
        return {(session["pid"], session["xact_start"]) for session in sessions}

    def lost(self) -> list[tuple[UUID, str, int]]:
        """The answers that do not hold."""
        statuses = {row["id"]: row["status"] for row in self.site.db.rows("select id, status::text from call_batches")}
        return [answer for answer in self.answers if statuses[answer[0]] != answer[1]]


def test_a_promotion_under_load_loses_nothing_that_was_answered(servers: Cluster) -> None:
    random = Random(SEED)
    figures: Counter[str] = Counter()
    for number in range(PROMOTIONS):
        way = [None, *WAYS][number % (len(WAYS) + 1)]
        servers.add_standby()
        site = Site(servers)
        fire = Fire(site, random)
        fire.burn(way, random)
        assert fire.lost() == [], f"promotion {number}, seed {SEED}, {way}"
        in_progress = "select count(*) from calls where id = any (%s) and status = 'in_progress'"
        assert site.db.value(in_progress, fire.started) == len(fire.started)
        assert site.db.rows("select * from service_stats() where name = 'calls_started_after_end' and value <> 0") == []
        assert site.db.unbalanced() == []
        site.drop()
        figures.update(f"{status} {code}" for _, status, code in fire.answers)
        figures["started"] += len(fire.started)
    print(f"{PROMOTIONS} promotions, seed {SEED}, lost: none;", dict(figures))
