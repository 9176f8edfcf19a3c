"""Which calls the carrier is asked about, when something can be claimed next, and attempts that were none."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from ..support.database import TestDatabase


def age(db: TestDatabase, seconds: int, calls: list[int]) -> None:
    db.rows("update calls set started_at = started_at - make_interval(secs => %s) where id = any (%s)", seconds, calls)


def listed(db: TestDatabase, older_than: int = 300, most: int = 100) -> list[int]:
    return [row["call_id"] for row in db.rows("select call_id from list_open_calls(%s, %s)", older_than, most)]


def test_unknown_calls_and_those_in_progress_for_long_are_listed(db: TestDatabase) -> None:
    batch, (unknown, old, _young, over) = db.in_progress(4)
    db.finish_calls(batch, [unknown], "unknown")
    age(db, 301, [old, over])
    db.finish_calls(batch, [over], "completed")
    db.confirm_calls(batch, [old], "c-1")
    at_least = db.value("select extract(epoch from clock_timestamp() - started_at) from calls where id = %s", old)
    rows = {row["call_id"]: row for row in db.rows("select * from list_open_calls()")}
    at_most = db.value("select extract(epoch from clock_timestamp() - started_at) from calls where id = %s", old)
    assert rows.keys() == {unknown, old}
    assert rows[old]["lease"] == db.lease(old)
    assert (rows[old]["batch_id"], rows[old]["status"], rows[old]["carrier_call_id"]) == (batch, "in_progress", "c-1")
    assert at_least <= rows[old]["age_seconds"] <= at_most
    assert (rows[unknown]["status"], rows[unknown]["carrier_call_id"]) == ("unknown", None)


def test_a_call_that_lasts_longer_than_its_agent_allows_is_listed_before(db: TestDatabase) -> None:
    _, calls = db.in_progress(1)
    db.rows("update agent_mappings set max_duration_seconds = 3600")
    age(db, 1800, calls)
    assert listed(db, older_than=86_400) == []
    age(db, 1801, calls)
    assert listed(db, older_than=86_400) == calls


def test_every_call_has_its_turn_however_many_there_are(db: TestDatabase) -> None:
    (_, first), (_, second) = db.in_progress(5), db.in_progress(5)
    age(db, 400, first)
    age(db, 500, second)
    turns = [listed(db, most=4) for _ in range(4)]
    assert [len(turn) for turn in turns] == [4, 4, 2, 0]
    assert set(turns[0]) < set(second)  # the oldest first
    assert sorted(call for turn in turns for call in turn) == sorted(first + second)
    db.rows("update calls set checked_at = checked_at - interval '301 seconds'")
    assert listed(db, most=4) == turns[0]


def test_two_who_ask_at_once_get_different_calls_and_neither_waits(db: TestDatabase) -> None:
    _, calls = db.in_progress(6)
    age(db, 301, calls)
    with db.connect() as other, other.transaction():
        theirs = [row["call_id"] for row in other.execute("select call_id from list_open_calls(300, 3)")]
        assert sorted([*theirs, *listed(db)]) == calls


@pytest.mark.parametrize("over", ["cancel_batch(%s)", "stop_batch(%s::text)", "pause_batch(%s)"])
def test_calls_of_a_batch_that_is_not_dialed_any_more_are_listed_too(db: TestDatabase, over: str) -> None:
    batch, calls = db.in_progress(1)
    db.rows(f"select {over}", batch)
    age(db, 301, calls)
    assert listed(db) == calls


def test_a_batch_that_somebody_holds_keeps_nobody_from_asking(db: TestDatabase) -> None:
    batch, calls = db.in_progress(1)
    age(db, 301, calls)
    with db.connect() as other, other.transaction():
        other.execute("select from call_batches where id = %s for no key update", [batch])
        assert listed(db) == calls


@pytest.mark.own_database
@pytest.mark.parametrize("procedure", ["list_open_calls", "list_calls_to_end"])
def test_only_the_open_calls_are_read(db: TestDatabase, procedure: str) -> None:
    batch, calls = db.in_progress(10)
    age(db, 301, calls)
    db.rows("select cancel_batch(%s, end_calls => true)", batch)
    db.rows(
        "insert into calls (agency_id, batch_id, contact_id, attempt, status, lease_expires_at, started_at)"
        " select b.agency_id, b.id, i, 1, 'completed', now(), now() - interval '1 hour'"
        "   from call_batches b, generate_series(1001, 6000) i where b.id = %s",
        batch,
    )
    db.rows("analyze calls")
    with db.connect() as connection:
        read = "select seq_tup_read + idx_tup_fetch as n from pg_stat_user_tables where relname = 'calls'"
        connection.execute("select pg_stat_force_next_flush()")
        db.rows("select pg_stat_force_next_flush()")
        before = db.value(read)
        assert len(connection.execute(f"select * from {procedure}()").fetchall()) == 10
        connection.execute("select pg_stat_force_next_flush()")
        connection.execute("select 1")
    assert db.value(read) - before <= 50


@pytest.mark.parametrize("arguments", [(0, 10), (86_401, 10), (300, 0), (300, 1001), (None, 10), (300, None)])
def test_numbers_out_of_range_are_refused_with_pt400(db: TestDatabase, arguments: tuple[Any, Any]) -> None:
    with pytest.raises(psycopg.Error) as refused:
        db.rows("select list_open_calls(%s, %s)", *arguments)
    assert refused.value.sqlstate == "PT400"


def test_when_something_can_be_claimed_next(db: TestDatabase) -> None:
    def next_claim_in() -> float | None:
        seconds: float | None = db.value("select next_claim_in()")
        return seconds

    assert next_claim_in() is None
    agency = db.agency()
    waiting = db.batch(agency, status="scheduled")
    db.contacts(waiting, pending=1)
    assert next_claim_in() is None
    batch = db.batch(agency, max_concurrent=2)
    db.contacts(batch, pending=3)
    assert next_claim_in() == 0
    db.rows("select claim_contacts(2)")
    assert next_claim_in() is None  # until a call ends
    db.rows("update call_batches set max_concurrent = 10, calls_per_minute = 2 where id = %s", batch)
    db.rows("select claim_contacts(2)")
    left = "select extract(epoch from min(created_at) + interval '1 minute' - clock_timestamp()) from calls"
    at_most = db.value(left)
    seconds = next_claim_in()
    assert seconds is not None
    assert db.value(left) <= seconds <= at_most


def test_an_attempt_that_was_none_is_not_counted_and_comes_back_whatever_the_outcome(db: TestDatabase) -> None:
    batch, calls = db.in_progress(1, retry_outcomes=["busy"])
    db.rows("update campaign_contacts set max_attempts = 1")
    db.finish_calls(batch, calls, "failed", outcome="carrier_unavailable", counted=False)
    row = db.row("select status::text, attempts, due_at > now() as waits from campaign_contacts")
    assert row == {"status": "scheduled", "attempts": 0, "waits": True}


@pytest.mark.parametrize("over", ["cancel_batch(%s)", "stop_batch(%s::text, skip_remaining => true)"])
def test_an_attempt_that_was_none_does_not_come_back_in_a_batch_that_is_over(db: TestDatabase, over: str) -> None:
    batch, calls = db.in_progress(1)
    db.rows(f"select {over}", batch)
    db.finish_calls(batch, calls, "failed", outcome="carrier_unavailable", counted=False)
    assert db.statuses(batch) == {"failed": 1}


def test_only_a_failed_call_can_have_been_no_attempt(db: TestDatabase) -> None:
    batch, calls = db.in_progress(1)
    db.finish_calls(batch, calls, "completed", counted=False)
    assert db.row("select status::text, attempts from campaign_contacts") == {"status": "completed", "attempts": 1}
    with pytest.raises(psycopg.Error) as refused:
        db.finish_calls(batch, calls, "failed", counted="no")
    assert refused.value.sqlstate == "PT400"


@pytest.mark.parametrize(
    ("confirmed", "asked", "call", "contact"),
    [
        (None, None, ("failed", "not_placed"), "scheduled"),
        ("c-1", "c-1", ("completed", "lost"), "completed"),
        # It came to the carrier after the dialer had asked: the answer says nothing of it.
        ("c-1", None, ("in_progress", None), "in_progress"),
    ],
)
def test_a_call_that_the_carrier_does_not_have_was_not_placed_unless_it_had_it(
    db: TestDatabase, confirmed: str | None, asked: str | None, call: tuple[str, str | None], contact: str
) -> None:
    batch, calls = db.in_progress(1)
    if confirmed is not None:
        db.confirm_calls(batch, calls, confirmed)
    db.finish_calls(batch, calls, "missing", carrier_call_id=asked)
    row = db.row("select status::text, outcome from calls")
    assert (row["status"], row["outcome"]) == call
    assert db.statuses(batch) == {contact: 1}
