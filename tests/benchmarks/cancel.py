"""How long cancelling a batch takes, and what it writes: the procedure, the bare statement under it, and
the usual edge function on a typical table and on ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from psycopg import sql

from .batches import TYPICAL, Batch, load_core, load_typical
from .lab import Connection, Lab, Measurement, progress
from .report import milliseconds, ratio, table, whole

OTHERS = 100_000
WARM_UP = 10


@dataclass(frozen=True)
class Variant:
    """A way to cancel: where its rows are, who asks, and how."""

    name: str
    load: Callable[[Lab, list[int], int], list[Batch]]
    connect: Callable[[Lab, Batch], Connection]
    cancel: Callable[[Connection, Batch], int]
    table: str = "campaign_contacts"
    slow: bool = False


def bare_update(connection: Connection, batch: Batch) -> int:
    """The least that any cancel has to do: one statement, with constants."""
    statement = sql.SQL(
        "update campaign_contacts set status = 'skipped', outcome_notes = 'Batch cancelled'"
        " where agency_id = {} and batch_id = {} and status in ('pending', 'scheduled', 'queued')"
    )
    return connection.execute(statement.format(sql.Literal(batch.agency_id), sql.Literal(batch.id))).rowcount


def procedure(connection: Connection, batch: Batch) -> int:
    """lastcall: one statement from the SQL console."""
    statement = sql.SQL("select contacts_skipped from cancel_batch({})").format(sql.Literal(str(batch.id)))
    row = connection.execute(statement).fetchone()
    assert row is not None
    return int(row[0])


def four_calls_typical(connection: Connection, batch: Batch) -> int:
    """The usual edge function: four calls, as a user under row-level security, ids returned to be counted."""
    connection.execute("select id, agency_id, role from typical.users where id = %s", [batch.user_id]).fetchone()
    connection.execute(
        "select id, agency_id, status, skipped from typical.call_batches where id = %s", [batch.id]
    ).fetchone()
    skipped = connection.execute(
        "update typical.campaign_contacts set status = 'skipped', outcome_notes = 'Batch cancelled'"
        " where batch_id = %s and status in ('pending', 'scheduled', 'queued') returning id",
        [batch.id],
    ).fetchall()
    connection.execute(
        "update typical.call_batches set status = 'cancelled', skipped = %s, completed_at = now(),"
        " error_message = 'Cancelled by user' where id = %s",
        [len(skipped), batch.id],
    )
    return len(skipped)


def four_calls_core(connection: Connection, batch: Batch) -> int:
    """The same four calls on lastcall's table, as its owner: what the table alone is worth."""
    connection.execute("select id, agency_id, role from users where id = %s", [batch.user_id]).fetchone()
    connection.execute("select id, agency_id, status, skipped from call_batches where id = %s", [batch.id]).fetchone()
    skipped = connection.execute(
        "update campaign_contacts set status = 'skipped', outcome_notes = 'Batch cancelled'"
        " where agency_id = %s and batch_id = %s and status in ('pending', 'scheduled', 'queued')"
        " returning id",
        [batch.agency_id, batch.id],
    ).fetchall()
    connection.execute(
        "update call_batches set status = 'cancelled', skipped = %s, completed_at = now(),"
        " error_message = 'Cancelled by user' where agency_id = %s and id = %s",
        [len(skipped), batch.agency_id, batch.id],
    )
    return len(skipped)


def _as_owner(lab: Lab, _: Batch) -> Connection:
    return lab.connect()


def _as_user(lab: Lab, batch: Batch) -> Connection:
    return lab.connect("authenticated", json.dumps({"sub": str(batch.user_id), "role": "authenticated"}))


VARIANTS = [
    Variant("(a) bare update", load_core, _as_owner, bare_update),
    Variant("(b) cancel_batch", load_core, _as_owner, procedure),
    Variant(
        "(c) four calls, typical table",
        load_typical,
        _as_user,
        four_calls_typical,
        "typical.campaign_contacts",
        slow=True,
    ),
    Variant("(d) four calls, our table", load_core, _as_owner, four_calls_core),
]


def run(lab: Lab, sizes: Sequence[int], runs: int, others: int = OTHERS) -> str:
    """The table of all variants at all sizes."""
    lab.owner.execute(TYPICAL)
    rows = []
    for size in sizes:
        measured = _measure(lab, size, runs, others)
        medians = {name: median(m.seconds for m in measurements) for name, measurements in measured.items()}
        bare, ours = medians[VARIANTS[0].name], medians[VARIANTS[1].name]
        for name, measurements in measured.items():
            seconds = medians[name]
            rows.append(
                [
                    f"{whole(size)} {name}",
                    str(len(measurements)),
                    milliseconds(seconds),
                    whole(size / seconds),
                    whole(median(m.wal_per_contact for m in measurements)),
                    ratio(seconds / bare),
                    ratio(seconds / ours),
                ]
            )
    return table(
        "Cancel",
        "Every contact of one batch is pending and gets skipped; medians. In every other run the table also "
        f"holds {whole(others)} contacts of other batches. Each batch is fresh, vacuumed, analyzed and "
        "checkpointed, as one that was uploaded a while ago, so the WAL includes whole pages at their first "
        "change. Last columns: how many times as long as (a), and as (b).",
        ["contacts, way", "runs", "ms", "contacts/s", "WAL bytes/contact", "to (a)", "to (b)"],
        rows,
    )


def _measure(lab: Lab, size: int, runs: int, others: int) -> dict[str, list[Measurement]]:
    """By variant; the variants take turns, so that a noisy minute hits all of them."""
    measured: dict[str, list[Measurement]] = {variant.name: [] for variant in VARIANTS}
    # The shorter, the noisier, and the cheaper to repeat.
    batches_a_run = 4 if size <= 10_000 else 2 if size <= 100_000 else 1
    for number in range(runs):
        for variant in VARIANTS:
            # A million rows: loading them takes longer than the rest, and the differences are large.
            if size >= 1_000_000 and number >= (2 if variant.slow else 4):
                continue
            progress(f"cancel of {size:,}, {variant.name}, run {number + 1}")
            warm_up, *batches = variant.load(lab, [WARM_UP] + [size] * batches_a_run, others if number % 2 else 0)
            lab.settle(variant.table)
            with variant.connect(lab, warm_up) as connection:
                # Clients hold pooled connections, which have planned and compiled all this before.
                variant.cancel(connection, warm_up)
                for batch in batches:
                    measurement = lab.measure(partial(variant.cancel, connection, batch))
                    assert measurement.contacts == size, f"{variant.name}: {measurement.contacts} of {size}"
                    measured[variant.name].append(measurement)
    return measured
