"""Traces tell which functions and procedures a request went through, and nothing that somebody sent."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from uuid import uuid4

import httpx2
import pytest
from starlette.testclient import TestClient

from functions._shared.database import PostgresDatabase
from functions._shared.settings import Settings, SettingsError
from functions.app import create_app
from functions.dialer.carrier import Call, CallUnclearError, InProgress
from functions.dialer.dialer import Dialer
from functions.telemetry import ProcessTelemetry

from ..support.client import Case
from ..support.collector import Collector, Span, collecting
from ..support.database import TestDatabase
from ..support.dialing import ScriptedCarrier, dial_settings
from ..support.faults import fails_at_first
from ..support.ports import unanswered_port
from ..support.serving import Log, logged, serving
from ..support.tokens import bearer
from ..support.webhooks import Carrier, event

CANCEL = "/functions/v1/calls-batch-cancel"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SERVER, CLIENT = 2, 3
DATABASE = {"DATABASE_URL": "postgresql://db", "SUPABASE_JWT_SECRET": "x" * 32}


@contextmanager
def traced(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TestClient, Collector, Log]]:
    """A client of a service that sends traces, all of them by the end of the block `client` is used in."""
    with collecting() as collector, logged() as log:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        client = TestClient(create_app(replace(settings, traces="otlp")), raise_server_exceptions=False)
        yield client, collector, log


def within(collector: Collector, span: Span) -> list[str]:
    return sorted(child.name for child in collector.spans if child.parent == span.id)


# When the environment asks.


@pytest.mark.parametrize(
    ("env", "traces"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_there_are_traces_when_opentelemetrys_environment_asks(env: dict[str, str], traces: str | None) -> None:
    assert Settings.from_env(DATABASE | env).traces == traces


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER must be otlp, console or none"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "must be http/protobuf"),
    ],
)
def test_traces_that_cannot_be_sent_are_refused_at_the_start(env: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        Settings.from_env(DATABASE | env)


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.exporter.otlp.proto.http"])
def test_without_the_libraries_it_says_what_to_install(missing: str) -> None:
    program = (
        "import sys\n"
        f"sys.modules['{missing}'] = None\n"
        "from functions._shared.settings import Settings\n"
        "Settings.from_env({'DATABASE_URL': 'postgresql://db', 'OTEL_TRACES_EXPORTER': 'otlp'}, serving=False)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "SettingsError: traces need OpenTelemetry" in done.stderr
    assert "pip install 'lastcall[otel]'" in done.stderr


# Requests.


def test_a_request_is_told_with_its_procedure_and_the_wait_for_a_connection(
    settings: Settings, db: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(db)
    with traced(settings, monkeypatch) as (client, collector, log):
        with client:
            headers = {**bearer(case.user), "X-Request-Id": "request-7", "traceparent": f"00-{TRACE}-{PARENT}-01"}
            for _ in range(2):
                client.post(CANCEL, json={"batch_id": str(case.batch)}, headers=headers)
        lines = log.lines("request")
    done, refused = collector.named(f"POST {CANCEL}")
    assert (collector.paths, collector.services) == ({"/v1/traces"}, {"lastcall"})
    assert (done.kind, done.trace_id, done.parent, done.failed) == (SERVER, TRACE, PARENT, False)
    assert done.attributes == {
        "lastcall.function": "calls-batch-cancel",
        "lastcall.outcome": "ok",
        "lastcall.request_id": "request-7",
        "http.request.method": "POST",
        "http.route": CANCEL,
        "http.response.status_code": 200,
    }
    assert refused.attributes["lastcall.outcome"] == "batch_already_cancelled"
    assert (refused.attributes["http.response.status_code"], refused.failed) == (400, False)
    first, second = collector.named("cancel_batch")
    assert (first.kind, first.trace_id, first.parent, first.failed) == (CLIENT, TRACE, done.id, False)
    assert 0 < first.took_ns < done.took_ns
    assert first.attributes == {
        "db.system.name": "postgresql",
        "db.stored_procedure.name": "cancel_batch",
        "lastcall.outcome": "ok",
    }
    assert second.attributes["db.response.status_code"] == "PT400"
    assert second.attributes["lastcall.outcome"] == "refused"
    assert within(collector, first) == ["connection"]
    assert [line["trace_id"] for line in lines] == [TRACE, TRACE]


def test_without_a_traceparent_a_trace_begins_and_the_log_names_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with traced(settings, monkeypatch) as (client, collector, log):
        with client:
            client.get("/health")
            client.get("/health", headers={"traceparent": "00-nonsense-01"})
        named = [line["trace_id"] for line in log.lines("request")]
    assert [span.trace_id for span in collector.named("GET /health")] == named
    assert len(set(named)) == 2
    assert {span.parent for span in collector.named("GET /health")} == {""}


def test_a_trace_that_its_sender_does_not_record_is_not_recorded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with traced(settings, monkeypatch) as (client, collector, _), client:
        client.get("/health", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        client.get("/health")
    assert len(collector.named("GET /health")) == 1
    assert TRACE not in {span.trace_id for span in collector.spans}


@pytest.mark.own_database
def test_a_failure_is_marked_and_its_message_is_not_told(
    settings: Settings, db: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(db)
    db.rows("alter table call_batches add constraint secret_rule check (status <> 'cancelled')")
    with traced(settings, monkeypatch) as (client, collector, log):
        with client:
            assert case.cancel(client).status_code == 500
        (failed,) = log.lines("request failed")
    (request,) = collector.named(f"POST {CANCEL}")
    (procedure,) = collector.named("cancel_batch")
    assert (request.failed, request.attributes["error.type"]) == (True, "internal_error")
    assert (procedure.failed, procedure.attributes["db.response.status_code"]) == (True, "23514")
    assert failed["trace_id"] == request.trace_id
    assert b"secret_rule" not in collector.sent


@pytest.mark.own_database
def test_a_try_that_is_repeated_is_told_by_itself(
    settings: Settings, db: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_at_first(db, "40P01", 1)
    caller = Case(db).caller

    async def run(settings: Settings) -> None:
        watch = ProcessTelemetry(settings, None, "test")
        database = PostgresDatabase(settings, watch.telemetry)
        async with watch.running(database):
            with watch.telemetry.operation("request", "test", method="POST", status=200):
                await database.run(caller, "try_it", {})
            await database.close()

    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        asyncio.run(run(replace(settings, traces="otlp")))
    tries = [(span.attributes["lastcall.outcome"], span.failed) for span in collector.named("try_it")]
    assert tries == [("retry", False), ("ok", False)]


def test_whatever_is_sent_no_trace_and_no_log_tells_of_it(
    settings: Settings, db: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    carrier = Carrier(db, db.agency())
    # Its first ten characters may be a method of HTTP.
    carrier.secret = "whsec_ab+cd/ef+gh/ij+kl/mn+op/qr+st/uv+wx/yz+AB="
    db.rows("update private.webhook_secrets set secret = %s", carrier.secret)
    user, batch = db.user(carrier.agency), db.batch(carrier.agency)
    db.contacts(batch, pending=1)
    (call,) = carrier.place(batch)
    secrets = [
        carrier.secret,
        carrier.secret[:10],
        "Ada-Lovelace",
        "+15559876543",
        bearer(user)["Authorization"].split(".")[2],
        "why-so",
    ]
    body = json.dumps(event("call.ended", call, shortSummary="Ada-Lovelace +15559876543"))
    with collecting() as collector, logged() as log:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        with (
            serving(create_app(replace(settings, traces="otlp"))) as (host, port),
            httpx2.Client(base_url=f"http://{host}:{port}", timeout=60) as client,
        ):
            secret = carrier.secret
            for path in (f"functions/v1/webhook-ingest/{carrier.agency}", f"webhook-ingest/{secret}", "nowhere"):
                client.post(f"/{path}/{secret}", content=body)
            client.request(secret[:10], f"/api/call/batches/{user}?search=Ada-Lovelace", headers=bearer(user))
            client.get(f"/api/call/batches/{user}?search=Ada-Lovelace", headers=bearer(user))
            contacts = [{"phone_number": "+15559876543", "first_name": "Ada-Lovelace"}]
            client.post(
                "/calls-batch-add-contacts", json={"batch_id": str(batch), "contacts": contacts}, headers=bearer(user)
            )
            client.post(CANCEL, json={"batch_id": str(batch), "reason": "why-so"}, headers=bearer(user))
        assert len(log.lines("request")) == 7
    assert len([span for span in collector.spans if span.kind == SERVER]) == 7
    assert collector.named("ingest_webhook")
    assert [text for text in secrets if text.encode() in collector.sent or text in log.text] == []


def test_a_collector_that_is_away_costs_no_request_and_not_the_end(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with unanswered_port() as port, logged():
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        with TestClient(create_app(replace(settings, traces="otlp"))) as client:
            assert client.get("/health").status_code == 200


# The dialer.


def dialed(db: TestDatabase, carrier: ScriptedCarrier, monkeypatch: pytest.MonkeyPatch, runs: int = 1) -> Collector:
    """The traces of so many bounded runs of a dialer."""
    settings = dial_settings(db, traces="otlp")

    async def run() -> None:
        watch = ProcessTelemetry(settings, None, "lastcall-dialer")
        database = PostgresDatabase(settings, watch.telemetry)
        async with watch.running(database):
            for _ in range(runs):
                await Dialer(database, carrier, settings, watch.telemetry).run_once(100, 30)
            await database.close()

    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        asyncio.run(run())
    return collector


def test_a_call_is_told_from_its_claim_to_its_record(db: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = db.batch(db.agency())
    db.contacts(batch, pending=2)
    carrier = ScriptedCarrier()
    collector = dialed(db, carrier, monkeypatch)
    (dial,) = collector.named("dial")
    assert collector.services == {"lastcall-dialer"}
    assert dial.parent == ""
    assert dial.attributes == {"lastcall.outcome": "ok", "lastcall.batch_id": str(batch), "lastcall.claimed": 2}
    assert within(collector, dial) == ["claim_contacts", "place", "place", "start_call"]
    places = collector.named("place")
    assert {span.attributes["lastcall.call_id"] for span in places} == {call.call_id for call in carrier.arrived}
    assert {span.attributes["lastcall.outcome"] for span in places} == {"taken"}
    (record,) = collector.named("record")
    assert record.links == [dial.trace_id] * 2
    assert within(collector, record) == ["confirm_call"]


def test_a_claim_that_got_nothing_is_not_told(db: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dialed(db, ScriptedCarrier(), monkeypatch, runs=3).spans == []


def test_a_call_that_is_unknown_and_the_look_for_it_are_told(db: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lose(_call: Call) -> InProgress:
        raise CallUnclearError(f"no answer {uuid4()}")

    db.contacts(db.batch(db.agency()), pending=1)
    collector = dialed(db, ScriptedCarrier(lose), monkeypatch)
    (place,) = collector.named("place")
    assert (place.attributes["lastcall.outcome"], place.failed) == ("unknown", True)
    assert b"no answer" not in collector.sent
