"""The way to Postgres: one round trip, nothing left behind, and every fault answered for what it is."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx2
import psycopg
import pytest
from psycopg_pool.base import AttemptWithBackoff
from starlette.testclient import TestClient

from functions._shared import database
from functions._shared.auth import Caller
from functions._shared.database import PostgresDatabase
from functions._shared.errors import FunctionError
from functions._shared.settings import Settings
from functions.migrations import migrate
from functions.postgres_server import PostgresServer

from ..support.client import CANCEL, Case, serve
from ..support.database import TestDatabase
from ..support.faults import at_commit, fails_at_first
from ..support.locks import locked, waiting_for_a_lock
from ..support.outage import impatient, unavailable
from ..support.proxy import proxy
from ..support.servers import new_server, short_lived_folder
from ..support.tokens import ISSUER, SECRET, bearer
from ..support.waiting import until

STOP = "/api/call/stop-calling"
T = TypeVar("T")


def opened(client: TestClient) -> None:
    """Let the service have a pool, which has no connection yet."""
    assert client.portal is not None
    client.portal.call(client.app.state.database._open_pool)  # type: ignore[attr-defined]


def connected(client: TestClient) -> None:
    """Wait until the service makes no connection: one that a restart breaks off would be tried again."""

    def is_idle() -> bool:
        stats = client.app.state.database.pool_stats()  # type: ignore[attr-defined]
        return bool(stats["pool_size"] == stats.get("pool_available"))

    until(is_idle)


def using(settings: Settings, work: Callable[[PostgresDatabase], Awaitable[T]]) -> T:
    """The result of `work` with a PostgresDatabase of these settings."""

    async def run() -> T:
        database = PostgresDatabase(settings)
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())


# One round trip.


def test_a_request_is_one_round_trip(settings: Settings, db: TestDatabase, own_folder: Path) -> None:
    """The server answers at a sync, so that what comes before the only one travels together: isolation, role and
    claims, the procedure, sync. A flush after the sync would hold a transaction pooler's connection."""
    first, second = Case(db), Case(db)
    trip = "PBDEPBDEPBDES"
    with (
        proxy(own_folder, db.functions_uri) as between,
        serve(settings, database_url=between.uri) as client,
    ):
        # The proxy may see the last message of a request after its client has the answer.
        assert first.cancel(client).status_code == 200  # connects
        until(lambda: between.sent()[0].endswith("S"))
        (before,) = between.sent()
        assert first.cancel(client).status_code == 400
        assert second.cancel(client).status_code == 200
        assert second.cancel(client, key="k").status_code == 400
        until(lambda: len(between.sent()[0]) >= len(before + trip * 3))
        (after,) = between.sent()
    assert before.endswith(trip)
    assert after.removeprefix(before) == trip * 3


# Nothing is left behind on a connection.


async def left_behind(database: PostgresDatabase) -> tuple[Any, ...]:
    """The state that the next user of the pool's connection finds, in any transaction."""
    pool = await database._open_pool()
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "select pg_backend_pid(), current_user, current_setting('role'),"
            " coalesce(current_setting('request.jwt.claims', true), ''),"
            " coalesce(current_setting('request.headers', true), ''), current_setting('statement_timeout')"
        )
        row: tuple[Any, ...] | None = await cursor.fetchone()
        assert row is not None
        return row


def test_neither_role_nor_claims_are_left_for_the_next_user_of_a_connection(
    settings: Settings, db: TestDatabase
) -> None:
    case = Case(db)
    unknown = {"batch_id": uuid4()}

    async def work(database: PostgresDatabase) -> set[tuple[Any, ...]]:
        found = {await left_behind(database)}
        await database.run(case.caller, "cancel_batch", case.arguments)
        found.add(await left_behind(database))
        with pytest.raises(FunctionError):
            await database.run(case.caller, "cancel_batch", unknown)
        found.add(await left_behind(database))
        with pytest.raises(psycopg.Error):
            await database.run(Caller("no such role", {}), "cancel_batch", unknown)
        found.add(await left_behind(database))
        return found

    (found,) = using(replace(settings, pool_size=1), work)
    assert found[1:] == ("lastcall_functions", "none", "", "", "1min")


