"""The simulated carrier (simulated_carrier.py), by its HTTP API."""

from __future__ import annotations

from typing import Literal

import msgspec

from .._shared.settings import Settings
from .carrier import AccountRefusedError, Call, CarrierHttp, Finished, InProgress, OpenCall, read
from .place_by import PlaceBy


class _State(msgspec.Struct):
    carrier_call_id: str
    status: str
    outcome: str | None = None
    duration_seconds: float | None = None


class _NoSuchCall(msgspec.Struct):
    error: Literal["no such call"]


class Simulator:
    """A simulated carrier."""

    def __init__(self, settings: Settings) -> None:
        self._http = CarrierHttp(settings.carrier_url or "", settings, proxies=False)

    async def place(self, call: Call, place_by: PlaceBy) -> InProgress | Finished:
        body = {
            "batch_id": str(call.batch_id),
            "call_id": call.call_id,
            "lease": str(call.lease),
            "contact_id": call.contact_id,
            "to": call.phone_number,
        }
        response = await self._http.send("POST", "/calls", place_by, json=body)
        if response.status_code == 404:
            raise AccountRefusedError("there is no simulated carrier at this address")
        return _state(read(response, _State))

    async def find(self, call: OpenCall) -> InProgress | Finished | None:
        return await self._ask("GET", call)

    async def _ask(self, method: str, call: OpenCall, how: str = "") -> InProgress | Finished | None:
        response = await self._http.send(method, f"/calls/{call.batch_id}/{call.call_id}/{call.lease}{how}")
        if response.status_code != 404:
            return _state(read(response, _State))
        read(response, _NoSuchCall)  # another server's 404 tells nothing of the call
        return None

    async def withdraw(self, call: OpenCall) -> InProgress | Finished | None:
        return await self._ask("POST", call, "/withdraw")

    async def hang_up(self, call: OpenCall) -> InProgress | Finished | None:
        return await self._ask("POST", call, "/hang_up")

    async def aclose(self) -> None:
        await self._http.aclose()


def connect(settings: Settings) -> Simulator:
    return Simulator(settings)


def _state(state: _State) -> InProgress | Finished:
    if state.status in ("queued", "in_progress"):
        return InProgress(state.carrier_call_id, carrier_queued=state.status == "queued")
    return Finished(
        status="completed" if state.status == "completed" else "failed",
        outcome=state.outcome or "answered",
        carrier_call_id=state.carrier_call_id,
        duration_seconds=state.duration_seconds,
    )
