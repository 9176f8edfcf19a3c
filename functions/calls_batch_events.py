"""GET calls-batch-events: public.list_batch_events over HTTP."""

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
from ._shared.text import Text


class ListBatchEvents(msgspec.Struct):
    """limit: 1 to 200. after: the next_cursor of the page before."""

    batch_id: UUID
    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    after: Text | None = None


@edge_function("GET", failure="Failed to fetch events")
async def calls_batch_events(request: Request) -> Response:
    """The audit trail of the batch, oldest first."""
    caller = await verify_jwt(request)
    query = read_query(request, ListBatchEvents)
    events = await run_procedure(
        request, caller, "list_batch_events", batch_id=query.batch_id, page_size=query.limit, after=query.after
    )
    return reply(events)
