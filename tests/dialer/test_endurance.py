"""Nothing unexpected ends a dialer: it logs, waits and goes on, and what it cannot read fails alone."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from functions.dialer import dialer
from functions.dialer.carrier import CallUnclearError

from ..support.database import TestDatabase
from ..support.dialing import ScriptedCarrier, WatchedDatabase, complete, dial_once, dialing, until
from ..support.serving import logged


def a_batch(db: TestDatabase, contacts: int, **columns: Any) -> UUID:
    batch = db.batch(db.agency(), **{"retry_delay_seconds": 0, **columns})
    db.contacts(batch, pending=contacts)
    return batch


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a second or more last a moment."""
    monkeypatch.setattr(dialer, "TICK_S", 0.05)
    monkeypatch.setattr(dialer, "RECOVER_S", 0.01)
    monkeypatch.setattr(dialer, "LEASE_S", 1)


def fails(times: int) -> Callable[[], None]:
    """Raises so many times."""
    left = iter(range(times))

    def fail() -> None:
        if next(left, None) is not None:
            raise RuntimeError("nobody has thought of this")

    return fail


PROCEDURES = (
    "claim_contacts",
    "start_call",
    "finish_call",
    "next_claim_in",
    "process_batches",
    "release_expired_leases",
    "process_webhook_queue",
    "list_open_calls",
    "list_calls_to_end",
)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("procedure", PROCEDURES)
def test_a_dialer_goes_on_after_whatever_a_procedure_raises(db: TestDatabase, procedure: str, place: str) -> None:
    batch = a_batch(db, 5)
    tries = 0

    async def run() -> None:
        async with dialing(db, ScriptedCarrier(complete), reconcile_every_s=0.05, carrier_timeout_s=0.5) as database:
            fail = fails(2)

            def count() -> None:
                nonlocal tries
                tries += 1
                fail()

            getattr(database, place)[procedure] = count
            # A call that start_call let through, and whose dialer then broke off, was not placed.
            await until(lambda: tries > 2 and db.statuses(batch) == {"completed": 5})

    asyncio.run(run())
    assert db.value("select count(*) from calls where status <> 'completed' and outcome <> 'not_placed'") == 0


@pytest.mark.parametrize(
    "procedure", ["claim_contacts", "process_batches", "process_webhook_queue", "list_open_calls", "list_calls_to_end"]
)
def test_a_loop_that_goes_on_failing_waits_longer_and_longer(
    db: TestDatabase, monkeypatch: pytest.MonkeyPatch, procedure: str
) -> None:
    monkeypatch.setattr(dialer, "RECOVER_S", 0.02)
    a_batch(db, 1)

    def attempts(database: WatchedDatabase) -> list[float]:
        return [at for at, called in database.called if called == procedure]

    async def run() -> list[float]:
        async with dialing(db, ScriptedCarrier(complete)) as database:
            database.before[procedure] = fails(1_000_000)
            await until(lambda: len(attempts(database)) >= 6)
            return attempts(database)[-6:]

    with logged() as log:
        asked = asyncio.run(run())
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert all(gap >= least for gap, least in zip(gaps, (0.02, 0.04, 0.08, 0.16, 0.32), strict=True)), gaps
    assert {line["exception"] for line in log.lines("dialer goes on after an error")} == {"RuntimeError"}


def test_a_stop_ends_a_dialer_that_waits_after_an_error(db: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer, "RECOVER_S", 3600.0)

    async def run() -> None:
        async with dialing(db, ScriptedCarrier()) as database:
            database.before["claim_contacts"] = fails(1)
            await until(lambda: "claim_contacts" in [called for _, called in database.called])

    asyncio.run(asyncio.wait_for(run(), 30))


# Rows that the dialer cannot read.


