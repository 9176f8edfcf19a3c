"""The dialer places what start_call returned, once, and knows what it does not know."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from functions._shared.errors import FunctionError, unavailable
from functions.dialer import dialer
from functions.dialer.carrier import (
    Call,
    CallRefusedError,
    CallUnclearError,
    CarrierUnavailableError,
    Finished,
    InProgress,
)
from functions.migrations import migrate

from ..support.database import TestDatabase
from ..support.dialing import ScriptedCarrier, a_dialer, complete, dial_once, dialing, take, until
from ..support.servers import new_server


def a_batch(db: TestDatabase, contacts: int, **columns: Any) -> UUID:
    batch = db.batch(db.agency(), **{"retry_delay_seconds": 0, **columns})
    db.contacts(batch, pending=contacts)
    return batch


def calls(db: TestDatabase, batch: UUID) -> list[dict[str, Any]]:
    return db.rows(
        "select id, status::text, outcome, carrier_call_id from calls where batch_id = %s order by id", batch
    )


async def lose(_call: Call) -> InProgress:
    raise CallUnclearError("no answer")


async def refuse(_call: Call) -> InProgress:
    raise CallRefusedError("no such number")


def test_each_contact_is_called_once_with_what_the_batch_says(db: TestDatabase) -> None:
    agency = db.agency()
    of = db.calling(agency)
    db.rows("update agent_mappings set max_duration_seconds = 90, recording_enabled = false")
    batch = db.batch(agency, agent_mapping_id=of["agent_mapping_id"], from_number=of["from_number"])
    db.rows("select add_contacts(%s, %s)", batch, json.dumps(
        [{"phone_number": "+15550000001", "first_name": "Ada", "custom_data": {"plan": "gold"}}]
    ))  # fmt: skip
    carrier = ScriptedCarrier()
    assert dial_once(db, carrier) == {"batches_processed": 1, "calls_initiated": 1, "calls_failed": 0}
    (call,) = carrier.arrived
    assert (call.batch_id, call.phone_number, call.from_number) == (batch, "+15550000001", "+15551234567")
    assert call.ultravox_agent_id == f"agent-{of['agent_mapping_id']}"
    assert (call.max_duration_seconds, call.recording_enabled) == (90, False)
    assert call.custom_data == {"first_name": "Ada", "plan": "gold"}
    (row,) = calls(db, batch)
    assert (row["status"], row["carrier_call_id"]) == ("in_progress", f"c-{call.call_id}")
    assert dial_once(db, carrier) == {"processed": 0, "message": "No batches to process"}


def test_a_result_that_comes_at_once_is_recorded_at_once(db: TestDatabase) -> None:
    batch = a_batch(db, 5)
    assert dial_once(db, ScriptedCarrier(complete))["calls_initiated"] == 5
    assert db.statuses(batch) == {"completed": 5}


@pytest.mark.parametrize("end", ["cancel_batch(%s)", "stop_batch(%s::text)", "pause_batch(%s)"])
def test_a_call_that_start_call_does_not_return_is_not_placed(db: TestDatabase, end: str) -> None:
    batch = a_batch(db, 5)
    carrier = ScriptedCarrier()

    async def run() -> None:
        async with a_dialer(db, carrier) as (dialer, database):
            database.before["start_call"] = lambda: db.rows(f"select {end}", batch)
            await dialer.run_once(100, 30)

    asyncio.run(run())
    assert carrier.arrived == []
    assert "in_progress" not in db.statuses(batch)


def test_when_the_answer_of_start_call_is_lost_its_calls_are_not_placed_and_come_back(db: TestDatabase) -> None:
    batch = a_batch(db, 5, max_concurrent=5)
    carrier = ScriptedCarrier(complete)

    async def run() -> None:
        def lose_the_answer() -> None:
            database.after.clear()
            raise unavailable("database_unavailable", "The database is out of reach; try again")

        async with a_dialer(db, carrier) as (dialer, database):
            database.after["start_call"] = lose_the_answer
            with pytest.raises(FunctionError):
                await dialer.run_once(100, 30)

    asyncio.run(run())
    lost = calls(db, batch)
    assert [call["outcome"] for call in lost] == ["not_placed"] * 5
    assert carrier.arrived == []
    dial_once(db, carrier)
    assert db.statuses(batch) == {"completed": 5}
    assert {call.call_id for call in carrier.arrived}.isdisjoint(call["id"] for call in lost)
    assert db.value("select max(attempts) from campaign_contacts") == 1


def test_a_call_that_the_carrier_may_have_is_unknown_and_never_placed_again_by_itself(db: TestDatabase) -> None:
    batch = a_batch(db, 3)
    carrier = ScriptedCarrier(lose)
    assert dial_once(db, carrier) == {"batches_processed": 1, "calls_initiated": 0, "calls_failed": 3}
    assert [call["status"] for call in calls(db, batch)] == ["unknown"] * 3
    assert db.statuses(batch) == {"in_progress": 3}

    carrier.answer = take
    for _ in range(3):
        dial_once(db, carrier)
    assert len(carrier.arrived) == 3


def test_an_error_of_the_carriers_module_counts_as_unknown_too(db: TestDatabase) -> None:
    async def break_down(_call: Call) -> InProgress:
        raise KeyError("callId")

    batch = a_batch(db, 1)
    dial_once(db, ScriptedCarrier(break_down))
    assert [call["status"] for call in calls(db, batch)] == ["unknown"]


def test_the_carriers_state_of_unknown_calls_is_applied(db: TestDatabase) -> None:
    batch = a_batch(db, 4)
    carrier = ScriptedCarrier(lose)
    dial_once(db, carrier)
    db.rows("update calls set checked_at = null")
    going_on, completed, failed, unheard = (call["id"] for call in calls(db, batch))
    carrier.known = {
        going_on: InProgress("c-1"),
        completed: Finished(status="completed", outcome="answered", carrier_call_id="c-2", duration_seconds=61.4),
        failed: Finished(status="failed", outcome="no_answer", carrier_call_id="c-3"),
    }
    db.rows("update campaign_contacts set max_attempts = 1")
    dial_once(db, carrier)
    assert {call["id"]: (call["status"], call["outcome"], call["carrier_call_id"]) for call in calls(db, batch)} == {
        going_on: ("in_progress", None, "c-1"),
        completed: ("completed", "answered", "c-2"),
        failed: ("failed", "no_answer", "c-3"),
        unheard: ("unknown", None, None),  # its request may still be on its way
    }
    assert db.statuses(batch) == {"in_progress": 2, "completed": 1, "failed": 1}


def test_a_call_that_the_carrier_never_heard_of_is_given_up_when_old_and_tried_again(db: TestDatabase) -> None:
    batch = a_batch(db, 1)
    carrier = ScriptedCarrier(lose)
    dial_once(db, carrier)
    db.rows("update calls set checked_at = null, started_at = started_at - interval '200 seconds'")
    dial_once(db, carrier)
    assert [call["status"] for call in calls(db, batch)] == ["unknown"]
    db.rows("update calls set checked_at = null, started_at = started_at - interval '101 seconds'")
    dial_once(db, carrier)
    (given_up,) = calls(db, batch)
    assert (given_up["status"], given_up["outcome"]) == ("failed", "not_placed")
    carrier.answer = complete
    dial_once(db, carrier)
    assert db.statuses(batch) == {"completed": 1}


def test_a_call_that_the_carrier_had_and_has_no_more_is_over_and_not_tried_again(db: TestDatabase) -> None:
    batch = a_batch(db, 1)
    carrier = ScriptedCarrier()
    dial_once(db, carrier)
    db.rows("update calls set started_at = started_at - interval '301 seconds'")
    dial_once(db, carrier)
    assert db.statuses(batch) == {"completed": 1}
    assert [(call["status"], call["outcome"]) for call in calls(db, batch)] == [("completed", "lost")]


def test_a_refused_call_is_an_attempt_and_one_that_the_carrier_could_not_take_is_none(db: TestDatabase) -> None:
    async def be_away(_call: Call) -> InProgress:
        raise CarrierUnavailableError("connection refused")

    batch = a_batch(db, 1, retry_outcomes=["busy", "carrier_refused"])
    for answer, attempts, outcome in ((be_away, 0, "carrier_unavailable"), (refuse, 1, "carrier_refused"),
                                      (be_away, 1, "carrier_unavailable"), (refuse, 2, "carrier_refused")):  # fmt: skip
        # One call: a contact whose retry is due at once would be called again by the same run.
        assert dial_once(db, ScriptedCarrier(answer), max_calls=1)["calls_failed"] == 1
        row = db.row("select status::text, attempts, outcome from campaign_contacts")
        assert row == {"status": "scheduled", "attempts": attempts, "outcome": outcome}
    dial_once(db, ScriptedCarrier(refuse), max_calls=1)
    assert db.statuses(batch) == {"failed": 1}


def test_a_call_that_could_not_be_placed_after_its_batch_was_cancelled_is_failed(db: TestDatabase) -> None:
    batch = a_batch(db, 1)

    async def be_cancelled_meanwhile(_call: Call) -> InProgress:
        db.rows("select cancel_batch(%s)", batch)
        raise CarrierUnavailableError("connection refused")

    dial_once(db, ScriptedCarrier(be_cancelled_meanwhile))
    assert db.statuses(batch) == {"failed": 1}


def test_a_carrier_that_takes_no_calls_is_left_alone_and_then_tried_with_one(db: TestDatabase) -> None:
    batch = a_batch(db, 20)
    arrivals: list[float] = []

    async def be_busy_first(call: Call) -> Finished:
        arrivals.append(time.monotonic())
        if len(arrivals) <= 20:
            raise CarrierUnavailableError("429", retry_after_s=0.7)
        return await complete(call)

    async def run() -> None:
        async with dialing(db, ScriptedCarrier(be_busy_first)):
            await until(lambda: db.statuses(batch) == {"completed": 20})

    asyncio.run(run())
    assert arrivals[20] - arrivals[19] >= 0.7
    assert len(arrivals) == 40  # nothing was tried meanwhile
    assert db.value("select max(attempts) from campaign_contacts") == 1


def test_while_the_carrier_is_away_it_is_tried_less_and_less_often(db: TestDatabase) -> None:
    a_batch(db, 100)
    arrivals: list[float] = []

    async def be_away(_call: Call) -> InProgress:
        arrivals.append(time.monotonic())
        raise CarrierUnavailableError("connection refused", retry_after_s=0.1)

    async def run() -> None:
        async with dialing(db, ScriptedCarrier(be_away)):
            await until(lambda: len(arrivals) >= 54)

    asyncio.run(run())
    tries = [arrivals[49], *arrivals[50:54]]
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert all(gap >= least for gap, least in zip(gaps, (0.1, 0.2, 0.4, 0.8), strict=True)), gaps


def test_no_more_requests_than_allowed_are_under_way_at_a_time(db: TestDatabase) -> None:
    batch = a_batch(db, 60)
    under_way = most = 0

    async def answer(call: Call) -> Finished:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return await complete(call)

    async def run() -> None:
        async with dialing(db, ScriptedCarrier(answer), dial_concurrency=7):
            await until(lambda: db.statuses(batch) == {"completed": 60})

    asyncio.run(run())
    assert most == 7


def test_two_dialers_call_each_contact_once(db: TestDatabase) -> None:
    batches = [a_batch(db, 150, max_concurrent=40), a_batch(db, 150)]
    both_dial = asyncio.Event()

    async def complete_when_both_dial(call: Call) -> Finished:
        if all(carrier.arrived for carrier in carriers):
            both_dial.set()
        await both_dial.wait()
        return await complete(call)

    carriers = [ScriptedCarrier(complete_when_both_dial), ScriptedCarrier(complete_when_both_dial)]

    async def run() -> None:
        async with dialing(db, carriers[0], dial_concurrency=10), dialing(db, carriers[1], dial_concurrency=10):
            await until(lambda: all(db.statuses(batch) == {"completed": 150} for batch in batches))

    asyncio.run(run())
    called = [call.contact_id for carrier in carriers for call in carrier.arrived]
    assert len(called) == len(set(called)) == 300


@pytest.fixture
def no_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a dialer does after its first tick, it does for another reason."""
    monkeypatch.setattr(dialer, "TICK_S", 3600.0)


