"""A simulated voice carrier. It speaks HTTP, knows nothing of batches' states or of the database, and
keeps its own record of every call that reached it: the witness of the verdict.

POST /calls  {"call_id", "batch_id", "to"}: answers when the call has ended, with its result
GET  /calls  the record
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

RING_S = (0.05, 0.3)
TALK_S = (0.5, 3.0)
NOT_ANSWERED = 0.15
"""Share of the calls that end without a conversation."""


@dataclass
class CarrierCall:
    """A call as the carrier saw it."""

    call_id: int
    batch_id: str
    arrived_at: float
    """When the request was here: seconds of the machine's monotonic clock, which all processes share."""
    arrived_at_utc: str
    ended_at: float | None = None
    """When the call was over, by the same clock; None: it goes on."""


def create_carrier() -> Starlette:
    """The carrier, with an empty record."""
    record: list[CarrierCall] = []

    async def place_call(request: Request) -> JSONResponse:
        arrived_at, now = time.monotonic(), datetime.now(UTC)
        body = await request.json()
        call = CarrierCall(body["call_id"], body["batch_id"], arrived_at, now.isoformat())
        record.append(call)
        chance = random.Random(call.call_id)  # noqa: S311 - the same story every time, not a secret
        await asyncio.sleep(chance.uniform(*RING_S))
        talk_s = 0.0
        if chance.random() < NOT_ANSWERED:
            result = {"status": "failed", "outcome": chance.choice(["busy", "no_answer"])}
        else:
            talk_s = chance.uniform(*TALK_S)
            await asyncio.sleep(talk_s)
            result = {"status": "completed", "outcome": "answered"}
        call.ended_at = time.monotonic()
        return JSONResponse({**result, "duration_seconds": round(talk_s)})

    async def show_record(_request: Request) -> JSONResponse:
        return JSONResponse([asdict(call) for call in record])

    return Starlette(
        routes=[Route("/calls", place_call, methods=["POST"]), Route("/calls", show_record, methods=["GET"])]
    )


def serve() -> None:
    """Serve a carrier on a free port of the loopback until SIGTERM. Prints `ready http://...`."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(create_carrier(), access_log=False, timeout_graceful_shutdown=1)
    # It listens: whoever connects from now on waits for the server at most a moment.
    print(f"ready http://127.0.0.1:{listening.getsockname()[1]}", flush=True)  # noqa: T201
    uvicorn.Server(config).run(sockets=[listening])
