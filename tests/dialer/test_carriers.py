"""Each carrier places, finds, withdraws and hangs up calls by the rules that the dialer relies on, and its refusals,
failures and absences become the same errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from functions._shared.settings import Settings
from functions.dialer.carrier import (
    AccountRefusedError,
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
from functions.dialer.place_by import CallLateError, PlaceBy
from functions.dialer.simulated_carrier import Behaviour, create_carrier

from ..support.ports import unanswered_port
from ..support.serving import serving
from ..support.simulator import record
from ..support.ultravox import API_KEY, UltravoxStandIn
from ..support.waiting import until

pytestmark = pytest.mark.one_postgres

T = TypeVar("T")
CARRIERS = ["simulator", "queueing simulator", "ultravox"]
REQUESTS = ["find", "withdraw", "hang_up"]


class Front:
    """The carrier's server, or something in front of it that answers instead."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.answers: Response | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.answers if scope["type"] == "http" and self.answers else self._app)(scope, receive, send)


class Account:
    """An account with a carrier, whose calls are answered at once and last for an hour."""

    def __init__(self, front: Front, settings: Settings, let_answer: Callable[[], None]) -> None:
        self.front = front
        self._settings = settings
        self._let_answer = let_answer
        self._last_call_id = 0

    def ask(self, request: Callable[[Carrier], Awaitable[T]], **settings: Any) -> T:
        async def run() -> T:
            carrier = connect_carrier(replace(self._settings, **settings))
            try:
                return await request(carrier)
            finally:
                await carrier.aclose()

        return asyncio.run(run())

    def about(self, request: str, call: OpenCall, **settings: Any) -> InProgress | Finished | None:
        """find, withdraw or hang_up."""
        return self.ask(lambda carrier: getattr(carrier, request)(call), **settings)

    def new_call(self) -> Call:
        self._last_call_id += 1
        return Call(
            batch_id=uuid4(),
            call_id=self._last_call_id,
            lease=uuid4(),
            contact_id=5,
            phone_number="+15559876543",
            from_number="+15551234567",
            ultravox_agent_id="the-agent",
            max_duration_seconds=3600,
            recording_enabled=False,
            custom_data={},
        )

    def place(self, within_s: float = 60) -> OpenCall:
        """A new call, as the books tell it when the carrier has it."""
        call = self.new_call()
        placed = self.ask(lambda carrier: carrier.place(call, PlaceBy(within_s)))
        assert isinstance(placed, InProgress)
        self._let_answer()
        return msgspec.structs.replace(
            an_open_call(call), carrier_call_id=placed.carrier_call_id, carrier_queued=placed.carrier_queued
        )


def an_open_call(call: Call) -> OpenCall:
    """The call, as the books tell it before they know whether the carrier has it."""
    return OpenCall(
        batch_id=call.batch_id,
        call_id=call.call_id,
        lease=call.lease,
        status="unknown",
        carrier_call_id=None,
        age_seconds=10,
    )


@contextmanager
def connected(carrier: str) -> Iterator[Account]:
    stand_in = UltravoxStandIn()
    if carrier == "ultravox":
        app, name = stand_in.app(), carrier
    else:
        # The first call of a queueing one is dialed at once, and the second after an hour.
        dials_per_s = 1 / 3600 if carrier.startswith("queueing") else None
        behaviour = Behaviour(ring_s=(0.0, 0.0), talk_s=(3600.0, 3600.0), unanswered=0.0, dials_per_s=dials_per_s)
        app, name = create_carrier(behaviour), "simulator"
    front = Front(app)
    with serving(front) as (host, port):
        url = f"http://{host}:{port}"

        def are_answered() -> bool:
            calls = record(url)
            answered = [call for call in calls if call["joined_at_utc"]]
            return len(answered) == (1 if carrier.startswith("queueing") else len(calls))

        settings = Settings(carrier=name, carrier_url=url, ultravox_api_key=API_KEY, carrier_timeout_s=60.0)
        yield Account(front, settings, stand_in.answer if carrier == "ultravox" else lambda: until(are_answered))


@pytest.fixture(params=CARRIERS)
def account(request: pytest.FixtureRequest) -> Iterator[Account]:
    with connected(request.param) as account:
        yield account


@pytest.fixture
def queueing() -> Iterator[Account]:
    """An account whose next calls stay in the carrier's queue."""
    with connected("queueing simulator") as account:
        account.place()
        yield account


