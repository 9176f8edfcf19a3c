"""The race: dialers dial, users end calls of every scope at random, and dialers are frozen and killed meanwhile."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from ..processes import Process
from .ways import End, Way
from .world import Agency, Batch, Row, Session, World

ENDS = {"cancel": 1, "stop": 2, "pause": 3, "skip": 4, "opt_out": 4}
"""The ends of a batch, each with its weight among the random choices."""
HOLDS = {"campaign": 3, "agent": 3, "caller_number": 3, "agency": 1}
WAITING = 0.5
"""Share of the ends that wait for silence."""
HELD_FOR = (0.1, 1.5)
"""How long a hold lasts, in place-by times: some outlast it, and some do not."""
RESTING_FOR = (0.3, 1.8)
"""The same for a batch that was paused or stopped."""
BETWEEN_ENDS_S = (0.02, 0.25)
BETWEEN_HOLDS_S = (0.2, 0.8)
BETWEEN_DISTURBANCES_S = (0.5, 2.0)
_POLL_S = 0.01
_FEED_S = 0.05
_REFUSED = "PT"
"""Begins the SQLSTATE of what the core refuses, and then has not done."""


class Record:
    """An append-only file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()

    def write(self, event: str, **fields: Any) -> None:
        with self._lock:
            self._file.write(json.dumps({"event": event, **fields}, default=str) + "\n")

    def close(self) -> None:
        self._file.close()


