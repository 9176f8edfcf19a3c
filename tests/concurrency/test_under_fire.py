"""While a batch is being dialed by many, each end keeps its promise, and nobody else waits."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import httpx2
import psycopg
import pytest

from functions._shared.settings import Settings
from functions.app import create_app

from ..support.database import TestDatabase
from ..support.dialers import Dialer, wait_for
from ..support.serving import serving
from ..support.tokens import bearer

WORKERS = 16
CONTACTS = 50_000
RESERVE = 100


@pytest.mark.parametrize(
    "ending",
    [
        "cancel_batch(%s)",
        "stop_batch(%s::text)",
        "stop_batch(%s::text, skip_remaining => true)",
        "pause_batch(%s)",
        """skip_contacts(%s, filter => '{"max_attempts": 99}')""",
        "hold_calls(whole_agency => true, agency_id => (select agency_id from call_batches where id = %s))",
    ],
)
def test_no_call_starts_after_the_end_and_other_batches_go_on(db: TestDatabase, ending: str) -> None:
    agency, other_agency = db.agency(), db.agency("Other")
    batch, other = db.batch(agency, retry_delay_seconds=0), db.batch(other_agency, retry_delay_seconds=0)
    # Some are not due, lest all were called when the end comes.
    db.contacts(batch, scheduled=RESERVE)
    db.rows("update campaign_contacts set due_at = '2999-01-01'")
    db.contacts(batch, pending=CONTACTS)
    db.contacts(other, pending=CONTACTS)
    dialers = [Dialer(db, seed) for seed in range(WORKERS)] + [Dialer(db, seed, other) for seed in range(2)]

    def started(batch_id: UUID) -> int:
        return int(db.value("select count(*) from calls where batch_id = %s and started_at is not null", batch_id))

    for dialer in dialers:
        dialer.start()
    try:
        wait_for(lambda: started(batch) > 1_000, "the batch to be dialed")
        with db.connect() as console:
            with console.transaction():
                console.execute(f"select {ending}", [batch])
                # The calls that passed the gate before the end locked the batch: this many, and never one more.
                row = console.execute(
                    "select count(*) as n from calls where batch_id = %s and started_at is not null", [batch]
                ).fetchone()
                assert row is not None
                # Not yet committed: however long it takes, the other batch is being dialed.
                before = started(other)
                wait_for(lambda: started(other) > before + 200, "the other batch to go on")
            replied = time.monotonic()
        rounds = [dialer.rounds for dialer in dialers]
        wait_for(
            lambda: all(dialer.rounds > seen + 2 for dialer, seen in zip(dialers, rounds, strict=True)),
            "every dialer to try again",
        )
    finally:
        for dialer in dialers:
            dialer.enough.set()
        for dialer in dialers:
            dialer.join()

    assert [dialer.error for dialer in dialers if dialer.error] == []
    assert started(batch) == row["n"]
    late = [n for dialer in dialers for asked, of, n in dialer.starts if of == batch and asked > replied]
    assert sum(late) == 0
    if "hold" in ending:
        # Leased contacts wait until the hold is lifted or the lease expires.
        db.rows("update calls set lease_expires_at = clock_timestamp() where status = 'queued'")
        db.rows("select release_expired_leases()")
    left = db.statuses(batch)
    assert left.get("queued", 0) == 0
    if "cancel" in ending or "skip" in ending:
        assert left.keys() <= {"in_progress", "completed", "failed", "skipped"}
        never_called = (
            "select count(*) from campaign_contacts where batch_id = %s and status = 'skipped' and attempts = 0"
        )
        with_call = f"{never_called} and exists (select from calls where contact_id = campaign_contacts.id)"
        assert db.value(never_called, batch) > 0
        assert db.value(with_call, batch) == 0
    assert db.value("select count(*) from calls where batch_id = %s and status = 'queued'", batch) == 0
    assert sum(left.values()) == CONTACTS + RESERVE


def test_concurrent_cancels_exactly_one_succeeds(db: TestDatabase) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=2_000)
    answers = at_once([lambda c: c.execute("select * from cancel_batch(%s)", [batch]).fetchone()] * 8, db)
    assert sorted(map(str, answers)).count("PT400") == 7
    assert [answer["contacts_skipped"] for answer in answers if isinstance(answer, dict)] == [2_000]
    assert db.value("select count(*) from batch_events") == 1


def test_cancel_and_stop_at_once_end_in_a_cancelled_batch(db: TestDatabase) -> None:
    for _ in range(10):
        batch = db.batch(db.agency())
        db.contacts(batch, pending=200, queued=5)
        stopped, cancelled = at_once(
            [
                lambda c, b=batch: c.execute("select * from stop_batch(%s::text)", [b]).fetchone(),
                lambda c, b=batch: c.execute("select * from cancel_batch(%s)", [b]).fetchone(),
            ],
            db,
        )
        assert cancelled["contacts_skipped"] == 205
        assert stopped == "PT400" or stopped["status"] == "stopped"
        assert db.batch_row(batch)["status"] == "cancelled"
        assert db.statuses(batch) == {"skipped": 205}


def test_concurrent_cancel_requests_one_is_200_and_one_400(db: TestDatabase, settings: Settings) -> None:
    agency = db.agency()
    owner, batch = db.user(agency), db.batch(agency)
    db.contacts(batch, pending=2_000)
    with serving(create_app(settings)) as (host, port), ThreadPoolExecutor(2) as pool:
        url = f"http://{host}:{port}/functions/v1/calls-batch-cancel"
        body = {"batch_id": str(batch)}
        posts = [pool.submit(httpx2.post, url, json=body, headers=bearer(owner)) for _ in range(2)]
        replies = sorted((post.result() for post in posts), key=lambda reply: reply.status_code)
    assert [reply.status_code for reply in replies] == [200, 400]
    assert replies[0].json()["contacts_skipped"] == 2_000
    assert replies[1].json()["error"] == "Batch is already cancelled"


def at_once(calls: list[Any], db: TestDatabase) -> list[Any]:
    """Each call on a connection of its own, all released together: its answer, or its sqlstate."""
    gate = threading.Barrier(len(calls))
    answers: list[Any] = [None] * len(calls)

    def run(place: int) -> None:
        with db.connect() as connection:
            gate.wait()
            try:
                answers[place] = calls[place](connection)
            except psycopg.Error as error:
                answers[place] = error.sqlstate

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers
