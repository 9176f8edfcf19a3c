"""A batch that another request holds is waited for a bounded time, and then refused as busy: 503 batch_busy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest

from ..support.database import Connection, TestDatabase
from ..support.dialers import wait_for

NO_TELEMETRY = UUID(int=0)
# Every procedure that waits for a batch.
WAITING = {
    "cancel_batch": "cancel_batch(%(batch)s)",
    "stop_batch": "stop_batch(%(batch)s::text)",
    "pause_batch": "pause_batch(%(batch)s)",
    "resume_batch": "resume_batch(%(batch)s)",
    "skip_contacts": "skip_contacts(%(batch)s, '{1}')",
    "opt_out": "opt_out('+15550000001', agency_id => (select agency_id from call_batches where id = %(batch)s))",
    "hold_calls": "hold_calls(everything => true)",
    "lift_hold": "lift_hold((select id from holds))",
    "start_batch": "start_batch(%(batch)s::text)",
    "retry_batch": "retry_batch(%(batch)s)",
    "add_contacts": "add_contacts(%(batch)s, '[]')",
    "begin_import": "begin_import(%(batch)s, repeat('0', 64))",
    "import_contacts": "import_contacts(%(batch)s, %(nobody)s, '[]')",
    "finish_import": "finish_import(%(batch)s, %(nobody)s)",
    "start_call": "start_call(%(batch)s, '{1}', %(batch)s)",
    "confirm_call": "confirm_call(%(batch)s, '[]')",
    "finish_call": "finish_call(%(batch)s, '[]')",
    "recount_batch": "private.recount_batch(%(batch)s)",
}


@contextmanager
def held(db: TestDatabase, batch: UUID, query: str = "select pause_batch(%(batch)s)") -> Iterator[Connection]:
    """Another session has run the query and leaves its transaction open, for the block."""
    with db.connect() as other:
        other.execute("begin")
        other.execute(query, {"batch": batch})
        yield other
        other.execute("rollback")


def refusal(connection: Connection, query: str, batch: UUID) -> psycopg.Error:
    """The error of a query that waits for at most 50 ms."""
    connection.execute("set lock_timeout = '50ms'")
    with pytest.raises(psycopg.Error) as refused:
        connection.execute(f"select {query}", {"batch": batch, "nobody": NO_TELEMETRY})
    return refused.value


def detail(error: psycopg.Error) -> dict[str, Any]:
    assert error.diag.message_detail is not None
    told: dict[str, Any] = json.loads(error.diag.message_detail)
    return told


@pytest.mark.parametrize("procedure", WAITING)
def test_a_held_batch_is_refused_as_busy_and_nothing_changes(db: TestDatabase, procedure: str) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=3)
    db.rows("insert into holds (created_by_role) values ('postgres')")
    before = db.state()
    with held(db, batch), db.connect() as connection:
        error = refusal(connection, WAITING[procedure], batch)
        assert (error.sqlstate, error.diag.message_primary) == (
            "PT503",
            "Another request holds this batch; try again",
        )
        assert (detail(error)["code"], detail(error)["retry_after"]) == ("batch_busy", 2)
    assert db.state() == before


def test_these_are_all_procedures_that_wait_for_a_batch(db: TestDatabase) -> None:
    callers = db.rows(
        "select distinct proname from pg_proc where pronamespace = 'private'::regnamespace"
        " and prosrc ~ 'private\\.(lock_batch|mark_held)\\('"
    )
    assert {row["proname"] for row in callers} == set(WAITING)


@pytest.mark.parametrize("query", ["select pause_batch(%(batch)s)", "select * from public.cancel_batch(%(batch)s)"])
def test_batch_busy_names_the_holder_s_procedure_and_its_seconds(db: TestDatabase, query: str) -> None:
    batch = db.batch(db.agency())
    with held(db, batch, query), db.connect() as connection:
        told = detail(refusal(connection, WAITING["stop_batch"], batch))
    assert told["held_by"] == ("pause_batch" if "pause" in query else "cancel_batch")
    assert isinstance(told["held_seconds"], int)
    assert told["held_seconds"] >= 0


def test_a_holder_that_had_to_wait_itself_is_named_too(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    with db.connect() as holder, db.connect() as connection, ThreadPoolExecutor(1) as threads:
        with held(db, batch):
            holder.execute("begin")
            waiting = threads.submit(holder.execute, "select cancel_batch(%s)", [batch])
            wait_for(lambda: db.value("select cardinality(pg_blocking_pids(%s))", holder.info.backend_pid), "a lock")
        waiting.result()
        told = detail(refusal(connection, WAITING["stop_batch"], batch))
    assert told["held_by"] == "cancel_batch"


def test_batch_busy_quotes_nothing_of_the_holder_s_query(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    query = "select /* +15551234567 */ from call_batches where id = %(batch)s for no key update"
    with held(db, batch, query), db.connect() as connection:
        told = detail(refusal(connection, WAITING["stop_batch"], batch))
    assert told.keys() == {"code", "retry_after", "held_seconds"}


def test_a_user_is_told_of_the_holder_too(db: TestDatabase) -> None:
    agency = db.agency()
    owner = db.user(agency)
    batch = db.batch(agency, owner)
    with held(db, batch), db.as_user(owner) as connection:
        told = detail(refusal(connection, WAITING["cancel_batch"], batch))
    assert told.keys() == {"code", "retry_after", "held_by", "held_seconds"}


def test_another_agency_s_user_does_not_learn_that_the_batch_is_held(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    stranger = db.user(db.agency())
    with held(db, batch), db.as_user(stranger) as connection:
        assert refusal(connection, WAITING["cancel_batch"], batch).sqlstate == "PT404"


@pytest.mark.parametrize(
    ("role", "longest"), [("authenticated", "10s"), ("service_role", "1s"), ("lastcall_admin", "10s")]
)
def test_people_wait_for_ten_seconds_and_the_service_for_one(db: TestDatabase, role: str, longest: str) -> None:
    row = db.row("select set_config('role', %s, true), private.longest_wait() as longest", role)
    assert row["longest"] == longest


def test_a_lock_timeout_of_the_session_s_own_counts_instead(db: TestDatabase) -> None:
    db.rows("set lock_timeout = '1234ms'")
    assert db.value("select private.longest_wait()") == "1234ms"


def test_the_service_gives_a_held_batch_up_by_itself(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    with held(db, batch), db.as_service() as service, pytest.raises(psycopg.Error) as refused:
        service.execute("select finish_call(%s, '[]')", [batch])
    assert refused.value.sqlstate == "PT503"


def test_a_wait_leaves_the_lock_timeout_of_the_transaction_as_it_was(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    with db.connect() as connection, held(db, batch) as holder, ThreadPoolExecutor(1) as threads:
        connection.execute("begin")
        waiting = threads.submit(connection.execute, "select finish_call(%s, '[]')", [batch])
        wait_for(lambda: db.value("select cardinality(pg_blocking_pids(%s))", connection.info.backend_pid), "a lock")
        holder.execute("rollback")
        waiting.result()
        assert connection.execute("show lock_timeout").fetchone() == {"lock_timeout": "0"}


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_conflict_under_a_stricter_isolation_says_which_isolation_to_use(db: TestDatabase, isolation: str) -> None:
    batch = db.batch(db.agency())
    with db.connect() as connection:
        connection.execute(f"begin isolation level {isolation}")
        connection.execute("select 1")  # its snapshot is from before the pause
        db.rows("select pause_batch(%s)", batch)
        with pytest.raises(psycopg.errors.SerializationFailure) as refused:
            connection.execute("select cancel_batch(%s)", [batch])
    assert refused.value.diag.message_hint == "Run it at isolation level read committed"
