"""The story: create, dial, pause and resume one batch and cancel it, stop the other, wait, judge."""

from __future__ import annotations

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

from .._shared.settings import Settings
from ..database_claim import DatabaseClaim
from ..dialer.simulated_carrier import CarrierCall
from ..local import STATE, CommandError, kept_secret, make_token
from ..migrations import migrate
from ..postgres_server import PostgresServer, PostgresServerError, embedded_postgres
from ..processes import Process
from .display import Display
from .sql_console import Progress, SqlConsole
from .verdict import Reply, Verdict, events_to_tell, judge, judge_pause

# The ids of stop-calling's example.
EXTERNAL_USER_ID = "64e5f12345abcdef12345678"
EXTERNAL_BATCH_ID = "64e5f12345abcdef98765432"
NEXT_EXTERNAL_BATCH_ID = "64e5f12345abcdef98765433"

MAX_CONCURRENT = 60
CALLS_BEFORE_END = 250
"""Calls of each batch that are started before it is cancelled or stopped; fewer for small batches."""
DIALED_WITHIN_S = 60.0
PAUSED_S = 2.0
BETWEEN_S = 1.0
"""Seconds from the cancel to the stop, at least."""
WAIT_S = 10
"""Seconds that the cancel may wait for silence: more than a call has from start_call to the carrier."""
WATCH_S = 1.0
"""Seconds for which the dialer goes on asking for contacts after the last call has ended."""
CALLS_END_WITHIN_S = 30.0
LOOK_EVERY_S = 0.1
_GIVE_AT_A_TIME = 10_000
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
            claim = DatabaseClaim(self.server, "demo")
            stack.callback(claim.close)
            self.database = claim.name
            migrate(self.server.uri(self.database))
            self.console = SqlConsole(self.server.uri(self.database))
            stack.callback(self.console.close)
        except psycopg.Error as error:
            raise CommandError(f"the demo's database could not be made: {error}") from None
        display.say(f"PostgreSQL  {STATE / 'demo'}, database {self.database}, migrated")

        self.functions_uri = self.server.uri(self.database, "lastcall_functions")
        self.secret = kept_secret()
        self.functions = self._start(
            stack,
            "serve",
            {"DATABASE_URL": self.functions_uri, "SUPABASE_JWT_SECRET": self.secret, "PORT": "0"},
        )
        self.functions_url = self.functions.ready()
        display.say(f"functions   {self.functions_url}  (lastcall serve)")
        self.agency = self.console.add_agency("Acme")
        self.calling = self.console.set_up_calling(self.agency)
        self.carrier = self._start(
            stack,
            "carrier",
            {
                "WEBHOOK_URL": f"{self.functions_url}/functions/v1/webhook-ingest/{self.agency}",
                "WEBHOOK_SECRET": self.console.rotate_webhook_secret(self.agency),
            },
        )
        self.carrier_url = self.carrier.ready()
        display.say(f"carrier     {self.carrier_url}  (simulated, a process of its own, with a record of its own)")
        display.say("            reports by signed webhooks, some of them late, some of them twice")
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
        process = Process("demo", kind, environment, STATE / f"{self.database}-{kind}.log")
        stack.callback(process.end)
        return process

    def check_processes(self) -> None:
        """Raise CommandError if one has ended."""
        for process in (self.functions, self.carrier, self.dialer):
            process.check()

    def token(self, user_id: UUID) -> str:
        """A user's token, valid for a day."""
        return make_token(self.secret, user=str(user_id), expires_in=_DAY_S, env={})

    def create_batch(self, title: str, token: str, contacts: int, max_concurrent: int, **settings: str) -> Batch:
        """Create a batch over HTTP, as its owner's app does: with the contacts that a request may bring, and the
        others after it. A call that was not answered is tried again after 2 seconds."""
        body = {**self.calling, "max_concurrent": max_concurrent, "retry_delay_seconds": 2, **settings}
        first, *others = _contacts(contacts)
        created = self._send("calls-batch-create", {**body, "contacts": first}, token)
        batch = Batch(title, UUID(created["batch_id"]))
        for more in others:
            self._send("calls-batch-add-contacts", {"batch_id": str(batch.id), "contacts": more}, token)
        self.console.lift_call_rate(batch.id)
        return batch

    def _send(self, function: str, body: dict[str, Any], token: str) -> dict[str, Any]:
        """Send a function a request with contacts, which must succeed; print it and the reply."""
        path = f"/functions/v1/{function}"
        response = self.http.post(f"{self.functions_url}{path}", json=body, headers=_bearer(token))
        self._print(path, {**body, "contacts": [f"({len(body['contacts']):,} contacts)"]}, response)
        answer: dict[str, Any] = response.raise_for_status().json()
        return answer

    def post(self, path: str, body: dict[str, Any], token: str, batch: Batch) -> Reply:
        """Send a function the request to change a batch, and print it and the reply as it came."""
        # So that the connection is open: what is measured is the request.
        self.http.get(f"{self.functions_url}/health")
        started_before = self.console.started_calls(batch.id)
        sent_at = time.monotonic()
        response = self.http.post(f"{self.functions_url}{path}", json=body, headers=_bearer(token))
        replied_at = time.monotonic()
        started_calls = self.console.started_calls(batch.id)
        self._print(path, body, response)
        self.display.say()
        answer = response.json() if response.headers["Content-Type"] == "application/json" else {}
        return Reply(
            sent_at=sent_at,
            replied_at=replied_at,
            status_code=response.status_code,
            batch_status=answer.get("data", answer).get("status"),
            contacts_skipped=answer.get("contacts_skipped"),
            started_before=started_before,
            started_calls=started_calls,
            silent_within_s=0.0 if answer.get("calls_starting") == 0 else Settings.place_within_s,
        )

    def _print(self, path: str, body: dict[str, Any], response: httpx2.Response) -> None:
        self.display.say()
        self.display.say(f"POST {path}  {json.dumps(body)}", style="bold")
        self.display.say(f"{response.http_version} {response.status_code} {response.reason_phrase}")
        self.display.say(response.text)

    def show_events(self, batch: Batch, token: str) -> None:
        """Print the batch's audit trail, as calls-batch-events tells it."""
        path = f"/functions/v1/calls-batch-events?batch_id={batch.id}"
        response = self.http.get(f"{self.functions_url}{path}", headers=_bearer(token)).raise_for_status()
        self.display.say()
        self.display.say(f"GET {path}", style="bold")
        for event in response.json()["events"]:
            self.display.say(
                f"  {event['created_at']}  {event['action']:<12}  {event['from_status'] or '-':>10} -> "
                f"{event['to_status']:<10}  {event['contacts']:>6,} contacts  by {event['actor_kind']} "
                f"{event['actor_id'] or ''}".rstrip()
            )

    def record(self, batch: Batch) -> list[CarrierCall]:
        """The carrier's record of a batch."""
        calls = self.http.get(f"{self.carrier_url}/calls").raise_for_status().json()
        return [CarrierCall(**call) for call in calls if call["batch_id"] == str(batch.id)]

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
    owner = console.add_user(stage.agency, "agency_owner")
    member = console.add_user(stage.agency, "agency_member", EXTERNAL_USER_ID)
    token = stage.token(owner)
    # Small batches are dialed slower: there must be something left to cancel.
    concurrent = min(MAX_CONCURRENT, max(1, contacts // 10))
    cancelled = stage.create_batch("batch 1", token, contacts, concurrent)
    stopped = stage.create_batch(
        "batch 2", token, contacts, concurrent, external_id=EXTERNAL_BATCH_ID, user_id=str(member)
    )
    both = (cancelled, stopped)
    display.say()
    display.say(f"batches     2 of {contacts:,} contacts each, at most {concurrent} calls at a time in each")
    display.say("            limits lifted for the demo: calls_per_minute, which is at most 60 otherwise")
    stage.start_dialer(stack)
    display.say("dialer      claims, passes start_call, places calls, applies webhooks  (lastcall process --loop)")
    display.say()

    enough = min(CALLS_BEFORE_END, contacts // 3)
    to_change = {"batch_id": str(cancelled.id)}
    _wait_for_calls(stage, both, cancelled, enough // 2)
    pause_reply = stage.post("/functions/v1/calls-batch-pause", to_change, token, cancelled)
    stage.watch(both, lambda _now: False, within_s=PAUSED_S)
    resume_reply = stage.post("/functions/v1/calls-batch-resume", to_change, token, cancelled)
    _wait_for_calls(stage, both, cancelled, max(enough, len(resume_reply.started_before) + 1))
    to_cancel = {**to_change, "wait_seconds": WAIT_S}
    cancel_reply = stage.post("/functions/v1/calls-batch-cancel", to_cancel, token, cancelled)
    stage.watch(both, lambda _now: False, within_s=BETWEEN_S)
    _wait_for_calls(stage, both, stopped, enough)
    stop_reply = stage.post(
        "/api/call/stop-calling", {"batchId": EXTERNAL_BATCH_ID, "userId": EXTERNAL_USER_ID}, token, stopped
    )
    _wait_for_silence(stage, both)
    display.freeze()
    stage.show_events(cancelled, token)

    record = {batch.id: stage.record(batch) for batch in both}
    books = {batch.id: console.books(batch.id) for batch in both}
    verdicts = {
        "batch 1, paused and resumed": judge_pause(
            pause_reply,
            resume_reply,
            record[cancelled.id],
            books[cancelled.id].started.keys(),
            console.started_while_paused(cancelled.id),
        ),
        "batch 1, cancelled": judge("cancelled", contacts, cancel_reply, record[cancelled.id], books[cancelled.id]),
        "batch 2, stopped": judge("stopped", contacts, stop_reply, record[stopped.id], books[stopped.id]),
    }
    for title, verdict in verdicts.items():
        _print_verdict(display, title, verdict)
    claimable = console.claimable_when_resumed(stopped.id)
    display.say(f"  note  resumed (tried out, and undone), a dialer's next claim gets {claimable} contacts")
    went_on = sum(cancel_reply.sent_at < call.arrived_at < stop_reply.sent_at for call in record[stopped.id])
    display.say(f"  note  between the cancel of batch 1 and its own stop, {went_on} of its calls started")

    held = all(verdict.holds for verdict in verdicts.values())
    display.say()
    if held:
        display.say(
            "It holds: the batches fell silent as promised, and every contact and every call is accounted for.",
            "bold green",
        )
    else:
        display.say("It does NOT hold: see the lines marked NO.", "bold red")
    if keep:
        _keep(stage, token, member)
    return 0 if held else 1


def _start_postgres(stack: ExitStack) -> PostgresServer:
    try:
        server = embedded_postgres(STATE / "demo")
        stack.callback(server.stop)
        server.start()
    except PostgresServerError as error:
        raise CommandError(str(error)) from None
    return server


def _contacts(number: int) -> list[list[dict[str, Any]]]:
    """So many contacts, in as many requests as they need."""
    contacts = [{"phone_number": f"+1555{i:07d}", "first_name": f"Contact {i}"} for i in range(number)]
    return [contacts[first : first + _GIVE_AT_A_TIME] for first in range(0, number, _GIVE_AT_A_TIME)]


def _wait_for_calls(stage: Stage, batches: Sequence[Batch], batch: Batch, enough: int) -> None:
    """Wait until so many calls of the batch have been started and some are in progress."""
    place = batches.index(batch)
    if not stage.watch(
        batches,
        lambda now: now[place].in_progress > 0 and len(stage.console.started_calls(batch.id)) >= enough,
        within_s=DIALED_WITHIN_S,
    ):
        raise CommandError(f"{batch.title} was not being dialed within {DIALED_WITHIN_S:.0f} seconds")


def _wait_for_silence(stage: Stage, batches: Sequence[Batch]) -> None:
    """Wait until the calls in progress have ended, at the carrier and in the database, and all that the carrier has
    to tell was told and applied (if not, the verdict says so); and a while longer, in which the dialer goes on
    asking for contacts."""
    stage.watch(
        batches,
        lambda now: not any(batch.in_progress for batch in now) and all(_is_told(stage, batch) for batch in batches),
        within_s=CALLS_END_WITHIN_S,
    )
    stage.watch(batches, lambda _now: False, within_s=WATCH_S)


def _is_told(stage: Stage, batch: Batch) -> bool:
    record, webhooks = stage.record(batch), stage.console.webhooks(batch.id)
    return (
        all(call.ended_at is not None for call in record)
        and sum(webhooks.values()) == events_to_tell(record)
        and "pending" not in webhooks
    )


def _print_verdict(display: Display, title: str, verdict: Verdict) -> None:
    display.say()
    display.say(title, style="bold")
    for check in verdict.checks:
        display.say(f"  {'ok  ' if check.holds else 'NO  '}  {check.text}", style="green" if check.holds else "red")
    for note in verdict.notes:
        display.say(f"  note  {note}")


def _keep(stage: Stage, token: str, member: UUID) -> None:
    """Start two more batches, print how to cancel and stop them, and serve until Ctrl-C."""
    console, say = stage.console, stage.display.say
    to_cancel = stage.create_batch("batch 3", token, _KEPT_CONTACTS, _KEPT_CONCURRENT)
    stage.create_batch(
        "batch 4",
        token,
        _KEPT_CONTACTS,
        _KEPT_CONCURRENT,
        external_id=NEXT_EXTERNAL_BATCH_ID,
        user_id=str(member),
    )
    console.process_batches()
    say()
    say(f"Two more batches of {_KEPT_CONTACTS:,} contacts are being dialed. Cancel one:", style="bold")
    say(_curl(f"{stage.functions_url}/functions/v1/calls-batch-cancel", token, {"batch_id": str(to_cancel.id)}))
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


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _curl(url: str, token: str, body: dict[str, str]) -> str:
    headers = ("-H", f"Authorization: Bearer {token}", "-H", "Content-Type: application/json")
    return shlex.join(["curl", "-sS", "-X", "POST", url, *headers, "-d", json.dumps(body)])
