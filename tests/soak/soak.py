"""Everything at once: many batches, several dialers of which some are killed, a carrier that fails, hangs and reports
twice and out of order, and users who cancel, stop, pause and resume at random. Then the books are read, and compared
with what the carrier, which knows nothing of batches, saw.

PostgreSQL, the functions, the carrier and each dialer are processes of their own, as in real life.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2

from functions.migrations import migrate
from functions.postgres_server import PostgresServer

from ..support.command import LASTCALL, environment, serve
from ..support.database import TestDatabase
from ..support.tokens import ISSUER, SECRET, token

CRON_SECRET = "a secret of cron's, for the soak alone"
CHANGES = {
    # The requests of users, each with its weight.
    "cancel": 2,
    "stop": 1,
    "pause": 3,
    "resume": 5,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """batches of contacts each, dialers of which some are killed half way; how many seconds to dial, and to wait for
    what is in progress then; how often users change a batch, a second; after how many seconds a call that the carrier
    never heard of was not placed, longer than a request can be on its way on a machine that has too much to do."""

    batches: int
    contacts: int
    dialers: int
    killed: int
    dial_s: float
    drain_s: float
    changes_a_second: float
    reconcile_after_s: int
    seed: int = 0


@dataclass(frozen=True)
class Finding:
    """One thing that must hold: what was found against it, nothing if it does."""

    rule: str
    against: list[Any]


@dataclass
class Report:
    findings: list[Finding]
    notes: list[str]

    @property
    def holds(self) -> bool:
        return not any(finding.against for finding in self.findings)

    def lines(self) -> Iterator[str]:
        for finding in self.findings:
            shown = f": {len(finding.against)}, such as {finding.against[:3]}" if finding.against else ""
            yield f"{'NO' if finding.against else 'ok':4}{finding.rule}{shown}"
        yield from (f"    {note}" for note in self.notes)


def soak(plan: Plan, server: PostgresServer, folder: Path) -> Report:
    """Run the plan on a server that has been started, with logs in folder."""
    migrate(server.uri())
    with ExitStack() as stack:
        db = TestDatabase(server.uri(), server.uri(user="lastcall_functions"))
        stack.callback(db.close)
        agency = db.agency()
        owner = db.user(agency)
        secret = db.value("select webhook_secret from rotate_webhook_secret(%s)", agency)
        batches = _create(db, agency, plan)
        settings = {
            "DATABASE_URL": server.uri(user="lastcall_functions"),
            "SUPABASE_JWT_SECRET": SECRET,
            "SUPABASE_JWT_ISSUER": ISSUER,
            "LASTCALL_CRON_SECRET": CRON_SECRET,
        }
        functions = stack.enter_context(serve(folder, settings))
        carrier = stack.enter_context(_carrier(plan, f"{functions.url}/webhook-ingest/{agency}", secret, folder))
        dialing = {
            "DATABASE_URL": settings["DATABASE_URL"],
            "LASTCALL_CARRIER": "simulator",
            "CARRIER_URL": carrier,
            "LASTCALL_CARRIER_TIMEOUT_MS": "5000",
            "LASTCALL_RECONCILE_AFTER_S": str(plan.reconcile_after_s),
            "LASTCALL_RECONCILE_EVERY_MS": "1000",
        }
        dialers = [stack.enter_context(_dialer(dialing, folder, place)) for place in range(plan.dialers)]
        users = Users(functions.url, owner, batches, plan)
        stack.callback(users.end)

        begun = time.monotonic()
        _wait(lambda: _is_done(db), plan.dial_s / 2)
        for dialer in dialers[: plan.killed]:
            dialer.send_signal(signal.SIGKILL)
        _wait(lambda: _is_done(db), plan.dial_s / 2)
        dialed_s = time.monotonic() - begun
        users.end()
        _end_all(db, batches)
        silent_at = _silent_at(db, plan.drain_s)
        with httpx2.Client(trust_env=False, timeout=60) as client:
            record = client.get(f"{carrier}/calls").json()
        return _judge(db, record, users, dialed_s, silent_at)


class Users(threading.Thread):
    """Users who change batches at random, over HTTP."""

    def __init__(self, url: str, owner: UUID, batches: list[UUID], plan: Plan) -> None:
        super().__init__()
        self.replies: Counter[str] = Counter()
        self.strange: list[Any] = []
        """Replies that are neither done nor refused for the status that the batch is in."""
        self._url, self._owner, self._batches, self._plan = url, owner, batches, plan
        self._chance = random.Random(plan.seed)
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {token(self._owner)}"}
        with httpx2.Client(trust_env=False, timeout=60, headers=headers) as client:
            while not self._over.wait(self._chance.expovariate(self._plan.changes_a_second)):
                (change,) = self._chance.choices(list(CHANGES), list(CHANGES.values()))
                batch = str(self._chance.choice(self._batches))
                if change == "stop":
                    body = {"batchId": batch, "userId": str(self._owner)}
                    response = client.post(f"{self._url}/api/call/stop-calling", json=body)
                else:
                    response = client.post(f"{self._url}/calls-batch-{change}", json={"batch_id": batch})
                self.replies[f"{change} {response.status_code}"] += 1
                if response.status_code not in (200, 400):
                    self.strange.append((change, response.status_code, response.text))

    def end(self) -> None:
        self._over.set()
        self.join()


def _create(db: TestDatabase, agency: UUID, plan: Plan) -> list[UUID]:
    chance = random.Random(plan.seed)
    calling = db.calling(agency)
    owner = db.value("select id from users where agency_id = %s", agency)
    batches = []
    for place in range(plan.batches):
        batch = db.value(
            "select batch_id from create_batch(%s, %s, %s, (select jsonb_agg(jsonb_build_object("
            " 'phone_number', '+1' || (2000000000 + %s * 100000 + i), 'max_attempts', 1 + i %% 3))"
            " from generate_series(1, %s) i), user_id => %s, retry_delay_seconds => %s)",
            calling["agent_mapping_id"],
            calling["from_number"],
            calling["campaign_id"],
            place,
            plan.contacts,
            owner,
            chance.choice([0, 1, 2]),
        )
        db.rows(
            "update call_batches set calls_per_minute = null, max_concurrent = %s where id = %s",
            chance.choice([2, 5, 10, 50]),
            batch,
        )
        batches.append(batch)
    return batches


@contextmanager
def _carrier(plan: Plan, webhook_url: str, secret: str, folder: Path) -> Iterator[str]:
    """A carrier that refuses 3 % of the calls, and takes 2 % without saying so."""
    options = {
        "seed": plan.seed,
        "refused": 0.03,
        "hanging": 0.02,
        "repeated": 0.3,
        "late": 0.3,
        "late-s": 2,
        "webhook-url": webhook_url,
        "webhook-secret": secret,
    }
    command = [sys.executable, "-m", "functions.dialer.simulated_carrier", "--ring-s", "0.01", "0.1"]
    command += ["--talk-s", "0.05", "0.4", *(f"--{name}={value}" for name, value in options.items())]
    with _process(command, {}, folder / "carrier.log") as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip().removeprefix("ready ")


@contextmanager
def _dialer(settings: dict[str, str], folder: Path, place: int) -> Iterator[subprocess.Popen[str]]:
    with _process([LASTCALL, "process", "--loop"], settings, folder / f"dialer-{place}.log") as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        yield process


@contextmanager
def _process(command: list[str], settings: dict[str, str], log: Path) -> Iterator[subprocess.Popen[str]]:
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment(**settings), cwd=os.getcwd()
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(until: Any, seconds: float) -> bool:
    """Wait for that, at most so long; whether it came."""
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _is_done(db: TestDatabase) -> bool:
    return db.value("select count(*) from call_batches where status not in ('completed', 'cancelled')") == 0


def _is_silent(db: TestDatabase) -> bool:
    return (
        db.value("select count(*) from call_batches where status <> 'cancelled' and status <> 'completed'") == 0
        and db.value("select sum(queued + in_progress) from call_batches") == 0
        and db.value("select count(*) from webhook_queue where status in ('pending', 'failed')") == 0
    )


def _silent_at(db: TestDatabase, seconds: float) -> datetime | None:
    """Wait for silence, at most so long. Returns a time shortly before it was seen; None: it did not come."""
    seen: list[datetime] = []

    def look() -> bool:
        seen.append(db.value("select clock_timestamp()"))
        return _is_silent(db)

    return seen[-1] if _wait(look, seconds) else None


def _end_all(db: TestDatabase, batches: list[UUID]) -> None:
    for batch in batches:
        if db.batch_row(batch)["status"] not in ("completed", "cancelled"):
            db.rows("select cancel_batch(%s)", batch)


# When a batch was not to be dialed: from a cancel, stop or pause to the next resume. The times are read under the
# batch's lock, as those of calls are: their order is that of the transactions.
STARTED_WHILE_ENDED = """
with spans as (
  select batch_id, action, created_at as since,
         lead(created_at, 1, 'infinity') over (partition by batch_id order by id) as until
    from batch_events
   where action in ('cancel', 'stop', 'pause', 'resume', 'start'))
