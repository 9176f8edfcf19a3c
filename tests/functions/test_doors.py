"""One core, four doors: the same cases give the same answers at each.

The doors: the function over Postgres, the function over PostgREST, PostgREST itself, and the SQL
console acting as the user (as the Supabase dashboard can).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import httpx2
import psycopg
import pytest
from starlette.testclient import TestClient

from functions._shared.settings import Settings
from functions.app import create_app

from ..support.database import TestDatabase
from ..support.postgrest import PUBLISHABLE_KEY
from ..support.tokens import token

CONTACTS = {"pending": 3, "scheduled": 1, "queued": 2, "in_progress": 2, "completed": 1}


@dataclass
class World:
    """The rows of a case; both agencies have a user and a batch of the same external ids."""

    owner: UUID
    member: UUID
    loner: UUID
    batch: UUID
    other_owner: UUID
    other_batch: UUID
    calling: dict[str, Any]
    """The arguments that create a batch of the agency."""


# Where a procedure is a function, and its arguments' names there if they are others.
PATHS: dict[str, tuple[str, dict[str, str]]] = {
    "cancel_batch": ("/calls-batch-cancel", {}),
    "pause_batch": ("/calls-batch-pause", {}),
    "resume_batch": ("/calls-batch-resume", {}),
    "create_batch": ("/calls-batch-create", {}),
    "add_contacts": ("/calls-batch-add-contacts", {}),
    "retry_batch": ("/calls-batch-retry", {}),
    "skip_contacts": ("/calls-batch-skip", {}),
    "opt_out": ("/calls-opt-out", {}),
    "hold_calls": ("/calls-hold", {}),
    "lift_hold": ("/calls-hold-lift", {}),
    "stop_batch": (
        "/api/call/stop-calling",
        {"batch_id": "batchId", "user_id": "userId", "skip_remaining": "skipRemaining"},
    ),
    "start_batch": (
        "/api/call/start-calling",
        {"batch_id": "batchId", "user_id": "userId", "call_data": "callData"},
    ),
}


@dataclass
class Case:
    name: str
    procedure: str
    caller: str
    arguments: Callable[[World], dict[str, Any]]
    status: int
    answer: dict[str, Any]
    """The error's message and code, or what the SQL row must hold."""
    prepare: str = ""


def change(procedure: str, name: str, status: int, answer: dict[str, Any], *, caller: str = "owner",
           batch: str = "batch", prepare: str = "", **more: Any) -> Case:  # fmt: skip
    return Case(
        f"{procedure}: {name}",
        procedure,
        caller,
        lambda w: {"batch_id": str(getattr(w, batch)), **more},
        status,
        answer,
        prepare,
    )


def create(name: str, status: int, answer: dict[str, Any], *, caller: str = "owner", **more: Any) -> Case:
    return Case(
        f"create_batch: {name}",
        "create_batch",
        caller,
        lambda w: {**w.calling, "contacts": [{"phone_number": "+15551000001"}], **more},
        status,
        answer,
    )


def stop(name: str, status: int, answer: dict[str, Any], *, caller: str = "owner", batch: str = "batch",
         user: str = "owner", prepare: str = "", procedure: str = "stop_batch", **more: Any) -> Case:  # fmt: skip
    return Case(
        f"{procedure}: {name}",
        procedure,
        caller,
        lambda w: {"batch_id": str(getattr(w, batch, batch)), "user_id": str(getattr(w, user, user)), **more},
        status,
        answer,
        prepare,
    )


def agency_wide(procedure: str, name: str, status: int, answer: dict[str, Any], *, caller: str = "owner",
                **arguments: Any) -> Case:  # fmt: skip
    """A case of a procedure that names no batch. An argument may be the name of a value of the world's calling."""
    return Case(
        f"{procedure}: {name}",
        procedure,
        caller,
        lambda w: {key: w.calling.get(value, value) if isinstance(value, str) else value
                   for key, value in arguments.items()},
        status,
        answer,
    )  # fmt: skip


