"""A carrier as the dialer sees it. A new carrier is a module beside this one with `connect(settings)`, named like the
value of LASTCALL_CARRIER, and its line in the settings' CARRIERS."""

from __future__ import annotations

import importlib
import math
import socket
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Protocol
from uuid import UUID

import httpx2
import msgspec

from .._shared.settings import Settings
from .place_by import PlaceBy

# Shorter than the servers' own: on a connection that is being closed meanwhile, nobody can tell what became
# of a request.
_KEEP_IDLE_S = 2.0
_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)
"""The socket option of the most milliseconds in which sent bytes are acknowledged, where the system has one."""
_RETRY_AFTER_S = 1.0
_ACCOUNT_RETRY_AFTER_S = 30.0
"""Credentials, an account and an address are mended by a person: to ask each second has no use."""
_LEAST_RETRY_AFTER_S = 0.1
_MOST_RETRY_AFTER_S = 300.0
"""Most seconds for which a carrier can send the dialer away. No batch dials meanwhile, whoever else the carrier would
serve, and no open call is looked up: a wrong header must not do that for longer. One call asks again afterwards."""
_ACCOUNT_STATUSES = (401, 402, 403, 405, 407, 410)
"""The credentials, the account, the proxy's credentials or the address are wrong, whatever call was asked for."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call to place, as claim_contacts tells it. call_id and lease together name it: ids come again after a crash."""

    batch_id: UUID
    call_id: int
    lease: UUID
    contact_id: int
    phone_number: str
    from_number: str | None
    ultravox_agent_id: str | None
    max_duration_seconds: int | None
    recording_enabled: bool | None
    custom_data: dict[str, Any]


class OpenCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that was let through, as list_open_calls and list_calls_to_end tell it."""

    batch_id: UUID
    call_id: int
    lease: UUID | None
    """The lease of the call; a call claimed before leases had names has none, and the carrier knows none."""
    status: str
    carrier_call_id: str | None
    age_seconds: float
    carrier_queued: bool = False
    """Whether the carrier was not heard to dial it yet."""
    hang_up: bool = False
    """Whether somebody asked for its end."""


class InProgress(msgspec.Struct, frozen=True):
    """The carrier has the call, and will tell its end. carrier_queued: it has not dialed it yet."""

    carrier_call_id: str
    carrier_queued: bool = False


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """The call is over."""

    status: Literal["completed", "failed"]
    outcome: str
    carrier_call_id: str
    duration_seconds: float | None = None
    """Seconds of conversation; None: there was none."""
    notes: str | None = None


class CallRefusedError(Exception):
    """Surely not placed, and no use in saying the same again: something is wrong with this call."""


class BatchRefusedError(Exception):
    """Surely not placed, nor any other call of the batch: something is wrong with the batch's agent or number."""


class CarrierUnavailableError(Exception):
    """Surely not placed, and nothing is wrong with the call: the carrier takes none now. retry_after_s: when to ask
    again, kept within bounds; NaN: not told."""

    def __init__(self, message: str, retry_after_s: float = _RETRY_AFTER_S) -> None:
        super().__init__(message)
        told = _RETRY_AFTER_S if math.isnan(retry_after_s) else retry_after_s
        self.retry_after_s = min(max(told, _LEAST_RETRY_AFTER_S), _MOST_RETRY_AFTER_S)


class AccountRefusedError(CarrierUnavailableError):
    """Surely not placed, nor any other call: something is wrong with the credentials, the account or the address. A
    person has to mend the settings."""

    def __init__(self, message: str) -> None:
        super().__init__(message, _ACCOUNT_RETRY_AFTER_S)


class CallUnclearError(Exception):
    """The carrier may or may not have the call: the request may have arrived."""


