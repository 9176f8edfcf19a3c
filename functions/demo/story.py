"""The story: set up, dial, cancel one batch and stop the other, wait, judge."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import psycopg

from .._shared.auth import service
from .._shared.database import connect_database
from .._shared.settings import Settings
from ..dialer.simulated_carrier import CarrierCall
from ..local import STATE, CommandError, kept_secret, make_token
from ..migrations import migrate
from ..postgres_server import PostgresServer, PostgresServerError, embedded_postgres
from .display import Display
from .processes import Process
from .sql_console import DatabaseClaim, Progress, SqlConsole
from .verdict import Reply, Verdict, judge

# The ids of stop-calling's example.
EXTERNAL_USER_ID = "64e5f12345abcdef12345678"
EXTERNAL_BATCH_ID = "64e5f12345abcdef98765432"
NEXT_EXTERNAL_BATCH_ID = "64e5f12345abcdef98765433"

MAX_CONCURRENT = 60
DIALED_BEFORE_CANCEL = 300
"""Contacts of each batch that are dialed before it is cancelled or stopped; fewer for small batches."""
DIALED_WITHIN_S = 60.0
BETWEEN_S = 1.0
"""Seconds from the cancel to the stop, at least."""
WATCH_S = 1.0
"""Seconds for which the dialer goes on asking for contacts after the last call has ended."""
CALLS_END_WITHIN_S = 30.0
LOOK_EVERY_S = 0.1
_ADD_AT_A_TIME = 5_000
_KEPT_CONTACTS = 5_000
_KEPT_CONCURRENT = 3
_DAY_S = 86_400


@dataclass(frozen=True)
class Batch:
    """A batch of the story."""

    title: str
    id: UUID


class Stage:
    """Everything that the story needs, started."""

    def __init__(self, stack: ExitStack, display: Display) -> None:
        """Start it; the stack ends it. Raises CommandError."""
        self.display = display
        self.server = _start_postgres(stack)
        try:
            claim = DatabaseClaim(self.server)
            stack.callback(claim.close)
            self.database = claim.name
            migrate(self.server.uri(self.database))
            self.console = SqlConsole(self.server.uri(self.database))
            stack.callback(self.console.close)
        except psycopg.Error as error:
            raise CommandError(f"the demo's database could not be made: {error}") from None
        display.say(f"PostgreSQL  {STATE / 'demo'}, database {self.database}, migrated")

        self.functions_uri = self.server.uri(self.database, "authenticator")
        self.secret = kept_secret()
        self.functions = self._start(
            stack,
            "serve",
            {"DATABASE_URL": self.functions_uri, "SUPABASE_JWT_SECRET": self.secret, "PORT": "0"},
        )
        self.functions_url = self.functions.ready()
        display.say(f"functions   {self.functions_url}  (lastcall serve)")
        self.carrier = self._start(stack, "carrier", {})
        self.carrier_url = self.carrier.ready()
        display.say(f"carrier     {self.carrier_url}  (simulated, a process of its own, with a record of its own)")
        # Against proxies in the environment: both are on this machine.
        self.http = stack.enter_context(httpx2.Client(timeout=90, trust_env=False))

    def start_dialer(self, stack: ExitStack) -> None:
        """Start dialing."""
        dialer = self._start(
            stack,
            "dialer",
            {
                "DATABASE_URL": self.functions_uri,
                "LASTCALL_CARRIER": "simulator",
                "CARRIER_URL": self.carrier_url,
                "LASTCALL_DIAL_CONCURRENCY": str(2 * MAX_CONCURRENT),
            },
        )
        dialer.ready()
        self.dialer = dialer

    def _start(self, stack: ExitStack, kind: str, environment: dict[str, str]) -> Process:
        process = Process(kind, environment, STATE / f"{self.database}-{kind}.log")
        stack.callback(process.end)
        return process

    def check_processes(self) -> None:
        """Raise CommandError if one has ended."""
        for process in (self.functions, self.carrier, self.dialer):
            process.check()

    def token(self, user_id: UUID) -> str:
        """A user's token, valid for a day."""
        return make_token(self.secret, user=str(user_id), expires_in=_DAY_S, env={})

    def add_contacts(self, batch_id: UUID, number: int) -> None:
        """Give a batch contacts, as a backend does: by add_contacts, with the service role."""
        asyncio.run(_add_contacts(self.functions_uri, batch_id, number))

    def post(self, path: str, body: dict[str, Any], token: str, batch: Batch) -> Reply:
        """Send a function the request to end a batch, and print it and the reply as it came."""
        # So that the connection is open: what is measured is the request.
        self.http.get(f"{self.functions_url}/health")
        sent_at = time.monotonic()
        response = self.http.post(
            f"{self.functions_url}{path}", json=body, headers={"Authorization": f"Bearer {token}"}
        )
        replied_at = time.monotonic()
        started_calls = self.console.started_calls(batch.id)
        self.display.say()
        self.display.say(f"POST {path}  {json.dumps(body)}", style="bold")
        self.display.say(f"{response.http_version} {response.status_code} {response.reason_phrase}")
        self.display.say(response.text)
        self.display.say()
        answer = response.json() if response.headers["Content-Type"] == "application/json" else {}
        return Reply(
            sent_at=sent_at,
            replied_at=replied_at,
            status_code=response.status_code,
            batch_status=answer.get("data", answer).get("status"),
            contacts_skipped=answer.get("contacts_skipped"),
            started_calls=started_calls,
        )

    def record(self) -> list[CarrierCall]:
        """The carrier's record."""
        calls = self.http.get(f"{self.carrier_url}/calls").raise_for_status().json()
        return [CarrierCall(**call) for call in calls]

    def watch(self, batches: Sequence[Batch], until: Callable[[Sequence[Progress]], bool], *, within_s: float) -> bool:
        """Show the batches' progress until it is so; False: it was not, within so many seconds.
        Raises CommandError (a process has ended)."""
        titles, ids = [batch.title for batch in batches], [batch.id for batch in batches]
        give_up_at = time.monotonic() + within_s
        while True:
            progress = self.console.progress(ids)
            self.display.show(titles, progress)
            if until(progress):
                return True
            if time.monotonic() > give_up_at:
                return False
            self.check_processes()
            time.sleep(LOOK_EVERY_S)


