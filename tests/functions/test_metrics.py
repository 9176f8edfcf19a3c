"""The metrics are true, bounded, and at an address of their own."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import psycopg
import pytest

from functions import telemetry
from functions._shared.database import PostgresDatabase
from functions._shared.errors import FunctionError
from functions._shared.settings import Settings, SettingsError
from functions.app import create_app
from functions.dialer.carrier import (
    Call,
    CallRefusedError,
    CallUnclearError,
    CarrierUnavailableError,
    Finished,
    InProgress,
)
from functions.dialer.dialer import Dialer
from functions.telemetry import ProcessTelemetry, metrics

from ..support.client import Case
from ..support.command import LASTCALL, environment, lastcall
from ..support.database import TestDatabase
from ..support.dialing import ScriptedCarrier, dial_settings
from ..support.faults import fails_at_first
from ..support.keys import key_server, new_key
from ..support.locks import locked, waiting_for_a_lock
from ..support.scraping import ANY_PORT, OPENMETRICS, Scrape, scraped
from ..support.serving import logged, serving
from ..support.tokens import bearer, token
from ..support.waiting import until
from ..support.webhooks import Carrier, event

CANCEL = "/functions/v1/calls-batch-cancel"
FOLDER = Path(telemetry.__file__).parent


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine is given the time to tell the database's numbers."""
    monkeypatch.setattr(metrics, "STATS_TIMEOUT_S", 40.0)


# Off by default.


def test_nothing_of_it_is_imported_unless_it_is_asked_for() -> None:
    program = (
        "import sys\n"
        "from functions._shared.settings import Settings\n"
        "from functions.app import create_app\n"
        "from functions.dialer import service\n"
        "create_app(Settings.from_env({'DATABASE_URL': 'postgresql://db', 'SUPABASE_JWT_SECRET': 'x' * 32}))\n"
        "print([name for name in sys.modules if name.startswith(('prometheus_client', 'opentelemetry'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_it_is_never_told_at_the_address_of_the_functions(settings: Settings) -> None:
    with scraped(settings) as (client, _):
        assert client.get("/metrics").status_code == 404


def test_without_the_library_the_setting_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"DATABASE_URL": "postgresql://db", "SUPABASE_JWT_SECRET": "x" * 32, "LASTCALL_METRICS_PORT": "9464"}
    assert Settings.from_env(env).metrics_ports == range(9464, 9465)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(SettingsError, match=r"pip install 'lastcall\[metrics\]'"):
        Settings.from_env(env)


@pytest.mark.parametrize("value", ["x", "-1", "9464-", "9465-9464", "65536", "1-65536", "1 - 2", "9464,9465", "²"])
def test_a_value_that_is_no_port_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match="LASTCALL_DIALER_METRICS_PORT must be a port, or a range"):
        Settings.from_env({"DATABASE_URL": "postgresql://db", "LASTCALL_DIALER_METRICS_PORT": value}, serving=False)


# Requests.


def test_requests_are_counted_by_function_method_and_status(settings: Settings, db: TestDatabase) -> None:
    agency = db.agency()
    batch, headers = db.batch(agency), bearer(db.user(agency))
    with scraped(settings) as (client, url):
        for path in (CANCEL, "/calls-batch-cancel"):
            client.post(path, json={"batch_id": str(batch)}, headers=headers)
        client.get(CANCEL)
        client.get("/health")
        seen = Scrape(url)
    of = "calls-batch-cancel"
    assert seen.value("lastcall_requests_total", function=of, method="POST", status="200") == 1
    assert seen.value("lastcall_requests_total", function=of, method="POST", status="400") == 1
    assert seen.value("lastcall_requests_total", function=of, method="GET", status="405") == 1
    assert seen.value("lastcall_request_seconds_count", function=of) == 3
    assert seen.value("lastcall_request_seconds_count", function="health") == 1
    assert seen.by("lastcall_refusals_total", "code") == {"batch_already_cancelled": 1, "method_not_allowed": 1}
    assert seen.value("lastcall_requests_going_on") == 0


def test_bodies_that_are_refused_are_counted_by_the_reason(settings: Settings) -> None:
    with scraped(replace(settings, max_body_bytes=1024)) as (client, url):
        for body in ("x" * 2000, "[]", "{"):
            client.post(CANCEL, content=body, headers=bearer(uuid4()))
        assert Scrape(url).by("lastcall_refusals_total", "code") == {"body_too_large": 1, "invalid_body": 2}


