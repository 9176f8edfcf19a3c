"""The operator's commands, against a served app, a project's stand-in and the SQL console.

A command runs within the tests' process, unless the test is about a terminal, a signal, a pipe or a lost connection.
"""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions._shared.settings import Settings
from functions.app import create_app

from ..support.command import LASTCALL, environment, lastcall_here
from ..support.database import TestDatabase, log_in_as
from ..support.locks import waiting_for_a_lock
from ..support.postgrest import PUBLISHABLE_KEY
from ..support.project import PASSWORD, Auth, project
from ..support.proxy import proxy
from ..support.serving import serving
from ..support.tokens import token
from ..support.waiting import until

pytestmark = pytest.mark.one_postgres

EMAIL = "ada@example.com"


@dataclass
class Operator:
    """The command at a terminal of somebody's own, who has one door to the service."""

    folder: Path
    settings: dict[str, str]
    options: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        return environment(XDG_CONFIG_HOME=str(self.folder / "config"), **self.settings)

    def arguments(self, *arguments: str | UUID) -> list[str]:
        return [*map(str, arguments), *self.options]

    def run(self, *arguments: str | UUID, typed: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command to its end, `typed` being piped in."""
        return lastcall_here(*self.arguments(*arguments), folder=self.folder, settings=self.environment, typed=typed)

    def done(self, *arguments: str | UUID) -> str:
        """The output of a command that succeeds."""
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def json(self, *arguments: str | UUID) -> Any:
        return json.loads(self.done(*arguments, "--json"))

    def at_terminal(self, *arguments: str | UUID, types: str) -> tuple[int, str, str]:
        """Its exit status, its output, and what its terminal showed before `types` was typed."""
        terminal, theirs = pty.openpty()
        with (
            open(terminal, "r+b", buffering=0) as screen,
            subprocess.Popen(
                [LASTCALL, *self.arguments(*arguments)],
                cwd=self.folder,
                env=self.environment,
                stdin=theirs,
                stdout=subprocess.PIPE,
                stderr=theirs,
                text=True,
                start_new_session=True,
            ) as process,
        ):
            os.close(theirs)
            shown = b""
            while not shown.endswith((b"[y/N] ", b": ")):
                shown += screen.read(1)
            screen.write(types.encode() + b"\n")
            assert process.stdout is not None
            output = process.stdout.read()
            return process.wait(60), output, shown.decode()


@pytest.fixture
def agency(db: TestDatabase) -> UUID:
    return db.agency()


@pytest.fixture
def owner(db: TestDatabase, agency: UUID) -> UUID:
    return db.user(agency)


@pytest.fixture
def app_url(settings: Settings) -> Iterator[str]:
    """Where the app serves the functions itself."""
    with serving(create_app(settings)) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture
def auth(owner: UUID) -> Auth:
    return Auth({EMAIL: owner})


@pytest.fixture
def project_url(settings: Settings, db: TestDatabase, auth: Auth) -> Iterator[str]:
    with serving(project(settings, log_in_as("authenticator", db.uri), auth)) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture
def in_app(tmp_path: Path, app_url: str, owner: UUID) -> Operator:
    """An owner, by HTTP where the app serves the functions."""
    return Operator(tmp_path, {"LASTCALL_URL": app_url, "LASTCALL_TOKEN": token(owner)})


@pytest.fixture
def in_project(tmp_path: Path, project_url: str, owner: UUID) -> Operator:
    """An owner, by HTTP at a Supabase project."""
    settings = {"SUPABASE_URL": project_url, "SUPABASE_PUBLISHABLE_KEY": PUBLISHABLE_KEY}
    return Operator(tmp_path, {**settings, "LASTCALL_TOKEN": token(owner)})


@pytest.fixture
def at_console(tmp_path: Path, db: TestDatabase) -> Operator:
    """An admin, at the SQL console."""
    return Operator(tmp_path, {"DATABASE_URL": db.uri}, ("--sql",))


@pytest.fixture(params=["in_app", "in_project", "at_console"])
def operator(request: pytest.FixtureRequest) -> Operator:
    """Each of the three."""
    found: Operator = request.getfixturevalue(request.param)
    return found


def refused(done: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    """Exit status and message of a command that printed one line of complaint and nothing else."""
    assert done.stdout == ""
    assert done.stderr.startswith("lastcall: ")
    assert done.stderr.count("\n") == 1
    return done.returncode, done.stderr.removeprefix("lastcall: ").rstrip("\n")


# To see.


def test_batches_are_listed_newest_first_with_what_they_wait_for(
    operator: Operator, db: TestDatabase, agency: UUID
) -> None:
    first = db.batch(agency, name="Spring offer", status="paused")
    second = db.batch(agency)
    db.contacts(first, pending=1200, completed=300, in_progress=2)
    lines = operator.done("batches").splitlines()
    assert re.split(r" {2,}", lines[0])[:4] == ["ID", "NAME", "STATUS", "WAITING FOR"]
    assert [line.split()[0] for line in lines[1:]] == [str(second), str(first)]
    assert re.split(r" {2,}", lines[2])[1:-1] == [
        "Spring offer", "paused", "resume", "19.9", "1,502", "1,200", "2", "300", "0", "0"
    ]  # fmt: skip
    found = operator.json("batches")
    assert found["total"] == 2
    assert [batch["id"] for batch in found["batches"]] == [str(second), str(first)]


def test_batches_are_listed_by_status_and_to_a_limit_or_all(in_app: Operator, db: TestDatabase, agency: UUID) -> None:
    db.rows("insert into call_batches (agency_id) select %s from generate_series(1, 230)", agency)
    paused = db.batch(agency, status="paused")
    assert [batch["id"] for batch in in_app.json("batches", "--status", "paused")["batches"]] == [str(paused)]
    assert len(in_app.json("batches")["batches"]) == 25
    assert len(in_app.json("batches", "--limit", "120")["batches"]) == 120
    assert len({batch["id"] for batch in in_app.json("batches", "--all")["batches"]}) == 231
    assert "25 of 231 batches; --all" in in_app.run("batches").stderr


def test_a_batch_is_shown_with_its_settings_and_live_calls(operator: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency, name="Spring offer", timezone="Europe/Paris", max_concurrent=7)
    db.contacts(batch, pending=3)
    (call,) = db.rows("select call_id from claim_contacts(1)")
    db.start_calls(batch, [call["call_id"]])
    shown = operator.json("show", batch)
    assert shown["batch"]["name"] == "Spring offer"
    assert [live["call_id"] for live in shown["live_calls"]] == [str(call["call_id"])]
    text = operator.done("show", batch)
    for name, value in (("name", "Spring offer"), ("timezone", "Europe/Paris"), ("max concurrent", "7")):
        assert re.search(rf"^{name} +{value}$", text, re.MULTILINE)
    assert re.search(rf"^ *{call['call_id']} +\+15550000001 +in_progress ", text, re.MULTILINE)


def test_the_audit_trail_says_who_did_what_and_why(operator: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency)
    operator.done("pause", batch, "--reason", "wrong hour")
    operator.done("resume", batch)
    paused, resumed = operator.json("events", batch)["events"]
    assert (paused["action"], paused["reason"], resumed["action"]) == ("pause", "wrong hour", "resume")
    assert re.search(r"pause .* processing +paused +0 +wrong hour", operator.done("events", batch))


def test_a_long_audit_trail_is_shown_whole(in_app: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency)
    db.rows(
        "insert into batch_events (agency_id, batch_id, action, actor_kind, actor_role, to_status)"
        " select %s, %s, 'add_contacts', 'service', 'service_role', 'processing' from generate_series(1, 450)",
        agency,
        batch,
    )
    assert len(in_app.json("events", batch)["events"]) == 450


def test_text_of_others_does_nothing_to_the_terminal(in_app: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency, name="\x1b]0;owned\x07[bold]x\u202e")
    for command in (("batches",), ("show", batch)):
        text = in_app.done(*command)
        assert "\ufffd]0;owned\ufffd[bold]x\ufffd" in text
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)


# To change.


def test_a_batch_is_cancelled_and_the_reply_is_true(operator: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency)
    db.contacts(batch, pending=4693, in_progress=2)
    said = operator.done("cancel", batch, "--yes", "--reason", "wrong list")
    assert said == (
        f"Batch {batch} is cancelled: 4,693 contacts skipped,"
        " no further call starts, calls in progress end by themselves.\n"
    )
    assert db.statuses(batch) == {"skipped": 4693, "in_progress": 2}
    event = db.row("select reason, idempotency_key from batch_events where batch_id = %s", batch)
    assert event["reason"] == "wrong list"
    assert UUID(event["idempotency_key"])


def test_a_cancel_as_json_is_the_services_answer(operator: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency)
    db.contacts(batch, pending=3)
    answer = operator.json("cancel", batch, "--yes")
    assert (answer["batch_id"], answer["status"], answer["contacts_skipped"]) == (str(batch), "cancelled", 3)


def test_a_batch_is_stopped_and_resumed(operator: Operator, db: TestDatabase, agency: UUID, owner: UUID) -> None:
    batch = db.batch(agency, owner)
    db.contacts(batch, pending=3)
    assert "is stopped" in operator.done("stop", batch)
    assert (db.batch_row(batch)["status"], db.statuses(batch)) == ("stopped", {"pending": 3})
    assert operator.json("resume", batch)["status"] == "processing"
    stopped = operator.json("stop", batch, "--skip-remaining", "--yes", "--reason", "enough")
    assert (stopped["batch_id"], stopped["status"]) == (str(batch), "stopped")
    assert db.statuses(batch) == {"skipped": 3}
    reasons = db.rows("select reason from batch_events where batch_id = %s order by id", batch)
    assert [row["reason"] for row in reasons] == [None, None, "enough"]


@pytest.mark.parametrize("command", ["cancel", "stop"])
def test_the_calls_in_progress_are_hung_up_when_asked_for(operator: Operator, db: TestDatabase, command: str) -> None:
    batch, _ = db.in_progress(2)
    agency = db.batch_row(batch)["agency_id"]
    db.rows("update users set agency_id = %s", agency)
    db.rows("update call_batches set user_id = (select id from users limit 1)")
    said = operator.done(command, batch, "--end-calls", "--yes")
    assert "no further call starts, the carrier hangs up the calls in progress" in said
    assert db.rows("select distinct hang_up from calls") == [{"hang_up": True}]


def test_by_http_a_batch_without_a_user_cannot_be_stopped(in_app: Operator, db: TestDatabase, agency: UUID) -> None:
    status, message = refused(in_app.run("stop", db.batch(agency)))
    assert status == 2
    assert "use --sql" in message


def test_failed_contacts_are_dialed_again_in_a_new_batch(operator: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency, status="completed")
    db.contacts(batch, failed=2, completed=1)
    answer = operator.json("retry", batch, "--scheduled-for", "2099-01-01T09:00:00Z", "--reason", "once more")
    assert (answer["retry_of"], answer["status"], answer["total_contacts"]) == (str(batch), "scheduled", 2)
    assert refused(operator.run("retry", batch)) == (1, db_message(operator, "retry", batch))


def db_message(operator: Operator, *arguments: str | UUID) -> str:
    """The message of a refusal, as a program gets it."""
    done = operator.run(*arguments, "--json")
    assert (done.returncode, done.stdout) == (1, "")
    error = json.loads(done.stderr)
    assert error["code"] == "no_contacts"
    message: str = error["error"]
    return message


# Before contacts are skipped for good, somebody is asked.


@pytest.mark.parametrize("command", [["cancel"], ["stop", "--skip-remaining"]], ids=lambda command: command[0])
def test_it_asks_before_contacts_are_skipped(
    operator: Operator, db: TestDatabase, agency: UUID, owner: UUID, command: list[str]
) -> None:
    batch = db.batch(agency, owner, name="Spring offer")
    db.contacts(batch, pending=4690, queued=0, in_progress=1)
    status, output, asked = operator.at_terminal(*command, batch, types="n")
    verb = command[0].title()
    assert asked == f"{verb} batch {batch} 'Spring offer'? 4,690 contacts will never be called. [y/N] "
    assert (status, output, db.batch_row(batch)["status"]) == (1, "", "processing")
    status, output, _ = operator.at_terminal(*command, batch, types="y")
    assert status == 0
    assert f"Batch {batch} is " in output
    assert db.statuses(batch) == {"skipped": 4690, "in_progress": 1}


QUESTIONS = {
    ("stop",): "2 calls in progress will be hung up.",
    ("stop", "--skip-remaining"): "7 contacts will never be called. 2 calls in progress will be hung up.",
    ("cancel",): "7 contacts will never be called. 2 calls in progress will be hung up.",
}


@pytest.mark.parametrize("command", QUESTIONS, ids=" ".join)
def test_it_asks_before_calls_are_hung_up(
    operator: Operator, db: TestDatabase, agency: UUID, owner: UUID, command: tuple[str, ...]
) -> None:
    batch = db.batch(agency, owner, name="Spring offer")
    db.contacts(batch, pending=7, in_progress=2)
    status, output, asked = operator.at_terminal(*command, "--end-calls", batch, types="n")
    assert asked == f"{command[0].title()} batch {batch} 'Spring offer'? {QUESTIONS[command]} [y/N] "
    assert (status, output, db.batch_row(batch)["status"]) == (1, "", "processing")


def test_it_asks_before_the_calls_of_a_cancelled_batch_are_hung_up(
    operator: Operator, db: TestDatabase, agency: UUID
) -> None:
    batch = db.batch(agency, name="Spring offer", status="cancelled")
    db.contacts(batch, skipped=7, in_progress=2)
    status, output, asked = operator.at_terminal("cancel", "--end-calls", batch, types="y")
    assert asked == f"Cancel batch {batch} 'Spring offer'? 2 calls in progress will be hung up. [y/N] "
    assert (status, f"Batch {batch} is cancelled: 0 contacts skipped" in output) == (0, True)


@pytest.mark.parametrize("command", [["cancel"], ["stop", "--skip-remaining"]], ids=lambda command: command[0])
def test_without_a_terminal_it_does_not_skip_contacts_unless_told_yes(
    in_app: Operator, db: TestDatabase, agency: UUID, owner: UUID, command: list[str]
) -> None:
    batch = db.batch(agency, owner)
    db.contacts(batch, pending=3)
    status, message = refused(in_app.run(*command, batch, typed="y\n"))
    assert status == 2
    assert "--yes" in message
    assert db.statuses(batch) == {"pending": 3}


# Scopes.


def for_agency(operator: Operator, agency: UUID) -> tuple[str, ...]:
    """The option that the console needs; a user has an agency."""
    return ("--agency", str(agency)) if "--sql" in operator.options else ()


def test_contacts_are_skipped_by_id_and_by_column(operator: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency)
    db.contacts(batch, pending=5)
    ids = [str(row["id"]) for row in db.rows("select id from campaign_contacts order by id")]
    db.rows(
        "insert into contact_data (agency_id, batch_id, contact_id, custom_data)"
        """ select agency_id, batch_id, id, '{"plan": "gold"}' from campaign_contacts where id::text = any (%s)""",
        ids[3:],
    )
    assert operator.json("skip", batch, "--where", "plan=gold", "--dry-run")["contacts_skipped"] == 2
    assert db.statuses(batch) == {"pending": 5}
    text = operator.done("skip", batch, "--contact", ids[0], "--contact", ids[1], "--yes", "--reason", "wrong list")
    assert text.startswith(f"Batch {batch}: 2 contacts, 0 calls in progress, skipped")
    operator.done("skip", batch, "--where", "plan=gold", "--status", "pending", "--max-attempts", "0", "--yes")
    assert db.statuses(batch) == {"pending": 1, "skipped": 4}
    assert operator.json("events", batch)["events"][0]["reason"] == "wrong list"


def test_it_asks_before_some_contacts_are_skipped(in_app: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency)
    db.contacts(batch, pending=3, completed=1)
    status, _, shown = in_app.at_terminal("skip", batch, "--status", "pending", types="n")
    assert "Skip 3 contacts, 0 calls in progress, of batch" in shown
    assert (status, db.statuses(batch)) == (1, {"pending": 3, "completed": 1})
    assert in_app.at_terminal("skip", batch, "--status", "pending", types="y")[0] == 0
    assert db.statuses(batch) == {"skipped": 3, "completed": 1}


def test_a_skip_without_contacts_is_refused(operator: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency)
    assert refused(operator.run("skip", batch, "--yes")) == (1, "contact_ids or filter is required")
    done = operator.run("skip", batch, "--where", "plan", "--yes")
    assert (done.returncode, "must be COLUMN=VALUE" in done.stderr) == (2, True)


def test_a_number_is_opted_out_in_every_batch(operator: Operator, db: TestDatabase, agency: UUID) -> None:
    batches = [db.batch(agency) for _ in range(2)]
    for batch in batches:
        db.contacts(batch, pending=2)
    more = ("--source", "e-mail", *for_agency(operator, agency))
    text = operator.done("opt-out", "+15550000001", *more)
    assert text.startswith("+15550000001 is on the do-not-call list: 2 contacts, 0 calls in progress, skipped, in 2 ")
    assert operator.json("opt-out", "+15550000001", *more)["added"] is False
    assert db.value("select source from do_not_call") == "e-mail"
    assert refused(operator.run("opt-out", "911", *more))[0] == 1


def test_calls_are_held_and_the_hold_is_listed_and_lifted(operator: Operator, db: TestDatabase, agency: UUID) -> None:
    calling = db.calling(agency)
    batch = db.batch(agency, campaign_id=calling["campaign_id"])
    db.contacts(batch, pending=1)
    whose = for_agency(operator, agency)
    assert operator.json("hold", "--campaign", calling["campaign_id"], "--dry-run", *whose)["batches"] == 1
    text = operator.done("hold", "--campaign", calling["campaign_id"], "--reason", "wrong price", "--yes", *whose)
    assert "1 batches being dialed, with 0 calls in progress" in text
    (held,) = operator.json("holds")["holds"]
    assert (held["scope"], held["campaign_name"], held["reason"]) == ("campaign", "Q1 Outreach", "wrong price")
    assert operator.json("show", batch)["batch"]["waiting_for"] == "hold"
    assert re.search(r"campaign +Q1 Outreach +1 ", operator.done("holds"))
    assert f"Hold {held['id']} is lifted: 1 batches go on" in operator.done("lift", held["id"][:8])
    assert operator.json("holds")["holds"] == []
    assert len(operator.json("holds", "--all")["holds"]) == 1


@pytest.mark.parametrize("scope", ["--agent", "--from", "--whole-agency"])
def test_calls_are_held_by_every_scope(operator: Operator, db: TestDatabase, agency: UUID, scope: str) -> None:
    calling = db.calling(agency)
    db.batch(agency, agent_mapping_id=calling["agent_mapping_id"], from_number=calling["from_number"])
    of = {"--agent": [calling["agent_mapping_id"]], "--from": [calling["from_number"]]}.get(scope, [])
    answer = operator.json(
        "hold", scope, *of, "--until", "2999-01-01T00:00:00Z", "--yes", *for_agency(operator, agency)
    )
    assert (answer["batches"], answer["until"][:4]) == (1, "2999")


def test_it_asks_before_calls_are_held(in_app: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency)
    db.contacts(batch, in_progress=3)
    status, _, shown = in_app.at_terminal("hold", "--whole-agency", types="n")
    assert "Hold 1 batches being dialed, with 3 calls in progress, and whatever begins" in shown
    assert (status, db.rows("select from holds")) == (1, [])


def test_everything_is_held_at_the_console_alone(at_console: Operator, in_app: Operator, db: TestDatabase) -> None:
    db.batch(db.agency("Other"))
    assert at_console.json("hold", "--everything", "--yes")["batches"] == 1
    assert refused(in_app.run("hold", "--everything", "--yes")) == (
        2, "--everything is for the SQL console: give --sql",
    )  # fmt: skip
    (held,) = in_app.json("holds")["holds"]
    assert refused(in_app.run("lift", held["id"])) == (
        1, "Only a service or a console may lift a hold of every agency",
    )  # fmt: skip


def test_a_hold_that_is_none_is_refused(operator: Operator) -> None:
    assert refused(operator.run("lift", "abcdef")) == (
        2, "no active hold has an id that begins with abcdef: `lastcall holds` lists them",
    )  # fmt: skip
    assert refused(operator.run("lift", uuid4())) == (1, "Hold not found")


# When the reply is lost.


class LosingReplies:
    """The app, whose first replies at a path are lost after they were made."""

    def __init__(self, app: ASGIApp, path: str, losses: int) -> None:
        self.app = app
        self.path = path
        self.losses = losses
        self.keys: list[str | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith(self.path):
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        self.keys.append(headers.get(b"idempotency-key", b"").decode() or None)
        is_lost = len(self.keys) <= self.losses

        async def send_half(message: Message) -> None:
            # A reply that ends before its length does, after which the server closes the connection.
            if not is_lost or message["type"] == "http.response.start":
                await send(message)

        await self.app(scope, receive, send_half)


@contextmanager
def losing(settings: Settings, path: str, losses: int) -> Iterator[tuple[str, LosingReplies]]:
    app = create_app(settings)
    between = LosingReplies(app, path, losses)
    with serving(between) as (host, port):  # type: ignore[arg-type]
        yield f"http://{host}:{port}", between


@pytest.mark.parametrize(
    ("command", "path"),
    [(["cancel", "--yes"], "calls-batch-cancel"), (["stop"], "stop-calling"), (["pause"], "calls-batch-pause")],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_lost_reply_is_asked_for_until_it_is_there(
    tmp_path: Path, settings: Settings, db: TestDatabase, agency: UUID, owner: UUID, command: list[str], path: str
) -> None:
    batch = db.batch(agency, owner)
    db.contacts(batch, pending=3)
    with losing(settings, path, losses=2) as (url, between):
        operator = Operator(tmp_path, {"LASTCALL_URL": url, "LASTCALL_TOKEN": token(owner)})
        done = operator.run(*command, batch)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("asking again") == 2
    assert len(set(between.keys)) == 1
    assert len(between.keys) == 3
    assert db.value("select count(*) from batch_events where batch_id = %s", batch) == 1
    if path == "calls-batch-cancel":
        assert "3 contacts skipped" in done.stdout


def test_when_the_reply_never_comes_it_says_how_to_learn_it(
    tmp_path: Path, settings: Settings, db: TestDatabase, agency: UUID, owner: UUID
) -> None:
    batch = db.batch(agency)
    db.contacts(batch, pending=3)
    with losing(settings, "calls-batch-cancel", losses=6) as (url, between):
        operator = Operator(tmp_path, {"LASTCALL_URL": url, "LASTCALL_TOKEN": token(owner)})
        done = operator.run("cancel", batch, "--yes", "--reason", "it's  $wrong")
        assert (done.returncode, done.stdout) == (3, "")
        repeat = re.search(r"not known; to learn it, or else do it, run: lastcall (.*)\n", done.stderr)
        assert repeat is not None
        again = subprocess.run(
            f"{LASTCALL} {repeat[1]}", shell=True, env=operator.environment, capture_output=True, text=True
        )
    assert again.returncode == 0
    assert "3 contacts skipped" in again.stdout
    assert len(set(between.keys)) == 1


def test_a_database_that_is_lost_in_mid_request_leaves_no_doubt(
    own_folder: Path, db: TestDatabase, agency: UUID, owner: UUID, settings: Settings
) -> None:
    """The functions answer 503, for they do not know either; the repeat does."""
    for via_sql in (False, True):
        batch = db.batch(agency)
        db.contacts(batch, pending=3)
        folder = own_folder / str(via_sql)
        folder.mkdir()
        with proxy(folder, db.uri if via_sql else db.functions_uri) as between:
            if via_sql:
                operator = Operator(folder, {"DATABASE_URL": between.uri}, ("--sql",))
                done = cancel_while_cut(operator, batch, between, db)
            else:
                cut = Settings(database_url=between.uri, jwt_secret=settings.jwt_secret, jwt_issuer=settings.jwt_issuer)
                with serving(create_app(cut)) as (host, port):
                    url = f"http://{host}:{port}"
                    operator = Operator(folder, {"LASTCALL_URL": url, "LASTCALL_TOKEN": token(owner)})
                    done = cancel_while_cut(operator, batch, between, db)
        assert done[0] == 0, done
        assert "3 contacts skipped" in done[1]
        assert "asking again" in done[2]
        assert db.value("select count(*) from batch_events where batch_id = %s", batch) == 1


@pytest.mark.own_database
@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_the_console_holds_and_opts_out_whatever_isolation_is_the_database_s_default(
    at_console: Operator, db: TestDatabase, agency: UUID, isolation: str
) -> None:
    db.rows(f"alter database {db.value('select current_database()')} set default_transaction_isolation = '{isolation}'")
    held = at_console.json("hold", "--whole-agency", "--agency", str(agency), "--yes")
    assert at_console.json("lift", held["hold_id"])["success"]
    assert at_console.json("opt-out", "+14155550123", "--agency", str(agency))["added"]


@pytest.mark.own_database
def test_at_the_console_a_held_batch_is_asked_for_again(at_console: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency)
    db.contacts(batch, pending=3)
    db.rows(f"alter database {db.value('select current_database()')} set lock_timeout = '50ms'")
    with closing(db.connect()) as holder, holder.transaction():
        holder.execute("select from call_batches where id = %s for no key update", [batch])
        process = subprocess.Popen(
            [LASTCALL, *at_console.arguments("cancel", batch, "--yes")],
            cwd=at_console.folder,
            env=at_console.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert "Another request holds this batch; try again; asking again" in process.stderr.readline()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "3 contacts skipped" in output


def cancel_while_cut(operator: Operator, batch: UUID, between: Any, db: TestDatabase) -> tuple[int, str, str]:
    """Cancel; when it has been done and the reply is on its way, the connection is cut."""
    with closing(db.connect()) as locker, locker.transaction():
        locker.execute("select from call_batches where id = %s for update", [batch])
        process = subprocess.Popen(
            [LASTCALL, *operator.arguments("cancel", batch, "--yes")],
            cwd=operator.folder,
            env=operator.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        waiting_for_a_lock(db)
        between.passes_replies.clear()
        # No secret is where other users of the machine see it.
        command_line = Path(f"/proc/{process.pid}/cmdline").read_text()
        assert operator.settings.get("LASTCALL_TOKEN", "no token") not in command_line
    until(lambda: db.batch_row(batch)["status"] == "cancelled")
    between.cut()
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def test_a_repeat_by_hand_needs_the_same_key(in_app: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency)
    db.contacts(batch, pending=2)
    first, second = (in_app.done("cancel", batch, "--yes", "--idempotency-key", "k") for _ in range(2))
    assert first == second
    assert refused(in_app.run("cancel", batch, "--yes"))[0] == 1


def test_interrupted_in_mid_request_it_says_that_it_does_not_know(
    in_app: Operator, db: TestDatabase, agency: UUID
) -> None:
    batch = db.batch(agency)
    with closing(db.connect()) as locker, locker.transaction():
        locker.execute("select from call_batches where id = %s for update", [batch])
        process = subprocess.Popen(
            [LASTCALL, "cancel", str(batch), "--yes"],
            env=in_app.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        waiting_for_a_lock(db)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "")
    assert "--idempotency-key" in errors
    assert "Traceback" not in errors


# To watch.


def test_a_watch_ends_when_the_batch_is_over(operator: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency)
    db.contacts(batch, pending=3, completed=1)
    with watching(operator, batch) as process:
        assert process.stdout is not None
        assert "processing 25.0%, 3 to call, 0 in progress, 1 completed" in process.stdout.readline()
        db.rows("select cancel_batch(%s)", batch)
        assert "cancelled 100.0%, 0 to call" in process.stdout.readline()
        assert process.wait(60) == 0


def test_a_watch_for_programs_is_an_object_a_line(in_app: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency)
    db.contacts(batch, pending=4)
    with watching(in_app, batch, "--json") as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert (first["finished_per_minute"], first["eta_seconds"]) == (None, None)
        (call,) = db.rows("select call_id from claim_contacts(1)")
        db.start_calls(batch, [call["call_id"]])
        db.finish_calls(batch, [call["call_id"]], "completed")
        while not (line := json.loads(process.stdout.readline()))["completed"]:
            pass
        assert line["finished_per_minute"] > 0
        # Three to go, at one in the time so far.
        assert line["eta_seconds"] == round(3 / line["finished_per_minute"] * 60)
        db.rows("select cancel_batch(%s)", batch)
        assert json.loads(process.stdout.read().splitlines()[-1])["status"] == "cancelled"


def test_a_watch_ends_with_ctrl_c(in_app: Operator, db: TestDatabase, agency: UUID) -> None:
    with watching(in_app, db.batch(agency)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert process.stderr.read() == ""


@contextmanager
def watching(operator: Operator, batch: UUID, *options: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [LASTCALL, *operator.arguments("watch", batch, "--interval", "0.1", *options)],
        env=operator.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_on_a_terminal_progress_and_tables_are_drawn(in_app: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency, name="Spring offer", status="cancelled")
    db.contacts(batch, skipped=3)
    in_app.settings |= {"TERM": "xterm", "COLUMNS": "160"}
    drawn = drawn_by(in_app, "watch", batch)
    assert f"batch {batch} 'Spring offer'" in drawn
    assert "\u2501" in drawn
    listed = drawn_by(in_app, "batches")
    assert str(batch)[:8] in listed
    assert str(batch) not in listed


def drawn_by(operator: Operator, *arguments: str | UUID) -> str:
    """The output of the command on a terminal."""
    terminal, theirs = pty.openpty()
    with subprocess.Popen(
        [LASTCALL, *operator.arguments(*arguments)], env=operator.environment, stdin=theirs, stdout=theirs
    ) as process:
        os.close(theirs)
        drawn = b""
        try:
            while data := os.read(terminal, 65_536):
                drawn += data
        except OSError:  # the other end is closed
            pass
        os.close(terminal)
        assert process.wait(60) == 0
    return drawn.decode()


# Which batch.


def test_a_batch_is_named_by_its_beginning_or_by_its_external_id(
    operator: Operator, db: TestDatabase, agency: UUID
) -> None:
    batch = db.batch(agency, external_id="64e5f12345abcdef98765432")
    for given in (str(batch)[:6], str(batch)[:20].upper(), str(batch).upper(), "64e5f12345abcdef98765432"):
        assert operator.json("show", given)["batch"]["id"] == str(batch)


def test_a_name_that_may_be_of_several_batches_or_of_none_is_refused(
    in_app: Operator, db: TestDatabase, agency: UUID
) -> None:
    for last in (1, 2):
        batch = f"5eed0000-0000-4000-8000-0000000000b{last}"
        db.rows("insert into call_batches (agency_id, id) values (%s, %s)", agency, batch)
    db.batch(agency, external_id="5eed00")
    several, none = "may be any of", "none of the newest 500"
    for given, says in (("5eed00", several), ("5eed0000-0000", several), ("5eed0", none), ("zz", none)):
        status, message = refused(in_app.run("cancel", given, "--yes"))
        assert status == 2
        assert says in message
    assert db.value("select count(*) from batch_events") == 0


# Files.


def test_an_export_is_written_to_stdout_or_a_file(operator: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency)
    db.contacts(batch, pending=1500, completed=2)
    written = operator.done("export", batch)
    assert len(list(csv.DictReader(written.splitlines()))) == 1502
    path = operator.folder / "contacts.csv"
    answer = operator.json("export", batch, "-o", str(path), "--status", "completed")
    assert [row["status"] for row in csv.DictReader(path.read_text().splitlines())] == ["completed"] * 2
    assert answer == {"file": str(path), "bytes": path.stat().st_size}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_export_that_breaks_off_leaves_no_file_nor_spoils_the_one_there(
    tmp_path: Path, settings: Settings, db: TestDatabase, agency: UUID, owner: UUID
) -> None:
    batch = db.batch(agency)
    db.contacts(batch, pending=10)
    path = tmp_path / "contacts.csv"
    path.write_text("of yesterday")
    with losing(settings, "calls-batch-export", losses=1) as (url, _):
        operator = Operator(tmp_path, {"LASTCALL_URL": url, "LASTCALL_TOKEN": token(owner)})
        assert refused(operator.run("export", batch, "-o", str(path)))[0] == 3
        assert refused(operator.run("export", uuid4(), "-o", str(path))) == (1, "Batch not found")
    assert path.read_text() == "of yesterday"
    assert list(tmp_path.iterdir()) == [path]


def test_whoever_has_read_enough_of_an_export_may_go(in_app: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency)
    db.contacts(batch, pending=5000)
    command = f"{LASTCALL} export {batch} | head -1"
    done = subprocess.run(command, shell=True, env=in_app.environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("id,phone_number")
    assert done.stderr == ""


FILE = """phone_number,first_name,plan
+15550000001,Ada,gold
+15550000002,Bob,
+15550000001,Ada again,
not a number,Eve,
"""


def invalid_rows(path: Path) -> list[tuple[str, str]]:
    return [(row["row"], row["phone_number"]) for row in csv.DictReader(path.read_text().splitlines())]


def test_a_file_is_imported_into_a_new_batch(
    operator: Operator, db: TestDatabase, agency: UUID, tmp_path: Path
) -> None:
    calling = db.calling(agency)
    file, errors = tmp_path / "contacts.csv", tmp_path / "errors.csv"
    file.write_text(FILE)
    given = ("--agent", calling["agent_mapping_id"], "--campaign", calling["campaign_id"])
    more = ("--from", calling["from_number"], "--name", "Spring offer", "--max-concurrent", "7")
    answer = operator.json("import", str(file), *given, *more, "--errors", str(errors))
    assert [answer[name] for name in ("added", "duplicates", "do_not_call", "invalid")] == [2, 1, 0, 1]
    row = db.batch_row(UUID(answer["batch_id"]))
    assert (row["name"], row["max_concurrent"], row["total_contacts"]) == ("Spring offer", 7, 2)
    assert invalid_rows(errors) == [("5", "not a number")]


def test_a_file_is_imported_into_a_batch_that_is_there(
    operator: Operator, db: TestDatabase, agency: UUID, tmp_path: Path
) -> None:
    batch = db.batch(agency)
    file = tmp_path / "contacts.csv"
    file.write_text(FILE)
    done = operator.run("import", str(file), "--batch", str(batch)[:8])
    assert done.returncode == 0
    assert done.stdout == (
        f"Batch {batch}, processing: 2 contacts added, 1 duplicates, 0 not to be called, 1 invalid rows.\n"
    )
    assert "--errors FILE" in done.stderr
    assert db.statuses(batch) == {"pending": 2}


def test_that_an_import_was_done_is_said_though_its_errors_cannot_be_written(
    in_app: Operator, db: TestDatabase, agency: UUID, tmp_path: Path
) -> None:
    file = tmp_path / "contacts.csv"
    file.write_text(FILE)
    done = in_app.run("import", str(file), "--batch", db.batch(agency), "--errors", str(tmp_path / "none" / "errors"))
    assert "2 contacts added" in done.stdout
    assert (done.returncode, "cannot write" in done.stderr) == (2, True)


def test_a_strict_import_takes_all_rows_or_none(
    operator: Operator, db: TestDatabase, agency: UUID, tmp_path: Path
) -> None:
    batch = db.batch(agency)
    file, errors = tmp_path / "contacts.csv", tmp_path / "errors.csv"
    file.write_text(FILE)
    done = operator.run("import", str(file), "--batch", batch, "--strict", "--errors", str(errors))
    assert refused(done) == (1, "1 of 4 rows are invalid")
    assert invalid_rows(errors) == [("5", "not a number")]
    assert db.statuses(batch) == {}


def test_a_file_that_cannot_be_imported_is_refused(
    operator: Operator, db: TestDatabase, agency: UUID, tmp_path: Path
) -> None:
    batch = db.batch(agency)
    file = tmp_path / "contacts.txt"
    assert refused(operator.run("import", str(file), "--batch", batch))[0] == 2
    file.write_text(FILE)
    assert refused(operator.run("import", str(file), "--batch", batch)) == (
        1,
        "The file's name must end in .csv or .xlsx",
    )


def test_the_lost_reply_to_an_import_is_asked_for(
    tmp_path: Path, settings: Settings, db: TestDatabase, agency: UUID, owner: UUID
) -> None:
    batch = db.batch(agency)
    file = tmp_path / "contacts.csv"
    file.write_text(FILE)
    with losing(settings, "calls-batch-import", losses=1) as (url, between):
        operator = Operator(tmp_path, {"LASTCALL_URL": url, "LASTCALL_TOKEN": token(owner)})
        done = operator.run("import", str(file), "--batch", batch, "--json")
    assert json.loads(done.stdout)["added"] == 2
    assert len(between.keys) == 2
    assert len(set(between.keys)) == 1
    assert db.statuses(batch) == {"pending": 2}


def test_on_a_terminal_an_import_goes_with_a_bar(
    in_app: Operator, db: TestDatabase, agency: UUID, tmp_path: Path
) -> None:
    file = tmp_path / "contacts.csv"
    file.write_text(FILE)
    in_app.settings |= {"TERM": "xterm", "COLUMNS": "160"}
    drawn = drawn_by(in_app, "import", str(file), "--batch", db.batch(agency))
    assert "contacts.csv" in drawn
    assert "2 contacts added" in drawn


# Login and logout.


@pytest.fixture
def stranger(tmp_path: Path) -> Operator:
    """Somebody who has not logged in."""
    return Operator(tmp_path, {})


def kept(operator: Operator) -> Path:
    return operator.folder / "config" / "lastcall" / "session.json"


def test_with_a_token_one_is_logged_in_where_the_app_serves_the_functions(
    stranger: Operator, db: TestDatabase, agency: UUID, owner: UUID, app_url: str
) -> None:
    batch = db.batch(agency)
    done = stranger.run("login", "--token", "--url", app_url, typed=token(owner) + "\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Logged in at {app_url}.\n", "")
    assert [found["id"] for found in stranger.json("batches")["batches"]] == [str(batch)]
    assert stranger.done("logout") == "Logged out.\n"
    assert refused(stranger.run("batches"))[0] == 2


def test_a_token_that_does_not_count_is_not_kept(stranger: Operator, owner: UUID, app_url: str) -> None:
    for given, says in ((token(owner, exp=1), "Token has expired"), ("", "nothing was given")):
        status, message = refused(stranger.run("login", "--token", "--url", app_url, typed=given + "\n"))
        assert status == 2
        assert says in message
    assert not kept(stranger).exists()


@pytest.fixture
def logged_in(stranger: Operator, project_url: str) -> Operator:
    """Somebody who logged in to the project with email and password."""
    options = ("--url", project_url, "--key", PUBLISHABLE_KEY, "--email", EMAIL)
    done = stranger.run("login", *options, typed=PASSWORD + "\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"Logged in at {project_url} as {EMAIL}.\n"
    return stranger


def test_one_logs_in_with_email_and_password(
    logged_in: Operator, db: TestDatabase, agency: UUID, owner: UUID, auth: Auth
) -> None:
    batch = db.batch(agency)
    logged_in.done("cancel", batch, "--yes")
    assert db.value("select actor_id from batch_events where batch_id = %s", batch) == owner
    logged_in.done("logout")
    assert auth.ended == [str(owner)]
    assert not kept(logged_in).exists()


def test_the_password_is_typed_unseen(stranger: Operator, project_url: str) -> None:
    stranger.settings |= {"SUPABASE_URL": project_url, "SUPABASE_PUBLISHABLE_KEY": PUBLISHABLE_KEY}
    status, output, shown = stranger.at_terminal("login", "--email", EMAIL, types=PASSWORD)
    assert (status, shown) == (0, "Password: ")
    assert "Logged in" in output


def test_the_kept_login_is_for_its_owner_alone(logged_in: Operator) -> None:
    assert stat.S_IMODE(kept(logged_in).stat().st_mode) == 0o600
    assert stat.S_IMODE(kept(logged_in).parent.stat().st_mode) == 0o700
    assert list(kept(logged_in).parent.iterdir()) == [kept(logged_in)]
    assert PASSWORD not in kept(logged_in).read_text()


def test_a_wrong_password_is_refused_and_leaves_who_was_logged_in(logged_in: Operator, project_url: str) -> None:
    before = kept(logged_in).read_bytes()
    options = ("--url", project_url, "--key", PUBLISHABLE_KEY, "--email", EMAIL)
    status, message = refused(logged_in.run("login", *options, typed="wrong\n"))
    assert status == 2
    assert "Invalid login credentials" in message
    assert kept(logged_in).read_bytes() == before


def test_a_session_is_refreshed_before_it_ends(stranger: Operator, auth: Auth, project_url: str) -> None:
    auth.expires_in = 5  # less than the client's margin: at every command
    options = ("--url", project_url, "--key", PUBLISHABLE_KEY, "--email", EMAIL)
    assert stranger.run("login", *options, typed=PASSWORD).returncode == 0
    stranger.done("batches")
    stranger.done("batches")
    assert auth.refreshed == 2
    assert stat.S_IMODE(kept(stranger).stat().st_mode) == 0o600


def test_a_session_that_has_ended_says_to_log_in(stranger: Operator, auth: Auth, project_url: str) -> None:
    auth.expires_in = 5
    options = ("--url", project_url, "--key", PUBLISHABLE_KEY, "--email", EMAIL)
    assert stranger.run("login", *options, typed=PASSWORD).returncode == 0
    auth._refresh_tokens.clear()
    status, message = refused(stranger.run("batches"))
    assert status == 2
    assert "lastcall login" in message


def test_a_kept_session_goes_nowhere_but_where_it_is_from(logged_in: Operator) -> None:
    logged_in.settings["LASTCALL_URL"] = "http://127.0.0.1:1"
    status, message = refused(logged_in.run("batches"))
    assert status == 2
    assert "the environment names http://127.0.0.1:1" in message


def test_a_damaged_file_is_said_and_logout_removes_it(stranger: Operator) -> None:
    kept(stranger).parent.mkdir(parents=True)
    kept(stranger).write_text("{")
    assert "damaged" in refused(stranger.run("batches"))[1]
    stranger.run("logout")
    assert not kept(stranger).exists()


def test_no_secret_is_ever_shown(logged_in: Operator, db: TestDatabase, agency: UUID) -> None:
    batch = db.batch(agency)
    session = json.loads(next(iter(json.loads(kept(logged_in).read_text())["session"].values())))
    for command in (
        ("batches", "--json"),
        ("show", batch),
        ("cancel", uuid4(), "--yes"),
        ("cancel", "zz"),
        ("logout",),
    ):
        done = logged_in.run(*command)
        for secret in (session["access_token"], session["refresh_token"], PASSWORD):
            assert secret not in done.stdout + done.stderr


# Errors.


def test_a_token_that_has_expired_says_to_log_in(in_app: Operator, owner: UUID) -> None:
    in_app.settings["LASTCALL_TOKEN"] = token(owner, exp=1)
    status, message = refused(in_app.run("batches"))
    assert status == 2
    assert message.startswith("Token has expired: log in with `lastcall login`")


@pytest.mark.parametrize("door", ["in_app", "in_project"])
def test_a_refusal_of_the_service_is_shown_in_its_words(
    request: pytest.FixtureRequest, door: str, db: TestDatabase, agency: UUID
) -> None:
    operator: Operator = request.getfixturevalue(door)
    member = db.user(agency, "agency_member")
    batch = db.batch(agency, member)
    assert refused(operator.run("cancel", uuid4(), "--yes")) == (1, "Batch not found")
    assert refused(operator.run("stop", uuid4())) == (1, "Batch not found")
    operator.settings["LASTCALL_TOKEN"] = token(member)
    assert refused(operator.run("cancel", batch, "--yes")) == (1, "User role must be agency_owner or agency_admin")
    done = operator.run("cancel", batch, "--yes", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(done.stderr)["code"] == "role_not_allowed"
    db.rows("select cancel_batch(%s)", batch)
    assert refused(operator.run("stop", batch)) == (1, "Batch is already cancelled")


def test_at_the_console_refusals_are_the_same(at_console: Operator, db: TestDatabase) -> None:
    assert refused(at_console.run("cancel", uuid4(), "--yes")) == (1, "Batch not found")
    at_console.settings["DATABASE_URL"] = db.functions_uri
    status, message = refused(at_console.run("batches"))
    assert status == 2
    assert "lastcall_admin" in message


def test_a_database_without_lastcall_is_said(at_console: Operator, empty_database: str, server: Any) -> None:
    at_console.settings["DATABASE_URL"] = server.uri(empty_database)
    assert "lastcall migrate" in refused(at_console.run("batches"))[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"LASTCALL_URL": "http://127.0.0.1:1", "LASTCALL_TOKEN": "x"},
        {"SUPABASE_URL": "http://host.invalid", "SUPABASE_PUBLISHABLE_KEY": "x", "LASTCALL_TOKEN": "x"},
        {"DATABASE_URL": "postgresql://x@127.0.0.1:1/x"},
    ],
    ids=["app", "project", "console"],
)
def test_out_of_reach_is_said_at_once(tmp_path: Path, settings: dict[str, str]) -> None:
    operator = Operator(tmp_path, settings, ("--sql",) if "DATABASE_URL" in settings else ())
    for command in (("batches",), ("cancel", uuid4(), "--yes")):
        status, message = refused(operator.run(*command))
        assert status == 3
        assert "out of reach" in message
        assert "--idempotency-key" not in message  # it was never asked


@pytest.mark.parametrize(
    ("settings", "options", "says"),
    [
        ({}, (), "log in with `lastcall login`"),
        ({"LASTCALL_TOKEN": "x"}, (), "set SUPABASE_URL, or LASTCALL_URL"),
        ({"LASTCALL_TOKEN": "x", "LASTCALL_URL": "example.com"}, (), "LASTCALL_URL must be an http(s) URL"),
        ({}, ("--sql",), "--sql needs DATABASE_URL"),
        ({"DATABASE_URL": "nonsense"}, ("--sql",), "DATABASE_URL"),
    ],
    ids=str,
)
def test_without_knowing_where_and_who_it_cannot_run(
    tmp_path: Path, settings: dict[str, str], options: tuple[str, ...], says: str
) -> None:
    status, message = refused(Operator(tmp_path, settings, options).run("batches"))
    assert status == 2
    assert says in message


def test_an_address_where_something_else_answers_is_said(tmp_path: Path, app_url: str) -> None:
    settings = {"LASTCALL_URL": f"{app_url}/elsewhere", "LASTCALL_TOKEN": "x"}
    assert refused(Operator(tmp_path, settings).run("batches"))[0] == 1


def test_without_the_supabase_client_it_says_what_to_install() -> None:
    script = "import sys; sys.modules['supabase'] = None; from functions.cli import main; sys.exit(main(['batches']))"
    env = environment(LASTCALL_URL="http://127.0.0.1:1", LASTCALL_TOKEN="x")
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert "pip install 'lastcall[operator]'" in refused(done)[1]


@pytest.mark.parametrize(
    "command",
    [
        *("batches", "show", "watch", "events", "cancel", "stop", "pause", "resume", "retry", "import", "export"),
        *("login", "logout"),
    ],
)
def test_every_command_explains_itself_and_its_exit_status(tmp_path: Path, command: str) -> None:
    done = lastcall_here(command, "--help", folder=tmp_path, settings=environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 out of reach" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    "options", [["batches", "--limit", "0"], ["watch", "x", "--interval", "0"], ["cancel"]], ids=str
)
def test_an_unknown_command_ends_with_status_2(tmp_path: Path, options: list[str]) -> None:
    done = lastcall_here(*options, folder=tmp_path, settings=environment())
    assert (done.returncode, done.stdout) == (2, "")
