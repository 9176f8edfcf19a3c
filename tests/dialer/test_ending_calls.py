"""Calls that must end: hung up when somebody asks, withdrawn from the carrier's queue when the batch is dialed no
more, and left alone otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest

from functions.dialer.carrier import CarrierUnavailableError, Finished, InProgress, OpenCall, connect_carrier

from ..support.database import TestDatabase
from ..support.dialing import ScriptedCarrier, dial_once, dial_settings, dialing, until
from ..support.simulator import record, simulated

pytestmark = pytest.mark.one_postgres

AN_HOUR = (3600.0, 3600.0)
ENDS = {"paused": "pause_batch(%s)", "stopped": "stop_batch(%s::text)", "cancelled": "cancel_batch(%s)"}
END_CALLS = {
    "cancel_batch": "cancel_batch(%s, end_calls => true)",
    "stop_batch": "stop_batch(%s::text, end_calls => true)",
}


@asynccontextmanager
async def dialer_of(db: TestDatabase, url: str) -> AsyncIterator[None]:
    carrier = connect_carrier(dial_settings(db, carrier="simulator", carrier_url=url))
    async with dialing(db, carrier):
        yield
    await carrier.aclose()


def a_batch(db: TestDatabase, contacts: int) -> UUID:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=contacts)
    return batch


def placed(db: TestDatabase, batch: UUID) -> int:
    """How many calls of the batch the carrier is known to have."""
    number: int = db.value("select count(*) from calls where batch_id = %s and carrier_call_id is not null", batch)
    return number


@pytest.mark.parametrize("procedure", END_CALLS)
def test_a_batch_that_ends_with_its_calls_has_none_in_progress_and_the_carrier_none_live(
    db: TestDatabase, procedure: str
) -> None:
    ended, other = a_batch(db, 5), a_batch(db, 2)

    async def run(url: str) -> None:
        async with dialer_of(db, url):
            await until(lambda: placed(db, ended) == 5 and placed(db, other) == 2)
            db.rows(f"select {END_CALLS[procedure]}", ended)
            await until(lambda: db.batch_row(ended)["in_progress"] == 0)

    with simulated(ring_s=(0.0, 0.0), talk_s=AN_HOUR) as url:
        asyncio.run(run(url))
        calls = record(url)
    live = [call for call in calls if call["ended_at"] is None]
    assert {call["batch_id"] for call in live} == {str(other)}
    assert len(live) == 2
    assert db.rows("select distinct outcome from campaign_contacts where batch_id = %s", ended) == [
        {"outcome": "hung_up"}
    ]


@pytest.mark.parametrize("end", ENDS)
def test_calls_that_the_carrier_queues_are_never_dialed_after_the_end(db: TestDatabase, end: str) -> None:
    batch = a_batch(db, 6)

    async def run(url: str) -> None:
        async with dialer_of(db, url):
            await until(lambda: placed(db, batch) == 6)
            assert not db.row("select is_silent from batch_silence(%s)", str(batch))["is_silent"]
            db.rows(f"select {ENDS[end]}", batch)
            await until(lambda: db.row("select is_silent from batch_silence(%s)", str(batch))["is_silent"])

    # The first is dialed at once, and the second would be after an hour.
    with simulated(ring_s=(0.0, 0.0), talk_s=AN_HOUR, dials_per_s=1 / 3600) as url:
        asyncio.run(run(url))
        calls = record(url)
    assert [call["outcome"] for call in calls if call["dialed_at"] is None] == ["withdrawn"] * 5
    assert db.rows("select attempts from campaign_contacts where outcome = 'withdrawn'") == [{"attempts": 0}] * 5
    assert db.batch_row(batch)["in_progress"] == 1  # the dialed call goes on


@pytest.mark.parametrize("end", ENDS)
def test_calls_in_progress_are_left_alone_without_end_calls(db: TestDatabase, end: str) -> None:
    batch, _ = db.in_progress(3)
    db.rows(f"select {ENDS[end]}", batch)
    carrier = ScriptedCarrier()
    dial_once(db, carrier)
    assert carrier.told_to_end == []


def test_a_bounded_run_ends_calls_too(db: TestDatabase) -> None:
    batch, calls = db.in_progress(3)
    db.confirm_calls(batch, calls, "c-1")
    db.rows("select cancel_batch(%s, end_calls => true)", batch)
    carrier = ScriptedCarrier()
    carrier.known = {call: Finished(status="completed", outcome="answered", carrier_call_id="c-1") for call in calls}
    dial_once(db, carrier)
    assert sorted(carrier.told_to_end) == [("hang_up", call) for call in calls]
    assert db.rows("select distinct outcome from calls") == [{"outcome": "hung_up"}]


def test_a_queued_call_that_was_dialed_meanwhile_goes_on_and_is_not_withdrawn_again(db: TestDatabase) -> None:
    batch, (call,) = db.in_progress(1)
    db.rows("select confirm_call(%s, %s)", batch, db.named([call], carrier_call_id="c-1", carrier_queued=True))
    db.rows("select cancel_batch(%s)", batch)
    carrier = ScriptedCarrier()
    carrier.known = {call: InProgress("c-1")}
    dial_once(db, carrier)
    db.rows("update calls set end_asked_at = end_asked_at - interval '5 seconds'")
    dial_once(db, carrier)
    assert carrier.told_to_end == [("withdraw", call)]
    assert db.row("select status::text, carrier_queued from calls") == {
        "status": "in_progress",
        "carrier_queued": False,
    }


class Away(ScriptedCarrier):
    """A carrier that is away when it is first told to end a call."""

    async def hang_up(self, call: OpenCall) -> InProgress | Finished | None:
        found = await super().hang_up(call)
        if len(self.told_to_end) == 1:
            raise CarrierUnavailableError("away")
        return found


class Failing(ScriptedCarrier):
    """A carrier whose module fails when it is first told to end a call."""

    async def hang_up(self, call: OpenCall) -> InProgress | Finished | None:
        found = await super().hang_up(call)
        if len(self.told_to_end) == 1:
            raise RuntimeError("a mistake")
        return found


@pytest.mark.parametrize("carrier_type", [Away, Failing])
def test_a_carrier_that_did_not_hang_up_is_told_again(db: TestDatabase, carrier_type: type[ScriptedCarrier]) -> None:
    batch, (call,) = db.in_progress(1)
    db.rows("select cancel_batch(%s, end_calls => true)", batch)
    carrier = carrier_type()
    carrier.known = {call: Finished(status="completed", outcome="answered", carrier_call_id="c-1")}
    dial_once(db, carrier)
    assert db.batch_row(batch)["in_progress"] == 1
    db.rows("update calls set end_asked_at = end_asked_at - interval '5 seconds'")
    dial_once(db, carrier)
    assert carrier.told_to_end == [("hang_up", call)] * 2
    assert db.batch_row(batch)["in_progress"] == 0