@pytest.mark.usefixtures("no_ticks")
def test_a_batch_that_somebody_holds_is_asked_for_less_and_less_often(db: TestDatabase) -> None:
    batch = a_batch(db, 5)

    async def run() -> list[float]:
        with db.connect() as other:
            other.execute("begin")
            other.execute("select from call_batches where id = %s for no key update", [batch])
            async with dialing(db, ScriptedCarrier(complete)) as database:

                def claims() -> list[float]:
                    return [at for at, procedure in database.called if procedure == "claim_contacts"]

                await until(lambda: len(claims()) >= 8)
                other.execute("rollback")
                await until(lambda: db.statuses(batch) == {"completed": 5})
                return claims()[:8]

    asked = asyncio.run(run())
    # The first tick may wake it once; from then on each wait is at least half of twice the one before it.
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)][2:]
    assert all(gap >= least for gap, least in zip(gaps, (0.02, 0.04, 0.08, 0.16, 0.32), strict=True)), gaps


def test_with_nothing_to_do_a_dialer_asks_no_more_than_it_ticks(
    db: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer, "TICK_S", 0.05)
    a_batch(db, 5, max_concurrent=1)  # it waits for the end of its one call

    async def run() -> None:
        async with dialing(db, ScriptedCarrier()) as database:

            def asked(procedure: str) -> int:
                return sum(called == procedure for _, called in database.called)

            await until(lambda: len(calls(db, db.value("select id from call_batches"))) == 1)
            database.called.clear()
            begun = time.monotonic()
            await until(lambda: asked("process_batches") >= 20)
            # Woken by each tick, and by its own patience that is as long: a slow machine has more time for that.
            most = asked("process_batches") + (time.monotonic() - begun) / dialer.TICK_S + 2
            assert asked("claim_contacts") <= most
            assert asked("next_claim_in") <= most

    asyncio.run(run())


