"""Behind a pooler in transaction mode: one server connection serves everybody in turn, and tells nobody of another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import dict_row
from starlette.testclient import TestClient

from functions._shared.database import PostgresDatabase
from functions._shared.settings import Settings
from functions.migrations import MIGRATIONS, migrate
from functions.postgres_server import PostgresServer

from ..support.client import Case, serve
from ..support.command import lastcall
from ..support.database import TestDatabase, log_in_as
from ..support.dialing import ScriptedCarrier, complete, dialing
from ..support.dialing import until as until_so
from ..support.faults import at_commit
from ..support.locks import locked, waiting_for_a_lock
from ..support.pgbouncer import PGBOUNCER, PgBouncer
from ..support.proxy import proxy
from ..support.servers import short_lived_folder
from ..support.tokens import bearer
from ..support.webhooks import event, signed_standard

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="needs PgBouncer: Debian's package pgbouncer")

CRON = "a cron secret of at least thirty-two bytes"
LIST, PAUSE, RESUME = (f"/functions/v1/calls-batch-{name}" for name in ("list", "pause", "resume"))
SESSION = """
select pg_backend_pid() as pid, current_user::text, session_user::text, current_setting('role') as role,
       -- A setting of the request is nothing, or empty once it was set in a transaction.
       coalesce(current_setting('request.jwt.claims', true), '') as claims,
       coalesce(current_setting('request.headers', true), '') as headers,
       (select count(*) from pg_prepared_statements) as prepared,
       (select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory') as advisory_locks,
       -- plpgsql has its own settings, once it was used.
       (select json_object_agg(name, setting) from pg_settings
         where name <> 'application_name' and category <> 'Customized Options') as settings
"""


@pytest.fixture(scope="module")
def pooler(server: PostgresServer) -> Iterator[PgBouncer]:
    """A PgBouncer with a single server connection for each role and database."""
    with short_lived_folder() as folder, PgBouncer(folder, server, pool_size=1).running() as pgbouncer:
        yield pgbouncer


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """More connections to the pooler than the pooler has to the server."""
    return replace(settings, pool_size=4, cron_secret=CRON)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with serve(settings) as client:
        yield client


def session(uri: str) -> dict[str, Any]:
    """The state that the next client finds on the connection."""
    with psycopg.connect(uri, autocommit=True, prepare_threshold=None, row_factory=dict_row) as connection:
        found = connection.execute(SESSION).fetchone()
    assert found is not None
    return found


def as_fresh(db: TestDatabase) -> int:
    """The server's connection is as a fresh one would be; its process id."""
    found, fresh = session(db.functions_uri), session(log_in_as("lastcall_functions", db.uri))
    pid: int = found.pop("pid")
    assert pid != fresh.pop("pid")
    assert found == fresh
    return pid


def server_connections(db: TestDatabase) -> int:
    number: int = db.value(
        "select count(*) from pg_stat_activity where datname = current_database() and usename = 'lastcall_functions'"
    )
    return number


# Callers.


class Callers:
    """Everybody there is, each of whom does something and gets the answer that is theirs."""

    def __init__(self, db: TestDatabase, client: TestClient, console_uri: str) -> None:
        self.db, self.client, self.console_uri = db, client, console_uri
        self.cases = [Case(db), Case(db)]
        self.agency = db.row("select agency_id from call_batches where id = %s", self.cases[0].batch)["agency_id"]
        self.secret = db.value("select webhook_secret from rotate_webhook_secret(%s)", self.agency)
        self.webhooks = 0
        self.expected: list[tuple[str, UUID | None, str, str]] = []

    def user(self, case: Case, *, request_id: str) -> None:
        """Sees the own agency's batches, and pauses and resumes one."""
        headers = bearer(case.user) | {"X-Request-Id": request_id}
        shown = self.client.get(LIST, headers=headers).json()["batches"]
        assert [batch["id"] for batch in shown] == [str(case.batch)]
        for path in (PAUSE, RESUME):
            assert self.client.post(path, json={"batch_id": str(case.batch)}, headers=headers).status_code == 200
            self.expected.append(("user", case.user, "authenticated", request_id))

    def one(self) -> None:
        self.user(self.cases[0], request_id=f"one-{len(self.expected)}")

    def other(self) -> None:
        self.user(self.cases[1], request_id=f"other-{len(self.expected)}")

    def guessing(self) -> None:
        """One agency's owner knows the other's batch."""
        body = {"batch_id": str(self.cases[1].batch)}
        assert self.client.post(PAUSE, json=body, headers=bearer(self.cases[0].user)).status_code == 404

    def service(self) -> None:
        answer = self.client.post(
            "/functions/v1/process-webhook-queue", headers={"Authorization": f"Bearer {CRON}"}
        ).json()
        assert answer["processed"] == self.webhooks
        self.webhooks = 0

    def anon(self) -> None:
        """A carrier, who has no token; and one who cannot sign."""
        body = json.dumps(event("call.started", callId=str(uuid4())))
        url = f"/functions/v1/webhook-ingest/{self.agency}"
        headers = signed_standard(self.secret, body, webhook_id=str(uuid4()))
        assert self.client.post(url, content=body, headers=headers).status_code == 200
        self.webhooks += 1
        assert self.client.post(url, content=body).status_code == 401

    def nobody(self) -> None:
        """A session that logs in as the functions, and names no caller, may do nothing."""
        with (
            psycopg.connect(self.db.functions_uri, autocommit=True, prepare_threshold=None) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute("select pause_batch(%s)", [self.cases[0].batch])

    def console(self) -> None:
        with psycopg.connect(self.console_uri, autocommit=True, prepare_threshold=None) as connection:
            for procedure in ("pause_batch", "resume_batch"):
                connection.execute(f"select {procedure}(%s)".encode(), [self.cases[1].batch])
                self.expected.append(("console", None, "postgres", ""))

    def all(self) -> list[Callable[[], None]]:
        return [self.one, self.other, self.service, self.guessing, self.anon, self.console, self.nobody]

    def recorded(self) -> list[tuple[str, UUID | None, str, str]]:
        """The actor of each action, by the audit trail."""
        events = self.db.rows(
            "select actor_kind, actor_id, actor_role, coalesce(request_id, '') as request_id from batch_events"
            " where action in ('pause', 'resume') order by id"
        )
        return [(row["actor_kind"], row["actor_id"], row["actor_role"], row["request_id"]) for row in events]


@pytest.fixture
def callers(db: TestDatabase, client: TestClient, pooler: PgBouncer) -> Callers:
    return Callers(db, client, pooler.uri(db.value("select current_database()"), "postgres"))


def test_callers_who_take_turns_on_one_connection_are_never_taken_for_each_other(
    db: TestDatabase, callers: Callers
) -> None:
    everybody = callers.all()
    pids = set()
    for distance in range(1, len(everybody)):  # each right after each other
        for index in range(len(everybody)):
            everybody[index * distance % len(everybody)]()
            pids.add(as_fresh(db))
    assert callers.recorded() == callers.expected
    assert len(pids) == 1


def test_callers_at_the_same_time_each_get_their_own(db: TestDatabase, client: TestClient) -> None:
    cases = [Case(db, contacts=1) for _ in range(8)]

    def look(case: Case) -> list[list[str]]:
        answers = [client.get(LIST, headers=bearer(case.user)) for _ in range(5)]
        return [[batch["id"] for batch in answer.json()["batches"]] for answer in answers]

    with ThreadPoolExecutor(len(cases)) as threads:
        assert list(threads.map(look, cases)) == [[[str(case.batch)]] * 5 for case in cases]
        assert server_connections(db) == 1
        answers = list(threads.map(lambda case: case.cancel(client).status_code, cases))
    assert answers == [200] * 8
    assert [row["actor_id"] for row in db.rows("select actor_id from batch_events order by batch_id")] == [
        case.user for case in sorted(cases, key=lambda case: case.batch)
    ]
    as_fresh(db)


# Whatever happened to a request, it leaves nothing behind.


@pytest.mark.own_database
def test_a_request_that_fails_to_commit_leaves_nothing(db: TestDatabase, client: TestClient) -> None:
    case = Case(db)
    at_commit(db, "23514", 1)
    assert case.cancel(client).status_code == 500
    as_fresh(db)
    assert case.cancel(client).status_code == 200


def test_a_request_that_takes_too_long_leaves_nothing(db: TestDatabase, settings: Settings) -> None:
    case = Case(db)
    pid = as_fresh(db)
    with serve(settings, statement_timeout_ms=100) as client, locked(db, case.batch):
        assert case.cancel(client).status_code == 500
        assert as_fresh(db) == pid
    with serve(settings) as client:
        assert case.cancel(client).status_code == 200


def test_a_request_that_postgres_cancels_leaves_nothing(db: TestDatabase, client: TestClient) -> None:
    case = Case(db)
    pid = as_fresh(db)
    with ThreadPoolExecutor(1) as threads:
        with locked(db, case.batch):
            sent = threads.submit(case.cancel, client)
            waiting_for_a_lock(db)
            assert db.value("select pg_cancel_backend(%s)", pid)
            assert sent.result().status_code == 500
            assert as_fresh(db) == pid
        assert case.cancel(client).status_code == 200


def test_a_call_that_is_given_up_is_undone_and_leaves_nothing(db: TestDatabase, settings: Settings) -> None:
    """As when a service that stops gives up its requests: the cancel request goes by way of the pooler, too."""
    case = Case(db)
    before = db.state()

    async def run() -> None:
        database = PostgresDatabase(settings)
        try:
            call = asyncio.create_task(database.run(case.caller, "cancel_batch", case.arguments))
            await asyncio.to_thread(waiting_for_a_lock, db)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        finally:
            await database.close()

    with locked(db, case.batch):
        asyncio.run(run())
        waiting_for_a_lock(db, 0)
        as_fresh(db)
    assert db.state() == before


def test_a_service_that_disconnects_in_mid_request_leaves_nothing_to_the_next(
    db: TestDatabase, settings: Settings, own_folder: Path
) -> None:
    case, other = Case(db), Case(db)
    with (
        proxy(own_folder, db.functions_uri) as between,
        ThreadPoolExecutor(1) as threads,
        serve(settings, database_url=between.uri) as client,
    ):
        with locked(db, case.batch):
            sent = threads.submit(case.cancel, client, "the-key")
            waiting_for_a_lock(db)
            between.cut()
            assert sent.result().status_code == 503
            as_fresh(db)
            assert other.cancel(client).status_code == 200
        again = case.cancel(client, "the-key")
        assert (again.status_code, again.json()["contacts_skipped"]) == (200, 3)
    assert db.value("select count(*) from batch_events where batch_id = %s", case.batch) == 1


def test_no_statement_is_prepared_under_a_name(db: TestDatabase, client: TestClient) -> None:
    """A named one stays with the server's connection, where another client may find or miss it."""
    case = Case(db)
    for _ in range(12):  # psycopg prepares what it has executed five times, unless told not to
        assert client.get(LIST, headers=bearer(case.user)).status_code == 200
    assert session(db.functions_uri)["prepared"] == 0


# The commands.


def test_the_dialer_dials_through_it(db: TestDatabase) -> None:
    agency = db.agency()
    batch = db.batch(agency)
    db.contacts(batch, pending=60)
    carrier = ScriptedCarrier(complete)

    async def run() -> None:
        async with dialing(db, carrier, dial_concurrency=10, pool_size=4):
            await until_so(lambda: db.statuses(batch) == {"completed": 60})

    asyncio.run(run())
    assert len({call.contact_id for call in carrier.arrived}) == len(carrier.arrived) == 60
    assert server_connections(db) == 1
    as_fresh(db)


def test_the_operators_console_works_through_it(db: TestDatabase, pooler: PgBouncer, tmp_path: Path) -> None:
    case = Case(db)
    url = pooler.uri(db.value("select current_database()"), "postgres")
    for command in ("pause", "resume", "events"):
        done = lastcall(command, str(case.batch), "--sql", folder=tmp_path, DATABASE_URL=url)
        assert (done.returncode, done.stderr) == (0, "")
    assert {row["actor_kind"] for row in db.rows("select actor_kind from batch_events")} == {"console"}


def test_migrations_go_through_it_two_at_once_and_lock_nothing_for_longer(
    server: PostgresServer, pooler: PgBouncer, empty_database: str
) -> None:
    uri = pooler.uri(empty_database, "postgres")
    with ThreadPoolExecutor(2) as pool:
        applied = [name for names in pool.map(migrate, [uri, uri]) for name in names]
    assert sorted(applied) == [path.stem for path in sorted(MIGRATIONS.glob("*.sql"))]
    found, fresh = session(uri), session(server.uri(empty_database))
    assert found.pop("pid") != fresh.pop("pid")
    assert found == fresh