def test_a_placed_call_is_found_by_the_carriers_id_and_by_its_own_name(account: Account) -> None:
    call = account.place()
    unconfirmed = msgspec.structs.replace(call, carrier_call_id=None)
    assert account.about("find", call) == account.about("find", unconfirmed) == InProgress(call.carrier_call_id or "")


@pytest.mark.parametrize("request_name", REQUESTS)
def test_the_carrier_knows_no_call_that_was_never_placed(account: Account, request_name: str) -> None:
    account.place()
    assert account.about(request_name, an_open_call(account.new_call())) is None


@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_call_of_another_lease_is_another_call(account: Account, request_name: str) -> None:
    call = account.place()
    other = msgspec.structs.replace(call, lease=uuid4(), carrier_call_id=None)
    assert account.about(request_name, other) is None
    assert isinstance(account.about("find", call), InProgress)


def test_a_call_is_not_placed_after_its_place_by_time(account: Account) -> None:
    call = account.new_call()
    with pytest.raises(CallLateError):
        account.ask(lambda carrier: carrier.place(call, PlaceBy(-1)))
    assert account.about("find", an_open_call(call)) is None


def test_withdraw_lets_a_call_that_was_dialed_go_on(account: Account) -> None:
    call = account.place()
    for _ in range(2):
        assert account.about("withdraw", call) == InProgress(call.carrier_call_id or "")


def test_hang_up_ends_a_call_and_a_repeat_changes_nothing(account: Account) -> None:
    call = account.place()
    account.about("hang_up", call)
    ended = account.about("find", call)
    assert isinstance(ended, Finished)
    assert (ended.status, ended.carrier_call_id) == ("completed", call.carrier_call_id)
    for request_name in REQUESTS:
        assert account.about(request_name, call) == ended


def test_a_call_that_is_hung_up_leaves_the_others_alone(account: Account) -> None:
    first, second = account.place(), account.place()
    account.about("hang_up", first)
    assert account.about("find", second) == InProgress(second.carrier_call_id or "", second.carrier_queued)


def test_a_queued_call_is_told_as_queued(queueing: Account) -> None:
    call = queueing.place()
    assert call.carrier_queued
    assert queueing.about("find", call) == InProgress(call.carrier_call_id or "", carrier_queued=True)


@pytest.mark.parametrize("request_name", ["withdraw", "hang_up"])
def test_a_queued_call_is_withdrawn_and_never_dialed(queueing: Account, request_name: str) -> None:
    call = queueing.place()
    withdrawn = queueing.about(request_name, call)
    assert isinstance(withdrawn, Finished)
    assert (withdrawn.status, withdrawn.outcome) == ("failed", "withdrawn")
    assert queueing.about("find", call) == queueing.about(request_name, call) == withdrawn


# Answers of a server, and the errors that they become.

MEANS: dict[int, type[Exception]] = {
    401: AccountRefusedError,
    403: AccountRefusedError,
    408: CallUnclearError,
    422: CallRefusedError,
    429: CarrierUnavailableError,
    500: CallUnclearError,
    503: CallUnclearError,
}


@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_refused_request_about_a_call_changes_nothing(account: Account, request_name: str) -> None:
    call = account.place()
    for status, meaning in MEANS.items():
        account.front.answers = JSONResponse({"detail": "as the test says"}, status)
        with pytest.raises(meaning):
            account.about(request_name, call)
    account.front.answers = None
    assert isinstance(account.about("find", call), InProgress)


def test_a_refused_call_is_not_placed(account: Account) -> None:
    call = account.new_call()
    for status, meaning in MEANS.items():
        account.front.answers = JSONResponse({"detail": "as the test says"}, status)
        with pytest.raises(meaning):
            account.ask(lambda carrier: carrier.place(call, PlaceBy(60)))
    account.front.answers = None
    assert account.about("find", an_open_call(call)) is None


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("status", [200, 404])
def test_another_server_at_the_address_knows_nothing_of_calls(account: Account, request_name: str, status: int) -> None:
    call = account.place()
    account.front.answers = PlainTextResponse("Welcome", status)
    with pytest.raises((AccountRefusedError, CallUnclearError)):
        account.about(request_name, call)


@pytest.mark.parametrize("request_name", REQUESTS)
def test_without_a_connection_the_carrier_is_away(account: Account, request_name: str) -> None:
    call = account.place()
    with unanswered_port() as port, pytest.raises(CarrierUnavailableError):
        account.about(request_name, call, carrier_url=f"http://127.0.0.1:{port}")