@pytest.mark.usefixtures("no_ticks")
def test_a_contact_is_claimed_when_it_becomes_due(db: TestDatabase) -> None:
    batch = a_batch(db, 1, retry_delay_seconds=1)
    arrivals: list[float] = []

    async def be_busy_once(call: Call) -> Finished:
        arrivals.append(time.monotonic())
        if len(arrivals) == 1:
            return Finished(status="failed", outcome="busy", carrier_call_id="c")
        return await complete(call)

    async def run() -> None:
        async with dialing(db, ScriptedCarrier(be_busy_once)):
            await until(lambda: db.statuses(batch) == {"completed": 1})

    asyncio.run(run())
    assert arrivals[1] - arrivals[0] >= 1


def test_a_stop_claims_nothing_more_and_lets_what_is_in_flight_finish_and_be_recorded(db: TestDatabase) -> None:
    batch = a_batch(db, 10)
    answers = asyncio.Event()

    async def answer_late(call: Call) -> Finished:
        await answers.wait()
        return await complete(call)

    carrier = ScriptedCarrier(answer_late)

    async def run() -> None:
        stop = asyncio.Event()
        async with a_dialer(db, carrier, dial_concurrency=4) as (its_dialer, _):
            work = asyncio.create_task(its_dialer.run(stop))
            await until(lambda: len(carrier.arrived) == 4)
            stop.set()
            asyncio.get_running_loop().call_later(0.3, answers.set)
            await work

    asyncio.run(run())
    assert db.statuses(batch) == {"completed": 4, "pending": 6}