select s.batch_id, s.action, k.id
  from spans s
  join calls k on k.batch_id = s.batch_id and k.started_at > s.since and k.started_at < s.until
 where s.action in ('cancel', 'stop', 'pause')
"""


def _judge(
    db: TestDatabase, record: list[dict[str, Any]], users: Users, dialed_s: float, silent_at: datetime | None
) -> Report:
    calls = {(row["id"], str(row["lease"])): row for row in db.rows("select * from calls")}
    placed = Counter((call["call_id"], call["lease"]) for call in record)
    carrier = {(call["call_id"], call["lease"]): call for call in record}
    findings = [
        Finding("everything came to an end", [] if silent_at else [db.rows(
            "select status, count(*), sum(queued + in_progress) as open from call_batches group by 1")]),
        Finding("the books balance", db.unbalanced()),
        Finding("no call started between a cancel, stop or pause and the next resume", db.rows(STARTED_WHILE_ENDED)),
        Finding("no call was placed twice", [call for call, times in placed.items() if times > 1]),
        Finding("no attempt was called twice", db.rows(
            "select contact_id, attempt from calls where started_at is not null and outcome is distinct from"
            " 'not_placed' and outcome is distinct from 'carrier_unavailable' group by 1, 2 having count(*) > 1")),
        Finding("no call reached the carrier that start_call had not let through",
                [call for call in placed if calls.get(call, {}).get("started_at") is None]),
        Finding("every contact is accounted for", db.rows(
            "select id, status from campaign_contacts where status not in ('completed', 'failed', 'skipped')")),
        Finding("no contact was called more often than it may", db.rows(
            "select id from campaign_contacts where attempts > max_attempts")),
        Finding("what the carrier says of a call is what the books say", [
            {"call": call, "carrier": seen["status"], "arrived": seen["arrived_at_utc"],
             **{name: str(calls[call][name]) for name in ("status", "outcome", "started_at", "ended_at")}}
            for call, seen in carrier.items()
            if call in calls and calls[call]["status"] != seen["status"]
        ]),
        Finding("a contact that was reached was reached once", db.rows(
            "select contact_id from calls where status = 'completed' group by 1 having count(*) > 1")),
        # The carrier sends some events late, and again: one that came after the silence may wait for its turn.
        Finding("no webhook is left over", db.rows(
            "select id, status, error_message from webhook_queue where status in ('failed', 'dead')"
            " or status = 'pending' and created_at < coalesce(%s, 'infinity')", silent_at)),
        Finding("every request of a user was done, or refused for the batch's status", users.strange),
    ]  # fmt: skip
    statuses = db.rows("select status::text, count(*) as n from campaign_contacts group by 1 order by 1")
    webhooks = db.rows("select status::text, count(*) as n from webhook_queue group by 1 order by 1")
    notes = [
        f"{len(record):,} calls at the carrier in {dialed_s:.0f} s ({len(record) / dialed_s:,.0f} a second)",
        "contacts: " + ", ".join(f"{row['n']:,} {row['status']}" for row in statuses),
        "webhooks: " + ", ".join(f"{row['n']:,} {row['status']}" for row in webhooks),
        "users: " + ", ".join(f"{n} x {reply}" for reply, n in sorted(users.replies.items())),
    ]
    return Report(findings, notes)