def test_a_call_that_forgets_the_claims_is_refused(settings: Settings, db: TestDatabase) -> None:
    case = Case(db)
    before = db.state()
    for claims in ({}, {"role": "authenticated"}, {"sub": ""}, {"sub": "admin"}, {"role": "service_role"}):
        caller = Caller("authenticated", claims)
        with pytest.raises(FunctionError) as refused:
            using(settings, lambda database, c=caller: database.run(c, "cancel_batch", case.arguments))  # type: ignore[misc]
        assert refused.value.status == 401
        assert refused.value.headers == {"WWW-Authenticate": "Bearer"}
    with (
        db.acting("authenticated") as connection,
        pytest.raises(psycopg.Error, match="Not signed in") as error,
    ):
        connection.execute("select cancel_batch(%s)", [case.batch])
    assert error.value.sqlstate == "PT401"
    assert db.state() == before


@pytest.mark.parametrize("role", ["none", "anon"])
def test_a_call_that_forgets_the_role_may_execute_nothing(db: TestDatabase, role: str) -> None:
    case = Case(db)
    for procedure in ("cancel_batch(%s)", "stop_batch(%s::text)"):
        with (
            db.acting(role, case.caller.claims) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(f"select {procedure}", [case.batch])


# The pool.


def test_the_first_requests_may_come_all_at_once(settings: Settings, db: TestDatabase) -> None:
    cases = [Case(db, contacts=0) for _ in range(32)]
    with serve(settings, pool_size=4) as client, ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(lambda case: case.cancel(client).status_code, cases))
    assert answers == [200] * 32


def test_no_more_connections_are_made_than_the_pool_may_have(settings: Settings, db: TestDatabase) -> None:
    cases = [Case(db, contacts=0) for _ in range(24)]
    connections = "select count(*) from pg_stat_activity where application_name = 'lastcall' and datname = %s"
    name = db.value("select current_database()")
    with serve(settings, pool_size=2) as client, ThreadPoolExecutor(24) as threads:
        with locked(db, cases[0].batch), locked(db, cases[1].batch):
            sent = [threads.submit(case.cancel, client) for case in cases]
            waiting_for_a_lock(db, 2)
            assert db.value(connections, name) == 2
        assert [answer.result().status_code for answer in sent] == [200] * 24
        assert db.value(connections, name) == 2


def test_refusals_cost_no_connection(settings: Settings, db: TestDatabase, own_folder: Path) -> None:
    case = Case(db)
    with (
        proxy(own_folder, db.functions_uri) as between,
        serve(settings, database_url=between.uri, pool_size=1) as client,
    ):
        assert case.cancel(client).status_code == 200
        assert {case.cancel(client).status_code for _ in range(20)} == {400}
        assert len(between.sent()) == 1


def test_without_a_free_connection_a_request_is_told_to_come_again(settings: Settings, db: TestDatabase) -> None:
    held, other = Case(db), Case(db)
    with serve(settings, pool_size=1) as client, ThreadPoolExecutor(1) as threads:
        with locked(db, held.batch):
            first = threads.submit(held.cancel, client)
            waiting_for_a_lock(db)
            with impatient(client.app):
                assert unavailable(other.cancel(client))
                assert unavailable(client.get("/health"))
            assert db.batch_row(other.batch)["status"] == "processing"
        assert first.result().status_code == 200
        assert other.cancel(client).status_code == 200


def test_when_too_many_wait_the_next_is_told_so_at_once(settings: Settings, db: TestDatabase) -> None:
    held, others = Case(db), [Case(db) for _ in range(4)]
    # A waiting request would wait for ten minutes: an answer is no timeout.
    limits = {"pool_size": 1, "pool_max_waiting": 1, "pool_timeout_s": 600.0}
    with serve(settings, **limits) as client, ThreadPoolExecutor(5) as threads:
        with locked(db, held.batch):
            first = threads.submit(held.cancel, client)
            waiting_for_a_lock(db)
            pending: set[Future[httpx2.Response]] = {threads.submit(case.cancel, client) for case in others}
            while len(pending) > 2:  # one waits for a connection to look up its agency, one for its turn at that
                done, pending = wait(pending, 60, FIRST_COMPLETED)
                assert done
                assert all(unavailable(answer.result()) for answer in done)
        assert first.result().status_code == 200
        assert [answer.result().status_code for answer in pending] == [200, 200]


# A server of the test's own, to be stopped and killed.


@pytest.fixture(scope="module")
def module_folder() -> Iterator[Path]:
    with short_lived_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def own_server(module_folder: Path) -> Iterator[PostgresServer]:
    server = new_server(module_folder)
    server.start()
    with psycopg.connect(server.uri(), autocommit=True) as connection:
        connection.execute("create database migrated")
    migrate(server.uri("migrated"))
    yield server
    server.stop()


