"""GET calls-batch-silence: public.batch_silence over HTTP."""

from __future__ import annotations

from uuid import UUID

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_jwt
from ._shared.database import run_procedure
from ._shared.http import edge_function, read_query, reply


class BatchSilence(msgspec.Struct):
    """batch_id: the batch to look at."""

    batch_id: UUID


@edge_function("GET", failure="Failed to fetch batch")
async def calls_batch_silence(request: Request) -> Response:
    """Whether calls of the batch can still start, since when not, and which are in progress."""
    caller = await verify_jwt(request)
    query = read_query(request, BatchSilence)
    return reply(await run_procedure(request, caller, "batch_silence", batch_id=str(query.batch_id)))
