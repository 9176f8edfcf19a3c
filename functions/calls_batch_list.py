"""GET calls-batch-list: public.list_batches over HTTP."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_jwt
from ._shared.database import run_procedure
from ._shared.http import edge_function, read_query, reply
from ._shared.status import BatchStatus
from ._shared.text import Text


class ListBatches(msgspec.Struct):
    """status, campaign_id: only these. limit: 1 to 100. after: the next_cursor of the page before."""

    status: BatchStatus | None = None
    campaign_id: UUID | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 25
    offset: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0
    after: Text | None = None


@edge_function("GET", failure="Failed to fetch batches")
async def calls_batch_list(request: Request) -> Response:
    """The agency's batches with their progress and what they wait for, newest first."""
    caller = await verify_jwt(request)
    query = read_query(request, ListBatches)
    batches = await run_procedure(
        request,
        caller,
        "list_batches",
        status=query.status,
        campaign_id=query.campaign_id,
        page_size=query.limit,
        page_offset=query.offset,
        after=query.after,
    )
    return reply(batches)
