"""A stand-in for Ultravox: what its documentation says of creating, getting, listing and hanging up calls, and the
ways in which any service fails."""

from __future__ import annotations

import json
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

API_KEY = "aBCDef.123456"


class UltravoxStandIn:
    """An account. fault: the status that every request is answered with instead of a success, or "hang" or "garble",
    which are about creating a call, and create the call all the same."""

    def __init__(self) -> None:
        self.fault: int | str | None = None
        self.lists_all = False
        """Whatever a list is asked for, it is of all calls."""
        self.requests: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/api/agents/{agent_id}/calls", self._create, methods=["POST"]),
                Route("/api/calls", self._list, methods=["GET"]),
                Route("/api/calls/{call_id}", self._get, methods=["GET"]),
                Route("/api/calls/{call_id}/send_data_message", self._send_message, methods=["POST"]),
            ]
        )

    def answer(self) -> None:
        """Let the latest call be answered."""
        self.calls[-1]["joined"] = "2026-01-01T10:00:00Z"

    def end(self, reason: str | None, joined: str | None = "2026-01-01T10:00:00Z") -> None:
        """Let the latest call end, a minute and a half after it was joined."""
        self.calls[-1] |= {"joined": joined, "ended": "2026-01-01T10:01:30Z", "endReason": reason}

    async def _create(self, request: Request) -> Response:
        if request.headers.get("x-api-key") != API_KEY:
            return JSONResponse({"detail": "Authentication credentials were not provided."}, 401)
        if request.path_params["agent_id"] == "no-such-agent":
            return JSONResponse({"detail": "Not found."}, 404)
        body = await request.json()
        self.requests.append({"agent_id": request.path_params["agent_id"], **body})
        if isinstance(self.fault, int):
            return JSONResponse({"detail": "as the test says"}, self.fault)
        call = {
            "callId": f"00000000-0000-4000-8000-{len(self.calls):012}",
            "created": "2026-01-01T09:59:00Z",
            "joined": None,
            "ended": None,
            "endReason": None,
            "shortSummary": None,
            "metadata": body["metadata"],
        }
        self.calls.append(call)
        if self.fault == "hang":
            await request.receive()  # until the client gives up
        return Response("<html>" if self.fault == "garble" else json.dumps(call), 201, media_type="application/json")

    async def _list(self, request: Request) -> Response:
        if isinstance(self.fault, int):
            return JSONResponse({"detail": "as the test says"}, self.fault)
        wanted = {k.removeprefix("metadata."): v for k, v in request.query_params.items() if k.startswith("metadata.")}
        found = [call for call in self.calls if self.lists_all or wanted.items() <= call["metadata"].items()]
        return JSONResponse({"results": found, "next": None, "previous": None, "total": len(found)})

    async def _get(self, request: Request) -> Response:
        found = [call for call in self.calls if call["callId"] == request.path_params["call_id"]]
        return JSONResponse(found[0]) if found else JSONResponse({"detail": "Not found."}, 404)

    async def _send_message(self, request: Request) -> Response:
        found = [call for call in self.calls if call["callId"] == request.path_params["call_id"]]
        if not found:
            return JSONResponse({"detail": "Not found."}, 404)
        if isinstance(self.fault, int):
            return JSONResponse({"detail": "as the test says"}, self.fault)
        if found[0]["joined"] is None or found[0]["ended"] is not None:
            return JSONResponse({"detail": "The call takes no messages."}, 422)
        assert await request.json() == {"type": "hang_up"}
        found[0] |= {"ended": "2026-01-01T10:00:42Z", "endReason": "hangup"}
        return Response(status_code=204)
