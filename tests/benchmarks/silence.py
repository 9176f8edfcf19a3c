"""How soon after the request a batch is silent, while claimers hammer it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from .batches import load_core
from .cancel import procedure
from .claimers import Claimers, claimers
from .lab import Lab, progress
from .report import milliseconds, table, whole

CLAIMERS = 16
CONTACTS_A_CLAIM = 10
WARM_UP_CLAIMS = 300
TRIES = 20
"""Most tries of a round: on a busy machine the claimers may be done with a small batch before the cancel is sent."""


def run(lab: Lab, sizes: Sequence[int], rounds: Sequence[int], number: int = CLAIMERS) -> str:
    """The table of all sizes, with so many rounds each."""
    rows = []
    with claimers(lab, number) as team:
        for size, times in zip(sizes, rounds, strict=True):
            silent, replied = [], []
            for turn in range(times):
                progress(f"silence of {size:,}, round {turn + 1}")
                last_claim, reply = _round(lab, team, size)
                silent.append(last_claim)
                replied.append(reply)
            rows.append(
                [
                    whole(size),
                    str(times),
                    milliseconds(median(silent)),
                    milliseconds(max(silent)),
                    milliseconds(median(replied)),
                    milliseconds(max(replied)),
                ]
            )
    return table(
        "From request to silence",
        f"{number} claimers, each a process that claims {CONTACTS_A_CLAIM} contacts and starts their calls, "
        "again and again and without a pause, when cancel_batch is sent. They have done so on another batch "
        "before, since dialers keep their connections. Silence: when the reply to the last "
        "claim that got anything was there; replied: when that to cancel_batch was; both in ms after the "
        "cancel was sent.",
        ["contacts", "rounds", "silence, median", "worst", "replied, median", "worst"],
        rows,
    )


def _round(lab: Lab, team: Claimers, size: int) -> tuple[float, float]:
    """Seconds from sending the cancel to the last claim's reply, and to the cancel's own."""
    for _ in range(TRIES):
        if (measured := _try(lab, team, size)) is not None:
            return measured
    raise AssertionError("the claimers were faster than the cancel: nothing was measured")


def _try(lab: Lab, team: Claimers, size: int) -> tuple[float, float] | None:
    """Measure one cancel; None: the claimers were faster, and left it nothing."""
    warm_up, other, batch = load_core(lab, [10, 50_000, size])
    lab.settle("campaign_contacts", "call_batches")
    with lab.connect() as connection:
        procedure(connection, warm_up)
        # Dialers hold open connections, which have planned and compiled all this before.
        team.begin(CONTACTS_A_CLAIM, other.id)
        team.wait_for_claims(WARM_UP_CLAIMS)
        team.end()
        team.begin(CONTACTS_A_CLAIM, batch.id)
        # Well under way, and most of the batch still to come.
        team.wait_for_claims(min(size // CONTACTS_A_CLAIM // 10, 1000))
        sent = time.monotonic()
        skipped = procedure(connection, batch)
        replied = time.monotonic()
        # Claimers go on for a while: whatever they could still get would show.
        time.sleep(0.05)
        last_claim = team.end().last_reply
    return (max(last_claim - sent, 0.0), replied - sent) if skipped else None
