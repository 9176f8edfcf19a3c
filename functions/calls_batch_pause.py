"""POST calls-batch-pause: public.pause_batch over HTTP."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ._shared.ending import change_and_tell
from ._shared.http import edge_function


@edge_function("POST", failure="Failed to update batch status")
async def calls_batch_pause(request: Request) -> Response:
    """Start no further call of the batch until it is resumed; calls in progress finish."""
    return await change_and_tell(request, "pause_batch")