class Worker(threading.Thread):
    """A thread whose error can be asked for."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:
            self.error = error


class Results:
    """Follows the carrier's record, and tells the core how calls ended, as the carrier's webhooks would."""

    def __init__(self, path: Path, session: Session | None) -> None:
        """session: None: nobody is told."""
        self._path = path
        self._session = session
        self._over = threading.Event()
        self.requests = 0
        self.last_contact: dict[str, int] = {}
        """The contact of each batch that the carrier was asked to call last."""

    def end(self) -> None:
        self._over.set()

    def follow(self) -> None:
        """Follow the record until the end is asked for, and tell what is left then."""
        rest = ""
        left: dict[str, list[Row]] = {}
        with self._path.open() as file:
            while True:
                is_over = self._over.is_set()
                *lines, rest = (rest + file.read()).split("\n")
                for row in map(json.loads, lines):
                    if row["event"] == "request":
                        self.requests += 1
                        self.last_contact[row["batch_id"]] = row["contact_id"]
                    else:
                        names = ("call_id", "lease", "status", "outcome", "carrier_call_id", "duration_seconds")
                        left.setdefault(row["batch_id"], []).append({name: row[name] for name in names})
                left = {batch: results for batch, results in left.items() if not self._report(batch, results)}
                if is_over:
                    return
                self._over.wait(_FEED_S)

    def _report(self, batch: str, results: list[Row]) -> bool:
        """Whether it was told; False: the batch is busy."""
        if self._session is None:
            return True
        try:
            self._session.rows("select finish_call(%s::uuid, %s)", batch, json.dumps(results))
        except psycopg.Error as error:
            if not (error.sqlstate or "").startswith(_REFUSED):
                raise
            return False
        return True


class Dialers:
    """The dialers of the race, which are frozen and killed at random."""

    def __init__(self, number: int, start: Callable[[int], Process]) -> None:
        """start: starts the dialer of a number, counted from 0 on."""
        self._start = start
        self._numbers = count(number)
        self._lock = threading.Lock()
        self._dialers = [start(place) for place in range(number)]
        self.frozen = self.killed = 0

    def ready(self) -> None:
        """Wait until all of them are. Raises CommandError."""
        for dialer in self._dialers:
            dialer.ready()

    def check(self) -> None:
        """Raise CommandError if one has ended by itself."""
        with self._lock:
            for dialer in self._dialers:
                dialer.check()

    def disturb(
        self,
        chance: random.Random,
        place_within_s: float,
        over: threading.Event,
        wait_for_claim: Callable[[], None],
    ) -> None:
        """Freeze and kill dialers at random, with calls on their way if wait_for_claim can tell."""
        while not over.wait(chance.uniform(*BETWEEN_DISTURBANCES_S)):
            fate = chance.random()
            # All of them: the machine stands still.
            places = [*range(len(self._dialers))] if fate < 0.2 else [chance.randrange(len(self._dialers))]
            wait_for_claim()
            if fate > 0.8:
                self._replace(places[0])
                continue
            # Until a request in the dialer is too late, or just not.
            share = chance.uniform(1.1, 1.6) if chance.random() < 0.5 else chance.uniform(0.1, 0.9)
            self._signal(places, signal.SIGSTOP)
            over.wait(share * place_within_s)
            self._signal(places, signal.SIGCONT)
            self.frozen += len(places)

    def _signal(self, places: Sequence[int], number: signal.Signals) -> None:
        for place in places:
            self._dialers[place].send_signal(number)

    def _replace(self, place: int) -> None:
        """Kill a dialer, and start another one."""
        with self._lock:
            self._dialers[place].send_signal(signal.SIGKILL)
            self._dialers[place].end()
            self._dialers[place] = self._start(next(self._numbers))
            self._dialers[place].ready()
        self.killed += 1

    def kill(self) -> None:
        """End all of them at once."""
        with self._lock:
            for dialer in self._dialers:
                dialer.send_signal(signal.SIGKILL)

    def end(self) -> None:
        """End all of them in peace."""
        with self._lock:
            for dialer in self._dialers:
                dialer.end()


class Users:
    """Users who end calls. Each agency has two: one ends batches, the other holds calls and lifts the holds."""

    def __init__(self, world: World, record: Record, results: Results, seed: int, place_within_s: float) -> None:
        self._world = world
        self._record = record
        self._results = results
        self._seed = seed
        self._place_within_s = place_within_s
        self._numbers = count(1)
        self.ends = 0

    def chance(self, who: str) -> random.Random:
        """Random choices of one thread."""
        return random.Random(f"{self._seed}/{who}")  # noqa: S311 - repeatable

    def end_batches(self, agency: Agency, way: Way, over: threading.Event) -> None:
        """End batches of an agency at random, go on with those that were paused and stopped, and add a batch for each
        that is over."""
        chance = self.chance(f"batches of {self._world.agencies.index(agency)}")
        resting: list[tuple[float, Batch]] = []
        # Each of these once, from the last one on; then at random.
        whats = ["opt_out", "skip", "pause", "stop", "cancel"]
        while not over.wait(chance.uniform(*BETWEEN_ENDS_S)):
            for resume_at, batch in [*resting]:
                if time.monotonic() >= resume_at:
                    resting.remove((resume_at, batch))
                    self._begin("resume", batch.id, lambda batch=batch: way.resume(batch.id))  # type: ignore[misc]
            self._replace_finished(agency)
            at_rest = [batch for _, batch in resting]
            dialed = [
                batch for batch in agency.batches if batch not in at_rest and batch.id in self._results.last_contact
            ]
            if len(dialed) <= len(agency.batches) // 3:
                continue
            batch = chance.choice(dialed)
            wait = bool(whats) or chance.random() < WAITING
            what = whats.pop() if whats else chance.choices([*ENDS], [*ENDS.values()])[0]
            end = self._choose(what, batch, chance)
            replied = self.perform(end, way, wait=wait and what in ("cancel", "stop", "pause"))
            if replied is not None and what in ("stop", "pause"):
                resting.append((time.monotonic() + chance.uniform(*RESTING_FOR) * self._place_within_s, batch))

    def _replace_finished(self, agency: Agency) -> None:
        statuses = self._world.statuses()
        for batch in [*agency.batches]:
            if statuses.get(batch.id) in ("cancelled", "completed", "failed"):
                agency.batches.remove(batch)
                self._world.add_batch(agency, (batch.campaign, batch.agent, batch.caller_number), self.tell_batch)

    def _choose(self, what: str, batch: Batch, chance: random.Random) -> End:
        if what not in ("skip", "opt_out"):
            return End(what=what, scope="batch", id=batch.id, agency=batch.agency)
        # From the last call on: these contacts are being dialed, or are about to be.
        last = self._results.last_contact[batch.id]
        place = next((place for place, (contact, _) in enumerate(batch.contacts) if contact == last), 0)
        if what == "opt_out":
            _, number = batch.contacts[min(place + chance.randrange(10), len(batch.contacts) - 1)]
            return End(what=what, scope="number", id=number, agency=batch.agency)
        contacts = [contact for contact, _ in batch.contacts[place : place + chance.randint(1, 20)]]
        return End(what=what, scope="contacts", id=batch.id, agency=batch.agency, contacts=contacts)

    def hold_calls(self, agency: Agency, way: Way, over: threading.Event) -> None:
        """Hold calls of an agency, and lift each hold."""
        chance = self.chance(f"holds of {self._world.agencies.index(agency)}")
        while not over.wait(chance.uniform(*BETWEEN_HOLDS_S)):
            scope = chance.choices([*HOLDS], [*HOLDS.values()])[0]
            id_ = agency.id if scope == "agency" else chance.choice(getattr(agency, f"{scope}s"))
            end = End(what="hold", scope=scope, id=id_, agency=agency.id)
            held = self.perform(end, way, wait=chance.random() < WAITING)
            if held is None:
                continue
            over.wait(chance.uniform(*HELD_FOR) * self._place_within_s)
            number, reply = held
            self._begin("lift", end.id, lambda: way.lift(end, reply), of=number)  # noqa: B023 - called at once

    def cancel_all(self, way: Way) -> None:
        """Cancel what is left."""
        chance = self.chance("the end")
        for agency in self._world.agencies:
            for batch in agency.batches:
                if self._world.statuses()[batch.id] not in ("cancelled", "completed", "failed"):
                    end = End(what="cancel", scope="batch", id=batch.id, agency=batch.agency)
                    self.perform(end, way, wait=chance.random() < WAITING)

    def tell_batch(self, batch: Batch) -> None:
        """Record that a batch was created."""
        self._record.write(
            "batch",
            at=time.monotonic(),
            batch=batch.id,
            agency=batch.agency,
            campaign=batch.campaign,
            agent=batch.agent,
            caller_number=batch.caller_number,
            contacts=len(batch.contacts),
        )

    def perform(self, end: End, way: Way, *, wait: bool) -> tuple[int, Row] | None:
        """Ask for an end, and record the reply and what it promises. wait: until nothing can start any more.

        Returns the number of the end and the reply; None: the end was refused.
        """
        reached = [batch for agency in self._world.agencies for batch in [*agency.batches] if end.reaches(batch)]
        way.prepare(end, reached)
        number = next(self._numbers)
        about: dict[str, Any] = {"what": end.what, "scope": end.scope, "id": end.id, "agency": end.agency}
        if end.contacts:
            about["contacts"] = list(end.contacts)
        asked = time.monotonic()
        try:
            reply = way.end(end)
        except psycopg.Error as error:
            self._refuse(error, about)
            return None
        replied = time.monotonic()
        self._record.write(
            "end",
            n=number,
            **about,
            asked=asked,
            replied=replied,
            silent_within_s=self._place_within_s,
            silent=self._wait_for_silence(way, reached) if wait else None,
            reply=reply,
        )
        self.ends += 1
        return number, reply

    def _wait_for_silence(self, way: Way, batches: Sequence[Batch]) -> float | None:
        """Wait until the database says that no call can start. Returns when it did; None: it never did."""
        give_up_at = time.monotonic() + self._place_within_s + 5
        while time.monotonic() < give_up_at:
            is_silent = way.is_silent(batches)
            if is_silent is None:
                return None
            if is_silent:
                return time.monotonic()
            time.sleep(_POLL_S)
        return None

    def _begin(self, what: str, id_: str, ask: Callable[[], Row], **more: Any) -> None:
        asked = time.monotonic()
        for tried in count(1):
            try:
                ask()
                break
            except psycopg.Error as error:
                self._refuse(error, {"what": what, "id": id_})
                if error.sqlstate != "PT503" or tried == 10:
                    break
        # A refused request, too: nobody can say at which moment it was refused.
        self._record.write("begin", what=what, id=id_, asked=asked, replied=time.monotonic(), **more)

    def _refuse(self, error: psycopg.Error, about: dict[str, Any]) -> None:
        if not (error.sqlstate or "").startswith(_REFUSED):
            raise error
        self._record.write("refused", **about, sqlstate=error.sqlstate, message=str(error).splitlines()[0])
