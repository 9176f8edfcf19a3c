"""Settings of procedures for PostgREST: the longest time that they may take, and their isolation.

PostgREST takes three settings of a function for the whole transaction (db-hoisted-tx-settings). Where they are missing,
those of the role count: Supabase gives authenticated and authenticator 8 seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from functions.migrations import migrate
from functions.postgres_server import PostgresServer

from ..support.database import TestDatabase, log_in_as
from ..support.postgrest import PUBLISHABLE_KEY, postgrest
from ..support.servers import new_server, short_lived_folder
from ..support.serving import serving
from ..support.tokens import token
from ..support.waiting import until

ROLE_LIMIT_MS = 200
# Procedures whose time grows with the batch, and their arguments.
PEOPLE = {
    "cancel_batch": {"batch_id": "%(batch)s"},
    "stop_batch": {"batch_id": "%(batch)s", "user_id": "%(user)s"},
    "pause_batch": {"batch_id": "%(batch)s"},
    "start_batch": {"batch_id": "%(batch)s", "user_id": "%(user)s"},
    "retry_batch": {"batch_id": "%(batch)s"},
}
SERVICE: dict[str, dict[str, str]] = {"process_batches": {}, "release_expired_leases": {}}


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server of these tests' own: the settings of roles are the server's."""
    with short_lived_folder() as folder:
        server = new_server(folder)
        server.start()
        migrate(server.uri())
        yield server
        server.stop()


@contextmanager
def at(server: PostgresServer, *settings: str) -> Iterator[tuple[TestDatabase, httpx2.Client]]:
    """The database and its PostgREST, with these settings of the roles."""
    db = TestDatabase(server.uri(), server.uri(user="lastcall_functions"))
    for setting in settings:
        db.rows(f"alter role {setting}")
    try:
        with (
            serving(postgrest(log_in_as("authenticator", db.uri))) as (host, port),
            httpx2.Client(base_url=f"http://{host}:{port}/rest/v1/rpc", timeout=60) as client,
        ):
            yield db, client
    finally:
        for setting in settings:
            db.rows(f"alter role {setting.partition(' ')[0]} reset all")
        db.close()


def call(client: httpx2.Client, key: str, procedure: str, arguments: dict[str, Any]) -> httpx2.Response:
    apikey = key if procedure in SERVICE else PUBLISHABLE_KEY
    headers = {"apikey": apikey, "Authorization": f"Bearer {key}"}
    return client.post(f"/{procedure}", json=arguments, headers=headers)


def outlast_the_role(server: PostgresServer, procedure: str, arguments: dict[str, str]) -> httpx2.Response:
    """The answer of a procedure that takes longer than the role may."""
    limit = f"set statement_timeout = '{ROLE_LIMIT_MS}ms'"
    with (
        at(server, f"authenticated {limit}", f"authenticator {limit}") as (db, client),
        ThreadPoolExecutor(1) as threads,
    ):
        agency = db.agency()
        user = db.user(agency)
        batch = db.batch(agency, user)
        db.contacts(batch, pending=2, failed=1)
        key = token(uuid4(), role="service_role") if procedure in SERVICE else token(user)
        values = {"batch": str(batch), "user": str(user)}
        with db.connect() as other, other.transaction():
            other.execute("lock table call_batches in access exclusive mode")
            sent = threads.submit(
                call, client, key, procedure, {name: value % values for name, value in arguments.items()}
            )
            until(lambda: sent.done() or db.value(
                "select count(*) from pg_stat_activity where usename = 'authenticator' and wait_event_type = 'Lock'"
                f" and query_start < clock_timestamp() - interval '{2 * ROLE_LIMIT_MS} ms'"
            ))  # fmt: skip
        return sent.result()


@pytest.mark.parametrize(("procedure", "arguments"), (PEOPLE | SERVICE).items())
def test_a_procedure_whose_time_grows_with_the_batch_may_take_longer_than_its_role(
    own_server: PostgresServer, procedure: str, arguments: dict[str, str]
) -> None:
    answer = outlast_the_role(own_server, procedure, arguments)
    assert answer.status_code == 200, answer.text


def test_any_other_procedure_ends_with_the_time_of_its_role(own_server: PostgresServer) -> None:
    answer = outlast_the_role(own_server, "get_batch", {"batch_id": "%(batch)s"})
    assert (answer.status_code, answer.json()["code"]) == (500, "57014")


def test_every_procedure_that_changes_something_runs_at_read_committed(own_server: PostgresServer) -> None:
    with at(own_server) as (db, _):
        loose = db.rows(
            "select p.proname from pg_proc p where p.pronamespace = 'public'::regnamespace and p.provolatile = 'v'"
            " and not coalesce('default_transaction_isolation=read committed' = any (p.proconfig), false)"
        )
    assert loose == []


def test_postgrest_runs_a_procedure_at_read_committed_whatever_the_role_s_default(own_server: PostgresServer) -> None:
    with at(own_server, "authenticated set default_transaction_isolation = 'repeatable read'") as (db, client):
        user = db.user(db.agency())
        batches = [db.batch(db.value("select agency_id from users where id = %s", user), user) for _ in range(2)]
        db.rows(
            "create or replace function public.check_isolation() returns trigger language plpgsql as $$ begin"
            " if current_setting('transaction_isolation') <> 'read committed' then"
            " raise exception 'at %%', current_setting('transaction_isolation'); end if; return null; end $$"
        )
        db.rows("create trigger check_isolation after insert on batch_events execute function check_isolation()")
        try:
            answers = [call(client, token(user), "cancel_batch", {"batch_id": str(batch)}) for batch in batches]
        finally:
            db.rows("drop function check_isolation cascade")
    assert [answer.status_code for answer in answers] == [200, 200]
