"""How many webhook events a second are applied to one batch, in groups and one by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from uuid import UUID

from .batches import load_core
from .lab import Connection, Lab, Measurement, progress
from .report import milliseconds, table, whole

GROUPS = (1, 10, 100, 500)
EVENTS = 3_000

# The usual way: each event takes its call, its contact and the batch's counters, in a transaction of its own.
ONE_BY_ONE = """
with finished as (
  update calls set status = 'completed', ended_at = now(), outcome = 'answered', duration_seconds = 145
   where agency_id = %(agency)s and batch_id = %(batch)s and id = %(call)s and status = 'in_progress'
  returning contact_id),
done as (
  update campaign_contacts c
     set status = 'completed', completed_at = now(), outcome = 'answered', duration_seconds = 145
    from finished f
   where c.agency_id = %(agency)s and c.batch_id = %(batch)s and c.id = f.contact_id),
counted as (
  update call_batches set in_progress = in_progress - 1, completed = completed + 1
   where agency_id = %(agency)s and id = %(batch)s)
update webhook_queue set status = 'completed', attempts = 1, processed_at = now(), next_retry_at = null
 where agency_id = %(agency)s and id = %(event)s
"""


def run(lab: Lab, runs: int, events: int = EVENTS, groups: Sequence[int] = GROUPS) -> str:
    """The table of all sizes of a run of process_webhook_queue, and the usual way."""
    ways: dict[str, Callable[[Connection, UUID, UUID], int]] = {"an update per event": one_by_one}
    for group in groups:
        ways[f"process_webhook_queue({group})"] = in_groups(group)
    measured: dict[str, list[Measurement]] = {name: [] for name in ways}
    for turn in range(runs):
        for name, way in ways.items():
            progress(f"webhooks, {name}, run {turn + 1}")
            agency_id, batch_id = _load(lab, events)
            with lab.connect() as connection:
                # Once, so that plans are made.
                way(connection, agency_id, batch_id)
                _deliver(lab, agency_id, batch_id, events)
                lab.settle("calls", "campaign_contacts", "call_batches", "webhook_queue")
                measured[name].append(lab.measure(partial(way, connection, agency_id, batch_id)))
    ingest = [_ingest(lab, min(events, 1_000)) for _ in range(runs)]
    rows = [
        [
            name,
            whole(median(m.contacts / m.seconds for m in found)),
            milliseconds(median(m.seconds / m.contacts for m in found)),
            whole(median(m.wal_per_contact for m in found)),
        ]
        for name, found in measured.items()
    ]
    rows.append(
        [
            "ingest_webhook, signed",
            whole(median(m.contacts / m.seconds for m in ingest)),
            milliseconds(median(m.seconds / m.contacts for m in ingest)),
            whole(median(m.wal_per_contact for m in ingest)),
        ]
    )
    return table(
        "Webhooks",
        f"{whole(events)} call.ended events of one batch, applied by one connection; and how fast events come in, each "
        f"in a transaction of its own with its signature verified. Medians of {runs} runs.",
        ["way", "events/s", "ms an event", "WAL bytes an event"],
        rows,
    )


def in_groups(group: int) -> Callable[[Connection, UUID, UUID], int]:
    def way(connection: Connection, _agency: UUID, _batch: UUID) -> int:
        applied = 0
        while done := _value(connection, "select (process_webhook_queue(%s) ->> 'processed')::integer", group):
            applied += done
        return applied

    return way


def one_by_one(connection: Connection, agency_id: UUID, batch_id: UUID) -> int:
    events = connection.execute(
        "select id, (payload #>> '{call,metadata,call_id}')::bigint from webhook_queue"
        " where status = 'pending' order by id"
    ).fetchall()
    for event, call in events:
        connection.execute(ONE_BY_ONE, {"agency": agency_id, "batch": batch_id, "call": call, "event": event})
    return len(events)


def _load(lab: Lab, events: int) -> tuple[UUID, UUID]:
    """A batch with a few calls in progress and their ends told, to warm up with, and more to place."""
    (batch,) = load_core(lab, [events + 10])
    _deliver(lab, batch.agency_id, batch.id, 10)
    return batch.agency_id, batch.id


def _deliver(lab: Lab, agency_id: UUID, batch_id: UUID, events: int) -> None:
    """Place so many more calls, and queue their ends."""
    for first in range(0, events, 1000):
        number = min(1000, events - first)
        lab.owner.execute(
            "select start_call(%s, array_agg(c.call_id), min(c.lease::text)::uuid) from claim_contacts(%s, 60, %s) c",
            [batch_id, number, batch_id],
        )
    lab.owner.execute(
        "insert into webhook_queue (agency_id, event_id, event_type, payload)"
        " select agency_id, id || ' ended', 'call.ended', jsonb_build_object('event', 'call.ended', 'call',"
        "   jsonb_build_object('callId', 'carrier-' || id, 'created', '2025-01-15T10:30:00Z',"
        "     'joined', '2025-01-15T10:30:05Z', 'ended', '2025-01-15T10:32:30Z', 'endReason', 'hangup',"
        "     'metadata', jsonb_build_object('batch_id', batch_id, 'call_id', id, 'lease', lease)))"
        "   from calls where agency_id = %s and batch_id = %s and status = 'in_progress' order by id",
        [agency_id, batch_id],
    )


def _ingest(lab: Lab, events: int) -> Measurement:
    (batch,) = load_core(lab, [0])
    secret = _value(lab.owner, "select webhook_secret from rotate_webhook_secret(%s)", batch.agency_id)
    bodies = [
        json.dumps({"event": "call.ended", "call": {"callId": f"carrier-{i}", "created": "", "summary": "x" * 1000}})
        for i in range(events)
    ]
    signed = [
        lab.owner.execute(
            "select encode(private.hmac_sha256(%s::text::bytea, (%s || now()::text)::bytea), 'hex'), now()::text",
            [secret, body],
        ).fetchone()
        for body in bodies
    ]
    with lab.connect("anon") as connection:
        lab.settle("webhook_queue")

        def ingest() -> int:
            for body, found in zip(bodies, signed, strict=True):
                assert found is not None
                headers = {"x-ultravox-webhook-signature": found[0], "x-ultravox-webhook-timestamp": found[1]}
                connection.execute("select ingest_webhook(%s, %s, %s)", [batch.agency_id, body, json.dumps(headers)])
            return len(bodies)

        return lab.measure(ingest)


def _value(connection: Connection, query: str, *values: object) -> int:
    row = connection.execute(query.encode(), values).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]
