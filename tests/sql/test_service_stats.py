"""The statistics for an operator: true, complete, and as cheap with a long history as without."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest

from ..support.database import TestDatabase
from ..support.statistics import TABLES, flush, rows_read
from ..support.webhooks import Carrier, event, process_all


def stats(db: TestDatabase, name: str) -> dict[str, float]:
    """The numbers of that name by their label."""
    return {
        row["label"]: row["value"]
        for row in db.rows("select label, value from service_stats() where name = %s order by label", name)
    }


def in_progress(db: TestDatabase, batch: UUID, number: int) -> list[int]:
    """Ids of so many calls of the batch that start_call has let through."""
    db.contacts(batch, pending=number)
    claimed = [row["call_id"] for row in db.rows("select call_id from claim_contacts(%s, 60, %s)", number, batch)]
    return db.start_calls(batch, claimed)


def test_every_number_is_there_from_the_beginning(db: TestDatabase) -> None:
    rows = db.rows("select name, label, value from service_stats()")
    assert {row["value"] for row in rows} == {0}
    labels: dict[str, set[str]] = {}
    for row in rows:
        labels.setdefault(row["name"], set()).add(row["label"])
    assert len(rows) == sum(len(of) for of in labels.values())
    assert labels == {
        "batches": {"pending", "scheduled", "processing", "paused", "stopped"},
        "batches_ended": {"completed", "failed", "cancelled"},
        "contacts": {"pending", "queued", "in_progress", "completed", "failed", "skipped"},
        "open_calls": {"queued", "in_progress", "unknown"},
        "unknown_calls": {"under_5m", "under_1h", "over_1h"},
        "oldest_call_seconds": {"in_progress", "unknown"},
        "webhooks": {"pending", "failed", "dead"},
        "oldest_webhook_seconds": {"pending", "failed", "dead"},
        "calls_started_after_end": {"cancel", "stop"},
        "unbalanced_batches": {""},
        "synchronous_standbys": {"required", "attached"},
    }


def test_batches_and_their_contacts_are_told_by_status(db: TestDatabase) -> None:
    one, other = db.agency(), db.agency("Other")
    for agency, status in ((one, "pending"), (one, "processing"), (other, "processing"), (other, "paused")):
        db.contacts(db.batch(agency, status=status), pending=2, scheduled=1, completed=3, failed=1, skipped=1)
    db.contacts(db.batch(one, status="stopped"), pending=1)
    for days in (0, 2):
        ended = db.batch(one, status="completed")
        db.rows("update call_batches set completed_at = now() - make_interval(days => %s) where id = %s", days, ended)
    cancelled = db.batch(other)
    db.contacts(cancelled, pending=7)
    db.rows("select cancel_batch(%s)", cancelled)
    assert stats(db, "batches") == {"pending": 1, "processing": 2, "paused": 1, "scheduled": 0, "stopped": 1}
    assert stats(db, "batches_ended") == {"completed": 1, "failed": 0, "cancelled": 1}
    assert stats(db, "contacts") == {
        "pending": 13, "queued": 0, "in_progress": 0, "completed": 12, "failed": 4, "skipped": 4
    }  # fmt: skip


def test_open_calls_are_told_by_status_and_age_whatever_became_of_their_batch(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    calls = in_progress(db, batch, 6)
    db.finish_calls(batch, calls[:4], "unknown")
    for call, seconds in zip(calls, (10, 400, 500, 4000, 90, 0), strict=True):
        db.rows("update calls set started_at = now() - make_interval(secs => %s) where id = %s", seconds, call)
    db.contacts(batch, pending=2)
    db.rows("select claim_contacts(1)")
    assert stats(db, "open_calls") == {"queued": 1, "in_progress": 2, "unknown": 4}
    db.rows("select cancel_batch(%s)", batch)
    db.rows("update call_batches set completed_at = now() - interval '2 days'")
    assert stats(db, "open_calls") == {"queued": 0, "in_progress": 2, "unknown": 4}
    assert stats(db, "unknown_calls") == {"under_5m": 1, "under_1h": 2, "over_1h": 1}
    oldest = stats(db, "oldest_call_seconds")
    assert 90 <= oldest["in_progress"] < 390
    assert 4000 <= oldest["unknown"] < 4300


def test_webhooks_are_told_until_they_are_applied(db: TestDatabase) -> None:
    carrier = Carrier(db, db.agency())
    batch = db.batch(carrier.agency)
    db.contacts(batch, pending=3)
    carrier.tell(*(event("call.ended", call) for call in carrier.place(batch, 3)))
    first, second, _ = [row["id"] for row in db.rows("select id from webhook_queue order by id")]
    db.rows("update webhook_queue set created_at = now() - interval '10 minutes' where id = %s", first)
    assert stats(db, "webhooks") == {"pending": 3, "failed": 0, "dead": 0}
    assert 600 <= stats(db, "oldest_webhook_seconds")["pending"] < 900
    db.rows("update webhook_queue set status = 'failed', attempts = 1 where id = %s", first)
    db.rows("update webhook_queue set status = 'dead', next_retry_at = null where id = %s", second)
    assert stats(db, "webhooks") == {"pending": 1, "failed": 1, "dead": 1}
    process_all(db)
    assert stats(db, "webhooks") == {"pending": 0, "failed": 0, "dead": 1}


@pytest.mark.parametrize(
    ("how", "end", "at"),
    [("cancel", "cancel_batch(%s)", "completed_at"), ("stop", "stop_batch(%s::text)", "stopped_at")],
)
def test_a_call_that_started_after_the_end_is_counted_running_or_over(
    db: TestDatabase, how: str, end: str, at: str
) -> None:
    """No procedure lets one through: here the end is put before the calls by hand."""
    batch = db.batch(db.agency())
    calls = in_progress(db, batch, 5)
    db.contacts(batch, pending=5)
    db.rows(f"select {end}", batch)
    none = {"cancel": 0, "stop": 0}
    assert stats(db, "calls_started_after_end") == none
    third = db.value("select started_at from calls where id = %s", calls[2])
    db.rows("update calls set started_at = started_at + make_interval(secs => id) where batch_id = %s", batch)
    db.rows(f"update call_batches set {at} = %s + make_interval(secs => %s)", third, calls[2])
    assert stats(db, "calls_started_after_end") == {**none, how: 2}
    db.finish_calls(batch, calls, "completed")
    assert stats(db, "calls_started_after_end") == {**none, how: 2}
    if how == "stop":  # it may start calls again
        db.rows("select resume_batch(%s)", batch)
        assert stats(db, "calls_started_after_end") == none


@pytest.mark.parametrize(
    "wrong",
    [
        "completed = 6",
        "total_contacts = 4",
        "queued = 1",
        "in_progress = 0",
        "failed = -1",
    ],
)
@pytest.mark.parametrize("status", ["processing", "paused", "cancelled"])
def test_counters_that_cannot_be_right_are_counted(db: TestDatabase, wrong: str, status: str) -> None:
    batch, good = db.batch(db.agency()), db.batch(db.agency("Other"))
    for of in (batch, good):
        in_progress(db, of, 5)
    assert stats(db, "unbalanced_batches") == {"": 0}
    db.rows(f"update call_batches set status = %s, {wrong} where id = %s", status, batch)
    assert stats(db, "unbalanced_batches") == {"": 1}
    db.rows("select private.recount_batch(%s)", batch)
    assert stats(db, "unbalanced_batches") == {"": 0}


@pytest.mark.parametrize("statistics", ["none", "of everything"])
@pytest.mark.own_database
def test_it_reads_neither_contacts_nor_the_history(db: TestDatabase, statistics: str) -> None:
    carrier = Carrier(db, db.agency())
    for table in TABLES:
        db.rows(f"alter table {table} set (autovacuum_enabled = off)")
    batch, cancelled = db.batch(carrier.agency), db.batch(carrier.agency)
    db.rows(
        "insert into call_batches (agency_id, status, completed_at)"
        " select %s, 'completed', now() - interval '2 days' from generate_series(1, 5000)",
        carrier.agency,
    )
    for of in (batch, cancelled):
        db.contacts(of, pending=5_000)
        calls = [call["call_id"] for call in carrier.place(of, 1000)]
        db.finish_calls(of, calls, "completed")
    # Enough for plans to go wrong where nothing is known of the table.
    db.rows(
        "insert into calls (agency_id, batch_id, contact_id, attempt, status, lease_expires_at, started_at)"
        " select %s, %s, -i, 1, 'completed', now(), now() - interval '1 hour' from generate_series(1, 100000) i",
        carrier.agency,
        cancelled,
    )
    db.rows("select cancel_batch(%s)", cancelled)
    db.rows(
        "insert into webhook_queue (agency_id, event_id, event_type, payload, status, processed_at, next_retry_at)"
        " select %s, 'old ' || i, 'call.ended', '{}', 'completed', now(), null from generate_series(1, 5000) i",
        carrier.agency,
    )
    carrier.tell(*(event("call.ended", call) for call in carrier.place(batch, 10)))
    if statistics == "of everything":
        db.rows("analyze")
    assert stats(db, "webhooks")["pending"] == 10
    flush(db.owner)
    before = rows_read(db)
    assert db.rows("select * from service_stats()")
    flush(db.owner)
    after = rows_read(db)
    read = {table: after[table] - before[table] for table in TABLES}
    assert read["campaign_contacts"] == 0
    assert read["calls"] <= 250  # the open ones, and the newest 200 of the cancelled batch
    assert read["call_batches"] <= 50
    assert read["webhook_queue"] <= 50


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_people_are_not_told(db: TestDatabase, role: str) -> None:
    user = db.user(db.agency())
    with (
        db.acting(role, {"sub": str(user), "role": role}) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("select * from service_stats()")


def test_the_service_is_told(db: TestDatabase) -> None:
    db.contacts(db.batch(db.agency()), pending=3)
    with db.as_service() as connection:
        rows = connection.execute("select value from service_stats() where name = 'contacts' and label = 'pending'")
        assert rows.fetchall() == [{"value": 3}]
