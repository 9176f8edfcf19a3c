"""supabase.functions.invoke by Supabase's own clients, through the forwarders on Deno, to the app over a database."""

from __future__ import annotations

import csv
import io
import json
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

import pytest

from functions._shared.settings import Settings
from functions.app import create_app
from functions.calls_batch_export import PAGE_ROWS

from ..support.database import TestDatabase
from ..support.deno import Script
from ..support.forwarders import CRON_SECRET, Project
from ..support.postgrest import PUBLISHABLE_KEY
from ..support.serving import serving
from ..support.supabase_clients import Invoke, Outcome
from ..support.tokens import SECRET, token
from ..support.webhooks import Carrier, event, queue, signed_standard, signed_ultravox

CANCEL = "calls-batch-cancel"
UNKNOWN = "whether this was done is not known: repeat it with the same Idempotency-Key"


class Office:
    """An agency, its owner, and the owner's batch of three contacts."""

    def __init__(self, db: TestDatabase) -> None:
        self.agency = db.agency()
        self.owner = db.user(self.agency)
        self.token = token(self.owner)
        self.batch = db.batch(self.agency, self.owner)
        db.contacts(self.batch, pending=3)


@pytest.fixture
def office(db: TestDatabase) -> Office:
    return Office(db)


def test_a_cancel_arrives_with_its_request_id_and_idempotency_key(
    db: TestDatabase, forwarding: Project, invoke: Invoke, office: Office
) -> None:
    headers = {"X-Request-Id": "pressed-cancel-1", "Idempotency-Key": "cancel-1"}
    body = {"batch_id": str(office.batch), "reason": "wrong list"}
    first = invoke(forwarding.url, CANCEL, body, token=office.token, headers=headers)
    assert first == Outcome(
        {
            "success": True,
            "batch_id": str(office.batch),
            "status": "cancelled",
            "contacts_skipped": 3,
            "message": "Batch cancelled. In-progress calls will complete but no new calls will be initiated.",
        },
        None,
        200,
    )
    assert db.statuses(office.batch) == {"skipped": 3}
    assert invoke(forwarding.url, CANCEL, body, token=office.token, headers=headers) == first
    recorded = db.row("select actor_id, request_id, reason from batch_events where batch_id = %s", office.batch)
    assert recorded == {"actor_id": office.owner, "request_id": "pressed-cancel-1", "reason": "wrong list"}


def test_a_refusal_shows_the_user_what_the_app_says(
    db: TestDatabase, forwarding: Project, invoke: Invoke, office: Office
) -> None:
    over = db.batch(office.agency, status="cancelled")
    member = token(db.user(office.agency, "agency_member"))
    once = {"headers": {"Idempotency-Key": "once"}}
    paused = invoke(forwarding.url, "calls-batch-pause", {"batch_id": str(office.batch)}, token=office.token, **once)
    assert paused.status == 200
    before = db.state()

    def refused(batch: Any = office.batch, by: str = office.token, body: Any = None, **given: Any) -> Outcome:
        body = body or {"batch_id": str(batch), "reason": given.pop("reason", None)}
        return invoke(forwarding.url, CANCEL, body, token=by, **given)

    no_json = {"body": "{", "headers": {"Content-Type": "application/json"}}
    no_user = "An API key is not a user token: send the signed-in user's access token"
    assert refused(over) == Outcome(None, "Batch is already cancelled", 400)
    assert refused(**no_json) == Outcome(None, "Body must be a JSON object", 400)
    assert refused(by=token(office.owner, exp=1)) == Outcome(None, "Token has expired", 401)
    assert refused(by=PUBLISHABLE_KEY) == Outcome(None, no_user, 401)
    assert refused(by=member) == Outcome(None, "User role must be agency_owner or agency_admin", 403)
    assert refused(uuid4()) == Outcome(None, "Batch not found", 404)
    assert refused(method="DELETE") == Outcome(None, "Method must be POST", 405)
    assert refused(**once) == Outcome(None, "Idempotency-Key was used for another request", 409)
    assert refused(reason="x" * 65_536) == Outcome(None, "Body must have at most 65536 bytes", 413)
    assert db.state() == before


def test_without_a_database_the_user_is_told_to_try_again(project: Project, invoke: Invoke, nowhere: str) -> None:
    settings = Settings(supabase_url=nowhere, publishable_key=PUBLISHABLE_KEY, transport="postgrest", jwt_secret=SECRET)
    with serving(create_app(settings)) as (host, port), project.secrets(LASTCALL_URL=f"http://{host}:{port}"):
        outcome = invoke(project.url, CANCEL, {"batch_id": str(uuid4())}, token=token(uuid4()))
    assert outcome == Outcome(None, "The database is out of reach; try again", 503)


def test_without_the_app_the_user_is_told_what_is_not_known(project: Project, invoke: Invoke, nowhere: str) -> None:
    with project.secrets(LASTCALL_URL=nowhere):
        cancelled = invoke(project.url, CANCEL, {"batch_id": str(uuid4())}, token="t")
        listed = invoke(project.url, "calls-batch-list", token="t", method="GET")
    assert cancelled == Outcome(None, f"The service is out of reach; {UNKNOWN}", 502)
    assert listed == Outcome(None, "The service is out of reach; try again", 502)


