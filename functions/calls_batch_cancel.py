"""POST calls-batch-cancel: public.cancel_batch over HTTP."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ._shared.ending import change_and_tell
from ._shared.http import edge_function


@edge_function("POST", failure="Failed to update batch status")
async def calls_batch_cancel(request: Request) -> Response:
    """Skip the batch's remaining contacts for good; calls in progress finish."""
    return await change_and_tell(request, "cancel_batch")