class OwnDatabase:
    """A database of a server that comes and goes: connect again after it went."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.name = f"test_{uuid4().hex}"
        with psycopg.connect(server.uri(), autocommit=True) as connection:
            connection.execute(f"create database {self.name} template migrated".encode())
        self.settings = Settings(
            database_url=server.uri(self.name, "lastcall_functions"), jwt_secret=SECRET, jwt_issuer=ISSUER
        )

    @contextmanager
    def connect(self) -> Iterator[TestDatabase]:
        db = TestDatabase(self.server.uri(self.name), self.settings.database_url or "")
        try:
            yield db
            assert db.unbalanced() == []
        finally:
            db.close()


@pytest.fixture
def own(own_server: PostgresServer) -> OwnDatabase:
    return OwnDatabase(own_server)


@pytest.fixture
def backoffs(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When pools of connections decided to wait for a while before they try again."""
    decided: list[float] = []
    update_delay = AttemptWithBackoff.update_delay

    def decide(self: AttemptWithBackoff, now: float) -> None:
        decided.append(now)
        update_delay(self, now)

    monkeypatch.setattr(AttemptWithBackoff, "update_delay", decide)
    return decided


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_after_a_restart_of_postgres_the_next_request_works_and_waits_for_no_backoff(
    own: OwnDatabase, backoffs: list[float], mode: str
) -> None:
    with own.connect() as db:
        cases = [Case(db) for _ in range(8)]
        more = [Case(db) for _ in range(3)]
    with serve(own.settings, pool_size=8, pool_reserved=0) as client:
        with ThreadPoolExecutor(8) as threads, own.connect() as db:
            with db.connect() as other, other.transaction():  # until eight connections are open
                other.execute("lock table campaigns in access exclusive mode")
                sent = [threads.submit(case.list, client) for case in cases]
                waiting_for_a_lock(db, 8)
            assert [answer.result().status_code for answer in sent] == [200] * 8
        for case in more:
            connected(client)
            own.server.restart(mode)
            assert case.cancel(client).status_code == 200
        connected(client)
        own.server.restart(mode)
        with ThreadPoolExecutor(7) as threads:
            answers = list(threads.map(lambda case: case.cancel(client).status_code, cases[1:]))
        assert answers == [200] * 7
    assert backoffs == []


def test_without_postgres_requests_are_told_to_come_again_and_the_next_one_after_it_works(
    own: OwnDatabase,
) -> None:
    with own.connect() as db:
        cases = [Case(db) for _ in range(2)]
    with serve(own.settings, pool_size=2) as client:
        for case in cases:
            assert client.get("/health").status_code == 200
            own.server.stop()
            with impatient(client.app):
                assert unavailable(case.cancel(client))
                assert unavailable(client.get("/health"))
            own.server.start()
            assert case.cancel(client).status_code == 200


def test_a_service_may_start_before_its_postgres(own: OwnDatabase) -> None:
    with own.connect() as db:
        case = Case(db)
    own.server.stop()
    with serve(own.settings) as client:
        opened(client)
        with impatient(client.app), ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda _: case.cancel(client), range(4)))
        assert all(unavailable(answer) for answer in answers)
        own.server.start()
        assert case.cancel(client).status_code == 200


def test_a_postgres_without_a_connection_to_spare_is_out_of_reach(own: OwnDatabase) -> None:
    with own.connect() as db:
        case = Case(db)
        db.rows("alter role lastcall_functions connection limit 0")
        try:
            with serve(own.settings) as client:
                opened(client)
                with impatient(client.app):
                    assert unavailable(case.cancel(client))
                db.rows("alter role lastcall_functions connection limit -1")
                assert case.cancel(client).status_code == 200
        finally:
            db.rows("alter role lastcall_functions connection limit -1")


def test_a_connection_that_postgres_ends_in_the_middle_of_a_call_changes_nothing(
    settings: Settings, db: TestDatabase
) -> None:
    case = Case(db)
    before = db.state()
    with serve(settings, pool_size=1) as client, ThreadPoolExecutor(1) as threads:
        with locked(db, case.batch):
            sent = threads.submit(case.cancel, client)
            waiting_for_a_lock(db)
            db.rows(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and application_name = 'lastcall'"
            )
            assert unavailable(sent.result())
        assert db.state() == before
        assert case.cancel(client).status_code == 200


