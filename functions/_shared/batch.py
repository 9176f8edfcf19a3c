"""What the functions that change a batch's status have in common."""

from __future__ import annotations

from uuid import UUID

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from .auth import verify_jwt
from .database import call
from .http import read_body, reply
from .text import Text


class ChangeBatch(msgspec.Struct):
    """batch_id: the batch to change. reason: for the audit trail."""

    batch_id: UUID
    reason: Text | None = None


async def change_batch(request: Request, procedure: str) -> Response:
    """Call a procedure of the form (batch_id, idempotency_key, reason) for the caller, and give its row."""
    caller = await verify_jwt(request)
    body = await read_body(request, ChangeBatch)
    key = request.headers.get("idempotency-key")
    row = await call(request, caller, procedure, batch_id=body.batch_id, idempotency_key=key, reason=body.reason)
    return reply(row)
