"""The simulated carrier, over HTTP: it behaves as told, and its record is a witness."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from functions._shared.settings import Settings
from functions.dialer.carrier import CallUnclearError, Finished, InProgress, OpenCall, connect_carrier
from functions.dialer.simulated_carrier import Behaviour, create_carrier, sign

from ..support.database import TestDatabase
from ..support.dialers import wait_for
from ..support.dialing import dial_once, dial_settings, dialing, until
from ..support.ports import unanswered_port
from ..support.serving import serving
from ..support.simulator import record

pytestmark = pytest.mark.one_postgres

QUICK: dict[str, Any] = {"ring_s": (0.0, 0.02), "talk_s": (0.0, 0.05)}
SECRET = "whsec_" + base64.b64encode(b"a secret of twenty-four").decode()


@contextmanager
def simulated(**behaviour: Any) -> Iterator[str]:
    with serving(create_carrier(Behaviour(**{**QUICK, **behaviour}))) as (host, port):
        yield f"http://{host}:{port}"


def a_batch(db: TestDatabase, contacts: int, **columns: Any) -> UUID:
    """A batch whose contacts are called until they answer, whatever numbers their calls get."""
    batch = db.batch(db.agency(), **{"retry_delay_seconds": 0, **columns})
    db.contacts(batch, pending=contacts)
    db.rows("update campaign_contacts set max_attempts = 99")
    return batch


def dial(db: TestDatabase, url: str, times: int = 1, **settings: Any) -> list[dict[str, Any]]:
    return [
        dial_once(db, connect_carrier(dial_settings(db, carrier="simulator", carrier_url=url, **settings)), **settings)
        for _ in range(times)
    ]


def dial_until(db: TestDatabase, url: str, batch: UUID, statuses: dict[str, int], **settings: Any) -> None:
    async def run() -> None:
        carrier = connect_carrier(dial_settings(db, carrier="simulator", carrier_url=url, **settings))
        async with dialing(db, carrier, **settings):
            await until(lambda: db.statuses(batch) == statuses)
        await carrier.aclose()

    asyncio.run(run())


def test_answered_at_the_end_every_contact_has_its_result(db: TestDatabase) -> None:
    batch = a_batch(db, 30)
    with simulated(answer_at_end=True, unanswered=0.3) as url:
        dial_until(db, url, batch, {"completed": 30})
        seen = [(call["call_id"], call["outcome"]) for call in record(url)]
    assert Counter(outcome for _, outcome in seen)["answered"] == 30
    known = db.rows("select id, outcome from calls where started_at is not null order by id")
    assert sorted(seen) == [(row["id"], row["outcome"]) for row in known]


def test_the_same_seed_gives_the_same_story() -> None:
    def story(seed: int) -> list[tuple[Any, ...]]:
        with (
            simulated(seed=seed, answer_at_end=True, unanswered=0.5) as url,
            httpx2.Client(timeout=60, trust_env=False) as http,
        ):
            bodies = [{"call_id": i, "lease": "l", "batch_id": "b", "contact_id": i, "to": "+1"} for i in range(8)]
            calls = [http.post(f"{url}/calls", json=body).json() for body in bodies]
        return [(call["status"], call["outcome"]) for call in calls]

    assert story(1) == story(1) != story(2)


def test_a_carrier_that_accepts_and_hangs_has_each_call_once_and_tells_later(db: TestDatabase) -> None:
    batch = a_batch(db, 6)
    with simulated(hanging=1.0, unanswered=0.0) as url:
        # Long enough for a slow machine to connect, and for each call to be over when the carrier is asked.
        dial_until(db, url, batch, {"completed": 6}, carrier_timeout_s=2, reconcile_every_s=0.2, reconcile_after_s=60)
        assert Counter(call["to"] for call in record(url)) == {f"+1555{i:07d}": 1 for i in range(1, 7)}
    # Each was unknown for a while, and none was tried again.
    assert db.value("select max(attempts) from campaign_contacts") == 1
    assert db.value("select count(*) from calls where outcome is distinct from 'carrier_unavailable'") == 6


def test_a_refused_call_is_never_placed(db: TestDatabase) -> None:
    batch = a_batch(db, 4)
    db.rows("update campaign_contacts set max_attempts = 1")
    with simulated(refused=1.0) as url:
        dial(db, url)
        assert record(url) == []
    assert db.statuses(batch) == {"failed": 4}


def test_a_full_carrier_is_filled_and_not_pestered(db: TestDatabase) -> None:
    batch = a_batch(db, 12)
    with simulated(max_calls=3, answer_at_end=True, unanswered=0.0, talk_s=(0.1, 0.2)) as url:
        dial_until(db, url, batch, {"completed": 12})
    assert db.row("select min(attempts) as least, max(attempts) as most from campaign_contacts") == {
        "least": 1, "most": 1,
    }  # fmt: skip


def test_a_carrier_that_is_away_is_a_failure_that_is_tried_again(db: TestDatabase) -> None:
    batch = a_batch(db, 5)
    with unanswered_port() as port:
        (done,) = dial(db, f"http://127.0.0.1:{port}")
    assert (done["calls_initiated"], done["calls_failed"]) == (0, 5)
    assert db.statuses(batch) == {"scheduled": 5}
    assert db.value("select count(*) from calls where outcome = 'carrier_unavailable' and status = 'failed'") == 5
    with simulated(answer_at_end=True, unanswered=0.0) as url:
        dial(db, url)
        assert len(record(url)) == 5
    assert db.statuses(batch) == {"completed": 5}


class Receiver:
    """Where webhooks arrive: it checks their signatures, and records the ends of calls."""

    def __init__(self, db: TestDatabase) -> None:
        self._db = db
        self.webhooks: list[tuple[str, str]] = []
        self.refuse_first = True

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/hook", self._receive, methods=["POST"])])

    async def _receive(self, request: Request) -> Response:
        body = await request.body()
        webhook_id, timestamp = request.headers["webhook-id"], request.headers["webhook-timestamp"]
        key = base64.b64decode(SECRET.removeprefix("whsec_"))
        digest = hmac.digest(key, f"{webhook_id}.{timestamp}.".encode() + body, hashlib.sha256)
        assert request.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
        if self.refuse_first:
            self.refuse_first = False
            return Response(status_code=503)
        told = json.loads(body)
        self.webhooks.append((webhook_id, told["event"]))
        if told["event"] == "call.ended":
            completed = told["call"]["endReason"] == "hangup"
            of = told["call"]["metadata"]
            result = {"call_id": int(of["call_id"]), "lease": of["lease"]}
            result["status"] = "completed" if completed else "failed"
            self._db.rows("select finish_call(%s, %s)", UUID(of["batch_id"]), json.dumps([result]))
        return Response()


def test_a_carrier_that_tells_twice_late_and_out_of_order_leaves_the_books_balanced(db: TestDatabase) -> None:
    batch = a_batch(db, 20)
    receiver = Receiver(db)
    with serving(receiver.app()) as (host, port):
        hook = f"http://{host}:{port}/hook"
        with simulated(
            webhook_url=hook, webhook_secret=SECRET, repeated=1.0, late=0.5, late_s=0.5, unanswered=0.2
        ) as url:
            dial_until(db, url, batch, {"completed": 20})
            assert db.unbalanced() == []
            wait_for(lambda: max(Counter(receiver.webhooks).values()) == 2, "a webhook that is told twice")
            calls = record(url)
    arrived = Counter(call["call_id"] for call in calls)
    assert set(arrived.values()) == {1}
    # Others were still on their way when it was asked.
    assert sum(call["webhooks"] for call in calls) <= len(receiver.webhooks)
    ends = [webhook_id for webhook_id, event in receiver.webhooks if event == "call.ended"]
    assert len(set(ends)) == len(arrived)
    assert db.value("select completed from call_batches") == 20


def test_signatures_are_those_of_standard_webhooks() -> None:
    """The example of its own libraries."""
    signed = sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert signed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_another_server_is_no_simulated_carrier_and_uses_up_no_attempt(db: TestDatabase) -> None:
    a_batch(db, 1)
    with serving(Starlette()) as (host, port):
        (done,) = dial(db, f"http://{host}:{port}")
    assert done["calls_failed"] == 1
    assert db.value("select outcome from calls") == "carrier_unavailable"
    assert db.value("select attempts from campaign_contacts") == 0


def test_another_server_knows_nothing_of_a_call() -> None:
    call = OpenCall(
        batch_id=uuid4(), call_id=1, lease=uuid4(), status="unknown", carrier_call_id=None, age_seconds=1000
    )

    async def find(url: str) -> InProgress | Finished | None:
        carrier = connect_carrier(Settings(carrier="simulator", carrier_url=url))
        try:
            return await carrier.find(call)
        finally:
            await carrier.aclose()

    with simulated() as url:
        assert asyncio.run(find(url)) is None
    with serving(Starlette()) as (host, port), pytest.raises(CallUnclearError):
        asyncio.run(find(f"http://{host}:{port}"))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_shares_of_none_and_all_are_none_and_all(share: float) -> None:
    with simulated(answer_at_end=True, unanswered=share) as url, httpx2.Client(timeout=60, trust_env=False) as http:
        body = {"batch_id": "b", "lease": "l", "contact_id": 1, "to": "+1"}
        calls = [http.post(f"{url}/calls", json={"call_id": i, **body}).json() for i in range(10)]
    assert {call["status"] for call in calls} == {"failed" if share else "completed"}