def test_a_stop_does_not_wait_for_ever(db: TestDatabase) -> None:
    batch = a_batch(db, 3)
    carrier = ScriptedCarrier(lambda _call: asyncio.Event().wait())  # type: ignore[arg-type, return-value]

    async def run() -> None:
        stop = asyncio.Event()
        async with a_dialer(db, carrier, carrier_timeout_s=0.3) as (its_dialer, _):
            work = asyncio.create_task(its_dialer.run(stop))
            await until(lambda: len(carrier.arrived) == 3)
            stop.set()
            await asyncio.wait_for(work, 60)

    asyncio.run(run())
    assert db.statuses(batch) == {"in_progress": 3}


def test_a_request_that_takes_too_long_is_given_up_before_its_call_is_placed_again(db: TestDatabase) -> None:
    batch = a_batch(db, 1)
    asked: list[Call] = []
    reached: list[int] = []
    goes_through = asyncio.Event()

    async def be_slow_once(call: Call) -> Finished:
        asked.append(call)
        if len(asked) == 1:
            await goes_through.wait()
        reached.append(call.contact_id)
        return await complete(call)

    async def run() -> None:
        of = {"carrier_timeout_s": 0.1, "reconcile_after_s": 1, "reconcile_every_s": 0.1}
        async with dialing(db, ScriptedCarrier(be_slow_once), **of):
            await until(lambda: db.statuses(batch) == {"completed": 1})
            goes_through.set()

    asyncio.run(run())
    assert len(asked) == 2
    assert len(reached) == 1


