"""POST calls-hold-lift: public.lift_hold over HTTP."""

from __future__ import annotations

from uuid import UUID

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_jwt
from ._shared.database import run_procedure
from ._shared.http import edge_function, read_body, reply
from ._shared.text import Text


class LiftHold(msgspec.Struct):
    """hold_id: which hold. reason: kept with the hold."""

    hold_id: UUID
    reason: Text | None = None


@edge_function("POST", failure="Failed to lift hold")
async def calls_hold_lift(request: Request) -> Response:
    """Lift a hold: its batches go on as they were, unless another hold reaches them."""
    caller = await verify_jwt(request)
    body = await read_body(request, LiftHold)
    return reply(await run_procedure(request, caller, "lift_hold", **msgspec.structs.asdict(body)))
