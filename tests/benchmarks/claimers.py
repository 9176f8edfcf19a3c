"""Dialers that do nothing but claim and start, each a process with a connection of its own."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import TYPE_CHECKING
from uuid import UUID

import psycopg

from .rival import Rival

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized
    from multiprocessing.synchronize import Event

    from .lab import Lab

BATCH_ID, CALL_ID, LEASE = 1, 2, 13
"""Places in a row of claim_contacts."""
PATIENCE = 60.0
"""Seconds after which a claimer that is not told to stop does so, lest a failure leaves it running."""


@dataclass(frozen=True)
class Order:
    """The work (claim and start, only claim, or claim from pgqueuer's queue): so many contacts at a time (of one
    batch, or of any) from a time on, until the stop event or the deadline, with a pause after a claim that got
    nothing. Times are of time.monotonic(), which all processes share."""

    work: str
    contacts: int
    batch_id: UUID | None
    begin: float
    deadline: float
    pause: float


@dataclass(frozen=True)
class Outcome:
    """The claims of one claimer, or of all: claims that were not empty, their contacts, and when the
    reply to the last of them was there (0.0: none)."""

    claims: int
    contacts: int
    last_reply: float


class Claimers:
    """A number of claimers, connected and waiting for orders."""

    def __init__(self, lab: Lab, number: int) -> None:
        context: SpawnContext = multiprocessing.get_context("spawn")
        self._stop: Event = context.Event()
        self._claims: Synchronized[int] = context.Value("q", 0)
        self._pipes: list[Pipe] = []
        self._processes: list[SpawnProcess] = []
        for _ in range(number):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_claimer, args=(lab.service_uri, theirs, self._stop, self._claims), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()  # connected

    def begin(
        self,
        contacts: int,
        batch_id: UUID | None = None,
        seconds: float = PATIENCE,
        pause: float = 0.0,
        work: str = "claim and start",
    ) -> float:
        """Send all off at once, to stop by themselves after `seconds`. Returns when they begin."""
        self._stop.clear()
        self._claims.value = 0
        begin = time.monotonic() + 0.05
        for pipe in self._pipes:
            pipe.send(Order(work, contacts, batch_id, begin, begin + seconds, pause))
        return begin

    def wait_for_claims(self, number: int) -> None:
        """Until so many claims got something."""
        deadline = time.monotonic() + PATIENCE
        while self._claims.value < number:
            assert time.monotonic() < deadline, "the claimers get nothing"
            time.sleep(0.0005)

    def end(self, now: bool = True) -> Outcome:
        """Stop all (now, or when their time is over) and add up what they got."""
        if now:
            self._stop.set()
        outcomes: list[Outcome] = [pipe.recv() for pipe in self._pipes]
        return Outcome(
            sum(o.claims for o in outcomes),
            sum(o.contacts for o in outcomes),
            max(o.last_reply for o in outcomes),
        )

    def close(self) -> None:
        self._stop.set()
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            process.kill()


@contextmanager
def claimers(lab: Lab, number: int) -> Iterator[Claimers]:
    team = Claimers(lab, number)
    try:
        yield team
    finally:
        team.close()


def _claimer(uri: str, pipe: Pipe, stop: Event, claims: Synchronized[int]) -> None:
    # Ctrl-C reaches every process of the terminal; whoever started this one closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("select set_config('role', 'service_role', false)")
        pipe.send("ready")
        with suppress(EOFError, BrokenPipeError):
            while True:
                pipe.send(_claim(connection, pipe.recv(), stop, claims))


def _claim(
    connection: psycopg.Connection[tuple[object, ...]], order: Order, stop: Event, total: Synchronized[int]
) -> Outcome:
    claims = contacts = 0
    last_reply = 0.0
    rival = Rival(connection)
    time.sleep(max(order.begin - time.monotonic(), 0))
    tried = False
    # Once at least: on a busy machine the time may be over before it begins.
    while not tried or (not stop.is_set() and time.monotonic() < order.deadline):
        tried = True
        claimed = (
            rival.claim(order.contacts)
            if order.work == "pgqueuer"
            else connection.execute(
                "select c.* from claim_contacts(%s, 60, %s) c", [order.contacts, order.batch_id]
            ).fetchall()
        )
        if not claimed:
            if order.pause:
                time.sleep(order.pause)
            continue
        last_reply = time.monotonic()
        with total.get_lock():
            total.value += 1
        claims += 1
        contacts += len(claimed)
        if order.work == "claim and start":
            calls = [row[CALL_ID] for row in claimed]
            connection.execute("select start_call(%s, %s, %s)", [claimed[0][BATCH_ID], calls, claimed[0][LEASE]])
    return Outcome(claims, contacts, last_reply)
