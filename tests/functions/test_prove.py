"""lastcall prove tells the truth: PASS for the core, FAIL for edge functions and for a core that was broken."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from functions.migrations import SQL
from functions.postgres_server import PostgresServer
from functions.prove import checker, race
from functions.prove.checker import Verdict

from ..support.command import LASTCALL, environment, lastcall_here
from ..support.database import TestDatabase, connect

pytestmark = pytest.mark.one_postgres

LATE = "none arrives more than 2 s after a reply"
UNSILENT = "none arrives after a reply that waited for silence"


def prove(database_url: str, folder: Path, *options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command with its records in `folder`/records."""
    return lastcall_here(
        "prove",
        *("--out", str(folder / "records"), *options),
        folder=folder,
        settings=environment(DATABASE_URL=database_url, **settings),
    )


def rules(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The rules that a run found broken."""
    return set(re.findall(r"^BROKEN +(.+): [0-9]+$", done.stdout, re.MULTILINE))


# The verdict on real runs.


def test_the_core_passes_and_the_rows_of_others_stay_as_they_are(db: TestDatabase, tmp_path: Path) -> None:
    agency = db.agency("Others")
    db.contacts(db.batch(agency, status="paused"), pending=5, completed=2)
    before = db.state()
    # Short times, so that frozen dialers are late after half a second.
    options = ("--seconds", "6", "--dialers", "2", "--contacts", "150", "--seed", "7")
    done = prove(db.uri, tmp_path, *options, LASTCALL_PLACE_WITHIN_MS="500")
    assert (done.returncode, rules(done)) == (0, set()), done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "PASS"
    assert db.state() == before
    # Each kind of end took part, and the checker says the same when it is run alone.
    verdict = Verdict(tmp_path / "records")
    assert {end["what"] for end in verdict.ends} == {"cancel", "stop", "pause", "skip", "opt_out", "hold"}
    assert any(end["silent"] for end in verdict.ends)
    assert verdict.holds


def test_the_service_may_run_it_too(db: TestDatabase, tmp_path: Path) -> None:
    options = ("--seconds", "1", "--dialers", "1", "--contacts", "100", "--keep")
    done = prove(db.functions_uri, tmp_path, *options, LASTCALL_PLACE_WITHIN_MS="500")
    assert (done.returncode, rules(done)) == (0, set()), done.stdout + done.stderr
    kept = db.rows("select name from agencies where name like 'lastcall prove %%'")
    assert len(kept) == 2


@pytest.mark.own_database
def test_it_runs_whatever_isolation_is_the_database_s_default(db: TestDatabase, tmp_path: Path) -> None:
    name = db.value("select current_database()")
    db.rows(f"alter database {name} set default_transaction_isolation = 'repeatable read'")
    options = ("--seconds", "1", "--dialers", "1", "--contacts", "100")
    done = prove(db.uri, tmp_path, *options, LASTCALL_PLACE_WITHIN_MS="500")
    assert (done.returncode, rules(done)) == (0, set()), done.stdout + done.stderr


@pytest.mark.long
def test_edge_functions_fail_by_late_calls_alone(db: TestDatabase, tmp_path: Path) -> None:
    before = db.state()
    # Each agency's first end comes when the dial loop has a page of the batch in hand, for 10 seconds.
    done = prove(db.uri, tmp_path, "--way", "edge", "--seconds", "4", "--contacts", "100")
    assert (done.returncode, rules(done)) == (1, {LATE}), done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "FAIL"
    assert db.state() == before


def looks_before_the_lock(start_call: str) -> str:
    return start_call.replace(
        "  v_batch := private.lock_batch(p_agency_id, p_batch_id);\n",
        "  select b.* into v_batch from public.call_batches b where b.agency_id = p_agency_id and b.id = p_batch_id;\n"
        "  v_delayed := (v_batch.status <> 'processing' or private.is_held(v_batch, clock_timestamp()))::integer;\n"
        "  perform pg_sleep(1);\n"
        "  v_batch := private.lock_batch(p_agency_id, p_batch_id);\n",
    ).replace("if v_batch.status <> 'processing' or private.is_held(v_batch, v_now) then", "if v_delayed = 1 then")


def does_not_look(start_call: str) -> str:
    return start_call.replace(
        "  v_batch := private.lock_batch(p_agency_id, p_batch_id);\n",
        "  perform pg_sleep(1);\n  v_batch := private.lock_batch(p_agency_id, p_batch_id);\n",
    ).replace("if v_batch.status <> 'processing' or private.is_held(v_batch, v_now) then", "if false then")


@pytest.mark.long
@pytest.mark.own_database
@pytest.mark.parametrize("broken", [looks_before_the_lock, does_not_look])
def test_a_broken_gate_fails(
    db: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[[str], str]
) -> None:
    source = (SQL / "dialer" / "start_call.sql").read_text()
    (procedure,) = re.findall(r"^create or replace function private\.start_call.*?^\$\$;$", source, re.M | re.S)
    assert broken(procedure).count("pg_sleep") == 1
    assert "is_held(v_batch, v_now)" not in broken(procedure)
    db.owner.execute(broken(procedure).encode())
    # Holds of agencies that wait for silence, one after another: each meets calls that wait at the slow gate.
    monkeypatch.setattr(race, "HOLDS", {"agency": 1})
    monkeypatch.setattr(race, "WAITING", 1.0)
    monkeypatch.setattr(race, "HELD_FOR", (0.8, 0.9))  # longer than the gate takes
    monkeypatch.setattr(race, "BETWEEN_HOLDS_S", (1.5, 2.0))  # time to dial again
    monkeypatch.setattr(race, "BETWEEN_DISTURBANCES_S", (60, 60))  # a dialer that was frozen places none of these calls
    done = prove(db.uri, tmp_path, "--seconds", "10", "--dialers", "2", "--contacts", "150", "--seed", "7")
    assert done.returncode == 1, done.stdout + done.stderr
    assert UNSILENT in rules(done), done.stdout


# Refusals.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--contacts", "99"], "--contacts must be from 100 to 50,000"),
        (["--contacts", "50001"], "--contacts must be from 100 to 50,000"),
        (["--dialers", "0"], "--dialers must be from 1 to 8"),
        (["--seconds", "0"], "argument --seconds: must be 0.1 to 3600"),
        (["--way", "hope"], "argument --way: invalid choice: 'hope'"),
        (["--out", "/dev/null/records"], "cannot write the records into /dev/null/records: Not a directory"),
    ],
)
def test_wrong_options_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    done = lastcall_here("prove", *options, folder=tmp_path, settings={"DATABASE_URL": "postgresql://nowhere"})
    assert done.returncode == 2
    assert message in done.stderr


def test_records_are_not_mixed_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "carrier.jsonl").touch()
    done = prove("postgresql://nowhere", tmp_path)
    assert done.returncode == 2
    assert "--out must be an empty or a new folder" in done.stderr


def test_a_database_without_the_core_is_refused(server: PostgresServer, empty_database: str, tmp_path: Path) -> None:
    done = prove(server.uri(empty_database), tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lastcall: the database has no core of this release: run lastcall migrate")


def test_a_wrong_place_by_time_is_refused(db: TestDatabase, tmp_path: Path) -> None:
    done = prove(db.uri, tmp_path, LASTCALL_PLACE_WITHIN_MS="soon")
    assert done.returncode == 2
    assert "LASTCALL_PLACE_WITHIN_MS must be a whole number" in done.stderr


def test_a_database_in_which_others_dial_is_refused(db: TestDatabase, tmp_path: Path) -> None:
    db.contacts(db.batch(db.agency("Busy")), pending=1)
    before = db.state()
    done = prove(db.uri, tmp_path)
    assert done.returncode == 2
    assert "others dial in this database (live batches: 1 of 'Busy'; webhooks that wait: 0)" in done.stderr
    assert db.state() == before


def test_the_edge_way_is_for_the_owner(db: TestDatabase, tmp_path: Path) -> None:
    done = prove(db.functions_uri, tmp_path, "--way", "edge")
    assert done.returncode == 2
    assert "DATABASE_URL must be of the core's owner" in done.stderr


@contextmanager
def claiming(db: TestDatabase) -> Iterator[list[dict[str, Any]]]:
    """A dialer that claims whatever there is, and asks the gate. Yields what the gate let through."""
    started: list[dict[str, Any]] = []
    over = threading.Event()

    def claim() -> None:
        with connect(db.uri) as connection:
            while not over.wait(0.05):
                for call in connection.execute("select * from claim_contacts(1)").fetchall():
                    arguments = [call["batch_id"], [call["call_id"]], call["lease"]]
                    row = connection.execute("select * from start_call(%s, %s, %s)", arguments).fetchone()
                    started.extend([call] if row is not None and row["started"] else [])

    dialer = threading.Thread(target=claim)
    dialer.start()
    try:
        yield started
    finally:
        over.set()
        dialer.join()


def test_a_database_at_which_a_dialer_is_at_work_is_refused_before_any_call_starts(
    db: TestDatabase, tmp_path: Path
) -> None:
    before = db.state()
    with claiming(db) as started:
        done = prove(db.uri, tmp_path)
    assert done.returncode == 2
    assert "a dialer is at work on this database" in done.stderr
    assert started == []
    assert db.state() == before


# The checker, on small records made by hand.

BATCH = {
    "event": "batch",
    "batch": "b1",
    "agency": "a1",
    "campaign": "c1",
    "agent": "m1",
    "caller_number": "+1",
    "contacts": 3,
}
NO_COUNTERS = {"event": "counters", "status": "cancelled", "completed": 0, "failed": 0, "skipped": 0}
OTHER_BATCH = {**BATCH, "batch": "b2", "campaign": "c2", "agent": "m2", "caller_number": "+2"}


def request(call: int, at: float, contact: int = 1, batch: str = "b1", to: str = "+7", seen_late_s: float = 0.0) -> Any:
    """A request that came at a time, and that the carrier saw so much later."""
    name = {"batch_id": batch, "call_id": call, "lease": f"lease {call}", "contact_id": contact, "to": to}
    return {"event": "request", "at": at + seen_late_s, "not_before": at, **name}


def over(call: int, contact: int = 1, batch: str = "b1") -> Any:
    return {**request(call, 0.0, contact, batch), "event": "end"}


def end(what: str = "cancel", scope: str = "batch", id_: str = "b1", **more: Any) -> Any:
    """An end asked at 10 and answered at 11, whose promise is silence at 13."""
    about = {"event": "end", "n": 1, "what": what, "scope": scope, "id": id_, "agency": "a1", "silent": None}
    return {**about, "asked": 10.0, "replied": 11.0, "silent_within_s": 2.0, **more}


def begin(what: str, asked: float, **more: Any) -> Any:
    return {"event": "begin", "what": what, "id": "b1", "asked": asked, "replied": asked + 0.1, **more}


def contact(number: int, status: str = "completed", attempts: int = 1, batch: str = "b1") -> Any:
    return {"event": "contact", "batch": batch, "contact": number, "status": status, "attempts": attempts}


def counters(batch: str = "b1", status: str = "cancelled", **counted: int) -> Any:
    return {**NO_COUNTERS, "batch": batch, "status": status, **counted}


BOOKS = [contact(1), contact(2, "skipped", 0), contact(3, "skipped", 0), counters(completed=1, skipped=2)]


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., dict[str, int]]:
    """The rules that records break, and how often."""

    def judge(carrier: list[Any], ends: list[Any], books: list[Any] | None = None) -> dict[str, int]:
        files = {"carrier": carrier, "ends": ends, "contacts": BOOKS if books is None else books}
        for name, rows in files.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {rule: len(found) for rule, found in Verdict(tmp_path).violations.items()}

    return judge


Judge = Callable[..., dict[str, int]]


@pytest.mark.parametrize(("at", "late"), [(9.0, False), (10.5, False), (12.9, False), (13.1, True), (99.0, True)])
def test_a_request_is_late_after_the_place_by_time(judge: Judge, at: float, late: bool) -> None:
    assert judge([request(1, at)], [BATCH, end()]) == ({LATE: 1} if late else {})


def test_a_request_that_the_carrier_saw_late_may_have_come_in_time(judge: Judge) -> None:
    assert judge([request(1, 12.9, seen_late_s=0.5)], [BATCH, end()]) == {}


@pytest.mark.parametrize(("at", "late"), [(11.3, False), (11.6, True)])
def test_no_request_comes_after_a_reply_that_waited(judge: Judge, at: float, late: bool) -> None:
    assert judge([request(1, at)], [BATCH, end(silent=11.5)]) == ({UNSILENT: 1} if late else {})


@pytest.mark.parametrize(
    ("scope", "id_", "more", "reached"),
    [
        ("batch", "b1", {}, True),
        ("batch", "b2", {}, False),
        ("contacts", "b1", {"contacts": [1, 2]}, True),
        ("contacts", "b1", {"contacts": [2, 3]}, False),
        ("number", "+7", {}, True),
        ("number", "+8", {}, False),
        ("number", "+7", {"agency": "a2"}, False),
    ],
)
def test_each_scope_reaches_its_own_requests_alone(
    judge: Judge, scope: str, id_: str, more: dict[str, Any], reached: bool
) -> None:
    found = judge([request(1, 20.0)], [BATCH, end("skip", scope, id_, **more)])
    assert found == ({LATE: 1} if reached else {})


@pytest.mark.parametrize(
    ("scope", "id_", "more", "reached"),
    [
        ("campaign", "c1", {}, True),
        ("agent", "m1", {}, True),
        ("caller_number", "+1", {}, True),
        ("agency", "a1", {}, True),
        ("campaign", "c2", {}, False),
        ("agent", "m2", {}, False),
        ("caller_number", "+2", {}, False),
        ("caller_number", "+1", {"agency": "a2"}, False),
        ("agency", "a2", {"agency": "a2"}, False),
    ],
)
def test_each_hold_reaches_its_own_batches_alone(
    judge: Judge, scope: str, id_: str, more: dict[str, Any], reached: bool
) -> None:
    elsewhere = {**OTHER_BATCH, "batch": "b3", "agency": "a3", "contacts": 0}
    found = judge(
        [request(1, 20.0), request(2, 20.0, batch="b3")],
        [BATCH, elsewhere, end("hold", scope, id_, **more)],
        [*BOOKS, counters("b3")],
    )
    assert found == ({LATE: 1} if reached else {})


@pytest.mark.parametrize(("what", "again"), [("pause", True), ("stop", True), ("cancel", False), ("skip", False)])
def test_a_resume_lets_paused_and_stopped_batches_begin_again(judge: Judge, what: str, again: bool) -> None:
    ends = [BATCH, end(what), begin("resume", 20.0)]
    assert judge([request(1, 20.5)], ends) == ({} if again else {LATE: 1})
    assert judge([request(1, 19.5)], ends) == {LATE: 1}
    assert judge([request(1, 20.5)], [BATCH, end(what), begin("resume", 20.0, id="b2")]) == {LATE: 1}
    assert judge([request(1, 20.5)], [BATCH, end(what), begin("resume", 8.0)]) == {LATE: 1}


def test_a_lift_ends_its_own_hold_alone(judge: Judge) -> None:
    other = {**OTHER_BATCH, "contacts": 0}
    carrier = [request(1, 20.5), request(2, 15.0, batch="b2")]
    ends, books = [BATCH, other, end("hold", "campaign", "c1")], [*BOOKS, counters("b2")]
    assert judge(carrier, [*ends, begin("lift", 20.0, of=1)], books) == {}
    assert judge(carrier, [*ends, begin("lift", 20.0, of=2)], books) == {LATE: 1}
    assert judge(carrier, [*ends, begin("resume", 20.0)], books) == {LATE: 1}


def test_others_go_on_while_some_are_held(judge: Judge) -> None:
    ends = [BATCH, end("hold", "campaign", "c1")]
    assert judge([request(1, 9.0)], ends) == {"other batches go on while some are held": 1}
    assert judge([request(1, 9.0)], [*ends, begin("lift", 20.0, of=1)]) == {}


def test_no_attempt_is_placed_twice(judge: Judge) -> None:
    found = judge([request(1, 1.0), over(1), request(1, 2.0)], [BATCH, end()], [contact(1, attempts=2), *BOOKS[1:]])
    assert found == {"no attempt is placed twice": 1}


def test_no_contact_has_two_calls_at_a_time(judge: Judge) -> None:
    books = [contact(1, attempts=2), *BOOKS[1:]]
    assert judge([request(1, 1.0), over(1), request(2, 2.0)], [BATCH, end()], books) == {}
    found = judge([request(1, 1.0), request(2, 2.0), over(1), over(2)], [BATCH, end()], books)
    assert found == {"no contact has two calls at a time": 1}


def test_the_carrier_gets_calls_of_these_batches_alone(judge: Judge) -> None:
    found = judge([request(1, 1.0), request(2, 1.0, batch="b9")], [BATCH, end()])
    assert found == {"the carrier gets calls of these batches alone": 1}


@pytest.mark.parametrize(
    ("books", "rule"),
    [
        ([*BOOKS[1:3], counters(skipped=2)], "every contact is accounted for"),
        ([*BOOKS[:3], counters(completed=1, skipped=1)], "the counters are right"),
        (BOOKS[:3], "the counters are right"),
        (
            [*BOOKS[:2], contact(3, "in_progress", 0), counters(completed=1, skipped=1)],
            "no contact is left in the middle",
        ),
        (
            [*BOOKS[:2], contact(3, "pending", 0), counters(completed=1, skipped=1)],
            "a cancelled batch has no contact left to call",
        ),
        ([contact(1, attempts=0), *BOOKS[1:]], "the database counts what the carrier saw"),
        (
            [contact(1), contact(2), contact(3, "skipped", 0), counters(completed=2, skipped=1)],
            "the database counts what the carrier saw",
        ),
    ],
)
def test_every_contact_is_accounted_for(judge: Judge, books: list[Any], rule: str) -> None:
    assert judge([request(1, 1.0)], [BATCH, end()], books) == {rule: 1}


def test_without_a_race_there_is_no_pass(judge: Judge) -> None:
    assert judge([], [BATCH], [contact(number, "skipped", 0) for number in (1, 2, 3)] + [counters(skipped=3)]) == {
        "there was a race": 1
    }


def test_the_checker_runs_alone(judge: Judge, tmp_path: Path) -> None:
    judge([request(1, 20.0)], [BATCH, end()])
    command = [LASTCALL.replace("lastcall", "python"), "-I", "-S", checker.__file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "FAIL"
    assert "call 1 of batch b1 at 20.000, 9.000 s after the reply to cancel (end 1)" in done.stdout
    judge([request(1, 9.0)], [BATCH, end()])
    assert subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[-1] == "PASS"


def test_the_checker_is_short_and_imports_nothing_of_lastcall() -> None:
    source = Path(checker.__file__).read_text()
    assert len(source.splitlines()) <= 200
    assert re.findall(r"^ *(?:from|import) (\S+)", source, re.MULTILINE) == [
        "__future__", "json", "sys", "collections", "collections.abc", "pathlib", "typing",
    ]  # fmt: skip
