"""Messages to Supabase Realtime, and the users who may read them. Realtime's schema is a stand-in: a table of messages
with row-level security, `send`, which writes into it, and `topic`, which says what channel a client asks for."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest

from functions.migrations import SQL

from ..support.database import TestDatabase

pytestmark = pytest.mark.own_database

REALTIME = """
create schema realtime;
grant usage on schema realtime to authenticated, anon;
create table realtime.messages (
  id bigint generated always as identity, topic text, extension text, payload jsonb, event text, private boolean);
alter table realtime.messages enable row level security;
grant select, insert on realtime.messages to authenticated, anon;
create function realtime.topic() returns text language sql stable as
  $$ select current_setting('realtime.topic', true) $$;
create function realtime.send(payload jsonb, event text, topic text, private boolean default true) returns void
language sql as
  $$ insert into realtime.messages (topic, extension, payload, event, private)
     values (topic, 'broadcast', payload, event, private) $$;
"""
MESSAGES = "select topic, extension, payload, event, private from realtime.messages order by id"
POLICY = (SQL / "supabase" / "realtime.sql").read_text()


def sent(db: TestDatabase) -> list[dict[str, Any]]:
    return db.rows(MESSAGES)


def moves(db: TestDatabase) -> list[tuple[str | None, str]]:
    return [(message["payload"]["from_status"], message["payload"]["to_status"]) for message in sent(db)]


def heard(db: TestDatabase, user: UUID, topic: str) -> list[dict[str, Any]]:
    """The messages that a user who joins the channel may read."""
    with db.as_user(user) as connection:
        connection.execute("select set_config('realtime.topic', %s, false)", [topic])
        return connection.execute(MESSAGES).fetchall()


def test_a_cancel_is_told_to_the_agencys_private_channel(db: TestDatabase) -> None:
    db.owner.execute(REALTIME)
    agency = db.agency()
    batch = db.batch(agency)
    db.contacts(batch, pending=3)
    with db.as_user(db.user(agency)) as connection:
        connection.execute("select cancel_batch(%s, reason => 'a secret')", [batch])
    (message,) = sent(db)
    at = message["payload"].pop("at")
    assert message == {
        "topic": f"agency:{agency}",
        "extension": "broadcast",
        "event": "batch_status",
        "private": True,
        "payload": {
            "batch_id": str(batch),
            "action": "cancel",
            "from_status": "processing",
            "to_status": "cancelled",
            "contacts": 3,
        },
    }
    assert at.endswith("Z")


def test_every_change_of_status_is_told(db: TestDatabase) -> None:
    db.owner.execute(REALTIME)
    contact = json.dumps([{"phone_number": "+15557654321"}])
    (created,) = db.owner.execute(
        "select batch_id from create_batch(agent_mapping_id => %(agent_mapping_id)s, campaign_id => %(campaign_id)s,"
        " from_number => %(from_number)s, contacts => %(contacts)s)",
        {**db.calling(db.agency()), "contacts": contact},
    ).fetchall()
    batch = created["batch_id"]
    db.rows("select process_batches()")
    db.rows("select pause_batch(%s)", batch)
    db.rows("select resume_batch(%s)", batch)
    db.rows("select stop_batch(%s::text)", batch)
    db.rows("select start_batch(%s::text)", batch)
    call = db.value("select call_id from claim_contacts(1)")
    db.start_calls(batch, [call])
    db.finish_calls(batch, [call], "completed")
    db.rows("select process_batches()")
    assert moves(db) == [
        (None, "pending"),
        ("pending", "processing"),
        ("processing", "paused"),
        ("paused", "processing"),
        ("processing", "stopped"),
        ("stopped", "processing"),
        ("processing", "completed"),
    ]


def test_a_change_without_a_new_status_is_not_broadcast(db: TestDatabase) -> None:
    db.owner.execute(REALTIME)
    batch = db.batch(db.agency(), status="stopped")
    db.rows("select stop_batch(%s::text)", batch)
    db.rows("select add_contacts(%s, %s)", batch, json.dumps([{"phone_number": "+15557654321"}]))
    assert sent(db) == []


def test_a_repeat_of_a_request_is_not_told_again(db: TestDatabase) -> None:
    db.owner.execute(REALTIME)
    batch = db.batch(db.agency())
    for _ in range(2):
        db.rows("select cancel_batch(%s, idempotency_key => 'key-1')", batch)
    assert len(sent(db)) == 1


def test_a_change_that_is_rolled_back_is_not_broadcast(db: TestDatabase) -> None:
    db.owner.execute(REALTIME)
    batch = db.batch(db.agency())
    with db.owner.transaction(force_rollback=True):
        db.rows("select cancel_batch(%s)", batch)
        assert moves(db) == [("processing", "cancelled")]
    assert sent(db) == []


def test_a_broadcast_that_fails_warns_and_the_cancel_holds(db: TestDatabase) -> None:
    db.owner.execute(REALTIME)
    db.rows("drop table realtime.messages")
    batch = db.batch(db.agency())
    warnings: list[str | None] = []
    db.owner.add_notice_handler(lambda notice: warnings.append(notice.message_primary))
    assert db.value("select status from cancel_batch(%s)", batch) == "cancelled"
    assert db.batch_row(batch)["status"] == "cancelled"
    assert warnings == [f'status of batch {batch} was not broadcast: relation "realtime.messages" does not exist']


def test_users_hear_of_their_own_agency_and_of_no_other(db: TestDatabase) -> None:
    db.owner.execute(REALTIME)
    db.owner.execute(POLICY)
    db.owner.execute(POLICY)
    mine, theirs = db.agency("Mine"), db.agency("Theirs")
    db.rows("select cancel_batch(%s)", db.batch(mine))
    user, member = db.user(mine), db.user(mine, "client_viewer")
    assert len(heard(db, user, f"agency:{mine}")) == len(heard(db, member, f"agency:{mine}")) == 1
    assert heard(db, db.user(theirs), f"agency:{mine}") == []
    assert heard(db, user, f"agency:{theirs}") == []
    assert heard(db, user, "agency:") == heard(db, db.user(None), "agency:") == []


def test_users_send_nothing_to_the_channel(db: TestDatabase) -> None:
    db.owner.execute(REALTIME)
    db.owner.execute(POLICY)
    agency = db.agency()
    with db.as_user(db.user(agency)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(
            "insert into realtime.messages (topic, extension, payload, event, private)"
            " values (%s, 'broadcast', '{}', 'batch_status', true)",
            [f"agency:{agency}"],
        )


def test_without_realtime_the_policy_says_so(db: TestDatabase) -> None:
    with pytest.raises(psycopg.Error, match="Realtime is missing"):
        db.owner.execute(POLICY)
