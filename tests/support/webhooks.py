"""A carrier that reports on calls: its events, and how it signs them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from .database import Connection, TestDatabase

CREATED = "2025-01-15T10:30:00Z"
JOINED = "2025-01-15T10:30:05.000Z"
ENDED = "2025-01-15T10:32:30.400Z"


def event(event_type: str, call: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """An event about one of our claimed calls, which the carrier knows as "carrier-<its id>"; fields override
    those of the carrier's call."""
    about: dict[str, Any] = {"callId": f"carrier-{call['call_id'] if call else 0}", "created": CREATED}
    if event_type != "call.started":
        about["joined"] = JOINED
    if event_type == "call.ended":
        about |= {"ended": ENDED, "endReason": "hangup"}
    if call:
        about["metadata"] = {"batch_id": str(call["batch_id"]), "call_id": call["call_id"], "lease": str(call["lease"])}
    return {"event": event_type, "call": about | fields}


BODY = json.dumps(event("call.ended"), indent=1) + "\n"
"""The body of an event, with white space that a signature covers."""
STORED = (200, {"success": True, "event_id": "carrier-0 call.ended"})
"""The status and the JSON body that webhook-ingest answers BODY with, once stored."""


def missed(call: dict[str, Any], reason: str | None = "unjoined", **fields: Any) -> dict[str, Any]:
    """The end of a call that nobody answered."""
    return event("call.ended", call, joined=None, endReason=reason, **fields)


def signed_standard(secret: str, body: str, *, webhook_id: str = "msg_1", age: float = 0) -> dict[str, str]:
    """The headers of Standard Webhooks."""
    timestamp = str(int(time.time() - age))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{webhook_id}.{timestamp}.{body}".encode(), hashlib.sha256)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def signed_ultravox(secret: str, body: str, *, age: float = 0) -> dict[str, str]:
    """The headers of Ultravox."""
    timestamp = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    return {
        "x-ultravox-webhook-timestamp": timestamp,
        "x-ultravox-webhook-signature": hmac.new(secret.encode(), (body + timestamp).encode(), "sha256").hexdigest(),
    }


class Carrier:
    """A carrier that calls for an agency, and reports."""

    def __init__(self, db: TestDatabase, agency: UUID) -> None:
        self.db = db
        self.agency = agency
        self.secret: str = db.value("select webhook_secret from rotate_webhook_secret(%s)", agency)

    def place(self, batch: UUID, number: int = 1) -> list[dict[str, Any]]:
        """Claim and start so many calls of the batch."""
        calls = self.db.rows(
            "select batch_id, call_id, lease, contact_id from claim_contacts(%s, 60, %s)", number, batch
        )
        if calls:
            self.db.start_calls(batch, [call["call_id"] for call in calls])
        return calls

    def tell(self, *events: dict[str, Any], connection: Connection | None = None) -> list[str]:
        """Deliver events, in this order: their ids."""
        told = []
        for told_event in events:
            row = (
                (connection or self.db.owner)
                .execute(
                    "select event_id from ingest_webhook(%s, %s, path_secret => %s)",
                    [self.agency, json.dumps(told_event), self.secret],
                )
                .fetchone()
            )
            assert row is not None
            told.append(row["event_id"])
        return told


def process(db: TestDatabase, **arguments: Any) -> dict[str, int]:
    """One run, which begins no further batch after 50 milliseconds."""
    named = ", ".join(f"{name} => %s" for name in arguments)
    answer: dict[str, int] = db.value(f"select process_webhook_queue({named})", *arguments.values())
    return answer


def process_all(db: TestDatabase) -> dict[str, int]:
    """Runs until nothing is due any more, and what they did in all."""
    done: Counter[str] = Counter(processed=0, failed=0)
    while set((run := process(db)).values()) != {0}:
        done.update(run)
    return dict(done)


def queue(db: TestDatabase) -> list[tuple[str, str | None]]:
    """Status and message of each event, in the order of their arrival."""
    return [
        (row["status"], row["error_message"])
        for row in db.rows("select status::text, error_message from webhook_queue order by id")
    ]
