"""Events of carriers are applied by the rules of the core, each event once, whatever way it came."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ..support.database import TestDatabase
from ..support.examples import examples, print_seed, seeded
from ..support.webhooks import Carrier, event, missed, process, process_all, queue

NO_CALL = ("ignored", "No such call")
OVER = ("ignored", "The call was over already")
DONE = ("completed", None)


def world(db: TestDatabase, number: int = 1, **columns: Any) -> tuple[Carrier, UUID, list[dict[str, Any]]]:
    """A carrier, a batch, and calls of it in progress."""
    carrier = Carrier(db, db.agency())
    batch = db.batch(carrier.agency, **columns)
    db.contacts(batch, pending=number)
    return carrier, batch, carrier.place(batch, number)


def call_row(db: TestDatabase, call: dict[str, Any]) -> dict[str, Any]:
    return db.row(
        "select status::text, outcome, duration_seconds, carrier_call_id from calls where id = %s", call["call_id"]
    )


def without_queue(db: TestDatabase) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(db.state())
    return {table: rows for table, rows in state.items() if table != "webhook_queue"}


# Effects of events


@pytest.mark.parametrize("event_type", ["call.started", "call.joined"])
@pytest.mark.parametrize("status", ["in_progress", "unknown"])
def test_started_and_joined_confirm_the_call(db: TestDatabase, event_type: str, status: str) -> None:
    carrier, batch, (call,) = world(db)
    if status == "unknown":
        db.finish_calls(batch, [call["call_id"]], "unknown")
    carrier.tell(event(event_type, call))
    assert process(db) == {"processed": 1, "failed": 0}
    assert call_row(db, call)["status"] == "in_progress"
    assert call_row(db, call)["carrier_call_id"] == f"carrier-{call['call_id']}"
    assert queue(db) == [DONE]


def test_the_end_of_a_call_that_was_answered_completes_it_with_its_duration(db: TestDatabase) -> None:
    carrier, batch, (call,) = world(db)
    carrier.tell(event("call.ended", call))
    assert process(db) == {"processed": 1, "failed": 0}
    assert call_row(db, call) == {
        "status": "completed",
        "outcome": "answered",
        "duration_seconds": 145,
        "carrier_call_id": f"carrier-{call['call_id']}",
    }
    contact = db.row("select status::text, outcome, duration_seconds from campaign_contacts")
    assert contact == {"status": "completed", "outcome": "answered", "duration_seconds": 145}
    assert db.batch_row(batch)["completed"] == 1


@pytest.mark.parametrize(
    ("joined", "ended", "seconds"),
    [("2025-01-15T10:30:00Z", None, None), ("soon", "2025-01-15T10:30:00Z", None), ("2025-01-15T10:30:00Z", "", None),
     ("2025-01-15T10:30:00Z", "2025-06-31T10:30:00Z", None), ("2025-01-15T10:30:00Z", "2025-01-15T10:29:00Z", 0),
     ("2025-01-15T10:30:00+02:00", "2025-01-15T08:30:09", 9)],
)  # fmt: skip
def test_a_call_was_answered_whatever_its_times_are_worth(
    db: TestDatabase, joined: str, ended: str | None, seconds: int | None
) -> None:
    carrier, _, (call,) = world(db)
    carrier.tell(event("call.ended", call, joined=joined, ended=ended))
    assert process(db) == {"processed": 1, "failed": 0}
    row = call_row(db, call)
    assert (row["status"], row["outcome"], row["duration_seconds"]) == ("completed", "answered", seconds)


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [("unjoined", "no_answer"), ("hangup", "hangup"), ("agent_hangup", "agent_hangup"), ("timeout", "timeout"),
     ("connection_error", "connection_error"), ("system_error", "system_error"), (None, "unknown"), ("", "unknown"),
     ("x" * 99, "x" * 50)],
)  # fmt: skip
def test_the_end_of_a_call_that_nobody_joined_is_a_failure_by_its_reason(
    db: TestDatabase, reason: str | None, outcome: str
) -> None:
    carrier, batch, (call,) = world(db)
    db.rows("update campaign_contacts set max_attempts = 1")
    carrier.tell(missed(call, reason))
    assert process(db) == {"processed": 1, "failed": 0}
    row = call_row(db, call)
    assert (row["status"], row["outcome"], row["duration_seconds"]) == ("failed", outcome, None)
    assert db.batch_row(batch)["failed"] == 1


def test_a_failed_call_obeys_the_retry_rules_of_its_batch(db: TestDatabase) -> None:
    carrier, batch, calls = world(db, 2, retry_outcomes=["no_answer"], retry_delay_seconds=0)
    carrier.tell(missed(calls[0]), missed(calls[1], "system_error"))
    process(db)
    assert db.statuses(batch) == {"scheduled": 1, "failed": 1}
    assert [call["contact_id"] for call in carrier.place(batch, 10)] == [calls[0]["contact_id"]]


# Which call is meant


def test_ids_of_the_metadata_may_be_strings(db: TestDatabase) -> None:
    carrier, batch, (call,) = world(db)
    metadata = {"batch_id": str(batch).upper(), "call_id": str(call["call_id"]), "lease": str(call["lease"]).upper()}
    carrier.tell(event("call.ended", metadata=metadata))
    process(db)
    assert queue(db) == [DONE]


def test_an_event_with_a_lease_is_about_the_call_of_that_lease_or_about_none(db: TestDatabase) -> None:
    carrier, batch, (call,) = world(db)
    db.confirm_calls(batch, [call["call_id"]], "theirs")
    named = {"batch_id": str(batch), "call_id": call["call_id"], "contact_id": call["contact_id"]}
    for number, lease in enumerate((str(uuid4()), "", "none", 0, [])):
        carrier.tell(event("call.ended", callId="theirs", metadata={**named, "lease": lease}))
        db.rows("update webhook_queue set event_id = %s where event_id = 'theirs call.ended'", str(number))
    carrier.tell(event("call.ended", callId="theirs", metadata={**named, "lease": str(call["lease"])}))
    process(db)
    assert queue(db) == [NO_CALL] * 5 + [DONE]


def test_an_event_with_an_id_and_no_lease_is_about_no_call_that_has_a_lease(db: TestDatabase) -> None:
    carrier, batch, (call,) = world(db)
    named = {"batch_id": str(batch), "call_id": call["call_id"], "contact_id": call["contact_id"]}
    carrier.tell(event("call.ended", metadata=named))
    process(db)
    assert queue(db) == [NO_CALL]


def test_a_call_that_was_claimed_before_leases_had_names_is_found_and_ended_without_one(db: TestDatabase) -> None:
    carrier, batch, calls = world(db, 2)
    db.rows("update calls set lease = null, started_at = started_at - interval '301 seconds'")
    assert [row["lease"] for row in db.rows("select lease from list_open_calls()")] == [None, None]
    carrier.tell(event("call.ended", metadata={"batch_id": str(batch), "call_id": calls[0]["call_id"]}))
    process(db)
    assert queue(db) == [DONE]
    assert db.finish_calls(batch, [calls[1]["call_id"]], "completed") == [calls[1]["call_id"]]
    assert db.statuses(batch) == {"completed": 2}


def test_a_contact_alone_means_its_latest_call(db: TestDatabase) -> None:
    carrier, batch, (first,) = world(db, retry_delay_seconds=0)
    metadata = {"batch_id": str(batch), "contact_id": first["contact_id"]}
    carrier.tell(missed(first, metadata=metadata))
    process(db)
    (second,) = carrier.place(batch)
    # The first call's end once more, as another event, and then the second call's.
    carrier.tell(event("call.joined", first, metadata=metadata), event("call.ended", second, metadata=metadata))
    process(db)
    assert queue(db) == [DONE, OVER, DONE]
    assert [call_row(db, call)["status"] for call in (first, second)] == ["failed", "completed"]


@pytest.mark.parametrize("metadata", [None, {}, [], "x", {"batch_id": "x", "call_id": "y"}, {"call_id": 1}])
def test_without_our_ids_the_carriers_own_id_tells_the_call(db: TestDatabase, metadata: Any) -> None:
    carrier, batch, (call,) = world(db)
    db.confirm_calls(batch, [call["call_id"]], "theirs")
    carrier.tell(event("call.ended", callId="theirs", metadata=metadata))
    process(db)
    assert queue(db) == [DONE]


def test_an_event_may_come_before_the_dialer_confirms_its_call(db: TestDatabase) -> None:
    carrier, batch, (call,) = world(db)
    carrier.tell(event("call.ended", call))
    process(db)
    assert db.confirm_calls(batch, [call["call_id"]], f"carrier-{call['call_id']}") == []
    assert call_row(db, call)["status"] == "completed"


def test_an_event_of_another_call_of_the_carrier_does_not_end_this_one(db: TestDatabase) -> None:
    carrier, _, (call,) = world(db)
    carrier.tell(event("call.started", call), event("call.ended", call, callId="another"))
    process_all(db)
    carrier.tell(event("call.joined", call, callId="another"), event("call.ended", call, callId="yet another"))
    process_all(db)
    assert queue(db) == [DONE] + [NO_CALL] * 3
    assert call_row(db, call)["status"] == "in_progress"


def test_an_event_of_no_call_of_the_agency_is_ignored_and_changes_nothing(db: TestDatabase) -> None:
    carrier, batch, (call,) = world(db)
    other = Carrier(db, db.agency("Other"))
    theirs = db.batch(other.agency)
    db.contacts(theirs, pending=2)
    (their_call,) = other.place(theirs)
    (lease,) = db.rows("select batch_id, call_id, lease, contact_id from claim_contacts(1, 60, %s)", theirs)
    db.confirm_calls(theirs, [their_call["call_id"]], "theirs")
    before = without_queue(db)
    metadata = {"batch_id": str(batch)}
    carrier.tell(
        event("call.ended", their_call),  # another agency's ids
        event("call.ended", callId="theirs"),
        event("call.ended", callId="a", metadata={"batch_id": str(theirs), "contact_id": their_call["contact_id"]}),
        event("call.ended", callId="b", metadata={"batch_id": str(batch), "call_id": their_call["call_id"]}),
        event("call.ended", callId="c", metadata={**metadata, "call_id": 10**17}),  # unknown ones
        event("call.ended", callId="d", metadata={**metadata, "call_id": 10**30}),
        event("call.ended", callId="e", metadata={**metadata, "contact_id": -1}),
        event("call.ended", callId="f", metadata={"batch_id": str(uuid4()), "call_id": call["call_id"]}),
        event("call.ended", callId="g"),
    )
    other.tell(event("call.ended", lease))  # never let through
    assert process_all(db) == {"processed": 10, "failed": 0}
    assert queue(db) == [NO_CALL] * 10
    assert without_queue(db) == before


def test_an_event_of_a_deleted_batch_is_ignored(db: TestDatabase) -> None:
    carrier, batch, (call,) = world(db)
    carrier.tell(event("call.ended", call))
    db.rows("delete from call_batches where id = %s", batch)
    process(db)
    assert queue(db) == [NO_CALL]


def test_an_event_of_a_contact_that_was_skipped_brings_nothing_back(db: TestDatabase) -> None:
    carrier, batch, _ = world(db)
    db.contacts(batch, pending=1)
    db.rows("select cancel_batch(%s)", batch)
    skipped = db.value("select id from campaign_contacts where status = 'skipped'")
    before = without_queue(db)
    carrier.tell(event("call.ended", metadata={"batch_id": str(batch), "contact_id": skipped}))
    process(db)
    assert queue(db) == [NO_CALL]
    assert without_queue(db) == before


# Late, twice, out of order


def test_the_first_of_two_ends_counts(db: TestDatabase) -> None:
    carrier, batch, calls = world(db, 2)
    for call in calls:  # in one run, and in two
        carrier.tell(event("call.ended", call))
        carrier.db.rows("update webhook_queue set event_id = event_id || ' first'")
    process_all(db)
    carrier.tell(missed(calls[0]), missed(calls[1]))
    process_all(db)
    assert queue(db) == [DONE, DONE, OVER, OVER]
    assert db.statuses(batch) == {"completed": 2}


def test_the_first_of_two_ends_in_one_run_counts(db: TestDatabase) -> None:
    carrier, batch, (call,) = world(db)
    carrier.tell(event("call.ended", call))
    db.rows("update webhook_queue set event_id = 'first'")
    carrier.tell(missed(call))
    assert process(db) == {"processed": 2, "failed": 0}
    assert queue(db) == [DONE, OVER]
    assert db.statuses(batch) == {"completed": 1}


def test_an_event_after_the_end_is_ignored(db: TestDatabase) -> None:
    carrier, batch, (call,) = world(db)
    carrier.tell(event("call.ended", call))
    process(db)
    before = without_queue(db)
    carrier.tell(event("call.started", call), event("call.joined", call))
    process(db)
    assert queue(db) == [DONE, OVER, OVER]
    assert without_queue(db) == before
    assert db.statuses(batch) == {"completed": 1}


def test_a_call_that_was_in_progress_at_the_cancel_ends_with_its_result_and_nothing_comes_back(
    db: TestDatabase,
) -> None:
    carrier, batch, calls = world(db, 2, retry_delay_seconds=0)
    db.contacts(batch, pending=3)
    db.rows("select cancel_batch(%s)", batch)
    carrier.tell(event("call.ended", calls[0]), missed(calls[1]))
    process(db)
    assert queue(db) == [DONE, DONE]
    assert db.statuses(batch) == {"completed": 1, "failed": 1, "skipped": 3}
    assert carrier.place(batch, 10) == []


def test_an_event_that_is_years_late_counts_if_the_call_is_still_open(db: TestDatabase) -> None:
    carrier, _, calls = world(db, 2)
    db.rows("update calls set started_at = started_at - interval '3 years'")
    carrier.tell(event("call.ended", calls[0], created="2015-01-01T00:00:00Z"))
    process(db)
    carrier.tell(event("call.joined", calls[0]))
    process(db)
    assert queue(db) == [DONE, OVER]
    assert [call_row(db, call)["status"] for call in calls] == ["completed", "in_progress"]


@pytest.mark.parametrize("at_once", [True, False])
def test_any_order_and_repetition_of_the_same_events_gives_the_same_books(db: TestDatabase, at_once: bool) -> None:
    carrier = Carrier(db, db.agency())
    told = [(number, event_type) for number in range(3) for event_type in ("call.started", "call.joined", "call.ended")]
    endings = [
        {"joined": "2025-01-15T10:30:00Z", "ended": "2025-01-15T10:31:00Z"},
        {"joined": None, "endReason": "unjoined"},
        {"joined": None, "endReason": "system_error"},
    ]
    books: list[Any] = []

    @seeded
    @examples(40)
    @given(order=st.permutations(told), again=st.lists(st.sampled_from(told), max_size=6), run=st.integers(1, 9))
    def check(order: list[tuple[int, str]], again: list[tuple[int, str]], run: int) -> None:
        db.rows("delete from call_batches")
        batch = db.batch(carrier.agency, retry_outcomes=["no_answer"])
        db.contacts(batch, pending=3)
        calls = carrier.place(batch, 3)
        for i, (number, event_type) in enumerate(order + again):
            fields = endings[number] if event_type == "call.ended" else {}
            carrier.tell(event(event_type, calls[number], **fields))
            if not at_once and i % run == 0:
                process(db)
        process_all(db)
        assert db.unbalanced() == []
        assert db.value("select count(*) from webhook_queue where status not in ('completed', 'ignored')") == 0
        books.append(
            db.rows(
                "select k.status::text, k.outcome, k.duration_seconds, k.carrier_call_id = 'carrier-' || k.id as known,"
                " c.status::text as contact, c.outcome as its_outcome, c.attempts from calls k"
                " join campaign_contacts c on c.id = k.contact_id where k.batch_id = %s order by k.id",
                batch,
            )
        )
        assert books[-1] == books[0]

    print_seed()
    check()
    assert [(row["status"], row["contact"]) for row in books[0]] == [
        ("completed", "completed"),
        ("failed", "scheduled"),
        ("failed", "failed"),
    ]


# Events that cannot be applied


def poison(db: TestDatabase, call: dict[str, Any]) -> None:
    """Make whatever changes this call fail."""
    db.rows(
        "create or replace function poison() returns trigger language plpgsql as"
        " $$ begin raise exception 'poisoned'; end $$"
    )
    db.rows(
        f"create trigger poison before update on calls for each row when (old.id = {call['call_id']})"
        " execute function poison()"
    )


@pytest.mark.own_database
def test_a_batch_that_is_poisoned_fails_alone_and_then_only_its_poisonous_event(db: TestDatabase) -> None:
    carrier, batch, calls = world(db, 3)
    other = db.batch(carrier.agency)
    db.contacts(other, pending=1)
    poison(db, calls[1])
    carrier.tell(*(event("call.ended", call) for call in (*calls, *carrier.place(other))))
    assert process_all(db) == {"processed": 1, "failed": 3}
    assert queue(db) == [("failed", "poisoned")] * 3 + [DONE]
    assert db.statuses(batch) == {"in_progress": 3}

    assert process(db) == {"processed": 0}  # not before its time
    db.rows("update webhook_queue set next_retry_at = now() where next_retry_at is not null")
    assert process_all(db) == {"processed": 2, "failed": 1}
    assert queue(db) == [DONE, ("failed", "poisoned"), DONE, DONE]
    assert db.statuses(batch) == {"completed": 2, "in_progress": 1}
    row = db.row("select attempts, status::text from webhook_queue where status = 'failed'")
    assert row == {"attempts": 2, "status": "failed"}


@pytest.mark.own_database
def test_tries_are_ever_farther_apart_until_the_event_is_dead(db: TestDatabase) -> None:
    carrier, _, (call,) = world(db)
    poison(db, call)
    carrier.tell(event("call.ended", call))
    waits = []
    for _ in range(5):
        assert process(db) == {"processed": 0, "failed": 1}
        waits.append(db.value("select extract(epoch from next_retry_at - processed_at)::int from webhook_queue"))
        db.rows("update webhook_queue set next_retry_at = now() where next_retry_at is not null")
    assert waits == [30, 120, 480, 1920, None]
    assert queue(db) == [("dead", "poisoned")]
    assert process(db) == {"processed": 0}


@pytest.mark.own_database
def test_a_replay_has_dead_events_applied_and_can_be_repeated(db: TestDatabase) -> None:
    carrier, batch, calls = world(db, 2)
    poison(db, calls[1])
    carrier.tell(event("call.ended", calls[1]))
    db.rows("update webhook_queue set max_attempts = 1")
    process_all(db)
    carrier.tell(event("call.ended", calls[0]))
    process_all(db)
    (dead,) = db.rows("select id, agency_id, event_id, error_message from list_dead_webhooks()")
    assert (dead["agency_id"], dead["error_message"]) == (carrier.agency, "poisoned")

    db.rows("drop trigger poison on calls")
    assert db.value("select replay_webhooks(ids => %s)", [dead["id"] + 1]) == 0
    assert db.value("select replay_webhooks(ids => %s)", [dead["id"]]) == 1
    assert db.value("select replay_webhooks(%s)", carrier.agency) == 0
    assert db.row("select attempts, error_message, processed_at from webhook_queue where status = 'pending'") == {
        "attempts": 0,
        "error_message": None,
        "processed_at": None,
    }
    process_all(db)
    assert db.value("select replay_webhooks(%s)", carrier.agency) == 0
    assert db.statuses(batch) == {"completed": 2}
    assert db.rows("select * from list_dead_webhooks(%s)", carrier.agency) == []


def test_owners_and_admins_look_at_and_replay_the_dead_events_of_their_own_agency(db: TestDatabase) -> None:
    agency, other = db.agency(), db.agency("Other")
    for place in (agency, other):
        carrier = Carrier(db, place)
        carrier.tell(event("call.ended"))
    db.rows("update webhook_queue set status = 'dead', next_retry_at = null")
    ids = [row["id"] for row in db.rows("select id from webhook_queue order by id")]
    with db.as_user(db.user(agency, "agency_admin")) as admin:
        seen = admin.execute("select agency_id from webhook_queue where status = 'dead'").fetchall()
        assert seen == admin.execute("select agency_id from list_dead_webhooks()").fetchall() == [{"agency_id": agency}]
        for call in ("list_dead_webhooks(%s)", "replay_webhooks(%s)"):
            with pytest.raises(psycopg.Error) as refused:
                admin.execute(f"select {call}".encode(), [other])
            assert refused.value.sqlstate == "PT404"
        assert admin.execute("select replay_webhooks(ids => %s) as n", [ids]).fetchone() == {"n": 1}
    with db.as_user(db.user(agency, "agency_member")) as member:
        for call in ("list_dead_webhooks()", "replay_webhooks()"):
            with pytest.raises(psycopg.Error) as refused:
                member.execute(f"select {call}".encode())
            assert refused.value.sqlstate == "PT403"
    assert [status for status, _ in queue(db)] == ["pending", "dead"]


# Runs


def test_a_run_takes_so_many_events_and_the_oldest_first(db: TestDatabase) -> None:
    carrier, batch, calls = world(db, 5)
    carrier.tell(*(event("call.ended", call) for call in calls))
    assert process(db, max_events=3) == {"processed": 3, "failed": 0}
    assert queue(db) == [DONE] * 3 + [("pending", None)] * 2
    assert process(db) == {"processed": 2, "failed": 0}
    assert process(db) == {"processed": 0}
    assert db.statuses(batch) == {"completed": 5}


@pytest.mark.own_database
def test_a_group_of_events_changes_its_batch_once(db: TestDatabase) -> None:
    carrier, batch, calls = world(db, 20)
    carrier.tell(*(event(kind, call) for call in calls for kind in ("call.started", "call.ended")))
    db.rows("create table changes (n integer)")
    db.rows(
        "create function note() returns trigger language plpgsql as"
        " $$ begin insert into public.changes values (1); return null; end $$"
    )
    db.rows("create trigger note after update on call_batches for each row execute function note()")
    assert process(db) == {"processed": 40, "failed": 0}
    assert db.value("select count(*) from changes") == 1
    assert db.batch_row(batch)["completed"] == 20


def test_a_batch_that_is_held_is_put_off_without_counting_as_an_attempt(db: TestDatabase) -> None:
    carrier, batch, (call,) = world(db)
    other = db.batch(carrier.agency)
    db.contacts(other, pending=1)
    carrier.tell(event("call.ended", call), event("call.ended", *carrier.place(other)))
    with db.connect() as holder, holder.transaction():
        holder.execute("select cancel_batch(%s)", [batch])
        assert process(db, max_events=1) == {"processed": 0}
        # Nor does it stand in front of the others.
        assert process(db, max_events=1) == {"processed": 1, "failed": 0}
    row = db.row(
        "select status::text, attempts, next_retry_at >= created_at + interval '1 second' as is_put_off"
        " from webhook_queue order by id limit 1"
    )
    assert row == {"status": "pending", "attempts": 0, "is_put_off": True}
    db.rows("update webhook_queue set next_retry_at = now() where next_retry_at is not null")
    assert process(db) == {"processed": 1, "failed": 0}
    assert queue(db) == [DONE, DONE]
    assert db.statuses(batch) == {"completed": 1}


@pytest.mark.own_database
def test_a_run_that_takes_long_begins_no_further_batch(db: TestDatabase) -> None:
    """So that nobody waits long for the batches that it holds."""
    carrier = Carrier(db, db.agency())
    batches = [db.batch(carrier.agency) for _ in range(3)]
    for batch in batches:
        db.contacts(batch, pending=1)
        carrier.tell(event("call.ended", *carrier.place(batch)))
    db.rows(
        "create function linger() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(0.25); return null; end $$"
    )
    db.rows("create trigger linger after update on call_batches for each row execute function linger()")
    assert [process(db) for _ in range(4)] == [{"processed": 1, "failed": 0}] * 3 + [{"processed": 0}]


@pytest.mark.own_database
def test_a_run_applies_something_however_long_it_looks_for_calls(db: TestDatabase) -> None:
    carrier, _, (call,) = world(db)
    carrier.tell(event("call.ended", call))
    db.rows("alter function private.find_webhook_call rename to find_at_once")
    db.rows(
        "create function private.find_webhook_call(uuid, jsonb) returns public.calls language sql as"
        " $$ select private.find_at_once($1, $2) from pg_sleep(0.25) $$"
    )
    assert process(db) == {"processed": 1, "failed": 0}


def test_applied_events_can_be_purged_in_portions(db: TestDatabase) -> None:
    carrier, _, calls = world(db, 3)
    carrier.tell(*(event("call.ended", call) for call in calls), event("call.ended", callId="no-call"))
    process_all(db)
    carrier.tell(event("call.started", calls[0]), event("call.joined", calls[0]))
    db.rows("update webhook_queue set status = 'dead', next_retry_at = null where event_type = 'call.started'")
    assert db.value("select purge_webhook_queue('1 hour')") == 0
    db.rows("update webhook_queue set processed_at = now() - interval '31 days'")
    assert [db.value("select purge_webhook_queue(max_rows => 3)") for _ in range(3)] == [3, 1, 0]
    assert [status for status, _ in queue(db)] == ["dead", "pending"]


@pytest.mark.parametrize(
    "call",
    ["process_webhook_queue(0)", "process_webhook_queue(10001)", "process_webhook_queue(null)",
     "purge_webhook_queue('59 minutes')", "purge_webhook_queue(null)", "purge_webhook_queue('1 day', 0)",
     "purge_webhook_queue('1 day', 100001)", "purge_webhook_queue('1 day', null)", "replay_webhooks()",
     "list_dead_webhooks(max_events => 0)", "list_dead_webhooks(max_events => 1001)",
     "list_dead_webhooks(max_events => null)"],
)  # fmt: skip
def test_numbers_out_of_range_are_refused_with_pt400(db: TestDatabase, call: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        db.rows(f"select {call}")
    assert refused.value.sqlstate == "PT400"
