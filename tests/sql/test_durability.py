"""A change that a caller may rely on waits at its commit for the disk and for the synchronous standby."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ..support.database import TestDatabase
from ..support.webhooks import Carrier, event

CREATE = "create_batch(%(agent)s, %(number)s, %(campaign)s, %(contacts)s, idempotency_key => %(key)s)"
BEGIN_IMPORT = "begin_import(null, %(hash)s, null, %(agent)s, %(number)s, %(campaign)s, idempotency_key => %(key)s)"
INGEST = "ingest_webhook(%(agency)s, %(event)s, path_secret => %(secret)s)"
DURABLE = {
    "cancel_batch": "cancel_batch(%(batch)s, %(key)s)",
    "stop_batch": "stop_batch(%(batch)s::text, idempotency_key => %(key)s)",
    "pause_batch": "pause_batch(%(batch)s, %(key)s)",
    "resume_batch": "resume_batch(%(paused)s, %(key)s)",
    "skip_contacts": "skip_contacts(%(batch)s, %(contact)s, idempotency_key => %(key)s)",
    "opt_out": "opt_out(%(called)s, agency_id => %(agency)s)",
    "hold_calls": "hold_calls(whole_agency => true, agency_id => %(agency)s, idempotency_key => %(key)s)",
    "lift_hold": "lift_hold(%(hold)s)",
    "start_batch": "start_batch(%(paused)s::text, idempotency_key => %(key)s)",
    "retry_batch": "retry_batch(%(batch)s, idempotency_key => %(key)s)",
    "create_batch": CREATE,
    "add_contacts": "add_contacts(%(batch)s, %(contacts)s, %(key)s)",
    "begin_import": BEGIN_IMPORT,
    "import_contacts": "import_contacts(%(batch)s, %(import)s, %(rows)s)",
    "finish_import": "finish_import(%(batch)s, %(import)s)",
    "start_call": "start_call(%(batch)s, %(claimed)s, %(lease)s)",
    "confirm_call": "confirm_call(%(batch)s, %(confirmed)s)",
    "finish_call": "finish_call(%(batch)s, %(finished)s)",
    "process_batches": "process_batches()",
    "process_webhook_queue": "process_webhook_queue()",
    "ingest_webhook": INGEST,
    "replay_webhooks": "replay_webhooks(%(agency)s)",
    "rotate_webhook_secret": "rotate_webhook_secret(%(agency)s)",
}
"""Procedures whose answer holds after a crash and a failover."""
UNDONE_WITHOUT_HARM = {
    "claim_contacts",  # start_call lets no call through whose lease is gone
    "release_expired_leases",  # run again every second
    "list_calls_to_end",  # tells the carrier once more
    "list_open_calls",  # asks the carrier once more
    "purge_webhook_queue",  # run again every day
    "export_contacts",  # counts towards a limit
}
REPEATED = [name for name, call in DURABLE.items() if "%(key)s" in call or call == INGEST]


@pytest.fixture
def world(db: TestDatabase) -> dict[str, Any]:
    """Values for every procedure of DURABLE."""
    agency = db.agency()
    calling = db.calling(agency)
    batch, paused, due = (db.batch(agency, status=status) for status in ("processing", "paused", "pending"))
    db.contacts(batch, pending=4, failed=1)
    db.contacts(due, pending=1)
    carrier = Carrier(db, agency)
    started = carrier.place(batch, 2)
    carrier.tell(event("call.ended", started[0]))
    db.rows("update webhook_queue set status = 'dead', next_retry_at = null")
    carrier.tell(event("call.started", started[0]))
    claimed = db.rows("select call_id, lease from claim_contacts(2, 60, %s)", batch)
    return {
        "agency": agency,
        "batch": batch,
        "paused": paused,
        "key": "key-1",
        "agent": calling["agent_mapping_id"],
        "campaign": calling["campaign_id"],
        "number": calling["from_number"],
        "contact": db.rows("select array_agg(id::text) as ids from campaign_contacts where batch_id = %s", batch)[0][
            "ids"
        ],
        "called": "+15557654321",
        "hold": db.value(
            "select (hold_calls(agent_mapping_id => %s, agency_id => %s)).hold_id", calling["agent_mapping_id"], agency
        ),
        "contacts": json.dumps([{"phone_number": "+15557654321"}]),
        "hash": "0" * 64,
        "import": db.value("select begin_import(%s, repeat('1', 64)) ->> 'import_id'", batch),
        "rows": json.dumps([{"row": 2, "phone_number": "+15557654322"}]),
        "claimed": [row["call_id"] for row in claimed],
        "lease": claimed[0]["lease"],
        "confirmed": db.named([started[1]["call_id"]], carrier_call_id="c"),
        "finished": db.named([started[1]["call_id"]], status="completed"),
        "event": json.dumps(event("call.joined", started[0])),
        "secret": carrier.secret,
    }


def commits_with(db: TestDatabase, synchronous_commit: str, call: str, world: dict[str, Any]) -> str:
    """The synchronous_commit of a transaction that calls this, and has something to wait for. It is undone."""
    with db.owner.transaction(force_rollback=True):
        db.rows("select set_config('synchronous_commit', %s, true)", synchronous_commit)
        db.owner.execute(f"select {call}", world)
        assert db.value("select pg_current_xact_id_if_assigned()") is not None
        value: str = db.value("show synchronous_commit")
        return value


def test_every_procedure_that_changes_something_is_durable_or_undone_without_harm(db: TestDatabase) -> None:
    volatile = db.rows(
        "select distinct proname as name from pg_proc where pronamespace = 'public'::regnamespace and provolatile = 'v'"
    )
    assert {row["name"] for row in volatile} == DURABLE.keys() | UNDONE_WITHOUT_HARM


@pytest.mark.parametrize("procedure", DURABLE)
def test_a_weaker_synchronous_commit_is_raised_and_a_stronger_one_stays(
    db: TestDatabase, world: dict[str, Any], procedure: str
) -> None:
    settings = ("off", "local", "remote_write", "on", "remote_apply")
    committed = [commits_with(db, setting, DURABLE[procedure], world) for setting in settings]
    assert committed == ["on", "on", "on", "on", "remote_apply"]


@pytest.mark.parametrize("procedure", REPEATED)
def test_a_repeated_answer_is_as_durable_as_the_first(db: TestDatabase, world: dict[str, Any], procedure: str) -> None:
    first = db.owner.execute(f"select {DURABLE[procedure]}", world).fetchall()
    assert commits_with(db, "off", DURABLE[procedure], world) == "on"
    assert db.owner.execute(f"select {DURABLE[procedure]}", world).fetchall() == first


def test_a_second_stop_without_a_key_is_as_durable_as_the_first(db: TestDatabase, world: dict[str, Any]) -> None:
    world["key"] = None
    db.owner.execute(f"select {DURABLE['stop_batch']}", world)
    assert commits_with(db, "off", DURABLE["stop_batch"], world) == "on"
