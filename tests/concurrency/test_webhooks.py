"""Two who apply events, and a cancel, and a carrier that repeats itself, all at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from ..support.database import Connection, TestDatabase
from ..support.webhooks import Carrier, event, missed, queue

BATCHES = 6
CALLS = 60


class Worker(threading.Thread):
    """Does something again and again on a connection of its own, until told that there is enough."""

    def __init__(self, db: TestDatabase, work: Callable[[Connection], object], enough: threading.Event) -> None:
        super().__init__()
        self.connection = db.connect()
        self.work = work
        self.enough = enough
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self.enough.is_set():
                self.work(self.connection)
        except Exception as error:
            self.error = error
        finally:
            self.connection.close()


def apply(connection: Connection) -> int:
    row = connection.execute("select process_webhook_queue(40) as done").fetchone()
    assert row is not None
    assert row["done"].get("failed", 0) == 0
    return int(row["done"]["processed"])


@pytest.mark.parametrize("processors", [2, 4])
def test_each_event_is_applied_once_while_batches_are_cancelled(db: TestDatabase, processors: int) -> None:
    carrier = Carrier(db, db.agency())
    batches = [db.batch(carrier.agency, retry_delay_seconds=0) for _ in range(BATCHES)]
    calls: list[dict[str, Any]] = []
    for batch in batches:
        db.contacts(batch, pending=2 * CALLS)
        calls += carrier.place(batch, CALLS)
    told = [event("call.started", call) for call in calls]
    told += [missed(call) if call["call_id"] % 3 == 0 else event("call.ended", call) for call in calls]

    enough, applied = threading.Event(), [0] * processors

    def processor(place: int) -> Worker:
        def work(connection: Connection) -> None:
            applied[place] += apply(connection)

        return Worker(db, work, enough)

    def deliver(connection: Connection) -> None:
        for told_event in reversed(told):  # twice, from two connections
            carrier.tell(told_event, connection=connection)
        enough_told.release()
        enough.wait()

    enough_told = threading.Semaphore(0)
    workers = [processor(place) for place in range(processors)] + [Worker(db, deliver, enough) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for batch in batches[::2]:
            # Each cancel goes through while events of its batch are being applied.
            assert db.value("select status from cancel_batch(%s)", batch) == "cancelled"
        for _ in range(2):
            assert enough_told.acquire(timeout=120)
        with db.connect() as last:
            while last.execute("select id from webhook_queue where next_retry_at is not null limit 1").fetchone():
                assert all(worker.is_alive() for worker in workers)
    finally:
        enough.set()
        for worker in workers:
            worker.join()

    assert [worker.error for worker in workers if worker.error] == []
    assert len(queue(db)) == sum(applied) == len(told)
    assert db.value("select count(*) from webhook_queue where attempts <> 1") == 0
    ends = db.rows("select status::text, count(*) as n from webhook_queue where event_type = 'call.ended' group by 1")
    assert ends == [{"status": "completed", "n": len(calls)}]
    answered = sum(call["call_id"] % 3 != 0 for call in calls)
    assert db.value("select count(*) from calls where outcome = 'answered'") == answered
    assert db.value("select count(*) from calls where outcome = 'no_answer'") == len(calls) - answered
    for place, batch in enumerate(batches):
        left = db.statuses(batch)
        assert left.keys() <= {"completed", "failed", "skipped", *(() if place % 2 == 0 else ("pending", "scheduled"))}
        assert db.batch_row(batch)["completed"] == left["completed"]


def test_a_cancel_waits_for_no_more_than_the_run_that_holds_its_batch(db: TestDatabase) -> None:
    """And a run waits for no cancel: what the other holds is left to it."""
    carrier = Carrier(db, db.agency())
    batch = db.batch(carrier.agency)
    db.contacts(batch, pending=10)
    (call,) = carrier.place(batch)
    carrier.tell(event("call.ended", call))
    with db.connect() as holder, holder.transaction():
        holder.execute("select cancel_batch(%s)", [batch])
        assert apply(db.owner) == 0
    db.rows("update webhook_queue set next_retry_at = now()")
    with db.connect() as runner, runner.transaction():
        assert apply(runner) == 1
        assert apply(db.owner) == 0  # a second run passes the events of the first one by
    assert queue(db) == [("completed", None)]
    assert db.statuses(batch) == {"completed": 1, "skipped": 9}


def test_concurrent_rotations_only_the_last_secret_is_for_good(db: TestDatabase) -> None:
    agency = db.agency()
    gate = threading.Barrier(4)

    def rotate() -> None:
        with db.connect() as connection:
            gate.wait()
            connection.execute("select rotate_webhook_secret(%s)", [agency])

    threads = [threading.Thread(target=rotate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db.value("select count(*) filter (where expires_at is null) from private.webhook_secrets") == 1