NOT_FOUND = {"message": "Batch not found", "code": "batch_not_found"}
NO_AGENCY = {"message": "User is not associated with an agency", "code": "no_agency"}
CASES = [
    change("cancel_batch", "a batch being dialed", 200, {"status": "cancelled", "contacts_skipped": 6}),
    change("cancel_batch", "with a reason", 200, {"contacts_skipped": 6}, reason="wrong script"),
    change("cancel_batch", "a stopped batch", 200, {"contacts_skipped": 6},
           prepare="update call_batches set status = 'stopped'"),
    change("cancel_batch", "a completed batch", 400,
           {"message": "Batch is already completed", "code": "batch_already_completed"},
           prepare="update call_batches set status = 'completed'"),
    change("cancel_batch", "a cancelled batch", 400,
           {"message": "Batch is already cancelled", "code": "batch_already_cancelled"},
           prepare="update call_batches set status = 'cancelled'"),
    change("cancel_batch", "by a member", 403, {"message": "User role must be agency_owner or agency_admin",
                                "code": "role_not_allowed"}, caller="member"),
    change("cancel_batch", "by a user of no agency", 403, NO_AGENCY, caller="loner"),
    change("cancel_batch", "another agency's batch", 404, NOT_FOUND, batch="other_batch"),
    change("cancel_batch", "by another agency's owner", 404, NOT_FOUND, caller="other_owner"),
    change("cancel_batch", "a batch that is none", 404, NOT_FOUND, batch="loner"),
    change("pause_batch", "a batch being dialed", 200, {"success": True, "status": "paused"}),
    change("pause_batch", "a paused batch", 400, {"code": "batch_not_pausable"},
           prepare="update call_batches set status = 'paused'"),
    change("pause_batch", "by a member", 403, {"code": "role_not_allowed"}, caller="member"),
    change("pause_batch", "another agency's batch", 404, NOT_FOUND, batch="other_batch"),
    change("resume_batch", "a paused batch", 200, {"success": True, "status": "processing"},
           prepare="update call_batches set status = 'paused'"),
    change("resume_batch", "a batch being dialed", 400, {"code": "batch_not_resumable"}),
    change("resume_batch", "by a user of no agency", 403, NO_AGENCY, caller="loner"),
    change("resume_batch", "by another agency's owner", 404, NOT_FOUND, caller="other_owner"),
    create("with a contact", 200, {"status": "pending", "total_contacts": 1, "agent_name": "Sales Agent"}),
    create("with a bad row", 400, {"code": "contacts_invalid", "error_count": 1,
                                   "errors": [{"index": 0, "error": "must be an object"}]}, contacts=[1]),
    create("with a limit out of range", 400, {"code": "calls_per_minute_invalid"}, calls_per_minute=61),
    create("by a member", 403, {"code": "role_not_allowed"}, caller="member"),
    create("by another agency's owner", 404, {"code": "agent_not_found"}, caller="other_owner"),
    change("add_contacts", "one more", 200, {"added": 1, "total_contacts": 10},
           contacts=[{"phone_number": "+15551000001"}]),
    change("add_contacts", "of a bad number", 400, {"code": "contacts_invalid"}, contacts=[{"phone_number": "911"}]),
    change("add_contacts", "by a user of no agency", 403, NO_AGENCY, caller="loner",
           contacts=[{"phone_number": "+15551000001"}]),
    change("add_contacts", "to another agency's batch", 404, NOT_FOUND, batch="other_batch",
           contacts=[{"phone_number": "+15551000001"}]),
    change("retry_batch", "a batch of which none failed", 400, {"code": "no_contacts"}),
    change("retry_batch", "by a member", 403, {"code": "role_not_allowed"}, caller="member"),
    change("retry_batch", "another agency's batch", 404, NOT_FOUND, batch="other_batch"),
    change("skip_contacts", "a batch being dialed", 200,
           {"status": "processing", "contacts_skipped": 6, "dry_run": False},
           filter={"status": ["pending", "scheduled", "queued"]}),
    change("skip_contacts", "of another column", 200, {"contacts_skipped": 0},
           filter={"custom_data": {"plan": "gold"}}),
    change("skip_contacts", "without contacts", 400,
           {"message": "contact_ids or filter is required", "code": "contacts_required"}),
    change("skip_contacts", "by ids that are none", 400, {"code": "contact_ids_invalid"}, contact_ids=["one"]),
    change("skip_contacts", "by a filter that is none", 400, {"code": "filter_invalid"}, filter={"colour": "red"}),
    change("skip_contacts", "by a member", 403, {"code": "role_not_allowed"}, caller="member",
           filter={"status": ["pending"]}),
    change("skip_contacts", "another agency's batch", 404, NOT_FOUND, batch="other_batch",
           filter={"status": ["pending"]}),
    agency_wide("opt_out", "a number, by a member", 200, {"added": True, "batches": 1}, caller="member",
                phone_number="+15550000001", source="call", reason="asked"),
    agency_wide("opt_out", "a number that is none", 400, {"code": "phone_number_invalid"}, phone_number="911"),
    agency_wide("opt_out", "by a user of no agency", 403, NO_AGENCY, caller="loner", phone_number="+15550000001"),
    agency_wide("hold_calls", "the agency", 200, {"scope": "agency", "batches": 1, "calls_in_progress": 2},
                whole_agency=True, reason="wrong hour"),
    agency_wide("hold_calls", "a campaign", 200, {"scope": "campaign", "batches": 0}, campaign_id="campaign_id"),
    agency_wide("hold_calls", "an agent", 200, {"scope": "agent"}, agent_mapping_id="agent_mapping_id"),
    agency_wide("hold_calls", "a caller number", 200, {"scope": "caller_number"}, from_number="from_number"),
    agency_wide("hold_calls", "nothing", 400, {"code": "scope_required"}),
    agency_wide("hold_calls", "until a time that has passed", 400, {"code": "until_invalid"}, whole_agency=True,
                until="2000-01-01T00:00:00Z"),
    agency_wide("hold_calls", "by a member", 403, {"code": "role_not_allowed"}, caller="member", whole_agency=True),
    agency_wide("hold_calls", "another agency's campaign", 404, {"code": "campaign_not_found"}, caller="other_owner",
                campaign_id="campaign_id"),
    agency_wide("hold_calls", "a number that is none of the agency", 404, {"code": "from_number_not_found"},
                from_number="+15559990000"),
    agency_wide("lift_hold", "a hold that is none", 404, {"message": "Hold not found", "code": "hold_not_found"},
                hold_id="5eed0000-0000-4000-8000-0000000000b1"),
    agency_wide("lift_hold", "by a member", 403, {"code": "role_not_allowed"}, caller="member",
                hold_id="5eed0000-0000-4000-8000-0000000000b1"),
    stop("a stopped batch", 200, {"contacts_added": 0}, procedure="start_batch",
         prepare="update call_batches set status = 'stopped'"),
    stop("with other contacts", 200, {"contacts_added": 1, "contacts_replaced": 6}, procedure="start_batch",
         call_data=[{"phoneNumber": "+15551000001"}]),
    stop("a cancelled batch", 400, {"message": "Batch is already cancelled", "code": "batch_already_cancelled"},
         procedure="start_batch", prepare="update call_batches set status = 'cancelled'"),
    stop("another's batch, by a member", 403, {"code": "role_not_allowed"}, procedure="start_batch", caller="member"),
    stop("another agency's batch", 404, NOT_FOUND, procedure="start_batch", batch="other_batch"),
    stop("a batch being dialed", 200, {"status": "stopped", "contacts_released": 2, "calls_in_progress": 2}),
    stop("by external ids", 200, {"batch_id": "spring", "status": "stopped"}, batch="spring", user="the-owner"),
    stop("and skip", 200, {"contacts_skipped": 6, "contacts_released": 0}, skip_remaining=True),
    stop("a stopped batch", 200, {"status": "stopped"}, prepare="update call_batches set status = 'stopped'"),
    stop("a cancelled batch", 400, {"message": "Batch is already cancelled", "code": "batch_already_cancelled"},
         prepare="update call_batches set status = 'cancelled'"),
    stop("another's batch, by a member", 403,
         {"message": "Only the user, or an owner or admin of the agency, may do this",
          "code": "role_not_allowed"}, caller="member"),
    stop("by a user of no agency", 403, NO_AGENCY, caller="loner"),
    stop("for an unknown user", 404, {"message": "User not found", "code": "user_not_found"}, user="nobody"),
    stop("for another agency's user", 404, {"message": "User not found", "code": "user_not_found"},
         user="other_owner"),
    stop("another agency's batch", 404, NOT_FOUND, batch="other_batch"),
    stop("another user's batch", 404, NOT_FOUND, user="member"),
    stop("an unknown batch", 404, NOT_FOUND, batch="autumn"),
]  # fmt: skip