def test_results_of_a_batch_that_was_deleted_meanwhile_hold_up_nothing(db: TestDatabase) -> None:
    batch, other = a_batch(db, 1), a_batch(db, 1)

    async def be_deleted(call: Call) -> Finished:
        if call.batch_id == batch:
            db.rows("delete from call_batches where id = %s", batch)
        return await complete(call)

    async def run() -> None:
        async with dialing(db, ScriptedCarrier(be_deleted)):
            await until(lambda: db.statuses(other) == {"completed": 1} and db.statuses(batch) == {})

    asyncio.run(run())


def test_it_goes_on_after_the_database_was_away(own_folder: Path) -> None:
    server = new_server(own_folder)
    server.start()
    try:
        migrate(server.uri())
        db = TestDatabase(server.uri(), server.uri(user="lastcall_functions"))
        batch = a_batch(db, 120, max_concurrent=20)

        async def take_a_moment(call: Call) -> Finished:
            await asyncio.sleep(0.05)
            return await complete(call)

        carrier = ScriptedCarrier(take_a_moment)

        async def run() -> None:
            nonlocal db
            async with dialing(db, carrier, dial_concurrency=10, reconcile_after_s=30, carrier_timeout_s=5):
                await until(lambda: len(carrier.arrived) > 30)
                db.close()
                await asyncio.to_thread(server.restart, "immediate")
                db = TestDatabase(server.uri(), server.uri(user="lastcall_functions"))
                db.rows("update calls set lease_expires_at = now() where status = 'queued'")
                # A call whose start_call lost its answer comes back at once, or when the dialer finds it.
                await until(lambda: db.statuses(batch).get("completed", 0) >= 100)
                db.rows("update calls set started_at = started_at - interval '30 seconds' where status = 'in_progress'")
                await until(lambda: db.value("select count(*) from calls where status = 'queued'") == 0)

        asyncio.run(run())
        called = [call.call_id for call in carrier.arrived]
        assert len(called) == len(set(called))
        assert db.unbalanced() == []
        contacts = [call.contact_id for call in carrier.arrived]
        assert len(contacts) == len(set(contacts))
        db.close()
    finally:
        server.stop()