def test_whatever_is_sent_no_label_tells_of_it(settings: Settings, db: TestDatabase) -> None:
    agency = db.agency()
    ids = [agency, db.user(agency), db.batch(agency), uuid4()]
    with scraped(settings) as (client, url):
        for number, of in enumerate(ids):
            headers = {**bearer(of), "X-Request-Id": f"sent-{number}", "Idempotency-Key": f"sent-{number}"}
            client.post(CANCEL, json={"batch_id": str(of), "reason": "sent"}, headers=headers)
            client.request(f"SENT{number}", f"/functions/v1/sent-{number}?sent={of}")
            client.request(f"SENT{number}", CANCEL)
            client.post(f"/webhook-ingest/{of}/whsec_sent{number}/sent", content="{}")
            client.get(f"/api/call/batches/{of}?search=sent", headers=headers)
        seen = Scrape(url)
    assert "sent" not in seen.text.lower()
    assert not [of for of in ids if str(of) in seen.text]
    assert {dict(labels)["method"] for name, labels in seen.samples if name == "lastcall_requests_total"} == {
        "GET", "POST", "other"
    }  # fmt: skip
    assert seen.value("lastcall_requests_total", function="none", method="other", status="404") == len(ids)


def test_a_client_that_leaves_is_counted_without_a_status(settings: Settings) -> None:
    with logged() as log, serving(create_app(replace(settings, metrics_ports=ANY_PORT))) as address:
        until(lambda: log.lines("metrics"))
        url = log.lines("metrics")[0]["url"]
        with socket.create_connection(address) as left:
            head = f"POST {CANCEL} HTTP/1.1\r\nHost: x\r\nAuthorization: {bearer(uuid4())['Authorization']}\r\n"
            left.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            until(lambda: Scrape(url).value("lastcall_requests_going_on") == 1)
        of = {"function": "calls-batch-cancel", "method": "POST"}
        until(lambda: Scrape(url).value("lastcall_requests_total", **of, status="none") == 1)
        seen = Scrape(url)
    assert seen.value("lastcall_requests_going_on") == 0
    assert seen.by("lastcall_refusals_total", "code") == {}


def test_two_services_in_a_process_do_not_mix_their_numbers(settings: Settings) -> None:
    with scraped(settings) as (one, url), scraped(settings) as (_, other_url):
        one.get("/health")
        assert Scrape(url).value("lastcall_requests_total", function="health", method="GET", status="200") == 1
        assert Scrape(other_url).by("lastcall_requests_total", "function") == {}


@pytest.mark.parametrize("headers", [None, OPENMETRICS], ids=["text", "openmetrics"])
def test_prometheus_can_read_it_and_every_metric_says_what_it_is(
    settings: Settings, headers: dict[str, str] | None
) -> None:
    with scraped(settings) as (client, url):
        client.get("/health")
        seen = Scrape(url, headers)
    assert len(seen.families) > 30
    assert [name for name, family in seen.families.items() if not family.documentation and name != "# EOF"] == []


# Procedures and connections.


def procedures(settings: Settings, call: Any) -> dict[str, float]:
    """How often a call of try_it had each outcome."""

    async def run() -> dict[str, float]:
        watch = ProcessTelemetry(settings, ANY_PORT, "test")
        database = PostgresDatabase(settings, watch.telemetry)
        with logged() as log:
            async with watch.running(database):
                try:
                    await call(database)
                except (psycopg.Error, FunctionError):
                    pass
                finally:
                    await database.close()
                url = log.lines("metrics")[0]["url"]
                seen = await asyncio.to_thread(Scrape, url)
        return seen.by("lastcall_procedure_seconds_count", "outcome")

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("sqlstate", "times", "outcomes"),
    [
        ("40P01", 0, {"ok": 1}),
        ("40P01", 1, {"retry": 1, "ok": 1}),
        ("40001", 2, {"retry": 1, "error": 1}),
        ("PT409", 1, {"refused": 1}),
        ("23505", 1, {"error": 1}),
        ("57P01", 1, {"unavailable": 1}),
    ],
)
@pytest.mark.own_database
def test_procedures_are_told_by_their_outcome(
    settings: Settings, db: TestDatabase, sqlstate: str, times: int, outcomes: dict[str, float]
) -> None:
    fails_at_first(db, sqlstate, times)
    caller = Case(db).caller
    assert procedures(settings, lambda database: database.run(caller, "try_it", {})) == outcomes


def test_without_a_database_procedures_are_unavailable(
    settings: Settings, db: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "STATS_TIMEOUT_S", 0.1)
    away = replace(settings, database_url="postgresql://nobody@/none?host=/nowhere", pool_timeout_s=0.1)
    caller = Case(db).caller
    assert procedures(away, lambda database: database.run(caller, "try_it", {})) == {"unavailable": 1}