def world(db: TestDatabase) -> World:
    agency, other = db.agency(), db.agency("Other")
    owner, other_owner = (db.user(place, external_id="the-owner") for place in (agency, other))
    member, loner = db.user(agency, "agency_member"), db.user(None)
    batch, other_batch = (
        db.batch(place, user, external_id="spring") for place, user in ((agency, owner), (other, other_owner))
    )
    db.contacts(batch, **CONTACTS)
    return World(owner, member, loner, batch, other_owner, other_batch, db.calling(agency))


def through_function(settings: Settings, caller: UUID, case: Case, arguments: dict[str, Any]) -> tuple[int, Any]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        path, words = PATHS[case.procedure]
        body = {words.get(name, name): value for name, value in arguments.items()}
        response = client.post(path, json=body, headers={"Authorization": f"Bearer {token(caller)}"})
    return response.status_code, response.json()


def through_postgrest(url: str, caller: UUID, case: Case, arguments: dict[str, Any]) -> tuple[int, Any]:
    headers = {"apikey": PUBLISHABLE_KEY, "Authorization": f"Bearer {token(caller)}"}
    response = httpx2.post(f"{url}/rest/v1/rpc/{case.procedure}", json=arguments, headers=headers, timeout=60)
    return response.status_code, response.json()


def through_console(db: TestDatabase, caller: UUID, case: Case, arguments: dict[str, Any]) -> tuple[int, Any]:
    named = ", ".join(f"{name} => %({name})s" for name in arguments)
    given = {
        name: json.dumps(value) if isinstance(value, dict | list) and name != "contact_ids" else value
        for name, value in arguments.items()
    }
    with db.as_user(caller) as connection:
        try:
            row = connection.execute(f"select to_jsonb(r) as r from {case.procedure}({named}) r", given).fetchone()
        except psycopg.Error as error:
            assert error.sqlstate is not None
            body = {"message": error.diag.message_primary, "details": error.diag.message_detail}
            return int(error.sqlstate[2:]), body
    assert row is not None
    return 200, row["r"]


