"""GET /api/call/batches/{userId}: public.list_user_batches over HTTP."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_jwt
from ._shared.database import run_procedure
from ._shared.envelope import envelope, error_envelope
from ._shared.http import edge_function, read_query, reply
from ._shared.text import Text


class ListUserBatches(msgspec.Struct):
    """user_id: UUID or external id. page: from 1. limit: 1 to 100 a page. search: in name, or a queue_status."""

    user_id: Text
    page: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    limit: Annotated[int, Meta(ge=1, le=100)] = 10
    search: Text | None = None


@edge_function("GET", failure="Failed to fetch batches", errors=error_envelope)
async def list_user_batches(request: Request) -> Response:
    """The user's batches with their progress, newest first."""
    caller = await verify_jwt(request)
    query = read_query(request, ListUserBatches)
    data = await run_procedure(
        request,
        caller,
        "list_user_batches",
        user_id=query.user_id,
        page=query.page,
        page_size=query.limit,
        search=query.search,
    )
    return reply(envelope(data, message="Batches fetched successfully"))