def test_an_exhausted_pool_shows_and_does_not_hide_the_databases_own_numbers(
    settings: Settings, db: TestDatabase
) -> None:
    case, other = Case(db), Case(db)
    with scraped(replace(settings, pool_size=1)) as (client, url), ThreadPoolExecutor(2) as threads:
        with locked(db, case.batch):
            first = threads.submit(case.cancel, client)
            waiting_for_a_lock(db)
            second = threads.submit(other.cancel, client)
            until(lambda: Scrape(url).value("lastcall_pool_waiting") == 1)
            seen = Scrape(url)
        assert (first.result().status_code, second.result().status_code) == (200, 200)
        after = Scrape(url)
    assert [seen.value(f"lastcall_pool_{name}") for name in ("max", "connections", "idle")] == [1, 1, 0]
    assert seen.value("lastcall_requests_going_on") == 2
    assert seen.value("lastcall_stats_up") == 1
    assert seen.value("lastcall_batches", status="processing") == 2
    assert after.value("lastcall_pool_waiting") == 0
    # The second one's agency was looked up, too, since another cancel was under way.
    assert after.value("lastcall_connection_wait_seconds_count") == 3


def test_fetches_of_keys_are_counted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key("k")
    with key_server(monkeypatch) as keys:
        of = replace(settings, jwt_secret=None, supabase_url=keys.url)
        keys.fail()
        with scraped(of) as (client, url):
            client.post(CANCEL, json={}, headers={"Authorization": f"Bearer {key.token(uuid4())}"})
            assert Scrape(url).by("lastcall_jwks_fetches_total", "outcome") == {"failed": 1}
        keys.publish(key)
        with scraped(of) as (client, url):
            client.post(CANCEL, json={}, headers={"Authorization": f"Bearer {key.token(uuid4())}"})
            assert Scrape(url).by("lastcall_jwks_fetches_total", "outcome") == {"ok": 1}


# The figures of the database.