def told(case: Case, door: str, status: int, body: Any) -> dict[str, Any]:
    """The answer, read from the door's own form."""
    if "function" not in door:
        return body if status == 200 else {"message": body["message"], **json.loads(body["details"])}
    if not PATHS[case.procedure][0].startswith("/api/"):
        return body if status in (200, 201) else {"message": body["error"], **body}
    assert (body["code"], body["status"]) == (status, status == 200)
    return body["data"] if status == 200 else {"message": body["errorMessage"]}


DOORS = ["function over postgres", "function over postgrest", "postgrest", "console"]


def through(
    door: str, db: TestDatabase, request: pytest.FixtureRequest, caller: UUID, case: Case, arguments: dict[str, Any],
    **settings: Any,
) -> tuple[int, Any]:  # fmt: skip
    """The answer of the door; settings: those of the functions, if they are not the usual ones."""
    if door == "function over postgres":
        of = replace(request.getfixturevalue("settings"), **settings)
        return through_function(of, caller, case, arguments)
    if door == "function over postgrest":
        return through_function(request.getfixturevalue("postgrest_settings"), caller, case, arguments)
    if door == "postgrest":
        return through_postgrest(request.getfixturevalue("postgrest_url"), caller, case, arguments)
    return through_console(db, caller, case, arguments)