@pytest.mark.parametrize("path", [CANCEL, STOP])
def test_a_call_that_takes_too_long_is_undone(settings: Settings, db: TestDatabase, path: str) -> None:
    case = Case(db)
    body = {"batch_id": str(case.batch), "batchId": str(case.batch), "userId": str(case.user)}
    before = db.state()
    with serve(settings, statement_timeout_ms=100) as client:
        with locked(db, case.batch):
            answer = client.post(path, json=body, headers=bearer(case.user))
        assert answer.status_code == 500
        assert db.state() == before
    with serve(settings) as client:
        assert client.post(path, json=body, headers=bearer(case.user)).status_code == 200


@pytest.mark.parametrize("transport", ["settings", "postgrest_settings"])
@pytest.mark.own_database
def test_a_lock_other_than_a_batch_s_is_waited_for_a_bounded_time_too(
    db: TestDatabase, request: pytest.FixtureRequest, transport: str
) -> None:
    case = Case(db)
    db.rows(f"alter role authenticator in database {db.value('select current_database()')} set lock_timeout = '50ms'")
    with serve(request.getfixturevalue(transport), lock_timeout_ms=50) as client:
        with db.connect() as other, other.transaction():
            other.execute("lock table campaigns in access exclusive mode")
            answer = case.list(client)
        assert unavailable(answer)
        assert answer.json()["code"] == "busy"
        assert case.list(client).status_code == 200


@pytest.mark.parametrize(("role", "limit"), [("authenticated", "70ms"), ("service_role", "30ms")])
@pytest.mark.own_database
def test_people_and_the_service_have_a_lock_timeout_each(
    settings: Settings, db: TestDatabase, role: str, limit: str
) -> None:
    db.rows(
        "create function public.limit_is() returns text language sql as $$ select current_setting('lock_timeout') $$"
    )
    of = replace(settings, lock_timeout_ms=70, service_lock_timeout_ms=30)
    caller = Caller(role, {"sub": str(uuid4()), "role": role})
    assert using(of, lambda database: database.run(caller, "limit_is", {})) == [limit]


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
@pytest.mark.own_database
def test_procedures_run_at_read_committed_whatever_the_database_s_default(
    settings: Settings, db: TestDatabase, isolation: str
) -> None:
    name = db.value("select current_database()")
    db.rows(f"alter database {name} set default_transaction_isolation = '{isolation}'")
    db.rows(
        "create function public.isolation_is() returns text language sql as"
        " $$ select current_setting('transaction_isolation') $$"
    )
    caller = Case(db).caller

    async def twice(database: PostgresDatabase) -> list[Any]:
        return [await database.run(caller, "isolation_is", {}) for _ in range(2)]

    assert using(settings, twice) == [["read committed"]] * 2


# Asked by Postgres to try again.


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
@pytest.mark.own_database
def test_a_serialization_failure_or_a_deadlock_is_tried_once_more(
    settings: Settings, db: TestDatabase, sqlstate: str
) -> None:
    fails_at_first(db, sqlstate, 1)
    caller = Case(db).caller
    assert using(settings, lambda database: database.run(caller, "try_it", {})) == [{"try": 2, "ok": True}]


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
@pytest.mark.own_database
def test_it_is_tried_once_more_and_no_further(settings: Settings, db: TestDatabase, sqlstate: str) -> None:
    fails_at_first(db, sqlstate, 2)
    caller = Case(db).caller
    with pytest.raises(psycopg.Error) as error:
        using(settings, lambda database: database.run(caller, "try_it", {}))
    assert error.value.sqlstate == sqlstate
    assert error.value.__cause__ is not error.value
    assert db.value("select last_value from tries") == 2


@pytest.mark.parametrize("sqlstate", ["PT409", "23505", "P0001", "57014"])
@pytest.mark.own_database
def test_nothing_else_is_tried_again(settings: Settings, db: TestDatabase, sqlstate: str) -> None:
    fails_at_first(db, sqlstate, 1)
    caller = Case(db).caller
    with pytest.raises((psycopg.Error, FunctionError)):
        using(settings, lambda database: database.run(caller, "try_it", {}))
    assert db.value("select last_value from tries") == 1


@pytest.mark.own_database
def test_a_failed_commit_is_no_success(settings: Settings, db: TestDatabase) -> None:
    case = Case(db)
    at_commit(db, "23514", 1)
    before = db.state()
    with serve(settings, pool_size=1) as client:
        assert case.cancel(client).status_code == 500
        assert db.state() == before
        assert case.cancel(client).status_code == 200


