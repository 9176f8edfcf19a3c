"""Ultravox: what is sent to it, and what its answers, and its silence, mean."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import pytest

from functions._shared.settings import Settings
from functions.dialer.carrier import (
    AccountRefusedError,
    BatchRefusedError,
    Call,
    CallRefusedError,
    CallUnclearError,
    Carrier,
    CarrierUnavailableError,
    Finished,
    InProgress,
    OpenCall,
    connect_carrier,
)
from functions.dialer.place_by import PlaceBy

from ..support.database import TestDatabase
from ..support.dialers import wait_for
from ..support.dialing import dial_once, dialing, until
from ..support.ports import unanswered_port
from ..support.serving import logged, serving
from ..support.ultravox import API_KEY, UltravoxStandIn
from ..support.webhooks import Carrier as Reporter
from ..support.webhooks import event

pytestmark = pytest.mark.one_postgres

T = TypeVar("T")
BATCH = UUID("5eed0000-0000-4000-8000-0000000000b1")
LEASE = UUID("5eed0000-0000-4000-8000-0000000000e1")
CALL = Call(
    batch_id=BATCH,
    call_id=7,
    lease=LEASE,
    contact_id=5,
    phone_number="+15559876543",
    from_number="+15551234567",
    ultravox_agent_id="the-agent",
    max_duration_seconds=600,
    recording_enabled=False,
    custom_data={"first_name": "Ada"},
)
UNKNOWN = OpenCall(batch_id=BATCH, call_id=7, lease=LEASE, status="unknown", carrier_call_id=None, age_seconds=10)


@pytest.fixture
def account() -> UltravoxStandIn:
    return UltravoxStandIn()


@pytest.fixture
def url(account: UltravoxStandIn) -> Iterator[str]:
    with serving(account.app()) as (host, port):
        yield f"http://{host}:{port}"


def ask(url: str, what: Callable[[Carrier], Awaitable[T]], **settings: Any) -> T:
    of = {"ultravox_api_key": API_KEY, "carrier_timeout_s": 60.0, **settings}

    async def run() -> T:
        carrier = connect_carrier(Settings(carrier="ultravox", carrier_url=url, **of))
        try:
            return await what(carrier)
        finally:
            await carrier.aclose()

    return asyncio.run(run())


def place(url: str, call: Call = CALL, **settings: Any) -> InProgress | Finished:
    return ask(url, lambda carrier: carrier.place(call, PlaceBy(60)), **settings)


def place_in_vain(account: UltravoxStandIn, url: str, call: Call = CALL) -> None:
    """The account takes the call, and does not say so in time."""
    account.fault = "hang"
    before = len(account.calls)
    with pytest.raises(CallUnclearError):
        place(url, call, carrier_timeout_s=1.5)
    wait_for(lambda: len(account.calls) == before + 1, "the account takes the call")


def find(url: str, call: OpenCall = UNKNOWN) -> InProgress | Finished | None:
    return ask(url, lambda carrier: carrier.find(call))


def test_a_call_is_created_with_its_agent_over_telnyx(account: UltravoxStandIn, url: str) -> None:
    assert place(url) == InProgress("00000000-0000-4000-8000-000000000000")
    assert account.requests == [
        {
            "agent_id": "the-agent",
            "medium": {"telnyx": {"outgoing": {"to": "+15559876543", "from": "+15551234567"}}},
            "firstSpeakerSettings": {"agent": {}},
            "templateContext": {"first_name": "Ada"},
            "metadata": {"batch_id": str(BATCH), "contact_id": "5", "call_id": "7", "lease": str(LEASE)},
            "maxDuration": "600s",
            "recordingEnabled": False,
        }
    ]


@pytest.mark.parametrize("fault", [400, 422, 425])
def test_a_refused_call_was_surely_not_placed(account: UltravoxStandIn, url: str, fault: int) -> None:
    account.fault = fault
    with pytest.raises(CallRefusedError, match=str(fault)):
        place(url)


@pytest.mark.parametrize("field", ["ultravox_agent_id", "from_number"])
def test_a_call_without_agent_or_number_is_not_sent(account: UltravoxStandIn, url: str, field: str) -> None:
    with pytest.raises(BatchRefusedError):
        place(url, msgspec.structs.replace(CALL, **{field: None}))
    assert account.requests == []


@pytest.mark.parametrize("agent", ["no-such-agent", "../calls", "a/b"])
def test_an_agent_that_it_does_not_know_is_refused(account: UltravoxStandIn, url: str, agent: str) -> None:
    with pytest.raises(BatchRefusedError):
        place(url, msgspec.structs.replace(CALL, ultravox_agent_id=agent))
    assert account.calls == []


RETRY_AFTER = {
    "3": 3,
    "0": 0.1,
    "300": 300,
    "301": 300,
    "86400": 300,
    "9" * 400: 300,
    "-5": 1,
    "1.5": 1,
    "nan": 1,
    "inf": 1,
    "soon": 1,
    "": 1,
    "Sun, 06 Nov 1994 08:49:47 GMT": 10,
    "Sunday, 06-Nov-94 08:49:47 GMT": 10,
    "Sun Nov  6 08:49:47 1994": 10,
    "Sun, 06 Nov 1994 08:49:47 -0000": 10,
    "Sun, 06 Nov 1994 08:49:27 GMT": 0.1,
    "Fri, 31 Dec 9999 23:59:59 GMT": 300,
    "Sun, 99 Nov 1994 08:49:47 GMT": 1,
    "Sun, 06 Nov 99999999999 08:49:47 GMT": 1,
}


@pytest.mark.parametrize("value", RETRY_AFTER, ids=lambda value: value[:40])
def test_when_it_takes_no_calls_it_says_for_how_long_within_bounds(value: str) -> None:
    head = (
        f"HTTP/1.1 429 Busy\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nRetry-After: {value}\r\nContent-Length: 0\r\n\r\n"
    )
    with pytest.raises(CarrierUnavailableError) as unavailable:
        ask_at(head.encode())
    assert unavailable.value.retry_after_s == RETRY_AFTER[value]


@pytest.mark.parametrize(
    ("told", "seconds"), [(math.nan, 1), (-math.inf, 0.1), (-1, 0.1), (0, 0.1), (7, 7), (301, 300), (math.inf, 300)]
)
def test_no_carrier_sends_the_dialer_away_for_ever_or_for_no_time(told: float, seconds: float) -> None:
    assert CarrierUnavailableError("429", told).retry_after_s == seconds


ACCOUNT = [401, 402, 403, 405, 407, 410]
NOT_ULTRAVOX = b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nNot Found"


@pytest.mark.parametrize("fault", ACCOUNT)
def test_an_account_that_cannot_call_is_no_fault_of_the_contact(account: UltravoxStandIn, url: str, fault: int) -> None:
    account.fault = fault
    with pytest.raises(AccountRefusedError, match=str(fault)):
        place(url)
    with pytest.raises(AccountRefusedError, match=str(fault)):
        find(url)


def test_a_wrong_key_is_no_fault_of_the_contact(url: str) -> None:
    with pytest.raises(AccountRefusedError):
        place(url, ultravox_api_key="another")


def test_another_server_at_the_address_is_no_fault_of_the_contact_and_knows_nothing_of_calls() -> None:
    known = msgspec.structs.replace(UNKNOWN, carrier_call_id="00000000-0000-4000-8000-000000000000")
    with pytest.raises(AccountRefusedError, match="address"):
        ask_at(NOT_ULTRAVOX)
    with pytest.raises(AccountRefusedError, match="address"):
        ask_at(NOT_ULTRAVOX, lambda carrier: carrier.find(known))
    with pytest.raises(CallUnclearError):
        ask_at(NOT_ULTRAVOX, lambda carrier: carrier.find(UNKNOWN))


def a_batch(db: TestDatabase, contacts: int, agent: str) -> UUID:
    """A batch whose contacts have one attempt each."""
    agency = db.agency()
    of = db.calling(agency)
    db.rows("update agent_mappings set ultravox_agent_id = %s where agency_id = %s", agent, agency)
    batch = db.batch(agency, agent_mapping_id=of["agent_mapping_id"], from_number=of["from_number"])
    db.contacts(batch, pending=contacts)
    db.rows("update campaign_contacts set max_attempts = 1")
    return batch


def ultravox(url: str) -> dict[str, Any]:
    """The client of a dialer, with at most five requests in flight."""
    settings = Settings(carrier="ultravox", carrier_url=url, ultravox_api_key=API_KEY)
    return {"carrier": connect_carrier(settings), "dial_concurrency": 5}


def dial_until(db: TestDatabase, url: str, *steps: Callable[[], bool]) -> None:
    """A dialer at work until each step was taken."""

    async def run() -> None:
        of = ultravox(url)
        async with dialing(db, **of):
            for step in steps:
                await until(step)
        await of["carrier"].aclose()

    asyncio.run(run())


@pytest.mark.parametrize("fault", ACCOUNT)
def test_an_account_that_cannot_call_uses_up_no_attempt_and_holds_the_dialer(
    db: TestDatabase, account: UltravoxStandIn, url: str, fault: int
) -> None:
    batch = a_batch(db, 20, "the-agent")
    account.fault = fault
    with logged() as log:
        dial_once(db, **ultravox(url))
    assert db.statuses(batch) == {"scheduled": 5, "pending": 15}
    assert db.value("select max(attempts) from campaign_contacts") == 0
    (said,) = log.lines("carrier refuses every call: check its settings and account")
    assert (said["level"], said["hold_s"]) == ("error", 30)


def is_stopped(db: TestDatabase, batch: UUID) -> bool:
    return bool(db.batch_row(batch)["status"] == "stopped")


@pytest.mark.parametrize("agent", ["no-such-agent", None])
def test_a_batch_without_an_agent_to_call_with_is_stopped_and_uses_up_no_attempt(
    db: TestDatabase, url: str, agent: str | None
) -> None:
    other = a_batch(db, 20, "the-agent")
    batch = a_batch(db, 20, "no-such-agent")
    if agent is None:
        db.rows("update call_batches set agent_mapping_id = null where id = %s", batch)
    with logged() as log:
        dial_until(
            db, url, lambda: is_stopped(db, batch), lambda: db.statuses(other) == {"in_progress": 20},
        )  # fmt: skip
    assert db.value("select max(attempts) from campaign_contacts where batch_id = %s", batch) == 0
    # Another claim may have come between its answer and the stop, whose calls stop the batch once more.
    (event,) = db.rows("select distinct batch_id, action, actor_kind, reason from batch_events")
    assert (event["batch_id"], event["action"], event["actor_kind"]) == (batch, "stop", "service")
    said = log.lines("batch refused: it is stopped")[0]
    assert (said["level"], said["batch_id"], said["reason"]) == ("error", str(batch), event["reason"])


def test_a_resumed_batch_whose_agent_is_still_unknown_is_stopped_again(db: TestDatabase, url: str) -> None:
    batch = a_batch(db, 20, "no-such-agent")

    def resume() -> bool:
        return bool(db.rows("select resume_batch(%s)", batch))

    dial_until(db, url, lambda: is_stopped(db, batch), resume, lambda: is_stopped(db, batch))


@pytest.mark.parametrize("address", ["refused", "http://no-such-host.invalid"])
def test_without_a_connection_it_was_surely_not_placed(address: str) -> None:
    with unanswered_port() as port, pytest.raises(CarrierUnavailableError):
        place(f"http://127.0.0.1:{port}" if address == "refused" else address)


@pytest.mark.parametrize("fault", [302, 408, 500, 502, 503, 504, "garble"])
def test_anything_else_leaves_it_unclear_whether_it_was_placed(
    account: UltravoxStandIn, url: str, fault: int | str
) -> None:
    account.fault = fault
    with pytest.raises(CallUnclearError):
        place(url)


def ask_at(
    answer: bytes, what: Callable[[Carrier], Awaitable[Any]] = lambda carrier: carrier.place(CALL, PlaceBy(60))
) -> None:
    """Ask a server that answers so, and closes the connection."""

    async def run() -> None:
        async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        async with await asyncio.start_server(reply, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            settings = Settings(carrier="ultravox", carrier_url=f"http://{host}:{port}", ultravox_api_key=API_KEY)
            carrier = connect_carrier(settings)
            try:
                await what(carrier)
            finally:
                await carrier.aclose()

    asyncio.run(run())


def test_a_connection_that_breaks_after_the_request_leaves_it_unclear() -> None:
    with pytest.raises(CallUnclearError):
        ask_at(b"")


def test_a_call_whose_answer_was_lost_is_found_by_its_metadata(account: UltravoxStandIn, url: str) -> None:
    assert find(url) is None
    place_in_vain(account, url)
    place_in_vain(account, url, msgspec.structs.replace(CALL, call_id=8))
    assert find(url) == InProgress("00000000-0000-4000-8000-000000000000")


@pytest.mark.parametrize(
    ("reason", "joined", "status", "outcome", "duration"),
    [
        ("hangup", True, "completed", "answered", 90),
        ("agent_hangup", True, "completed", "answered", 90),
        ("timeout", True, "completed", "answered", 90),
        ("connection_error", True, "completed", "answered", 90),
        ("system_error", True, "completed", "answered", 90),
        ("unjoined", False, "failed", "no_answer", None),
        ("system_error", False, "failed", "system_error", None),
        (None, False, "failed", "unknown", None),
    ],
)
def test_a_call_that_ended_has_the_same_result_when_it_is_found_as_by_its_webhook(
    account: UltravoxStandIn,
    url: str,
    db: TestDatabase,
    reason: str | None,
    joined: bool,
    status: str,
    outcome: str,
    duration: int | None,
) -> None:
    place(url)
    account.end(reason, "2026-01-01T10:00:00Z" if joined else None)
    ended = find(url)
    assert isinstance(ended, Finished)
    assert (ended.status, ended.outcome, ended.duration_seconds) == (status, outcome, duration)
    assert ended.carrier_call_id == account.calls[0]["callId"]
    known = msgspec.structs.replace(UNKNOWN, carrier_call_id=account.calls[0]["callId"])
    assert find(url, known) == ended

    carrier = Reporter(db, db.agency())
    batch = db.batch(carrier.agency)
    db.contacts(batch, pending=1)
    (call,) = carrier.place(batch, 1)
    carrier.tell(event("call.ended", call, **{**account.calls[0], "metadata": event("", call)["call"]["metadata"]}))
    db.rows("select process_webhook_queue()")
    assert db.row("select status::text, outcome, duration_seconds from calls") == {
        "status": status,
        "outcome": outcome,
        "duration_seconds": duration,
    }


def test_a_call_is_found_among_others_and_never_taken_for_another(account: UltravoxStandIn, url: str) -> None:
    account.lists_all = True
    assert find(url) is None
    place(url, msgspec.structs.replace(CALL, call_id=8))
    place(url, msgspec.structs.replace(CALL, batch_id=UUID(int=7)))
    with pytest.raises(CallUnclearError, match="other calls"):
        find(url)
    placed = place(url)
    assert find(url) == placed == InProgress("00000000-0000-4000-8000-000000000002")


def test_a_call_that_is_there_twice_is_over_when_both_are(account: UltravoxStandIn, url: str) -> None:
    place(url)
    account.end("hangup")
    second = place(url)
    assert find(url) == second
    account.end("hangup")
    assert isinstance(find(url), Finished)


@pytest.mark.parametrize("fields", [{"call_id": "8"}, {"batch_id": str(UUID(int=7))}])
def test_an_id_of_another_call_tells_nothing(account: UltravoxStandIn, url: str, fields: dict[str, str]) -> None:
    place(url)
    known = msgspec.structs.replace(UNKNOWN, carrier_call_id=account.calls[0]["callId"])
    account.calls[0]["metadata"] |= fields
    with pytest.raises(CallUnclearError, match="another call"):
        find(url, known)
    account.calls[0]["metadata"] = {}
    assert find(url, known) == InProgress(account.calls[0]["callId"])


def test_a_call_that_was_deleted_there_is_not_there(url: str) -> None:
    assert find(url, msgspec.structs.replace(UNKNOWN, carrier_call_id="gone")) is None


def test_when_it_does_not_say_what_it_knows_nothing_is_concluded() -> None:
    with unanswered_port() as port, pytest.raises(CarrierUnavailableError):
        find(f"http://127.0.0.1:{port}")