AUDITED = """
select actor_id, actor_role from batch_events where actor_kind = 'user' union all
select created_by, created_by_role from holds
"""


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_door_gives_the_same_answer(
    db: TestDatabase, request: pytest.FixtureRequest, case: Case, door: str
) -> None:
    w = world(db)
    if case.prepare:
        db.rows(f"{case.prepare} where id = %s", w.batch)
    caller: UUID = getattr(w, case.caller)
    before = db.state()

    arguments = case.arguments(w)
    status, body = through(door, db, request, caller, case, arguments)

    created = 201 if "function" in door and case.procedure in ("create_batch", "retry_batch") else 200
    assert status == (created if case.status == 200 else case.status)
    answer = told(case, door, status, body)
    # stop-calling's envelope tells less than the row: what it tells must be the same.
    expected = {name: value for name, value in case.answer.items() if name in answer or "function" not in door}
    assert {name: answer[name] for name in expected} == expected
    if case.status == 200:
        assert db.row(AUDITED) == {"actor_id": caller, "actor_role": "authenticated"}
    else:
        assert db.state() == before


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", [case for case in CASES if case.name.endswith(": a batch being dialed")],
                         ids=lambda case: case.name)  # fmt: skip
@pytest.mark.own_database
def test_every_door_refuses_a_held_batch_as_busy(
    db: TestDatabase, request: pytest.FixtureRequest, case: Case, door: str
) -> None:
    w = world(db)
    # The functions say themselves for how long they wait; PostgREST and the console log in with it.
    name = db.value("select current_database()")
    for role in ("authenticator", "lastcall_functions"):
        db.rows(f"alter role {role} in database {name} set lock_timeout = '50ms'")
    before = db.state()
    with db.connect() as holder, holder.transaction():
        holder.execute("select from call_batches where id = %s for no key update", [w.batch])
        status, body = through(door, db, request, w.owner, case, case.arguments(w), lock_timeout_ms=50)
    assert status == 503
    assert told(case, door, status, body)["message"] == "Another request holds this batch; try again"
    if "function" in door:
        detail = body["data"] if PATHS[case.procedure][0].startswith("/api/") else body
    else:
        detail = json.loads(body["details"])
        assert detail["code"] == "batch_busy"
    assert detail["retry_after"] == 2
    assert detail["held_seconds"] >= 0
    assert db.state() == before


@pytest.mark.parametrize("procedure", ["cancel_batch", "stop_batch"])
@pytest.mark.own_database
def test_a_leaked_publishable_key_is_worthless(db: TestDatabase, postgrest_url: str, procedure: str) -> None:
    w = world(db)
    before = db.state()
    for authorization in ({}, {"Authorization": f"Bearer {PUBLISHABLE_KEY}"}):
        response = httpx2.post(
            f"{postgrest_url}/rest/v1/rpc/{procedure}",
            json={"batch_id": str(w.batch)},
            headers={"apikey": PUBLISHABLE_KEY, **authorization},
            timeout=60,
        )
        assert response.status_code == 401
    assert db.state() == before


def test_an_admin_console_reaches_every_agency_and_a_user_of_the_same_sql_does_not(db: TestDatabase) -> None:
    w = world(db)
    assert db.row("select * from cancel_batch(%s)", w.other_batch)["status"] == "cancelled"
    with db.as_user(w.owner) as connection, pytest.raises(psycopg.Error, match="Batch not found"):
        connection.execute("select * from cancel_batch(%s)", [w.other_batch])
    with pytest.raises(psycopg.Error, match="Batch not found"):
        db.rows("select * from cancel_batch(%s)", uuid4())