def test_an_app_that_does_not_answer_in_time_has_done_it_or_not(
    db: TestDatabase, forwarding: Project, invoke: Invoke, office: Office
) -> None:
    body = {"batch_id": str(office.batch)}
    call: dict[str, Any] = {"token": office.token, "headers": {"Idempotency-Key": "cancel-1"}}
    with forwarding.secrets(LASTCALL_TIMEOUT_S="1"), db.connect() as other, other.transaction():
        other.execute("select from call_batches where id = %s for update", [office.batch])
        outcome = invoke(forwarding.url, CANCEL, body, **call)
    assert outcome == Outcome(None, f"The service did not answer within 1 seconds; {UNKNOWN}", 504)
    repeated = invoke(forwarding.url, CANCEL, body, **call)
    assert (repeated.status, repeated.data["contacts_skipped"]) == (200, 3)


def test_a_read_keeps_its_query(db: TestDatabase, forwarding: Project, invoke: Invoke, office: Office) -> None:
    db.batch(office.agency, status="paused", name="Frühling & Sommer")

    def get(name: str, **query: Any) -> Any:
        outcome = invoke(forwarding.url, f"{name}?{urlencode(query)}", token=office.token, method="GET")
        assert outcome.status == 200, outcome
        return outcome.data

    assert [batch["status"] for batch in get("calls-batch-list", status="paused")["batches"]] == ["paused"]
    assert len(get("calls-batch-get", batch_id=office.batch, contact_limit=2)["contacts"]) == 2
    assert get("calls-batch-events", batch_id=office.batch)["events"] == []


def test_the_users_batches_are_stopped_and_seen(forwarding: Project, invoke: Invoke, office: Office) -> None:
    ids = {"batchId": str(office.batch), "userId": str(office.owner)}
    stopped = invoke(forwarding.url, "stop-calling", ids, token=office.token)
    assert stopped.data["data"] == {"batchId": str(office.batch), "status": "stopped"}
    found = invoke(forwarding.url, f"list-user-batches/{office.owner}?search=stopped", token=office.token, method="GET")
    assert [batch["queue_status"] for batch in found.data["data"]["batches"]] == ["stopped"]
    details = invoke(
        forwarding.url,
        f"get-user-batch/{office.batch}?" + urlencode({"filter": '{"callStatus":"pending"}'}),
        token=office.token,
        method="GET",
    )
    assert details.data["data"]["total"] == 3
    started = invoke(forwarding.url, "start-calling", ids, token=office.token)
    assert started.data["data"]["status"] == "started"


def test_stop_callings_errors_show_by_supabase_js(
    project: Project, app_url: str, nowhere: str, supabase_js_invoke: Invoke, office: Office
) -> None:
    body = {"batchId": "nowhere", "userId": str(office.owner)}
    with project.secrets(LASTCALL_URL=app_url):
        refused = supabase_js_invoke(project.url, "stop-calling", body, token=office.token)
    with project.secrets(LASTCALL_URL=nowhere):
        unreached = supabase_js_invoke(project.url, "stop-calling", body, token=office.token)
    assert refused == Outcome(None, "Batch not found", 404)
    assert unreached == Outcome(None, f"The service is out of reach; {UNKNOWN}", 502)


def test_an_export_of_many_pages_is_whole(
    db: TestDatabase, forwarding: Project, invoke: Invoke, office: Office
) -> None:
    batch = db.batch(office.agency)
    db.contacts(batch, pending=3 * PAGE_ROWS + 1)
    outcome = invoke(forwarding.url, f"calls-batch-export?batch_id={batch}", token=office.token, method="GET")
    assert outcome.status == 200
    rows = list(csv.DictReader(io.StringIO(outcome.data, newline=""), strict=True))
    assert len({row["phone_number"] for row in rows}) == 3 * PAGE_ROWS + 1


def test_a_form_with_a_file_is_imported(
    db: TestDatabase, forwarding: Project, supabase_js: Script, office: Office
) -> None:
    file = {"name": "contacts.csv", "text": "phone_number,first_name\n+15557654321,Zoë\n"}
    call = {"url": forwarding.url, "key": PUBLISHABLE_KEY, "token": office.token, "name": "calls-batch-import"}
    call |= {"method": "POST", "headers": {}, "form": {"batch_id": str(office.batch)}, "file": file}
    answer = json.loads(supabase_js.ask(call))
    assert (answer["status"], answer["data"]["added"]) == (200, 1)
    assert db.value("select first_name from contact_data where batch_id = %s", office.batch) == "Zoë"


@pytest.mark.parametrize("sign", [signed_standard, signed_ultravox])
def test_a_webhook_is_stored_by_its_signature_or_secret(
    db: TestDatabase, forwarding: Project, invoke: Invoke, sign: Any
) -> None:
    carrier = Carrier(db, db.agency())
    db.rows("update private.webhook_secrets set secret = 'whsec_ab/c+d/+/ef='")
    body = json.dumps(event("call.ended", None, shortSummary="Grüße 🙂"), ensure_ascii=False, indent=1) + "\r\n "
    headers = {"Content-Type": "application/json", **sign("whsec_ab/c+d/+/ef=", body)}
    name = f"webhook-ingest/{carrier.agency}"
    assert invoke(forwarding.url, name, body, token="t", headers=headers).status == 200
    assert queue(db) == [("pending", None)]
    assert invoke(forwarding.url, name, body.rstrip(" "), token="t", headers=headers) == Outcome(
        None, "Invalid webhook signature or secret", 401
    )
    with_secret = f"{name}/{quote('whsec_ab/c+d/+/ef=', safe='/+=')}"
    assert invoke(forwarding.url, with_secret, body, token="t").status == 200


def test_the_services_secret_runs_what_cron_runs(forwarding: Project, invoke: Invoke) -> None:
    outcome = invoke(forwarding.url, "process-webhook-queue", token=CRON_SECRET)
    assert outcome == Outcome({"processed": 0}, None, 200)