@pytest.mark.parametrize("custom_data", ["[1, 2]", "5", '"text"', "null"])
def test_a_contact_that_cannot_be_read_fails_alone_and_says_why(db: TestDatabase, custom_data: str) -> None:
    batch = a_batch(db, 3)
    bad = db.value("select min(id) + 1 from campaign_contacts")
    db.rows("update campaign_contacts set max_attempts = 1")
    db.rows(
        "insert into contact_data (agency_id, batch_id, contact_id, custom_data)"
        " select agency_id, batch_id, id, %s from campaign_contacts where id = %s",
        custom_data,
        bad,
    )
    carrier = ScriptedCarrier(complete)
    with logged() as log:
        done = dial_once(db, carrier)
    assert done == {"batches_processed": 1, "calls_initiated": 2, "calls_failed": 1}
    assert bad not in [call.contact_id for call in carrier.arrived]
    assert db.statuses(batch) == {"completed": 2, "failed": 1}
    contact = db.row("select outcome, outcome_notes from campaign_contacts where id = %s", bad)
    assert contact["outcome"] == "not_placed"
    assert contact["outcome_notes"].startswith("The contact cannot be read: Expected `object`")
    assert [line["contact_id"] for line in log.lines("contact cannot be read")] == [bad]


def test_an_open_call_that_cannot_be_read_keeps_no_other_from_being_looked_up(db: TestDatabase) -> None:
    batch = a_batch(db, 3)

    async def lose(_call: Any) -> Any:
        raise CallUnclearError("no answer")

    carrier = ScriptedCarrier(lose)
    dial_once(db, carrier)
    bad, *others = [row["id"] for row in db.rows("select id from calls order by id")]
    db.rows("update calls set started_at = null where id = %s", bad)
    db.rows("update calls set checked_at = null")
    carrier.asked.clear()
    db.rows("update call_batches set status = 'paused' where id = %s", batch)
    with logged() as log:
        dial_once(db, carrier)
    assert sorted(carrier.asked) == others
    assert [line["call_id"] for line in log.lines("open call cannot be read")] == [bad]


# Isolation.


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
@pytest.mark.own_database
def test_dialers_work_whatever_isolation_is_the_database_s_default(db: TestDatabase, isolation: str) -> None:
    db.rows(f"alter database {db.value('select current_database()')} set default_transaction_isolation = '{isolation}'")
    batch = a_batch(db, 150)

    async def run() -> None:
        async with (
            dialing(db, ScriptedCarrier(complete), dial_concurrency=4),
            dialing(db, ScriptedCarrier(complete), dial_concurrency=4),
            dialing(db, ScriptedCarrier(complete), dial_concurrency=4),
        ):
            await until(lambda: db.statuses(batch) == {"completed": 150})

    with logged() as log:
        asyncio.run(run())
    assert [line for line in log.lines() if line.get("sqlstate") == "40001"] == []


def test_a_held_batch_ends_no_dialer_and_keeps_none_from_another_batch(db: TestDatabase) -> None:
    held, other = a_batch(db, 3), a_batch(db, 3)

    async def run() -> None:
        with db.connect() as holder:

            def hold() -> None:
                """Once its contacts are claimed."""
                if holder.info.transaction_status == 0 and db.batch_row(held)["queued"]:
                    holder.execute("begin")
                    holder.execute("select from call_batches where id = %s for no key update", [held])

            async with dialing(db, ScriptedCarrier(complete), service_lock_timeout_ms=50) as database:
                database.after["claim_contacts"] = hold
                await until(lambda: db.statuses(other) == {"completed": 3} and holder.info.transaction_status == 2)
                await until(lambda: [line["code"] for line in log.lines("start_call failed")] == ["batch_busy"])
                del database.after["claim_contacts"]
                holder.execute("rollback")
                db.rows("update calls set lease_expires_at = clock_timestamp() where status = 'queued'")
                await until(lambda: db.statuses(held) == {"completed": 3})

    with logged() as log:
        asyncio.run(run())
    assert log.lines("database away") == []
    assert log.lines("dialer goes on after an error") == []
