"""calls-batch-process, for cron, and `lastcall process`, as processes that can be killed."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from starlette.testclient import TestClient

from functions._shared.settings import Settings
from functions.app import create_app

from ..support.command import lastcall, serve
from ..support.database import TestDatabase
from ..support.processes import looping, process_settings
from ..support.serving import serving
from ..support.simulator import record, simulated
from ..support.tokens import bearer, token
from ..support.waiting import until

PATH = "/functions/v1/calls-batch-process"
CRON = "a cron secret of at least thirty-two bytes"
IDLE = {"processed": 0, "message": "No batches to process"}


@pytest.fixture
def carrier_url() -> Iterator[str]:
    with simulated(answer_at_end=True) as url:
        yield url


@pytest.fixture(params=["postgres", "postgrest"])
def client(request: pytest.FixtureRequest, carrier_url: str) -> Iterator[TestClient]:
    name = "settings" if request.param == "postgres" else "postgrest_settings"
    settings: Settings = replace(
        request.getfixturevalue(name),
        cron_secret=CRON,
        secret_key=token("", role="service_role", sub=None),
        carrier="simulator",
        carrier_url=carrier_url,
    )
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def as_cron() -> dict[str, str]:
    return {"Authorization": f"Bearer {CRON}"}


def a_batch(db: TestDatabase, contacts: int, **columns: Any) -> UUID:
    batch = db.batch(db.agency(), **{"retry_delay_seconds": 0, **columns})
    db.contacts(batch, pending=contacts)
    return batch


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_a_run_starts_what_is_due_and_places_its_calls(
    db: TestDatabase, client: TestClient, carrier_url: str, method: str
) -> None:
    batches = [a_batch(db, 5, status="pending"), a_batch(db, 3)]
    response = client.request(method, PATH, headers=as_cron())
    assert (response.status_code, response.json()) == (
        200,
        {"batches_processed": 2, "calls_initiated": 8, "calls_failed": 0},
    )
    assert [db.statuses(batch) for batch in batches] == [{"completed": 5}, {"completed": 3}]
    assert len(record(carrier_url)) == 8
    response = client.request(method, PATH, headers=as_cron())
    assert (response.status_code, response.json()) == (200, IDLE)
    assert [db.batch_row(batch)["status"] for batch in batches] == ["completed", "completed"]


def test_a_preflight_names_every_method_and_dials_nothing(db: TestDatabase, client: TestClient) -> None:
    batch = a_batch(db, 1)
    response = client.options(PATH)
    assert (response.status_code, response.headers["allow"]) == (204, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
    assert db.statuses(batch) == {"pending": 1}


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}])
def test_only_the_service_may_dial(db: TestDatabase, client: TestClient, headers: dict[str, str]) -> None:
    batch = a_batch(db, 1)
    assert client.post(PATH, headers=headers).status_code == 401
    assert client.post(PATH, headers=bearer(db.user(db.agency()))).status_code == 401
    assert db.statuses(batch) == {"pending": 1}


@pytest.mark.own_database
def test_a_run_that_fails_says_so(db: TestDatabase, client: TestClient) -> None:
    a_batch(db, 1)
    db.rows("alter function private.process_batches rename to gone")
    response = client.post(PATH, headers=as_cron())
    assert (response.status_code, response.json()["error"]) == (500, "Failed to process batches")


def test_without_a_carrier_nothing_is_claimed(db: TestDatabase, settings: Settings) -> None:
    batch = a_batch(db, 1)
    with TestClient(create_app(replace(settings, cron_secret=CRON))) as client:
        response = client.post(PATH, headers=as_cron())
    assert (response.status_code, response.json()["code"]) == (500, "no_carrier")
    assert db.statuses(batch) == {"pending": 1}


def test_runs_at_the_same_time_call_each_contact_once(db: TestDatabase, settings: Settings, carrier_url: str) -> None:
    batches = [a_batch(db, 60, max_concurrent=30) for _ in range(3)]
    of = replace(settings, cron_secret=CRON, carrier="simulator", carrier_url=carrier_url)

    async def run() -> list[Any]:
        async with httpx2.AsyncClient(trust_env=False, timeout=60) as http:
            posts = [http.post(f"http://{host}:{port}{PATH}", headers=as_cron()) for host, port in addresses]
            return await asyncio.gather(*posts)

    with serving(create_app(of)) as first, serving(create_app(of)) as second:
        addresses = [first, second]
        replies = asyncio.run(run())
        while any(db.statuses(batch) != {"completed": 60} for batch in batches):
            replies += asyncio.run(run())
    assert sum(reply.json().get("calls_initiated", 0) for reply in replies) == 180
    assert set(Counter(call["call_id"] for call in record(carrier_url)).values()) == {1}
    assert len(record(carrier_url)) == 180


# The command.


def test_one_run_of_the_command_prints_its_reply(db: TestDatabase, carrier_url: str, tmp_path: Path) -> None:
    batch = a_batch(db, 5)
    settings = process_settings(db, carrier_url)
    done = lastcall("process", "--max-calls", "3", folder=tmp_path, **settings)
    assert (done.returncode, json.loads(done.stdout)) == (
        0,
        {"batches_processed": 1, "calls_initiated": 3, "calls_failed": 0},
    )
    assert db.statuses(batch) == {"completed": 3, "pending": 2}
    lastcall("process", folder=tmp_path, **settings)
    done = lastcall("process", folder=tmp_path, **settings)
    assert (done.returncode, json.loads(done.stdout)) == (0, IDLE)


def test_the_command_says_what_keeps_it_from_running(tmp_path: Path) -> None:
    for settings, told in (
        ({}, "set LASTCALL_CARRIER"),
        ({"LASTCALL_CARRIER": "pigeon"}, "LASTCALL_CARRIER must be one of simulator, ultravox"),
        ({"LASTCALL_CARRIER": "ultravox"}, "the carrier ultravox needs ULTRAVOX_API_KEY"),
        ({"LASTCALL_CARRIER": "simulator"}, "the carrier simulator needs CARRIER_URL"),
    ):
        done = lastcall("process", folder=tmp_path, DATABASE_URL="postgresql://nowhere", **settings)
        assert (done.returncode, done.stdout) == (2, "")
        assert told in done.stderr
    nowhere = f"postgresql://x@/x?host={tmp_path}"
    done = lastcall("process", folder=tmp_path, DATABASE_URL=nowhere, LASTCALL_CARRIER="ultravox", ULTRAVOX_API_KEY="k")
    assert (done.returncode, done.stdout) == (1, "")


def test_it_dials_what_is_served_from_the_same_folder(own_folder: Path) -> None:
    with simulated(answer_at_end=True) as carrier_url, serve(own_folder) as service:
        done = lastcall("process", folder=own_folder, LASTCALL_CARRIER="simulator", CARRIER_URL=carrier_url)
        assert (done.returncode, json.loads(done.stdout)) == (0, IDLE)
        assert service.health().status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_lets_what_is_in_flight_end_and_leaves_nothing_open(
    db: TestDatabase, carrier_url: str, tmp_path: Path, number: int
) -> None:
    batch = a_batch(db, 2000, max_concurrent=20)
    with looping(tmp_path, process_settings(db, carrier_url)) as process:
        until(lambda: db.statuses(batch).get("completed", 0) > 20)
        process.send_signal(number)
        assert process.wait(60) == 0
    statuses = db.statuses(batch)
    assert statuses.get("in_progress", 0) == 0
    assert len(record(carrier_url)) == statuses["completed"]
    assert db.unbalanced() == []


def test_killed_in_mid_run_nobody_is_called_twice_and_nothing_stays_open(db: TestDatabase, tmp_path: Path) -> None:
    """The witness is the carrier's record: each number arrives there once."""
    batch = a_batch(db, 150, max_concurrent=30)
    with simulated(answer_at_end=True, talk_s=(0.2, 0.6)) as carrier_url:
        settings = process_settings(
            db,
            carrier_url,
            LASTCALL_CARRIER_TIMEOUT_MS="5000",
            LASTCALL_RECONCILE_AFTER_S="20",
            LASTCALL_RECONCILE_EVERY_MS="200",
        )
        for kill_at in (20, 60, 100):
            with looping(tmp_path, settings) as process:
                until(lambda at=kill_at: len(record(carrier_url)) >= at)  # type: ignore[misc]
                process.kill()
                process.wait()
            let_time_pass(db, carrier_url)
        with looping(tmp_path, settings):
            until(lambda: db.statuses(batch) == {"completed": 150})
        arrived = Counter(call["to"] for call in record(carrier_url))
        known = {row["id"] for row in db.rows("select id from calls where started_at is not null")}
        assert {call["call_id"] for call in record(carrier_url)} <= known
    assert len(arrived) == 150
    assert set(arrived.values()) == {1}
    assert db.value("select count(*) from calls where status in ('queued', 'in_progress', 'unknown')") == 0
    assert db.unbalanced() == []


def let_time_pass(db: TestDatabase, carrier_url: str) -> None:
    """After a dialer was killed: nothing that it sent is on its way any more, its calls have ended, and a minute has
    passed for its leases and calls."""
    db.rows(
        "select pg_terminate_backend(pid, 60000) from pg_stat_activity"
        " where datname = current_database() and application_name = 'lastcall'"
    )
    record(carrier_url)  # what was sent before has been read before
    until(lambda: all(call["ended_at"] is not None for call in record(carrier_url)))
    db.rows("update calls set lease_expires_at = now() where status = 'queued'")
    db.rows("update calls set started_at = started_at - interval '1 minute' where status = 'in_progress'")
