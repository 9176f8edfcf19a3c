"""GET calls-hold-list: public.list_holds over HTTP."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_jwt
from ._shared.database import run_procedure
from ._shared.http import edge_function, read_query, reply


class ListHolds(msgspec.Struct):
    """include_lifted: with those that were lifted or have ended. limit: 1 to 1000, the newest."""

    include_lifted: bool = False
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


@edge_function("GET", failure="Failed to fetch holds")
async def calls_hold_list(request: Request) -> Response:
    """The holds that reach the caller's agency, newest first."""
    caller = await verify_jwt(request)
    query = read_query(request, ListHolds)
    return reply(
        await run_procedure(request, caller, "list_holds", include_lifted=query.include_lifted, max_holds=query.limit)
    )