def test_the_databases_numbers_are_told_and_kept_for_a_while(
    settings: Settings, db: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.contacts(db.batch(db.agency()), pending=3)
    with scraped(settings) as (_, url):
        monkeypatch.setattr(metrics, "STATS_KEPT_S", 3600.0)
        seen = Scrape(url)
        assert seen.value("lastcall_stats_up") == 1
        assert seen.value("lastcall_contacts", status="pending") == 3
        assert seen.value("lastcall_calls_started_after_end", after="cancel") == 0
        assert seen.value("lastcall_unbalanced_batches") == 0
        db.rows("update call_batches set completed = -1")
        assert Scrape(url).value("lastcall_unbalanced_batches") == 0
        monkeypatch.setattr(metrics, "STATS_KEPT_S", 0.0)
        assert Scrape(url).value("lastcall_unbalanced_batches") == 1
        db.rows("update call_batches set completed = 0")


def test_every_number_of_the_database_is_told(settings: Settings, db: TestDatabase) -> None:
    told = db.rows("select name, label from service_stats()")
    with scraped(settings) as (_, url):
        seen = Scrape(url)
    for row in told:
        name, label, _ = metrics.STATS[row["name"]]
        assert seen.value(name, **({label: row["label"]} if label else {})) is not None
    assert {row["name"] for row in told} == metrics.STATS.keys()


def test_over_postgrest_they_are_told_too(postgrest_settings: Settings, db: TestDatabase) -> None:
    service = replace(postgrest_settings, secret_key=token("", role="service_role", sub=None))
    db.contacts(db.batch(db.agency()), pending=3)
    with scraped(service) as (client, url):
        client.post(CANCEL, json={"batch_id": str(uuid4())}, headers=bearer(uuid4()))
        seen = Scrape(url)
    assert seen.value("lastcall_contacts", status="pending") == 3
    assert seen.value("lastcall_procedure_seconds_count", procedure="cancel_batch", outcome="refused") == 1


def test_when_the_database_does_not_tell_the_numbers_are_left_out_and_the_rest_is_told(
    settings: Settings, db: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "STATS_KEPT_S", 0.0)
    monkeypatch.setattr(metrics, "STATS_TIMEOUT_S", 0.5)
    with scraped(settings) as (client, url):
        # A slow machine may need longer than that now and then.
        until(lambda: Scrape(url).value("lastcall_stats_up") == 1)
        with db.owner.transaction():
            db.owner.execute("lock table calls in access exclusive mode")
            assert client.get("/health").status_code == 200
            seen = Scrape(url)
        assert seen.value("lastcall_stats_up") == 0
        assert seen.by("lastcall_batches", "status") == {}
        assert seen.value("lastcall_requests_total", function="health", method="GET", status="200") == 1
        until(lambda: Scrape(url).value("lastcall_stats_up") == 1)


# The dialer.


async def answer(call: Call) -> InProgress | Finished:
    """By the number's last digit: taken, over at once, refused, unclear."""
    match int(call.phone_number[-1]) % 4:
        case 0:
            return InProgress(f"c-{call.call_id}")
        case 1:
            return Finished(status="completed", outcome="answered", carrier_call_id=f"c-{call.call_id}")
        case 2:
            raise CallRefusedError("no such number")
        case _:
            raise CallUnclearError("no answer")


def dialed(db: TestDatabase, carrier: Any, runs: int = 1) -> Scrape:
    """The metrics of a dialer after so many bounded runs."""
    settings = dial_settings(db)

    async def run() -> Scrape:
        watch = ProcessTelemetry(settings, ANY_PORT, "test")
        database = PostgresDatabase(settings, watch.telemetry)
        with logged() as log:
            async with watch.running(database):
                for _ in range(runs):
                    await Dialer(database, carrier, settings, watch.telemetry).run_once(100, 30)
                seen = await asyncio.to_thread(Scrape, log.lines("metrics")[0]["url"])
                await database.close()
        return seen

    return asyncio.run(run())


def test_a_dialer_tells_what_it_claimed_placed_and_recorded(db: TestDatabase) -> None:
    db.contacts(db.batch(db.agency(), retry_delay_seconds=3600), pending=8)
    seen = dialed(db, ScriptedCarrier(answer), runs=2)
    assert seen.by("lastcall_claims_total", "outcome") == {"some": 1, "empty": 2}
    assert seen.value("lastcall_contacts_claimed_total") == 8
    assert seen.value("lastcall_calls_started_total") == 8
    placed = {
        outcome: seen.value("lastcall_carrier_seconds_count", request="place", outcome=outcome)
        for outcome in ("taken", "ended", "refused", "unknown", "unavailable")
    }
    assert placed == {"taken": 2, "ended": 2, "refused": 2, "unknown": 2, "unavailable": None}
    assert seen.by("lastcall_results_total", "status") == {"confirmed": 2, "completed": 2, "failed": 2, "unknown": 2}
    assert seen.value("lastcall_unknown_calls", age="under_5m") == 2
    assert seen.value("lastcall_carrier_requests_going_on") == 0
    # At its end a run asks about those that nobody could tell of, as far as they are recorded by then.
    assert seen.value("lastcall_carrier_seconds_count", request="find", outcome="missing") == 2


def dialed_until(db: TestDatabase, carrier: Any, holds: Callable[[Scrape], bool]) -> Scrape:
    """The metrics of a running dialer, as soon as the condition holds."""
    settings = dial_settings(db)

    async def run() -> Scrape:
        watch = ProcessTelemetry(settings, ANY_PORT, "test")
        database = PostgresDatabase(settings, watch.telemetry)
        stop = asyncio.Event()
        with logged() as log:
            async with watch.running(database):
                work = asyncio.create_task(Dialer(database, carrier, settings, watch.telemetry).run(stop))
                url = log.lines("metrics")[0]["url"]
                while not holds(seen := await asyncio.to_thread(Scrape, url)):
                    assert not work.done()
                stop.set()
                await work
                await database.close()
        return seen

    return asyncio.run(run())


def test_a_dialer_tells_the_webhooks_that_it_applied(db: TestDatabase) -> None:
    carrier = Carrier(db, db.agency())
    batch = db.batch(carrier.agency)
    db.contacts(batch, pending=3)
    carrier.tell(*(event("call.ended", call) for call in carrier.place(batch, 3)))
    told = "lastcall_webhooks_total"
    seen = dialed_until(db, ScriptedCarrier(), lambda seen: seen.value(told, outcome="applied") == 3)
    assert seen.value(told, outcome="failed") == 0


def test_a_carrier_that_takes_no_calls_shows(db: TestDatabase) -> None:
    async def none(_call: Call) -> InProgress:
        raise CarrierUnavailableError("busy", retry_after_s=60)

    db.contacts(db.batch(db.agency()), pending=3)
    seen = dialed(db, ScriptedCarrier(none))
    assert seen.value("lastcall_carrier_holds_total") == 1
    assert seen.value("lastcall_carrier_seconds_count", request="place", outcome="unavailable") == 3


# As processes.


def test_processes_take_the_ports_of_a_range_in_turn_and_are_refused_when_none_is_free(
    settings: Settings, db: TestDatabase, own_folder: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port}: no port is free"), logged():
            asyncio.run(started(replace(settings, metrics_ports=range(port, port + 1))))
        env = {
            "DATABASE_URL": db.functions_uri,
            "LASTCALL_CARRIER": "simulator",
            "CARRIER_URL": "http://127.0.0.1:9",
            "LASTCALL_DIALER_METRICS_PORT": str(port),
            "LASTCALL_METRICS_PORT": str(port),
            "SUPABASE_JWT_SECRET": "x" * 32,
            "PORT": "0",
        }
        done = lastcall("process", "--loop", folder=own_folder, **env)
        assert (done.returncode, done.stdout) == (2, "")
        assert "no port is free there" in done.stderr
        done = lastcall("serve", folder=own_folder, **env)
        assert (done.returncode, done.stdout) == (3, "")  # as uvicorn ends when the app cannot start
        assert "no port is free there" in done.stderr
        last = min(port + 20, 65_535)
        with logged() as log:
            asyncio.run(started(replace(settings, metrics_ports=range(port, last + 1))))
        assert port < httpx2.URL(log.lines("metrics")[0]["url"]).port <= last


async def started(settings: Settings) -> None:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        pass


def test_a_running_dialer_tells_its_metrics(db: TestDatabase, own_folder: Path) -> None:
    log = own_folder / "log"
    env = environment(
        DATABASE_URL=db.functions_uri,
        LASTCALL_CARRIER="simulator",
        CARRIER_URL="http://127.0.0.1:9",
        LASTCALL_DIALER_METRICS_PORT="0",
    )
    with (
        log.open("w") as stderr,
        subprocess.Popen([LASTCALL, "process", "--loop"], env=env, stdout=subprocess.PIPE, stderr=stderr) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            (url,) = [line["url"] for line in lines if line["message"] == "metrics"]
            until(lambda: Scrape(url).by("lastcall_claims_total", "outcome").get("empty", 0) > 0)
            until(lambda: (Scrape(url).value("lastcall_loop_lag_seconds_count") or 0) > 0)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


# The dashboard and the alerts.

_SELECTOR = re.compile(r"\b((?:lastcall|process)_\w+)(?:\{([^}]*)\})?")


def expressions(file: str) -> list[str]:
    if file == "alerts.yaml":
        return re.findall(r"^ +expr: (.+)$", (FOLDER / file).read_text(), re.MULTILINE)
    panels = json.loads((FOLDER / file).read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


@pytest.mark.parametrize(("file", "number"), [("grafana.json", 40), ("alerts.yaml", 10)])
def test_every_metric_and_label_that_is_shown_is_told(
    settings: Settings, db: TestDatabase, monkeypatch: pytest.MonkeyPatch, file: str, number: int
) -> None:
    """The metrics of a service and of a dialer that have seen a little of everything."""
    case = Case(db)
    carrier = ScriptedCarrier(answer)
    with key_server(monkeypatch) as keys:
        of = replace(settings, jwt_secret=None, supabase_url=keys.url)
        with scraped(of) as (client, url):
            client.post(CANCEL, json={}, headers={"Authorization": f"Bearer {new_key('k').token(uuid4())}"})
            service = Scrape(url)
    with scraped(settings) as (client, url):
        case.cancel(client)
        seen = Scrape(url)
    db.contacts(db.batch(db.agency()), pending=8)
    told: dict[str, set[str]] = {}
    dialer = dialed_until(db, carrier, lambda seen: len(seen.by("lastcall_results_total", "status")) == 4)
    for scrape in (service, seen, dialer):
        for name, labels in scrape.samples:
            told.setdefault(name, {"job", "instance"}).update(label for label, _ in labels)
    shown = [selector for expression in expressions(file) for selector in _SELECTOR.findall(expression)]
    assert len(shown) >= number
    for name, labels in shown:
        assert name in told, name
        assert set(re.findall(r"(\w+)(?:=|!)", labels)) <= told[name]
    for expression in expressions(file):
        names = [name for name, _ in _SELECTOR.findall(expression)]
        by = {label for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(", ")}
        assert by <= set().union(*(told[name] for name in names)), expression


def test_the_dashboard_asks_no_data_source_but_the_one_that_is_chosen() -> None:
    dashboard = json.loads((FOLDER / "grafana.json").read_text())
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "job"]
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    shown = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert all(panel["datasource"] == chosen for panel in shown)
    assert all(target["datasource"] == chosen for panel in shown for target in panel["targets"])
    assert "http" not in (FOLDER / "grafana.json").read_text()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
