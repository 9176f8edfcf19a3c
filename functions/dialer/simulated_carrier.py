"""A simulated voice carrier: a process of its own that speaks HTTP, knows nothing of batches' states or of
the database, and keeps its own record of every call that reached it, as a witness.

    python -m functions.dialer.simulated_carrier --webhook-url http://... --webhook-secret whsec_...

POST /calls  {"batch_id", "call_id", "lease", "contact_id", "to"}: 201 at once, and the result by webhook; or 200 when
             the call has ended, with its result (--answer-at-end)
GET  /calls/{batch_id}/{call_id}/{lease}  what became of it, or 404
POST /calls/{batch_id}/{call_id}/{lease}/withdraw  out of the queue, unless it was dialed; what became of it, or 404
POST /calls/{batch_id}/{call_id}/{lease}/hang_up   its end, whatever it does; what became of it, or 404
GET  /calls  the record
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import random
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

_WEBHOOK_TRIES = 5
_END_REASONS = {"answered": "hangup", "hung_up": "hangup", "no_answer": "unjoined"}
"""The end reasons of outcomes; any other outcome is its own reason."""
_TYPES = {"dials_per_s": float, "max_calls": int}
"""The types of options without a default; any other such option is a text."""
_SECRET_PREFIX = "whsec_"  # noqa: S105 - what such secrets begin with


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How the carrier behaves. Shares are of all calls, 0 to 1; the same seed and calls give the same story."""

    seed: int = 0
    ring_s: tuple[float, float] = (0.05, 0.3)
    talk_s: tuple[float, float] = (0.5, 3.0)
    unanswered: float = 0.15
    """Share that ends without a conversation."""
    refused: float = 0.0
    """Share that is answered 422 and never placed."""
    hanging: float = 0.0
    """Share that is placed, without an answer to the request."""
    answer_at_end: bool = False
    """Answer when the call has ended, with its result, instead of at once."""
    dials_per_s: float | None = None
    """Take each call into a queue, of which so many are dialed in a second; None: dial each call at once."""
    max_calls: int | None = None
    """Most calls that go on at a time; more are answered 429."""
    webhook_url: str | None = None
    webhook_secret: str | None = None
    """As Standard Webhooks has it: whsec_ and base64."""
    repeated: float = 0.0
    """Share of the webhooks that are sent twice."""
    late: float = 0.0
    """Share of the webhooks that are sent late, hence out of order."""
    late_s: float = 2.0
    record: str | None = None
    """File to which each request and each end of a call is appended when it happens, as a line of JSON."""


@dataclass
class CarrierCall:
    """A call as the carrier saw it."""

    call_id: int
    lease: str
    batch_id: str
    arrived_at: float
    """When the request was here: seconds of the machine's monotonic clock, which all processes share."""
    arrived_at_utc: str
    ended_at: float | None = None
    """When the call was over, by the same clock; None: it goes on."""
    dialed_at: float | None = None
    """When it was dialed, by the same clock; None: it is in the queue, or was withdrawn from there."""
    contact_id: int = 0
    to: str = ""
    carrier_call_id: str = ""
    status: str = "in_progress"
    outcome: str | None = None
    duration_seconds: float | None = None
    joined_at_utc: str | None = None
    ended_at_utc: str | None = None
    webhooks: int = 0
    """How many webhooks about it were delivered, repeated ones too."""

    @property
    def name(self) -> tuple[int, str]:
        """The name of the call in its batch: its id and its lease."""
        return self.call_id, self.lease


