"""How many contacts a second are claimed and started."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from .batches import load_core
from .claimers import Claimers, claimers
from .lab import Lab, progress
from .report import milliseconds, ratio, table, whole
from .rival import install, load

CLAIMERS = (1, 4, 16)
CONTACTS_A_CLAIM = (1, 10, 50)
BATCHES = (1, 32)
PAUSE = 0.002
QUEUES = {"1 batch": 1, "32 batches": 32, "pgqueuer": 0}
"""Ours, by the number of batches, and the other one."""


def run(
    lab: Lab,
    runs: int,
    seconds: float = 1.0,
    supply: int = 60_000,
    numbers: Sequence[int] = CLAIMERS,
    contacts: Sequence[int] = CONTACTS_A_CLAIM,
) -> str:
    """The table of all numbers of claimers and contacts a claim, each measured for `seconds` a run on
    batches of `supply` contacts in all."""
    install(lab)
    measured: dict[tuple[int, int, int], list[tuple[float, float]]] = {}
    claimed: dict[tuple[int, int, str], list[float]] = {}
    for number in numbers:
        with claimers(lab, number) as team:
            for turn in range(runs):
                for a_claim in contacts:
                    for batches in BATCHES:
                        progress(f"claims, {number} claimers by {a_claim} on {batches}, run {turn + 1}")
                        rates = _measure(lab, team, a_claim, batches, seconds, supply)
                        measured.setdefault((number, a_claim, batches), []).append(rates)
                    for queue in QUEUES:
                        progress(f"claims, {number} claimers by {a_claim}, {queue}, run {turn + 1}")
                        rate = _measure_claims(lab, team, a_claim, queue, seconds, supply)
                        claimed.setdefault((number, a_claim, queue), []).append(rate)
    rows = []
    for number in numbers:
        for a_claim in contacts:
            row = [f"{number} by {a_claim}"]
            for batches in BATCHES:
                rates_of_runs = measured[number, a_claim, batches]
                row += [whole(median(rates[i] for rates in rates_of_runs)) for i in (0, 1)]
            rows.append(row)
    against = []
    for number in numbers:
        for a_claim in contacts:
            ours, ours_spread, theirs = (median(claimed[number, a_claim, queue]) for queue in QUEUES)
            rates = [whole(rate) for rate in (ours, ours_spread, theirs)]
            against.append([f"{number} by {a_claim}", *rates, ratio(ours / theirs), ratio(ours_spread / theirs)])
    return table(
        "Claims",
        "Claimers by contacts a claim: claim_contacts, then start_call for all of them, again and again; "
        f"after a claim that got nothing (another holds the batch), a pause of {milliseconds(PAUSE)} ms. "
        f"Claims that got something, and their contacts; medians of {runs} runs.",
        ["claimers"]
        + [f"{what}/s, {n} batch{'es' if n > 1 else ''}" for n in BATCHES for what in ("claims", "contacts")],
        rows,
    ) + table(
        "Claims, beside pgqueuer",
        "Contacts claimed a second by claim_contacts alone, and jobs taken a second by pgqueuer's own statement "
        f"without any of its limits; medians of {runs} runs, taken in turns.",
        ["claimers", "1 batch", "32 batches", "pgqueuer", "1 batch to pgqueuer", "32 batches to pgqueuer"],
        against,
    )


def _measure_claims(lab: Lab, team: Claimers, a_claim: int, queue: str, seconds: float, supply: int) -> float:
    """Contacts, or jobs, claimed a second."""
    if queue == "pgqueuer":
        load(lab, supply)
        lab.settle("pgqueuer")
    else:
        load_core(lab, [supply // QUEUES[queue]] * QUEUES[queue])
        lab.settle("campaign_contacts", "call_batches")
    work = "pgqueuer" if queue == "pgqueuer" else "claim"
    begin = team.begin(a_claim, seconds=seconds, pause=PAUSE, work=work)
    outcome = team.end(now=False)
    return outcome.contacts / (outcome.last_reply - begin)


def _measure(lab: Lab, team: Claimers, a_claim: int, batches: int, seconds: float, supply: int) -> tuple[float, float]:
    """Claims and contacts a second."""
    load_core(lab, [supply // batches] * batches)
    lab.settle("campaign_contacts", "call_batches")
    begin = team.begin(a_claim, seconds=seconds, pause=PAUSE)
    outcome = team.end(now=False)
    # Up to the last claim: the supply may end before the time does.
    elapsed = outcome.last_reply - begin
    return outcome.claims / elapsed, outcome.contacts / elapsed
