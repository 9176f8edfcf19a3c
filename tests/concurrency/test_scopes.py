"""Every scope that can be ended keeps the promise of a batch: real connections race it, and none slips in.

RACED_STARTS: how many calls race each end at least, many thousands for the long form.
RACE_SEED: the seed of the moments at which they do so; a test prints the one that it ran with.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import pytest

from ..support.arrivals import Arrival
from ..support.database import Connection, TestDatabase

RACED_STARTS = int(os.environ.get("RACED_STARTS") or 600)
SEED = int(os.environ.get("RACE_SEED") or secrets.randbits(32))
STARTERS = 12
GROUP = 10 if RACED_STARTS < 100_000 else 100
_APART_S = 0.004
"""Within this time all starts of a round and the end are sent, in any order."""

NUMBER = "+15550000001"
HELD = {
    "campaign": "campaign_id => %(campaign)s",
    "agent": "agent_mapping_id => %(agent)s",
    "caller number": "from_number => %(number)s",
    "agency": "whole_agency => true",
}
ENDS = {
    "cancel": "cancel_batch(%(batch)s)",
    "stop": "stop_batch(%(batch)s::text)",
    "stop and skip": "stop_batch(%(batch)s::text, skip_remaining => true)",
    "pause": "pause_batch(%(batch)s)",
    "skip by a filter": """skip_contacts(%(batch)s, filter => '{"max_attempts": 9}')""",
    "skip by ids": "skip_contacts(%(batch)s,"
    " (select array_agg(id::text) from campaign_contacts where batch_id = %(batch)s))",
    "opt-out": f"opt_out('{NUMBER}', agency_id => %(agency)s)",
    **{
        f"hold of a {scope}": f"hold_calls({given}, agency_id => %(agency)s, until => 'tomorrow')"
        for scope, given in HELD.items()
    },
    "hold of everything": "hold_calls(everything => true, until => 'tomorrow')",
}


@dataclass
class Start:
    """A call of start_call: when it was asked for, how many calls it named, how many passed."""

    asked: float
    named: int
    passed: int


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.timeout(3600)
def test_no_raced_start_passes_after_the_end_of_a_scope(db: TestDatabase, name: str) -> None:
    print(f"RACE_SEED={SEED}")
    moments = random.Random(SEED)
    raced = passed = 0
    connections = [db.connect() for _ in range(STARTERS)]
    try:
        with db.connect() as console, ThreadPoolExecutor(STARTERS) as pool:
            while raced < RACED_STARTS:
                starts = race(db, console, connections, pool, ENDS[name], moments)
                raced += sum(start.named for start in starts)
                passed += sum(start.passed for start in starts)
    finally:
        for connection in connections:
            connection.close()
    print(f"{name}: {raced:,} starts raced, {passed:,} of them passed before the end")
    assert db.unbalanced() == []


def race(
    db: TestDatabase,
    console: Connection,
    connections: list[Connection],
    pool: ThreadPoolExecutor,
    end: str,
    moments: random.Random,
) -> list[Start]:
    """Start the calls of leases, each at its own moment around that of the end, and see that none passes after it."""
    agency = db.agency()
    calling = db.calling(agency)
    batch = db.batch(agency, **calling)
    db.rows(
        "insert into campaign_contacts (agency_id, batch_id, phone_number)"
        " select %s, %s, %s from generate_series(1, %s)",
        agency,
        batch,
        NUMBER,
        STARTERS * GROUP,
    )
    db.rows("update call_batches set total_contacts = %s where id = %s", STARTERS * GROUP, batch)
    leases = [db.rows("select call_id, lease from claim_contacts(%s, 60, %s)", GROUP, batch) for _ in range(STARTERS)]
    gate = threading.Barrier(STARTERS + 1)
    waits = [moments.uniform(0, _APART_S) for _ in range(STARTERS + 1)]

    def start(place: int) -> Start:
        calls = [row["call_id"] for row in leases[place]]
        gate.wait()
        time.sleep(waits[place])
        asked = time.monotonic()
        row = (
            connections[place]
            .execute(
                "select cardinality((start_call(%s, %s, %s)).started) as n", [batch, calls, leases[place][0]["lease"]]
            )
            .fetchone()
        )
        assert row is not None
        return Start(asked, len(calls), row["n"])

    asked = [pool.submit(start, place) for place in range(STARTERS)]
    values = {
        "batch": batch,
        "agency": agency,
        "campaign": calling["campaign_id"],
        "agent": calling["agent_mapping_id"],
        "number": calling["from_number"],
    }
    gate.wait()
    time.sleep(waits[STARTERS])
    started = "select count(*) as n from calls where batch_id = %s and started_at is not null"
    with console.transaction():
        console.execute(f"select {end}", values)
        # Whatever has not passed by now never will.
        row = console.execute(started, [batch]).fetchone()
    replied = time.monotonic()
    assert row is not None
    starts = [future.result() for future in asked]
    assert db.value(started, batch) == row["n"] == sum(start.passed for start in starts)
    assert [start for start in starts if start.asked > replied and start.passed] == []
    db.rows("select lift_hold(id) from holds where lifted_at is null")
    return starts


# A hold and what brings a batch to life.

LIVES = {
    "resume": ("paused", "resume_batch(%(batch)s)"),
    "start": ("paused", "start_batch(%(batch)s::text)"),
    "start with call data": ("stopped", "start_batch(%(batch)s::text, call_data => %(data)s)"),
    "process": ("pending", "process_batches()"),
}
HOLDS = {
    "an agency": "hold_calls(whole_agency => true, agency_id => %(agency)s)",
    "everything": "hold_calls(everything => true)",
}


@pytest.fixture
def world(db: TestDatabase) -> dict[str, Any]:
    agency = db.agency()
    return {"agency": agency, "data": json.dumps([{"phoneNumber": "+15557654321"}])}


def waiting_batch(db: TestDatabase, world: dict[str, Any], status: str) -> UUID:
    batch = db.batch(world["agency"], status=status)
    db.contacts(batch, pending=2)
    world["batch"] = batch
    return batch


def claimable(db: TestDatabase, batch: UUID) -> int:
    return len(db.rows("select call_id from claim_contacts(9, 60, %s)", batch))


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("life", LIVES)
def test_a_hold_waits_for_a_batch_that_is_coming_to_life_and_holds_it(
    db: TestDatabase, world: dict[str, Any], life: str, hold: str
) -> None:
    status, procedure = LIVES[life]
    batch = waiting_batch(db, world, status)
    with db.connect() as first, first.transaction():
        first.execute(f"select {procedure}", world)
        second = Arrival(db, f"select ({HOLDS[hold]}).batches", world)
        assert second.waits()
    second.join()
    assert second.row == {"batches": 1}
    assert (db.batch_row(batch)["status"], claimable(db, batch)) == ("processing", 0)


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("life", LIVES)
def test_a_batch_that_would_come_to_life_during_a_hold_waits_for_the_hold_and_is_held(
    db: TestDatabase, world: dict[str, Any], life: str, hold: str
) -> None:
    status, procedure = LIVES[life]
    batch = waiting_batch(db, world, status)
    with db.connect() as first, first.transaction():
        first.execute(f"select {HOLDS[hold]}", world)
        second = Arrival(db, f"select {procedure}", world)
        # process_batches leaves the batch for its next run.
        assert second.waits() == (life != "process")
    second.join()
    assert second.sqlstate is None
    if life == "process":
        assert db.batch_row(batch)["status"] == "pending"
        db.rows("select process_batches()")
    assert (db.batch_row(batch)["status"], claimable(db, batch)) == ("processing", 0)


@pytest.mark.parametrize("hold", HOLDS)
def test_a_batch_goes_on_when_its_hold_is_lifted_while_it_comes_to_life(
    db: TestDatabase, world: dict[str, Any], hold: str
) -> None:
    batch = waiting_batch(db, world, "paused")
    held = db.value(f"select ({HOLDS[hold].replace('%(agency)s', '%s')}).hold_id",
                    *([world["agency"]] if "agency" in hold else []))  # fmt: skip
    with db.connect() as first, first.transaction():
        first.execute("select lift_hold(%s)", [held])
        second = Arrival(db, "select resume_batch(%(batch)s)", world)
        assert second.waits()
    second.join()
    assert (second.sqlstate, claimable(db, batch)) == (None, 2)


@pytest.mark.parametrize("hold", HOLDS)
def test_a_resume_that_saw_no_hold_is_refused_at_a_stricter_isolation(
    db: TestDatabase, world: dict[str, Any], hold: str
) -> None:
    batch = waiting_batch(db, world, "paused")
    with db.connect() as strict:
        strict.execute("begin isolation level repeatable read")
        strict.execute("select from holds")
        db.owner.execute(f"select {HOLDS[hold]}", world)
        with pytest.raises(psycopg.errors.SerializationFailure):
            strict.execute("select resume_batch(%s)", [batch])
    assert db.batch_row(batch)["status"] == "paused"


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
@pytest.mark.parametrize("hold", [*HOLDS, "lifted"])
def test_a_hold_that_cannot_see_a_batch_resumed_meanwhile_is_refused(
    db: TestDatabase, world: dict[str, Any], hold: str, isolation: str
) -> None:
    batch = waiting_batch(db, world, "paused")
    held = db.value("select (hold_calls(whole_agency => true, agency_id => %s)).hold_id", world["agency"])
    with db.connect() as strict:
        strict.execute(f"begin isolation level {isolation}")
        strict.execute("select from call_batches")
        db.rows("select resume_batch(%s)", batch)
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="read committed") as refused:
            strict.execute(f"select {HOLDS.get(hold, 'lift_hold(%(held)s)')}", {**world, "held": held})
    assert refused.value.diag.message_hint == "Run it at isolation level read committed"
    assert db.rows("select id from holds where lifted_at is null") == [{"id": held}]


@pytest.mark.parametrize("hold", HOLDS)
def test_batches_of_other_agencies_come_to_life_while_an_agency_is_being_held(
    db: TestDatabase, world: dict[str, Any], hold: str
) -> None:
    other = db.batch(db.agency("Other"), status="paused")
    db.contacts(other, pending=2)
    with db.connect() as first, first.transaction():
        first.execute(f"select {HOLDS[hold]}", world)
        second = Arrival(db, "select resume_batch(%(other)s)", {"other": other})
        assert second.waits() == (hold == "everything")
    second.join()
    assert claimable(db, other) == (0 if hold == "everything" else 2)


# An opt-out and what adds contacts.

ADDS = {
    "add_contacts": "add_contacts(%(batch)s, %(contacts)s)",
    "import_contacts": "import_contacts(%(batch)s, %(import)s, %(rows)s)",
    "start_batch": "start_batch(%(batch)s::text, call_data => %(data)s)",
    "create_batch": "create_batch(agent_mapping_id => %(agent)s, campaign_id => %(campaign)s,"
    " from_number => %(number)s, contacts => %(contacts)s)",
    "retry_batch": "retry_batch(%(failed)s)",
}
OPT_OUT = f"opt_out('{NUMBER}', agency_id => %(agency)s)"


@pytest.fixture
def adding(db: TestDatabase, world: dict[str, Any]) -> dict[str, Any]:
    """The values with which each procedure of ADDS adds the number, and another one."""
    calling = db.calling(world["agency"])
    batch, failed = db.batch(world["agency"]), db.batch(world["agency"], status="completed", **calling)
    db.contacts(failed, failed=2)
    numbers = (NUMBER, "+15550000002")
    return {
        **world,
        "batch": batch,
        "failed": failed,
        "agent": calling["agent_mapping_id"],
        "campaign": calling["campaign_id"],
        "number": calling["from_number"],
        "contacts": json.dumps([{"phone_number": number} for number in numbers]),
        "data": json.dumps([{"phoneNumber": number} for number in numbers]),
        "import": db.value("select begin_import(%s, repeat('1', 64)) ->> 'import_id'", batch),
        "rows": json.dumps([{"row": row, "phone_number": number} for row, number in enumerate(numbers, 2)]),
    }


def places(db: TestDatabase) -> dict[str, int]:
    """How many contacts of the number, not of the batch that failed, have each status."""
    rows = db.rows(
        "select c.status::text, count(*) as n from campaign_contacts c"
        " where c.phone_number = %s and c.status <> 'failed' group by 1",
        NUMBER,
    )
    return {row["status"]: row["n"] for row in rows}


@pytest.mark.parametrize("add", ADDS)
def test_an_opt_out_waits_for_contacts_that_are_being_added_and_skips_them(
    db: TestDatabase, adding: dict[str, Any], add: str
) -> None:
    with db.connect() as first, first.transaction():
        first.execute(f"select {ADDS[add]}", adding)
        second = Arrival(db, f"select ({OPT_OUT}).contacts_skipped", adding)
        assert second.waits()
    second.join()
    assert second.row == {"contacts_skipped": 1}
    assert places(db) == {"skipped": 1}


@pytest.mark.parametrize("add", ADDS)
def test_contacts_that_would_be_added_during_an_opt_out_wait_for_it_and_are_left_out(
    db: TestDatabase, adding: dict[str, Any], add: str
) -> None:
    with db.connect() as first, first.transaction():
        first.execute(f"select {OPT_OUT}", adding)
        second = Arrival(db, f"select {ADDS[add]}", adding)
        assert second.waits()
    second.join()
    assert second.sqlstate is None
    assert places(db) == {}


@pytest.mark.parametrize("add", ADDS)
def test_an_addition_that_saw_no_opt_out_is_refused_at_a_stricter_isolation(
    db: TestDatabase, adding: dict[str, Any], add: str
) -> None:
    db.rows("select add_contacts(%s, %s)", adding["batch"], json.dumps([{"phone_number": "+15550000003"}]))
    with db.connect() as strict:
        strict.execute("begin isolation level repeatable read")
        strict.execute("select from do_not_call")
        db.owner.execute(f"select {OPT_OUT}", adding)
        with pytest.raises(psycopg.errors.SerializationFailure):
            strict.execute(f"select {ADDS[add]}", adding)
    assert places(db) == {}


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_an_opt_out_that_cannot_see_a_contact_added_meanwhile_is_refused(
    db: TestDatabase, adding: dict[str, Any], isolation: str
) -> None:
    db.rows("select add_contacts(%s, %s)", adding["batch"], json.dumps([{"phone_number": "+15550000003"}]))
    with db.connect() as strict:
        strict.execute(f"begin isolation level {isolation}")
        strict.execute("select from do_not_call")
        db.rows("select add_contacts(%s, %s)", adding["batch"], adding["contacts"])
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="read committed"):
            strict.execute(f"select {OPT_OUT}", adding)
    assert (places(db), db.rows("select from do_not_call")) == ({"pending": 1}, [])


def test_contacts_are_added_for_other_agencies_during_an_opt_out(db: TestDatabase, adding: dict[str, Any]) -> None:
    other = db.batch(db.agency("Other"))
    with db.connect() as first, first.transaction():
        first.execute(f"select {OPT_OUT}", adding)
        second = Arrival(db, "select add_contacts(%(batch)s, %(contacts)s)", {**adding, "batch": other})
        assert not second.waits()
    assert second.sqlstate is None


# Procedures that lock several batches.


@pytest.mark.parametrize(
    "pair",
    [("an agency", "opt-out"), ("an agency", "an agency"), ("everything", "an agency"), ("opt-out", "opt-out"),
     ("an agency", "lift"), ("opt-out", "cancel"), ("an agency", "cancel")],
    ids=" and ".join,
)  # fmt: skip
def test_two_that_take_many_batches_at_once_never_meet_in_a_deadlock(
    db: TestDatabase, world: dict[str, Any], pair: tuple[str, str]
) -> None:
    batches = [db.batch(world["agency"]) for _ in range(20)]
    for batch in batches:
        db.contacts(batch, pending=2)
    calls = {
        **HOLDS,
        "opt-out": OPT_OUT,
        "lift": "lift_hold(%(held)s)",
        "cancel": "cancel_batch(%(batch)s)",
    }
    world["batch"] = batches[10]
    world["held"] = db.value("select (hold_calls(whole_agency => true, agency_id => %s)).hold_id", world["agency"])
    gate = threading.Barrier(2)

    def run(name: str) -> str | None:
        with db.connect() as connection:
            gate.wait()
            try:
                connection.execute(f"select {calls[name]}", world)
            except psycopg.Error as error:
                return error.sqlstate
        return None

    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            ended: list[str | None] = list(pool.map(run, pair))
        assert set(ended) <= {None, "PT400"}  # cancelled before


def test_holds_of_an_agency_at_once_all_hold_it(db: TestDatabase, world: dict[str, Any]) -> None:
    batch = db.batch(world["agency"])
    db.contacts(batch, pending=2)
    run: Callable[[int], Any] = lambda _n: hold_and_lift(db, world)  # noqa: E731
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(24)))
    assert claimable(db, batch) == 2
    assert db.value("select count(*) from holds where lifted_at is not null") == 24


def hold_and_lift(db: TestDatabase, world: dict[str, Any]) -> None:
    with db.connect() as connection:
        row = connection.execute(f"select ({HOLDS['an agency']}).hold_id as id", world).fetchone()
        assert row is not None
        seen = connection.execute("select bool_and(is_held) as held from call_batches").fetchone()
        assert seen == {"held": True}
        connection.execute("select lift_hold(%(id)s)", row)
