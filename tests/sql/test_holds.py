"""hold_calls holds the batches of a scope until the hold is lifted or ends; lift_hold and list_holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from ..support.database import TestDatabase

NUMBER = "+15551234567"
ANOTHER = "+15551234568"
SCOPES = ("campaign", "agent", "caller_number", "one_of_the_caller_numbers", "agency", "everything")
STATUSES = ("pending", "scheduled", "paused", "stopped")


@dataclass
class World:
    """An agency with a batch in each scope's reach and one that only the two widest reach, and another agency's."""

    agency: UUID
    owner: UUID
    calling: dict[str, Any]
    settings: dict[str, Any]
    inside: UUID
    outside: UUID
    theirs: UUID


@pytest.fixture
def world(db: TestDatabase) -> World:
    agency = db.agency()
    owner = db.user(agency)
    calling = db.calling(agency)
    settings = {
        "agent_mapping_id": calling["agent_mapping_id"],
        "campaign_id": calling["campaign_id"],
        "from_number": NUMBER,
        "calling_numbers": [NUMBER, ANOTHER],
    }
    inside, outside = db.batch(agency, owner, **settings), db.batch(agency, owner, from_number="+15551234599")
    theirs = db.batch(db.agency("Other"), from_number=NUMBER)
    for batch in (inside, outside, theirs):
        db.contacts(batch, pending=20)
    return World(agency, owner, calling, settings, inside, outside, theirs)


def scope(w: World, name: str) -> dict[str, Any]:
    """The arguments of a hold of this scope."""
    found: dict[str, Any] = {
        "campaign": {"campaign_id": w.calling["campaign_id"]},
        "agent": {"agent_mapping_id": w.calling["agent_mapping_id"]},
        "caller_number": {"from_number": NUMBER},
        "one_of_the_caller_numbers": {"from_number": ANOTHER},
        "agency": {"whole_agency": True},
        "everything": {"everything": True},
    }[name]
    return found if name == "everything" else {**found, "agency_id": w.agency}


def call(connection: Any, procedure: str, **arguments: Any) -> dict[str, Any]:
    names = ", ".join(f"{name} => %({name})s" for name in arguments)
    row = connection.execute(f"select * from {procedure}({names})", arguments).fetchone()
    return dict(row)


def hold(db: TestDatabase, **arguments: Any) -> dict[str, Any]:
    """Hold calls at the console."""
    return call(db.owner, "hold_calls", **arguments)


def lift(db: TestDatabase, held: dict[str, Any]) -> dict[str, Any]:
    return call(db.owner, "lift_hold", hold_id=held["hold_id"])


def refusal(db: TestDatabase, caller: UUID, procedure: str, **arguments: Any) -> tuple[str | None, str]:
    """The sqlstate and code with which a user is refused, nothing being changed."""
    before = db.state()
    with db.as_user(caller) as connection, pytest.raises(psycopg.Error) as refused:
        call(connection, procedure, **arguments)
    assert db.state() == before
    return refused.value.sqlstate, json.loads(refused.value.diag.message_detail or "{}").get("code")


def is_held(db: TestDatabase, batch: UUID) -> bool:
    held: bool = db.value("select private.is_held(b, now()) from call_batches b where id = %s", batch)
    return held


def claimed(db: TestDatabase, batch: UUID) -> int:
    return len(db.rows("select call_id from claim_contacts(5, 60, %s)", batch))


def reached(w: World, name: str) -> set[UUID]:
    return {
        "agency": {w.inside, w.outside},
        "everything": {w.inside, w.outside, w.theirs},
    }.get(name, {w.inside})


# The batches that a hold reaches.


@pytest.mark.parametrize("name", SCOPES)
def test_a_hold_reaches_the_batches_of_its_scope_and_no_other(db: TestDatabase, world: World, name: str) -> None:
    answer = hold(db, **scope(world, name), reason="wrong price")
    shown = "caller_number" if name == "one_of_the_caller_numbers" else name
    assert (answer["success"], answer["scope"], answer["until"], answer["dry_run"]) == (True, shown, None, False)
    held = {batch for batch in (world.inside, world.outside, world.theirs) if is_held(db, batch)}
    assert held == reached(world, name)
    assert answer["batches"] == len(held)
    for batch in (world.inside, world.outside, world.theirs):
        assert claimed(db, batch) == (0 if batch in held else 5)


@pytest.mark.parametrize("name", SCOPES)
def test_no_lease_of_before_the_hold_can_be_started(db: TestDatabase, world: World, name: str) -> None:
    leased = db.rows("select call_id, lease from claim_contacts(5, 60, %s)", world.inside)
    calls = [row["call_id"] for row in leased]
    held = hold(db, **scope(world, name))
    assert db.start_calls(world.inside, calls) == []
    lift(db, held)
    assert db.start_calls(world.inside, calls) == calls


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("name", SCOPES)
def test_a_batch_that_comes_to_life_later_is_held(db: TestDatabase, world: World, name: str, status: str) -> None:
    held = hold(db, **scope(world, name))
    batch = db.batch(world.agency, world.owner, status=status, **world.settings)
    db.contacts(batch, pending=3)
    if status in ("paused", "stopped"):
        answer = db.row("select * from resume_batch(%s)", batch)
        assert "no call starts until the hold is lifted" in answer["message"]
    else:
        db.rows("select process_batches()")
    assert (db.batch_row(batch)["status"], is_held(db, batch)) == ("processing", True)
    assert claimed(db, batch) == 0
    lift(db, held)
    assert claimed(db, batch) == 3


@pytest.mark.parametrize("status", [*STATUSES, "processing"])
def test_a_batch_that_is_started_is_held(db: TestDatabase, world: World, status: str) -> None:
    hold(db, whole_agency=True, agency_id=world.agency)
    batch = db.batch(world.agency, world.owner, status=status)
    db.contacts(batch, pending=3)
    db.rows("select start_batch(%s::text)", batch)
    assert (db.batch_row(batch)["status"], is_held(db, batch)) == ("processing", True)
    assert claimed(db, batch) == 0


def test_a_batch_that_is_started_with_a_held_number_is_held(db: TestDatabase, world: World) -> None:
    db.rows(
        "insert into agency_phone_numbers (agency_id, phone_number, status) values (%s, %s, 'active')",
        world.agency,
        ANOTHER,
    )
    hold(db, from_number=ANOTHER, agency_id=world.agency)
    assert claimed(db, world.outside) == 5
    db.rows("select start_batch(%s::text, calling_numbers => %s)", world.outside, [ANOTHER])
    assert claimed(db, world.outside) == 0
    db.rows("select start_batch(%s::text, calling_numbers => %s)", world.outside, [NUMBER])
    assert claimed(db, world.outside) == 5


def test_a_batch_that_comes_in_being_dialed_is_held(db: TestDatabase, world: World) -> None:
    hold(db, whole_agency=True, agency_id=world.agency)
    batch = db.batch(world.agency, status="processing")
    db.contacts(batch, pending=3)
    assert claimed(db, batch) == 0
    assert is_held(db, batch)


def test_a_batch_that_is_created_or_retried_is_held(db: TestDatabase, world: World) -> None:
    db.contacts(world.inside, failed=1)
    hold(db, campaign_id=world.calling["campaign_id"], agency_id=world.agency)
    contacts = json.dumps([{"phone_number": "+15559990001"}])
    given = {name: world.calling[name] for name in ("agent_mapping_id", "campaign_id", "from_number")}
    created = call(db.owner, "create_batch", **given, contacts=contacts)["batch_id"]
    retried = db.row("select * from retry_batch(%s)", world.inside)["batch_id"]
    db.rows("select process_batches()")
    for batch in (created, retried):
        assert (db.batch_row(batch)["status"], claimed(db, batch)) == ("processing", 0)


def test_a_retried_batch_of_a_held_one_is_not_held_when_no_hold_counts(db: TestDatabase, world: World) -> None:
    db.contacts(world.inside, failed=1)
    held = hold(db, whole_agency=True, agency_id=world.agency)
    retried = db.row("select * from retry_batch(%s)", world.inside)["batch_id"]
    lift(db, held)
    db.rows("select process_batches()")
    assert claimed(db, retried) == 1


# Answers.


def test_the_answer_counts_the_calls_in_progress_and_those_starting(db: TestDatabase, world: World) -> None:
    leased = db.rows("select call_id, lease from claim_contacts(4, 60, %s)", world.inside)
    calls = [row["call_id"] for row in leased]
    db.start_calls(world.inside, calls[:3])
    db.confirm_calls(world.inside, calls[:1], "c")
    answer = hold(db, whole_agency=True, agency_id=world.agency)
    assert (answer["batches"], answer["calls_in_progress"], answer["calls_starting"]) == (2, 3, 2)


@pytest.mark.parametrize("name", SCOPES)
def test_a_dry_run_counts_the_same_and_changes_nothing(db: TestDatabase, world: World, name: str) -> None:
    before = db.state()
    counted = hold(db, **scope(world, name), dry_run=True, idempotency_key="key-1")
    assert db.state() == before
    answer = hold(db, **scope(world, name), idempotency_key="key-1")
    assert counted == {**answer, "hold_id": None, "dry_run": True}


def test_a_held_batch_waits_for_the_hold(db: TestDatabase, world: World) -> None:
    held = hold(db, whole_agency=True, agency_id=world.agency, until="2999-01-01T00:00:00Z")
    shown = db.value("select get_batch(%s) -> 'batch'", world.inside)
    assert (shown["status"], shown["waiting_for"], shown["waiting_until"][:10]) == ("processing", "hold", "2999-01-01")
    lift(db, held)
    assert db.value("select get_batch(%s) -> 'batch' ->> 'waiting_for'", world.inside) is None


def test_a_held_batch_is_silent_since_the_hold(db: TestDatabase, world: World) -> None:
    assert not db.value("select (batch_silence(%s::text)).is_silent", world.inside)
    held = hold(db, whole_agency=True, agency_id=world.agency)
    silence = db.row("select * from batch_silence(%s::text)", world.inside)
    placed = db.value("select created_at from holds where id = %s", held["hold_id"])
    assert (silence["is_silent"], silence["silent_since"]) == (True, placed)


def test_calls_of_a_held_batch_that_the_carrier_queues_are_withdrawn(db: TestDatabase, world: World) -> None:
    leased = db.rows("select call_id, lease from claim_contacts(2, 60, %s)", world.inside)
    calls = [row["call_id"] for row in leased]
    db.start_calls(world.inside, calls)
    db.rows("update calls set carrier_queued = true, carrier_call_id = id::text")
    assert db.rows("select call_id from list_calls_to_end()") == []
    hold(db, whole_agency=True, agency_id=world.agency)
    assert sorted(row["call_id"] for row in db.rows("select call_id from list_calls_to_end()")) == calls


def test_dialers_are_told_when_a_held_batch_goes_on(db: TestDatabase, world: World) -> None:
    db.rows("delete from call_batches where id <> %s", world.inside)
    assert db.value("select next_claim_in()") == 0
    ending = hold(db, whole_agency=True, agency_id=world.agency, until="2999-01-01T00:00:00Z")
    assert db.value("select next_claim_in()") > 1e9
    held = hold(db, whole_agency=True, agency_id=world.agency)
    assert db.value("select next_claim_in()") is None
    lift(db, held)
    assert db.value("select next_claim_in()") > 1e9
    lift(db, ending)
    assert db.value("select next_claim_in()") == 0


# The end of a hold.


@pytest.mark.parametrize("name", SCOPES)
def test_lifting_restores_the_batches_exactly(db: TestDatabase, world: World, name: str) -> None:
    for status in ("pending", "paused", "stopped", "completed", "cancelled"):
        db.contacts(db.batch(world.agency, world.owner, status=status, **world.settings), pending=2)
    db.rows("select claim_contacts(2, 60, %s)", world.inside)
    state = "select to_jsonb(b) from call_batches b order by b.id"
    before = db.rows(state)
    held = hold(db, **scope(world, name))
    assert db.rows(state) != before
    answer = lift(db, held)
    assert db.rows(state) == before
    assert (answer["batches"], answer["batches_held"]) == (len(reached(world, name)), 0)


def test_a_batch_that_two_holds_reach_goes_on_when_both_are_lifted(db: TestDatabase, world: World) -> None:
    first = hold(db, campaign_id=world.calling["campaign_id"], agency_id=world.agency)
    second = hold(db, whole_agency=True, agency_id=world.agency)
    answer = lift(db, second)
    assert (answer["batches"], answer["batches_held"]) == (2, 1)
    assert (claimed(db, world.inside), claimed(db, world.outside)) == (0, 5)
    assert lift(db, first)["batches_held"] == 0
    assert claimed(db, world.inside) == 5


def test_a_hold_ends_by_itself_at_its_time(db: TestDatabase, world: World) -> None:
    held = hold(db, whole_agency=True, agency_id=world.agency, until="2999-01-01T00:00:00Z")
    assert claimed(db, world.inside) == 0
    leased = hold(db, everything=True, until="2998-01-01T00:00:00Z")
    assert db.batch_row(world.inside)["held_until"].year == 2999
    # As it will be then.
    db.rows("update holds set until = now() - interval '1 second'")
    db.rows("update call_batches set held_until = now() - interval '1 second' where is_held")
    assert claimed(db, world.inside) == 5
    assert db.value("select list_holds() -> 'holds'") == []
    assert lift(db, held)["batches_held"] == 0
    assert lift(db, leased)["batches_held"] == 0


def test_a_hold_without_an_end_outlasts_one_with_an_end(db: TestDatabase, world: World) -> None:
    endless = hold(db, whole_agency=True, agency_id=world.agency)
    hold(db, everything=True, until="2999-01-01T00:00:00Z")
    assert db.batch_row(world.inside)["held_until"] is None
    lift(db, endless)
    assert db.batch_row(world.inside)["held_until"].year == 2999


def test_lifting_a_lifted_hold_changes_nothing(db: TestDatabase, world: World) -> None:
    held = hold(db, whole_agency=True, agency_id=world.agency)
    first = lift(db, held)
    row = db.row("select * from holds")
    assert lift(db, held) == first
    assert db.row("select * from holds") == row


@pytest.mark.parametrize("status", ["paused", "stopped", "cancelled"])
def test_a_held_batch_can_be_ended_and_stays_so_when_the_hold_is_lifted(
    db: TestDatabase, world: World, status: str
) -> None:
    held = hold(db, whole_agency=True, agency_id=world.agency)
    procedure = {"paused": "pause_batch(%s)", "stopped": "stop_batch(%s::text)", "cancelled": "cancel_batch(%s)"}[
        status
    ]
    db.rows(f"select {procedure}", world.inside)
    lift(db, held)
    assert (db.batch_row(world.inside)["status"], claimed(db, world.inside)) == (status, 0)


def test_a_batch_that_is_paused_and_resumed_stays_held(db: TestDatabase, world: World) -> None:
    hold(db, whole_agency=True, agency_id=world.agency)
    db.rows("select pause_batch(%s)", world.inside)
    db.rows("select resume_batch(%s)", world.inside)
    assert claimed(db, world.inside) == 0


def test_a_batch_that_was_paused_while_it_was_held_goes_on_when_it_is_resumed_later(
    db: TestDatabase, world: World
) -> None:
    held = hold(db, whole_agency=True, agency_id=world.agency)
    db.rows("select pause_batch(%s)", world.inside)
    lift(db, held)
    db.rows("select resume_batch(%s)", world.inside)
    assert claimed(db, world.inside) == 5


def test_a_held_batch_with_nothing_left_to_call_completes(db: TestDatabase, world: World) -> None:
    leased = db.rows("select call_id, lease from claim_contacts(20, 60, %s)", world.inside)
    calls = [row["call_id"] for row in leased]
    db.start_calls(world.inside, calls)
    hold(db, whole_agency=True, agency_id=world.agency)
    db.finish_calls(world.inside, calls, "completed")
    db.rows("select process_batches()")
    assert db.batch_row(world.inside)["status"] == "completed"


def test_leases_that_expire_under_a_hold_go_back(db: TestDatabase, world: World) -> None:
    db.rows("select claim_contacts(5, 60, %s)", world.inside)
    hold(db, whole_agency=True, agency_id=world.agency)
    db.rows("update calls set lease_expires_at = now() - interval '1 second'")
    db.rows("select release_expired_leases()")
    assert db.statuses(world.inside) == {"pending": 20}


# Permission.


@pytest.mark.parametrize("role", ["agency_owner", "agency_admin"])
@pytest.mark.parametrize("name", [name for name in SCOPES if name != "everything"])
def test_an_owner_or_admin_holds_and_lifts_in_the_own_agency(
    db: TestDatabase, world: World, name: str, role: str
) -> None:
    caller = db.user(world.agency, role)
    arguments = {key: value for key, value in scope(world, name).items() if key != "agency_id"}
    with db.as_user(caller) as connection:
        held = call(connection, "hold_calls", **arguments, reason="wrong price")
        assert is_held(db, world.inside)
        call(connection, "lift_hold", hold_id=held["hold_id"], reason="mended")
    assert not is_held(db, world.inside)
    row = db.row("select agency_id, created_by, created_by_role, lifted_by, reason, lift_reason from holds")
    assert tuple(row.values()) == (world.agency, caller, "authenticated", caller, "wrong price", "mended")


@pytest.mark.parametrize("role", ["agency_member", "client_admin", "client_viewer", "admin"])
def test_others_may_neither_hold_nor_lift(db: TestDatabase, world: World, role: str) -> None:
    caller = db.user(world.agency, role)
    held = hold(db, whole_agency=True, agency_id=world.agency)
    for procedure, arguments in (
        ("hold_calls", {"whole_agency": True}),
        ("hold_calls", {"whole_agency": True, "dry_run": True}),
        ("lift_hold", {"hold_id": held["hold_id"]}),
    ):
        assert refusal(db, caller, procedure, **arguments) == ("PT403", "role_not_allowed")
        assert refusal(db, db.user(None), procedure, **arguments) == ("PT403", "no_agency")


def test_a_user_can_neither_hold_nor_lift_everything(db: TestDatabase, world: World) -> None:
    held = hold(db, everything=True)
    assert refusal(db, world.owner, "hold_calls", everything=True) == ("PT403", "service_only")
    assert refusal(db, world.owner, "lift_hold", hold_id=held["hold_id"]) == ("PT403", "service_only")


def test_another_agencys_holds_and_scopes_are_not_there(db: TestDatabase, world: World) -> None:
    stranger = db.user(db.agency("Third"))
    held = hold(db, whole_agency=True, agency_id=world.agency)
    assert refusal(db, stranger, "lift_hold", hold_id=held["hold_id"]) == ("PT404", "hold_not_found")
    for name, code in (("campaign", "campaign_not_found"), ("agent", "agent_not_found"),
                       ("caller_number", "from_number_not_found")):  # fmt: skip
        arguments = {key: value for key, value in scope(world, name).items() if key != "agency_id"}
        assert refusal(db, stranger, "hold_calls", **arguments) == ("PT404", code)
    assert refusal(db, stranger, "hold_calls", **scope(world, "agency")) == ("PT404", "agency_not_found")


def test_a_service_holds_an_agency_that_it_names(db: TestDatabase, world: World) -> None:
    with db.as_service() as connection:
        assert call(connection, "hold_calls", **scope(world, "campaign"))["batches"] == 1
        with pytest.raises(psycopg.Error) as refused:
            call(connection, "hold_calls", whole_agency=True)
        assert "agency_id_required" in str(refused.value.diag.message_detail)


# Refusals.


@pytest.mark.parametrize(
    "arguments",
    [{}, {"whole_agency": False}, {"whole_agency": True, "from_number": NUMBER},
     {"from_number": NUMBER, "campaign_id": "5eed0000-0000-4000-8000-0000000000d1"}],
    ids=repr,
)  # fmt: skip
def test_a_hold_has_one_scope(db: TestDatabase, world: World, arguments: dict[str, Any]) -> None:
    assert refusal(db, world.owner, "hold_calls", **arguments) == ("PT400", "scope_required")


@pytest.mark.parametrize("until", ["2000-01-01T00:00:00Z", "infinity", "-infinity"])
def test_an_end_that_is_no_time_to_come_is_refused(db: TestDatabase, world: World, until: str) -> None:
    assert refusal(db, world.owner, "hold_calls", whole_agency=True, until=until) == ("PT400", "until_invalid")


def test_a_hold_that_is_none_cannot_be_lifted(db: TestDatabase, world: World) -> None:
    assert refusal(db, world.owner, "lift_hold", hold_id=uuid4()) == ("PT404", "hold_not_found")
    assert refusal(db, world.owner, "lift_hold", hold_id=None) == ("PT400", "hold_id_required")


def test_a_number_that_a_batch_has_though_the_agency_gave_it_up_is_held(db: TestDatabase, world: World) -> None:
    db.rows("delete from agency_phone_numbers")
    assert hold(db, from_number=NUMBER, agency_id=world.agency)["batches"] == 1
    assert refusal(db, world.owner, "hold_calls", from_number="+15550001111") == ("PT404", "from_number_not_found")


@pytest.mark.parametrize("name", ["campaign", "agency", "everything"])
def test_a_repeat_with_the_same_key_gets_the_first_answer_and_another_request_409(
    db: TestDatabase, world: World, name: str
) -> None:
    first = hold(db, **scope(world, name), reason="why", idempotency_key="key-1")
    assert hold(db, **scope(world, name), reason="why", idempotency_key="key-1") == first
    assert db.value("select count(*) from holds") == 1
    with pytest.raises(psycopg.Error) as refused:
        hold(db, **scope(world, name), reason="another", idempotency_key="key-1")
    assert refused.value.sqlstate == "PT409"
    with pytest.raises(psycopg.Error) as refused:
        hold(db, **scope(world, name), idempotency_key="")
    assert "idempotency_key_invalid" in str(refused.value.diag.message_detail)


@pytest.mark.parametrize("procedure", ["hold_calls", "lift_hold"])
def test_a_batch_that_another_request_holds_is_busy_and_nothing_is_changed(
    db: TestDatabase, world: World, procedure: str
) -> None:
    held = hold(db, whole_agency=True, agency_id=world.agency)
    arguments = {"whole_agency": True} if procedure == "hold_calls" else {"hold_id": held["hold_id"]}
    before = db.state()
    with db.connect() as holder, holder.transaction(), db.as_user(world.owner) as connection:
        holder.execute("select cancel_batch(%s)", [max(world.inside, world.outside)])
        connection.execute("set lock_timeout = '50ms'")
        with pytest.raises(psycopg.Error) as refused:
            call(connection, procedure, **arguments)
        assert db.state() == before
        detail = json.loads(refused.value.diag.message_detail or "")
        assert (refused.value.sqlstate, detail["code"], detail["held_by"]) == ("PT503", "batch_busy", "cancel_batch")


def test_an_agency_of_which_a_batch_is_being_resumed_is_busy(db: TestDatabase, world: World) -> None:
    paused = db.batch(world.agency, status="paused")
    with db.connect() as resumer, resumer.transaction(), db.as_user(world.owner) as connection:
        resumer.execute("select resume_batch(%s)", [paused])
        connection.execute("set lock_timeout = '50ms'")
        with pytest.raises(psycopg.Error) as refused:
            call(connection, "hold_calls", whole_agency=True)
        detail = json.loads(refused.value.diag.message_detail or "")
        assert (refused.value.sqlstate, detail["code"]) == ("PT503", "agency_busy")


# The list.


def test_holds_are_listed_newest_first_for_any_user_of_the_agency(db: TestDatabase, world: World) -> None:
    first = hold(db, **scope(world, "campaign"), reason="wrong price", until="2999-01-01T00:00:00Z")
    second = hold(db, **scope(world, "caller_number"))
    hold(db, whole_agency=True, agency_id=db.agency("Third"))
    with db.as_user(db.user(world.agency, "client_viewer")) as connection:
        found = connection.execute("select list_holds() -> 'holds' as holds").fetchone()["holds"]
    assert [row["id"] for row in found] == [str(second["hold_id"]), str(first["hold_id"])]
    campaign = found[1]
    shown = ("scope", "campaign_name", "batches", "reason", "is_active", "lifted_at")
    assert [campaign[key] for key in shown] == ["campaign", "Q1 Outreach", 1, "wrong price", True, None]
    assert campaign["until"][:10] == "2999-01-01"


def test_lifted_holds_are_listed_when_asked_for(db: TestDatabase, world: World) -> None:
    held = hold(db, whole_agency=True, agency_id=world.agency)
    lift(db, held)
    assert db.value("select list_holds() -> 'holds'") == []
    (row,) = db.value("select list_holds(include_lifted => true) -> 'holds'")
    assert (row["id"], row["is_active"], row["batches"]) == (str(held["hold_id"]), False, 0)
    assert row["lifted_at"] is not None


def test_a_user_sees_a_hold_of_everything_without_its_reason(db: TestDatabase, world: World) -> None:
    hold(db, everything=True, reason="Acme is sued")
    with db.as_user(world.owner) as connection:
        (row,) = connection.execute("select list_holds() -> 'holds' as holds").fetchone()["holds"]
        assert connection.execute("select id from holds").fetchall() == []
    assert (row["scope"], row["agency_id"], row["batches"], row["reason"]) == ("everything", None, 2, None)
    (shown,) = db.value("select list_holds() -> 'holds'")
    assert (shown["batches"], shown["reason"]) == (3, "Acme is sued")


@pytest.mark.parametrize("number", [0, 1001, None])
def test_a_list_of_too_many_holds_is_refused(db: TestDatabase, world: World, number: int | None) -> None:
    found = refusal(db, world.owner, "list_holds", max_holds=number)
    assert found == ("PT400", "max_holds_out_of_range")
