"""Dialing reads as many rows of a large batch as of a small one, whatever the planner's statistics say."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from ..support.database import Connection, TestDatabase
from ..support.statistics import TABLES, flush, rows_read
from ..support.webhooks import Carrier, event

pytestmark = pytest.mark.own_database


def dial(connection: Connection, batch: UUID) -> int:
    """Claim, start and finish ten calls; lose the lease of an eleventh: how many were called."""
    claimed = connection.execute("select call_id, lease from claim_contacts(11, 60, %s)", [batch]).fetchall()
    calls, lease = [row["call_id"] for row in claimed], claimed[0]["lease"] if claimed else batch
    started = connection.execute(
        "select unnest(started) as id from start_call(%s, %s, %s)", [batch, calls[:10], lease]
    ).fetchall()
    results = [
        {"call_id": row["id"], "lease": str(lease), "status": "failed" if row["id"] % 2 else "completed"}
        for row in started
    ]
    connection.execute("select finish_call(%s, %s)", [batch, json.dumps(results)])
    return len(started)


@pytest.mark.parametrize("statistics", ["none", "of small batches", "plans made when the tables were empty"])
def test_a_round_of_dialing_reads_a_few_rows_of_a_large_batch(db: TestDatabase, statistics: str) -> None:
    agency = db.agency()
    for table in TABLES:
        db.rows(f"alter table {table} set (autovacuum_enabled = off)")
    if statistics == "of small batches":
        for _ in range(40):
            db.contacts(db.batch(agency, status="completed"), completed=5)
        db.rows("analyze")
    batch = db.batch(agency, retry_delay_seconds=0)
    with db.connect() as connection:
        if statistics == "plans made when the tables were empty":
            for _ in range(10):
                dial(connection, batch)
            db.rows("update call_batches set next_claim_at = now()")
        for first in (0, 10_000):
            numbers = [f"+1555{i:07d}" for i in range(first, first + 10_000)]
            contacts = [{"phone_number": number, "custom_data": {"a": 1}} for number in numbers]
            db.rows("select add_contacts(%s, %s)", batch, json.dumps(contacts))
        for _ in range(3):
            connection.execute("select claim_contacts(1000, 3600, %s)", [batch])  # leases, held by others
        for _ in range(8):
            assert dial(connection, batch) == 10
        # Earlier reads are counted before this one, whichever connection they were on.
        flush(db.owner)
        flush(connection)
        before = rows_read(db)
        assert dial(connection, batch) == 10
        flush(connection)
    after = rows_read(db)
    assert {table: n for table in TABLES if (n := after[table] - before[table]) > 150} == {}


def test_giving_a_lost_lease_back_reads_a_few_rows_of_a_large_batch(db: TestDatabase) -> None:
    db.rows("alter table campaign_contacts set (autovacuum_enabled = off)")
    batch = db.batch(db.agency())
    db.contacts(batch, pending=20_000)
    with db.connect() as connection:
        connection.execute("select claim_contacts(20)")
        connection.execute("update calls set lease_expires_at = clock_timestamp() where id %% 2 = 0", [])
        flush(db.owner)
        flush(connection)
        before = rows_read(db)["campaign_contacts"]
        assert connection.execute("select release_expired_leases() as n").fetchone() == {"n": 10}
        flush(connection)
    assert rows_read(db)["campaign_contacts"] - before <= 50


@pytest.mark.parametrize("statistics", ["none", "of everything", "plans made when the tables were empty"])
def test_applying_events_reads_a_few_rows_of_a_large_batch_and_a_long_queue(db: TestDatabase, statistics: str) -> None:
    for table in TABLES:
        db.rows(f"alter table {table} set (autovacuum_enabled = off)")
    carrier = Carrier(db, db.agency())
    with db.connect() as connection:
        if statistics == "plans made when the tables were empty":
            small = db.batch(carrier.agency)
            db.contacts(small, pending=20)
            for _ in range(10):
                carrier.tell(*(event("call.ended", call) for call in carrier.place(small, 2)))
                connection.execute("select process_webhook_queue()")
        batch = db.batch(carrier.agency)
        db.contacts(batch, pending=20_000)
        for _ in range(3):
            others = carrier.place(batch, 1000)
        confirmed = [
            {"call_id": call["call_id"], "lease": str(call["lease"]), "carrier_call_id": f"carrier-{call['call_id']}"}
            for call in others
        ]
        db.rows("select confirm_call(%s, %s)", batch, json.dumps(confirmed))
        db.rows(
            "insert into webhook_queue (agency_id, event_id, event_type, payload, status, processed_at, next_retry_at)"
            " select %s, 'old ' || i, 'call.ended', '{}', 'completed', now(), null from generate_series(1, 20000) i",
            carrier.agency,
        )
        if statistics == "of everything":
            db.rows("analyze")
        by_contact = [
            event("call.ended", call, metadata={"batch_id": str(batch), "contact_id": call["contact_id"]})
            for call in carrier.place(batch, 4)
        ]
        by_carrier = [event("call.ended", call, metadata=None) for call in others[:3]]
        by_call = [event("call.ended", call) for call in carrier.place(batch, 3)]
        carrier.tell(*by_contact, *by_carrier, *by_call)
        flush(db.owner)
        flush(connection)
        before = rows_read(db)
        row = connection.execute("select process_webhook_queue() as done").fetchone()
        assert row == {"done": {"processed": 10, "failed": 0}}
        flush(connection)
    after = rows_read(db)
    assert {table: n for table in TABLES if (n := after[table] - before[table]) > 150} == {}
    assert db.value("select count(*) from calls where status = 'completed' and batch_id = %s", batch) == 10


def test_adding_contacts_reads_a_few_rows_of_a_large_batch(db: TestDatabase) -> None:
    db.rows("alter table campaign_contacts set (autovacuum_enabled = off)")
    db.rows("analyze campaign_contacts")  # empty: every index looks as good as another
    batch = db.batch(db.agency())
    with db.connect() as connection:
        for first in (0, 5_000, 5_100):
            flush(db.owner)
            before = rows_read(db)["campaign_contacts"]
            numbers = range(first, first + 5_000 if first == 0 else first + 100)
            contacts = json.dumps([{"phone_number": f"+1555{i:07d}"} for i in numbers])
            connection.execute("select add_contacts(%s, %s)", [batch, contacts])
            flush(connection)
    assert rows_read(db)["campaign_contacts"] - before <= 150
