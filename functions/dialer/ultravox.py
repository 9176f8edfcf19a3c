"""Ultravox, by its public HTTP API: a call with one of its agents over Telnyx, found again by its metadata."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx2
import msgspec

from .._shared.settings import Settings
from .carrier import (
    AccountRefusedError,
    BatchRefusedError,
    Call,
    CallRefusedError,
    CallUnclearError,
    CarrierHttp,
    Finished,
    InProgress,
    OpenCall,
    read,
)
from .place_by import PlaceBy

_URL = "https://api.ultravox.ai"


_AGENT_ID = re.compile(r"[A-Za-z0-9_-]+")


class _NotFound(msgspec.Struct):
    detail: str


class _Created(msgspec.Struct, rename="camel"):
    call_id: str


class _Call(msgspec.Struct, rename="camel"):
    call_id: str
    joined: datetime | None = None
    ended: datetime | None = None
    end_reason: str | None = None
    short_summary: str | None = None
    metadata: dict[str, Any] = {}


class _Calls(msgspec.Struct):
    results: list[_Call]


class Ultravox:
    """The account of an API key."""

    def __init__(self, settings: Settings) -> None:
        self._http = CarrierHttp(
            settings.carrier_url or _URL, settings, headers={"X-API-Key": settings.ultravox_api_key or ""}
        )

    async def place(self, call: Call, place_by: PlaceBy) -> InProgress:
        if call.ultravox_agent_id is None or call.from_number is None:
            raise BatchRefusedError("The batch has no agent or no number to call from")
        if not _AGENT_ID.fullmatch(call.ultravox_agent_id):
            raise BatchRefusedError("The batch's agent has no id of Ultravox")
        response = await self._http.send(
            "POST",
            f"/api/agents/{call.ultravox_agent_id}/calls",
            place_by,
            json={
                "medium": {"telnyx": {"outgoing": {"to": call.phone_number, "from": call.from_number}}},
                "firstSpeakerSettings": {"agent": {}},
                "templateContext": call.custom_data,
                "metadata": _metadata(call),
                "maxDuration": f"{call.max_duration_seconds}s",
                "recordingEnabled": call.recording_enabled,
            },
        )
        if response.status_code == 404:
            if not _is_of_ultravox(response):
                raise AccountRefusedError("Ultravox is not at this address")
            raise BatchRefusedError("Ultravox does not know the batch's agent")
        return InProgress(read(response, _Created).call_id)

    async def find(self, call: OpenCall) -> InProgress | Finished | None:
        if call.carrier_call_id is not None:
            response = await self._http.send("GET", f"/api/calls/{quote(call.carrier_call_id, safe='')}")
            if response.status_code == 404:
                if not _is_of_ultravox(response):
                    raise AccountRefusedError("Ultravox is not at this address")
                return None
            known = read(response, _Call)
            if known.call_id != call.carrier_call_id or _names_another(known, call):
                raise CallUnclearError("Ultravox answers with another call")
            return _state(known)
        wanted = {f"metadata.{name}": value for name, value in _name(call).items()}
        listed = read(await self._http.send("GET", "/api/calls", params=wanted), _Calls).results
        found = [one for one in listed if _named(one) == _name(call)]
        if listed and not found:
            # The list is not of what was asked for: the call may be on another page of it.
            raise CallUnclearError("Ultravox lists other calls than the one asked for")
        # A call in progress comes before an ended one: the call is over only if every one has ended.
        return _state(min(found, key=lambda one: one.ended is not None)) if found else None

    async def withdraw(self, call: OpenCall) -> InProgress | Finished | None:
        # Ultravox dials a call when it creates it.
        return await self.find(call)

    async def hang_up(self, call: OpenCall) -> InProgress | Finished | None:
        found = await self.find(call)
        if isinstance(found, InProgress):
            path = f"/api/calls/{quote(found.carrier_call_id, safe='')}/send_data_message"
            try:
                response = await self._http.send("POST", path, json={"type": "hang_up"})
            except CallRefusedError as error:
                # While it rings, a call takes no messages.
                raise CallUnclearError(f"Ultravox does not hang up: {error}") from error
            if response.status_code == 404 and not _is_of_ultravox(response):
                raise AccountRefusedError("Ultravox is not at this address")
        return found

    async def aclose(self) -> None:
        await self._http.aclose()


def connect(settings: Settings) -> Ultravox:
    return Ultravox(settings)


def _is_of_ultravox(not_found: httpx2.Response) -> bool:
    """Whether a 404 is about what was asked for: another server, or an address that is wrong, answers otherwise."""
    try:
        read(not_found, _NotFound)
    except CallUnclearError:
        return False
    return True


def _metadata(call: Call) -> dict[str, str]:
    """By which webhooks and searches find the call; Ultravox takes strings alone."""
    return {**_name(call), "contact_id": str(call.contact_id)}


def _name(call: Call | OpenCall) -> dict[str, str]:
    name = {"batch_id": str(call.batch_id), "call_id": str(call.call_id)}
    return name if call.lease is None else {**name, "lease": str(call.lease)}


def _named(found: _Call) -> dict[str, Any]:
    """The name of the call in the metadata, as _name gave it; empty: there is none."""
    return {part: found.metadata[part] for part in ("batch_id", "call_id", "lease") if part in found.metadata}


def _names_another(found: _Call, call: OpenCall) -> bool:
    """Whether the metadata, if there is any, is of another call."""
    return _named(found) not in ({}, _name(call))


def _state(call: _Call) -> InProgress | Finished:
    """As private.apply_webhooks reads the same call from its webhook."""
    if call.ended is None:
        return InProgress(call.call_id)
    if call.joined is None:
        outcome = "no_answer" if call.end_reason == "unjoined" else call.end_reason or "unknown"
        return Finished(status="failed", outcome=outcome, carrier_call_id=call.call_id)
    return Finished(
        status="completed",
        outcome="answered",
        carrier_call_id=call.call_id,
        duration_seconds=(call.ended - call.joined).total_seconds(),
        notes=call.short_summary,
    )
