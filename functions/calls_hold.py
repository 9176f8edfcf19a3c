"""POST calls-hold: public.hold_calls over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_jwt
from ._shared.database import run_procedure
from ._shared.http import edge_function, read_body, reply
from ._shared.text import Text


class HoldCalls(msgspec.Struct):
    """One of campaign_id, agent_mapping_id, from_number (E.164) and whole_agency: what is held. until: when the hold
    ends by itself; left out: never. reason: kept with the hold. dry_run: count, and change nothing."""

    campaign_id: UUID | None = None
    agent_mapping_id: UUID | None = None
    from_number: Text | None = None
    whole_agency: bool = False
    until: Annotated[datetime, Meta(tz=True)] | None = None
    reason: Text | None = None
    dry_run: bool = False


@edge_function("POST", failure="Failed to hold calls")
async def calls_hold(request: Request) -> Response:
    """Hold the calls of a campaign, an agent, a caller number or the caller's agency until the hold is lifted."""
    caller = await verify_jwt(request)
    body = await read_body(request, HoldCalls)
    key = request.headers.get("idempotency-key")
    return reply(
        await run_procedure(request, caller, "hold_calls", idempotency_key=key, **msgspec.structs.asdict(body))
    )
