"""Every order of the statements of two procedures that meet on a batch ends as one of the two does after the other.

INTERLEAVINGS=all: every pair, on a batch of every status, and at repeatable read.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from ..support.database import TestDatabase
from ..support.interleaving import Stage, Step, schedules

ALL = os.environ.get("INTERLEAVINGS") == "all"
NUMBER, NEW_NUMBER = "+15550000001", "+15559990001"

# Each procedure. An answer of ids is counted.
PROCEDURES = {
    "claim": "select count(*) from claim_contacts(2, 60, %(batch)s)",
    "start": "select cardinality(started), cardinality(unknown) from start_call(%(batch)s, %(leased)s, %(lease)s, 60)",
    "confirm": "select count(*) filter (where result = 'changed') from confirm_call(%(batch)s, %(confirmed)s)",
    "finish, failed": "select count(*) filter (where result = 'changed') from finish_call(%(batch)s, %(failed)s)",
    "finish, completed": "select count(*) filter (where result = 'changed') from finish_call(%(batch)s, %(completed)s)",
    "release": "select release_expired_leases()",
    "process": "select process_batches()",
    "cancel": "select to_jsonb(r) from cancel_batch(%(batch)s) r",
    "cancel, end calls": "select to_jsonb(r) from cancel_batch(%(batch)s, end_calls => true) r",
    "stop": "select to_jsonb(r) from stop_batch(%(batch)s::text) r",
    "stop, skip": "select to_jsonb(r) from stop_batch(%(batch)s::text, skip_remaining => true) r",
    "pause": "select to_jsonb(r) from pause_batch(%(batch)s) r",
    "resume": "select to_jsonb(r) from resume_batch(%(batch)s) r",
    "start batch": "select to_jsonb(r) from start_batch(%(batch)s::text, call_data => %(data)s) r",
    "add": "select to_jsonb(r) from add_contacts(%(batch)s, %(contacts)s) r",
    "import": "select import_contacts(%(batch)s, %(import)s, %(rows)s)",
    "retry": "select to_jsonb(r) from retry_batch(%(batch)s) r",
    "skip": """select to_jsonb(r) from skip_contacts(%(batch)s, filter => '{"max_attempts": 9}') r""",
    "opt out": "select to_jsonb(r) from opt_out(%(number)s, agency_id => %(agency)s) r",
    "hold": "select to_jsonb(r) from hold_calls(whole_agency => true, agency_id => %(agency)s) r",
    "lift": "select to_jsonb(r) from lift_hold(%(hold)s) r",
}
ENDS = ("cancel", "stop, skip", "pause", "skip", "opt out", "hold")
NOTHING: dict[str, Any] = {
    "claim": [{"count": 0}],
    "release": [{"release_expired_leases": 0}],
    "process": [{"process_batches": "(0,0)"}],
}
"""The answers of those that leave a batch alone that somebody holds, instead of waiting for it."""
STATUSES = {"resume": "paused", "start batch": "paused", "process": "pending", "retry": "stopped"}
"""The status of the batch that a procedure is for, where it is not being dialed."""
READ_COMMITTED_ALONE = {"opt out", "hold", "lift"}
PAIRS = [
    pair
    for pair in itertools.combinations_with_replacement(PROCEDURES, 2)
    if ALL or any(procedure in ENDS for procedure in pair)
]
MASKS = [
    (re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "id"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ][\d:.]+(\+00:00|\+00|Z)?"), "time"),
]


@pytest.fixture
def stage(db: TestDatabase) -> Iterator[Stage]:
    stage = Stage(db)
    yield stage
    stage.close()


def world(db: TestDatabase, status: str, pair: tuple[str, str]) -> dict[str, Any]:
    """A batch with contacts in every place, and what the procedures are given."""
    db.rows("delete from holds")
    db.rows("delete from agencies")
    agency = db.agency()
    calling = db.calling(agency)
    batch = db.batch(agency, retry_delay_seconds=0, **calling)
    db.contacts(batch, pending=7, failed=1)
    started, leased = (db.rows("select call_id, lease from claim_contacts(2, 60, %s)", batch) for _ in range(2))
    calls = [row["call_id"] for row in started]
    db.rows("select start_call(%s, %s, %s, 60)", batch, calls, started[0]["lease"])
    given = {
        "agency": agency,
        "batch": batch,
        "leased": [row["call_id"] for row in leased],
        "lease": leased[0]["lease"],
        "confirmed": db.named(calls, carrier_call_id="c"),
        "failed": db.named(calls, status="failed", outcome="busy"),
        "completed": db.named(calls, status="completed"),
        "data": json.dumps([{"phoneNumber": NUMBER}, {"phoneNumber": NEW_NUMBER}]),
        "contacts": json.dumps([{"phone_number": NUMBER}, {"phone_number": NEW_NUMBER}]),
        # A number that the batch has would have the opt-out wait for the batch.
        "number": NEW_NUMBER if {"add", "import", "start batch"}.intersection(pair) else NUMBER,
    }
    if "release" in pair:
        db.rows("update calls set lease_expires_at = clock_timestamp() where id = %s", given["leased"][0])
    if "import" in pair:
        given["import"] = db.value("select begin_import(%s, repeat('1', 64)) ->> 'import_id'", batch)
        given["rows"] = json.dumps([{"row": 2, "phone_number": NUMBER}, {"row": 3, "phone_number": NEW_NUMBER}])
    if status in ("paused", "stopped"):
        db.rows("select pause_batch(%s)" if status == "paused" else "select stop_batch(%s::text)", batch)
    elif status == "pending":
        db.rows("select pause_batch(%s)", batch)
        db.rows("update call_batches set status = 'pending' where id = %s", batch)
    if "lift" in pair:
        given["hold"] = db.value("select (hold_calls(whole_agency => true, agency_id => %s)).hold_id", agency)
    return given


def mask(found: Any) -> str:
    text = json.dumps(found, default=str, sort_keys=True)
    for pattern, word in MASKS:
        text = pattern.sub(word, text)
    return text


def state(db: TestDatabase) -> Any:
    """The rows at the end, without ids and times."""
    return db.rows("""
        select b.status::text, b.retry_of is not null as is_retry, b.total_contacts, b.queued, b.in_progress,
               b.completed, b.failed, b.skipped, private.is_held(b, now()) and b.status = 'processing' as is_held,
               b.skip_remaining,
               (select jsonb_agg(jsonb_build_array(c.phone_number, c.status, c.attempts, c.outcome, c.outcome_notes)
                                 order by c.phone_number, c.status, c.attempts)
                  from campaign_contacts c where c.batch_id = b.id) as contacts,
               (select jsonb_agg(jsonb_build_array(c.phone_number, k.status, k.outcome, k.hang_up, k.is_last)
                                 order by c.phone_number, k.status, k.outcome)
                  from calls k join campaign_contacts c on c.id = k.contact_id where k.batch_id = b.id) as calls,
               (select count(*) from do_not_call) as do_not_call,
               (select count(*) from holds h where private.is_active(h)) as holds
          from call_batches b order by b.retry_of is not null""")


def play(
    db: TestDatabase, stage: Stage, pair: tuple[str, str], status: str, schedule: tuple[int, ...], isolation: str
) -> tuple[list[Any], Any]:
    """The answers of both, and what a schedule ends in. The turns of a session are its call and its commit; at a
    stricter isolation after a look at the batches. A session that has no turn does nothing, and answers so."""
    given = world(db, status, pair)
    looks = [] if isolation == "read committed" else ["select from call_batches"]
    first, second = ([Step(query, given) for query in [*looks, PROCEDURES[name], "commit"]] for name in pair)
    stage.begin(isolation)
    stage.play((first, second), schedule)
    stage.end()
    answers = [
        script[-2].answer if turn in schedule else NOTHING[pair[turn]] for turn, script in enumerate((first, second))
    ]
    assert db.unbalanced() == []
    twice = "select contact_id from calls where status in ('queued', 'in_progress', 'unknown') group by 1"
    assert db.rows(f"{twice} having count(*) > 1") == []
    return answers, mask([answers, state(db)])


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_every_interleaving_ends_as_a_serial_order(db: TestDatabase, stage: Stage, pair: tuple[str, str]) -> None:
    own = next((STATUSES[procedure] for procedure in pair if procedure in STATUSES), "processing")
    isolations = ["read committed"]
    if ALL and READ_COMMITTED_ALONE.isdisjoint(pair):
        isolations.append("repeatable read")
    for status in ["processing", "paused", "pending", "stopped"] if ALL else [own]:
        for isolation in isolations:
            check(db, stage, pair, status, isolation)


def check(db: TestDatabase, stage: Stage, pair: tuple[str, str], status: str, isolation: str) -> None:
    turns = 2 if isolation == "read committed" else 3
    first, second = (0,) * turns, (1,) * turns
    orders = [first + second, second + first]
    # One that passes by may find the batch taken, and do nothing.
    orders += [(1 - turn,) * turns for turn, procedure in enumerate(pair) if procedure in NOTHING]
    allowed = {play(db, stage, pair, status, order, isolation)[1] for order in orders}
    for schedule in schedules(turns, turns):
        if schedule in orders:
            continue
        answers, found = play(db, stage, pair, status, schedule, isolation)
        story = f"{pair[0]} and {pair[1]}, {status}, {isolation}, turns {schedule}: {answers}"
        assert "40P01" not in answers, story
        if isolation == "repeatable read" and "40001" in answers:
            continue  # it did nothing, and says so
        assert found in allowed, f"{story}\n{found}\nis none of\n" + "\n".join(sorted(allowed))


MISTAKES = {
    "a gate that looks at the batch before it locks the batch": (
        ("start", "hold"),
        "start_call",
        "v_batch := private.lock_batch(p_agency_id, p_batch_id);",
        "select b.* into v_batch from public.call_batches b where b.agency_id = p_agency_id and b.id = p_batch_id;"
        " perform private.lock_batch(p_agency_id, p_batch_id);",
    ),
    "a resume that no hold keeps waiting": (
        ("resume", "hold"),
        "resume_batch",
        "perform private.admit_live(p_agency_id);",
        "",
    ),
    "an addition that no opt-out keeps waiting": (
        ("add", "opt out"),
        "add_contacts",
        "perform private.admit_contacts(p_agency_id);",
        "",
    ),
    "a result that does not lock the batch": (
        ("finish, failed", "cancel"),
        "finish_call",
        "v_batch := private.lock_batch(p_agency_id, p_batch_id);",
        "select b.* into v_batch from public.call_batches b where b.agency_id = p_agency_id and b.id = p_batch_id;",
    ),
}


@pytest.mark.own_database
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_procedure_is_found(db: TestDatabase, mistake: str) -> None:
    pair, procedure, right, wrong = MISTAKES[mistake]
    written = db.value(
        "select pg_get_functiondef(oid) from pg_proc where proname = %s and pronamespace = 'private'::regnamespace",
        procedure,
    )
    assert right in written
    db.owner.execute(written.replace(right, wrong).encode())
    stage = Stage(db)
    try:
        with pytest.raises(AssertionError, match="is none of"):
            check(db, stage, pair, STATUSES.get(pair[0], "processing"), "read committed")
    finally:
        stage.end()
        stage.close()