class Carrier(Protocol):
    """Places calls. The carrier is told id and lease of each call, and finds and reports it by both."""

    async def place(self, call: Call, place_by: PlaceBy) -> InProgress | Finished:
        """Place a call. The module checks place_by as late as it can: when the request is about to be written.
        Raises CallLateError, CallRefusedError, BatchRefusedError, AccountRefusedError and CarrierUnavailableError:
        surely not placed; CallUnclearError."""

    async def find(self, call: OpenCall) -> InProgress | Finished | None:
        """Return the carrier's knowledge of a call; None: the carrier has no such call. Raises AccountRefusedError,
        CarrierUnavailableError and CallUnclearError: it does not say; CallRefusedError: it will not."""

    async def withdraw(self, call: OpenCall) -> InProgress | Finished | None:
        """Take a call out of the carrier's queue; a call that was dialed goes on. Returns what the carrier knows then:
        Finished, with outcome withdrawn, if it was never dialed; None: it has no such call. Raises as find does."""

    async def hang_up(self, call: OpenCall) -> InProgress | Finished | None:
        """End a call, whatever it does; one that was never dialed is withdrawn. Returns what the carrier knows then:
        InProgress: it will tell the end. Raises as find does."""

    async def aclose(self) -> None:
        """Let the connections go."""


def connect_carrier(settings: Settings) -> Carrier:
    """The carrier of the settings, which must name one; connects when first used."""
    carrier: Carrier = importlib.import_module(f".{settings.carrier}", __package__).connect(settings)
    return carrier


class CarrierHttp:
    """A carrier's HTTP API, whose failures are told apart by whether a call may have been placed.
    proxies: whether those of the environment are used."""

    def __init__(
        self, url: str, settings: Settings, headers: dict[str, str] | None = None, *, proxies: bool = True
    ) -> None:
        self._unacknowledged_ms = round(settings.place_within_s * 1000)
        connections = settings.dial_concurrency
        self._client = httpx2.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=settings.carrier_timeout_s,
            trust_env=proxies,
            limits=httpx2.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=_KEEP_IDLE_S
            ),
        )

    async def send(self, method: str, path: str, place_by: PlaceBy | None = None, **request: Any) -> httpx2.Response:
        """The response, if it is a success or a 404. place_by: the request leaves until then, or not at all. Raises
        CallLateError, CallRefusedError, AccountRefusedError, CarrierUnavailableError and CallUnclearError."""

        async def watch(event: str, info: dict[str, Any]) -> None:
            if event == "connection.connect_tcp.complete" and _USER_TIMEOUT is not None:
                # Or else the kernel repeats lost packets for minutes, also of a connection that was closed.
                connection = info["return_value"].get_extra_info("socket")
                connection.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, self._unacknowledged_ms)
            # After the wait for a connection, the connection and TLS. A carrier acts on no request without its body.
            if place_by is not None and event.endswith(("send_request_headers.started", "send_request_body.started")):
                place_by.check()

        try:
            response = await self._client.request(method, path, extensions={"trace": watch}, **request)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise CarrierUnavailableError(f"no connection to the carrier: {type(error).__name__}") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise CallUnclearError(f"no answer from the carrier: {type(error).__name__}") from error
        status = response.status_code
        if response.is_success or status == 404:
            return response
        told = f"the carrier answered {status}"
        if status == 429:
            raise CarrierUnavailableError(told, _retry_after(response))
        if status in _ACCOUNT_STATUSES:
            raise AccountRefusedError(told)
        # A timeout, or a reply from something between the carrier and the dialer, tells nothing about the call.
        if status == 408 or not response.is_client_error:
            raise CallUnclearError(told)
        raise CallRefusedError(told)

    async def aclose(self) -> None:
        await self._client.aclose()


def read(response: httpx2.Response, type_: type[Any]) -> Any:
    """The body of a carrier's answer as type_. Raises CallUnclearError: it cannot be made out."""
    try:
        return msgspec.json.decode(response.content, type=type_)
    except msgspec.DecodeError as error:
        raise CallUnclearError("the carrier's answer cannot be made out") from error


def _retry_after(response: httpx2.Response) -> float:
    """The seconds of Retry-After, which may be a date: RFC 9110, section 10.2.3. A date counts from the Date of the
    response, so that a clock of another machine makes no difference."""
    value = response.headers.get("retry-after", "")
    if value.isascii() and value.isdigit():
        return float(value)
    until, now = _http_date(value), _http_date(response.headers.get("date", ""))
    if until is None:
        return _RETRY_AFTER_S
    return (until - (now or datetime.now(UTC))).total_seconds()


def _http_date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date
