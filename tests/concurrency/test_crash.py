"""A crash of PostgreSQL takes back leases, and no answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from functions.migrations import migrate
from functions.postgres_server import PostgresServer

from ..support.crashes import connected, crash, hold_the_disk
from ..support.servers import new_server


@pytest.fixture
def server(own_folder: Path) -> Iterator[PostgresServer]:
    """A server of the test's own, to crash."""
    server = new_server(own_folder)
    # Only the process that is held writes data that no commit waits for.
    server.options = {**server.options, "autovacuum": "off", "bgwriter_lru_maxpages": "0", "checkpoint_timeout": "1h"}
    server.start()
    migrate(server.uri())
    yield server
    server.stop()


def test_a_claim_that_a_crash_took_back_lets_no_call_start(server: PostgresServer) -> None:
    db = connected(server)
    batch = db.batch(db.agency())
    db.contacts(batch, pending=20)
    writer = hold_the_disk(db)
    calls = [row["call_id"] for row in db.rows("select call_id from claim_contacts(20)")]
    lease = db.lease(calls[0])
    assert len(calls) == 20
    db = crash(server, db, writer)
    assert db.statuses(batch) == {"pending": 20}
    assert db.row("select * from start_call(%s, %s, %s)", batch, calls, lease) == {"started": [], "unknown": calls}
    assert db.unbalanced() == []
    assert len(db.rows("select * from claim_contacts(20)")) == 20
    db.close()


@pytest.mark.parametrize("change", ["cancel_batch(%s)", "stop_batch(%s::text)", "pause_batch(%s)"])
def test_an_answer_outlasts_a_crash_without_synchronous_commit(server: PostgresServer, change: str) -> None:
    db = connected(server)
    db.rows("alter database postgres set synchronous_commit = off")
    db.close()
    db = connected(server)
    assert db.value("show synchronous_commit") == "off"
    batch = db.batch(db.agency())
    db.contacts(batch, pending=20)
    writer = hold_the_disk(db)
    db.rows(f"select {change}", batch)
    db = crash(server, db, writer)
    assert db.batch_row(batch)["status"] in ("cancelled", "stopped", "paused")
    db.close()


def test_a_claim_does_not_make_light_of_what_its_transaction_did_before(server: PostgresServer) -> None:
    db = connected(server)
    batch = db.batch(db.agency())
    db.contacts(batch, pending=20)
    writer = hold_the_disk(db)
    with db.owner.transaction():
        db.rows("update call_batches set name = 'kept'")
        db.rows("select claim_contacts(1)")
    db = crash(server, db, writer)
    assert (db.batch_row(batch)["name"], db.statuses(batch)) == ("kept", {"pending": 19, "queued": 1})
    db.close()
