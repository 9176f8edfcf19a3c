"""GET calls-batch-get: public.get_batch over HTTP."""

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
from ._shared.status import ContactStatus
from ._shared.text import Text


class GetBatch(msgspec.Struct):
    """contact_status: only these contacts. contact_limit: 1 to 200. contact_offset: to 10,000; contact_after, the
    next_cursor of the page before, goes further."""

    batch_id: UUID
    contact_status: ContactStatus | None = None
    contact_limit: Annotated[int, Meta(ge=1, le=200)] = 50
    contact_offset: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0
    contact_after: Text | None = None


@edge_function("GET", failure="Failed to fetch batch")
async def calls_batch_get(request: Request) -> Response:
    """The batch, its calls in progress and a page of its contacts in dial order."""
    caller = await verify_jwt(request)
    query = read_query(request, GetBatch)
    batch = await run_procedure(
        request,
        caller,
        "get_batch",
        batch_id=query.batch_id,
        contact_status=query.contact_status,
        contact_limit=query.contact_limit,
        contact_offset=query.contact_offset,
        contact_after=query.contact_after,
    )
    return reply(batch)