@pytest.mark.own_database
def test_a_serialization_failure_at_commit_is_tried_once_more(settings: Settings, db: TestDatabase) -> None:
    case = Case(db)
    at_commit(db, "40001", 1)
    with serve(settings, pool_size=1) as client:
        answer = case.cancel(client)
    assert (answer.status_code, answer.json()["contacts_skipped"]) == (200, 3)
    assert db.value("select count(*) from batch_events") == 1


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "as they come"])
@pytest.mark.parametrize("sqlstate", ["40001", "23514"])
@pytest.mark.own_database
def test_a_refused_commit_leaves_the_connection_usable_however_the_replies_come(
    settings: Settings,
    db: TestDatabase,
    own_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    sqlstate: str,
    at_once: bool,
) -> None:
    def sync_and_be_slow(pipeline: psycopg.AsyncPipeline) -> None:
        """Send the Sync, and look at the socket again when the whole reply is there."""

        def sync() -> None:
            pipeline.pgconn.pipeline_sync()
            select.select([pipeline.pgconn.socket], [], [])

        pipeline.command_queue.append(sync)
        pipeline.result_queue.append(None)

    if at_once:
        monkeypatch.setattr(database._Pipeline, "_enqueue_sync", sync_and_be_slow)
    case = Case(db)
    at_commit(db, sqlstate, 1)
    with (
        proxy(own_folder, db.functions_uri) as between,
        serve(replace(settings, database_url=between.uri), pool_size=1) as client,
    ):
        between.replies_at_once = at_once
        statuses = [case.cancel(client).status_code for _ in range(2)]
    assert statuses == ([200, 400] if sqlstate == "40001" else [500, 200])
    assert len(between.sent()) == 1


# Lost answers.


@pytest.mark.own_database
def test_an_answer_that_is_lost_after_the_commit_is_had_again_by_its_idempotency_key(
    settings: Settings, db: TestDatabase, own_folder: Path
) -> None:
    case = Case(db, contacts=5)
    with (
        proxy(own_folder, db.functions_uri) as between,
        ThreadPoolExecutor(1) as threads,
        serve(settings, database_url=between.uri) as client,
    ):
        assert client.get("/health").status_code == 200
        between.passes_replies.clear()
        sent = threads.submit(case.cancel, client, "the-key")
        until(lambda: db.batch_row(case.batch)["status"] == "cancelled")
        between.cut()
        assert unavailable(sent.result())
        after = db.state()

        again = case.cancel(client, "the-key")

        assert again.status_code == 200
        assert again.json()["contacts_skipped"] == 5
        assert again.json().items() <= db.value("select response from batch_events").items()
        assert case.cancel(client).status_code == 400
        assert case.cancel(client, "another-key").status_code == 400
    assert db.state() == after


@pytest.mark.parametrize("moment", ["has begun", "skips contacts", "has replied"])
def test_a_cancel_during_which_postgres_is_killed_happened_wholly_or_not_at_all(own: OwnDatabase, moment: str) -> None:
    contacts = 60_000
    with own.connect() as db:
        case = Case(db, contacts)
    with serve(own.settings) as client, ThreadPoolExecutor(1) as threads:
        assert client.get("/health").status_code == 200
        with own.connect() as db:
            backend = db.value(
                "select pid from pg_stat_activity where datname = current_database() and application_name = 'lastcall'"
            )
            sent = threads.submit(case.cancel, client, "k")
            locks = f"select count(*) from pg_locks where pid = {backend}"
            if moment == "skips contacts":
                locks += " and relation = 'campaign_contacts'::regclass and mode = 'RowExclusiveLock'"
            until(lambda: sent.done() or (moment != "has replied" and db.value(locks) > 0))
            os.kill(own.server.postmaster_pid(), signal.SIGKILL)
            with suppress(ProcessLookupError):  # it may have noticed that the postmaster is gone
                os.kill(backend, signal.SIGKILL)
            answer = sent.result()
            db.owner.close()
            own.server.restart()
            db.owner = db.connect()
            cancelled = db.batch_row(case.batch)["status"] == "cancelled"
            assert db.statuses(case.batch) == ({"skipped" if cancelled else "pending": contacts})
            assert db.value("select count(*) from batch_events") == int(cancelled)
            assert answer.status_code == 200 if cancelled and answer.is_success else unavailable(answer)
        again = case.cancel(client, "k")
        assert (again.status_code, again.json()["contacts_skipped"]) == (200, contacts)