def tell(stack: ExitStack, contacts: int, *, keep: bool) -> int:
    """Tell the story with batches of this many contacts each; returns the exit status. The stack ends
    what was started. Raises CommandError (something could not be started, or has ended)."""
    display = Display()
    stack.callback(display.freeze)
    stage = Stage(stack, display)
    console = stage.console
    agency = console.add_agency("Acme")
    owner = console.add_user(agency, "agency_owner")
    member = console.add_user(agency, "agency_member", EXTERNAL_USER_ID)
    # Small batches are dialed slower: there must be something left to cancel.
    concurrent = min(MAX_CONCURRENT, max(2, contacts // 5))
    cancelled = Batch("batch 1", console.add_batch(agency, owner, max_concurrent=concurrent))
    stopped = Batch(
        "batch 2", console.add_batch(agency, member, max_concurrent=concurrent, external_id=EXTERNAL_BATCH_ID)
    )
    both = (cancelled, stopped)
    for batch in both:
        stage.add_contacts(batch.id, contacts)
    display.say(f"batches     2 of {contacts:,} contacts each, at most {concurrent} calls at a time in each")
    stage.start_dialer(stack)
    display.say("dialer      claims, passes start_call, places calls")
    display.say()

    token = stage.token(owner)
    enough = min(DIALED_BEFORE_CANCEL, contacts // 3)
    _wait_for_calls(stage, both, cancelled, enough)
    cancel_reply = stage.post("/functions/v1/calls-batch-cancel", {"batch_id": str(cancelled.id)}, token, cancelled)
    stage.watch(both, lambda _now: False, within_s=BETWEEN_S)
    _wait_for_calls(stage, both, stopped, enough)
    stop_reply = stage.post(
        "/api/call/stop-calling", {"batchId": EXTERNAL_BATCH_ID, "userId": EXTERNAL_USER_ID}, token, stopped
    )
    _wait_for_silence(stage, both)
    display.freeze()

    record = stage.record()
    verdicts = []
    for batch, ended, reply in ((cancelled, "cancelled", cancel_reply), (stopped, "stopped", stop_reply)):
        of_batch = [call for call in record if call.batch_id == str(batch.id)]
        verdict = judge(ended, contacts, reply, of_batch, console.books(batch.id))
        _print_verdict(display, f"{batch.title}, {ended}", verdict)
        verdicts.append(verdict)
    claimable = console.claimable_when_resumed(stopped.id)
    display.say(f"  note  resumed (tried out, and undone), a dialer's next claim gets {claimable} contacts")
    went_on = sum(
        call.batch_id == str(stopped.id) and cancel_reply.sent_at < call.arrived_at < stop_reply.sent_at
        for call in record
    )
    display.say(f"  note  between the cancel of batch 1 and its own stop, {went_on} of its calls started")

    held = all(verdict.holds for verdict in verdicts)
    display.say()
    if held:
        display.say("It holds: no call started after either reply, and every contact is accounted for.", "bold green")
    else:
        display.say("It does NOT hold: see the lines marked NO.", "bold red")
    if keep:
        _keep(stage, agency, owner, member)
    return 0 if held else 1


def _start_postgres(stack: ExitStack) -> PostgresServer:
    try:
        server = embedded_postgres(STATE / "demo")
        stack.callback(server.stop)
        server.start()
    except PostgresServerError as error:
        raise CommandError(str(error)) from None
    return server


async def _add_contacts(database_url: str, batch_id: UUID, number: int) -> None:
    settings = Settings(database_url=database_url)
    database = connect_database(settings)
    try:
        for first in range(0, number, _ADD_AT_A_TIME):
            contacts = [
                {"phone_number": f"+1555{i:07d}", "custom_data": {"first_name": f"Contact {i}"}}
                for i in range(first, min(first + _ADD_AT_A_TIME, number))
            ]
            await database.call(service(settings), "add_contacts", {"batch_id": batch_id, "contacts": contacts})
    finally:
        await database.close()


def _wait_for_calls(stage: Stage, batches: Sequence[Batch], batch: Batch, enough: int) -> None:
    """Wait until so many contacts of the batch have been dialed and calls are in progress."""
    place = batches.index(batch)
    if not stage.watch(
        batches,
        lambda now: now[place].dialed >= enough and now[place].in_progress > 0,
        within_s=DIALED_WITHIN_S,
    ):
        raise CommandError(f"{batch.title} was not being dialed within {DIALED_WITHIN_S:.0f} seconds")


def _wait_for_silence(stage: Stage, batches: Sequence[Batch]) -> None:
    """Wait until the calls in progress have ended, at the carrier and in the database (if they do not,
    the verdict says so); and a while longer, in which the dialer goes on asking for contacts."""
    stage.watch(
        batches,
        lambda now: (
            not any(batch.in_progress for batch in now) and all(call.ended_at is not None for call in stage.record())
        ),
        within_s=CALLS_END_WITHIN_S,
    )
    stage.watch(batches, lambda _now: False, within_s=WATCH_S)


def _print_verdict(display: Display, title: str, verdict: Verdict) -> None:
    display.say()
    display.say(title, style="bold")
    for check in verdict.checks:
        display.say(f"  {'ok  ' if check.holds else 'NO  '}  {check.text}", style="green" if check.holds else "red")
    for note in verdict.notes:
        display.say(f"  note  {note}")


def _keep(stage: Stage, agency: UUID, owner: UUID, member: UUID) -> None:
    """Start two more batches, print how to cancel and stop them, and serve until Ctrl-C."""
    console, say = stage.console, stage.display.say
    to_cancel = console.add_batch(agency, owner, max_concurrent=_KEPT_CONCURRENT)
    to_stop = console.add_batch(agency, member, max_concurrent=_KEPT_CONCURRENT, external_id=NEXT_EXTERNAL_BATCH_ID)
    for batch_id in (to_cancel, to_stop):
        stage.add_contacts(batch_id, _KEPT_CONTACTS)
    console.process_batches()
    token = stage.token(owner)
    say()
    say(f"Two more batches of {_KEPT_CONTACTS:,} contacts are being dialed. Cancel one:", style="bold")
    say(_curl(f"{stage.functions_url}/functions/v1/calls-batch-cancel", token, {"batch_id": str(to_cancel)}))
    say("Stop the other:", style="bold")
    say(
        _curl(
            f"{stage.functions_url}/api/call/stop-calling",
            token,
            {"batchId": NEXT_EXTERNAL_BATCH_ID, "userId": EXTERNAL_USER_ID},
        )
    )
    say("The SQL console:", style="bold")
    psql: Path = stage.server.bin_folder / "psql"
    say(shlex.join([str(psql), stage.server.uri(stage.database)]))
    say("There: select * from v_call_batch_summary;  select * from cancel_batch('...');")
    say()
    say("Serving until Ctrl-C.")
    try:
        stage.functions.wait()
    except KeyboardInterrupt:
        say()


def _curl(url: str, token: str, body: dict[str, str]) -> str:
    headers = ("-H", f"Authorization: Bearer {token}", "-H", "Content-Type: application/json")
    return shlex.join(["curl", "-sS", "-X", "POST", url, *headers, "-d", json.dumps(body)])
