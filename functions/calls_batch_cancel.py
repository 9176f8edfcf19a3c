"""POST calls-batch-cancel: public.cancel_batch over HTTP."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ._shared.ending import EndBatch, change_and_tell
from ._shared.http import edge_function


class CancelBatch(EndBatch):
    """end_calls: the carrier hangs up the calls in progress."""

    end_calls: bool = False


@edge_function("POST", failure="Failed to update batch status")
async def calls_batch_cancel(request: Request) -> Response:
    """Skip the batch's remaining contacts for good; calls in progress finish, or end at once with end_calls."""
    return await change_and_tell(request, "cancel_batch", CancelBatch)