class RecordFile:
    """The carrier's record as an append-only file: {"event": "request" or "end", "at", ...} a line.

    at: when the carrier saw the request, in seconds of the monotonic clock. not_before: when the carrier had surely not
    received the request yet. A carrier that waits for the processor sees a request later than it came; the time lies
    between the two.
    """

    _BEAT_S = 0.005
    _BEATS = 4
    """A request passes so many turns of the event loop, at most, from the socket to the carrier."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 - closed with the process
        self._beats = deque([time.monotonic()], maxlen=self._BEATS)

    async def beat(self) -> None:
        """Note the time again and again: what came before the last turns of the event loop would have been seen."""
        while True:
            self._beats.append(time.monotonic())
            await asyncio.sleep(self._BEAT_S)

    def request(self, at: float, body: dict[str, Any]) -> None:
        self._write("request", at, {"not_before": self._beats[0], **body})

    def end(self, call: CarrierCall) -> None:
        self._write("end", call.ended_at, asdict(call))

    def _write(self, event: str, at: float | None, fields: dict[str, Any]) -> None:
        self._file.write(json.dumps({"event": event, "at": at, **fields}) + "\n")


class SimulatedCarrier:
    """Calls, and the record of them."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self.record: list[CarrierCall] = []
        self._calls: dict[tuple[str, int, str], CarrierCall] = {}
        """The first of each batch, call and lease."""
        self._going_on = 0
        self._dials_next_at = 0.0
        self._lives: dict[str, asyncio.Task[None]] = {}
        """The calls that go on, by the carrier's id."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._http: httpx2.AsyncClient | None = None
        self._file = RecordFile(behaviour.record) if behaviour.record else None

    @asynccontextmanager
    async def running(self, _app: Starlette) -> AsyncIterator[None]:
        if self._file is not None:
            self._start(self._file.beat())
        async with httpx2.AsyncClient(timeout=10, trust_env=False) as self._http:
            yield
            for task in self._tasks:
                task.cancel()

    async def place(self, request: Request) -> Response:
        arrived_at, now = time.monotonic(), datetime.now(UTC)
        body = await request.json()
        if self._file is not None:
            self._file.request(arrived_at, body)
        behaviour = self._behaviour
        chance = random.Random(f"{behaviour.seed}/{body['call_id']}")  # noqa: S311 - the same story every time
        fate = chance.random()
        if behaviour.max_calls is not None and self._going_on >= behaviour.max_calls:
            return JSONResponse({"error": "too many calls"}, 429, {"Retry-After": "1"})
        if fate < behaviour.refused:
            return JSONResponse({"error": "refused"}, 422)
        call = CarrierCall(
            call_id=body["call_id"],
            lease=body["lease"],
            batch_id=body["batch_id"],
            arrived_at=arrived_at,
            arrived_at_utc=now.isoformat(),
            contact_id=body.get("contact_id", 0),
            to=body.get("to", ""),
            carrier_call_id=f"simulated-{len(self.record) + 1}",
            status="in_progress" if behaviour.dials_per_s is None else "queued",
        )
        self.record.append(call)
        self._calls.setdefault((call.batch_id, call.call_id, call.lease), call)
        self._going_on += 1
        life = self._lives[call.carrier_call_id] = self._start(self._live(call, chance))
        if fate > 1 - behaviour.hanging:
            await request.receive()  # until the dialer gives up
        if behaviour.answer_at_end:
            await asyncio.wait([life])
        return JSONResponse(asdict(call), 200 if behaviour.answer_at_end else 201)

    async def show(self, request: Request) -> Response:
        return _shown(self._find(request))

    async def withdraw(self, request: Request) -> Response:
        found = self._find(request)
        if found is not None and found.status == "queued":
            self._break_off(found)
        return _shown(found)

    async def hang_up(self, request: Request) -> Response:
        found = self._find(request)
        if found is not None and found.ended_at is None:
            self._break_off(found)
        return _shown(found)

    def _find(self, request: Request) -> CarrierCall | None:
        of = request.path_params
        return self._calls.get((of["batch_id"], of["call_id"], of["lease"]))

    async def show_record(self, _request: Request) -> Response:
        return JSONResponse([asdict(call) for call in self.record])

    async def _live(self, call: CarrierCall, chance: random.Random) -> None:
        behaviour = self._behaviour
        if behaviour.dials_per_s is not None:
            now = time.monotonic()
            dials_at = max(now, self._dials_next_at)
            self._dials_next_at = dials_at + 1 / behaviour.dials_per_s
            await asyncio.sleep(dials_at - now)
        call.status, call.dialed_at = "in_progress", time.monotonic()
        self._send_webhook("call.started", call, chance)
        await asyncio.sleep(chance.uniform(*behaviour.ring_s))
        joined = chance.random() >= behaviour.unanswered
        talk_s = chance.uniform(*behaviour.talk_s) if joined else 0.0
        if joined:
            call.joined_at_utc = datetime.now(UTC).isoformat()
            self._send_webhook("call.joined", call, chance)
        await asyncio.sleep(talk_s)
        self._end(call, "answered" if joined else chance.choice(["busy", "no_answer"]), talk_s, chance)

    def _break_off(self, call: CarrierCall) -> None:
        """End a call that goes on or is in the queue."""
        self._lives[call.carrier_call_id].cancel()
        outcome = "withdrawn" if call.dialed_at is None else "hung_up"
        joined = datetime.fromisoformat(call.joined_at_utc) if call.joined_at_utc else None
        talked_s = (datetime.now(UTC) - joined).total_seconds() if joined else 0.0
        self._end(call, outcome, talked_s, random.Random(call.carrier_call_id))  # noqa: S311 - as in place

    def _end(self, call: CarrierCall, outcome: str, talked_s: float, chance: random.Random) -> None:
        del self._lives[call.carrier_call_id]
        self._going_on -= 1
        call.ended_at, call.ended_at_utc = time.monotonic(), datetime.now(UTC).isoformat()
        call.status = "failed" if call.joined_at_utc is None else "completed"
        call.outcome = outcome
        call.duration_seconds = round(talked_s, 1)
        if self._file is not None:
            self._file.end(call)
        self._send_webhook("call.ended", call, chance)

    def _send_webhook(self, event: str, call: CarrierCall, chance: random.Random) -> None:
        behaviour = self._behaviour
        if behaviour.webhook_url is None:
            return
        body = _event(event, call)
        webhook_id = f"msg_{call.carrier_call_id}_{event}"
        delay_s = behaviour.late_s * chance.random() if chance.random() < behaviour.late else 0.0
        for _ in range(2 if chance.random() < behaviour.repeated else 1):
            self._start(self._send(call, behaviour.webhook_url, webhook_id, body, delay_s))

    async def _send(self, call: CarrierCall, url: str, webhook_id: str, body: bytes, delay_s: float) -> None:
        assert self._http is not None
        for tried in range(_WEBHOOK_TRIES):
            await asyncio.sleep(delay_s + tried)
            headers = {"Content-Type": "application/json"}
            if self._behaviour.webhook_secret is not None:
                headers |= sign(self._behaviour.webhook_secret, webhook_id, int(time.time()), body)
            try:
                if (await self._http.post(url, content=body, headers=headers)).is_success:
                    call.webhooks += 1
                    return
            except httpx2.HTTPError:
                pass  # tried again

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def sign(secret: str, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers by which Standard Webhooks lets a receiver verify that body."""
    key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX))
    signed = hmac.digest(key, f"{webhook_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }


def create_carrier(behaviour: Behaviour | None = None) -> Starlette:
    """The carrier, with an empty record."""
    carrier = SimulatedCarrier(behaviour or Behaviour())
    return Starlette(
        routes=[
            Route("/calls", carrier.place, methods=["POST"]),
            Route("/calls", carrier.show_record, methods=["GET"]),
            Route("/calls/{batch_id}/{call_id:int}/{lease}", carrier.show, methods=["GET"]),
            Route("/calls/{batch_id}/{call_id:int}/{lease}/withdraw", carrier.withdraw, methods=["POST"]),
            Route("/calls/{batch_id}/{call_id:int}/{lease}/hang_up", carrier.hang_up, methods=["POST"]),
        ],
        lifespan=carrier.running,
    )


def serve(behaviour: Behaviour | None = None, port: int = 0) -> None:
    """Serve a carrier on the loopback until SIGTERM. Prints `ready http://...`. port 0: a free one."""
    listening = socket.create_server(("127.0.0.1", port), backlog=1024)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(create_carrier(behaviour), access_log=False, timeout_graceful_shutdown=1)
    # It listens: whoever connects from now on waits for the server at most a moment.
    print(f"ready http://127.0.0.1:{listening.getsockname()[1]}", flush=True)  # noqa: T201
    uvicorn.Server(config).run(sockets=[listening])


def _shown(call: CarrierCall | None) -> Response:
    return JSONResponse(asdict(call)) if call else JSONResponse({"error": "no such call"}, 404)


def _event(event: str, call: CarrierCall) -> bytes:
    """The body of an event's webhook, as the simulated carrier writes it."""
    return json.dumps(
        {
            "event": event,
            "call": {
                "callId": call.carrier_call_id,
                "created": call.arrived_at_utc,
                "joined": call.joined_at_utc,
                "ended": call.ended_at_utc,
                "endReason": _END_REASONS.get(call.outcome or "", call.outcome),
                "metadata": {
                    "batch_id": call.batch_id,
                    "contact_id": str(call.contact_id),
                    "call_id": str(call.call_id),
                    "lease": call.lease,
                },
            },
        }
    ).encode()


def _main() -> None:
    parser = argparse.ArgumentParser(description="A simulated voice carrier, to try a dialer with.")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    for option in fields(Behaviour):
        name, default = f"--{option.name.replace('_', '-')}", option.default
        if isinstance(default, bool):
            parser.add_argument(name, action="store_true")
        elif isinstance(default, tuple):
            parser.add_argument(name, type=float, nargs=2, default=default, metavar=("FROM", "TO"))
        elif default is None:
            parser.add_argument(name, type=_TYPES.get(option.name, str))
        else:
            parser.add_argument(name, type=type(default), default=default, help=f"default {default}")
    options = vars(parser.parse_args())
    serve(port=options.pop("port"), behaviour=Behaviour(**options))


if __name__ == "__main__":
    _main()
