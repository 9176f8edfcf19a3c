"""POST calls-batch-resume: public.resume_batch over HTTP."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ._shared.batch import change_batch
from ._shared.http import edge_function


@edge_function("POST", failure="Failed to update batch status")
async def calls_batch_resume(request: Request) -> Response:
    """Go on with a paused or stopped batch."""
    return await change_batch(request, "resume_batch")
