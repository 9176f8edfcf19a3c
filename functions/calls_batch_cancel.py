"""POST calls-batch-cancel: public.cancel_batch over HTTP."""

from __future__ import annotations

from uuid import UUID

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ._shared.auth import verify_jwt
from ._shared.database import call
from ._shared.http import edge_function, read_body, reply
from ._shared.text import Text


class CancelBatch(msgspec.Struct):
    """batch_id: the batch to cancel. reason: for the audit trail."""

    batch_id: UUID
    reason: Text | None = None


@edge_function("POST", failure="Failed to update batch status")
async def calls_batch_cancel(request: Request) -> Response:
    """Skip the batch's remaining contacts for good; calls in progress finish."""
    caller = await verify_jwt(request)
    body = await read_body(request, CancelBatch)
    key = request.headers.get("idempotency-key")
    return reply(
        await call(request, caller, "cancel_batch", batch_id=body.batch_id, idempotency_key=key, reason=body.reason)
    )
