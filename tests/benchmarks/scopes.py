"""How soon after a hold an agency is silent, and how long a skip takes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from uuid import UUID, uuid4

from .batches import add_core_batch, load_core
from .cancel import procedure
from .claimers import Claimers, claimers
from .lab import Connection, Lab, progress
from .report import milliseconds, ratio, table, whole

CLAIMERS = 16
CONTACTS_A_CLAIM = 10
WARM_UP_CLAIMS = 300
BATCHES = 1000
SIZE = 1_000_000


def holds(lab: Lab, rounds: int, batches: int = BATCHES, size: int = SIZE, number: int = CLAIMERS) -> str:
    """The table of holds of an agency with so many batches being dialed, and so many contacts in all."""
    progress(f"scopes: {batches:,} batches of {size:,} contacts")
    agency = _agency(lab, batches, size)
    silent, replied, lifted = [], [], []
    with claimers(lab, number) as team, lab.connect() as connection:
        for turn in range(rounds):
            progress(f"scopes: hold {turn + 1}")
            times = _hold(team, connection, agency)
            silent.append(times[0])
            replied.append(times[1])
            lifted.append(times[2])
    return table(
        "From a hold to silence",
        f"{number} claimers claim {CONTACTS_A_CLAIM} contacts of any batch and start their calls, again and again and "
        f"without a pause, when the agency is held: {whole(batches)} batches being dialed, {whole(size)} contacts. "
        "Silence: when the reply to the last claim that got anything was there; replied: when that to hold_calls was; "
        "both in ms after the hold was sent. Lifted: how long lift_hold took.",
        ["rounds", "silence, median", "worst", "replied, median", "worst", "lifted, median"],
        [
            [
                str(rounds),
                milliseconds(median(silent)),
                milliseconds(max(silent)),
                milliseconds(median(replied)),
                milliseconds(max(replied)),
                milliseconds(median(lifted)),
            ]
        ],
    )


def _agency(lab: Lab, batches: int, size: int) -> UUID:
    lab.owner.execute("truncate public.agencies cascade")
    agency = uuid4()
    lab.owner.execute("insert into agencies (id, name) values (%s, 'Acme')", [agency])
    for _ in range(batches):
        add_core_batch(lab.owner, agency, size // batches)
    lab.settle("campaign_contacts", "call_batches")
    return agency


def _hold(team: Claimers, connection: Connection, agency: UUID) -> tuple[float, float, float]:
    """Seconds from sending the hold to the last claim's reply and to the hold's own, and those of the lifting."""
    team.begin(CONTACTS_A_CLAIM)
    team.wait_for_claims(WARM_UP_CLAIMS)
    sent = time.monotonic()
    row = connection.execute("select (hold_calls(whole_agency => true, agency_id => %s)).hold_id", [agency]).fetchone()
    replied = time.monotonic()
    # Claimers go on for a while: whatever they could still get would show.
    time.sleep(0.05)
    last_claim = team.end().last_reply
    lifting = time.monotonic()
    connection.execute("select lift_hold(%s)", row)
    return max(last_claim - sent, 0.0), replied - sent, time.monotonic() - lifting


def skips(lab: Lab, runs: int, size: int) -> str:
    """The table of skips of a batch of so many contacts."""
    ids = min(10_000, size)
    cancelled = []
    kinds: dict[str, Callable[[Connection, UUID], object]] = {
        f"{whole(ids)} ids": partial(_skip_ids, number=ids),
        "by status": partial(_skip_filter, chosen={"status": ["pending"]}),
        "by a column": partial(_skip_filter, chosen={"custom_data": {"plan": "gold"}}),
    }
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(runs):
        progress(f"scopes: skip of {size:,}, run {turn + 1}")
        (batch,) = load_core(lab, [size])
        lab.settle("campaign_contacts", "call_batches")
        with lab.connect() as connection:
            cancelled.append(_seconds(partial(procedure, connection, batch)))
            for kind, skip in kinds.items():
                fresh = add_core_batch(lab.owner, batch.agency_id, size)
                lab.owner.execute(
                    "insert into contact_data (agency_id, batch_id, contact_id, custom_data)"
                    " select agency_id, batch_id, id, jsonb_build_object('plan', 'gold') from campaign_contacts"
                    " where batch_id = %s",
                    [fresh],
                )
                lab.settle("campaign_contacts", "call_batches", "contact_data")
                taken[kind].append(_seconds(partial(skip, connection, fresh)))
    rows = [["all, by cancel_batch", milliseconds(median(cancelled)), ""]]
    rows += [
        [kind, milliseconds(median(times)), ratio(median(times) / median(cancelled))] for kind, times in taken.items()
    ]
    return table(
        "Skip",
        f"skip_contacts on a batch of {whole(size)} pending contacts, beside cancel_batch on such a batch.",
        ["skipped", "ms", "to cancel_batch"],
        rows,
    )


def _skip_ids(connection: Connection, batch: UUID, number: int) -> None:
    connection.execute(
        "select skip_contacts(%(batch)s, array(select id::text from campaign_contacts"
        " where batch_id = %(batch)s order by id limit %(number)s))",
        {"batch": batch, "number": number},
    )


def _skip_filter(connection: Connection, batch: UUID, chosen: dict[str, object]) -> None:
    connection.execute("select skip_contacts(%s, filter => %s)", [batch, json.dumps(chosen)])


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
