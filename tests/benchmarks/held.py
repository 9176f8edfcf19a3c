"""How fast real dialers dial a batch while another agency's batch is held, or cancelled with very many contacts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from uuid import UUID, uuid4

from ..support.processes import looping
from ..support.simulator import simulated
from .batches import add_core_batch
from .lab import Lab, progress
from .report import milliseconds, ratio, table, whole

HELD_S = 60.0
"""Seconds for which the other batch is held, and for which the quiet before is measured."""
SIZE = 1_000_000
"""Contacts of the other batch when it is cancelled."""
DIALERS = 2
CONCURRENT = 20
"""Most calls of a batch at a time: less than the dialers and the machine could do."""
_CONTACTS = 40_000
_CALL_S = (0.15, 0.15)
_SETTLE_S = 3.0


def run(lab: Lab, runs: int, held_s: float = HELD_S, size: int = SIZE, contacts: int = _CONTACTS) -> str:
    """The table of the starts in a second, beside those of the time before."""
    rows = []
    situations = {
        f"held for {held_s:g} s": (contacts, held_s),
        f"cancelled, {whole(size)} contacts": (size, 0.0),
    }
    for name, (size_of_other, seconds_held) in situations.items():
        quiet, during, lasted = [], [], []
        for turn in range(runs):
            progress(f"held, the other batch is {name}, run {turn + 1}")
            lab.owner.execute("truncate public.agencies cascade")
            dialed, other = _batch(lab, contacts), _batch(lab, size_of_other)
            lab.settle("campaign_contacts", "call_batches", "calls")
            with _dialing(lab):
                quiet.append(_starts_a_second(lab, dialed, partial(time.sleep, held_s))[0])
                rate, seconds = _starts_a_second(lab, dialed, partial(_hold, lab, other, seconds_held))
                during.append(rate)
                lasted.append(seconds)
        ratios = [rate / before for rate, before in zip(during, quiet, strict=True)]
        rows.append(
            [
                name,
                milliseconds(median(lasted)),
                f"{median(quiet):.1f}",
                f"{median(during):.1f}",
                ratio(median(ratios)),
                ratio(min(ratios)),
            ]
        )
    return table(
        "Held",
        f"A batch of at most {CONCURRENT} calls at a time is dialed by {DIALERS} dialers, processes of their own, at "
        "the simulated carrier, while a batch of another agency that they dial too is cancelled: in a transaction that "
        "is left open, or by an ordinary cancel. Starts in a second, before and meanwhile.",
        ["the other batch is", "ms", "starts before", "meanwhile", "ratio", "worst"],
        rows,
    )


def _batch(lab: Lab, size: int) -> UUID:
    """A batch of an agency of its own."""
    agency = uuid4()
    lab.owner.execute("insert into agencies (id, name) values (%s, 'Acme')", [agency])
    batch = add_core_batch(lab.owner, agency, size)
    lab.owner.execute("update call_batches set max_concurrent = %s where id = %s", [CONCURRENT, batch])
    return batch


@contextmanager
def _dialing(lab: Lab) -> Iterator[None]:
    with ExitStack() as stack:
        carrier = stack.enter_context(simulated(answer_at_end=True, ring_s=_CALL_S, talk_s=_CALL_S))
        for _ in range(DIALERS):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lastcall-bench-")))
            settings = {"DATABASE_URL": lab.service_uri, "LASTCALL_CARRIER": "simulator", "CARRIER_URL": carrier}
            stack.enter_context(looping(folder, settings))
        time.sleep(_SETTLE_S)
        yield


def _hold(lab: Lab, batch: UUID, seconds: float) -> None:
    """Cancel the batch, and commit so many seconds later."""
    with lab.connect() as connection, connection.transaction():
        connection.execute("select cancel_batch(%s)", [batch])
        time.sleep(seconds)


def _starts_a_second(lab: Lab, batch: UUID, during: Callable[[], None]) -> tuple[float, float]:
    """Starts of the batch in a second while something lasts, and its seconds."""
    began = time.perf_counter()
    before = _started(lab, batch)
    during()
    seconds = time.perf_counter() - began
    return (_started(lab, batch) - before) / seconds, seconds


def _started(lab: Lab, batch: UUID) -> int:
    row = lab.owner.execute("select count(*) from calls where batch_id = %s and started_at is not null", [batch])
    (number,) = row.fetchone() or (0,)
    return int(number)
