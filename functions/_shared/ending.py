"""Code shared by the functions that end or pause a batch: their replies count the calls that can still start."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from .auth import Caller, verify_jwt
from .batch import ChangeBatch
from .database import run_procedure
from .errors import FunctionError
from .http import read_body, reply
from .log import logger

WaitSeconds = Annotated[float, Meta(ge=0, le=30)]
"""Most seconds for which a reply waits until no call of the batch can start at the carrier."""

_FIRST_LOOK_S = 0.05
_LAST_LOOK_S = 0.5
"""Between looks the wait doubles, up to this."""


class EndBatch(ChangeBatch):
    """wait_seconds: wait so long, until no call can start at the carrier, and tell the figures in the body."""

    wait_seconds: WaitSeconds | None = None


async def change_and_tell(request: Request, procedure: str, body_type: type[EndBatch] = EndBatch) -> Response:
    """Call a procedure that ends or pauses a batch, with the fields of the body; give its row."""
    caller = await verify_jwt(request)
    body = await read_body(request, body_type)
    row, figures, headers = await end_batch(request, caller, procedure, **msgspec.structs.asdict(body))
    return reply(row if body.wait_seconds is None else row | figures, headers=headers)


async def end_batch(
    request: Request, caller: Caller, procedure: str, wait_seconds: float | None, **arguments: Any
) -> tuple[dict[str, Any], dict[str, int], dict[str, str]]:
    """Call a procedure that ends or pauses a batch, with batch_id among its arguments, and then wait until nothing can
    start any more, for at most wait_seconds (None: not at all). Holds no connection while it waits.

    Returns the procedure's row without its figures; the figures, calls_in_progress and calls_starting; and the headers
    that tell them. The batch is ended whatever becomes of the wait: figures that cannot be read are as they were."""
    key = request.headers.get("idempotency-key")
    row = await run_procedure(request, caller, procedure, idempotency_key=key, **arguments)
    figures = {name: row.pop(name) for name in ("calls_in_progress", "calls_starting")}
    if wait_seconds is not None:
        batch = {name: str(value) for name, value in arguments.items() if name in ("batch_id", "user_id")}
        try:
            figures = await _wait(request, caller, batch, time.monotonic() + wait_seconds)
        except FunctionError as error:
            logger.warning("silence unknown", extra={"fields": {"code": error.code}})
    headers = {f"X-{name.replace('_', '-').title()}": str(value) for name, value in figures.items()}
    return row, figures, headers


async def _wait(request: Request, caller: Caller, batch: dict[str, str], until: float) -> dict[str, int]:
    look_s = _FIRST_LOOK_S
    while True:
        silence = await run_procedure(request, caller, "batch_silence", **batch)
        left_s = until - time.monotonic()
        if silence["calls_starting"] == 0 or left_s <= 0:
            return {name: silence[name] for name in ("calls_in_progress", "calls_starting")}
        await asyncio.sleep(min(look_s, left_s))
        look_s = min(2 * look_s, _LAST_LOOK_S)
