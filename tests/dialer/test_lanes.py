"""No batch waits for another batch's row: a batch that somebody holds stops nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import pytest

from functions.dialer.carrier import Call, Finished, InProgress

from ..support.database import TestDatabase
from ..support.dialing import ScriptedCarrier, complete, dialing, take, until

ENDS = ["cancel_batch(%s)", "stop_batch(%s::text)", "pause_batch(%s)"]


@contextmanager
def holding(db: TestDatabase, end: str, batch: UUID) -> Iterator[None]:
    """Somebody's transaction that ends the batch, and stays open until the end of the block."""
    with db.connect() as other, other.transaction():
        other.execute(f"select {end}".encode(), [batch])
        yield


@pytest.mark.parametrize("end", ENDS)
def test_another_batch_is_dialed_to_its_end_while_a_batch_is_held(db: TestDatabase, end: str) -> None:
    """Results of the held batch wait to be recorded meanwhile."""
    held, other = db.batch(db.agency()), db.batch(db.agency())
    db.contacts(held, pending=3)

    async def run() -> None:
        let_end = asyncio.Event()

        async def answer(call: Call) -> InProgress | Finished:
            if call.batch_id == held:
                await let_end.wait()
            return await complete(call)

        carrier = ScriptedCarrier(answer)
        async with dialing(db, carrier):
            await until(lambda: len(carrier.arrived) == 3)
            with holding(db, end, held):
                let_end.set()
                db.contacts(other, pending=200)
                db.rows("update call_batches set next_claim_at = now() where id = %s", other)
                await until(lambda: db.statuses(other) == {"completed": 200})
                assert db.statuses(held) == {"in_progress": 3}
            await until(lambda: db.statuses(held) == {"completed": 3})

    asyncio.run(run())


@pytest.mark.parametrize("end", ENDS)
def test_a_claim_whose_batch_is_then_held_keeps_no_other_batch_from_being_dialed(db: TestDatabase, end: str) -> None:
    """Start_call waits for the batch, and is refused when the end commits."""
    held, other = db.batch(db.agency()), db.batch(db.agency())
    db.contacts(held, pending=3)

    async def run() -> None:
        carrier = ScriptedCarrier(complete)
        async with dialing(db, carrier) as database:
            with db.connect() as somebody, somebody.transaction():
                # Between the claim and start_call; the dialer stands still meanwhile.
                database.before["start_call"] = lambda: (
                    database.before.clear(),
                    somebody.execute(f"select {end}".encode(), [held]),
                )
                await until(lambda: not database.before and "start_call" in [name for _, name in database.called])
                db.contacts(other, pending=200)
                db.rows("update call_batches set next_claim_at = now() where id = %s", other)
                await until(lambda: db.statuses(other) == {"completed": 200})
            await until(lambda: db.value("select count(*) from calls where batch_id = %s", held) == 0)
        assert {call.batch_id for call in carrier.arrived} == {other}

    asyncio.run(run())


def test_many_held_batches_leave_connections_to_the_others(db: TestDatabase) -> None:
    """More batches are held than the dialer has connections."""
    agency = db.agency()
    held = [db.batch(agency) for _ in range(12)]
    other = db.batch(db.agency())
    for batch in held:
        db.contacts(batch, pending=1)

    async def run() -> None:
        carrier = ScriptedCarrier(take)
        async with dialing(db, carrier, pool_size=6):
            await until(lambda: len(carrier.arrived) == 12)
            await until(lambda: db.value("select count(*) from calls where carrier_call_id is not null") == 12)
            with db.connect() as somebody, somebody.transaction():
                somebody.execute("select from call_batches where id = any (%s) for update", [held])
                carrier.answer = complete
                db.contacts(other, pending=100)
                db.rows("update call_batches set next_claim_at = now() where id = %s", other)
                await until(lambda: db.statuses(other) == {"completed": 100})

    asyncio.run(run())
